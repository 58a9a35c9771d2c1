"""Physically pruned = masked, on channel sets that find_couplings has not tried itself."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import pytest
import torch
from torch import nn

from autocomp.compress import couplings
from autocomp.compress.apply import apply
from autocomp.compress.channels import Coupling, choose_units, mask, prune
from autocomp.compress.couplings import find_couplings
from autocomp.compress.prepare import prepare
from autocomp.errors import PlanError
from autocomp.plan import LayerPlan, Plan, Saliency, Sparsity
from tests.networks import NETWORKS, inputs, prepared, ready, run_module, seeds

LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.Embedding)


def prunable(network: str) -> list[Coupling]:
    return [one for one in prepared(network).couplings if one.group.prunable]


def magnitudes(model: nn.Module) -> Callable[[str], torch.Tensor]:
    return lambda path: model.get_submodule(path).get_parameter("weight").detach().square()


def some_units(coupling: Coupling, chance: random.Random) -> list[int]:
    return chance.sample(range(coupling.group.width), chance.randint(1, coupling.group.width - 1))


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def outputs_of(layer: nn.Module) -> int:
    weight = layer.get_parameter("weight")
    if isinstance(layer, nn.ConvTranspose2d):
        return weight.shape[1] * layer.groups
    return weight.shape[1] if isinstance(layer, nn.Embedding) else len(weight)


@pytest.mark.parametrize("seed", seeds(3))
@pytest.mark.parametrize("network", NETWORKS)
def test_pruned_equals_masked(network: str, seed: int) -> None:
    model, chance, batch = prepared(network).model, random.Random(seed), inputs(network, 4, seed=50 + seed)
    for coupling in prunable(network):
        units = some_units(coupling, chance)
        masked, pruned = mask(model, [(coupling, units)]), prune(model, [(coupling, units)])
        assert_same(run_module(pruned, batch), run_module(masked, batch))
        group = coupling.group
        for name in group.producers:
            assert outputs_of(pruned.get_submodule(name)) == (group.width - len(units)) * group.unit


@pytest.mark.parametrize("network", NETWORKS)
def test_groups_pruned_together_equal_groups_masked_one_after_the_other(network: str) -> None:
    model, chance, batch = prepared(network).model, random.Random(9), inputs(network, 4, seed=60)
    cuts = [(coupling, some_units(coupling, chance)) for coupling in prunable(network)]
    masked = model
    for cut in cuts:
        masked = mask(masked, [cut])
    assert_same(run_module(prune(model, cuts), batch), run_module(masked, batch))


@pytest.mark.parametrize("network", NETWORKS)
def test_masking_leaves_no_trace_of_a_channel(network: str) -> None:
    """The mask is the yardstick, so it is held against the definition: the producers' channels are zero."""
    model = prepared(network).model
    for coupling in prunable(network):
        group = coupling.group
        masked = mask(model, [(coupling, [0, group.width - 1])])
        for name in group.producers:
            layer = masked.get_submodule(name)
            own = next(one for one in coupling.slices if one.path == name and one.side == "out")
            gone = [*own.indices[0], *own.indices[-1]]
            stay = [index for index in range(outputs_of(layer)) if index not in gone]
            weight, whole = (
                w.transpose(0, 1) if isinstance(layer, (nn.ConvTranspose2d, nn.Embedding)) else w
                for w in (layer.get_parameter("weight"), model.get_submodule(name).get_parameter("weight"))
            )
            assert not weight[gone].any()
            bias = getattr(layer, "bias", None)
            assert bias is None or not bias[gone].any()
            if name not in group.consumers:
                assert torch.equal(weight[stay], whole[stay])


def test_groups_of_the_residual_net() -> None:
    groups = {group.name: group for group in prepared("residual").inventory.groups}
    assert groups["0.0"].producers == ("0.0", "1.conv2")
    assert set(groups["0.0"].consumers) == {"1.conv1", "2.conv1", "2.shortcut.0"}
    assert groups["2.conv2"].producers == ("2.conv2", "2.shortcut.0")
    assert groups["1.conv1"].consumers == {"1.conv2": 1}
    assert all(group.prunable for group in groups.values() if group.name != "4.linear")


def test_a_linear_behind_a_flatten_reads_several_inputs_a_channel() -> None:
    groups = {group.name: group for group in prepared("plain").inventory.groups}
    assert groups["7"].consumers == {"10": 16}


