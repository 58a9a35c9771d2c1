"""Residual blocks: a network without one computes what it does with that branch zeroed."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from autocomp.compress.apply import apply
from autocomp.compress.blocks import drop_blocks, find_blocks
from autocomp.compress.prepare import prepare
from autocomp.compress.structure import restructure
from autocomp.errors import CompressionError
from autocomp.inventory import ResidualBlock
from autocomp.plan import Format, LayerPlan, Plan, Rank, Sparsity
from autocomp.trace import Example, export_program, graph_module, read_graph
from tests.networks import NETWORKS, compressed, inputs, prepared, ready, run_module, thorough

WITH_BLOCKS = ("lines", "residual", "option_a", "squeeze", "grouped", "encoder", "vit", "packed", "tied")
#: What `make test` tries.
USUAL = {"residual", "option_a", "packed"}


def with_zeroed(network: str, block: ResidualBlock) -> torch.fx.GraphModule:
    """The network in which the branch of a block gives zeros."""
    module = graph_module(export_program(prepared(network).model, prepared(network).example))
    addition = next(node for node in module.graph.nodes if node.name == block.addition)
    branch = addition.args[1 - block.position]
    with module.graph.inserting_before(addition):
        zeros = module.graph.call_function(torch.mul, (branch, 0.0))
    addition.replace_input_with(branch, zeros)
    module.recompile()
    return module


@pytest.mark.parametrize("network", thorough(WITH_BLOCKS, USUAL))
def test_dropping_a_block_equals_zeroing_its_branch(network: str) -> None:
    batch = inputs(network, 4, seed=8)
    assert prepared(network).inventory.blocks
    for block in prepared(network).inventory.blocks:
        dropped = compressed(network, Plan(dropped_blocks=(block.name,)))
        expected = run_module(with_zeroed(network, block), batch)
        torch.testing.assert_close(run_module(dropped.model, batch), expected, rtol=1e-4, atol=1e-5)
        assert not {node.layer for node in dropped.graph.layers} & {*block.layers}
        left = {name.removesuffix(".weight") for name, _ in dropped.model.named_parameters()}
        assert not left & {*block.layers}


@pytest.mark.slow
@pytest.mark.parametrize("network", thorough(WITH_BLOCKS, USUAL))
def test_any_of_the_blocks_may_go_together(network: str) -> None:
    blocks = [block.name for block in prepared(network).inventory.blocks]
    for count in range(2, len(blocks) + 1):
        for some in itertools.combinations(blocks, count):
            plan = Plan(dropped_blocks=some)
            built = compressed(network, plan)
            assert run_module(built.model, inputs(network, 2)).isfinite().all()
            assert len(restructure(prepared(network).inventory, plan).graph.nodes) == len(built.graph.nodes)


@pytest.mark.parametrize("network", sorted({*NETWORKS} - {*WITH_BLOCKS}))
def test_a_network_without_identity_shortcuts_has_none(network: str) -> None:
    assert prepared(network).inventory.blocks == ()


def test_blocks_are_named_by_what_their_layers_share() -> None:
    blocks = {block.name: block.layers for block in prepared("encoder").inventory.blocks}
    assert list(blocks) == ["layers.0.attention", "layers.0", "layers.1.attention", "layers.1"]
    assert blocks["layers.0"] == ("layers.0.up", "layers.0.down")


class Chain(nn.Module):
    """Linears with shortcuts around one, around two, and around a block."""

    def __init__(self, nested: bool) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(6, 6) for _ in range(4))
        self.nested = nested

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        if self.nested:
            inner = y + self.b(y.relu())
            return torch.relu(y + self.c(inner))
        y = y + self.b(y.relu())
        y = self.c(y.relu()) + y
        return torch.relu(y + self.d(y))


def test_blocks_in_a_row_and_either_side_of_the_addition() -> None:
    net = prepare(ready(Chain(nested=False), seed=0), (torch.zeros(1, 6),))
    assert [(block.name, block.position) for block in net.inventory.blocks] == [("b", 0), ("c", 1), ("d", 0)]
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = net.model.get_submodule("a")(x)
        expected = (y + net.model.get_submodule("d")(y)).relu()
        dropped = apply(net, Plan(dropped_blocks=("b", "c")), []).model(x)
    torch.testing.assert_close(dropped, expected)


def test_the_innermost_block_of_a_nest_is_the_one() -> None:
    graph = read_graph(export_program(Chain(nested=True).eval(), Example((torch.zeros(1, 6),))))
    assert [block.layers for block in find_blocks(graph)] == [("b",)]


def test_a_branch_that_is_read_elsewhere_stays() -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = self.a(x)
            return self.b(x + y), y

    assert prepare(Read(), (torch.zeros(1, 6),)).inventory.blocks == ()


def test_a_shortcut_of_another_shape_is_none() -> None:
    class Broadcast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x + self.a(x))

    assert prepare(Broadcast(), (torch.zeros(1, 4),)).inventory.blocks == ()


def test_what_else_a_plan_says_of_a_dropped_layer_does_no_harm() -> None:
    plan = Plan(
        {
            "1.conv1": LayerPlan(Sparsity("channel", 0.5), Rank("svd", 3), Format(4)),
            "1.conv2": LayerPlan(Sparsity("channel", 0.25)),
            "0.0": LayerPlan(Sparsity("channel", 0.25)),
        },
        ("1",),
    )
    result = compressed("residual", plan)
    assert result.model.get_parameter("0.0.weight").shape[0] == 12
    assert not [name for name in result.weights if name.startswith("1.")]


class InPlace(nn.Module):
    """As torchvision's ResNets have it; or the first activation is one before the branch, which the shortcut sees too."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.first = first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv2(self.relu(self.conv1(self.relu(x) if self.first else x)))
        y += x
        return y if self.first else y.relu_()


@pytest.mark.parametrize("first", [False, True])
def test_nothing_stays_of_a_block_that_changes_its_tensors_in_place(first: bool) -> None:
    stem, head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)
    net = prepare(ready(nn.Sequential(stem, InPlace(first), head), seed=0), (torch.zeros(1, 3, 6, 6),))
    built = apply(net, Plan(dropped_blocks=("1",)), [])
    assert {name.rpartition(".")[0] for name, _ in built.model.named_parameters()} == {"0", "2"}
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = net.model.get_submodule("2")(net.model.get_submodule("0")(x).relu())
        torch.testing.assert_close(built.model(x), expected)


def test_what_changed_the_sum_in_place_leaves_the_shortcut_alone() -> None:
    class Later(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(6, 6) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.a(x)
            z: torch.Tensor = self.c((y + self.b(y)).relu_())
            return z * y

    net = prepare(ready(Later(), seed=0), (torch.zeros(1, 6),))
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    built = apply(net, Plan(dropped_blocks=("b",)), [])
    with torch.no_grad():
        y = net.model.get_submodule("a")(x)
        torch.testing.assert_close(built.model(x), net.model.get_submodule("c")(y.relu()) * y)


def test_a_graph_without_the_addition_is_an_error() -> None:
    module = graph_module(export_program(prepared("residual").model, prepared("residual").example))
    with pytest.raises(CompressionError, match="must have the addition 'nowhere'"):
        drop_blocks(module, [ResidualBlock("x", ("y",), "nowhere", 0)])
