"""onnxruntime itself: loading, running, and joining its profile with the graph that it compiled."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from autocomp.errors import MeasurementError, RequestError
from autocomp.hardware.graph_writer import GraphWriter
from autocomp.hardware.runtimes.onnxruntime import load, optimized_ops, profile
from autocomp.hardware.runtimes.profiled import NodeEvents, NodeTime, join, lower_half_mean, name_nodes
from autocomp.hardware.runtimes.runtime import example_arrays

Array = npt.NDArray[Any]


def build(
    nodes: Iterable[onnx.NodeProto],
    inputs: dict[str, list[int | str]],
    constants: Mapping[str, Array],
    functions: Iterable[onnx.FunctionProto] = (),
    constant_tensors: Iterable[onnx.TensorProto] = (),
) -> bytes:
    """A file of ``nodes`` with the float output ``y``."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()] + list(constant_tensors),
    )
    functions = list(functions)
    opsets = [helper.make_opsetid("", 21)] + [helper.make_opsetid(one.domain, 1) for one in functions]
    written: bytes = helper.make_model(
        graph, opset_imports=opsets, functions=functions, ir_version=10
    ).SerializeToString()
    return written


def weights(*shape: int, seed: int = 0) -> Array:
    return (np.random.default_rng(seed).standard_normal(shape) * 0.1).astype(np.float32)


