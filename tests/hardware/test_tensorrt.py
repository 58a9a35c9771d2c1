"""TensorRT's kernels: what becomes one, what stays alone, where a tensor changes precision."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as functional
from torch import nn

from autocomp.compress.quantize import Numerics, quantized_tensors
from autocomp.compress.structure import LayerShape, Structure, restructure
from autocomp.hardware.kernels import Kernel
from autocomp.hardware.resolve import resolve_target
from autocomp.hardware.tensorrt import lower
from autocomp.plan import Format, LayerPlan, Plan
from autocomp.trace import Example, export_program, read_graph
from tests.networks import NETWORKS, prepared, random_plan, uniform_plan

TENSORRT = Numerics(symmetric_activations=True, integer_bias=False, rounded_outputs=False)


def kernels_of(network: str, plan: Plan, batch: int = 1) -> tuple[Kernel, ...]:
    return lower(restructure(prepared(network).inventory, plan, TENSORRT), batch)


def kernels_of_module(model: nn.Module, *shape: int, quantized: tuple[str, ...] = ()) -> list[str]:
    """The kernels of a module that is not touched but for quantized layers, without those at inputs and outputs."""
    graph = read_graph(export_program(model.eval(), Example((torch.zeros(1, *shape),))))
    layers = {
        node.layer: LayerShape(node.weight_shape, node.has_bias, Format(8) if node.layer in quantized else None, None)
        for node in graph.layers
        if node.layer is not None
    }
    formats = {name: layer.format for name, layer in layers.items()}
    structure = Structure(graph, layers, frozenset(quantized_tensors(graph, formats, TENSORRT)))
    return [kernel.op for kernel in lower(structure, 1) if kernel.op != "reformat_fp32"]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("seed", range(4))
def test_every_layer_is_one_kernel_of_its_precision(network: str, seed: int) -> None:
    structure = restructure(prepared(network).inventory, random_plan(prepared(network).inventory, seed), TENSORRT)
    # An input may be called as a layer is; an embedding of positions alone is a constant.
    kernels = [kernel for kernel in lower(structure, 1) if not kernel.op.startswith(("reformat", "copy"))]
    varying: set[str] = set()
    for node in structure.graph.nodes:
        if node.op == "input" or varying & {*node.inputs}:
            varying.add(node.name)
    products = [n for n in structure.graph.layers if n.op != "embedding" and n.name in varying]
    layers = {node.layer or "" for node in products}
    found = Counter(source for kernel in kernels for source in kernel.sources if source in layers)
    assert found == Counter(node.layer for node in products)
    precision = {kernel.sources[0]: kernel.op.rpartition("_")[2] for kernel in kernels}
    for name in layers:
        assert precision[name] == ("int8" if name in structure.integer_layers else "fp16")
    assert sum(kernel.macs for kernel in kernels if kernel.sources[0] in layers) == sum(node.macs for node in products)


def test_a_residual_block_is_one_kernel_a_layer() -> None:
    kernels = kernels_of("residual", Plan())
    assert Counter(kernel.op for kernel in kernels) == {
        "reformat_fp32": 2,
        "conv_fp16": 9,  # the stem, three pairs, two shortcuts
        "pool_fp16": 1,
        "gemm_fp16": 1,
    }
    assert sum(kernel.fused_add for kernel in kernels) == 3


def test_a_network_all_in_int8_changes_precision_only_at_its_ends() -> None:
    ops = Counter(kernel.op for kernel in kernels_of("plain", uniform_plan("plain", format=Format(8))))
    assert ops["conv_int8"] == 3
    assert ops["gemm_int8"] == 2
    # Only what an integer layer reads is rounded: the pooled and the flattened tensor.
    assert ops["pool_fp16"] == 1
    assert ops["reformat_int8"] == 2


def test_a_quantized_layer_between_others_is_reformatted_in_front_and_writes_floats() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    assert kernels_of_module(model, 3, 12, 12, quantized=("2",)) == [
        "conv_fp16",
        "reformat_int8",
        "conv_int8",
        "conv_fp16",
    ]


def test_an_addition_is_taken_into_an_integer_convolution() -> None:
    everything = {layer.name: LayerPlan(format=Format(8)) for layer in prepared("residual").inventory.layers}
    kernels = kernels_of("residual", Plan(everything))
    assert sum(kernel.op == "conv_int8" for kernel in kernels) == 9
    assert sum(kernel.fused_add for kernel in kernels) == 3


class _Pointwise(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.form = form

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        result: torch.Tensor
        if self.form == "activation":
            result = self.second(functional.hardswish(y))
        elif self.form == "add":
            result = functional.silu(self.second(y) + y)
        elif self.form == "dropout, add":
            result = functional.dropout(self.second(y), 0.5, self.training) + y
        elif self.form == "activation, add":
            result = functional.silu(self.second(y)) + y
        else:
            result = self.second(torch.sigmoid(y) * x + x)
        return result


@pytest.mark.parametrize(
    ("form", "alone"), [("activation", 0), ("add", 0), ("dropout, add", 0), ("activation, add", 1), ("gate, add", 1)]
)
def test_pointwise_operations(form: str, alone: int) -> None:
    assert Counter(kernels_of_module(_Pointwise(form), 4, 8, 8)) == Counter(conv_fp16=2, elementwise_fp16=alone)


class _Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(4, 6, 1), nn.Conv2d(4, 6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = torch.chunk(x, 2, dim=1)
        return torch.cat([self.left(first), self.right(second)], 1).flatten(1)


def test_a_split_is_copied_and_a_concatenation_written_in_place() -> None:
    assert Counter(kernels_of_module(_Branches(), 8, 5, 5)) == {"copy_fp16": 2, "conv_fp16": 2}


class _Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cumsum(self.linear(x), dim=1)


def test_an_unknown_operation_keeps_its_name() -> None:
    assert kernels_of_module(_Odd(), 6) == ["gemm_fp16", "cumsum"]


def test_a_batch_multiplies_work_but_not_weights() -> None:
    for one, four in zip(kernels_of("separable", Plan()), kernels_of("separable", Plan(), batch=4), strict=True):
        assert (four.macs, four.in_elements, four.out_elements) == (
            4 * one.macs,
            4 * one.in_elements,
            4 * one.out_elements,
        )
        assert four.weight_elements == one.weight_elements


class _Dense(nn.Module):
    """Every layer reads all that came before it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(4, 4, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(12, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.first(x)
        second = self.second(torch.cat([x, first], 1))
        third: torch.Tensor = self.third(torch.cat([x, first, second], 1))
        return third.flatten(1)


def test_what_others_read_as_well_is_copied_into_a_concatenation_part_by_part() -> None:
    """The second convolution alone is written in its place; the input and the first convolution have other readers."""
    assert Counter(kernels_of_module(_Dense(), 4, 5, 5)) == {"copy_fp16": 2 + 2, "conv_fp16": 3}


@pytest.mark.parametrize("network", ["encoder", "vit", "packed", "tied"])
def test_all_of_a_transformer_is_covered_by_the_jetsons(network: str) -> None:
    """Masks, pooling of sentences and their norms among it."""
    target = resolve_target("jetson")
    prediction = target.predict(restructure(prepared(network).inventory, Plan(), target.numerics))
    assert prediction.source == "fitted"
    assert prediction.latency_ms > 0
