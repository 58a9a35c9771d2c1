"""How tensors lie in memory in openvino on a CPU: in floats or 8 bits, channels first or last; and what it costs to have
them in another form."""

from __future__ import annotations

from dataclasses import dataclass, field

from autocomp.graph import ADDITIONS, COPIES, PADS, RESHAPES, Graph, Node
from autocomp.hardware.kernels import Kernel

#: Gives rounded values on as they are.
_CARRIERS = RESHAPES | COPIES | PADS | {"max_pool2d", "slice", "cat", "concat", "transpose", "permute"}


@dataclass(frozen=True)
class Joined:
    """What operations before a kernel add to it: the tensors and how many parameters they read, and whether one of them is
    a curve."""

    inputs: tuple[str, ...]
    parameters: int = 0
    curved: bool = False


@dataclass
class Lowering:
    """A lowering under way. ``floats`` and ``integers`` are the tensors at hand in that form, ``last`` those that lie
    channels-last; ``joined`` are operations that are computed by the kernel behind them."""

    graph: Graph
    bfloat16: bool
    quantized: frozenset[str]
    dynamic: frozenset[str]
    tables: frozenset[str]
    rounded: frozenset[str]
    kernels: list[Kernel] = field(default_factory=list)
    floats: set[str] = field(default_factory=set)
    integers: set[str] = field(default_factory=set)
    last: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)
    constants: set[str] = field(default_factory=set)
    joined: dict[str, Joined] = field(default_factory=dict)
    #: Result of a convolution that only an addition reads → its kernel, as a position, and whether it is integer.
    conv_at: dict[str, tuple[int, bool]] = field(default_factory=dict)

    def emit(self, op: str, name: str, read: int, written: int, inner: int = 1) -> None:
        self.kernels.append(Kernel(op, (name,), in_elements=read, out_elements=written, inner=inner))

    def elements(self, name: str) -> int:
        return self.graph.by_name[name].elements

    def is_image(self, name: str) -> bool:
        return len(self.graph.by_name[name].shape) == 4

    def read(self, name: str, *, integers: bool, last: bool) -> None:
        """Bring a tensor into a form, by the conversions that this takes; they stay at hand."""
        have, others = (self.integers, self.floats) if integers else (self.floats, self.integers)
        size = self.elements(name)
        if name not in have and name in others:
            self.emit("quantize" if integers else "dequantize", name, size, size)
            have.add(name)
        if self.is_image(name) and last != (name in self.last) and size > abs(self.graph.by_name[name].shape[1]):
            self.emit("reorder", name, size, size)
            (self.last.add if last else self.last.discard)(name)

    def write(self, name: str, *, integers: bool, last: bool) -> None:
        (self.integers if integers else self.floats).add(name)
        self.done.add(name)
        if last and self.is_image(name):
            self.last.add(name)

    def reads_integers(self, user: Node) -> bool:
        """Whether an operation takes a rounded tensor as it is, for an integer layer to read at last."""
        if user.layer is not None:
            return user.layer in self.quantized
        if user.op in ADDITIONS:
            return self.graph.tail(user).name in self.rounded
        return user.op in _CARRIERS and any(map(self.reads_integers, self.graph.users[user.name]))
