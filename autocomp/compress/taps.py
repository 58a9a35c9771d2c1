"""Results inside a network, seen as it runs, and which of them a compressed network has in common with the uncompressed one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from autocomp.compress.apply import Compressed
from autocomp.compress.blocks import without_blocks
from autocomp.compress.quantize import insert_after
from autocomp.compress.rebuild import Prepared
from autocomp.graph import ADDITIONS, Node

if TYPE_CHECKING:
    from torch.fx import GraphModule

#: What additions are told apart from layers by, whose paths have no sign in them.
ADDITION = "+"


def common_results(prepared: Prepared, compressed: Compressed) -> dict[str, str]:
    """Node of the compressed network → node of the uncompressed one: the additions whose results have the same shape in both,
    or the layers where there are no additions."""
    pairs = _counterparts(prepared, compressed)
    same = {own: was for own, was in pairs if own.shape == was.shape}
    additions = {own: was for own, was in same.items() if own.op in ADDITIONS}
    layers = {own: was for own, was in same.items() if own.layer is not None and own.layer == was.layer}
    return {own.name: was.name for own, was in (additions or layers).items()}


def same_layers(prepared: Prepared, compressed: Compressed) -> dict[str, tuple[str, str]]:
    """Layer → its nodes in the compressed network and in the uncompressed one, of the layers whose results have the same shape
    in both; in the order of execution."""
    pairs = _counterparts(prepared, compressed)
    same = [(own, was) for own, was in pairs if (own.layer, own.shape) == (was.layer, was.shape)]
    uses = Counter(own.layer for own, _ in same)
    return {own.layer: (own.name, was.name) for own, was in same if own.layer is not None and uses[own.layer] == 1}


def _counterparts(prepared: Prepared, compressed: Compressed) -> list[tuple[Node, Node]]:
    """Layers and additions of the compressed network, in their order, and what they stand for in the uncompressed one: the same
    layer, and of additions, of which there must be as many without the blocks that are left out, the one of the same place.
    Names tell nothing: a layer that is split makes others of those behind it."""
    left = without_blocks(prepared.inventory.graph, prepared.inventory.dropped(compressed.plan))
    own, before = _by_place(compressed.graph.nodes), _by_place(left.nodes)
    as_many = sum(what == ADDITION for what, _ in own) == sum(what == ADDITION for what, _ in before)
    return [
        (node, before[place]) for place, node in own.items() if place in before and (as_many or place[0] != ADDITION)
    ]


def _by_place(nodes: Sequence[Node]) -> dict[tuple[str, int], Node]:
    """Layers and additions, by what they are and how many of that came before."""
    found, count = dict[tuple[str, int], Node](), Counter[str]()
    for node in nodes:
        what = node.layer or (ADDITION if node.op in ADDITIONS else None)
        if what is not None:
            found[what, count[what]] = node
            count[what] += 1
    return found


class Tap(nn.Module):
    """Passes a tensor on and keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.value = torch.zeros(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.value = x
        return x


def tapped(module: GraphModule, names: Sequence[str], stem: str = "tap") -> list[Tap]:
    """Taps behind some nodes of ``module``, put there in place."""
    taps = {name: Tap() for name in names}
    insert_after(module, taps, stem=stem)
    return list(taps.values())
