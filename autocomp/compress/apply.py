"""A plan applied to a model. The order of the methods is said here, once: adjustments before, rank, sparsity, format,
adjustments after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from autocomp.compress.adjust import corrections, equalized, one_batch, output_moments, smoothed
from autocomp.compress.biases import IntegerBias, round_biases
from autocomp.compress.float8 import round_to_float8
from autocomp.compress.grids import QuantizedWeight
from autocomp.compress.prepare import prepare
from autocomp.compress.quantize import (
    DEFAULT_NUMERICS,
    ActivationQuantizer,
    Numerics,
    calibrate_activations,
    complete_formats,
    quantize_dynamically,
    quantized_tensors,
    reads_rounded,
    rounded_for_products,
)
from autocomp.compress.rebuild import Cuts, Prepared, cuts_of, rebuilt
from autocomp.compress.simulate import simulate_activations
from autocomp.compress.solve import Gone, Setting, Solver
from autocomp.compress.statistics import SEEN, Batches, left
from autocomp.graph import Graph
from autocomp.plan import Format, LayerPlan, Plan
from autocomp.trace import Example

if TYPE_CHECKING:
    from torch.fx import GraphModule


@dataclass(frozen=True)
class Compressed:
    """A compressed model.

    ``model`` is a module that computes what the exported file computes: pruned, factorized, with weights and
    activations rounded as the file rounds them. ``formats`` are those that the layers really got; ``weights`` holds
    the stored form of every weight that is quantized, by parameter name; ``masks`` of those that are sparse;
    ``biases`` those that integer kernels add; ``numerics`` the arithmetic it is made for.
    """

    plan: Plan
    model: GraphModule
    graph: Graph
    example: Example
    formats: Mapping[str, Format]
    weights: Mapping[str, QuantizedWeight]
    masks: Mapping[str, torch.Tensor]
    biases: Mapping[str, IntegerBias]
    numerics: Numerics


def apply(
    prepared: Prepared,
    plan: Plan,
    calibration: Batches,
    numerics: Numerics = DEFAULT_NUMERICS,
    solver: Solver | None = None,
) -> Compressed:
    """Compress a prepared model. Pure: the same arguments give the same result, and no model given is changed.

    Args:
        calibration: batches of positional inputs, for the ranges of quantized activations and for what looks at the
            layers' inputs.
        numerics: the integer arithmetic of the runtime that the result is for.
        solver: of this model and calibration; knows the layers that it has solved before.

    Raises:
        PlanError: the plan does not fit the model.
        CompressionError: a group of channels cannot be cut, or a layer's inputs cannot be seen.
    """
    prepared.inventory.check(plan)
    solver = Solver(prepared.model, calibration) if solver is None else solver
    prepared, solver = adjusted(prepared, plan, solver)
    cuts = cuts_of(prepared, plan, solver)
    ranks = {name: one.rank for name, one in plan.layers.items() if one.rank is not None}
    looking = [name for name, rank in ranks.items() if rank.method == "whitened"]
    factors = {name: solver.factors(name, rank, looking) for name, rank in ranks.items()}
    module, graph = rebuilt(prepared, plan, cuts, factors, solver)
    formats = _formats(graph, plan, numerics)
    weights, masks = _solve(module, graph, plan, cuts, formats, numerics, solver)
    if {"bias", "norms"} & {*plan.adjustments}:
        _correct(module, graph, plan, cuts, formats, weights, prepared, calibration)
    biases = _quantize(module, graph, formats, weights, calibration, numerics)
    return Compressed(plan, module, graph, prepared.example, formats, weights, masks, biases, numerics)


def adjusted(prepared: Prepared, plan: Plan, solver: Solver) -> tuple[Prepared, Solver]:
    """The model before its layers are compressed, the same function by other weights where the plan adjusts them, and its
    solver."""
    wanted = [one for one in plan.adjustments if one in {"equalize", "smooth"}]
    if not wanted:
        return prepared, solver

    def adjust() -> nn.Module:
        model = prepared.model
        if "smooth" in wanted:
            model = smoothed(model, solver.calibration, prepared.example.inputs)
        if "equalize" in wanted:
            model = equalized(model, prepared.inventory.graph, prepared.example.inputs)
        return model

    found = solver.of_adjusted(wanted, adjust)
    return replace(prepared, model=found.model), found


def compress(
    model: nn.Module,
    plan: Plan,
    example_inputs: tuple[torch.Tensor, ...],
    calibration: Batches,
    numerics: Numerics = DEFAULT_NUMERICS,
    dynamic_dims: tuple[tuple[int, ...], ...] = (),
) -> Compressed:
    """Apply ``plan`` to ``model``, which is left as it is.

    Args:
        model: a trained network.
        example_inputs: its positional inputs at batch 1.
        calibration: batches of positional inputs; used for the ranges of quantized activations.
        numerics: the integer arithmetic of the runtime that the result is for.
        dynamic_dims: see :class:`autocomp.task.Task`.

    Raises:
        TraceError: torch.export cannot follow the model.
        PlanError: the plan does not fit the model.
    """
    return apply(prepare(model, example_inputs, dynamic_dims), plan, calibration, numerics)


def origin(plan: Plan, layer: str) -> tuple[str, int]:
    """The layer of the untouched model that a layer of the restructured one is a stage of, and which."""
    parent, _, stage = layer.rpartition(".")
    return (parent, int(stage)) if stage in {"0", "1", "2"} and plan[parent].rank is not None else (layer, 0)


def plan_of(plan: Plan, layer: str) -> LayerPlan:
    """The plan of a layer of the restructured model: low-rank stages have that of the layer they replace."""
    return plan[origin(plan, layer)[0]]


def _formats(graph: Graph, plan: Plan, numerics: Numerics) -> dict[str, Format]:
    """Layer → the format that it really gets."""
    planned = {node.layer: plan_of(plan, node.layer).format for node in graph.layers if node.layer is not None}
    return {name: one for name, one in complete_formats(graph, planned, numerics).items() if one is not None}


def _solve(
    module: GraphModule,
    graph: Graph,
    plan: Plan,
    cuts: Cuts,
    formats: Mapping[str, Format],
    numerics: Numerics,
    solver: Solver,
) -> tuple[dict[str, QuantizedWeight], dict[str, torch.Tensor]]:
    """Cut and round weights, in place; parameter name → what is stored of it, and the mask of what stays."""
    settings: dict[str, Setting] = {}
    for name in dict.fromkeys(node.layer for node in graph.layers if node.layer is not None):
        layer, stage = origin(plan, name)
        chosen = formats.get(name)
        narrow = numerics.narrow_products and chosen is not None and chosen.integer_activations
        one = Setting(layer, stage, cuts.gone.get(layer, Gone()), plan[layer].rank, plan[layer].mask, chosen, narrow)
        if one.mask is not None or one.format is not None or one.compensates:
            settings[name] = one
    weights, masks = {}, {}
    for name, one in settings.items():
        found = solver.solution(one, [*settings.values()])
        module.get_parameter(f"{name}.weight").data = found.weight.clone()
        if found.kept is not None:
            masks[f"{name}.weight"] = found.kept
        if found.quantized is not None:
            weights[f"{name}.weight"] = found.quantized
    return weights, masks


def _correct(
    module: GraphModule,
    graph: Graph,
    plan: Plan,
    cuts: Cuts,
    formats: Mapping[str, Format],
    weights: dict[str, QuantizedWeight],
    prepared: Prepared,
    calibration: Batches,
) -> None:
    """Bring the channels of layers back to the means and spreads that they had, in place; not of those that are used more
    than once, which have others at each use."""
    batch, uncompressed = one_batch(calibration), prepared.model
    uses = Counter(node.layer for node in prepared.inventory.graph.layers)
    last = {
        (layer, stage): name
        for name in dict.fromkeys(node.layer for node in graph.layers if node.layer is not None and node.has_bias)
        for layer, stage in [origin(plan, name)]
    }
    stages = {layer: max(stage for one, stage in last if one == layer) for layer, _ in last}
    kinds = {layer: type(uncompressed.get_submodule(layer)) for layer in stages if uses[layer] == 1}
    called = [layer for layer, kind in kinds.items() if kind.forward in SEEN]
    moments = output_moments(uncompressed, called, batch)
    wanted = {
        last[layer, stages[layer]]: found[:, left(found.shape[1], cuts.gone.get(layer, Gone()).outputs)]
        for layer, found in moments.items()
    }
    spreads = [
        name
        for name in wanted
        if "norms" in plan.adjustments
        and (name not in formats or (formats[name].granularity != "tensor" and formats[name].weight_bits < 16))
    ]
    norms = "norms" in plan.adjustments
    for name, (factor, shift) in corrections(module, graph, wanted, batch, spreads, norms).items():
        bias, weight = module.get_parameter(f"{name}.bias"), module.get_parameter(f"{name}.weight")
        bias.data = factor * bias + shift
        stored = weights.get(f"{name}.weight")
        if name in spreads and stored is not None:
            shape = (-1, 1) if stored.scale.dim() == 2 else (-1,)
            weights[f"{name}.weight"] = replace(stored, scale=stored.scale * factor.reshape(shape))
            weight.data = weights[f"{name}.weight"].dequantized()
        elif name in spreads:
            weight.data = weight * factor.reshape(-1, *[1] * (weight.dim() - 1))


def _quantize(
    module: GraphModule,
    graph: Graph,
    formats: Mapping[str, Format],
    weights: dict[str, QuantizedWeight],
    calibration: Batches,
    numerics: Numerics,
) -> dict[str, IntegerBias]:
    """Round activations on the calibration batches, then biases to the product of both steps."""
    public = quantized_tensors(graph, formats, numerics)
    private = rounded_for_products(graph, formats, public)
    sites = (*public, *private)
    readers = {name: [node.name for node in graph.users[name] if reads_rounded(node, formats)] for name in private}
    clips = {node.inputs[0]: formats[node.layer or ""].clip for node in graph.layers if reads_rounded(node, formats)}
    quantizers = calibrate_activations(module, sites, calibration, numerics, readers, clips)
    simulate_activations(module, graph, formats, calibration)
    round_to_float8(module, graph, formats, calibration)
    quantize_dynamically(module, graph, [name for name, chosen in formats.items() if chosen.dynamic])
    return round_biases(module, graph, formats, weights, quantizers) if numerics.integer_bias else {}


def requantized(
    compressed: Compressed,
    module: GraphModule,
    weights: Mapping[str, QuantizedWeight],
    masks: Mapping[str, torch.Tensor],
) -> Compressed:
    """The result with other weights, steps and biases, which are rounded to what these make of the accumulator's steps.

    Args:
        module: as ``compressed.model``, with parameters and quantizers of its own; changed in place.
        weights: the stored form of its weights.
        masks: of what is sparse.
    """
    stored = dict(weights)
    quantizers = {
        name.removeprefix("quantizer_"): one
        for name, one in module.named_modules()
        if isinstance(one, ActivationQuantizer)
    }
    biases: dict[str, IntegerBias] = {}
    if compressed.numerics.integer_bias:
        biases = round_biases(module, compressed.graph, compressed.formats, stored, quantizers)
    return replace(compressed, model=module, weights=stored, masks=dict(masks), biases=biases)
