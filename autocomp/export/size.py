"""The bytes of an exported file, predicted from the structure alone.

What a plan changes is built from the very protobuf messages that :mod:`autocomp.export.to_onnx` writes; what it leaves
alone (inputs, outputs, operators without weights) is taken from one real export of the untouched network.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from onnx import TensorProto, helper

from autocomp.compress.structure import Structure
from autocomp.export.packing import FunctionKind, field_bytes, footprint, function_bytes

#: Stands for the short names that values get in a file.
NAME = "_ab"


@dataclass(frozen=True)
class SizeModel:
    """Predicts file sizes of one network. ``fixed_bytes`` is what no plan changes."""

    fixed_bytes: int
    packed: bool
    integer_bias: bool

    @staticmethod
    def from_export(untouched: Structure, file_bytes: int, packed: bool, integer_bias: bool) -> SizeModel:
        """From the size of the untouched network's file."""
        model = SizeModel(0, packed, integer_bias)
        return SizeModel(file_bytes - model.predict(untouched), packed, integer_bias)

    def predict(self, structure: Structure) -> int:
        """Bytes of the file of a compressed network of this structure."""
        functions: set[FunctionKind] = set()
        total = self.fixed_bytes
        for node in structure.graph.layers:
            layer = structure.layers[node.layer or ""]
            bits = 32 if layer.format is None else layer.format.weight_bits
            weight = footprint(NAME, layer.weight_shape, bits, layer.kept, self.packed)
            functions.update(weight.functions)
            total += weight.graph_bytes + _node_bytes(node.op, node.has_bias)
            if node.has_bias:
                total += _bias_bytes(layer.weight_shape[0], integer=bits != 32 and self.integer_bias)
        return total + function_bytes(functions) + len(structure.rounded) * _rounding_bytes()


@lru_cache(maxsize=64)
def _node_bytes(op: str, has_bias: bool) -> int:
    inputs = [NAME] * (3 if has_bias else 2)
    if op == "linear":
        node = helper.make_node("Gemm", inputs, [NAME], alpha=1.0, beta=1.0, transB=1)
    else:
        node = helper.make_node(
            "Conv",
            inputs,
            [NAME],
            group=1,
            pads=[1, 1, 1, 1],
            auto_pad="NOTSET",
            strides=[1, 1],
            dilations=[1, 1],
            kernel_shape=[3, 3],
        )
    return field_bytes(node.ByteSize())


@lru_cache(maxsize=1024)
def _bias_bytes(channels: int, integer: bool) -> int:
    values = _tensor_bytes(NAME + (".v" if integer else ""), TensorProto.FLOAT, (channels,))
    if not integer:
        return values
    node = helper.make_node("DequantizeLinear", [NAME + ".v", NAME + ".s"], [NAME], axis=0)
    return 2 * values + field_bytes(node.ByteSize())


@lru_cache(maxsize=1)
def _rounding_bytes() -> int:
    """A quantization and its inverse, and their step; zero points are shared between tensors."""
    to = helper.make_node("QuantizeLinear", [NAME] * 3, [NAME], axis=1)
    back = helper.make_node("DequantizeLinear", [NAME] * 3, [NAME], axis=1)
    return field_bytes(to.ByteSize()) + field_bytes(back.ByteSize()) + _tensor_bytes(NAME, TensorProto.FLOAT, ())


def _tensor_bytes(name: str, data_type: int, shape: tuple[int, ...]) -> int:
    raw = np.zeros(shape, np.float32).tobytes()
    return field_bytes(TensorProto(dims=shape, data_type=data_type, name=name, raw_data=raw).ByteSize())
