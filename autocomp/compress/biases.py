"""Biases as integer kernels add them: whole numbers of the accumulator's steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from autocomp.compress.grids import QuantizedWeight, with_larger_steps
from autocomp.compress.quantize import ActivationQuantizer, reads_rounded
from autocomp.graph import Graph
from autocomp.plan import Format

if TYPE_CHECKING:
    from torch.fx import GraphModule

#: The largest bias in steps of the int32 accumulator; the other half of its range is left to the sum of products.
LARGEST_BIAS = 2**30

#: Biases below it are stored in half precision, whose largest number is 65,504.
LARGEST_HALF = 65_000.0


@dataclass(frozen=True)
class IntegerBias:
    """A bias that an integer kernel adds in its accumulator: a whole number of ``steps``, () or one a channel, each the
    step of the input times that of the weight. ``halves`` are the floats of half precision that it was rounded from, as
    float32; None where it is too large for them."""

    steps: torch.Tensor
    halves: torch.Tensor | None


def round_biases(
    module: GraphModule,
    graph: Graph,
    formats: Mapping[str, Format],
    weights: dict[str, QuantizedWeight],
    quantizers: Mapping[str, ActivationQuantizer],
) -> dict[str, IntegerBias]:
    """Integer kernels add the bias in the accumulator, whose step is that of the input times that of the weight.

    A channel whose weights are next to nothing (a batch norm has switched it off, or pruning took them all) may still
    have a bias; its weights, entries of ``weights``, are then given a step with which the bias does not overflow.
    """
    biases: dict[str, IntegerBias] = {}
    calibrated = [node for node in graph.layers if reads_rounded(node, formats)]
    layers = [node for node in calibrated if node.op == "conv2d" or node.is_gemm]
    used = Counter(node.layer for node in layers)
    for node in layers:
        layer = node.layer or ""
        name = f"{layer}.weight"
        if node.has_bias and used[node.layer] == 1:  # one bias has no step for several inputs
            bias = module.get_parameter(f"{layer}.bias")
            halves = bias.detach().half().float() if float(bias.abs().max()) < LARGEST_HALF else None
            input_step = quantizers[node.inputs[0]].scale
            smallest = bias.abs() / (LARGEST_BIAS * input_step)
            weights[name] = with_larger_steps(weights[name], smallest, formats[layer])
            module.get_parameter(name).data = weights[name].dequantized()
            steps = weights[name].scale * input_step
            source = bias if halves is None else halves
            bias.data = (source / steps).round() * steps
            biases[f"{layer}.bias"] = IntegerBias(steps, halves)
    return biases
