"""The model-local ONNX functions that make weights of what is stored of them, each written once a model.

One letter stands for each of the small ones, which the others call:

    B(m)                 bytes → eight booleans each
    C(m)                 bytes → four numbers from 0 to 3 each
    T(m)                 bytes → five numbers each, -1, 0 or 1
    J(h, l) {shift}      high and low planes → numbers of 8 bits
    M(m, v, z)           bit mask, kept values and 0 → values with zeros where the mask has none
    G(m, w, v, z) {base, size} positions, kept values and 0 → as many values with zeros between
    A(v, x, w)           a bias in half precision, steps of input and weight → one in whole steps of the accumulator

Positions are stored as P. Elias ("Efficient storage and retrieval by content and address of static files", 1974) and
R. Fano have it: the low bits of each as they are (``w``), the gaps between the rest in unary (``m``), which is within
half a bit a weight of what is possible, and whose length depends on the numbers of weights and of kept ones alone.

A runtime that folds constants evaluates all of this when it loads the file, and copies every result that it folds: few
and narrow ones between are what makes it fast. Three operators do not fold or take ten times as long in onnxruntime, and
are avoided: ``NonZero``, ``Compress``, and ``Gather`` of single values, for which ``GatherElements`` stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import onnx.parser
from onnx import FunctionProto, TensorProto

from autocomp.export.codes import UNSIGNED, Code, Plane

#: What the graph is given: floats behind a ``DequantizeLinear``, floats that fold, or the int8 levels themselves.
Use = Literal["dequantized", "floats", "levels"]
#: How many steps there are: one for the tensor, one for each channel, one for each group of weights of a channel.
Scaling = Literal["tensor", "channel", "group"]

#: Short, because every call repeats it.
DOMAIN = "ac"

_INT8, _INT32, _UINT8 = TensorProto.INT8, TensorProto.INT32, TensorProto.UINT8
_FLOAT, _BOOL = TensorProto.FLOAT, TensorProto.BOOL

#: The small function that makes biases.
BIAS = "A"

_PRIMITIVES = {
    BIAS: f"""(v, x, w) => (y) {{
        m = Mul (x, w)
        f = Cast <to = {_FLOAT}> (v)
        q = Div (f, m)
        r = Round (q)
        i = Cast <to = {_INT32}> (r)
        y = DequantizeLinear <axis = 0> (i, m)
    }}""",
    "B": f"""(m) => (y) {{
        b = Constant <value = uint8[8] {{1, 2, 4, 8, 16, 32, 64, 128}}> ()
        a = BitwiseAnd (m, b)
        c = Cast <to = {_BOOL}> (a)
        f = Constant <value_ints = [-1]> ()
        y = Reshape (c, f)
    }}""",
    "C": """(m) => (y) {
        s = Constant <value = uint8[4] {0, 2, 4, 6}> ()
        a = BitShift <direction = "RIGHT"> (m, s)
        b = Constant <value = uint8 {3}> ()
        c = BitwiseAnd (a, b)
        f = Constant <value_ints = [-1]> ()
        y = Reshape (c, f)
    }""",
    "T": f"""(m) => (y) {{
        s = Constant <value_int = 0> ()
        e = Constant <value_int = 243> ()
        o = Constant <value_int = 1> ()
        r = Range (s, e, o)
        l = Constant <value_ints = [-1, 1]> ()
        c = Reshape (r, l)
        b = Constant <value = int64[5] {{1, 3, 9, 27, 81}}> ()
        a = Div (c, b)
        t = Constant <value_int = 3> ()
        x = Mod (a, t)
        w = Sub (x, o)
        g = Cast <to = {_INT8}> (w)
        i = Cast <to = {_INT32}> (m)
        j = Gather (g, i)
        f = Constant <value_ints = [-1]> ()
        y = Reshape (j, f)
    }}""",
    "J": f"""<shift> (h, l) => (y) {{
        c = Constant <value_int: int = @shift> ()
        s = Cast <to = {_UINT8}> (c)
        u = Cast <to = {_UINT8}> (h)
        a = BitShift <direction = "LEFT"> (u, s)
        y = BitwiseOr (a, l)
    }}""",
    # A weight's place in v is the number of kept ones up to it. A pruned one finds the value of another there, and is cut.
    "M": f"""(m, v, z) => (y) {{
        b = {DOMAIN}.B (m)
        d = Cast <to = {_INT32}> (b)
        f = CumSum (d, z)
        o = CastLike (z, v)
        w = Concat <axis = 0> (o, v)
        g = GatherElements <axis = 0> (w, f)
        c = CastLike (b, v)
        y = Mul (g, c)
    }}""",
    # Every one among the bits is a kept weight, and every zero before it a step of base; a zero adds nothing wherever.
    # What M does stands here again, so that one sum serves both the values and the low bits.
    "G": f"""<base, size> (m, w, v, z) => (y) {{
        b = {DOMAIN}.B (m)
        d = Cast <to = {_INT32}> (b)
        f = CumSum (d, z)
        i = CastLike (z, w)
        j = Concat <axis = 0> (i, w)
        l = GatherElements <axis = 0> (j, f)
        o = CastLike (z, v)
        q = Concat <axis = 0> (o, v)
        p = GatherElements <axis = 0> (q, f)
        c = CastLike (b, v)
        t = Mul (p, c)
        n = Not (b)
        e = Cast <to = {_INT32}> (n)
        g = CumSum (e, z)
        h = Constant <value_ints: ints = @base> ()
        r = CastLike (h, e)
        k = Mul (g, r)
        x = Add (k, l)
        s = Constant <value_ints: ints = @size> ()
        a = Expand (o, s)
        y = ScatterElements <axis = 0, reduction = "add"> (a, x, t)
    }}""",
}

#: From so many weights on, bytes become bits by rows of a table: in a third of the time, for 230 bytes more.
LARGE = 2**20
_BITS_OF_MANY = f"""(m) => (y) {{
    s = Constant <value_int = 0> ()
    e = Constant <value_int = 256> ()
    o = Constant <value_int = 1> ()
    r = Range (s, e, o)
    u = Cast <to = {_UINT8}> (r)
    l = Constant <value_ints = [-1, 1]> ()
    c = Reshape (u, l)
    b = Constant <value = uint8[8] {{1, 2, 4, 8, 16, 32, 64, 128}}> ()
    a = BitwiseAnd (c, b)
    t = Cast <to = {_BOOL}> (a)
    i = Cast <to = {_INT32}> (m)
    j = Gather (t, i)
    f = Constant <value_ints = [-1]> ()
    y = Reshape (j, f)
}}"""


@dataclass(frozen=True)
class Reader:
    """The function that reads weights which are stored in one way.

    ``gap_bits``: how many low bits of the positions are stored; 0 where there is a bit mask, None where all weights are
    stored. Its inputs are the code's planes, its table, mask or positions, and the scale.
    """

    code: Code
    gap_bits: int | None
    use: Use
    scaling: Scaling

    @property
    def name(self) -> str:
        where = {None: "", 0: "m"}.get(self.gap_bits, f"g{self.gap_bits}")
        how = "" if self.code.is_float or self.use == "levels" else self.scaling[0]
        return f"{where}{self.code.grid[0]}{self.code.bits}{self.use[0]}{how}"

    @property
    def has_shape(self) -> bool:
        return self.gap_bits is not None or not self.code.is_bare

    @property
    def attributes(self) -> tuple[str, ...]:
        found = ["shape"] if self.has_shape else []
        if self.gap_bits:
            found.append("size")
        if self.use == "dequantized" and self.scaling == "channel":
            found.append("axis")
        return (*found, "along", "group") if self.grouped else tuple(found)

    @property
    def grouped(self) -> bool:
        return self.scaling == "group" and self.use == "floats" and not self.code.is_float

    @property
    def primitives(self) -> tuple[str, ...]:
        """The small functions that it calls, those that they call included."""
        text = "".join(self._lines())
        found = {name for name in _PRIMITIVES if f"{DOMAIN}.{name} " in text}
        if found & {"G", "M"}:
            found.add("B")
        return tuple(sorted(found))

    @property
    def text(self) -> str:
        """In ONNX's textual syntax. Tensor names are local to a function, so that one or two letters do."""
        head = f"<{', '.join(self.attributes)}> " if self.attributes else ""
        return f"{head}({', '.join(self._inputs())}) => (y) {{\n{chr(10).join(self._lines())}\n}}"

    def _inputs(self) -> Iterator[str]:
        yield from "vu"[: len(self.code.planes)]
        if self.code.table_length:
            yield "c"
        if self.gap_bits is not None:
            yield "m"
            if self.gap_bits:
                yield from "wx"[: len(UNSIGNED[self.gap_bits])]
        if not self.code.is_float and self.use != "levels":
            yield "s"

    def _lines(self) -> Iterator[str]:
        yield from self._values()
        if self.has_shape:
            yield from ("h = Constant <value_ints: ints = @shape> ()", "n = ReduceProd (h)")
            yield "z = Constant <value_ints = [0]> ()"
        if self.gap_bits is None:
            last = "e" if self.code.is_bare else "f"
            if not self.code.is_bare:
                yield "f = Slice (e, z, n)"
        elif self.gap_bits == 0:
            yield from (f"q = {DOMAIN}.M (m, e, z)", "f = Slice (q, z, n)")
            last = "f"
        else:
            yield from _numbers("w", "x", UNSIGNED[self.gap_bits], "k")
            yield f"i = Cast <to = {_INT32}> (k)"
            yield f"q = {DOMAIN}.G <base = [{1 << self.gap_bits}], size: ints = @size> (m, i, e, z)"
            yield "f = Slice (q, z, n)"
            last = "f"
        if self.has_shape:
            yield f"r = Reshape ({last}, h)"
            last = "r"
        yield from self._scaled(last)

    def _values(self) -> Iterator[str]:
        """Lines that give the values, flat or in the weight's own shape, as ``e``."""
        code = self.code
        if code.grid == "ternary":
            yield f"e = {DOMAIN}.T (v)"
        elif code.is_float:
            yield f"e = Cast <to = {_FLOAT}> (v)"
        elif code.grid == "codebook":
            yield from _numbers("v", "u", code.planes, "a")
            yield f"b = Cast <to = {_INT32}> (a)"
            yield "e = GatherElements <axis = 0> (c, b)"
        elif code.bits == 1:
            yield f"a = {DOMAIN}.B (v)"
            yield from _chosen("a", 1, 255, "b")
            yield f"e = Cast <to = {_INT8}> (b)"
        else:
            yield from _numbers("v", "u", code.planes, "a", signed=True)
            yield f"e = Cast <to = {_INT8}> (a)"

    def _scaled(self, last: str) -> Iterator[str]:
        if self.code.is_float or self.use == "levels":
            yield f"y = Identity ({last})"
        elif self.use == "dequantized":
            yield from ("o = Shape (s)", "t = ConstantOfShape <value = int8[1] {0}> (o)")
            axis = " <axis: int = @axis>" if self.scaling == "channel" else ""
            yield f"y = DequantizeLinear{axis} ({last}, s, t)"
        elif self.grouped:
            yield f"l = Cast <to = {_FLOAT}> ({last})"
            yield from _grouped_lines()
        else:
            yield from (f"l = Cast <to = {_FLOAT}> ({last})", "y = Mul (l, s)")


