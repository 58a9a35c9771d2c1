"""How tensors lie in memory in onnxruntime on a CPU, and what it costs to have them in another form."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache

from autocomp.graph import Graph, Node
from autocomp.hardware.kernels import Kernel


@dataclass(frozen=True, eq=False)
class Form:
    """How a tensor lies in memory: float or 8-bit; ``nchw``, ``nchwc`` or ``nhwc``. There is one of each, below, so that
    the same form is the same object."""

    quantized: bool
    layout: str


FLOAT = Form(False, "nchw")
FLOAT_LAST = Form(False, "nhwc")
BLOCKED = Form(False, "nchwc")
INTEGER = Form(True, "nchw")
INTEGER_LAST = Form(True, "nhwc")

#: The conversions that there are, one kernel each. Where two ways are as long, the first one listed is gone.
_STEPS = {
    (BLOCKED, FLOAT): "reorder_output",
    (FLOAT, BLOCKED): "reorder_input",
    (FLOAT, INTEGER): "quantize",
    (INTEGER, FLOAT): "dequantize",
    (INTEGER, INTEGER_LAST): "transpose_integer",
    (INTEGER_LAST, INTEGER): "transpose_integer",
    (INTEGER_LAST, FLOAT_LAST): "dequantize",
    (FLOAT_LAST, INTEGER_LAST): "quantize",
    (FLOAT_LAST, FLOAT): "transpose",
}


@cache
def _way(have: tuple[Form, ...], wanted: Form) -> tuple[tuple[Form, str], ...]:
    """The shortest way from one of some forms to another: the forms on it, each with the kernel that makes it."""
    ways: list[tuple[Form, tuple[tuple[Form, str], ...]]] = [(form, ()) for form in have]
    for form, way in ways:  # grows as it is gone through: breadth first
        if form == wanted:
            return way
        ways += [(after, (*way, (after, op))) for (before, after), op in _STEPS.items() if before == form]
    raise AssertionError("every form can be reached")


@dataclass
class Lowering:
    """A lowering under way: the kernels so far, and the forms that every tensor is at hand in.

    ``quantized_layers`` read calibrated grids, ``dynamic_layers`` grids of the moment; ``integer_tables`` are embeddings
    that stay integers.
    """

    graph: Graph
    quantized_layers: frozenset[str]
    dynamic_layers: frozenset[str]
    integer_tables: frozenset[str]
    rounded: frozenset[str]
    attention_operator: bool
    block: int
    kernels: list[Kernel] = field(default_factory=list)
    forms: dict[str, list[Form]] = field(default_factory=dict)
    #: Tensor → the float conv kernel that wrote it, as a position in ``kernels``: an addition may still be fused there.
    conv_at: dict[str, int] = field(default_factory=dict)
    rounded_at_run_time: set[str] = field(default_factory=set)

    def read(self, name: str, wanted: Form) -> None:
        """Make tensor ``name`` available in a form, by the conversions that this takes."""
        if wanted in self.forms[name]:
            return
        node = self.graph.by_name[name]
        elements, shape = node.elements, node.shape
        flat, channels = len(shape) <= 2, shape[1] if len(shape) > 1 else 1
        padded = math.ceil(channels / self.block) * self.block * elements // channels
        kept = True
        for form, op in _way(tuple(self.forms[name]), wanted):
            if not (flat and op.startswith("transpose")):
                self.kernels.append(
                    Kernel(
                        op,
                        (name,),
                        in_elements=padded if op == "reorder_output" else elements,
                        out_elements=padded if op == "reorder_input" else elements,
                        inner=channels if op.startswith("transpose") else 1,
                    )
                )
            # onnxruntime gives every reader of a rounded tensor a dequantization of its own.
            kept = kept and op != "dequantize"
            if kept:
                self.forms[name].append(form)

    def detour(self, name: str) -> None:
        """What onnxruntime does to an integer tensor in front of a float addition whose result is rounded: its
        transpose optimizer tries to move the transposition behind the addition, and leaves it between two conversions.
        """
        node = self.graph.by_name[name]
        for op in ("dequantize", "transpose", "quantize", "dequantize"):
            inner = node.shape[-1] if op == "transpose" else 1
            self.kernels.append(Kernel(op, (name,), in_elements=node.elements, out_elements=node.elements, inner=inner))
        self.forms[name].append(FLOAT)

    def born(self, name: str, form: Form) -> bool:
        """Whether a tensor was written in a form, and not only brought into it for some reader: onnxruntime's layout
        optimizer carries on only with what was."""
        return self.forms[name][0] == form

    def write(self, node: Node, form: Form) -> None:
        self.forms[node.name] = [form]

    def any_float(self, name: str) -> Form:
        """The float form of a tensor that is nearest at hand."""
        return BLOCKED if BLOCKED in self.forms[name] and FLOAT not in self.forms[name] else FLOAT
