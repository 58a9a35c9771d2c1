"""Activations that no runtime here has a kernel for: 4 bits, signs, half precision. They are computed in floats, in the
simulated model and in its file alike, for research on what a network would bear; no time is ever gained by them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from autocomp.compress.quantize import RangeObserver, insert_before
from autocomp.compress.statistics import Batches
from autocomp.graph import Graph
from autocomp.plan import Format

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node


#: What signs and few levels add up to is often zero but for the order of summing, which is the runtime's own: so much below
#: zero still counts as zero, as a share of the magnitude.
NOISE = 1e-5
#: Shares of the range that are tried for the least squared error.
CLIPS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class SimulatedQuantizer(nn.Module):
    """Rounds a tensor and gives floats: to 16 levels of a calibrated grid; to its sign times a calibrated magnitude
    (M. Rastegari et al., "XNOR-Net", 2016); or to half precision. In training, gradients go straight through where the
    value is inside the grid."""

    def __init__(self, bits: int, low: float, high: float, magnitude: float) -> None:
        super().__init__()
        self.bits = bits
        self.magnitude = magnitude
        self.levels = (1 << bits) - 1
        self.scale = max((high - low) / self.levels, 1e-12)
        self.zero_point = round(-low / self.scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            inside = x.clamp(*self._range())
            return inside + (self._rounded(x) - inside).detach()
        return self._rounded(x)

    def _range(self) -> tuple[float, float]:
        if self.bits == 1:
            return -self.magnitude, self.magnitude
        if self.bits == 16:
            return -torch.inf, torch.inf
        return -self.zero_point * self.scale, (self.levels - self.zero_point) * self.scale

    def _rounded(self, x: torch.Tensor) -> torch.Tensor:
        if self.bits == 16:
            return x.half().float()
        if self.bits == 1:
            return torch.where(x >= -NOISE * self.magnitude, self.magnitude, -self.magnitude)
        levels = (torch.round(x / self.scale) + self.zero_point).clamp(0, self.levels)
        return (levels - self.zero_point) * self.scale


def simulate_activations(
    module: GraphModule, graph: Graph, formats: Mapping[str, Format], calibration: Batches
) -> None:
    """Put a :class:`SimulatedQuantizer` in front of every layer whose format has such activations, in place."""
    nodes = {node.name: node for node in module.graph.nodes}
    readers: dict[tuple[Node, int], list[Node]] = {}
    for node in graph.layers:
        chosen = formats.get(node.layer or "")
        if chosen is not None and chosen.simulated:
            given = cast("Node", nodes[node.name].args[0])
            readers.setdefault((given, chosen.activation_bits), []).append(nodes[node.name])
    observers: dict[str, tuple[int, _Observer]] = {}
    for (given, bits), of in readers.items():
        path = f"simulated{bits}_{given.name}"
        observers[path] = bits, _Observer()
        insert_before(module, of, path, observers[path][1])
    if not observers:
        return
    module.recompile()
    with torch.no_grad():
        for batch in calibration:
            module(*batch)
    for path, (bits, observer) in observers.items():
        module.set_submodule(path, observer.simulated(bits))


class _Observer(RangeObserver):
    def simulated(self, bits: int) -> SimulatedQuantizer:
        values = torch.cat(self.samples)
        magnitude = float(values.abs().mean())
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        if bits != 4:
            return SimulatedQuantizer(bits, low, high, magnitude)
        # The share of the range that leaves the least squared error on the sample.
        tried = [SimulatedQuantizer(bits, clip * low, clip * high, magnitude) for clip in CLIPS]
        return min(tried, key=lambda one: float((one(values) - values).square().mean()))