def _grouped_lines() -> Iterator[str]:
    """Floats ``l`` as a matrix, whose rows or columns are channels, times a scale ``s`` for each group of the others."""
    yield "A = Constant <value_ints = [0, -1]> ()"
    yield "B = Reshape (l, A)"
    yield "C = Shape (B)"
    yield "D = Constant <value_int: int = @along> ()"
    yield "E = Gather (C, D)"
    yield "F = Constant <value_int = 0> ()"
    yield "G = Constant <value_int = 1> ()"
    yield "H = Range (F, E, G)"
    yield "I = Constant <value_int: int = @group> ()"
    yield "J = Div (H, I)"
    yield "K = Gather <axis: int = @along> (s, J)"
    yield "L = Mul (B, K)"
    yield "M = Shape (l)"
    yield "y = Reshape (L, M)"


def _numbers(high: str, low: str, planes: tuple[Plane, ...], result: str, signed: bool = False) -> Iterator[str]:
    """Lines that give the numbers of one or two planes in 8 bits."""
    if len(planes) == 1:
        yield from _plane(high, planes[0], result, signed)
        return
    yield from _plane(high, planes[0], f"{result}h", signed)
    yield from _plane(low, planes[1], f"{result}l", signed=False)
    yield f"{result} = {DOMAIN}.J <shift = {planes[1].bits}> ({result}h, {result}l)"


