"""How small whole numbers are stored in few bits: as one or two planes, each a tensor of an ONNX type or of bytes that
hold several numbers.

Runtimes have types of 8 and 4 bits, and of 2 from opset 25 on, which weights of 2 bits alone are worth. What lies
between is a high plane beside a low one; pairs of bits, single bits and numbers of three values lie four, eight and
five to a byte.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from autocomp.errors import ExportError
from autocomp.plan import Grid

Packing = Literal["element", "pairs", "bits", "trits"]
Levels = npt.NDArray[np.int8]

#: Numbers of three values in a byte: 3⁵ = 243.
TRITS = 5
#: Numbers in a byte, of those that are not elements of an ONNX type.
PER_BYTE = MappingProxyType({"pairs": 4, "bits": 8, "trits": TRITS})


@dataclass(frozen=True)
class Plane:
    """One tensor of a code: elements of ``bits`` bits of an ONNX type, or bytes that hold several."""

    data_type: int
    bits: int
    packing: Packing = "element"

    def dims(self, count: int) -> tuple[int, ...]:
        """The tensor's shape for so many numbers: one dimension, or a column of bytes."""
        if self.packing == "element":
            return (count,)
        return (math.ceil(count / PER_BYTE[self.packing]), 1)

    def data_bytes(self, count: int) -> int:
        return math.ceil(self.dims(count)[0] * (self.bits if self.packing == "element" else 8) / 8)


_FLOAT, _HALF = Plane(TensorProto.FLOAT, 32), Plane(TensorProto.FLOAT16, 16)
_INT8, _INT4, _INT2 = Plane(TensorProto.INT8, 8), Plane(TensorProto.INT4, 4), Plane(TensorProto.INT2, 2)
_UINT8, _UINT4 = Plane(TensorProto.UINT8, 8), Plane(TensorProto.UINT4, 4)
_PAIR, _BIT, _TRIT = (
    Plane(TensorProto.UINT8, 2, "pairs"),
    Plane(TensorProto.UINT8, 1, "bits"),
    Plane(TensorProto.UINT8, 2, "trits"),
)

#: Low bits that positions may have. With a single one they would never be smaller than a bit mask.
GAP_BITS = (2, 3, 4, 5, 6, 8)

#: Two planes are of one length, so that they can be joined as they are: the numbers are filled up to a multiple of this.
JOINED = 8

#: Bits → the planes of two's complement numbers, the high one first. One bit is -1 or 1.
SIGNED = MappingProxyType(
    {
        32: (_FLOAT,),
        16: (_HALF,),
        8: (_INT8,),
        6: (_INT4, _PAIR),
        5: (_INT4, _BIT),
        4: (_INT4,),
        3: (_BIT, _PAIR),
        2: (_INT2,),
        1: (_BIT,),
    }
)
#: Bits → the planes of numbers from 0 on: of those that count a table, and of the low bits of positions.
UNSIGNED = MappingProxyType(
    {
        1: (_BIT,),
        2: (_PAIR,),
        3: (_BIT, _PAIR),
        4: (_UINT4,),
        5: (_UINT4, _BIT),
        6: (_UINT4, _PAIR),
        8: (_UINT8,),
    }
)


