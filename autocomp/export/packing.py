"""How one weight tensor is stored in an ONNX file, plain or packed, and how many bytes that takes.

Packed weights are expanded by ordinary ONNX operators that depend on initializers only. A runtime that folds constants
(onnxruntime does, when the file is loaded) is left with one int8 or float initializer, so that the file is small and
the layers run as those of a plain file do. The expansion is written once, as model-local functions; a layer costs one
call of them:

    Levels(v, s) {axis}                levels in 8, 4 or 2 bits and scales → float weights
    Spread(m, v) {shape}               bit mask and kept values → the tensor with zeros where the mask has none
    SpreadLevels(m, v, s) {shape, axis}  both

Weights that no integer kernel reads are levels times scale (``Cast``, ``Mul``), which onnxruntime folds into floats; a
``DequantizeLinear`` that feeds no integer kernel it leaves in the graph and runs every time. Weights of ``MatMulInteger``
and ``Gather`` stay integers.

Two things are not obvious. ``INT4`` and ``INT2`` go through a ``Cast`` to int8, because onnxruntime does not fuse a
``DequantizeLinear`` that reads them. And the zero points are spelled out although they are all zero, because
onnxruntime fuses a ``Gemm`` into ``QGemm`` only where its weight has them; the functions make them, a plain file
stores them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx.parser
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, helper

from autocomp.errors import ExportError

Form = Literal["plain", "dense", "sparse"]
FunctionKind = Literal["Levels", "Spread", "SpreadLevels"]
#: What the graph is given: floats behind a ``DequantizeLinear``, floats that fold, or the int8 levels themselves.
Use = Literal["dequantized", "floats", "levels"]
Array: TypeAlias = npt.NDArray[np.int8] | npt.NDArray[np.float32]

#: Short, because every call repeats it.
DOMAIN = "ac"

_TYPES = {32: TensorProto.FLOAT, 8: TensorProto.INT8, 4: TensorProto.INT4, 2: TensorProto.INT2}
#: The operators of the functions need 18, an INT4 tensor 21, an INT2 tensor 25.
_PACKED_OPSETS = {32: 18, 8: 18, 4: 21, 2: 25}
#: From here up to opset 25, GroupNormalization is the only operator whose inputs change their meaning.
_OLDEST_RAISED_OPSET = 20
#: Forms are compared for a name of this length, so that the form depends on the numbers and not on the layer's name.
_NOMINAL_NAME_BYTES = 24

#: In ONNX's textual syntax. Tensor names are local to a function, so that one letter does.
_BODIES: dict[FunctionKind, str] = {
    "Levels": f"""<axis> (v, s) => (y) {{
        h = Shape (s)
        z = ConstantOfShape <value = int8[1] {{0}}> (h)
        i = Cast <to = {TensorProto.INT8}> (v)
        y = DequantizeLinear <axis: int = @axis> (i, s, z)
    }}""",
    # A kept weight's place in v is the number of kept ones up to it; a pruned one's is 0, where v holds a zero.
    # NonZero and ScatterND would be shorter, and onnxruntime does not fold them.
    "Spread": f"""<shape> (m, v) => (y) {{
        h = Constant <value_ints: ints = @shape> ()
        b = Constant <value = uint8[8] {{1, 2, 4, 8, 16, 32, 64, 128}}> ()
        z = Constant <value_ints = [0]> ()
        l = Constant <value_ints = [-1]> ()
        a = BitwiseAnd (m, b)
        u = Reshape (a, l)
        c = Cast <to = {TensorProto.BOOL}> (u)
        d = Cast <to = {TensorProto.INT32}> (c)
        f = CumSum (d, z)
        g = Mul (d, f)
        j = Gather (v, g)
        p = ReduceProd (h)
        i = Slice (j, z, p)
        y = Reshape (i, h)
    }}""",
    # The cast comes first: onnxruntime gathers no INT4 or INT2.
    "SpreadLevels": f"""<shape, axis> (m, v, s) => (y) {{
        i = Cast <to = {TensorProto.INT8}> (v)
        j = {DOMAIN}.Spread <shape: ints = @shape> (m, i)
        y = {DOMAIN}.Levels <axis: int = @axis> (j, s)
    }}""",
}


@dataclass(frozen=True, eq=False)
class StoredWeight:
    """One weight tensor as it is to be stored.

    ``values``: int8 levels for 8, 4 and 2 bits, float32 for 32; any shape of at least one dimension, none of them 0.
    ``scale``: float32, shape (``values.shape[axis]``,), the step between two levels of a channel; None for 32 bits.
    ``kept``: bool, the shape of ``values``; where it is False the weight is pruned and its value 0. None = not pruned.
    ``use``: what is made of the levels; for ``levels`` the scale is somebody else's and None here.

    Raises:
        ExportError: the arrays do not fit each other, or a level does not fit the bits.
    """

    values: Array
    bits: int
    scale: npt.NDArray[np.float32] | None = None
    axis: int = 0
    kept: npt.NDArray[np.bool_] | None = None
    use: Use = "dequantized"

    def __post_init__(self) -> None:
        _check(self.values.shape, self.bits, None, self.axis)
        dtype = np.float32 if self.bits == 32 else np.int8
        if self.values.dtype != dtype:
            raise ExportError(f"weights of {self.bits} bits must be {np.dtype(dtype)}; got {self.values.dtype}")
        given = None if self.scale is None else (self.scale.dtype.name, self.scale.shape)
        scaled = self.bits != 32 and self.use != "levels"
        asked = ("float32", (self.values.shape[self.axis],)) if scaled else None
        if given != asked:
            raise ExportError(f"the scale of these {self.bits}-bit weights must be {asked}; got {given}")
        low, high, limit = self.values.min(), self.values.max(), 1 << (self.bits - 1)
        if self.bits != 32 and (low < -limit or high >= limit):
            raise ExportError(f"{self.bits}-bit levels lie in [{-limit}, {limit - 1}]; got [{low}, {high}]; clip them")
        if self.kept is not None and (self.kept.dtype != np.bool_ or self.kept.shape != self.values.shape):
            raise ExportError(f"kept must be bool {self.values.shape}; got {self.kept.dtype} {self.kept.shape}")
        if self.kept is not None and np.any(self.values[~self.kept]):
            raise ExportError("a pruned weight must be 0; got another value where kept is False; apply the mask")


@dataclass(frozen=True)
class Encoded:
    """What defines one tensor when appended to a graph of at least such an opset; the functions once a model, whoever
    needs them."""

    nodes: tuple[NodeProto, ...]
    initializers: tuple[TensorProto, ...]
    functions: tuple[FunctionProto, ...]
    opset: int


@dataclass(frozen=True)
class Footprint:
    """How a weight is stored and what that costs.

    ``data_bytes``: raw data of its tensors (values, mask, scales, zero points). ``graph_bytes``: what it adds to the
    serialized GraphProto, data included. ``functions``: what it needs of the model, see :func:`function_bytes`.
    """

    form: Form
    data_bytes: int
    graph_bytes: int
    functions: tuple[FunctionKind, ...]


@dataclass(frozen=True)
class _Slot:
    """One initializer: everything about it but the data."""

    suffix: str
    data_type: int
    dims: tuple[int, ...]
    data_bytes: int


def encode(name: str, weight: StoredWeight, packed: bool) -> Encoded:
    """Nodes, initializers and functions that define the tensor ``name`` of the shape of ``weight.values``: float32, or
    int8 where the levels themselves are used.

    The helper tensors are called ``name`` + ``.v``, ``.s``, ``.z``, ``.m``, ``.i`` and ``.j``. The nodes depend on
    initializers only: put them before the graph's own (:func:`install` does). Same weight, same bytes.
    """
    shape = weight.values.shape
    kept_count = None if weight.kept is None else int(np.count_nonzero(weight.kept))
    form = chosen_form(shape, weight.bits, kept_count, packed, weight.axis, weight.use)
    data: dict[str, bytes] = {}
    if weight.scale is not None:
        data[".s"], data[".z"] = _pack(weight.scale, 32), bytes(weight.scale.size)
    if form == "sparse" and weight.kept is not None:
        # The first value stands for all the pruned ones: see Spread.
        values = np.concatenate([np.zeros(1, weight.values.dtype), weight.values[weight.kept]])
        data[".m"] = np.packbits(weight.kept.reshape(-1), bitorder="little").tobytes()
        data[".v"] = _pack(values, weight.bits)
    else:
        bits = 8 if form == "plain" and weight.bits != 32 else weight.bits
        bare = bits == 32 or (weight.use == "levels" and bits == 8)
        data["" if bare else ".v"] = _pack(weight.values.reshape(-1), bits)
    opset = required_opset(weight.bits, packed)
    return Encoded(
        nodes=_nodes(name, shape, weight.axis, weight.bits, form, weight.use),
        initializers=tuple(
            TensorProto(dims=slot.dims, data_type=slot.data_type, name=name + slot.suffix, raw_data=data[slot.suffix])
            for slot in _slots(shape, weight.axis, weight.bits, kept_count or 0, form, weight.use)
        ),
        functions=tuple(_function(kind, opset) for kind in _functions_needed(weight.bits, form, weight.use)),
        opset=opset,
    )


def install(model: ModelProto, encoded: Sequence[Encoded]) -> None:
    """Append to ``model``, in place, what defines the tensors: each function once, the opset raised where needed.

    The tensors' names must be free: take the initializers they stand for out of the graph first.

    Raises:
        ExportError: a name is taken, or the model's opset cannot be raised (:func:`raise_opset`).
    """
    graph = model.graph
    taken = {tensor.name for tensor in graph.initializer} | {out for node in graph.node for out in node.output}
    for one in encoded:
        for name in (*(t.name for t in one.initializers), *(out for node in one.nodes for out in node.output)):
            if name in taken:
                raise ExportError(f"a graph's tensor names are unique; {name!r} is taken; remove its initializer first")
            taken.add(name)
    functions = {function.name: function for one in encoded for function in one.functions}
    raise_opset(model, max((one.opset for one in encoded), default=1))
    own = list(graph.node)
    del graph.node[:]
    graph.node.extend([node for one in encoded for node in one.nodes] + own)
    graph.initializer.extend(tensor for one in encoded for tensor in one.initializers)
    present = {function.name for function in model.functions if function.domain == DOMAIN}
    model.functions.extend(functions[name] for name in sorted(functions.keys() - present))
    _set_opset(model, _opset(model))
    if functions and all(entry.domain != DOMAIN for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))


def raise_opset(model: ModelProto, opset: int) -> None:
    """Raise, in place, the model's opset to at least ``opset`` (at most 25) and its IR version to what that asks for.

    Only numbers change. From opset 20 on that is right for every operator but GroupNormalization, whose scale and bias
    opset 21 takes per channel instead of per group; ``onnx.version_converter`` leaves all others as they are, too.

    Raises:
        ExportError: the model's opset is below 20, or it holds a GroupNormalization from before 21.
    """
    current = _opset(model)
    nodes = (node for holder in (model.graph, *model.functions) for node in holder.node)
    old_groups = any(node.op_type == "GroupNormalization" and not node.domain for node in nodes)
    oldest = 21 if old_groups else _OLDEST_RAISED_OPSET
    if current < min(oldest, opset):
        raise ExportError(f"this model's opset can be raised from {oldest} on; got {current}; export it with {oldest}")
    _set_opset(model, max(current, opset))
    model.ir_version = max(model.ir_version, required_ir_version(opset))


def required_opset(bits: int, packed: bool) -> int:
    """The lowest opset of ONNX's own operators that knows what :func:`encode` writes."""
    return _PACKED_OPSETS[bits] if packed else 13  # DequantizeLinear with an axis


