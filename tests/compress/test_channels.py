"""Physically pruned = masked, on channel sets that find_groups has not tried itself."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import nn

from autocomp.compress.apply import apply
from autocomp.compress.channels import choose_channels, find_groups, mask, prune
from autocomp.errors import PlanError
from autocomp.inventory import ChannelGroup
from autocomp.plan import LayerPlan, Plan, Sparsity
from tests.networks import NETWORKS, images, option_a, prepared, ready


def prunable(network: str) -> list[ChannelGroup]:
    return [group for group in prepared(network).inventory.groups if group.prunable]


def channel_set(group: ChannelGroup, chance: random.Random) -> list[int]:
    return chance.sample(range(group.width), chance.randint(1, group.width - 1))


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("network", NETWORKS)
def test_pruned_equals_masked(network: str, seed: int) -> None:
    ready_net, chance, batch = prepared(network), random.Random(seed), images(network, 4, seed=50 + seed)
    for group in prunable(network):
        channels = channel_set(group, chance)
        masked = mask(ready_net.model, ready_net.example_inputs, group, channels)
        pruned = prune(ready_net.model, ready_net.example_inputs, [(group, channels)])
        assert_same(pruned(*batch), masked(*batch))
        for name in group.producers:
            assert len(pruned.get_submodule(name).weight) == group.width - len(channels)  # type: ignore[arg-type]


@pytest.mark.parametrize("network", NETWORKS)
def test_groups_pruned_together_equal_groups_masked_one_after_the_other(network: str) -> None:
    ready_net, chance, batch = prepared(network), random.Random(9), images(network, 4, seed=60)
    cut = [(group, channel_set(group, chance)) for group in prunable(network)]
    masked = ready_net.model
    for group, channels in cut:
        masked = mask(masked, ready_net.example_inputs, group, channels)
    assert_same(prune(ready_net.model, ready_net.example_inputs, cut)(*batch), masked(*batch))


@pytest.mark.parametrize("network", NETWORKS)
def test_masking_leaves_no_trace_of_a_channel(network: str) -> None:
    """The mask is the yardstick, so it is held against the definition: the producers' channels are zero."""
    ready_net = prepared(network)
    for group in prunable(network):
        masked = mask(ready_net.model, ready_net.example_inputs, group, [0, group.width - 1])
        for name in group.producers:
            layer = masked.get_submodule(name)
            assert isinstance(layer, (nn.Conv2d, nn.Linear))
            assert not layer.weight[[0, -1]].any()
            assert layer.bias is None or not layer.bias[[0, -1]].any()
            whole = ready_net.model.get_submodule(name).get_parameter("weight")
            if name not in group.consumers:
                assert torch.equal(layer.weight[1:-1], whole[1:-1])


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
        apply(prepared("option_a"), plan, [images("option_a", 2)])
    assert outer.reason in str(raised.value)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_models_output_is_forbidden(network: str) -> None:
    last = prepared(network).inventory.groups[-1]
    assert last.name == prepared(network).inventory.layers[-1].name
    assert last.reason == "they are the model's output"


@pytest.mark.parametrize("slopes", [1, 8])
def test_a_rectifier_with_weights_does_not_stand_in_the_way(slopes: int) -> None:
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.PReLU(slopes), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(216, 4)
    model = ready(nn.Sequential(*layers), seed=0)
    groups = find_groups(model, images("plain", 1), ["0", "2", "4"])
    assert [group.prunable for group in groups] == [True, True, False]


def test_grouped_convs_are_forbidden_with_a_reason() -> None:
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=4), nn.Flatten(), nn.Linear(192, 4)
    groups = find_groups(ready(nn.Sequential(*layers), seed=0), images("plain", 1), ["0", "2", "4"])
    assert not any(group.prunable for group in groups)
    assert all(group.reason and "\n" not in group.reason for group in groups)


def test_finding_and_pruning_leave_the_model_as_it_is() -> None:
    model = option_a()
    before = copy.deepcopy(model.state_dict())
    names = [name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    group = next(one for one in find_groups(model, images("option_a", 1), names) if one.prunable)
    prune(model, images("option_a", 1), [(group, [0])])
    mask(model, images("option_a", 1), group, [0])
    choose_channels(model, images("option_a", 1), group, 3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kept", [1, 5, 11])
def test_channels_of_least_magnitude_go(kept: int) -> None:
    ready_net = prepared("residual")
    group = next(one for one in ready_net.inventory.groups if one.name == "1.conv1")
    small = sorted(random.Random(kept).sample(range(group.width), group.width - kept))
    model = copy.deepcopy(ready_net.model)
    with torch.no_grad():
        model.get_submodule("1.conv1").get_parameter("weight")[small] *= 1e-3
        model.get_submodule("1.conv2").get_parameter("weight")[:, small] *= 1e-3
    assert choose_channels(model, ready_net.example_inputs, group, kept) == small


def test_equal_channels_go_in_order() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    example = (torch.zeros(1, 4),)
    group = find_groups(model, example, ["0", "2"])[0]
    assert choose_channels(model, example, group, 4) == [0, 1]
