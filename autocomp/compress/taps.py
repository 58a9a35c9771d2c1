"""Results inside a network, seen as it runs, and which of them a compressed network has in common with the uncompressed one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from autocomp.compress.apply import Compressed
from autocomp.compress.quantize import insert_after
from autocomp.compress.rebuild import Prepared
from autocomp.graph import ADDITIONS

if TYPE_CHECKING:
    from torch.fx import GraphModule


def common_results(prepared: Prepared, compressed: Compressed) -> tuple[str, ...]:
    """The additions whose results have the same shape in both networks, or the layers where there are no additions; none
    where blocks are left out, behind which the nodes of one are not those of the other."""
    if compressed.plan.dropped_blocks:
        return ()
    before = prepared.inventory.graph.by_name
    nodes = compressed.graph.nodes
    same = [node for node in nodes if node.name in before and node.shape == before[node.name].shape]
    additions = [node for node in same if node.op in ADDITIONS]
    chosen = additions or [node for node in same if node.layer is not None and before[node.name].layer == node.layer]
    return tuple(node.name for node in chosen)


def same_layers(prepared: Prepared, compressed: Compressed) -> dict[str, str]:
    """Node → its layer, of the layers whose results have the same shape in both networks; in the order of execution."""
    if compressed.plan.dropped_blocks:
        return {}
    before = prepared.inventory.graph.by_name
    found: dict[str, str] = {}
    for node in compressed.graph.nodes:
        was = before.get(node.name)
        if was is not None and node.layer is not None and (was.layer, was.shape) == (node.layer, node.shape):
            found[node.name] = node.layer
    uses = Counter(found.values())
    return {node: layer for node, layer in found.items() if uses[layer] == 1}


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
