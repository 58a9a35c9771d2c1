"""What restructure says of a plan is what apply builds, node by node."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from autocomp.compress.apply import apply
from autocomp.compress.prepare import prepare
from autocomp.compress.rebuild import Prepared
from autocomp.compress.structure import restructure
from autocomp.errors import PlanError
from autocomp.export.to_onnx import export_onnx
from autocomp.graph import Graph
from autocomp.plan import Format, LayerPlan, Plan, Rank, Sparsity
from tests.networks import (
    NETWORKS,
    compressed,
    inputs,
    numerics_here,
    prepared,
    random_plan,
    ready,
    run_file,
    run_module,
    seeds,
)


def facts(graph: Graph) -> list[tuple[object, ...]]:
    """All about the nodes but their names; inputs by position."""
    position = {node.name: number for number, node in enumerate(graph.nodes)}
    rows = [
        (
            *(node.op, node.layer, node.shape, node.weight_shape, node.has_bias, node.kernel, node.stride, node.groups),
            node.parameters,
            tuple(position[name] for name in node.inputs),
        )
        for node in graph.nodes
    ]
    return [*rows, tuple(position[name] for name in graph.outputs)]


@pytest.mark.parametrize("seed", seeds(4))
@pytest.mark.parametrize("network", NETWORKS)
def test_random_plans_have_the_structure_that_is_built(network: str, seed: int) -> None:
    plan = random_plan(prepared(network).inventory, seed)
    structure, built = restructure(prepared(network).inventory, plan), compressed(network, plan)
    assert facts(structure.graph) == facts(built.graph)
    assert structure.macs == sum(node.macs for node in built.graph.layers)
    in_integers = (name for name in structure.quantized_layers if built.formats[name].weight_bits < 16)
    assert {f"{name}.weight" for name in in_integers} == set(built.weights)
    assert {name: structure.layers[name].format for name in structure.quantized_layers} == built.formats
    for name, layer in structure.layers.items():
        mask = built.masks.get(f"{name}.weight")
        assert layer.weight_shape == built.model.get_parameter(f"{name}.weight").shape
        assert layer.kept == (None if mask is None else int(mask.sum()))


def test_the_default_plan_leaves_the_graph_as_it_was_traced() -> None:
    for network in NETWORKS:
        inventory = prepared(network).inventory
        structure = restructure(inventory, Plan())
        assert structure.graph == inventory.graph
        assert structure.macs == sum(node.macs for node in inventory.graph.layers)
        assert not structure.quantized_layers


@pytest.mark.parametrize("level", [0.01, 0.99])
def test_extreme_levels_agree_as_well(level: float) -> None:
    inventory = prepared("residual").inventory
    groups = [group for group in inventory.groups if group.prunable]
    plan = Plan({name: LayerPlan(Sparsity("channel", level)) for group in groups for name in group.producers})
    assert facts(restructure(inventory, plan).graph) == facts(compressed("residual", plan).graph)


def test_a_truncated_rank_costs_its_factors() -> None:
    inventory = prepared("residual").inventory
    structure = restructure(inventory, Plan({"3.conv2": LayerPlan(rank=Rank("svd", 4))}))
    assert "3.conv2" not in structure.layers
    assert structure.layers["3.conv2.0"].weight_shape == (4, 32, 3, 3)
    assert not structure.layers["3.conv2.0"].has_bias
    assert structure.layers["3.conv2.1"].has_bias
    saved = sum(layer.macs for layer in inventory.layers) - structure.macs
    assert saved == 2 * 2 * (32 * 32 * 9 - (4 * 32 * 9 + 32 * 4))


def test_a_layer_between_quantized_ones_is_said_to_be_quantized() -> None:
    plan = Plan({name: LayerPlan(format=Format(4)) for name in ("0.0", "1.conv2")})
    structure = restructure(prepared("residual").inventory, plan)
    assert {name: structure.layers[name].format for name in structure.quantized_layers} == {
        "0.0": Format(4),
        "1.conv1": Format(8),
        "1.conv2": Format(4),
    }


def test_a_plan_that_does_not_fit_is_refused() -> None:
    with pytest.raises(PlanError, match="'nowhere'"):
        restructure(prepared("mlp").inventory, Plan({"nowhere": LayerPlan(format=Format(8))}))


class Joined(nn.Module):
    """Two convs whose results are joined by ``join``, then a conv of ``width`` inputs."""

    def __init__(self, join: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], width: int) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)
        self.after, self.head = nn.Conv2d(width, 6, 3, padding=1), nn.Linear(6, 4)
        self.join = join

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.after(self.join(self.left(x), self.right(x)))
        result: torch.Tensor = self.head(y.mean(dim=(2, 3)))
        return result


JOINS: dict[str, tuple[Callable[[torch.Tensor, torch.Tensor], torch.Tensor], int]] = {
    "channels": (lambda x, y: torch.cat([x, y], dim=1), 16),
    "rows": (lambda x, y: torch.cat([x, y], dim=2), 8),
    "itself": (lambda x, y: torch.cat([x * y, x * y], dim=1), 16),
    "gate": (lambda x, y: x * torch.sigmoid(y.mean(dim=(2, 3), keepdim=True)), 8),
}


@pytest.mark.parametrize("join", JOINS)
def test_joined_tensors_are_followed(join: str) -> None:
    net: Prepared = prepare(ready(Joined(*JOINS[join]), seed=0), inputs("plain", 1))
    groups = [group for group in net.inventory.groups if group.prunable]
    assert "left" in {group.name for group in groups}
    plan = Plan({name: LayerPlan(Sparsity("channel", 0.4)) for group in groups for name in group.producers})
    for one in (Plan(), plan):
        assert facts(restructure(net.inventory, one).graph) == facts(apply(net, one, []).graph)


class OfParameters(nn.Module):
    """Parts of a buffer, and a linear that reads a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.project = nn.Linear(20, 8), nn.Linear(8, 6), nn.Linear(5, 6)
        self.prototypes = nn.Parameter(torch.ones(4, 5))
        self.rope = nn.Buffer(torch.linspace(0, 1, 12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shift, scale = self.rope.chunk(2, -1)
        y = self.last(self.first(x).relu()) * scale + shift
        result: torch.Tensor = y @ self.project(self.prototypes).T
        return result


@pytest.mark.parametrize(
    "plan", [Plan(), Plan({"first": LayerPlan(Sparsity("channel", 0.5), format=Format(8))})], ids=["whole", "cut"]
)
def test_what_reads_parameters_alone_is_followed(plan: Plan) -> None:
    net, batch = prepare(ready(OfParameters(), seed=0), inputs("mlp", 1)), inputs("mlp", 16)
    result = apply(net, plan, [batch])
    assert facts(result.graph) == facts(restructure(net.inventory, plan).graph)
    assert result.model(*batch).shape == (16, 4)


class OfConstants(nn.Module):
    """Tensors that are neither parameters nor buffers, read by an operation and as the rows of a table."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3)
        self.table = nn.Embedding(rows, 6)
        self.gain, self.ids = torch.tensor([0.5]), torch.arange(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.last((self.first(x) * self.gain).relu()) + torch.tensor(0.25)
        result: torch.Tensor = y.mean(dim=(2, 3)) @ self.table(self.ids).T
        return result


@pytest.mark.parametrize("rows", [4, 2000])
def test_what_reads_constants_is_followed(rows: int) -> None:
    net, batch = prepare(ready(OfConstants(rows), seed=0), inputs("plain", 1)), inputs("plain", 16)
    assert [layer.name for layer in net.inventory.layers] == ["first", "last", *(["table"] if rows > 1000 else [])]
    assert next(node for node in net.inventory.graph.nodes if node.op == "mul").parameters == 1
    table = {"table": LayerPlan(format=Format(8, 32))} if rows > 1000 else {}
    plan = Plan({"first": LayerPlan(Sparsity("channel", 0.5)), **table})
    result = apply(net, plan, [batch], numerics_here())
    assert facts(result.graph) == facts(restructure(net.inventory, plan).graph)
    for file in (export_onnx(result, packed=False), export_onnx(result, packed=True)):
        torch.testing.assert_close(run_file(file, batch), run_module(result.model, batch), rtol=1e-3, atol=1e-3)