def linear_file(batch: int | str = "batch") -> bytes:
    """y = x @ w for x of (batch, 6) and w of (6, 4)."""
    return build([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": [batch, 6]}, {"w": weights(6, 4)})


def float_file(channels: int = 20) -> bytes:
    """A residual block on 3×12×12 images between a stem and a linear; nodes unnamed, as many exporters leave them."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w0", "b0"], ["c0"], pads=[1, 1, 1, 1]),
        node("Relu", ["c0"], ["r0"]),
        node("Conv", ["r0", "w1"], ["c1"], pads=[1, 1, 1, 1]),
        node("Add", ["c1", "r0"], ["a1"]),
        node("Relu", ["a1"], ["r1"]),
        node("Conv", ["r1", "w2"], ["c2"], pads=[1, 1, 1, 1], strides=[2, 2], group=channels),
        node("GlobalAveragePool", ["c2"], ["g"]),
        node("Flatten", ["g"], ["f"]),
        node("Gemm", ["f", "w3"], ["y"], transB=1),
    ]
    constants = {
        "w0": weights(channels, 3, 3, 3),
        "b0": weights(channels),
        "w1": weights(channels, channels, 3, 3),
        "w2": weights(channels, 1, 3, 3),
        "w3": weights(7, channels),
    }
    return build(nodes, {"x": ["batch", 3, 12, 12]}, constants)


def quantized_file(channels: int = 20, islands: bool = False) -> bytes:
    """Two int8 convolutions and an addition in QuantizeLinear/DequantizeLinear form.

    ``islands``: the second convolution's input stays float, so that its weight is unpacked in every run.
    """
    node = helper.make_node
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, Array] = {"s": np.array(0.05, np.float32), "z": np.array(128, np.uint8)}

    def through(name: str) -> str:
        nodes.append(node("QuantizeLinear", [name, "s", "z"], [f"{name}_q"]))
        nodes.append(node("DequantizeLinear", [f"{name}_q", "s", "z"], [f"{name}_d"]))
        return f"{name}_d"

    def weight(name: str, fan_in: int) -> str:
        constants[f"{name}_q"] = np.clip(weights(channels, fan_in, 3, 3) * 300, -127, 127).astype(np.int8)
        constants[f"{name}_s"] = np.full(channels, 0.003, np.float32)
        constants[f"{name}_z"] = np.zeros(channels, np.int8)
        nodes.append(node("DequantizeLinear", [f"{name}_q", f"{name}_s", f"{name}_z"], [name], axis=0))
        return name

    nodes.append(node("Conv", [through("x"), weight("w0", 3)], ["c0"], pads=[1, 1, 1, 1]))
    first = through("c0")
    nodes.append(node("Conv", [first, weight("w1", channels)], ["c1"], pads=[1, 1, 1, 1]))
    if islands:
        nodes.append(node("Add", ["c1", first], ["y"]))
    else:
        nodes.append(node("Add", [through("c1"), first], ["a"]))
        nodes.append(node("Identity", [through("a")], ["y"]))
    return build(nodes, {"x": [1, 3, 12, 12]}, constants)


def times(model: bytes, runs: int = 4, threads: int = 1) -> tuple[NodeTime, ...]:
    return profile(model, example_arrays(load(model, threads)), threads, runs)


# --- load and run -----------------------------------------------------------------------------------------------------


def test_a_loaded_file_computes_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "linear.onnx"
    path.write_bytes(linear_file())
    x = weights(5, 6, seed=1)
    for model in (load(path, threads=1), load(linear_file(), threads=2)):
        assert model.input_names == ("x",)
        assert model.input_shapes == ((None, 6),)
        assert model.input_dtypes == ("float32",)
        (y,) = model.run(x)
        np.testing.assert_allclose(y, x @ weights(6, 4), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((np.zeros((1, 5), np.float32),), "run the file"),
        ((np.zeros((1, 6), np.float64),), "tensor\\(double\\)"),
        ((np.zeros((1, 6, 1), np.float32),), "rank"),
        ((), "takes 1 inputs \\(x\\); got 0"),
        ((np.zeros((1, 6), np.float32),) * 2, "takes 1 inputs \\(x\\); got 2"),
    ],
)
def test_refused_inputs_are_one_line(given: tuple[Array, ...], words: str) -> None:
    model = load(linear_file(), threads=1)
    with pytest.raises(MeasurementError, match=words) as caught:
        model.run(*given)
    assert "\n" not in str(caught.value)


def test_refused_files_are_one_line(tmp_path: Path) -> None:
    unknown = build([helper.make_node("Relv", ["x"], ["y"])], {"x": [1]}, {})
    for broken in (b"", b"not a model", unknown, tmp_path / "missing.onnx"):
        for attempt in (lambda m: load(m, 1), optimized_ops, lambda m: profile(m, (), 1)):
            with pytest.raises(MeasurementError, match="must be able to load the file") as caught:
                attempt(broken)
            assert "\n" not in str(caught.value)
    with pytest.raises(RequestError, match="threads must be at least 1; got 0"):
        load(linear_file(), threads=0)
    with pytest.raises(RequestError, match="at least 1 run; got 0"):
        profile(linear_file(), (), 1, runs=0)


def test_heavy_libraries_load_on_use() -> None:
    modules = "timing, autocomp.hardware.fingerprint, autocomp.hardware.runtimes.onnxruntime"
    code = f"import sys, autocomp.hardware.{modules}; print(*{{'onnxruntime', 'onnx', 'torch'}} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == ""


# --- profile ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [float_file(), quantized_file(), quantized_file(islands=True)])
def test_every_node_of_the_compiled_graph_is_timed_once(model: bytes) -> None:
    found = times(model)
    assert [(one.op, one.domain) for one in found] == [(one.op, one.domain) for one in optimized_ops(model)]
    assert len({one.name for one in found}) == len(found)
    assert all(one.runs == 4 and one.time_us >= 0.0 for one in found)
    assert sum(one.time_us for one in found) > 0.0


@pytest.mark.parametrize("channels", [8, 20, 33])
@pytest.mark.parametrize("quantized", [False, True])
def test_convolutions_read_in_nchw_whatever_the_kernels_layout(channels: int, quantized: bool) -> None:
    found = times(quantized_file(channels) if quantized else float_file(channels))
    convs = [one for one in found if "Conv" in one.op]
    assert len(convs) == (2 if quantized else 3)
    for conv in convs:
        assert conv.weight_shape is not None
        assert conv.kernel == (3, 3) == conv.weight_shape[2:]
        batch, width, *image = conv.output_shapes[0]
        assert batch == 1
        assert width == conv.weight_shape[0] >= channels  # blocks are padded
        assert conv.input_shapes[0][1] == conv.weight_shape[1] * conv.group
        assert conv.input_shapes[0][2:] == (12, 12)
        assert tuple(image) == tuple(12 // stride for stride in conv.strides)
        assert conv.dtype == ("uint8" if quantized else "float32")
        if conv.layout != "nchwc":
            assert width == channels


def test_fused_neighbours_show_in_the_convolution() -> None:
    """However this processor's kernels fuse, there are two activations, one addition and one depthwise convolution."""
    found = times(float_file())
    assert sum(one.op in ("Add", "Sum") for one in found) + sum(one.fused_add for one in found) == 1
    assert sum(one.op == "Relu" for one in found) + sum(one.activation == "Relu" for one in found) == 2
    assert sorted(one.strides for one in found if "Conv" in one.op) == [(1, 1), (1, 1), (2, 2)]
    assert sum(one.group > 1 for one in found) == 1


def test_weights_of_products_are_in_by_out() -> None:
    (gemm,) = [one for one in times(float_file(20)) if "Gemm" in one.op]
    assert gemm.weight_shape == (20, 7)
    (product,) = times(linear_file())
    assert product.weight_shape == (6, 4)
    assert product.input_shapes == ((1, 6), (6, 4))
    assert product.output_shapes == ((1, 4),)
    two_inputs = build([helper.make_node("MatMul", ["a", "b"], ["y"])], {"a": [2, 3], "b": [3, 4]}, {})
    assert times(two_inputs)[0].weight_shape is None


def test_packed_weights_are_not_lost() -> None:
    """The profiler forgets weights that the kernel packed; the graph's initializers have them."""
    convs = [one for one in times(quantized_file(20)) if one.op == "QLinearConv"]
    assert [one.weight_shape for one in convs] == [(20, 3, 3, 3), (20, 20, 3, 3)]
    assert all((20, 20, 3, 3) in one.input_shapes for one in convs[1:])


def test_the_layout_is_carried_through_elementwise_operators() -> None:
    found = times(quantized_file(20))
    (conv, *_) = [one for one in found if one.op == "QLinearConv"]
    (addition,) = [one for one in found if one.op == "QLinearAdd"]
    assert addition.layout == conv.layout
    assert addition.input_shapes[0] == addition.output_shapes[0] == (1, 20, 12, 12)


def test_a_precision_island_shows_its_unpacking() -> None:
    """A weight that is unpacked in every run is a node of its own, and still the convolution's constant weight."""
    found = times(quantized_file(20, islands=True))
    unpackings = [one for one in found if one.op == "DequantizeLinear" and one.output_shapes[0] == (20, 20, 3, 3)]
    assert len(unpackings) == 1
    assert unpackings[0].dtype == "int8"
    assert any(one.weight_shape is not None and one.dtype == "float32" for one in found if "Conv" in one.op)


def test_a_file_that_unpacks_itself_by_local_functions() -> None:
    """Four-bit weights through a function called twice: folded at load, so only plain int8 products are left."""
    node = helper.make_node
    body = [
        node("Cast", ["packed"], ["q"], to=TensorProto.INT8),
        node("DequantizeLinear", ["q", "scale"], ["w"]),
    ]
    unpack = helper.make_function("local", "Unpack", ["packed", "scale"], ["w"], body, [helper.make_opsetid("", 21)])
    nodes = []
    for index, (source, result) in enumerate((("x", "h"), ("h", "y"))):
        nodes += [
            node("QuantizeLinear", [source, "s", "z"], [f"{source}_q"]),
            node("DequantizeLinear", [f"{source}_q", "s", "z"], [f"{source}_d"]),
            node("Unpack", [f"p{index}", "ws"], [f"w{index}"], domain="local"),
            node("MatMul", [f"{source}_d", f"w{index}"], [f"{result}_m"]),
            node("QuantizeLinear", [f"{result}_m", "s", "z"], [f"{result}_mq"]),
            node("DequantizeLinear", [f"{result}_mq", "s", "z"], [result]),
        ]
    values = np.random.default_rng(0).integers(-7, 8, 64)
    packed = [helper.make_tensor(f"p{index}", TensorProto.INT4, [8, 8], values) for index in range(2)]
    constants: dict[str, Array] = {
        "s": np.array(0.05, np.float32),
        "z": np.array(128, np.uint8),
        "ws": np.array(0.01, np.float32),
    }
    found = times(build(nodes, {"x": [4, 8]}, constants, [unpack], packed))
    assert [one.weight_shape for one in found if one.weight_shape is not None] == [(8, 8), (8, 8)]
    assert "Cast" not in {one.op for one in found}


def test_nodes_of_a_local_function_are_told_apart() -> None:
    """The runtime unrolls the function at each call, and its nodes come without names."""
    body = [helper.make_node("Erf", ["a"], ["e"]), helper.make_node("Sigmoid", ["e"], ["r"])]
    function = helper.make_function("local", "Bend", ["a"], ["r"], body, [helper.make_opsetid("", 21)])
    calls = [helper.make_node("Bend", [a], [r], domain="local") for a, r in (("x", "h"), ("h", "y"))]
    found = times(build(calls, {"x": [2, 3]}, {}, [function]))
    assert [one.op for one in found] == ["Erf", "Sigmoid", "Erf", "Sigmoid"]
    assert len({one.name for one in found}) == 4


def test_a_branch_counts_as_one_node() -> None:
    def branch(op: str) -> onnx.GraphProto:
        result = helper.make_tensor_value_info(op, TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(op, ["x"], [op])], op, [], [result])

    nodes = [
        helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
        helper.make_node("Greater", ["top", "zero"], ["is_positive"]),
        helper.make_node("If", ["is_positive"], ["y"], then_branch=branch("Relu"), else_branch=branch("Neg")),
    ]
    found = times(build(nodes, {"x": [2, 3]}, {"zero": np.array(0.0, np.float32)}))
    assert [one.op for one in found] == ["ReduceMax", "Greater", "If"]


def test_the_profile_takes_the_batch_and_threads_it_is_given() -> None:
    (x,) = example_arrays(load(float_file(), 2), batch=2)
    found = profile(float_file(), (x,), threads=2, runs=2)
    assert all(one.output_shapes[0][0] == 2 for one in found)


def test_weights_in_a_file_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(onnx.load_from_string(float_file()), path, save_as_external_data=True, size_threshold=0, location="w.bin")
    x = example_arrays(load(path, 1))
    apart = profile(path, x, threads=1, runs=2)
    assert [one.weight_shape for one in apart] == [one.weight_shape for one in times(float_file(), runs=2)]


def test_optimized_ops_follow_the_fusions() -> None:
    ops = [one.op for one in optimized_ops(quantized_file(20))]
    assert ops.count("QLinearConv") == 2
    assert ops.count("QLinearAdd") == 1
    assert "Conv" not in ops
    (product,) = optimized_ops(linear_file())
    assert (product.inputs, product.outputs) == (("x", "w"), ("y",))


def test_naming_nodes_is_unique_and_only_where_needed() -> None:
    model = onnx.load_from_string(float_file())
    assert name_nodes(model)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert not name_nodes(model)
    assert [node.name for node in model.graph.node] == names
    model.graph.node[3].name = names[0]
    assert name_nodes(model)
    assert model.graph.node[0].name == names[0]


def test_a_profile_of_other_nodes_is_an_error() -> None:
    graph = onnx.load_from_string(linear_file()).graph
    graph.node[0].name = "product"
    with pytest.raises(MeasurementError, match="'other' \\(2 in all\\)"):
        join(graph, {"other": NodeEvents((1.0,), ())}, {"x": ("float32", (1, 6))})


@given(st.lists(st.floats(0.0, 1e6), min_size=1))
def test_the_lower_half_is_never_above_the_median(found: list[float]) -> None:
    mean = lower_half_mean(found)
    assert min(found) * (1 - 1e-9) <= mean <= float(np.median(found)) * (1 + 1e-9)


def test_a_file_can_be_computed_as_it_is_written() -> None:
    """8-bit products of full range, which some CPUs' fused kernels saturate at."""
    from onnx.reference import ReferenceEvaluator

    writer = GraphWriter(seed=0, narrow_products=False)
    file = writer.finish(writer.linear(writer.input((512,)), 16, integers=True))
    x = np.full((2, 512), 2.5, np.float32)
    (expected,) = ReferenceEvaluator(onnx.load_from_string(file)).run(None, {"x": x})
    (computed,) = load(file, 1, as_written=True).run(x)
    np.testing.assert_allclose(computed, np.asarray(expected), atol=0.03)  # a step, where a value lies between two
