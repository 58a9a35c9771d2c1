"""Shortcuts without weights: every so-manyth pixel of a tensor, between new channels of zeros.

K. He et al., "Deep Residual Learning for Image Recognition", 2015, section 3.3, option A. Some runtimes compute a strided
slice pixel by pixel, and a pad in floats only; in integers a pointwise convolution of ones is the same to the last digit.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from autocomp.graph import PADS, Graph, Node

#: What torch.export has as the end of a slice that goes on to the end.
TO_THE_END = 2**63 - 1


@dataclass(frozen=True)
class Shortcut:
    """``source`` sliced by the nodes ``slices`` and padded by ``pad``; ``stride`` of rows and columns."""

    source: str
    slices: tuple[str, ...]
    pad: str
    stride: tuple[int, int]


def find_shortcuts(graph: Graph, rounded: Collection[str]) -> tuple[Shortcut, ...]:
    """The shortcuts of tensors that are ``rounded`` on a calibrated grid for all that read them, in the graph's order.

    A broken number to pad with is not in the graph, and taken for zero; the file knows better.
    """
    found = (_shortcut(graph, node) for node in graph.nodes if node.op in PADS)
    return tuple(one for one in found if one is not None and one.source in rounded)


def _shortcut(graph: Graph, pad: Node) -> Shortcut | None:
    # The last dimension's two ends first; a value to pad with comes last, where it is a whole number.
    ends, value = pad.numbers[:6], pad.numbers[6:]
    if len(pad.shape) != 4 or len(ends) < 6 or any(ends[:4]) or min(ends) < 0 or any(value):
        return None
    strides, slices, source = {2: 1, 3: 1}, [], pad.inputs[0]
    while graph.by_name[source].op == "slice" and graph.sole_user(source) is not None:
        node = graph.by_name[source]
        dim, start, end, step = (*node.numbers, 1)[:4] if len(node.numbers) >= 3 else (0, 1, 0, 1)
        if start != 0 or end != TO_THE_END or (step != 1 and dim not in strides):
            return None
        if step != 1:
            strides[dim] *= step
        slices.append(source)
        source = node.inputs[0]
    return Shortcut(source, tuple(reversed(slices)), pad.name, (strides[2], strides[3]))
