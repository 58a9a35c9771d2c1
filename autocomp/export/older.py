"""A file in the operators of an earlier opset, for a runtime that reads no later one.

``onnx.version_converter`` has no way down for a good part of what torch.onnx writes. These are the steps down for what
networks of this project's kind are made of; any other operator that has changed since is refused by its name.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, checker, defs, helper, numpy_helper, shape_inference
from onnx.defs import SchemaError

from autocomp.errors import ExportError
from autocomp.export.opsets import opset_of, required_ir_version, set_opset

#: The earliest that is written.
OLDEST = 13

#: What later versions of these added are types of values, and attributes and inputs that the checker finds where they are.
SAME_BUT_FOR_TYPES = frozenset(
    {
        *("Relu", "LeakyRelu", "PRelu", "Add", "Sub", "Mul", "Div", "Where", "Equal", "Cast", "Identity", "Constant"),
        *("Transpose", "Squeeze", "Unsqueeze", "Flatten", "ConstantOfShape", "Pad", "Resize", "AveragePool"),
        *("QuantizeLinear", "DequantizeLinear", "Greater", "Less", "Expand", "Slice"),
        *("Conv", "ConvTranspose", "MaxPool", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "Softplus", "Elu"),
    }
)


@dataclass
class _Writer:
    """The nodes of a file, written anew one by one."""

    model: ModelProto
    nodes: list[NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)
    _names: Iterator[str] = field(default_factory=lambda: (f"older{number}" for number in itertools.count()))

    def constant(self, values: float | Sequence[int]) -> str:
        """The name of a new initializer: a float, or whole numbers."""
        name = next(self._names)
        array = np.asarray(values, np.float32 if isinstance(values, float) else np.int64)
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def apply(self, op: str, *inputs: str, result: str = "", **attributes: Any) -> str:
        """A new node; the name of what it gives, its own where no other is told."""
        name = result or next(self._names)
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    @cached_property
    def initializers(self) -> Mapping[str, TensorProto]:
        return {tensor.name: tensor for tensor in self.model.graph.initializer}

    @cached_property
    def sizes(self) -> Mapping[str, tuple[int, ...]]:
        """Of tensors, as far as they can be told; 0 where a dimension is open."""
        inferred = shape_inference.infer_shapes(self.model).graph
        return {
            value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
            for value in (*inferred.value_info, *inferred.input)
        }

    def value(self, name: str) -> npt.NDArray[np.int64]:
        """What an initializer holds.

        Raises:
            ExportError: it is computed.
        """
        if name not in self.initializers:
            raise ExportError(f"an earlier opset needs to know {name}, which this file computes; choose another target")
        return numpy_helper.to_array(self.initializers[name])


Step = Callable[[_Writer, NodeProto], None]


def lower_opset(model: ModelProto, opset: int) -> None:
    """Lower, in place, a model's opset to ``opset`` (at least 13) where it is above; it computes the same.

    Raises:
        ExportError: it has an operator that the earlier opset does not, and that no step down is known for.
    """
    current = opset_of(model)
    if current <= opset:
        return
    if opset < OLDEST:
        raise ExportError(f"a file's opset can be lowered to {OLDEST} at least; got {opset}; choose another target")
    writer = _Writer(model)
    for node in model.graph.node:
        step = _step(node, current, opset)
        if step is None:
            writer.nodes.append(node)
        else:
            step(writer, node)
    del model.graph.node[:]
    model.graph.node.extend(writer.nodes)
    model.graph.initializer.extend(writer.constants)
    set_opset(model, opset)
    model.ir_version = required_ir_version(opset)
    try:
        checker.check_model(model)
    except checker.ValidationError as error:
        raise ExportError(
            f"the model cannot be written in opset {opset}: {str(error).splitlines()[0]}; choose another target, or "
            "replace the operation"
        ) from error


def _step(node: NodeProto, current: int, opset: int) -> Step | None:
    """How to write a node of the current opset in an earlier one; None where it stays as it is."""
    if node.domain or _version(node.op_type, opset) == _version(node.op_type, current):
        return None
    if node.op_type in STEPS:
        since, step = STEPS[node.op_type]
        return step if opset < since else None
    if node.op_type in SAME_BUT_FOR_TYPES:
        return None
    raise ExportError(
        f"{node.op_type} has changed since opset {opset}, and no step down is known for it; choose a target that reads "
        "later opsets, or replace the operation"
    )


def _version(op: str, opset: int) -> int | None:
    try:
        return int(defs.get_schema(op, opset).since_version)
    except SchemaError:
        return None


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(one) for one in node.attribute if one.name == name), default)


def _without(node: NodeProto, name: str) -> NodeProto:
    """The node, without an attribute."""
    kept = [one for one in node.attribute if one.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
    return node


def _reduced(writer: _Writer, node: NodeProto) -> None:
    """Axes are an attribute."""
    if len(node.input) == 2:
        axes = writer.value(node.input.pop()).reshape(-1).tolist()
        node.attribute.append(helper.make_attribute("axes", axes))
    writer.nodes.append(node)


def _reshape(writer: _Writer, node: NodeProto) -> None:
    """A zero takes over a dimension; that it is one itself cannot be said."""
    if _attribute(node, "allowzero", 0) and node.input[1] in writer.initializers and 0 in writer.value(node.input[1]):
        raise ExportError("no tensor can have a dimension of 0 before opset 14; choose another target")
    writer.nodes.append(_without(node, "allowzero"))


def _split(writer: _Writer, node: NodeProto) -> None:
    """A number of parts is not told: without sizes they are equal, or else a runtime refuses the file."""
    parts = _attribute(node, "num_outputs", None)
    if parts is not None:
        sizes = writer.sizes.get(node.input[0])
        size = 0 if sizes is None else sizes[_attribute(node, "axis", 0)]
        if size % parts:
            raise ExportError(
                f"a split into {parts} parts must be even before opset 18; got {size} values; choose another target"
            )
    writer.nodes.append(_without(node, "num_outputs"))


def _shape(writer: _Writer, node: NodeProto) -> None:
    """A part of the shape is sliced out of it."""
    start, end = _attribute(node, "start", 0), _attribute(node, "end", None)
    if start == 0 and end is None:
        writer.nodes.append(node)
        return
    whole = writer.apply("Shape", node.input[0])
    bounds = [writer.constant([number]) for number in (start, 2**31 if end is None else end)]
    writer.apply("Slice", whole, *bounds, result=node.output[0])


def _gelu(writer: _Writer, node: NodeProto) -> None:
    """x · (1 + erf(x/√2)) / 2, or with tanh(√(2/π) (x + 0.044715 x³)) for erf, as ONNX defines it."""
    (x,) = node.input
    if _attribute(node, "approximate", b"none") == b"tanh":
        cube = writer.apply("Mul", writer.apply("Mul", x, x), x)
        inner = writer.apply("Add", x, writer.apply("Mul", cube, writer.constant(0.044715)))
        curve = writer.apply("Tanh", writer.apply("Mul", inner, writer.constant(math.sqrt(2 / math.pi))))
    else:
        curve = writer.apply("Erf", writer.apply("Mul", x, writer.constant(1 / math.sqrt(2))))
    half = writer.apply("Mul", x, writer.constant(0.5))
    writer.apply("Mul", half, writer.apply("Add", curve, writer.constant(1.0)), result=node.output[0])


def _hard_swish(writer: _Writer, node: NodeProto) -> None:
    gate = writer.apply("HardSigmoid", node.input[0], alpha=1 / 6, beta=0.5)
    writer.apply("Mul", node.input[0], gate, result=node.output[0])


def _mish(writer: _Writer, node: NodeProto) -> None:
    curve = writer.apply("Tanh", writer.apply("Softplus", node.input[0]))
    writer.apply("Mul", node.input[0], curve, result=node.output[0])


def _layer_norm(writer: _Writer, node: NodeProto) -> None:
    """(x - mean) / √(variance + ε) · scale + bias, over the last dimensions from ``axis`` on."""
    axis = _attribute(node, "axis", -1)
    if axis >= 0 or len(node.output) > 1:
        raise ExportError(
            "a layer norm before opset 17 must be over dimensions counted from the last, and give nothing else; choose "
            "another target"
        )
    axes = [*range(axis, 0)]
    centred = writer.apply("Sub", node.input[0], writer.apply("ReduceMean", node.input[0], axes=axes, keepdims=1))
    variance = writer.apply("ReduceMean", writer.apply("Mul", centred, centred), axes=axes, keepdims=1)
    epsilon = writer.constant(float(_attribute(node, "epsilon", 1e-5)))
    even = writer.apply("Div", centred, writer.apply("Sqrt", writer.apply("Add", variance, epsilon)))
    scale, *bias = node.input[1:]
    if bias and bias[0]:
        writer.apply("Add", writer.apply("Mul", even, scale), bias[0], result=node.output[0])
    else:
        writer.apply("Mul", even, scale, result=node.output[0])


def _batch_norm(writer: _Writer, node: NodeProto) -> None:
    """In inference it has always been the same; the attribute that says so is new."""
    writer.nodes.append(_without(node, "training_mode"))


#: Operator → the opset that it came or changed in, and how it is written before.
STEPS: dict[str, tuple[int, Step]] = {
    **dict.fromkeys(("ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceProd"), (18, _reduced)),
    "Reshape": (14, _reshape),
    "Split": (18, _split),
    "Shape": (15, _shape),
    "Gelu": (20, _gelu),
    "HardSwish": (14, _hard_swish),
    "Mish": (18, _mish),
    "LayerNormalization": (17, _layer_norm),
    "BatchNormalization": (14, _batch_norm),
}
