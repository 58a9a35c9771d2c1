"""Activations as floats of 8 bits, simulated as a GPU's kernel reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from autocomp.compress.quantize import RangeObserver, insert_before, observe
from autocomp.compress.statistics import Batches
from autocomp.graph import Graph
from autocomp.plan import Format

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

#: The largest of these floats; they have no infinity.
LARGEST = torch.finfo(torch.float8_e4m3fn).max


class Float8Quantizer(nn.Module):
    """Rounds a tensor to the nearest floats of 8 bits (E4M3) times ``step``; what is larger becomes the largest."""

    def __init__(self, step: float) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        levels = (x / self.step).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
        rounded = levels.to(x.dtype) * self.step
        # In training, gradients go straight through.
        return x + (rounded - x).detach() if torch.is_grad_enabled() and x.requires_grad else rounded


def round_to_float8(module: GraphModule, graph: Graph, formats: Mapping[str, Format], calibration: Batches) -> None:
    """Put a calibrated :class:`Float8Quantizer` in front of every layer whose format has such activations, in place, one for
    all that read one tensor."""
    nodes = {node.name: node for node in module.graph.nodes}
    readers: dict[Node, list[Node]] = {}
    for node in graph.layers:
        chosen = formats.get(node.layer or "")
        if chosen is not None and chosen.in_float8:
            readers.setdefault(cast("Node", nodes[node.name].args[0]), []).append(nodes[node.name])
    observers: dict[str, RangeObserver] = {}
    for given, of in readers.items():
        path = f"float8_{given.name}"
        observers[path] = RangeObserver()
        insert_before(module, of, path, observers[path])
    if not observers:
        return
    module.recompile()
    observe(module, calibration)
    for path, observer in observers.items():
        module.set_submodule(path, Float8Quantizer(max(-observer.low, observer.high, 1e-8) / LARGEST))