def required_ir_version(opset: int) -> int:
    """The IR version that goes with an opset: 8 for 18 (functions), 10 for 21 (INT4), 13 for 25 (INT2)."""
    return int(helper.find_min_ir_version_for([helper.make_opsetid("", opset)]))


@lru_cache(maxsize=1 << 16)
def chosen_form(
    shape: tuple[int, ...], bits: int, kept_count: int | None, packed: bool, axis: int = 0, use: Use = "dequantized"
) -> Form:
    """The smaller form, the dense one where they tie: a function of the numbers alone, never of the values.

    The functions' own bytes, paid once a model, are left out of the comparison.
    """
    _check(shape, bits, kept_count, axis)
    if not packed:
        return "plain"
    if kept_count is None:
        return "dense"
    dense = _graph_bytes(_NOMINAL_NAME_BYTES, shape, axis, bits, 0, "dense", use)
    sparse = _graph_bytes(_NOMINAL_NAME_BYTES, shape, axis, bits, kept_count, "sparse", use)
    return "sparse" if sparse < dense else "dense"


@lru_cache(maxsize=1 << 16)
def footprint(
    name: str,
    shape: tuple[int, ...],
    bits: int,
    kept_count: int | None,
    packed: bool,
    axis: int = 0,
    use: Use = "dequantized",
) -> Footprint:
    """What :func:`encode` of such a weight will cost, exactly, without its values.

    ``kept_count`` is the number of weights that are not pruned; None where there is no mask.

    Raises:
        ExportError: the bits are not offered, the axis is not one of the shape's, or more are kept than there are.
    """
    form = chosen_form(shape, bits, kept_count, packed, axis, use)
    data_bytes = sum(slot.data_bytes for slot in _slots(shape, axis, bits, kept_count or 0, form, use))
    graph_bytes = _graph_bytes(len(name.encode()), shape, axis, bits, kept_count or 0, form, use)
    return Footprint(form, data_bytes, graph_bytes, _functions_needed(bits, form, use))


