"""The bytes of an exported file, predicted from the structure alone.

What a plan changes is built from the very protobuf messages that :mod:`autocomp.export.to_onnx` writes; what it leaves
alone (inputs, outputs, operators without weights) is taken from one real export of the untouched network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from autocomp.compress.structure import LayerShape, Structure
from autocomp.export.opsets import leave_out_defaults
from autocomp.export.packing import Footprint, bias_bytes, field_bytes, footprint, function_bytes
from autocomp.export.stored import weight_spec
from autocomp.export.unpacking import BIAS, Reader
from autocomp.graph import ATTENTION, Node

#: An attention that is written out, because the file's opset has no kernel for it as one operator.
WRITTEN_OUT_BYTES = 400

#: An operator without weights: only what a left-out block takes with it is counted so.
OTHER_NODE_BYTES = 25

#: Stands for the short names that values get in a file.
NAME = "ab"


@dataclass(frozen=True)
class SizeModel:
    """Predicts file sizes of one network. ``fixed_bytes`` is what no plan changes."""

    fixed_bytes: int
    packed: bool
    integer_bias: bool
    attention_operator: bool = True

    @staticmethod
    def from_export(
        untouched: Structure, file_bytes: int, packed: bool, integer_bias: bool, attention_operator: bool = True
    ) -> SizeModel:
        """From the size of the untouched network's file. For the last two see
        :class:`autocomp.compress.quantize.Numerics`."""
        model = SizeModel(0, packed, integer_bias, attention_operator)
        return replace(model, fixed_bytes=file_bytes - model.predict(untouched))

    def predict(self, structure: Structure) -> int:
        """Bytes of the file of a compressed network of this structure."""
        readers: set[Reader | str] = set()
        total = self.fixed_bytes
        rounded_at_run_time: set[str] = set()
        formats = (layer.format for layer in structure.layers.values())
        two_bits = any(chosen is not None and chosen.needs_two_bit_type for chosen in formats)
        attention_bytes = WRITTEN_OUT_BYTES if self.packed and self.attention_operator and two_bits else 0
        for node in structure.graph.nodes:
            if node.layer is None:
                total += OTHER_NODE_BYTES + 4 * node.parameters + (attention_bytes if node.op == ATTENTION else 0)
                continue
            layer = structure.layers[node.layer]
            if layer.format is not None and layer.format.dynamic:
                rounded_at_run_time.add(node.inputs[0])
            weight = self._weight(node, layer)
            readers.update(weight.readers)
            total += weight.graph_bytes + self._around(node, layer)
            if self.packed and self._integer_bias(node, layer):
                readers.add(BIAS)
        total += len(rounded_at_run_time) * _node("DynamicQuantizeLinear", 1, 3)
        total += sum(_shortcut_bytes(len(one.slices), one.stride) for one in structure.shortcuts)
        rounded = len(structure.rounded) + len(structure.rounded_for_products)
        most_weights = max((math.prod(layer.weight_shape) for layer in structure.layers.values()), default=0)
        return total + function_bytes(readers, most_weights) + rounded * _rounding_bytes()

    def _weight(self, node: Node, layer: LayerShape) -> Footprint:
        """How the exporter stores the layer's weight."""
        chosen = layer.format
        dynamic = chosen is not None and chosen.dynamic
        turned = node.op == "linear" and (not node.is_gemm or dynamic)
        shape = layer.weight_shape[::-1] if turned else layer.weight_shape
        in_integers = chosen is not None and (dynamic or (node.op == "embedding" and chosen.tables_of_integers))
        return footprint(NAME, weight_spec(shape, chosen, layer.kept, int(turned), in_integers), self.packed)

    def _integer_bias(self, node: Node, layer: LayerShape) -> bool:
        """Whether an integer kernel adds the layer's bias."""
        computed = node.has_bias and (node.op == "conv2d" or node.is_gemm)
        return self.integer_bias and computed and layer.format is not None and layer.format.calibrated

    def _around(self, node: Node, layer: LayerShape) -> int:
        """The layer's operators and its bias."""
        chosen, channels = layer.format, node.outputs
        bias = 0
        if node.has_bias:
            integer = self._integer_bias(node, layer)
            one_step = chosen is not None and chosen.granularity == "tensor"
            bias = _bias_bytes(channels, integer, self.packed, one_step)
        if chosen is not None and chosen.dynamic:
            operators = _node("MatMulInteger", 3) + _node("Cast", 1, to=1) + 2 * _node("Mul", 2)
            operators += _node("Add", 2) if node.has_bias else 0
            return bias + operators + _tensor_bytes(NAME + ".s", TensorProto.FLOAT, (channels,))
        if chosen is not None and node.op == "embedding" and chosen.tables_of_integers:
            operators = 2 * _node("Gather", 2, axis=0) + _node("Cast", 1, to=1) + _node("Mul", 2)
            return operators + _tensor_bytes(NAME + ".s", TensorProto.FLOAT, (layer.weight_shape[0], 1))
        kind = "gemm" if node.is_gemm else node.op
        return bias + _layer_bytes(kind, node.has_bias, node.stride, node.padding, node.groups)


