"""Files in earlier opsets: they compute the same, and hold nothing that these opsets do not have."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from autocomp.compress.apply import apply
from autocomp.compress.quantize import Numerics
from autocomp.errors import ExportError
from autocomp.export.older import lower_opset
from autocomp.export.opsets import opset_of
from autocomp.export.to_onnx import export_onnx
from autocomp.hardware.runtimes import onnxruntime
from autocomp.plan import Plan
from tests.networks import NETWORKS, eight_bits, inputs, prepared, thorough

TENSORRT = Numerics(symmetric_activations=True, integer_bias=False, rounded_outputs=False, attention_operator=False)


def as_written(file: bytes, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    (result, *_) = onnxruntime.load(file, 1, as_written=True).run(*[tensor.numpy() for tensor in batch])
    return torch.from_numpy(result)


@cache
def files(network: str) -> tuple[bytes, ...]:
    """The untouched network's file, and one in 8 bits."""
    plans = (Plan(), eight_bits(network))
    return tuple(
        export_onnx(apply(prepared(network), plan, [inputs(network, 4)], TENSORRT), packed=False) for plan in plans
    )


@pytest.mark.parametrize("opset", thorough([13, 17, 20], {13}))
@pytest.mark.parametrize("network", thorough(NETWORKS, {"residual"}))
def test_a_file_computes_the_same_in_an_earlier_opset(network: str, opset: int) -> None:
    batch = inputs(network, 3)
    for file in files(network):
        model = onnx.load_from_string(file)
        lower_opset(model, opset)
        assert opset_of(model) == opset
        assert model.ir_version <= {13: 7, 17: 8, 20: 9}[opset]
        torch.testing.assert_close(
            as_written(model.SerializeToString(), batch), as_written(file, batch), rtol=1e-4, atol=1e-4
        )


def test_a_target_with_an_early_opset_is_given_files_in_it() -> None:
    compressed = apply(prepared("vit"), Plan(), [inputs("vit", 4)], replace(TENSORRT, opset=13))
    assert opset_of(onnx.load_from_string(export_onnx(compressed, packed=False))) == 13


@pytest.mark.parametrize("opset", [13, 16, 17, 19])
@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("Gelu", ["x"], ["y"], approximate="tanh"),
        helper.make_node("Gelu", ["x"], ["y"]),
        helper.make_node("Mish", ["x"], ["y"]),
        helper.make_node("HardSwish", ["x"], ["y"]),
        helper.make_node("LayerNormalization", ["x", "x"], ["y"], axis=-2, epsilon=1e-3),
        helper.make_node("Shape", ["x"], ["y"], start=1),
    ],
    ids=lambda node: node.op_type,
)
def test_later_operators_are_written_out(node: onnx.NodeProto, opset: int) -> None:
    x = torch.linspace(-4, 4, 10).reshape(2, 5).numpy()
    later, earlier = model_of(node, 20), model_of(node, 20)
    lower_opset(earlier, opset)
    known, found = (onnxruntime.load(model.SerializeToString(), 1).run(x)[0] for model in (later, earlier))
    torch.testing.assert_close(torch.from_numpy(found), torch.from_numpy(known), rtol=1e-4, atol=1e-5)


def model_of(node: onnx.NodeProto, opset: int) -> onnx.ModelProto:
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 5])]
    kind, sizes = (TensorProto.INT64, ["a"]) if node.op_type == "Shape" else (TensorProto.FLOAT, ["a", "b"])
    results = [helper.make_tensor_value_info(name, kind, sizes) for name in node.output]
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [0, 5])
    graph = helper.make_graph([node], "g", given, results, [shape])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


@pytest.mark.parametrize(
    ("node", "opset", "message"),
    [
        (
            helper.make_node("GroupNormalization", ["x", "x", "x"], ["y"], num_groups=1),
            21,
            "GroupNormalization has changed",
        ),
        (helper.make_node("Split", ["x"], ["y", "z"], axis=1, num_outputs=2), 18, "2 parts must be even .* got 5"),
        (helper.make_node("Reshape", ["x", "shape"], ["y"], allowzero=1), 14, "dimension of 0"),
        (helper.make_node("ReduceMean", ["x", "x"], ["y"]), 18, "needs to know x"),
        (helper.make_node("LayerNormalization", ["x", "x"], ["y"], axis=1), 17, "counted from the last"),
    ],
)
def test_what_an_earlier_opset_does_not_have_is_refused(node: onnx.NodeProto, opset: int, message: str) -> None:
    with pytest.raises(ExportError, match=message) as caught:
        lower_opset(model_of(node, opset), 13)
    assert "\n" not in str(caught.value)


def test_an_opset_is_never_raised_and_not_lowered_below_13() -> None:
    model = model_of(helper.make_node("Relu", ["x"], ["y"]), 14)
    lower_opset(model, 17)
    assert opset_of(model) == 14
    with pytest.raises(ExportError, match="13 at least; got 11"):
        lower_opset(model, 11)
