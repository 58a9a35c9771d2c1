"""Integers in the file beyond calibrated layers: products rounded at run time, tables, and what the runtime makes of
them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from autocomp.compress.apply import Compressed, apply
from autocomp.compress.prepare import prepare
from autocomp.compress.quantize import DynamicQuantizer
from autocomp.export.integers import dynamic_product, integer_lookup, replace_node, sums_before_norms
from autocomp.export.to_onnx import export_onnx
from autocomp.hardware.runtimes.onnxruntime import load, optimized_ops
from autocomp.plan import Format, LayerPlan, Plan
from tests.networks import exported, numerics_here, prepared, ready, run_file, run_module

SLOWER = [pytest.param(4, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.exhaustive)]


def file_of(nodes: list[onnx.NodeProto], initializers: list[onnx.TensorProto], width: int) -> bytes:
    """A file from float ``x`` of (rows, width) to ``y``."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return bytes(model.SerializeToString())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**20), st.floats(-4, 4), st.floats(1e-3, 1e3))
def test_the_dynamic_quantizer_is_the_operator(seed: int, shift: float, size: float) -> None:
    values = (torch.randn(5, 7, generator=torch.Generator().manual_seed(seed)) + shift) * size
    np.testing.assert_array_equal(DynamicQuantizer()(values).numpy(), as_operator(values))


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
def test_a_tensor_of_one_value_is_rounded_as_well(value: float) -> None:
    values = torch.full((2, 7), value)
    np.testing.assert_array_equal(DynamicQuantizer()(values).numpy(), as_operator(values))


