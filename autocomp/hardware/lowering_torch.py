"""From a network's structure to the kernels that torch runs of its package: one for every aten operation that computes or
moves something, with what :mod:`autocomp.export.torch_layers` puts around layers of 8 bits.

torch fuses nothing when it runs a package, and a CUDA graph replays the same kernels, so that the rules only say which
operations name the same memory anew (views), and which have to copy. They are held against what torch executes on the CPU;
nothing here was held against a GPU, where the same operations are dispatched.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from autocomp.compress.quantize import Floats
from autocomp.compress.structure import Structure
from autocomp.export.package_size import least_rows
from autocomp.export.semi_structured import SPARSE_INPUTS, SPARSE_OUTPUTS, SPARSE_ROWS
from autocomp.export.torch_layers import FLOAT8_MULTIPLE, INTEGER_ROWS, missing
from autocomp.graph import COPIES as UNCHANGED
from autocomp.graph import Graph, Node
from autocomp.hardware.kernels import ROW_BY_ROW, Kernel, in_company
from autocomp.hardware.torch_kernels import family_of
from autocomp.plan import Format

#: Names the same memory anew, whatever lies there.
VIEWS = frozenset(
    {
        *("transpose", "permute", "t", "slice", "select", "narrow", "getitem", "expand", "expand_as", "view"),
        *("squeeze", "unsqueeze", "split", "split_with_sizes", "chunk", "unbind", "unflatten", "alias", "detach"),
        *("dropout", "dropout_"),
    }
)
#: Of these the result does not lie in the order of its dimensions.
SCATTERING = frozenset(
    {"transpose", "permute", "t", "slice", "select", "narrow", "getitem", "expand", "expand_as", "chunk", "split"}
)
#: Copies where what they read is scattered.
MAY_COPY = frozenset({"reshape", "flatten", "contiguous"})


@dataclass
class _Lowering:
    """A lowering under way. ``scattered`` are tensors that do not lie in order; ``turned`` those that attention wrote, which
    lie in order once they are transposed back."""

    graph: Graph
    structure: Structure
    batch: int
    floats: Floats
    symmetric: bool
    kernels: list[Kernel] = field(default_factory=list)
    scattered: set[str] = field(default_factory=set)
    turned: set[str] = field(default_factory=set)
    in_float8: set[str] = field(default_factory=set)

    def elements(self, name: str) -> int:
        node = self.graph.by_name[name]
        return node.elements * self.times(node)

    def times(self, node: Node) -> int:
        """How many examples' a result is: what is made from constants alone is made once."""
        return self.batch if any(size < 0 for size in node.shape) else 1

    def add(self, family: str, precision: str, source: str, read: int, written: int) -> None:
        self.kernels.append(Kernel(f"{family}_{precision}", (source,), in_elements=read, out_elements=written))

    def each(self, precision: str, source: str, elements: int) -> None:
        """A pointwise operation on one tensor."""
        self.add("elementwise", precision, source, elements, elements)

    def into_floats(self, source: str, elements: int) -> None:
        """A cast from float32."""
        if self.floats != "fp32":
            self.each(self.floats, source, elements)


def lower(structure: Structure, batch: int, floats: Floats, symmetric_activations: bool) -> tuple[Kernel, ...]:
    """The kernel calls of one inference of a package, in order.

    Args:
        structure: of the compressed network, as :func:`autocomp.compress.structure.restructure` gives it.
        batch: examples per inference.
        floats: what the package computes floats in.
        symmetric_activations: see :class:`autocomp.compress.quantize.Numerics`.
    """
    graph = structure.graph
    state = _Lowering(graph, structure, batch, floats, symmetric_activations)
    for node in graph.nodes:
        if node.op == "input":
            if not _whole_numbers(graph, node.name):
                state.into_floats(node.name, state.elements(node.name))
        elif node.layer is not None:
            _layer(state, node)
        elif not _is_view(state, node):
            _other(state, node)
        if node.name in structure.rounded or node.name in structure.rounded_for_products:
            _rounded(state, node)
    for name in graph.outputs:
        if floats != "fp32":
            state.each("fp32", name, state.elements(name))
    return in_company(state.kernels)


def _whole_numbers(graph: Graph, name: str) -> bool:
    """Whether an input is of whole numbers, as far as its readers tell: tables are read by them, and masks are compared or
    become floats by the network's own doing."""
    readers = graph.users[name]
    return bool(readers) and all(
        reader.op in {"embedding", "to", "eq", "ne", "gt", "ge", "lt", "le"}
        or (reader.op in VIEWS and _whole_numbers(graph, reader.name))
        for reader in readers
    )


