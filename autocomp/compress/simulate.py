"""Activations that no runtime here has a kernel for: 4 bits, signs, half precision. They are computed in floats, in the
simulated model and in its file alike, for research on what a network would bear; no time is ever gained by them."""

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


#: What signs and few levels add up to is often zero but for the order of summing, which is the runtime's own: so much below
#: zero still counts as zero, as a share of the magnitude.
NOISE = 1e-5
#: Shares of the range that are tried for the least squared error.
CLIPS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class SimulatedQuantizer(nn.Module):
    """Rounds a tensor and gives floats: to 16 levels of a calibrated ``step``; to its sign times a calibrated magnitude,
    which is the ``step`` then (M. Rastegari et al., "XNOR-Net", 2016); or to half precision."""

    def __init__(self, bits: int, step: float, zero_point: int = 0) -> None:
        super().__init__()
        self.bits = bits
        self.step = step
        self.zero_point = zero_point
        self.levels = (1 << bits) - 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.bits == 16:
            half = x.half().float()
            # In training, gradients go straight through.
            return x + (half - x).detach() if torch.is_grad_enabled() and x.requires_grad else half
        if self.bits == 1:
            return torch.where(x >= -NOISE * self.step, self.step, -self.step)
        levels = (torch.round(x / self.step) + self.zero_point).clamp(0, self.levels)
        return (levels - self.zero_point) * self.step


def on_grid(bits: int, low: float, high: float) -> SimulatedQuantizer:
    """On evenly spaced levels from ``low`` to ``high``, one of which is zero."""
    step = max((high - low) / ((1 << bits) - 1), 1e-12)
    return SimulatedQuantizer(bits, step, round(-low / step))


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
    observe(module, calibration)
    for path, (bits, observer) in observers.items():
        module.set_submodule(path, observer.simulated(bits))


class _Observer(RangeObserver):
    def simulated(self, bits: int) -> SimulatedQuantizer:
        values = torch.cat(self.samples)
        if bits != 4:
            return SimulatedQuantizer(bits, float(values.abs().mean()))
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        # The share of the range that leaves the least squared error on the sample.
        tried = [on_grid(bits, clip * low, clip * high) for clip in CLIPS]
        return min(tried, key=lambda one: float((one(values) - values).square().mean()))
