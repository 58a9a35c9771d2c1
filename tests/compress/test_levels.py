"""One threshold for a whole network."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autocomp.compress.apply import apply
from autocomp.compress.levels import MOST, global_levels, global_sparsity
from autocomp.compress.rebuild import Prepared
from autocomp.compress.solve import Solver
from autocomp.errors import PlanError
from autocomp.plan import LayerPlan, Plan, Saliency, Sparsity
from tests.networks import inputs, prepared


def plan_of(net: Prepared, solver: Solver, together: Sparsity) -> Plan:
    return Plan({name: LayerPlan(one) for name, one in global_sparsity(net, solver, together).items()})


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(10, 400), min_size=1, max_size=6), st.floats(0.02, 0.9), st.integers(0, 1000))
def test_as_much_goes_as_asked_for_and_no_layer_is_cut_off(sizes: list[int], level: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = {str(n): torch.rand(size, generator=generator) * (n + 1) for n, size in enumerate(sizes)}
    levels = global_levels(scores, level)
    gone = sum(levels[name] * own.numel() for name, own in scores.items())
    assert gone == pytest.approx(round(level * sum(sizes)), abs=1)
    assert all(0 <= share <= MOST for share in levels.values())


def test_what_is_worth_least_goes_first() -> None:
    scores = {"low": torch.linspace(0, 1, 100), "high": torch.linspace(5, 6, 100)}
    assert global_levels(scores, 0.25) == {"low": 0.5, "high": 0.0}
    assert global_levels(scores, 0.75) == {"low": MOST, "high": 0.52}


@pytest.mark.parametrize("saliency", ["magnitude", "taylor", "wanda", "hessian"])
def test_a_plan_over_single_weights_fits_and_has_the_level(saliency: Saliency) -> None:
    net, calibration = prepared("residual"), [inputs("residual", 32)]
    solver = Solver(net.model, calibration)
    plan = plan_of(net, solver, Sparsity("unstructured", 0.6, saliency))
    result = apply(net, plan, calibration, solver=solver)
    weights = sum(net.model.get_submodule(layer.name).get_parameter("weight").numel() for layer in net.inventory.layers)
    gone = sum(int((~mask).sum()) for mask in result.masks.values())
    assert gone / weights == pytest.approx(0.6, abs=0.01)
    assert len({layer.masked_level() for layer in plan.layers.values()}) > 1


@pytest.mark.parametrize("saliency", ["wanda", "hessian"])
@pytest.mark.parametrize("network", ["encoder", "decoder"])
def test_layers_whose_inputs_cannot_be_seen_are_left_out(network: str, saliency: Saliency) -> None:
    net, calibration = prepared(network), [inputs(network, 8)]
    solver = Solver(net.model, calibration)
    plan = plan_of(net, solver, Sparsity("unstructured", 0.5, saliency))
    assert plan.layers
    apply(net, plan, calibration, solver=solver)


def test_a_plan_over_channels_fits() -> None:
    net, calibration = prepared("residual"), [inputs("residual", 32)]
    solver = Solver(net.model, calibration)
    plan = plan_of(net, solver, Sparsity("channel", 0.4, "taylor"))
    net.inventory.check(plan)
    assert any(layer.channel_level() > 0 for layer in plan.layers.values())
    apply(net, plan, calibration, solver=solver)


def test_what_has_no_threshold_is_refused() -> None:
    net = prepared("residual")
    with pytest.raises(PlanError, match="got 2:4; give levels by layer"):
        global_sparsity(net, Solver(net.model, ()), Sparsity("2:4", 0.5))
    with pytest.raises(PlanError, match="between 0 and 1"):
        global_levels({"layer": torch.ones(10)}, 1.5)


@pytest.mark.parametrize("pattern", ["unstructured", "channel"])
def test_a_threshold_over_some_layers_leaves_the_others_alone(pattern: Literal["unstructured", "channel"]) -> None:
    net = prepared("residual")
    layers = {layer.name for layer in net.inventory.layers[:-2]}
    found = global_sparsity(net, Solver(net.model, ()), Sparsity(pattern, 0.4), layers)
    assert found
    assert set(found) <= layers
    assert found == global_sparsity(net, Solver(net.model, ()), Sparsity(pattern, 0.4), layers)
