"""Residual blocks that may be left out: found in the traced graph, and taken out of it.

What is computed beside an identity shortcut can go, and the shortcut stays (G. Huang et al., "Deep networks with
stochastic depth", 2016; A. Fan et al., "Reducing transformer depth on demand", 2020).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from autocomp.errors import CompressionError
from autocomp.fx_nodes import operator_name, shared
from autocomp.graph import ADDITIONS, Graph, Node
from autocomp.inventory import ResidualBlock

if TYPE_CHECKING:
    from torch.fx import GraphModule
    from torch.fx import Node as FxNode


def find_blocks(graph: Graph) -> tuple[ResidualBlock, ...]:
    """The additions of a tensor to what was computed from it alone, innermost ones only, in order.

    A block's name is what the paths of its layers have in common; where two blocks have the same, the later ones are
    numbered.
    """
    found: list[ResidualBlock] = []
    for node in graph.nodes:
        if node.op not in ADDITIONS or len(node.inputs) != 2 or node.name in graph.outputs:
            continue
        first, second = (graph.by_name[name] for name in node.inputs)
        if first.shape != node.shape or second.shape != node.shape:
            continue
        for position, (shortcut, branch) in enumerate([(first, second), (second, first)]):
            inside = _between(graph, shortcut.name, branch.name, node.name)
            layers = tuple(n.layer for n in inside if n.layer is not None)
            if layers and not any(block.addition in {n.name for n in inside} for block in found):
                name = _common(layers)
                taken = sum(block.name.partition("#")[0] == name for block in found)
                found.append(ResidualBlock(f"{name}#{taken + 1}" if taken else name, layers, node.name, position))
                break
    return tuple(found)


def _between(graph: Graph, shortcut: str, branch: str, addition: str) -> list[Node]:
    """The nodes from the shortcut to the end of the branch; none where the branch does not start from it, or where
    something in it is read elsewhere as well."""
    inside: dict[str, Node] = {}
    waiting, reached = [branch], False
    while waiting:
        name = waiting.pop()
        if name == shortcut:
            reached = True
            continue
        if name in inside:
            continue
        inside[name] = graph.by_name[name]
        waiting.extend(graph.by_name[name].inputs)
    if not reached:
        return []
    # What does not come from the shortcut (a mask, say) is shared, and stays.
    dependent = _dependent(graph, shortcut)
    own = [node for node in graph.nodes if node.name in inside and node.name in dependent]
    names = {node.name for node in own}
    closed = all(
        user.name in names or user.name == addition for node in own for user in graph.users[node.name]
    ) and not names & {*graph.outputs}
    return own if closed else []


def _dependent(graph: Graph, source: str) -> set[str]:
    found = {source}
    for node in graph.nodes:
        if any(name in found for name in node.inputs):
            found.add(node.name)
    return found


def _common(layers: tuple[str, ...]) -> str:
    """The longest path that all of some layers lie in."""
    if len(layers) == 1:
        return layers[0]
    steps = itertools.takewhile(lambda step: len(set(step)) == 1, zip(*(layer.split(".") for layer in layers)))
    return ".".join(step[0] for step in steps) or "block"


def drop_blocks(module: GraphModule, blocks: Iterable[ResidualBlock]) -> None:
    """Take blocks out of a traced model, in place.

    Raises:
        CompressionError: the graph is not the one that the blocks were found in.
    """
    import torch

    nodes: dict[str, FxNode] = {node.name: node for node in module.graph.nodes}
    read_instead: list[tuple[FxNode, FxNode]] = []
    for block in blocks:
        addition = nodes.get(block.addition)
        if addition is None:
            raise CompressionError(f"the compressed model must have the addition {block.addition!r}; it has not")
        shortcut = cast("FxNode", addition.args[block.position])
        if shortcut not in shared(addition, written=True):
            read_instead += [(shortcut, user) for user in addition.users]
        addition.replace_all_uses_with(shortcut)
        module.graph.erase_node(addition)
    # torch keeps what draws random numbers, as an attention does that might drop some; in evaluation none are drawn.
    while module.graph.eliminate_dead_code(is_impure_node=_has_effects):
        pass  # what changes a tensor in place goes once nobody else reads that
    for shortcut, user in read_instead:
        if shortcut in shared(user, written=True) and len(shortcut.users) > 1:
            # It changed the sum, which was a tensor of its own.
            with module.graph.inserting_before(user):
                own = module.graph.call_function(torch.ops.aten.clone.default, (shortcut,))
            user.replace_input_with(shortcut, own)
    module.delete_all_unused_submodules()
    module.recompile()


def _has_effects(node: FxNode) -> bool:
    """Whether a node has to stay though nobody reads its result."""
    from torch._ops import OpOverload

    if node.op in {"placeholder", "output"}:
        return True
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable and not _alone_sees(node)


def _alone_sees(node: FxNode) -> bool:
    """Whether the memory of a result was made within the graph, and by nodes that only one another read."""
    from torch._ops import OpOverload
    from torch.fx import Node as FxNode

    if not isinstance(node.target, OpOverload) or operator_name(node).endswith("dropout"):
        return False  # in evaluation a dropout gives what it reads, which torch does not say of it
    return all(isinstance(one, FxNode) and len(one.users) == 1 and _alone_sees(one) for one in shared(node))


def without_blocks(graph: Graph, blocks: Iterable[ResidualBlock]) -> Graph:
    """The facts of a graph without some blocks, and without what nobody reads then."""
    instead: dict[str, str] = {}
    for block in blocks:
        instead[block.addition] = graph.by_name[block.addition].inputs[block.position]

    def resolved(name: str) -> str:
        while name in instead:
            name = instead[name]
        return name

    needed = {resolved(name) for name in graph.outputs}
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if node.op == "input" or (node.name in needed and node.name not in instead):
            inputs = tuple(resolved(name) for name in node.inputs)
            needed.update(inputs)
            kept.append(node if inputs == node.inputs else replace(node, inputs=inputs))
    return Graph(tuple(reversed(kept)), tuple(resolved(name) for name in graph.outputs))