@dataclass(frozen=True)
class Code:
    """How the values of a weight are stored.

    ``bits``: 32 and 16 are floats. ``grid``: ``uniform`` (two's complement levels; -1 and 1 at one bit), ``ternary``
    (-1, 0 and 1, five to a byte) or ``codebook`` (numbers that count a table of ``2**bits`` levels).

    Raises:
        ExportError: such a code is not offered.
    """

    bits: int
    grid: Grid = "uniform"

    def __post_init__(self) -> None:
        offered = {"uniform": SIGNED, "ternary": (2,), "codebook": range(1, 7)}[self.grid]
        if self.bits not in offered:
            raise ExportError(
                f"{self.grid} weights are stored in one of {', '.join(map(str, offered))} bits; got {self.bits}"
            )

    @property
    def is_float(self) -> bool:
        return self.bits >= 16

    @property
    def planes(self) -> tuple[Plane, ...]:
        if self.grid == "ternary":
            return (_TRIT,)
        return UNSIGNED[self.bits] if self.grid == "codebook" else SIGNED[self.bits]

    @property
    def is_bare(self) -> bool:
        """Whether it is one tensor of an ONNX type, which can have the weight's own shape."""
        return self.grid == "uniform" and len(self.planes) == 1 and self.planes[0].packing == "element"

    @property
    def has_zero(self) -> bool:
        """Whether zero is always among its levels, so that a pruned weight can be stored as one of them."""
        return self.grid == "ternary" or (self.grid == "uniform" and self.bits > 1)

    @property
    def table_length(self) -> int:
        return 1 << self.bits if self.grid == "codebook" else 0

    def check(self, levels: npt.NDArray[np.generic]) -> None:
        """Raises:
        ExportError: the levels are of another type, or one is not of this code.
        """
        dtype = np.float32 if self.is_float else np.int8
        if levels.dtype != dtype:
            raise ExportError(f"weights of {self.bits} bits must be {np.dtype(dtype)}; got {levels.dtype}")
        if self.is_float or not levels.size:
            return
        low, high = int(levels.min()), int(levels.max())
        if self.grid == "codebook":
            found = len(np.unique(levels))
            if found > self.table_length:
                raise ExportError(f"a codebook of {self.bits} bits holds {self.table_length} levels; got {found}")
            return
        lowest, highest = (-1, 1) if self.bits == 1 or self.grid == "ternary" else _range(self.bits)
        if low < lowest or high > highest:
            raise ExportError(f"{self.bits}-bit levels lie in [{lowest}, {highest}]; got [{low}, {high}]; clip them")
        if self.bits == 1 and not levels.all():
            raise ExportError("levels of one bit are -1 and 1; got 0; prune what is to be 0")


def stored_count(count: int, planes: tuple[Plane, ...]) -> int:
    """How many numbers planes hold for so many."""
    return count if len(planes) == 1 else math.ceil(count / JOINED) * JOINED


def _range(bits: int) -> tuple[int, int]:
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def table_of(levels: Levels, code: Code) -> Levels:
    """The different levels in order, filled up with the last."""
    found = np.unique(levels).astype(np.int8)
    found = found if found.size else np.zeros(1, np.int8)
    return np.concatenate([found, np.full(code.table_length - found.size, found[-1])])


def packed_values(values: npt.NDArray[np.generic], code: Code, table: Levels | None) -> tuple[bytes, ...]:
    """The raw data of a code's planes.

    Args:
        values: flat, as :meth:`Code.check` wants them.
        table: of :func:`table_of`, where the code has one.
    """
    if code.bits == 32:
        return (values.astype("<f4").tobytes(),)
    if code.bits == 16:
        return (values.astype("<f2").tobytes(),)
    numbers = values.astype(np.int16)
    if code.grid == "ternary":
        return (_trits(numbers),)
    if table is not None:
        return packed_numbers(np.searchsorted(np.unique(table), values), code.planes)
    return packed_numbers((numbers > 0) if code.bits == 1 else numbers, code.planes)


def packed_numbers(numbers: npt.NDArray[np.generic], planes: tuple[Plane, ...]) -> tuple[bytes, ...]:
    """Whole numbers as the planes' raw data; of negative ones the two's complement."""
    rest = numbers.astype(np.int16)
    if len(planes) == 1:
        return (_plane(rest, planes[0]),)
    high, low = planes
    rest = np.pad(rest, (0, stored_count(rest.size, planes) - rest.size))
    return _plane(rest >> low.bits, high), _plane(rest & ((1 << low.bits) - 1), low)


def _plane(numbers: npt.NDArray[np.int16], plane: Plane) -> bytes:
    """ONNX's raw data: narrow elements fill a byte from its lowest bits on, the last one padded."""
    per_byte = 8 // plane.bits
    kept = (numbers & ((1 << plane.bits) - 1)).astype(np.uint8)
    padded = np.pad(kept, (0, -kept.size % per_byte)).reshape(-1, per_byte)
    shifted = padded << (np.arange(per_byte, dtype=np.uint8) * plane.bits)
    return bytes(np.bitwise_or.reduce(shifted, axis=1).astype(np.uint8).tobytes())


def _trits(numbers: npt.NDArray[np.int16]) -> bytes:
    digits = np.pad(numbers + 1, (0, -numbers.size % TRITS)).reshape(-1, TRITS)
    return bytes((digits * 3 ** np.arange(TRITS)).sum(axis=1).astype(np.uint8).tobytes())
