"""A plan applied to a model. The order of the methods is said here, once: rank, then sparsity, then format."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from autocomp.compress.agreement import failing
from autocomp.compress.attention import HeadCut, Heads, choose_heads, cut_heads, find_heads
from autocomp.compress.blocks import drop_blocks, find_blocks
from autocomp.compress.channels import Coupling, Cut, choose_units, gone_channels, prune
from autocomp.compress.couplings import find_couplings
from autocomp.compress.fold import fold_batch_norm
from autocomp.compress.grids import QuantizedWeight, with_larger_steps
from autocomp.compress.quantize import (
    DEFAULT_NUMERICS,
    ActivationQuantizer,
    Numerics,
    calibrate_activations,
    complete_formats,
    quantize_dynamically,
    quantized_tensors,
    rounded_for_products,
)
from autocomp.compress.solve import Gone, Setting, Solver
from autocomp.compress.statistics import Batches
from autocomp.compress.structure import restructure
from autocomp.compress.unpack import unpack_attention
from autocomp.errors import AutocompError
from autocomp.graph import Example, Graph, OutputForm, export_program, graph_module, read_graph
from autocomp.inventory import ChannelGroup, Inventory, ResidualBlock, layers_of
from autocomp.plan import Format, LayerPlan, Plan, Sparsity

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

    from autocomp.graph import Node

#: The layers that methods know, told by what they compute: a class of a user's own that inherits this is one of them.
FORWARDS = {kind.forward for kind in (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.Embedding)}

#: The largest bias in steps of the int32 accumulator; the other half of its range is left to the sum of products.
LARGEST_BIAS = 2**30

#: Biases below it are stored in half precision, whose largest number is 65,504.
LARGEST_HALF = 65_000.0


@dataclass(frozen=True)
class Prepared:
    """A model ready to be compressed again and again: batch norms folded, packed attentions unpacked, inventory taken.

    ``couplings`` and ``heads`` say what the inventory's groups cut where.
    """

    model: nn.Module
    example: Example
    inventory: Inventory
    couplings: tuple[Coupling, ...]
    heads: tuple[Heads, ...]
    outputs: OutputForm


@dataclass(frozen=True)
class IntegerBias:
    """A bias that an integer kernel adds in its accumulator: a whole number of ``steps``, () or one a channel, each the
    step of the input times that of the weight. ``halves`` are the floats of half precision that it was rounded from, as
    float32; None where it is too large for them."""

    steps: torch.Tensor
    halves: torch.Tensor | None


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


def prepare(
    model: nn.Module,
    example_inputs: tuple[torch.Tensor, ...],
    dynamic_dims: tuple[tuple[int, ...], ...] = (),
) -> Prepared:
    """Fold batch norms, unpack attentions and take the inventory. ``model`` is left as it is.

    Args:
        example_inputs: positional inputs at batch 1.
        dynamic_dims: see :class:`autocomp.task.Task`.

    Raises:
        TraceError: torch.export cannot follow the model.
    """
    example = Example(example_inputs, dynamic_dims)
    still = copy.deepcopy(model).eval().requires_grad_(False)
    folded = fold_batch_norm(unpack_attention(still, example_inputs), example)
    program = export_program(folded, example)
    graph = read_graph(program)
    used = Counter(node.layer for node in graph.layers if node.layer is not None)
    reasons = _why_left(folded, used) | dict.fromkeys(
        _of_constants(graph), "it computes with constants alone, and is folded when the file is written"
    )
    order = [name for name in used if name not in reasons]
    heads = find_heads(graph_module(program), graph, example.doubled())
    in_heads = {name for one in heads for name in one.group.producers}
    couplings = tuple(
        _forbid(one, next(reasons[name] for name in one.group.producers if name in reasons))
        if reasons.keys() & {*one.group.producers}
        else _forbid(one, "they make attention heads, which go as a whole")
        if in_heads & {*one.group.producers}
        else one
        for one in find_couplings(folded, example_inputs, list(used), graph)
    )
    with torch.no_grad():
        outputs = OutputForm.of(folded(*example_inputs))
    taken = Prepared(folded, example, Inventory((), (), (), graph, find_blocks(graph)), couplings, heads, outputs)
    called = _called(folded, example_inputs)
    grouped = _with_groups(taken, order, reasons, called)
    return _with_groups(_with_sound_shapes(grouped), order, reasons, called)


def _with_groups(
    prepared: Prepared, order: Sequence[str], reasons: Mapping[str, str], called: Collection[str]
) -> Prepared:
    """The inventory of what was found."""
    channels = tuple(one.group for one in prepared.couplings)
    heads = tuple(one.group for one in prepared.heads)
    known = tuple(group for group in heads if group.producers)
    layers = tuple(
        replace(layer, called=layer.name in called)
        for layer in layers_of(prepared.inventory.graph, channels)
        if layer.name in order
    )
    skipped = (*reasons.items(), *((group.name, f"its heads stay: {group.reason}") for group in heads if group.reason))
    blocks = tuple(block for block in prepared.inventory.blocks if not reasons.keys() & {*block.layers})
    inventory = Inventory(layers, (*channels, *known), skipped, prepared.inventory.graph, blocks)
    return replace(prepared, inventory=inventory)


def _called(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> set[str]:
    """The modules that the model calls; some take a linear's weight and compute with it themselves."""
    called: set[str] = set()
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: called.add(name))
        for name, module in model.named_modules()
    ]
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return called


