"""Packing: what is written computes the weight, folds away in the runtime, and takes the bytes foretold."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from autocomp.errors import ExportError
from autocomp.export.codes import SIGNED, Code
from autocomp.export.opsets import raise_opset, required_ir_version
from autocomp.export.packing import (
    Encoded,
    chosen_form,
    encode,
    field_bytes,
    footprint,
    function_bytes,
    install,
    required_opset,
)
from autocomp.export.stored import StoredWeight, WeightSpec
from autocomp.export.unpacking import DOMAIN, Reader, Scaling, Use

ALL_CODES = (
    *(Code(bits) for bits in SIGNED),
    Code(2, "ternary"),
    *(Code(bits, "codebook") for bits in (1, 2, 3, 4, 5, 6)),
)
INTEGER_CODES = tuple(code for code in ALL_CODES if not code.is_float)


def name_of(code: Code) -> str:
    return f"{code.grid}-{code.bits}"


def make_weight(
    shape: tuple[int, ...],
    code: Code,
    density: float | None,
    axis: int = 0,
    seed: int = 0,
    use: Use = "dequantized",
    scaling: Scaling = "channel",
) -> StoredWeight:
    rng = np.random.default_rng(seed)
    kept = None if density is None else rng.random(shape) < density
    use = "floats" if code.is_float else use
    group = 3 if scaling == "group" and not code.is_float else 0
    spec = WeightSpec(
        shape,
        code,
        None if kept is None else int(kept.sum()),
        axis,
        use,
        "channel" if scaling == "group" and not group else scaling,
        group,
    )
    values: npt.NDArray[np.int8] | npt.NDArray[np.float32]
    if code.is_float:
        values = rng.standard_normal(shape).astype(np.float16).astype(np.float32)
    elif code.grid == "codebook":
        half = rng.permutation(np.arange(1, 128))[: code.table_length // 2]
        values = rng.choice(np.concatenate([-half, half]), shape).astype(np.int8)
    elif code.grid == "ternary":
        values = rng.integers(-1, 2, shape).astype(np.int8)
    elif code.bits == 1:
        values = rng.choice(np.array([-1, 1], np.int8), shape)
    else:
        values = rng.integers(-(1 << (code.bits - 1)), 1 << (code.bits - 1), shape).astype(np.int8)
    if kept is not None:
        values[~kept] = 0
    scale = None if spec.scale_shape is None else np.asarray(rng.uniform(0.5, 1.5, spec.scale_shape), np.float32)
    return StoredWeight(spec, values, scale, kept)


def real_weight(weight: StoredWeight) -> npt.NDArray[np.generic]:
    spec = weight.spec
    if spec.use == "levels":
        return weight.values
    if weight.scale is None:
        return weight.values.astype(np.float32)
    if spec.scaling == "tensor":
        return weight.values.astype(np.float32) * weight.scale
    if spec.scaling == "channel":
        return weight.values.astype(np.float32) * np.expand_dims(
            weight.scale, [d for d in range(weight.values.ndim) if d != spec.axis]
        )
    matrix = weight.values.reshape(spec.shape[0], -1).astype(np.float32)
    along = 1 - spec.axis
    steps = np.repeat(weight.scale, spec.group, axis=along).take(range(matrix.shape[along]), axis=along)
    return (matrix * steps).reshape(spec.shape)


def empty_model(text: str = "(float[1] x) => (float[1] y) { y = Relu (x) }", opset: int = 20) -> ModelProto:
    return onnx.parser.parse_model(f'<ir_version: {required_ir_version(opset)}, opset_import: ["": {opset}]> g {text}')


def model_of(weights: list[tuple[str, StoredWeight]], packed: bool) -> ModelProto:
    """A model that gives the weights out."""
    model = empty_model("() => () {}")
    install(model, [encode(name, weight, packed) for name, weight in weights])
    for name, weight in weights:
        model.graph.node.append(helper.make_node("Identity", [name], [name + "_out"]))
        kind = TensorProto.INT8 if weight.spec.use == "levels" else TensorProto.FLOAT
        model.graph.output.append(helper.make_tensor_value_info(name + "_out", kind, weight.values.shape))
    return model


def session(model: ModelProto, optimized: Path | None = None, severity: int = 3) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = severity
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def readers_of(encoded: list[Encoded]) -> set[Reader]:
    return {reader for one in encoded for reader in one.readers if isinstance(reader, Reader)}


@st.composite
def weights(draw: st.DrawFn, code: Code | None = None) -> StoredWeight:
    use: Use = draw(st.sampled_from(get_args(Use)))
    scalings: tuple[Scaling, ...] = get_args(Scaling)
    scaling = draw(st.sampled_from([one for one in scalings if one != "group" or use == "floats"]))
    fewest, most = (2, 2) if scaling == "group" else (1, 4)
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=fewest, max_size=most)))
    return make_weight(
        shape,
        draw(st.sampled_from(ALL_CODES)) if code is None else code,
        draw(st.none() | st.sampled_from((0.0, 0.02, 0.1, 0.3, 0.6, 1.0))),
        draw(st.integers(0, len(shape) - 1)),
        draw(st.integers(0, 2**16)),
        use,
        scaling,
    )


@pytest.mark.parametrize("code", ALL_CODES, ids=name_of)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_unpacking_gives_back_what_was_packed(code: Code, data: st.DataObject) -> None:
    weight = data.draw(weights(code))
    packed = data.draw(st.booleans())
    (out,) = session(model_of([("w", weight)], packed)).run(None, {})
    np.testing.assert_array_equal(out, real_weight(weight))


@pytest.mark.parametrize("code", ALL_CODES, ids=name_of)
@pytest.mark.parametrize("shape", [(64, 32, 3, 3), (67, 129)])
def test_sparse_weights_give_back_what_was_packed(code: Code, shape: tuple[int, ...]) -> None:
    for density in (0.0, 0.003, 0.02, 0.1, 0.3):
        weight = make_weight(shape, code, density, axis=1)
        form = chosen_form(weight.spec, True)
        assert form.gap_bits is not None
        assert not form.gap_bits or density < 0.25  # from there on a bit mask is smaller
        (out,) = session(model_of([("w", weight)], True)).run(None, {})
        np.testing.assert_array_equal(out, real_weight(weight))


@pytest.mark.parametrize("gap_bits", [2, 3, 4, 5, 6, 8])
def test_every_number_of_gap_bits_gives_back_what_was_packed(gap_bits: int) -> None:
    specs = [WeightSpec((256, 512), Code(4), round(131072 / step)) for step in np.geomspace(4, 1000, 200)]
    spec = next(one for one in specs if chosen_form(one, True).gap_bits == gap_bits)
    rng = np.random.default_rng(0)
    values = np.zeros(131072, np.int8)
    values[rng.choice(131072, spec.kept_count, replace=False)] = rng.integers(1, 8, spec.kept_count)
    scale = np.linspace(0.5, 1.5, 256, dtype=np.float32)
    weight = StoredWeight(spec, values.reshape(256, 512), scale, values.reshape(256, 512) != 0)
    (out,) = session(model_of([("w", weight)], True)).run(None, {})
    np.testing.assert_array_equal(out, real_weight(weight))


def test_a_weight_whose_ends_are_kept_or_not_reads() -> None:
    for places in ([0], [8191], [0, 8191], list(range(30)), list(range(8160, 8192))):
        values = np.zeros(8192, np.int8)
        values[places] = -3
        spec = WeightSpec((64, 128), Code(4), len(places), use="levels")
        weight = StoredWeight(spec, values.reshape(64, 128), kept=values.reshape(64, 128) != 0)
        (out,) = session(model_of([("w", weight)], True)).run(None, {})
        np.testing.assert_array_equal(out, weight.values)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(weights(), min_size=1, max_size=4),
    st.booleans(),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=140),
)
def test_the_file_has_the_bytes_foretold(drawn: list[StoredWeight], packed: bool, stem: str) -> None:
    model = empty_model()
    graph_before = model.graph.ByteSize()
    rest = model.ByteSize() - field_bytes(graph_before)
    named = [(f"{stem}{i}", weight) for i, weight in enumerate(drawn)]
    encoded = [encode(name, weight, packed) for name, weight in named]
    costs = [footprint(name, weight.spec, packed) for name, weight in named]
    needed = {reader for cost in costs for reader in cost.readers}
    install(model, encoded)
    assert sum(len(tensor.raw_data) for tensor in model.graph.initializer) == sum(cost.data_bytes for cost in costs)
    assert readers_of(encoded) == needed
    foretold = graph_before + sum(cost.graph_bytes for cost in costs)
    assert len(model.SerializeToString()) == rest + field_bytes(foretold) + function_bytes(needed)


@pytest.mark.parametrize("code", ALL_CODES, ids=name_of)
@pytest.mark.parametrize("density", [None, 0.1, 0.9])
def test_large_weights_have_the_bytes_foretold(code: Code, density: float | None) -> None:
    weight = make_weight((700, 801), code, density)
    for packed in (False, True):
        graph = helper.make_graph([], "", [], [])
        before = graph.ByteSize()
        encoded = encode("layer", weight, packed)
        graph.node.extend(encoded.nodes)
        graph.initializer.extend(encoded.initializers)
        assert graph.ByteSize() - before == footprint("layer", weight.spec, packed).graph_bytes


@pytest.mark.parametrize("density", [0.3, 0.05])
def test_a_million_weights_beside_few_read_by_a_table_whose_bytes_are_foretold(density: float) -> None:
    named = [("w", make_weight((1024, 1024), Code(3), density)), ("v", make_weight((30, 40), Code(3), density))]
    model = model_of(named, True)
    for out, (_, weight) in zip(session(model).run(None, {}), named, strict=True):
        np.testing.assert_array_equal(out, real_weight(weight))
    readers = readers_of([encode(name, weight, True) for name, weight in named])
    domain = field_bytes(helper.make_opsetid(DOMAIN, 1).ByteSize())
    written = domain + sum(1 + field_bytes(one.ByteSize()) for one in model.functions)
    assert written == function_bytes(readers, 1 << 20) > function_bytes(readers, 1200)


def test_foretelling_allocates_no_weights() -> None:
    spec = WeightSpec((1 << 20, 1 << 20), Code(4))
    assert footprint("w", spec, True).data_bytes == (1 << 39) + (1 << 22)  # half a terabyte


@given(st.lists(st.integers(1, 64), min_size=1, max_size=4), st.sampled_from(ALL_CODES), st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_the_smaller_form_is_chosen(dims: list[int], code: Code, density: float) -> None:
    shape = tuple(dims)
    use: Use = "floats" if code.is_float else "dequantized"
    kept = WeightSpec(shape, code, round(density * math.prod(shape)), use=use)
    whole = WeightSpec(shape, code, use=use)
    name = "n" * 24
    masked, dense = footprint(name, kept, True), footprint(name, whole, True)
    if code.has_zero:
        assert masked.graph_bytes <= dense.graph_bytes
        assert (masked.form.gap_bits is not None) == (masked.graph_bytes < dense.graph_bytes)
    assert footprint(name, kept, False) == footprint(name, whole, False)


def test_narrower_and_sparser_is_smaller() -> None:
    shape = (64, 64, 3, 3)
    count = math.prod(shape)

    def graph_bytes(code: Code, kept: int | None) -> int:
        return footprint(
            "w", WeightSpec(shape, code, kept, use="floats" if code.is_float else "levels"), True
        ).graph_bytes

    dense = [graph_bytes(Code(bits), None) for bits in SIGNED]
    assert dense == sorted(dense, reverse=True)
    assert graph_bytes(Code(1), None) < graph_bytes(Code(2, "ternary"), None) < graph_bytes(Code(2), None)
    for code in ALL_CODES:
        by_kept = [graph_bytes(code, kept) for kept in range(0, count + 1, count // 16)]
        assert by_kept[:-1] == sorted(by_kept[:-1])
        assert by_kept[-1] == graph_bytes(code, None)


def test_positions_of_few_weights_cost_little_more_than_they_must() -> None:
    """Against the entropy of where they are, from 1 in 4 to 1 in 500."""
    count = 1 << 20
    for kept in (count // 4, count // 10, count // 20, count // 50, count // 100, count // 500):
        share = kept / count
        entropy_bits = -count * (share * math.log2(share) + (1 - share) * math.log2(1 - share))
        spec = WeightSpec((1 << 10, 1 << 10), Code(1), kept, use="levels")
        position_bits = 8 * footprint("w", spec, True).data_bytes - kept
        assert position_bits < 1.24 * entropy_bits


def quantized_chain(code: Code, density: float | None, packed: bool) -> ModelProto:
    """Three convolutions and a linear: uint8 activations, per-channel weights, int32 biases."""
    rng = np.random.default_rng(1)
    channels = 16
    text = "(float[1,16,8,8] x) => (float[1,10] y) { q = QuantizeLinear (x, sx, zx)\n"
    encoded = []
    arrays: dict[str, npt.NDArray[np.generic]] = {"sx": np.array(0.05, np.float32), "zx": np.array(128, np.uint8)}
    here = "q"
    for i in range(4):
        shape = (10, channels * 64) if i == 3 else (channels, channels, 3, 3)
        weight = make_weight(shape, code, density, seed=i)
        if code == Code(2):  # whose lowest level has no opposite, so that outputs would be all negative
            weight = replace(weight, values=np.maximum(weight.values, -1))
        values = weight.values
        unit = values.std() * math.sqrt(math.prod(shape[1:]))  # outputs about as large as inputs
        scale = (rng.uniform(0.5, 1.5, shape[0]) / unit).astype(np.float32)
        encoded.append(encode(f"w{i}", replace(weight, scale=scale), packed))
        arrays[f"b{i}_q"] = rng.integers(-40, 40, shape[0]).astype(np.int32)
        arrays[f"b{i}_s"] = np.float32(0.05) * scale
        text += f"b{i} = DequantizeLinear <axis = 0> (b{i}_q, b{i}_s)\n"
        if i == 3:
            text += f"f = Flatten <axis = 1> ({here})\n"
            here = "f"
        text += f"d{i} = DequantizeLinear ({here}, sx, zx)\n"
        operator = "Gemm <transB = 1>" if i == 3 else "Conv <pads = [1, 1, 1, 1]>"
        text += f"c{i} = {operator} (d{i}, w{i}, b{i})\nq{i} = QuantizeLinear (c{i}, sx, zx)\n"
        here = f"q{i}"
    model = empty_model(text + f"y = DequantizeLinear ({here}, sx, zx) }}")
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    install(model, encoded)
    return model


def outcome(model: ModelProto, folder: Path) -> tuple[npt.NDArray[np.float32], Counter[str]]:
    """Outputs on a fixed input, and the operators of the graph that onnxruntime really runs."""
    loaded = session(model, folder / "optimized.onnx")
    entry = loaded.get_inputs()[0]
    inputs = np.random.default_rng(2).standard_normal(entry.shape).astype(np.float32)
    (outputs,) = loaded.run(None, {entry.name: inputs})
    optimized = onnx.load(folder / "optimized.onnx")
    assert not optimized.functions
    return outputs, Counter(node.op_type for node in optimized.graph.node)


@pytest.mark.parametrize("code", INTEGER_CODES, ids=name_of)
@pytest.mark.parametrize("density", [None, 0.1, 0.4])
def test_packed_layers_run_as_bare_int8_kernels(code: Code, density: float | None, tmp_path: Path) -> None:
    expected, plain_operators = outcome(quantized_chain(code, density, packed=False), tmp_path)
    packed = quantized_chain(code, density, packed=True)
    got, operators = outcome(packed, tmp_path)
    assert operators == plain_operators
    assert operators["QLinearConv"] == 3
    assert operators["QGemm"] == 1
    assert operators["QuantizeLinear"] == operators["DequantizeLinear"] == 1
    assert set(operators) <= {"QLinearConv", "QGemm", "QuantizeLinear", "DequantizeLinear", "Flatten", "Transpose"}
    assert len(np.unique(expected)) > 4
    np.testing.assert_array_equal(got, expected)
    assert {node.domain for node in packed.graph.node} == {"", DOMAIN}


@pytest.mark.parametrize("code", INTEGER_CODES, ids=name_of)
def test_a_matmul_with_channels_last_is_fused(code: Code, tmp_path: Path) -> None:
    text = """(float[2,48] x) => (float[2,24] y) {
        q = QuantizeLinear (x, s, z)
        d = DequantizeLinear (q, s, z)
        c = MatMul (d, w)
        p = QuantizeLinear (c, s, z)
        y = DequantizeLinear (p, s, z)
    }"""
    results = []
    for packed in (False, True):
        model = empty_model(text)
        model.graph.initializer.extend(
            [
                numpy_helper.from_array(np.asarray(np.float32(1)), "s"),
                numpy_helper.from_array(np.asarray(np.uint8(9)), "z"),
            ]
        )
        install(model, [encode("w", make_weight((48, 24), code, 0.2, axis=1), packed)])
        results.append(outcome(model, tmp_path))
    assert results[0][1] == results[1][1] == {"QuantizeLinear": 1, "QLinearMatMul": 1, "DequantizeLinear": 1}
    np.testing.assert_array_equal(results[0][0], results[1][0])


@pytest.mark.parametrize("code", [Code(32), Code(16)], ids=name_of)
def test_float_weights_behind_a_mask_become_a_plain_initializer(code: Code, tmp_path: Path) -> None:
    text = "(float[1,16,8,8] x) => (float[1,16,8,8] y) { c = Conv <pads = [1, 1, 1, 1]> (x, w)\n y = Relu (c) }"
    results = []
    for packed in (False, True):
        model = empty_model(text)
        install(model, [encode("w", make_weight((16, 16, 3, 3), code, 0.2), packed)])
        results.append(outcome(model, tmp_path))
    assert results[0][1] == results[1][1]
    assert "Relu" not in results[1][1]  # fused into the convolution
    np.testing.assert_array_equal(results[0][0], results[1][0])


def test_packed_files_are_valid_and_load_without_a_warning(capfd: pytest.CaptureFixture[str]) -> None:
    session(empty_model(), severity=2)
    capfd.readouterr()  # what the runtime says of the machine, it says with the first file
    for code in INTEGER_CODES:
        for density in (None, 0.1):
            model = quantized_chain(code, density, packed=True)
            onnx.checker.check_model(model)
            session(model, severity=2)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("code", ALL_CODES, ids=name_of)
def test_the_lowest_opset_is_enough_and_one_less_is_not(code: Code) -> None:
    weight = make_weight((64, 64), code, 0.1)
    model = model_of([("w", weight)], packed=True)
    asked = required_opset(weight.spec, True)
    assert model.opset_import[0].version == max(20, asked)
    assert model.ir_version == required_ir_version(max(20, asked))
    for entry in [*model.opset_import, *(entry for function in model.functions for entry in function.opset_import)]:
        if entry.domain == "":
            entry.version = asked
    session(model)
    for entry in [*model.opset_import, *(entry for function in model.functions for entry in function.opset_import)]:
        if entry.domain == "":
            entry.version = asked - 1
    with pytest.raises(
        Exception, match=r"INVALID_GRAPH|invalid model|not a registered function|No Op registered|type inference failed"
    ):
        session(model)


def test_raising_the_opset_changes_no_output() -> None:
    text = """(float[2,4,9,9] x) => (float[2,3] y)
        <float[5,4,3,3] w, float[5] b, float[3,5] v, float s = {0.03}, uint8 z = {120},
         int64[2] r = {2, -1}, int64[2] ax = {2, 3}> {
        q = QuantizeLinear (x, s, z)
        d = DequantizeLinear (q, s, z)
        c = Conv <pads = [1, 1, 1, 1]> (d, w, b)
        a = Relu (c)
        m = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1], ceil_mode = 1> (a)
        p = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (m)
        g = GlobalAveragePool (p)
        f = Flatten <axis = 1> (g)
        k = ReduceMean <keepdims = 0> (p, ax)
        h = Reshape (k, r)
        e = Add (f, h)
        t = Transpose <perm = [1, 0]> (v)
        u = MatMul (e, t)
        l = Gemm <transB = 1> (e, v)
        y = Add (u, l)
    }"""
    rng = np.random.default_rng(3)
    outputs = []
    model = empty_model(text)
    for name, shape in (("w", (5, 4, 3, 3)), ("b", (5,)), ("v", (3, 5))):
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    inputs = rng.standard_normal((2, 4, 9, 9)).astype(np.float32)
    for opset in (20, 21, 25):
        raise_opset(model, opset)
        assert model.opset_import[0].version == opset
        onnx.checker.check_model(model, full_check=True)
        outputs.append(session(model).run(None, {"x": inputs})[0])
    np.testing.assert_array_equal(outputs[0], outputs[1])
    np.testing.assert_array_equal(outputs[0], outputs[2])


def test_an_opset_that_cannot_be_raised_is_refused() -> None:
    with pytest.raises(ExportError, match="from 20 on; got 17"):
        raise_opset(empty_model(opset=17), 25)
    groups = (
        "(float[1,4,2,2] x, float[2] s) => (float[1,4,2,2] y) { y = GroupNormalization <num_groups = 2> (x, s, s) }"
    )
    with pytest.raises(ExportError, match="from 21 on; got 20"):
        raise_opset(empty_model(groups), 21)


def test_functions_come_once_and_follow_the_models_opset() -> None:
    model = empty_model()
    for bits, opset in ((8, 20), (32, 20), (4, 21), (2, 25), (4, 25)):
        named = [(f"{bits}{opset}{i}", make_weight((32, 32), Code(bits), 0.4, seed=i)) for i in range(3)]
        install(model, [encode(name, weight, True) for name, weight in named])
        versions = {e.version for function in model.functions for e in function.opset_import if not e.domain}
        assert versions == {opset}
        onnx.checker.check_model(model)
    names = [function.name for function in model.functions]
    assert len(names) == len(set(names)) == 2 + 4  # B and M, and one for each number of bits
    assert [entry.domain for entry in model.opset_import] == ["", DOMAIN]
    session(model)


def test_raising_the_opset_raises_the_functions_with_it() -> None:
    model = model_of([("w", make_weight((32, 32), Code(4), 0.1))], packed=True)
    raise_opset(model, 25)
    assert {e.version for function in model.functions for e in function.opset_import if not e.domain} == {25}
    onnx.checker.check_model(model)


def test_plain_weights_leave_the_model_as_it_was() -> None:
    model = empty_model()
    install(model, [encode(name_of(code), make_weight((8, 8), code, 0.1), False) for code in ALL_CODES])
    assert (model.ir_version, len(model.functions), len(model.opset_import)) == (9, 0, 1)
    assert model.opset_import[0].version == 20


def test_a_name_that_is_taken_is_refused() -> None:
    model = empty_model()
    with pytest.raises(ExportError, match="'y' is taken"):
        install(model, [encode("y", make_weight((8, 8), Code(4), None), True)])
    one = encode("w", make_weight((8, 8), Code(4), None), True)
    with pytest.raises(ExportError, match=r"'w\.v' is taken"):
        install(model, [one, one])


def test_the_same_weight_gives_the_same_bytes() -> None:
    first, second = (model_of([("w", make_weight((32, 32), Code(4), 0.2))], True) for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": np.full((2, 3), 8, np.int8)}, r"lie in \[-8, 7\]; got \[8, 8\]"),
        ({"values": np.zeros((2, 3), np.float32)}, "must be int8; got float32"),
        ({"values": np.zeros((3, 2), np.int8)}, r"the shape \(2, 3\); got \(3, 2\)"),
        ({"scale": None}, "must be .'float32', .2,.*got None"),
        ({"scale": np.ones(3, np.float32)}, "must be .'float32', .2,"),
        ({"scale": np.ones(2)}, "got .'float64'"),
        ({"kept": np.ones((3, 2), np.bool_)}, "kept must be bool"),
        ({"kept": np.ones((2, 3), np.bool_)}, "must keep None weights"),
        ({"spec": WeightSpec((2, 3), Code(1))}, "of one bit are -1 and 1"),
        (
            {
                "spec": WeightSpec((2, 3), Code(4), 0),
                "values": np.ones((2, 3), np.int8),
                "kept": np.zeros((2, 3), np.bool_),
            },
            "pruned weight must be 0",
        ),
        (
            {
                "spec": WeightSpec((2, 3), Code(1, "codebook")),
                "values": np.array([[1, 2, 3], [1, 2, 3]], np.int8),
            },
            "a codebook of 1 bits holds 2 levels; got 3",
        ),
    ],
)
def test_a_weight_that_does_not_hold_together_is_refused(change: dict[str, object], message: str) -> None:
    right: dict[str, object] = {
        "spec": WeightSpec((2, 3), Code(4)),
        "values": np.zeros((2, 3), np.int8),
        "scale": np.ones(2, np.float32),
    }
    with pytest.raises(ExportError, match=message) as caught:
        StoredWeight(**(right | change))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Code(7), "one of 32, 16, 8, 6, 5, 4, 3, 2, 1 bits; got 7"),
        (lambda: Code(8, "codebook"), "one of 1, 2, 3, 4, 5, 6 bits; got 8"),
        (lambda: WeightSpec((2, 3), Code(4), 7), r"lie in \[0, 6\]; got 7"),
        (lambda: WeightSpec((2, 3), Code(4), axis=2), r"lie in \[0, 1\]; got 2"),
        (lambda: WeightSpec((0, 3), Code(4)), "none of them 0"),
        (lambda: WeightSpec((2, 3), Code(4), scaling="group", group=2), "weights used as floats"),
    ],
)
def test_what_cannot_be_stored_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        make()
