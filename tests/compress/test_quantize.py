"""Weights and activations on integer grids."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autocomp.compress.apply import apply
from autocomp.compress.grids import QuantizedWeight
from autocomp.compress.quantize import (
    ActivationQuantizer,
    DynamicQuantizer,
    Numerics,
    RangeObserver,
    calibrate_activations,
    complete_formats,
    quantized_tensors,
    rounded_for_products,
)
from autocomp.graph import BATCH, Graph, Node
from autocomp.plan import Clip, Format, LayerPlan, Plan
from autocomp.trace import export_program, graph_module
from tests.networks import compressed, inputs, prepared

seeds = st.integers(0, 2**20)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def observed(values: torch.Tensor, symmetric: bool) -> ActivationQuantizer:
    observer = RangeObserver()
    assert observer(values) is values
    return observer.quantizer(symmetric)


def test_only_integer_products_are_narrow() -> None:
    plan = Plan({"0": LayerPlan(format=Format(8)), "3": LayerPlan(format=Format(8, 32))})
    result = apply(prepared("mlp"), plan, [inputs("mlp", 8)], Numerics(narrow_products=True))
    largest = {name: int(stored.levels.abs().max()) for name, stored in result.weights.items()}
    assert largest == {"0.weight": 64, "3.weight": 127}


def test_a_range_is_clipped_as_asked_for() -> None:
    values = normal(20_000)
    values[0] = 60.0
    observer = RangeObserver()
    observer(values)
    scales = {clip: observer.quantizer(True, clip).scale for clip in get_args(Clip)}
    assert scales["minmax"] == pytest.approx(60 / 127)
    assert scales["percentile"] < 4.5 / 127
    assert scales["percentile"] < scales["mse"] <= scales["minmax"]


def test_the_layer_that_reads_says_how_its_input_is_clipped() -> None:
    net, given = prepared("mlp"), inputs("mlp", 64)
    results = {}
    for clip in get_args(Clip):
        plan = Plan({layer.name: LayerPlan(format=Format(8, clip=clip)) for layer in net.inventory.layers})
        found = apply(net, plan, [given]).model
        results[clip] = [one.scale for one in found.modules() if isinstance(one, ActivationQuantizer)]
    assert all(low <= high for low, high in zip(results["percentile"], results["minmax"], strict=True))
    assert results["percentile"] != results["minmax"]


def test_a_rectified_tensor_has_zero_point_zero() -> None:
    """onnxruntime folds a rectifier into its int8 kernels only then."""
    quantizer = observed(normal(4, 500).relu(), symmetric=False)
    assert (quantizer.zero_point, quantizer.low, quantizer.high) == (0, 0, 255)
    assert quantizer.dtype == torch.uint8


def test_symmetric_activations_are_int8_around_zero() -> None:
    for values in (normal(4, 500), normal(4, 500).relu(), normal(4, 500) - 3):
        quantizer = observed(values, symmetric=True)
        assert (quantizer.zero_point, quantizer.low, quantizer.high) == (0, -128, 127)
        assert quantizer.dtype == torch.int8


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("shift", [-5.0, -0.3, 0.0, 0.3, 5.0])
def test_zero_stays_zero_and_the_error_is_small(symmetric: bool, shift: float) -> None:
    values = normal(8, 400) + shift
    quantizer = observed(values, symmetric)
    assert float(quantizer(torch.zeros(1))) == 0.0
    assert float((quantizer(values) - values).square().mean().sqrt()) < 0.02 * float(values.abs().max())


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_tensor_that_is_always_zero_can_be_rounded(symmetric: bool) -> None:
    quantizer = observed(torch.zeros(2, 10), symmetric)
    assert quantizer.scale > 0
    assert not quantizer(torch.zeros(3)).any()


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-3, 1.0), st.integers(0, 255), seeds)
def test_the_eager_arithmetic_is_that_of_the_exported_operators(scale: float, zero_point: int, seed: int) -> None:
    quantizer = ActivationQuantizer(scale, zero_point, signed=False)
    values = normal(200, seed=seed) * 100 * scale
    grid = (scale, zero_point, 0, 255, torch.uint8)
    levels = torch.ops.quantized_decomposed.quantize_per_tensor(values, *grid)
    exported = torch.ops.quantized_decomposed.dequantize_per_tensor(levels, *grid)
    torch.testing.assert_close(quantizer(values), exported, rtol=1e-6, atol=0.0)
    kept = values.clone()
    quantizer(values)
    assert torch.equal(values, kept)
    # In training by another way.
    torch.testing.assert_close(quantizer(values.requires_grad_()).detach(), exported, rtol=1e-6, atol=0.0)


def node(name: str, op: str, *inputs: str, layer: str | None = None) -> Node:
    shape = (BATCH, 8) if op == "linear" else (BATCH, 8, 4, 4)
    return Node(name, op, inputs, shape, layer, (8, 8) if layer else ())


def chain(*ops: str) -> Graph:
    """input → ops in a row; the layers are called a, b, c, …"""
    nodes, letters = [node("x", "input")], iter("abcdef")
    for number, op in enumerate(ops):
        layer = next(letters) if op in ("conv2d", "linear") else None
        nodes.append(node(f"{op}{number}", op, nodes[-1].name, layer=layer))
    return Graph(tuple(nodes), (nodes[-1].name,))


def test_a_quantized_conv_reads_and_writes_rounded_tensors() -> None:
    graph = chain("conv2d", "relu", "conv2d", "relu", "conv2d")
    assert quantized_tensors(graph, {"b": Format(8)}) == ("relu1", "relu3")
    assert quantized_tensors(graph, {"a": Format(8)}) == ("x", "relu1")
    assert quantized_tensors(graph, {"c": Format(8)}) == ("relu3", "conv2d4")
    assert quantized_tensors(graph, {}) == ()


def test_a_quantized_linear_writes_floats_unless_an_activation_is_behind_it() -> None:
    assert quantized_tensors(chain("linear", "linear"), {"a": Format(8)}) == ("x",)
    assert quantized_tensors(chain("linear", "relu", "linear"), {"a": Format(8)}) == ("x", "relu1")
    assert quantized_tensors(chain("linear", "relu", "linear"), {"b": Format(8)}) == ("relu1",)


def test_floats_and_what_is_rounded_at_run_time_have_no_calibrated_grid() -> None:
    graph = chain("conv2d", "relu", "conv2d", "relu", "linear")
    assert quantized_tensors(graph, {"a": Format(4, 32), "c": Format(8, dynamic=True)}) == ()


def test_what_a_product_reads_rounded_is_rounded_for_it_alone() -> None:
    """What goes by on the residual path keeps its outliers."""
    x, first = Node("x", "input", (), (BATCH, 5, 8)), Node("first", "linear", ("x",), (BATCH, 5, 8), "a", (8, 8))
    graph = Graph((x, first, Node("sum", "add", ("x", "first"), (BATCH, 5, 8))), ("sum",))
    formats = {"a": Format(8)}
    assert quantized_tensors(graph, formats) == ()
    assert rounded_for_products(graph, formats, ()) == ("x",)
    assert rounded_for_products(graph, {"a": Format(8, dynamic=True)}, ()) == ()


def test_a_dynamic_quantizer_is_shared_by_all_that_read_a_tensor() -> None:
    names = [f"layers.0.attention.{name}" for name in ("query", "key", "value", "out")]
    plan = Plan({name: LayerPlan(format=Format(8, dynamic=True)) for name in names})
    result = compressed("encoder", plan)
    assert sum(isinstance(module, DynamicQuantizer) for module in result.model.modules()) == 2
    assert all(result.formats[name].dynamic for name in names)


def test_a_conv_whose_result_is_read_twice_is_rounded_before_its_activation() -> None:
    fork = Graph(
        (
            node("x", "input"),
            node("conv", "conv2d", "x", layer="a"),
            node("relu", "relu", "conv"),
            node("sum", "add", "conv", "relu"),
        ),
        ("sum",),
    )
    assert quantized_tensors(fork, {"a": Format(8)}) == ("x", "conv")


def test_a_layer_between_quantized_ones_is_quantized_as_well() -> None:
    graph = chain("conv2d", "relu", "conv2d", "relu", "conv2d")
    assert complete_formats(graph, {"a": Format(4), "b": None, "c": Format(2)}) == {
        "a": Format(4),
        "b": Format(8),
        "c": Format(2),
    }


@pytest.mark.parametrize("mover", ["max_pool2d", "flatten"])
def test_rounding_is_seen_across_operations_that_only_move_values(mover: str) -> None:
    """onnxruntime moves it across them, and would quantize the layer on the other side."""
    before = chain("conv2d", "relu", mover, "linear", "relu", "linear")
    assert complete_formats(before, {"a": Format(8), "b": None, "c": Format(8)})["b"] == Format(8)
    behind = chain("conv2d", "relu", "conv2d", "relu", mover, "linear")
    assert complete_formats(behind, {"a": Format(8), "b": None, "c": Format(8)})["b"] == Format(8)
    assert complete_formats(behind, {"a": None, "b": None, "c": Format(8)})["b"] is None


@pytest.mark.parametrize("formats", [{"a": None, "b": None, "c": None}, {"a": Format(8), "b": None, "c": None}])
def test_other_layers_keep_what_the_plan_gives_them(formats: dict[str, Format | None]) -> None:
    assert complete_formats(chain("conv2d", "relu", "conv2d", "relu", "conv2d"), formats) == formats


def test_completing_twice_changes_nothing_more() -> None:
    graph = prepared("residual").inventory.graph
    layers = [one.layer for one in graph.layers if one.layer is not None]
    for left_out in itertools.combinations(layers, 2):
        once = complete_formats(graph, {name: None if name in left_out else Format(8) for name in layers})
        assert complete_formats(graph, once) == once
        assert all(once[name] == Format(8) for name in layers if name not in left_out)


@pytest.mark.parametrize("symmetric", [False, True])
def test_calibration_puts_a_quantizer_behind_every_site(symmetric: bool) -> None:
    net = prepared("residual")
    module = graph_module(export_program(net.model, net.example))
    sites = quantized_tensors(net.inventory.graph, {layer.name: Format(8) for layer in net.inventory.layers})
    batch = inputs("residual", 16)
    numerics = Numerics(symmetric_activations=symmetric)
    quantizers = calibrate_activations(module, sites, [batch], numerics)
    assert tuple(quantizers) == sites
    rectified = [name for name in sites if name.startswith("relu")]
    assert rectified
    assert all(quantizers[name].zero_point == 0 for name in rectified)
    exact = net.model(*batch)
    error = (module(*batch) - exact).norm() / exact.norm()
    assert 0 < float(error) < 0.05


def test_the_first_of_two_inputs_is_calibrated_by_itself() -> None:
    """Though the second one's place is behind what is observed."""
    net = prepared("two_inputs")
    plan = Plan({"conv1": LayerPlan(format=Format(8))})
    given = inputs("two_inputs", 8)
    for numerics in (Numerics(), Numerics(rounded_outputs=False)):
        found = apply(net, plan, [given], numerics).model(*given)
        assert isinstance(found, torch.Tensor)
        assert torch.allclose(found, net.model(*given), atol=0.1)


def test_what_only_moves_values_keeps_their_grid() -> None:
    """A grid of its own behind a pool or a flatten would cost a conversion and gain nothing."""
    net = prepared("plain")
    module = graph_module(export_program(net.model, net.example))
    sites = quantized_tensors(net.inventory.graph, {layer.name: Format(8) for layer in net.inventory.layers})
    quantizers = calibrate_activations(module, sites, [inputs("plain", 16)], Numerics())
    grids = {name: (one.scale, one.zero_point) for name, one in quantizers.items()}
    assert grids["max_pool2d"] == grids["relu_1"]
    assert grids["flatten"] == grids["relu_2"]
    assert grids["relu_2"] != grids["relu_1"]


def test_dequantized_weights_are_levels_times_steps() -> None:
    stored = QuantizedWeight(torch.tensor([[1, -2], [3, 0]], dtype=torch.int8), torch.tensor([0.5, 2.0]))
    assert stored.dequantized().tolist() == [[0.5, -1.0], [6.0, 0.0]]