def _is_view(state: _Lowering, node: Node) -> bool:
    if not node.inputs:  # of a parameter
        return node.op in VIEWS | UNCHANGED - {"clone"} - MAY_COPY
    source = node.inputs[0]
    if source in state.turned and node.op == "transpose":
        return True
    scattered = source in state.scattered
    if node.op in VIEWS or (node.op in MAY_COPY and not scattered):
        if (node.op in SCATTERING and _moves(state, node)) or scattered:
            state.scattered.add(node.name)
        return True
    return node.op in UNCHANGED - {"clone"} - MAY_COPY


def _moves(state: _Lowering, node: Node) -> bool:
    """Whether a view really skips or reorders something: a part of the whole, or dimensions longer than one."""
    source = state.graph.by_name[node.inputs[0]].shape
    return node.shape != source or node.op in {"transpose", "permute", "t"}


def _layer(state: _Lowering, node: Node) -> None:
    name = node.layer or ""
    layer = state.structure.layers[name]
    chosen, weights = layer.format, node.weights
    written = state.elements(node.name)
    if node.op == "embedding":
        if chosen is not None and chosen.tables_of_integers:
            state.add("gather", "int8", name, written, written)
            rows = written // node.weight_shape[1]
            state.add("gather", "fp32", name, rows, rows)
            state.add("elementwise", "fp32", name, written + rows, written)
            state.into_floats(name, written)
            return
        if chosen is not None and chosen.weight_bits < 16:
            _stored(state, name, node, chosen)
        state.add("gather", state.floats, name, written, written)
        return
    if layer.sparse_product:
        _sparse_linear(state, node, name)
        return
    if chosen is not None and chosen.weight_bits == 16 and state.floats == "fp32":
        state.each("fp32", name, weights)
    elif chosen is not None and node.op == "linear" and chosen.calibrated:
        _integer_linear(state, node, name)
        return
    elif chosen is not None and chosen.in_float8:
        _float8_linear(state, node, name)
        return
    elif chosen is not None and chosen.weight_bits < 16:
        _stored(state, name, node, chosen)
    inputs_per_group = node.weight_shape[1] if node.op == "conv2d" else 0
    state.kernels.append(
        Kernel(
            f"{family_of(node.op, node.groups, inputs_per_group)}_{state.floats}",
            (name,),
            macs=node.macs * state.times(node),
            in_elements=state.elements(node.inputs[0]) if node.inputs else written,
            out_elements=written,
            weight_elements=weights,
            kernel_area=math.prod(node.kernel),
            stride=node.stride[0],
            groups=node.groups,
        )
    )


def _stored(state: _Lowering, name: str, node: Node, chosen: Format) -> None:
    """Levels times steps, at every run; groups are filled up."""
    rows, weights = node.weight_shape[0], node.weights
    if chosen.granularity == "group":
        columns = weights // rows
        padded = rows * math.ceil(columns / chosen.group) * chosen.group
        state.each("fp32", name, padded)
        if padded > weights and math.prod(node.weight_shape[2:]) > 1:
            state.add("copy", "fp32", name, weights, weights)
    else:
        state.each("fp32", name, weights)
    state.into_floats(name, weights)


def _integer_linear(state: _Lowering, node: Node, name: str) -> None:
    """See :class:`autocomp.export.torch_layers.IntegerLinear`."""
    outputs, inputs = node.weight_shape
    rows = state.elements(node.name) // outputs
    filled, deep, wide = rows, inputs + missing(inputs), outputs + missing(outputs)
    if node.inputs[0] in state.scattered and len(node.shape) > 2:
        state.add("copy", "int8", name, rows * inputs, rows * inputs)
    if least_rows(node) < INTEGER_ROWS:
        filled += INTEGER_ROWS - least_rows(node)
    if filled > rows or deep > inputs:
        state.add("copy", "int8", name, filled * deep, filled * deep)
    _product(state, "gemm_int8", name, filled, deep, wide, rows * outputs)


def _float8_linear(state: _Lowering, node: Node, name: str) -> None:
    """See :class:`autocomp.export.torch_layers.Float8Linear`; what several read is rounded once."""
    outputs, inputs = node.weight_shape
    rows, source = state.elements(node.name) // outputs, node.inputs[0]
    deep, wide = inputs + missing(inputs, FLOAT8_MULTIPLE), outputs + missing(outputs, FLOAT8_MULTIPLE)
    if source not in state.in_float8:
        state.in_float8.add(source)
        if deep > inputs:
            state.add("copy", state.floats, source, rows * deep, rows * deep)
        for precision in ("fp32", "fp32", "fp8"):  # multiplied, clamped
            state.each(precision, source, rows * deep)
    # Of a part of a sequence, which has two dimensions, rounding makes rows that lie in order; of what was transposed not.
    if source in state.scattered and len(node.shape) > 2 and deep == inputs:
        state.add("copy", "fp8", name, rows * deep, rows * deep)
    _product(state, "gemm_fp8", name, rows, deep, wide, rows * outputs)