def test_the_inside_of_an_option_a_block_is_free_and_the_shortcut_forbidden() -> None:
    groups = {group.name: group for group in prepared("option_a").inventory.groups}
    assert {name for name, group in groups.items() if group.prunable} == {"1.conv1", "2.conv1", "3.conv1"}
    outer = groups["0.0"]
    assert {"1.conv2", "2.conv2", "3.conv2"} <= set(outer.producers)
    assert outer.reason is not None
    assert "pruned network" in outer.reason
    plan = Plan({name: LayerPlan(Sparsity("channel", 0.5)) for name in outer.producers})
    with pytest.raises(PlanError, match=r"'0\.0'") as raised:
        apply(prepared("option_a"), plan, [inputs("option_a", 2)])
    assert outer.reason in str(raised.value)


@pytest.mark.parametrize("network", sorted({*NETWORKS} - {"tied"}))
def test_the_models_output_is_forbidden(network: str) -> None:
    last = prepared(network).couplings[-1].group
    assert last.name == prepared(network).inventory.layers[-1].name
    assert last.reason == "they are the model's output"


def test_a_weight_that_is_two_layers_is_left_whole() -> None:
    inventory = prepared("tied").inventory
    assert dict(inventory.skipped)["token"] == dict(inventory.skipped)["head"] == "its weight is used more than once"
    assert not any(group.prunable for group in inventory.groups if {"token", "head"} & {*group.producers})


def test_what_a_norm_reads_stays_and_what_a_block_has_inside_is_free() -> None:
    groups = {group.name: group for group in prepared("encoder").inventory.groups if group.pattern == "channel"}
    assert "normalizes over them" in (groups["token"].reason or "")
    assert groups["layers.0.up"].consumers == {"layers.0.down": 1}
    assert groups["layers.0.up"].prunable


def test_a_dense_block_is_cut_across_its_norms() -> None:
    coupling = next(one for one in prunable("dense") if one.group.name == "1.conv")
    norms = {one.path: one.indices[0] for one in coupling.slices if one.side == "own"}
    assert norms == {"2.norm": (12,), "3.norm": (12,), "4": (12,)}
    assert set(coupling.group.consumers) == {"2.conv", "3.conv", "6.linear"}


def test_a_transposed_convolution_is_a_layer_like_others() -> None:
    groups = {group.name: group for group in prepared("decoder").inventory.groups}
    assert groups["up"].prunable
    assert groups["up"].consumers == {"last": 1}
    assert groups["inner"].consumers == {"up": 1, "score": 1}


