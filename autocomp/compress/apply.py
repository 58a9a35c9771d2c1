"""A plan applied to a model. The order of the methods is said here, once: rank, then sparsity, then format."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from autocomp.compress.channels import choose_channels, find_groups, prune
from autocomp.compress.factorize import factorize
from autocomp.compress.fold import fold_batch_norm
from autocomp.compress.prune import magnitude_mask
from autocomp.compress.quantize import (
    DEFAULT_NUMERICS,
    ActivationQuantizer,
    Numerics,
    QuantizedWeight,
    calibrate_activations,
    complete_formats,
    quantize_weight,
    quantized_tensors,
    with_larger_steps,
)
from autocomp.graph import Graph, export_program, graph_module, read_graph
from autocomp.inventory import Inventory, layers_of
from autocomp.plan import LayerPlan, Plan

if TYPE_CHECKING:
    from torch.fx import GraphModule

Batches = Sequence[tuple[torch.Tensor, ...]]

#: The largest bias in steps of the int32 accumulator; the other half of its range is left to the sum of products.
LARGEST_BIAS = 2**30


@dataclass(frozen=True)
class Prepared:
    """A model ready to be compressed again and again: batch norms folded, inventory taken."""

    model: nn.Module
    example_inputs: tuple[torch.Tensor, ...]
    inventory: Inventory


@dataclass(frozen=True)
class Compressed:
    """A compressed model.

    ``model`` is a module that computes what the exported file computes: pruned, factorized, with weights and
    activations rounded as the file rounds them. ``weights`` holds the stored form of every weight that is quantized
    or sparse, by parameter name; ``bias_scales`` the steps of the biases that are stored as int32.
    """

    plan: Plan
    model: GraphModule
    graph: Graph
    example_inputs: tuple[torch.Tensor, ...]
    weights: Mapping[str, QuantizedWeight]
    masks: Mapping[str, torch.Tensor]
    bias_scales: Mapping[str, torch.Tensor]


def prepare(model: nn.Module, example_inputs: tuple[torch.Tensor, ...]) -> Prepared:
    """Fold batch norms and take the inventory. ``model`` is left as it is.

    Raises:
        TraceError: torch.export cannot follow the model.
    """
    folded = fold_batch_norm(model, example_inputs)
    graph = read_graph(export_program(folded, example_inputs))
    order = [node.layer for node in graph.layers if node.layer is not None]
    repeated = {name for name in order if order.count(name) > 1}
    groups = tuple(
        replace(group, reason="its weight is used more than once") if repeated & {*group.producers} else group
        for group in find_groups(folded, example_inputs, list(dict.fromkeys(order)))
    )
    layers = tuple(layer for layer in layers_of(graph, groups) if layer.name not in repeated)
    return Prepared(folded, example_inputs, Inventory(layers, groups, _skipped(folded, order, repeated), graph))


def _skipped(model: nn.Module, order: Sequence[str], repeated: set[str]) -> tuple[tuple[str, str], ...]:
    """Modules with weights that are left as they are, with the reason."""
    found = []
    for name, module in model.named_modules():
        if name in repeated:
            found.append((name, "its weight is used more than once"))
        elif name not in order and any(True for _ in module.parameters(recurse=False)):
            found.append((name, f"{type(module).__name__} has no compression method here"))
    return tuple(found)


def apply(prepared: Prepared, plan: Plan, calibration: Batches, numerics: Numerics = DEFAULT_NUMERICS) -> Compressed:
    """Compress a prepared model. Pure: the same arguments give the same result, and nothing given is changed.

    Args:
        calibration: batches of positional inputs for the ranges of quantized activations.
        numerics: the integer arithmetic of the runtime that the result is for.

    Raises:
        PlanError: the plan does not fit the model.
        CompressionError: a group of channels cannot be cut.
    """
    prepared.inventory.check(plan)
    structured = _restructured(prepared, plan)
    masks = _cut_weights(structured, plan)
    program = export_program(structured, prepared.example_inputs)
    graph = read_graph(program)
    module = graph_module(program)
    weights, bias_scales = _quantize(module, graph, plan, masks, calibration, numerics)
    return Compressed(plan, module, graph, prepared.example_inputs, weights, masks, bias_scales)


def compress(
    model: nn.Module,
    plan: Plan,
    example_inputs: tuple[torch.Tensor, ...],
    calibration: Batches,
    numerics: Numerics = DEFAULT_NUMERICS,
) -> Compressed:
    """Apply ``plan`` to ``model``, which is left as it is.

    Args:
        model: a trained network.
        example_inputs: its positional inputs at batch 1.
        calibration: batches of positional inputs; used for the ranges of quantized activations.
        numerics: the integer arithmetic of the runtime that the result is for.

    Raises:
        TraceError: torch.export cannot follow the model.
        PlanError: the plan does not fit the model.
    """
    return apply(prepare(model, example_inputs), plan, calibration, numerics)


def _restructured(prepared: Prepared, plan: Plan) -> nn.Module:
    """Ranks truncated, channels cut. Which channels go is decided on the untouched weights."""
    model = copy.deepcopy(prepared.model)
    for name, layer_plan in plan.layers.items():
        if layer_plan.rank is not None:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, factorize(model.get_submodule(name), layer_plan.rank.r))
    cut = [
        (group, choose_channels(prepared.model, prepared.example_inputs, group, group.kept(level)))
        for group, level in prepared.inventory.channel_levels(plan)
    ]
    return prune(model, prepared.example_inputs, cut)


def plan_of(plan: Plan, layer: str) -> LayerPlan:
    """The plan of a layer of the restructured model: a low-rank pair's halves have that of the layer they replace."""
    parent, _, half = layer.rpartition(".")
    return plan[parent] if half in {"0", "1"} and plan[parent].rank is not None else plan[layer]


