"""The bytes of a torch package, predicted from the structure alone.

Tensors and the zip's words about each are counted; what the deflated description of the graph takes is counted by its tensors
and operations, at what one more of each took in packages of tests and zoo networks. What a plan leaves alone is taken from
one real package of the untouched network.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

from autocomp.compress.quantize import Floats
from autocomp.compress.structure import LayerShape, Structure
from autocomp.export.semi_structured import SPARSE_INPUTS, SPARSE_OUTPUTS, SPARSE_ROWS
from autocomp.export.torch_layers import FLOAT8_MULTIPLE, INTEGER_ROWS, missing
from autocomp.graph import Graph, Node

#: Of a zip: a local header and a directory entry, each with the name of the tensor's file.
ZIP_BYTES = 30 + 46 + 2 * len("archive/data/weights/weight_00")
#: What one more tensor, one more operation, and an operation of a kind that was not there yet add to the deflated text: a
#: least-squares fit to 96 packages of the tests' networks, in 8 bits and by random plans: 160 bytes off in the mean square, the
#: worst 455.
TENSOR_TEXT_BYTES, OPERATION_TEXT_BYTES, KIND_TEXT_BYTES = 39, 19, 46

#: Kinds of operations: of a weight in int8, a rounding on a calibrated grid, a product of integers, one whose sizes are
#: filled up, and a rounding on a grid of the moment, which is never offered.
STORED, ROUNDED = frozenset({"mul"}), frozenset({"mul", "round", "clamp", "to"})
PRODUCT, FILLED = frozenset({"t", "_int_mm", "addcmul"}), frozenset({"pad", "slice"})
FLOAT8_PRODUCT = frozenset({"t", "_scaled_mm", "addcmul"})
SPARSE_PRODUCT = frozenset({"t", "_sparse_semi_structured_addmm", "slice", "contiguous"})
RESHAPED = frozenset({"reshape", "sym_size"})
DYNAMIC = frozenset(
    {"amin", "amax", "clamp_min", "clamp_max", "sub", "div", "eq", "where", "neg", "round", "clamp", "mul"}
)
DYNAMIC_OPERATIONS = 18
#: Operations that have a weight and a bias, though no layer's.
NORMS = frozenset({"layer_norm", "group_norm", "batch_norm"})


@dataclass(frozen=True)
class _Counted:
    """Bytes of tensors, how many these are, operations, and kinds of these."""

    tensor_bytes: int = 0
    tensors: int = 0
    operations: int = 0
    kinds: frozenset[str] = frozenset()

    def __add__(self, other: _Counted) -> _Counted:
        return _Counted(
            self.tensor_bytes + other.tensor_bytes,
            self.tensors + other.tensors,
            self.operations + other.operations,
            self.kinds | other.kinds,
        )

    def file_bytes(self, known: Collection[str]) -> int:
        """Args:
        known: kinds of operations that are in the file anyway.
        """
        text = TENSOR_TEXT_BYTES * self.tensors + OPERATION_TEXT_BYTES * self.operations
        text += KIND_TEXT_BYTES * len(self.kinds.difference(known))
        return self.tensor_bytes + ZIP_BYTES * self.tensors + text


@dataclass(frozen=True)
class PackageSizes:
    """Predicts the sizes of one network's packages. ``fixed_bytes`` is what no plan changes."""

    fixed_bytes: int
    floats: Floats
    symmetric_activations: bool

    @staticmethod
    def from_package(
        untouched: Structure, file_bytes: int, floats: Floats, symmetric_activations: bool
    ) -> PackageSizes:
        """From the size of the untouched network's package."""
        sizes = PackageSizes(0, floats, symmetric_activations)
        return replace(sizes, fixed_bytes=file_bytes - sizes.predict(untouched))

    def predict(self, structure: Structure) -> int:
        """Bytes of the package of a compressed network of this structure."""
        graph = structure.graph
        total = _Counted()
        rounded_at_run_time: set[str] = set()
        #: Tensor that becomes floats of 8 bits → whether it is filled up.
        in_float8: dict[str, bool] = {}
        for node in graph.nodes:
            if node.layer is None:
                tensors = bool(node.parameters) + (node.op in NORMS and node.parameters > 0)
                total += _Counted(self._float_bytes(node.parameters), tensors, 1)
                continue
            layer = structure.layers[node.layer]
            total += self._layer(node, layer)
            if layer.format is not None and layer.format.in_float8:
                in_float8[node.inputs[0]] = missing(layer.weight_shape[1], FLOAT8_MULTIPLE) > 0
            if layer.format is not None and layer.format.dynamic:
                rounded_at_run_time.add(node.inputs[0])
        for more in in_float8.values():
            total += _Counted(4, 1, 3 + more, ROUNDED - {"round"} | ({"pad"} if more else set()))
        if rounded_at_run_time:
            total += _Counted(0, 0, DYNAMIC_OPERATIONS * len(rounded_at_run_time), DYNAMIC)
        for name in structure.rounded | structure.rounded_for_products:
            total += self._rounding(structure, graph, name)
        return self.fixed_bytes + total.file_bytes(
            {"reshape" if node.op == "view" else node.op for node in graph.nodes}
        )

    @property
    def _casts(self) -> int:
        """Operations that bring float32 to what floats are."""
        return int(self.floats != "fp32")

    def _float_bytes(self, count: int) -> int:
        return count * (4 if self.floats == "fp32" else 2)

    def _layer(self, node: Node, layer: LayerShape) -> _Counted:
        chosen, weights, channels = layer.format, math.prod(layer.weight_shape), node.outputs
        if layer.sparse_product:
            return self._sparse_linear(node, layer)
        bias = _Counted(self._float_bytes(channels), 1) if node.has_bias else _Counted()
        if chosen is None or chosen.weight_bits == 16:
            halves = chosen is not None and self.floats == "fp32"
            stored = 2 * weights if halves else self._float_bytes(weights)
            return bias + _Counted(stored, 1, 2 if halves else 1)
        if node.op == "linear" and chosen.calibrated:
            return self._integer_linear(node, layer)
        if chosen.in_float8:
            return self._float8_linear(node, layer)
        rows = layer.weight_shape[0]
        if node.op == "embedding" and chosen.tables_of_integers:
            return _Counted(weights + 4 * rows, 2, 3 + self._casts, STORED)
        steps, operations = 1 if chosen.granularity == "tensor" else rows, 2 + self._casts
        if chosen.granularity == "group":
            groups = math.ceil(weights / rows / chosen.group)
            steps, weights, operations = rows * groups, rows * groups * chosen.group, operations + 3
        return bias + _Counted(weights + 4 * steps, 2, operations, STORED)

    def _integer_linear(self, node: Node, layer: LayerShape) -> _Counted:
        """See :class:`autocomp.export.torch_layers.IntegerLinear`."""
        outputs, inputs = layer.weight_shape
        more_inputs, more_outputs = missing(inputs), missing(outputs)
        more_rows = least_rows(node) < INTEGER_ROWS
        operations = 3 + self._casts + bool(more_inputs or more_rows) + 2 * more_rows + bool(more_outputs)
        operations += 2 if len(node.shape) > 2 else 0  # to rows and back; sizes are told once for all
        kinds = PRODUCT | (RESHAPED if len(node.shape) > 2 else frozenset())
        kinds |= FILLED if more_inputs or more_rows or more_outputs else frozenset()
        return _Counted((inputs + more_inputs) * (outputs + more_outputs) + 8 * outputs, 3, operations, kinds)

    def _float8_linear(self, node: Node, layer: LayerShape) -> _Counted:
        """See :class:`autocomp.export.torch_layers.Float8Linear`."""
        outputs, inputs = layer.weight_shape
        more_inputs, more_outputs = (missing(size, FLOAT8_MULTIPLE) for size in (inputs, outputs))
        operations = 3 + self._casts + bool(more_outputs) + (2 if len(node.shape) > 2 else 0)
        kinds = FLOAT8_PRODUCT | (RESHAPED if len(node.shape) > 2 else frozenset())
        levels = (inputs + more_inputs) * (outputs + more_outputs)
        return _Counted(levels + 8 * outputs + 4, 4, operations, kinds)

    def _sparse_linear(self, node: Node, layer: LayerShape) -> _Counted:
        """See :class:`autocomp.export.semi_structured.SparseLinear`: two of four weights, and four bits of their places."""
        outputs, inputs = layer.weight_shape
        deep, wide = inputs + missing(inputs, SPARSE_INPUTS), outputs + missing(outputs, SPARSE_OUTPUTS)
        ragged, rows = least_rows(node) % SPARSE_ROWS > 0, len(node.shape) > 2
        filled = deep > inputs or ragged
        operations = 5 + (wide > outputs) + 3 * filled + 2 * rows
        kinds = SPARSE_PRODUCT | (FILLED if filled else frozenset()) | (RESHAPED if rows else frozenset())
        return _Counted(deep * wide * 9 // 8 + 2 * wide, 3, operations, kinds)

    def _rounding(self, structure: Structure, graph: Graph, name: str) -> _Counted:
        """To levels, and back for whoever does not multiply integers."""
        shifted = int(not self.symmetric_activations)
        counted = _Counted(4, 1, 4 + shifted, ROUNDED)
        readers = graph.users[name]
        if name in structure.rounded_for_products:
            readers = tuple(node for node in readers if node.layer in structure.integer_layers)
        back = any(node.op != "linear" or node.layer not in structure.integer_layers for node in readers)
        return counted + _Counted(0, 0, 2 + shifted) if back or name in graph.outputs else counted


def least_rows(place: Node) -> int:
    """Of the product that a linear is, for a batch of one; 1 where a length is not fixed."""
    return math.prod(
        1 if dim in place.free else max(1, size)
        for dim, size in enumerate(place.shape)
        if 0 < dim < len(place.shape) - 1
    )