@pytest.mark.parametrize("network", ["plain", "residual", "mlp", "separable", "shuffle", "inception", "encoder"])
def test_what_goes_straight_on_is_found_without_torch_pruning(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stops at some channel shuffles; the insides of such a network's blocks are free all the same."""

    def stop(*_: object) -> None:
        raise ZeroDivisionError("integer division or modulo by zero")

    net = prepared(network)
    order = list(dict.fromkeys(node.layer for node in net.inventory.graph.layers if node.layer is not None))
    monkeypatch.setattr(couplings, "_dependency_graph", stop)
    found = {
        one.group.name: one.group for one in find_couplings(net.model, net.example.inputs, order, net.inventory.graph)
    }
    assert {name for group in found.values() for name in group.producers} == {*order}
    known = {one.group.name: one.group for one in net.couplings}
    free = [group for group in found.values() if group.prunable]
    assert free
    for group in free:
        assert (group.producers, dict(group.consumers)) == (known[group.name].producers, known[group.name].consumers)
    assert all("cannot follow" in (group.reason or "") for group in found.values() if not group.prunable)


def test_a_group_that_grows_without_end_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch-Pruning would take tens of gigabytes for some windowed transformers."""
    net = prepared("residual")
    order = [layer.name for layer in net.inventory.layers]
    monkeypatch.setattr(couplings, "MOST_DEPENDENCIES", 4)
    found = find_couplings(net.model, net.example.inputs, order, net.inventory.graph)
    assert any("reaches further than 4 places" in (one.group.reason or "") for one in found)
    assert any(one.group.prunable for one in found)


@pytest.mark.parametrize("slopes", [1, 8])
def test_a_rectifier_with_weights_does_not_stand_in_the_way(slopes: int) -> None:
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.PReLU(slopes), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(216, 4)
    model = ready(nn.Sequential(*layers), seed=0)
    found = find_couplings(model, inputs("plain", 1), ["0", "2", "4"])
    assert [one.group.prunable for one in found] == [True, True, False]


def test_a_grouped_conv_loses_a_channel_in_each_of_its_groups() -> None:
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=4), nn.Flatten(), nn.Linear(192, 4)
    model = ready(nn.Sequential(*layers), seed=0)
    before, inside, _ = find_couplings(model, inputs("plain", 1), ["0", "2", "4"])
    assert (before.group.width, before.group.unit, before.group.prunable) == (2, 4, True)
    assert (inside.group.width, inside.group.unit, inside.group.prunable) == (3, 4, True)
    pruned = prune(model, [(before, [1]), (inside, [0])])
    assert pruned.get_parameter("0.weight").shape == (4, 3, 3, 3)
    assert pruned.get_parameter("2.weight").shape == (8, 1, 3, 3)
    assert pruned.get_parameter("4.weight").shape == (4, 128)


def test_channels_that_meet_two_group_counts_are_forbidden_with_a_reason() -> None:
    layers = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 1, groups=4), nn.Conv2d(8, 2, 1)
    found = find_couplings(ready(nn.Sequential(*layers), seed=0), inputs("plain", 1), ["0", "1", "2", "3"])
    between = next(one.group for one in found if one.group.name == "1")
    assert not between.prunable
    assert between.reason == "convolutions of different group counts share them"


def test_finding_and_pruning_leave_the_model_as_it_is() -> None:
    for network in NETWORKS:
        model = NETWORKS[network]()
        before = copy.deepcopy(model.state_dict())
        names = [name for name, module in model.named_modules() if isinstance(module, LAYERS)]
        coupling = next((one for one in find_couplings(model, inputs(network, 1), names) if one.group.prunable), None)
        if coupling is not None:
            prune(model, [(coupling, [0])])
            mask(model, [(coupling, [0])])
            choose_units(model, coupling, 3, magnitudes(model))
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kept", [1, 5, 11])
def test_channels_of_least_magnitude_go(kept: int) -> None:
    coupling = next(one for one in prunable("residual") if one.group.name == "1.conv1")
    width = coupling.group.width
    small = sorted(random.Random(kept).sample(range(width), width - kept))
    model = copy.deepcopy(prepared("residual").model)
    with torch.no_grad():
        model.get_submodule("1.conv1").get_parameter("weight")[small] *= 1e-3
        model.get_submodule("1.conv2").get_parameter("weight")[:, small] *= 1e-3
    assert choose_units(model, coupling, kept, magnitudes(model)) == small


def test_equal_channels_go_in_order() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    coupling = find_couplings(model, (torch.zeros(1, 4),), ["0", "2"])[0]
    assert choose_units(model, coupling, 4, magnitudes(model)) == [0, 1]


def output_error(plan: Plan, network: str = "residual") -> float:
    net, given = prepared(network), inputs(network, 64, seed=3)
    result = apply(net, plan, [inputs(network, 128, seed=4)])
    reference = run_module(net.model, given)
    return float((run_module(result.model, given) - reference).norm() / reference.norm())


@pytest.mark.parametrize("network", ["residual", "plain"])
def test_the_saliency_decides_which_channels_go(network: str) -> None:
    group = next(one for one in prepared(network).inventory.groups if one.prunable and one.width >= 8)
    saliencies: tuple[Saliency, ...] = ("magnitude", "taylor", "wanda", "hessian")
    errors = {}
    for saliency in saliencies:
        chosen = LayerPlan(Sparsity("channel", 0.5, saliency))
        errors[saliency] = output_error(Plan(dict.fromkeys(group.producers, chosen)), network)
    assert errors["hessian"] == min(errors.values())  # because what is left makes up for what went
    assert len(set(errors.values())) > 2


def test_what_is_left_makes_up_for_channels_that_are_copies_of_others() -> None:
    """Of two channels that are the same, one can go without a trace when the next layer's weights take over."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        for parameter in model[0].parameters():
            parameter[4:] = parameter[:4]
    given = torch.randn(256, 6)
    net = prepare(model, (given[:1],))
    errors = []
    saliencies: tuple[Saliency, ...] = ("magnitude", "hessian")
    for saliency in saliencies:
        plan = Plan({"0": LayerPlan(Sparsity("channel", 0.125, saliency))})
        result = apply(net, plan, [(given,)])
        errors.append(float((run_module(result.model, (given,)) - run_module(model, (given,))).detach().norm()))
    assert errors[1] < 0.1 * errors[0]