def _cut_weights(model: nn.Module, plan: Plan) -> dict[str, torch.Tensor]:
    """Zero the weights that unstructured sparsity cuts, in place; parameter name → mask of what stays."""
    masks = {}
    for name, module in model.named_modules():
        level = plan_of(plan, name).unstructured_level() if isinstance(module, (nn.Conv2d, nn.Linear)) else 0.0
        if level > 0:
            mask = magnitude_mask(module.weight, level)
            module.weight.data = torch.where(mask, module.weight.data, torch.zeros(()))
            masks[f"{name}.weight"] = mask
    return masks


def _quantize(
    module: GraphModule,
    graph: Graph,
    plan: Plan,
    masks: Mapping[str, torch.Tensor],
    calibration: Batches,
    numerics: Numerics,
) -> tuple[dict[str, QuantizedWeight], dict[str, torch.Tensor]]:
    """Round weights, then activations on the calibration batches, then biases to the product of both steps."""
    planned = {node.layer: plan_of(plan, node.layer).format for node in graph.layers if node.layer is not None}
    formats = complete_formats(graph, planned, numerics)
    weights: dict[str, QuantizedWeight] = {}
    for name, chosen in formats.items():
        if chosen is not None:
            parameter = module.get_parameter(f"{name}.weight")
            stored = quantize_weight(parameter, chosen.weight_bits, masks.get(f"{name}.weight"))
            parameter.data = stored.dequantized()
            weights[f"{name}.weight"] = stored
    quantized = [name for name, chosen in formats.items() if chosen is not None]
    sites = quantized_tensors(graph, quantized, numerics)
    quantizers = calibrate_activations(module, sites, calibration, numerics)
    return weights, _round_biases(module, graph, weights, quantizers) if numerics.integer_bias else {}


def _round_biases(
    module: GraphModule,
    graph: Graph,
    weights: dict[str, QuantizedWeight],
    quantizers: Mapping[str, ActivationQuantizer],
) -> dict[str, torch.Tensor]:
    """Integer kernels add the bias in the accumulator, whose step is that of the input times that of the weight.

    A channel whose weights are next to nothing (a batch norm has switched it off, or pruning took them all) may still
    have a bias; its weights, entries of ``weights``, are then given a step with which the bias does not overflow.
    """
    scales: dict[str, torch.Tensor] = {}
    used = Counter(node.layer for node in graph.layers)
    for node in graph.layers:
        name = f"{node.layer}.weight"
        if name in weights and node.has_bias and used[node.layer] == 1:  # one bias has no step for several inputs
            bias = module.get_parameter(f"{node.layer}.bias")
            input_step = quantizers[node.inputs[0]].scale
            weights[name] = with_larger_steps(weights[name], bias.abs() / (LARGEST_BIAS * input_step))
            module.get_parameter(name).data = weights[name].dequantized()
            step = weights[name].scale * input_step
            bias.data = (bias / step).round() * step
            scales[f"{node.layer}.bias"] = step
    return scales
