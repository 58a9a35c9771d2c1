"""Which nodes of a traced model share memory, and whether one is read after another has changed it."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.fx import Graph as FxGraph
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


def read_after_change(graph: FxGraph) -> bool:
    """Whether a node reads a tensor that another has changed in place since, but not that other's result: then what is read
    depends on more than the graph's edges say. So it is where a model writes into a part of a tensor."""
    from torch.fx import Node as FxNode

    #: Node → where its result lies, and how many changes there were when it was made.
    places: dict[FxNode, _Place] = {}
    made: dict[FxNode, int] = {}
    changes: list[_Place] = []
    for node in graph.nodes:
        for read in node.all_input_nodes:
            if any(change.meets(places[read]) for change in changes[made[read] :]):
                return True
        lies_in = next((one for one in shared(node) if isinstance(one, FxNode)), None)
        places[node] = _Place(node) if lies_in is None else places[lies_in]
        if node.target is operator.getitem and places[node].piece is None:
            places[node] = _Place(places[node].of, node)
        changes += [places[one] for one in shared(node, written=True) if isinstance(one, FxNode)]
        made[node] = len(changes)
    return False