def _with_sound_shapes(prepared: Prepared) -> Prepared:
    """The groups whose cut has the shapes that :func:`restructure` says; the others get a reason."""
    groups = [group for group in prepared.inventory.groups if group.prunable]

    def why_not(some: Sequence[ChannelGroup]) -> str | None:
        plan = Plan(
            {
                name: LayerPlan(Sparsity(group.pattern, max(1, group.width // 4) / group.width))
                for group in some
                for name in group.producers
            }
        )
        try:
            _, program = _restructured(prepared, plan, _cuts(prepared, plan), {})
            built, said = read_graph(program), restructure(prepared.inventory, plan).graph
        except AutocompError as error:
            return f"the network without them cannot be built ({error})"
        if [_facts(node) for node in built.nodes] != [_facts(node) for node in said.nodes]:
            return "the shapes of the network without them could not be followed"
        return None

    bad = failing(groups, why_not)
    return replace(
        prepared,
        couplings=tuple(
            _forbid(one, bad[id(one.group)]) if id(one.group) in bad else one for one in prepared.couplings
        ),
        heads=tuple(
            replace(one, group=replace(one.group, reason=bad[id(one.group)])) if id(one.group) in bad else one
            for one in prepared.heads
        ),
    )


def _facts(node: Node) -> tuple[object, ...]:
    return node.op, node.layer, node.shape, node.weight_shape, node.groups


def _forbid(coupling: Coupling, reason: str) -> Coupling:
    return replace(coupling, group=replace(coupling.group, reason=reason))


def _of_constants(graph: Graph) -> set[str]:
    """The layers, but for tables, that nothing given to the model reaches."""
    reached: set[str] = set()
    for node in graph.nodes:
        if node.op == "input" or not reached.isdisjoint(node.inputs):
            reached.add(node.name)
    return {node.layer for node in graph.layers if node.layer and node.op != "embedding" and node.name not in reached}


def _why_left(model: nn.Module, used: Counter[str]) -> dict[str, str]:
    """Modules with weights that are left as they are → the reason."""
    found = {}
    shared_weights = {id(model.get_parameter(f"{name}.weight")) for name in used}
    for name, module in model.named_modules():
        if used[name] > 1:
            found[name] = "its weight is used more than once"
        elif not any(True for _ in module.parameters(recurse=False)):
            continue
        elif name not in used and type(module).forward in FORWARDS:
            shared = id(getattr(module, "weight", None)) in shared_weights
            found[name] = "its weight is used more than once" if shared else "the model does not use it in evaluation"
        elif name not in used:
            found[name or "(the model itself)"] = f"{type(module).__name__} has no compression method here"
        elif type(module).forward not in FORWARDS:
            found[name] = f"{type(module).__name__} computes with its weight in its own way"
    return found


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
    cuts = _cuts(prepared, plan)
    ranks = {name: one.rank for name, one in plan.layers.items() if one.rank is not None}
    factors = {name: solver.factors(name, rank, [*ranks]) for name, rank in ranks.items()}
    module, program = _restructured(prepared, plan, cuts, factors)
    graph = read_graph(program)
    formats = _formats(graph, plan, numerics)
    weights, masks = _solve(module, graph, plan, cuts, formats, numerics, solver)
    biases = _quantize(module, graph, formats, weights, calibration, numerics)
    return Compressed(plan, module, graph, prepared.example, formats, weights, masks, biases, numerics)


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


@dataclass(frozen=True)
class _Cuts:
    """The units that a plan cuts, and the channels that its layers lose by them."""

    channels: tuple[Cut, ...]
    heads: tuple[HeadCut, ...]
    gone: Mapping[str, Gone]


def _cuts(prepared: Prepared, plan: Plan) -> _Cuts:
    """Which channels and heads go is decided on the untouched weights."""
    levels = {(group.name, group.pattern): group.kept(level) for group, level in prepared.inventory.unit_levels(plan)}
    channels = tuple(
        (one, choose_units(prepared.model, one, levels[one.group.name, "channel"]))
        for one in prepared.couplings
        if (one.group.name, "channel") in levels
    )
    heads = tuple(
        (one, choose_heads(prepared.model, one, levels[one.group.name, "head"]))
        for one in prepared.heads
        if (one.group.name, "head") in levels
    )
    sides: dict[tuple[str, str], set[int]] = {}
    for (path, side, dim), indices in gone_channels(channels).items():
        if dim is None and side != "own":
            sides.setdefault((path, side), set()).update(indices)
    for one, units in heads:
        for side, tables in (("out", one.rows), ("in", one.columns)):
            for path, table in tables.items():
                sides.setdefault((path, side), set()).update(index for unit in units for index in table[unit])
    paths = {path for path, _ in sides}
    gone = {
        path: Gone(*(tuple(sorted(sides.get((path, side), ()))) for side in ("out", "in"))) for path in sorted(paths)
    }
    return _Cuts(channels, heads, gone)


def _restructured(
    prepared: Prepared, plan: Plan, cuts: _Cuts, factors: Mapping[str, nn.Sequential]
) -> tuple[GraphModule, ExportedProgram]:
    """Ranks truncated, channels and heads cut, blocks left out.

    Args:
        factors: layer → the stages that take its place.
    """
    model = copy.deepcopy(prepared.model)
    for name, stages in factors.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, copy.deepcopy(stages))
    program = export_program(prune(model, cuts.channels) if cuts.channels else model, prepared.example)
    module = graph_module(program)
    blocks: tuple[ResidualBlock, ...] = prepared.inventory.dropped(plan)
    if cuts.heads or blocks:
        cut_heads(module, cuts.heads)
        drop_blocks(module, blocks)
        program = export_program(module, prepared.example)
        module = graph_module(program)
    return module, program


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
    cuts: _Cuts,
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
        if one.mask is not None or one.format is not None:
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
    readers = {name: [node.name for node in graph.users[name] if _reads_rounded(node, formats)] for name in private}
    quantizers = calibrate_activations(module, sites, calibration, numerics, readers)
    quantize_dynamically(module, graph, [name for name, chosen in formats.items() if chosen.dynamic])
    calibrated = [node for node in graph.layers if _reads_rounded(node, formats)]
    in_integers = [node for node in calibrated if node.op == "conv2d" or node.is_gemm]
    return _round_biases(module, in_integers, formats, weights, quantizers) if numerics.integer_bias else {}


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
    graph, stored = compressed.graph, dict(weights)
    calibrated = [node for node in graph.layers if _reads_rounded(node, compressed.formats)]
    in_integers = [node for node in calibrated if node.op == "conv2d" or node.is_gemm]
    quantizers = {
        name.removeprefix("quantizer_"): one
        for name, one in module.named_modules()
        if isinstance(one, ActivationQuantizer)
    }
    biases: dict[str, IntegerBias] = {}
    if compressed.numerics.integer_bias:
        biases = _round_biases(module, in_integers, compressed.formats, stored, quantizers)
    return replace(compressed, model=module, weights=stored, masks=dict(masks), biases=biases)


def _reads_rounded(node: Node, formats: Mapping[str, Format]) -> bool:
    chosen = formats.get(node.layer or "")
    return chosen is not None and chosen.calibrated


def _round_biases(
    module: GraphModule,
    layers: Sequence[Node],
    formats: Mapping[str, Format],
    weights: dict[str, QuantizedWeight],
    quantizers: Mapping[str, ActivationQuantizer],
) -> dict[str, IntegerBias]:
    """Integer kernels add the bias in the accumulator, whose step is that of the input times that of the weight.

    A channel whose weights are next to nothing (a batch norm has switched it off, or pruning took them all) may still
    have a bias; its weights, entries of ``weights``, are then given a step with which the bias does not overflow.
    """
    biases: dict[str, IntegerBias] = {}
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