def as_operator(values: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    (result,) = load(file_of(nodes, [], values.shape[1]), threads=1).run(values.numpy())
    return np.asarray(result)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_a_product_is_an_integer_product(op: str, biased: bool) -> None:
    """Levels within seven bits, which no kernel's sums saturate on."""
    rng = np.random.default_rng(0)
    levels, steps = rng.integers(-64, 65, (6, 4)).astype(np.int8), rng.uniform(0.01, 0.02, 4).astype(np.float32)
    bias, x = rng.standard_normal(4).astype(np.float32), rng.standard_normal((5, 6)).astype(np.float32)
    biased = biased and op == "Gemm"
    node = helper.make_node(op, ["x", "w", "b"] if biased else ["x", "w"], ["y"])
    rounded: dict[str, str] = {}
    nodes = dynamic_product(node, "w", "s", rounded)
    constants = [numpy_helper.from_array(levels, "w"), numpy_helper.from_array(steps, "s")]
    file = file_of(nodes, [*constants, numpy_helper.from_array(bias, "b")][: 2 + biased], 6)
    expected = DynamicQuantizer()(torch.from_numpy(x)).numpy() @ (levels * steps) + (bias if biased else 0)
    np.testing.assert_allclose(load(file, threads=1).run(x)[0], expected, rtol=1e-5, atol=1e-5)
    assert [one.op for one in optimized_ops(file)] == ["DynamicQuantizeMatMul"]
    assert list(rounded) == ["x"]
    assert "DynamicQuantizeLinear" not in {one.op_type for one in dynamic_product(node, "w", "s", rounded)}


def test_a_table_of_integers_gives_the_rows_that_are_read() -> None:
    rng = np.random.default_rng(0)
    levels, steps = rng.integers(-128, 128, (9, 4)).astype(np.int8), rng.uniform(0.01, 0.02, (9, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64),
        *integer_lookup(helper.make_node("Gather", ["w", "i"], ["y"], axis=0), "w", "s"),
    ]
    file = file_of(nodes, [numpy_helper.from_array(levels, "w"), numpy_helper.from_array(steps, "s")], 3)
    (rows,) = load(file, threads=1).run(np.array([[0, 8, 3]], np.float32))
    np.testing.assert_array_equal(rows[0], levels[[0, 8, 3]] * steps[[0, 8, 3]])


def test_a_node_is_replaced_where_it_stands() -> None:
    names = ["a", "b", "c"]
    graph = helper.make_graph([helper.make_node("Relu", [name], [f"{name}2"]) for name in names], "g", [], [])
    new = [helper.make_node("Abs", ["b"], ["t"]), helper.make_node("Neg", ["t"], ["b2"])]
    replace_node(graph, graph.node[1], new)
    assert [node.op_type for node in graph.node] == ["Relu", "Abs", "Neg", "Relu"]


def test_only_additions_of_two_tensors_in_front_of_a_norm_are_sums() -> None:
    node = helper.make_node
    graph = helper.make_graph(
        [
            node("Add", ["x", "y"], ["a"]),
            node("LayerNormalization", ["a", "w"], ["n"]),
            node("Add", ["x", "w"], ["c"]),
            node("LayerNormalization", ["c", "w"], ["m"]),
            node("Add", ["n", "m"], ["r"]),
        ],
        "g",
        [],
        [],
        [numpy_helper.from_array(np.ones(3, np.float32), "w")],
    )
    sums_before_norms(graph)
    assert [one.op_type for one in graph.node if one.op_type in {"Add", "Sum"}] == ["Sum", "Add", "Add"]


def built(model: nn.Module, example: tuple[torch.Tensor, ...], **formats: Format) -> Compressed:
    plan = Plan({name: LayerPlan(format=chosen) for name, chosen in formats.items()})
    return apply(prepare(ready(model, seed=0), example), plan, [example], numerics_here())


class Sequence(nn.Module):
    """Two linears that read one tensor, one with a bias, and a third behind a GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 16), nn.Linear(12, 16, bias=False)
        self.third = nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.third(nn.functional.gelu(self.first(x)) + self.second(x))
        return result


@pytest.mark.parametrize("tokens", [(), (5,)], ids=["vectors", "sequences"])
@pytest.mark.parametrize("bits", [8, *SLOWER])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_the_compiled_graph_computes_in_integers(tokens: tuple[int, ...], bits: int, packed: bool) -> None:
    """Whatever torch.onnx writes a linear as, onnxruntime is left with its own fused kernels, and no weight is unpacked
    at run time."""
    chosen = Format(bits, dynamic=True)
    example = (torch.randn(1, *tokens, 12, generator=torch.Generator().manual_seed(0)),)
    result = built(Sequence(), example, first=chosen, second=chosen, third=chosen)
    file = export_onnx(result, packed)
    ops = Counter(node.op for node in optimized_ops(file))
    assert ops["DynamicQuantizeMatMul"] == 1
    assert ops["MatMulIntegerToFloat"] == 2
    assert ops["DynamicQuantizeLinear"] == 1
    assert not {"DequantizeLinear", "MatMul", "Gemm", "FusedGemm", "Cast", "MatMulInteger"} & {*ops}
    batch = (torch.randn(6, *tokens, 12, generator=torch.Generator().manual_seed(1)),)
    expected = run_module(result.model, batch)
    step = (expected.max() - expected.min()) / 255
    assert (run_file(file, batch) - expected).abs().max() <= step


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("bits", [8, *SLOWER])
def test_weights_alone_are_floats_once_the_file_is_loaded(bits: int, packed: bool) -> None:
    chosen = Format(bits, 32)
    example = (torch.randn(1, 5, 12, generator=torch.Generator().manual_seed(0)),)
    file = export_onnx(built(Sequence(), example, first=chosen, second=chosen, third=chosen), packed)
    ops = Counter(node.op for node in optimized_ops(file))
    assert ops["MatMul"] + ops["FusedMatMul"] + ops["Gemm"] == 3
    assert not {"DequantizeLinear", "Cast", "Mul", "DynamicQuantizeLinear"} & {*ops}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("bits", [8, *SLOWER])
def test_a_table_stays_integers_in_the_compiled_graph(bits: int, packed: bool) -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.head = nn.Embedding(50, 8), nn.Linear(8, 3)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.head(self.token(ids))
            return result

    ids = torch.arange(12).view(2, 6)
    result = built(Table(), (ids[:1],), token=Format(bits, 32))
    file = export_onnx(result, packed)
    torch.testing.assert_close(run_file(file, (ids,)), run_module(result.model, (ids,)), rtol=1e-5, atol=1e-6)
    ops = Counter(node.op for node in optimized_ops(file))
    assert ops["Gather"] == 2
    stored = onnx.load_from_string(file)
    kinds = {8: TensorProto.INT8, 4: TensorProto.INT4, 2: TensorProto.INT2}
    (table,) = [one for one in stored.graph.initializer if tuple(one.dims) == (50, 8)]
    assert table.data_type == kinds[bits if packed else 8]


@pytest.mark.slow
def test_an_encoder_rounded_at_run_time_holds_no_float_product() -> None:
    plan = Plan(
        {
            layer.name: LayerPlan(format=Format(8, dynamic=True))
            for layer in prepared("encoder").inventory.layers
            if layer.kind == "linear"
        }
    )
    ops = Counter(node.op for node in optimized_ops(exported("encoder", plan, True)))
    linears = sum(layer.kind == "linear" for layer in prepared("encoder").inventory.layers)
    assert ops["DynamicQuantizeMatMul"] + ops["MatMulIntegerToFloat"] == linears
    assert ops["DynamicQuantizeLinear"] == 2  # one for the queries, keys and values of a layer
    assert ops["Attention"] == 2
    assert not {"DequantizeLinear", "MatMul", "Gemm", "MatMulInteger"} & {*ops}
