"""How one weight tensor is stored in an ONNX file, plain or packed, and how many bytes that takes.

Packed weights are expanded by ordinary ONNX operators that depend on initializers only. A runtime that folds constants
(onnxruntime does, when the file is loaded) is left with one int8 or float initializer, so that the file is small and
the layers run as those of a plain file do. The expansion is written once, as model-local functions
(:mod:`autocomp.export.unpacking`); a layer costs one call of them.

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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper

from autocomp.errors import ExportError
from autocomp.export.codes import GAP_BITS, UNSIGNED, Code, Plane, packed_numbers, packed_values, stored_count, table_of
from autocomp.export.opsets import opset_of, raise_opset, set_opset
from autocomp.export.stored import StoredWeight, WeightSpec
from autocomp.export.unpacking import BIAS, DOMAIN, LARGE, Reader, functions

#: The operators of the functions need 18, tensors of 4 bits 21, of 2 bits 25.
_FUNCTION_OPSET = 18
_TYPE_OPSETS: dict[int, int] = {TensorProto.INT4: 21, TensorProto.UINT4: 21, TensorProto.INT2: 25}
#: Forms are compared for a name of this length, so that the form depends on the numbers and not on the layer's name.
_NOMINAL_NAME = "n" * 24


@dataclass(frozen=True)
class Form:
    """``plain``: whole bytes, which any runtime reads. Otherwise packed: all weights, or the kept ones beside a bit mask
    (``gap_bits`` 0) or beside positions with so many low bits."""

    plain: bool
    gap_bits: int | None = None


@dataclass(frozen=True)
class Encoded:
    """What defines one tensor of so many weights when appended to a graph of at least such an opset, and the functions
    that it needs of the model."""

    nodes: tuple[NodeProto, ...]
    initializers: tuple[TensorProto, ...]
    readers: tuple[Reader | str, ...]
    opset: int
    weights: int = 0


@dataclass(frozen=True)
class Footprint:
    """How a weight is stored and what that costs.

    ``data_bytes``: raw data of its tensors. ``graph_bytes``: what it adds to the serialized GraphProto, data included.
    ``readers``: the functions that it needs of the model, see :func:`function_bytes`.
    """

    form: Form
    data_bytes: int
    graph_bytes: int
    readers: tuple[Reader, ...]


@dataclass(frozen=True)
class _Slot:
    """One initializer: everything about it but the data."""

    suffix: str
    data_type: int
    dims: tuple[int, ...]
    data_bytes: int


def encode(name: str, weight: StoredWeight, packed: bool) -> Encoded:
    """Nodes, initializers and functions that define the tensor ``name`` of the weight's shape: float32, or int8 where
    the levels themselves are used.

    The helper tensors are called ``name`` + a dot and a letter. The nodes depend on initializers only: put them before
    the graph's own (:func:`install` does). Same weight, same bytes.
    """
    spec = weight.spec
    form = chosen_form(spec, packed)
    data = _data(weight, form)
    return Encoded(
        nodes=_nodes(name, spec, form),
        initializers=tuple(
            TensorProto(dims=slot.dims, data_type=slot.data_type, name=name + slot.suffix, raw_data=data[slot.suffix])
            for slot in _slots(spec, form)
        ),
        readers=_readers(spec, form),
        opset=required_opset(spec, packed),
        weights=spec.count,
    )


def encode_bias(name: str, halves: npt.NDArray[np.float32], input_step: str, weight_step: str) -> Encoded:
    """The bias of an integer layer from floats of half precision: rounded to whole numbers of the accumulator's steps
    when the file is loaded.

    Args:
        halves: (channels,).
        input_step, weight_step: the tensors whose product the steps are.
    """
    values = TensorProto(
        dims=halves.shape, data_type=TensorProto.FLOAT16, name=f"{name}.v", raw_data=halves.astype("<f2").tobytes()
    )
    node = helper.make_node(BIAS, [f"{name}.v", input_step, weight_step], [name], domain=DOMAIN)
    return Encoded((node,), (values,), (BIAS,), _FUNCTION_OPSET)


def bias_bytes(name: str, channels: int, step: str) -> int:
    """What :func:`encode_bias` adds to the serialized GraphProto, for names of such lengths."""
    encoded = encode_bias(name, np.zeros(channels, np.float32), step, step)
    sizes = [*(node.ByteSize() for node in encoded.nodes), *(tensor.ByteSize() for tensor in encoded.initializers)]
    return sum(map(field_bytes, sizes))


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
    raise_opset(model, max((one.opset for one in encoded), default=1))
    own = list(graph.node)
    del graph.node[:]
    graph.node.extend([node for one in encoded for node in one.nodes] + own)
    graph.initializer.extend(tensor for one in encoded for tensor in one.initializers)
    present = {one.name for one in model.functions if one.domain == DOMAIN}
    large = any(one.weights >= LARGE for one in encoded)
    needed = functions((reader for one in encoded for reader in one.readers), opset_of(model), large)
    model.functions.extend(one for one in needed if one.name not in present)
    set_opset(model, opset_of(model))
    if needed and all(entry.domain != DOMAIN for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))


def required_opset(spec: WeightSpec, packed: bool) -> int:
    """The lowest opset of ONNX's own operators that knows what :func:`encode` writes."""
    form = chosen_form(spec, packed)
    types = max((_TYPE_OPSETS.get(slot.data_type, 1) for slot in _slots(spec, form)), default=1)
    return max(types, _FUNCTION_OPSET if _readers(spec, form) else 13)  # DequantizeLinear with an axis


