"""Every composition of two methods: its file computes what the simulated model does."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import get_args

import pytest
import torch

from autocomp.compress.apply import apply
from autocomp.compress.solve import Solver
from autocomp.export.to_onnx import export_onnx
from autocomp.plan import (
    N_OF_M,
    WEIGHT_BITS,
    Format,
    LayerPlan,
    Plan,
    Rank,
    RankMethod,
    Rounding,
    Saliency,
    Sparsity,
)
from tests.networks import inputs, prepared, run_file, run_module

RANKS = tuple(LayerPlan(rank=Rank(method, 4)) for method in get_args(RankMethod))
MASKS = (
    *(LayerPlan(Sparsity("unstructured", 0.6, saliency)) for saliency in get_args(Saliency)),
    LayerPlan(Sparsity("block", 0.5)),
    *(LayerPlan(Sparsity(pattern, 1 - n / m, "hessian")) for pattern, (n, m) in N_OF_M.items()),  # type: ignore[arg-type]
)
UNITS = tuple(LayerPlan(Sparsity("channel", 0.5, saliency)) for saliency in get_args(Saliency))
FORMATS = tuple(
    LayerPlan(format=chosen)
    for chosen in (
        *(Format(bits, 32 if bits == 16 else 8) for bits in WEIGHT_BITS),
        *(Format(3, rounding=rounding) for rounding in get_args(Rounding)),
        Format(2, grid="ternary"),
        Format(3, grid="codebook"),
        Format(4, granularity="tensor", clip="percentile"),
        Format(4, 32, granularity="group", group=8, clip="minmax"),
    )
)


def together(one: LayerPlan, other: LayerPlan) -> LayerPlan:
    given = {name: value for part in (one, other) for name, value in vars(part).items() if value is not None}
    return LayerPlan(**given)


def pairs() -> list[LayerPlan]:
    families: Sequence[Sequence[LayerPlan]] = (RANKS, (*MASKS, *UNITS), FORMATS)
    return [
        together(one, other)
        for first, second in itertools.combinations(families, 2)
        for one, other in itertools.product(first, second)
    ]


def plans() -> list[Plan]:
    """The pairs, as many in a plan as the network has layers that can have them."""
    inventory = prepared("residual").inventory
    free = {group.name: group for group in inventory.groups if group.prunable and len(group.producers) == 1}
    waiting, found = pairs(), []
    while waiting:
        layers: dict[str, LayerPlan] = {}
        for layer in inventory.layers:
            place = next((n for n, one in enumerate(waiting) if fits(layer.name, one, free.keys())), None)
            if place is not None:
                layers[layer.name] = waiting.pop(place)
        if not layers:
            raise AssertionError(f"no layer of the network can have {waiting[0].describe()}")
        found.append(Plan(layers))
    return found


def fits(name: str, wanted: LayerPlan, free: object) -> bool:
    layer = prepared("residual").inventory.by_name[name]
    if wanted.rank is not None and layer.largest_rank(wanted.rank.method) < wanted.rank.r:
        return False
    return wanted.sparsity is None or wanted.sparsity.pattern != "channel" or name in free  # type: ignore[operator]


@pytest.fixture(scope="module")
def solver() -> Solver:
    return Solver(prepared("residual").model, [inputs("residual", 32, seed=1)])


def test_every_pair_of_methods_is_tried() -> None:
    tried = [one for plan in plans() for one in plan.layers.values()]
    assert len(tried) == len(pairs()) > 200
    assert set(tried) == set(pairs())


@pytest.mark.parametrize("number", range(len(plans())))
def test_the_file_computes_what_the_simulated_model_does(number: int, solver: Solver) -> None:
    plan = plans()[number]
    result = apply(prepared("residual"), plan, [inputs("residual", 32, seed=1)], solver=solver)
    given = inputs("residual", 24, seed=2)
    simulated, actual = run_module(result.model, given), run_file(export_onnx(result, packed=True), given)
    step = (simulated.max() - simulated.min()) / 255
    assert (actual - simulated).abs().mean() <= 0.2 * step
    for name, mask in result.masks.items():
        assert not result.model.get_parameter(name)[~mask].any()
    for name, chosen in result.formats.items():
        if chosen.weight_bits < 16:
            stored = result.weights[f"{name}.weight"]
            assert len(torch.unique(stored.levels)) <= (1 << chosen.weight_bits) + (stored.kept is not None)