def _plane(name: str, plane: Plane, result: str, signed: bool) -> Iterator[str]:
    if plane.packing == "element":
        yield f"{result} = Cast <to = {_INT8 if signed else _UINT8}> ({name})"
    elif plane.packing == "pairs":
        yield f"{result} = {DOMAIN}.C ({name})"
    else:
        yield f"{result}b = {DOMAIN}.B ({name})"
        if signed:
            yield from _chosen(f"{result}b", 255, 0, result)
        else:
            yield f"{result} = Cast <to = {_UINT8}> ({result}b)"


def _chosen(where: str, one: int, other: int, result: str) -> Iterator[str]:
    """Bytes: one where a boolean holds, the other where not."""
    yield f"{result}x = Constant <value = uint8 {{{one}}}> ()"
    yield f"{result}y = Constant <value = uint8 {{{other}}}> ()"
    yield f"{result} = Where ({where}, {result}x, {result}y)"


@lru_cache(maxsize=256)
def function(name: str, text: str, opset: int) -> FunctionProto:
    """A function of :data:`DOMAIN` from its text."""
    imports = f'"": {opset}, "{DOMAIN}": 1' if f"{DOMAIN}." in text else f'"": {opset}'
    return onnx.parser.parse_function(f'<domain: "{DOMAIN}", opset_import: [{imports}]> {name} {text}')


def functions(readers: Iterable[Reader | str], opset: int, large: bool) -> tuple[FunctionProto, ...]:
    """Those of some readers, and the small ones that they call or that are named, in a fixed order.

    Args:
        large: whether one of the tensors has :data:`LARGE` weights or more.
    """
    asked = set(readers)
    chosen = sorted((one for one in asked if isinstance(one, Reader)), key=lambda reader: reader.name)
    small = {name for reader in chosen for name in reader.primitives} | {one for one in asked if isinstance(one, str)}
    texts = _PRIMITIVES | {"B": _BITS_OF_MANY} if large else _PRIMITIVES
    return (
        *(function(name, texts[name], opset) for name in sorted(small)),
        *(function(reader.name, reader.text, opset) for reader in chosen),
    )
