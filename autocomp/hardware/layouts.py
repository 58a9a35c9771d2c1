"""How tensors lie in memory in onnxruntime on a CPU, and what it costs to have them in another form."""

from __future__ import annotations

from dataclasses import dataclass, field

from autocomp.graph import Graph, Node
from autocomp.hardware.kernels import Kernel


@dataclass(frozen=True)
class Form:
    """How a tensor lies in memory: float or 8-bit; ``nchw``, ``nchwc`` or ``nhwc``."""

    quantized: bool
    layout: str


FLOAT = Form(False, "nchw")
BLOCKED = Form(False, "nchwc")
INTEGER = Form(True, "nchw")
INTEGER_LAST = Form(True, "nhwc")

#: A conversion goes along this line, one kernel a step.
_LINE = (BLOCKED, FLOAT, INTEGER, INTEGER_LAST)
_STEPS = {
    (BLOCKED, FLOAT): "reorder_output",
    (FLOAT, BLOCKED): "reorder_input",
    (FLOAT, INTEGER): "quantize",
    (INTEGER, FLOAT): "dequantize",
    (INTEGER, INTEGER_LAST): "transpose_integer",
    (INTEGER_LAST, INTEGER): "transpose_integer",
}


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
        have = self.forms[name]
        if wanted in have:
            return
        start = min(have, key=lambda form: abs(_LINE.index(form) - _LINE.index(wanted)))
        here, goal = _LINE.index(start), _LINE.index(wanted)
        step = 1 if goal > here else -1
        elements = self.graph.by_name[name].elements
        shape = self.graph.by_name[name].shape
        flat, channels = len(shape) <= 2, shape[1] if len(shape) > 1 else 1
        for position in range(here, goal, step):
            before, after = _LINE[position], _LINE[position + step]
            op = _STEPS[before, after]
            if not (flat and op == "transpose_integer"):
                inner = channels if op == "transpose_integer" else 1
                self.kernels.append(Kernel(op, (name,), in_elements=elements, out_elements=elements, inner=inner))
            have.append(after)

    def detour(self, name: str) -> None:
        """What onnxruntime does to an integer tensor in front of a float addition whose result is rounded: its
        transpose optimizer tries to move the transposition behind the addition, and leaves it between two conversions.
        """
        node = self.graph.by_name[name]
        for op in ("dequantize", "transpose", "quantize", "dequantize"):
            inner = node.shape[-1] if op == "transpose" else 1
            self.kernels.append(Kernel(op, (name,), in_elements=node.elements, out_elements=node.elements, inner=inner))
        self.forms[name].append(FLOAT)

    def write(self, node: Node, form: Form) -> None:
        self.forms[node.name] = [form]

    def any_float(self, name: str) -> Form:
        """The float form of a tensor that is nearest at hand."""
        return BLOCKED if BLOCKED in self.forms[name] and FLOAT not in self.forms[name] else FLOAT