def stored_bytes(shape: tuple[int, ...], bits: int, kept_count: int | None, packed: bool, axis: int = 0) -> int:
    """Raw data in bytes: values, mask, scales and zero points, without the names and framing around them."""
    return footprint("", shape, bits, kept_count, packed, axis).data_bytes


def encoded_bytes(
    name: str, shape: tuple[int, ...], bits: int, kept_count: int | None, packed: bool, axis: int = 0
) -> int:
    """What the weight adds to the serialized GraphProto, in bytes.

    A file is its own fields, :func:`field_bytes` of the whole graph, and :func:`function_bytes` of the functions that
    its weights need together.
    """
    return footprint(name, shape, bits, kept_count, packed, axis).graph_bytes


def function_bytes(kinds: Iterable[FunctionKind]) -> int:
    """What functions add to the serialized ModelProto, in bytes, the import of their domain included."""
    needed = set(kinds)
    domain = field_bytes(helper.make_opsetid(DOMAIN, 1).ByteSize()) if needed else 0
    return domain + sum(_function_field_bytes(kind) for kind in needed)


def field_bytes(payload_bytes: int) -> int:
    """A length-delimited protobuf field of a number below 16: tag, length (7 bits a byte), payload."""
    return 1 + _varint_bytes(payload_bytes) + payload_bytes


