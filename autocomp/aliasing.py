"""Which nodes of a traced model share memory, and whether one is read after another has changed it."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node as FxNode


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
    f"{made}_like" if like else f"new_{made}" for made in ("zeros", "ones", "full", "empty") for like in (True, False)
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
        if not data.isdisjoint(node.all_input_nodes) and _reads_values(node):
            data.add(node)
        for changed in shared(node, written=True):
            if isinstance(changed, FxNode) and (node in data or places[changed].of in data):
                data.add(places[changed].of)
                changes.append(places[changed])
        made[node] = len(changes)
    return False


def _reads_values(node: FxNode) -> bool:
    """Whether a result depends on more of what a node reads than its shape."""
    value, name = node.meta.get("val"), str(node.target).split(".")
    parts = value if isinstance(value, (list, tuple)) else (value,)
    return all(hasattr(part, "shape") for part in parts) and not (len(name) > 1 and name[1] in FRESH)