@lru_cache(maxsize=1 << 16)
def chosen_form(spec: WeightSpec, packed: bool) -> Form:
    """The smallest form, the first where they tie: a function of the numbers alone, never of the values.

    The functions' own bytes, paid once a model, are left out of the comparison.
    """
    if not packed:
        return Form(plain=True)
    forms = []
    if spec.kept_count in (None, spec.count) or spec.code.has_zero:
        forms.append(Form(plain=False))
    if spec.kept_count is not None:
        forms += [Form(plain=False, gap_bits=bits) for bits in (0, *GAP_BITS)]
    return min(forms, key=lambda form: _graph_bytes(_NOMINAL_NAME, spec, form))


@lru_cache(maxsize=1 << 16)
def footprint(name: str, spec: WeightSpec, packed: bool) -> Footprint:
    """What :func:`encode` of such a weight will cost, exactly, without its values."""
    form = chosen_form(spec, packed)
    data_bytes = sum(slot.data_bytes for slot in _slots(spec, form))
    return Footprint(form, data_bytes, _graph_bytes(name, spec, form), _readers(spec, form))


def function_bytes(readers: Iterable[Reader | str], most_weights: int = 0) -> int:
    """What functions add to the serialized ModelProto, in bytes, the import of their domain included.

    Args:
        most_weights: of one tensor.
    """
    opset = max(_TYPE_OPSETS.values())  # one below 128 takes one byte, whichever it is
    needed = functions(readers, opset, most_weights >= LARGE)
    domain = field_bytes(helper.make_opsetid(DOMAIN, 1).ByteSize()) if needed else 0
    # ModelProto.functions is field 25, whose tag takes two bytes.
    return domain + sum(1 + field_bytes(one.ByteSize()) for one in needed)


def field_bytes(payload_bytes: int) -> int:
    """A length-delimited protobuf field of a number below 16: tag, length (7 bits a byte), payload."""
    return 1 + _varint_bytes(payload_bytes) + payload_bytes