def _check(shape: tuple[int, ...], bits: int, kept_count: int | None, axis: int) -> None:
    if bits not in _TYPES:
        raise ExportError(f"weights are stored in one of {', '.join(map(str, _TYPES))} bits; got {bits}")
    if not shape or min(shape) < 1:
        raise ExportError(f"a stored weight needs at least one dimension, none of them 0; got {shape}")
    if not 0 <= axis < len(shape):
        raise ExportError(f"the channel axis must lie in [0, {len(shape) - 1}]; got {axis}")
    if kept_count is not None and not 0 <= kept_count <= math.prod(shape):
        raise ExportError(f"the weights kept must lie in [0, {math.prod(shape)}]; got {kept_count}")


def _pack(flat: Array, bits: int) -> bytes:
    """Values as ONNX's raw data has them: sub-byte levels fill a byte from its lowest bits on, the last one padded."""
    if bits >= 8:
        return flat.astype(flat.dtype.newbyteorder("<"), copy=False).tobytes()
    per_byte = 8 // bits
    levels = np.pad(flat.astype(np.int8).view(np.uint8), (0, -flat.size % per_byte)) & ((1 << bits) - 1)
    shifted = levels.reshape(-1, per_byte) << (np.arange(per_byte, dtype=np.uint8) * bits)
    return bytes(np.bitwise_or.reduce(shifted, axis=1).astype(np.uint8).tobytes())


