"""Which nodes of a traced model share memory, and whether one is read after another has changed it."""

from __future__ import annotations

import operator
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


def read_after_change(graph: FxGraph) -> bool:
    """Whether a node reads a tensor that another has changed in place since, but not that other's result: then what is read
    depends on more than the graph's edges say. So it is where a model writes into a part of a tensor."""
    from torch.fx import Node as FxNode

    #: Node → the one that its memory is of; and of that, the change that the node has seen, and the last one.
    home: dict[FxNode, FxNode] = {}
    seen: dict[FxNode, FxNode | None] = {}
    last: dict[FxNode, FxNode] = {}
    for node in graph.nodes:
        if any(last.get(home[one]) is not seen[one] for one in node.all_input_nodes):
            return True
        lies_in = next((one for one in shared(node) if isinstance(one, FxNode)), None)
        home[node] = node if lies_in is None else home[lies_in]
        for changed in shared(node, written=True):
            if isinstance(changed, FxNode):
                last[home[changed]] = node
        seen[node] = last.get(home[node])
    return False