def _data(weight: StoredWeight, form: Form) -> dict[str, bytes]:
    """Suffix → raw data."""
    spec = weight.spec
    code = _code(spec, form)
    flat = weight.values.reshape(-1)
    found: dict[str, bytes] = {}
    if weight.scale is not None:
        found[".s"], found[".z"] = weight.scale.astype("<f4").tobytes(), bytes(weight.scale.size)
    if spec.group:
        found[".g"] = (np.arange(spec.along) // spec.group).astype("<i8").tobytes()
        found[".h"] = np.array(spec.shape).astype("<i8").tobytes()
    if form.gap_bits is not None and weight.kept is not None:
        kept = weight.kept.reshape(-1)
        flat = flat[kept]
        found |= _positions(np.flatnonzero(kept), kept.size, form.gap_bits)
    table = table_of(flat.astype(np.int8), code) if code.table_length else None
    if table is not None:
        found[".c"] = table.tobytes()
    names = ("",) if _is_bare_tensor(spec, form) else (".v", ".u")
    found |= dict(zip(names, packed_values(flat, code, table), strict=False))
    return found


def _positions(places: npt.NDArray[np.intp], count: int, gap_bits: int) -> dict[str, bytes]:
    """A bit mask, or the Elias–Fano code of some places among so many."""
    bits = np.zeros(_position_bits(places.size, count, gap_bits), np.bool_)
    if gap_bits == 0:
        bits[places] = True
        return {".m": np.packbits(bits, bitorder="little").tobytes()}
    bits[(places >> gap_bits) + np.arange(places.size)] = True
    low = packed_numbers(places & ((1 << gap_bits) - 1), UNSIGNED[gap_bits])
    return {".m": np.packbits(bits, bitorder="little").tobytes(), **dict(zip((".w", ".x"), low, strict=False))}


def _position_bits(kept: int, count: int, gap_bits: int) -> int:
    return count if gap_bits == 0 else kept + ((count - 1) >> gap_bits)


def _code(spec: WeightSpec, form: Form) -> Code:
    """Plain levels are whole bytes, whatever their code."""
    return Code(8) if form.plain and not spec.code.is_float else spec.code


def _is_bare_tensor(spec: WeightSpec, form: Form) -> bool:
    """Whether the weight is an initializer of its own name."""
    code = _code(spec, form)
    return form.gap_bits is None and (code.bits == 32 or (spec.use == "levels" and code == Code(8)))


def _slots(spec: WeightSpec, form: Form) -> tuple[_Slot, ...]:
    code = _code(spec, form)
    sparse = form.gap_bits is not None
    count = (spec.kept_count or 0) if sparse else spec.count
    names = ("",) if _is_bare_tensor(spec, form) else (".v", ".u")
    slots = [*_plane_slots(names, code.planes, count)]
    if code.is_bare and not sparse:
        (one,) = slots
        slots = [_Slot(one.suffix, one.data_type, spec.shape, one.data_bytes)]
    if code.table_length:
        slots.append(_Slot(".c", TensorProto.INT8, (code.table_length,), code.table_length))
    if form.gap_bits is not None:
        mask_bytes = -(-_position_bits(count, spec.count, form.gap_bits) // 8)
        slots.append(_Slot(".m", TensorProto.UINT8, (mask_bytes, 1), mask_bytes))
        slots += _plane_slots((".w", ".x"), UNSIGNED[form.gap_bits] if form.gap_bits else (), count)
    if spec.scale_shape is not None:
        if form.plain and spec.use == "dequantized":
            slots.append(_Slot(".z", TensorProto.INT8, spec.scale_shape, math.prod(spec.scale_shape)))
        dims = spec.scale_shape
        if spec.use == "floats" and spec.scaling == "channel":
            dims = (*[1] * spec.axis, *dims, *[1] * (len(spec.shape) - spec.axis - 1))
        slots.append(_Slot(".s", TensorProto.FLOAT, dims, 4 * math.prod(dims)))
        if form.plain and spec.scaling == "group":
            slots.append(_Slot(".g", TensorProto.INT64, (spec.along,), 8 * spec.along))
            slots.append(_Slot(".h", TensorProto.INT64, (len(spec.shape),), 8 * len(spec.shape)))
    return tuple(slots)


def _plane_slots(names: Sequence[str], planes: tuple[Plane, ...], count: int) -> Iterator[_Slot]:
    stored = stored_count(count, planes)
    for name, plane in zip(names, planes, strict=False):
        yield _Slot(name, plane.data_type, plane.dims(stored), plane.data_bytes(stored))


def _nodes(name: str, spec: WeightSpec, form: Form) -> tuple[NodeProto, ...]:
    if _is_bare_tensor(spec, form):
        return ()
    code = _code(spec, form)
    v, i, s, z = (name + suffix for suffix in (".v", ".i", ".s", ".z"))
    if form.gap_bits is None and code.is_bare and (code.is_float or spec.use == "levels"):
        to = TensorProto.FLOAT if code.is_float else TensorProto.INT8
        return (helper.make_node("Cast", [v], [name], to=to),)
    readers = _readers(spec, form)
    if readers:
        (reader,) = readers
        # What the bits that fill the last byte stand for lies behind the last weight.
        size = (spec.count + (8 << (form.gap_bits or 0)),)
        given: dict[str, Any] = {"shape": spec.shape, "axis": spec.axis, "along": 1 - spec.axis, "group": spec.group}
        given["size"] = size
        inputs = [slot.suffix for slot in _slots(spec, form)]
        order = [suffix for suffix in (".v", ".u", ".c", ".m", ".w", ".x", ".s") if suffix in inputs]
        chosen = {attribute: given[attribute] for attribute in reader.attributes}
        return (helper.make_node(reader.name, [name + suffix for suffix in order], [name], domain=DOMAIN, **chosen),)
    if spec.use == "dequantized":
        attributes: dict[str, Any] = {"axis": spec.axis} if spec.scaling == "channel" else {}
        return (helper.make_node("DequantizeLinear", [v, s, z], [name], **attributes),)
    cast = helper.make_node("Cast", [v], [i], to=TensorProto.FLOAT)
    if spec.scaling != "group":
        return cast, helper.make_node("Mul", [i, s], [name])
    # As a matrix, whose rows or columns are channels, times the step of each weight's group.
    g, j, k, p, h = (name + suffix for suffix in (".g", ".j", ".k", ".p", ".h"))
    return (
        cast,
        helper.make_node("Flatten", [i], [j], axis=1),
        helper.make_node("Gather", [s, g], [k], axis=1 - spec.axis),
        helper.make_node("Mul", [j, k], [p]),
        helper.make_node("Reshape", [p, h], [name]),
    )


def _readers(spec: WeightSpec, form: Form) -> tuple[Reader, ...]:
    code = _code(spec, form)
    plain_values = form.gap_bits is None and code.is_bare
    if form.plain or (plain_values and (code.is_float or spec.use == "levels")):
        return ()
    return (Reader(code, form.gap_bits, spec.use, spec.scaling),)


def _graph_bytes(name: str, spec: WeightSpec, form: Form) -> int:
    stem = len(name.encode())
    total = _nodes_bytes(stem, spec, form)
    for slot in _slots(spec, form):
        numbers = sum(1 + _varint_bytes(number) for number in (*slot.dims, slot.data_type))
        total += field_bytes(numbers + field_bytes(stem + len(slot.suffix)) + field_bytes(slot.data_bytes))
    return total


@lru_cache(maxsize=1 << 12)
def _nodes_bytes(name_bytes: int, spec: WeightSpec, form: Form) -> int:
    return sum(field_bytes(node.ByteSize()) for node in _nodes("n" * name_bytes, spec, form))


def _varint_bytes(value: int) -> int:
    return max(1, -(-value.bit_length() // 7))