def _slots(shape: tuple[int, ...], axis: int, bits: int, kept_count: int, form: Form, use: Use) -> tuple[_Slot, ...]:
    count, channels = math.prod(shape), shape[axis]
    if form == "sparse":
        mask_bytes = -(-count // 8)
        slots = [
            _Slot(".m", TensorProto.UINT8, (mask_bytes, 1), mask_bytes),
            _Slot(".v", _TYPES[bits], (kept_count + 1,), -(-(kept_count + 1) * bits // 8)),
        ]
    elif bits == 32:
        slots = [_Slot("", TensorProto.FLOAT, shape, 4 * count)]
    else:
        stored = 8 if form == "plain" else bits
        suffix = "" if use == "levels" and stored == 8 else ".v"
        slots = [_Slot(suffix, _TYPES[stored], shape, -(-count * stored // 8))]
        if form == "plain" and use == "dequantized":
            slots.append(_Slot(".z", TensorProto.INT8, (channels,), channels))
    if bits != 32 and use != "levels":
        spread = (*[1] * axis, channels, *[1] * (len(shape) - axis - 1)) if use == "floats" else (channels,)
        slots.append(_Slot(".s", TensorProto.FLOAT, spread, 4 * channels))
    return tuple(slots)


def _nodes(name: str, shape: tuple[int, ...], axis: int, bits: int, form: Form, use: Use) -> tuple[NodeProto, ...]:
    v, s, z, m, i, j = (name + suffix for suffix in (".v", ".s", ".z", ".m", ".i", ".j"))
    if bits == 32:
        return (helper.make_node("Spread", [m, v], [name], domain=DOMAIN, shape=shape),) if form == "sparse" else ()
    if use == "dequantized":
        if form == "sparse":
            return (helper.make_node("SpreadLevels", [m, v, s], [name], domain=DOMAIN, shape=shape, axis=axis),)
        if form == "plain":
            return (helper.make_node("DequantizeLinear", [v, s, z], [name], axis=axis),)
        return (helper.make_node("Levels", [v, s], [name], domain=DOMAIN, axis=axis),)
    narrow, sparse = bits < 8 and form != "plain", form == "sparse"
    if use == "levels":
        last = v
        nodes = []
        if narrow:
            last = i if sparse else name
            nodes.append(helper.make_node("Cast", [v], [last], to=TensorProto.INT8))
        if sparse:
            nodes.append(helper.make_node("Spread", [m, last], [name], domain=DOMAIN, shape=shape))
        return tuple(nodes)
    nodes = [helper.make_node("Cast", [v], [i], to=TensorProto.FLOAT)]
    if sparse:
        nodes.append(helper.make_node("Spread", [m, i], [j], domain=DOMAIN, shape=shape))
    return (*nodes, helper.make_node("Mul", [j if sparse else i, s], [name]))


def _functions_needed(bits: int, form: Form, use: Use) -> tuple[FunctionKind, ...]:
    if form == "sparse":
        return ("Levels", "Spread", "SpreadLevels") if bits != 32 and use == "dequantized" else ("Spread",)
    return ("Levels",) if form == "dense" and bits != 32 and use == "dequantized" else ()


def _graph_bytes(
    name_bytes: int, shape: tuple[int, ...], axis: int, bits: int, kept_count: int, form: Form, use: Use
) -> int:
    total = _nodes_bytes(name_bytes, shape, axis, bits, form, use)
    for slot in _slots(shape, axis, bits, kept_count, form, use):
        numbers = sum(1 + _varint_bytes(number) for number in (*slot.dims, slot.data_type))
        total += field_bytes(numbers + field_bytes(name_bytes + len(slot.suffix)) + field_bytes(slot.data_bytes))
    return total


@lru_cache(maxsize=1 << 12)
def _nodes_bytes(name_bytes: int, shape: tuple[int, ...], axis: int, bits: int, form: Form, use: Use) -> int:
    return sum(field_bytes(node.ByteSize()) for node in _nodes("n" * name_bytes, shape, axis, bits, form, use))


def _varint_bytes(value: int) -> int:
    return max(1, -(-value.bit_length() // 7))


@lru_cache(maxsize=8)
def _function_field_bytes(kind: FunctionKind) -> int:
    # ModelProto.functions is field 25, whose tag takes two bytes. An opset below 128 takes one, whichever it is.
    return 1 + field_bytes(_function(kind, max(_PACKED_OPSETS.values())).ByteSize())


def _opset(holder: ModelProto | FunctionProto) -> int:
    return next((entry.version for entry in holder.opset_import if entry.domain in ("", "ai.onnx")), 1)


def _set_opset(model: ModelProto, opset: int) -> None:
    for holder in (model, *model.functions):  # a function's opset has to agree with its model's
        for entry in holder.opset_import:
            if entry.domain in ("", "ai.onnx"):
                entry.version = opset


def _function(kind: FunctionKind, opset: int) -> FunctionProto:
    imports = f'"": {opset}, "{DOMAIN}": 1' if kind == "SpreadLevels" else f'"": {opset}'
    return onnx.parser.parse_function(f'<domain: "{DOMAIN}", opset_import: [{imports}]> {kind} {_BODIES[kind]}')
