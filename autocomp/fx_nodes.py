"""Nodes of a traced model: what they call and give, which share memory, and whether one is read after another changed it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node as FxNode


def operator_name(node: FxNode) -> str:
    """``aten.conv2d.default`` → ``conv2d``; plain Python functions (getitem) keep their name."""
    from torch._ops import OpOverload

    target = cast("OpOverload | Callable[..., object]", node.target)
    return str(target).split(".")[1] if isinstance(target, OpOverload) else target.__name__


def is_tensor(node: FxNode) -> bool:
    """Whether ``node`` gives a tensor, or several (sizes and numbers are not data flow)."""
    value = node.meta.get("val")
    parts = value if isinstance(value, (list, tuple)) else (value,)
    return len(parts) > 0 and all(hasattr(part, "shape") for part in parts)


def shared(node: FxNode, written: bool = False) -> list[object]:
    """The arguments whose memory the result may lie in; or those that are changed in place."""
    from torch._ops import OpOverload

    if node.target is operator.getitem and not written:
        return [node.args[0]]
    arguments = node.target._schema.arguments if isinstance(node.target, OpOverload) else []
    return [
        node.args[place] if place < len(node.args) else node.kwargs.get(argument.name)
        for place, argument in enumerate(arguments)
        if argument.alias_info is not None and (argument.alias_info.is_write or not written)
    ]


@dataclass(frozen=True)
class _Place:
    """Memory that a node made, or one of the pieces that it was cut into, which lie apart from each other."""

    of: FxNode
    piece: FxNode | None = None

    def meets(self, other: _Place) -> bool:
        return self.of is other.of and (self.piece is other.piece or None in (self.piece, other.piece))


#: Operators that look at a tensor's shape and type alone.
FRESH = frozenset(
    {"zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty"}
)


def read_after_change(program: ExportedProgram) -> bool:
    """Whether a node reads a tensor that another has changed in place since, but not that other's result: then what is read
    depends on more than the graph's edges say. So it is where a model writes into a part of a tensor. What is made of
    constants alone (an attention's mask, say) may be written by any way: it is the same at every run."""
    from torch.fx import Node as FxNode

    #: Node → where its result lies, and how many changes there were when it was made.
    places: dict[FxNode, _Place] = {}
    made: dict[FxNode, int] = {}
    changes: list[_Place] = []
    data = {node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs}
    for node in program.graph.nodes:
        for read in node.all_input_nodes:
            if any(change.meets(places[read]) for change in changes[made[read] :]):
                return True
        lies_in = next((one for one in shared(node) if isinstance(one, FxNode)), None)
        places[node] = _Place(node) if lies_in is None else places[lies_in]
        if node.target is operator.getitem and places[node].piece is None:
            places[node] = _Place(places[node].of, node)
        if not data.isdisjoint(node.all_input_nodes) and is_tensor(node) and operator_name(node) not in FRESH:
            data.add(node)
        for changed in shared(node, written=True):
            if isinstance(changed, FxNode) and (node in data or places[changed].of in data):
                data.add(places[changed].of)
                changes.append(places[changed])
        made[node] = len(changes)
    return False