def _node(op: str, inputs: int, outputs: int = 1, **attributes: Any) -> int:
    node = helper.make_node(op, [NAME] * inputs, [NAME] * outputs, **attributes)
    leave_out_defaults(node)
    return field_bytes(node.ByteSize())


@lru_cache(maxsize=1024)
def _layer_bytes(op: str, has_bias: bool, stride: tuple[int, int], padding: tuple[int, int], groups: int) -> int:
    inputs = [NAME] * (3 if has_bias else 2)
    if op == "linear":
        return _node("MatMul", 2) + (_node("Add", 2) if has_bias else 0)
    if op == "embedding":
        return _node("Gather", 2, axis=0)
    if op == "gemm":
        node = helper.make_node("Gemm", inputs, [NAME], alpha=1.0, beta=1.0, transB=1)
    else:
        node = helper.make_node("Conv", inputs, [NAME], group=groups, pads=[*padding, *padding], strides=stride)
    leave_out_defaults(node)
    return field_bytes(node.ByteSize())


@lru_cache(maxsize=1024)
def _bias_bytes(channels: int, integer: bool, packed: bool, one_step: bool) -> int:
    if not integer:
        return _tensor_bytes(NAME, TensorProto.FLOAT, (channels,))
    if packed:
        return bias_bytes(NAME, channels, NAME)
    steps = _tensor_bytes(NAME + ".s", TensorProto.FLOAT, () if one_step else (channels,))
    node = helper.make_node("DequantizeLinear", [NAME + ".v", NAME + ".s"], [NAME], axis=0)
    return _tensor_bytes(NAME + ".v", TensorProto.FLOAT, (channels,)) + steps + field_bytes(node.ByteSize())


@lru_cache(maxsize=64)
def _shortcut_bytes(slices: int, stride: tuple[int, int]) -> int:
    """What a convolution of ones takes more than the slices and the pad that it stands for. The slices' constants are those
    of others as well; a slice along all of an axis is not written."""
    written = min(slices, sum(step > 1 for step in stride))
    before = written * _node("Slice", 5) + _node("Pad", 2) + _tensor_bytes(NAME, TensorProto.INT64, (16,))
    weight = _node("ConstantOfShape", 1) + _node("EyeLike", 1, dtype=TensorProto.INT32, k=-1)
    weight += _node("Cast", 1, to=TensorProto.INT8) + _node("Unsqueeze", 2) + _node("DequantizeLinear", 2)
    constants = 2 * _tensor_bytes(NAME, TensorProto.INT64, (1,)) + _tensor_bytes(NAME, TensorProto.FLOAT, ())
    convolution = (
        _layer_bytes("conv2d", False, stride, (0, 0), 1) + _node("QuantizeLinear", 3) + _node("DequantizeLinear", 3)
    )
    return weight + constants + convolution - before


@lru_cache(maxsize=1)
def _rounding_bytes() -> int:
    """A quantization and its inverse, and their step; zero points are shared between tensors."""
    return _node("QuantizeLinear", 3) + _node("DequantizeLinear", 3) + _tensor_bytes(NAME, TensorProto.FLOAT, ())


def _tensor_bytes(name: str, data_type: int, shape: tuple[int, ...]) -> int:
    raw = np.zeros(shape, np.float32).tobytes()
    return field_bytes(TensorProto(dims=shape, data_type=data_type, name=name, raw_data=raw).ByteSize())