def _sparse_linear(state: _Lowering, node: Node, name: str) -> None:
    """See :class:`autocomp.export.semi_structured.SparseLinear`."""
    outputs, inputs = node.weight_shape
    rows = state.elements(node.name) // outputs
    deep, wide = inputs + missing(inputs, SPARSE_INPUTS), outputs + missing(outputs, SPARSE_OUTPUTS)
    filled = rows + missing(rows, SPARSE_ROWS)
    if node.inputs and node.inputs[0] in state.scattered and len(node.shape) > 2:
        state.add("copy", state.floats, name, rows * inputs, rows * inputs)
    if least_rows(node) % SPARSE_ROWS or deep > inputs:
        state.add("copy", state.floats, name, filled * deep, filled * deep)
    state.kernels.append(
        Kernel(
            f"sparse_gemm_{state.floats}",
            (name,),
            macs=filled * wide * deep // 2,
            in_elements=filled * deep,
            out_elements=filled * wide,
            weight_elements=wide * deep // 2,
        )
    )
    state.add("copy", state.floats, name, rows * outputs, rows * outputs)


def _product(state: _Lowering, op: str, name: str, rows: int, deep: int, wide: int, results: int) -> None:
    """A product of 8-bit numbers of filled-up sizes, and what makes floats of its sums (see
    :func:`autocomp.export.torch_layers.put_right`)."""
    state.kernels.append(
        Kernel(
            op,
            (name,),
            macs=rows * deep * wide,
            in_elements=rows * deep,
            out_elements=rows * wide,
            weight_elements=deep * wide,
        )
    )
    state.each("fp32", name, results)
    state.into_floats(name, results)


def _rounded(state: _Lowering, node: Node) -> None:
    """To levels, and back for whoever does not multiply integers."""
    structure, name = state.structure, node.name
    elements = state.elements(name)
    for _ in range(3 if state.symmetric else 4):  # multiplied, rounded, moved where the grid is, clamped
        state.each("fp32", name, elements)
    state.each("int8", name, elements)
    private = name in structure.rounded_for_products
    readers = [reader for reader in state.graph.users[name] if not private or reader.layer in structure.integer_layers]
    products = [reader.op == "linear" and reader.layer in structure.integer_layers for reader in readers]
    if not all(products) or (name in state.graph.outputs and not private):
        for _ in range(2 if state.symmetric else 3):
            state.each(state.floats, name, elements)


def _window(node: Node) -> tuple[int, int]:
    """A pool's area and stride, of one over a sequence or over images."""
    sizes = 1 if node.op.endswith("1d") else 2
    return math.prod(node.numbers[:sizes]), node.numbers[sizes] if len(node.numbers) > sizes else node.numbers[0]


def _other(state: _Lowering, node: Node) -> None:
    """An operation without a layer's weight."""
    read, written = sum(map(state.elements, dict.fromkeys(node.inputs))), state.elements(node.name)
    family = family_of(node.op)
    if family == "attention":
        state.turned.add(node.name)
    if family in {"matmul", "attention"} and len(node.inputs) > 1:
        shapes = [state.graph.by_name[name].shape for name in node.inputs]
        inner = abs(shapes[0][-1]) if family == "matmul" else abs(shapes[1][-2])
        state.kernels.append(
            Kernel(
                f"{family}_{state.floats}",
                (node.name,),
                macs=written * inner * (1 if family == "matmul" else 2),
                in_elements=read,
                out_elements=written,
                inner=abs(node.shape[-1]),
            )
        )
        return
    if family == "fill":
        state.kernels.append(Kernel(family, (node.name,), out_elements=written))
        return
    if family == "copy":
        state.add(family, state.floats, node.name, written, written)
        return
    area, stride = _window(node) if family == "pool" and "adaptive" not in node.op else (1, 1)
    last = abs(node.shape[-1]) if family in ROW_BY_ROW and node.shape else 1
    state.kernels.append(
        Kernel(
            f"{family}_{state.floats}",
            (node.name,),
            in_elements=read,
            out_elements=written,
            kernel_area=area,
            stride=stride,
            inner=last,
        )
    )
