"""A model made ready to be compressed again and again: batch norms folded, attentions unpacked, convolutions over sequences
taken for ones over images, inventory taken."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from torch.nn.utils import parametrize

from autocomp.compress.agreement import failing
from autocomp.compress.attention import find_heads
from autocomp.compress.blocks import find_blocks
from autocomp.compress.channels import Coupling
from autocomp.compress.couplings import find_couplings
from autocomp.compress.fold import fold_batch_norm
from autocomp.compress.lines import over_images
from autocomp.compress.rebuild import Prepared, cuts_of, rebuilt
from autocomp.compress.solve import Solver
from autocomp.compress.structure import restructure
from autocomp.compress.unpack import unpack_attention
from autocomp.errors import RequestError, first_line
from autocomp.fx_nodes import operator_name
from autocomp.graph import WEIGHT_ARGUMENT, Graph
from autocomp.inventory import ChannelGroup, Inventory, layers_of
from autocomp.plan import LayerPlan, Plan, Sparsity
from autocomp.trace import Example, OutputForm, export_program, graph_module, read_graph

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from autocomp.graph import Node

#: The layers that methods know, told by what they compute: a class of a user's own that inherits this is one of them.
FORWARDS = {kind.forward for kind in (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.Embedding)}

#: Of tables with more weights torch.onnx leaves the rows to be looked up at run time.
FOLDED = 8192


def prepare(
    model: nn.Module,
    example_inputs: tuple[torch.Tensor, ...],
    dynamic_dims: tuple[tuple[int, ...], ...] = (),
) -> Prepared:
    """Fold batch norms, unpack attentions, take sequences for images and take the inventory. ``model`` is left as it is.

    Args:
        example_inputs: positional inputs at batch 1.
        dynamic_dims: see :class:`autocomp.task.Task`.

    Raises:
        RequestError: the model is not of 32-bit floats on the CPU, or cannot be copied.
        TraceError: torch.export cannot follow the model.
    """
    _check_floats(model, example_inputs)
    example = Example(example_inputs, dynamic_dims)
    still = _copied(model)
    if _changes(still, example_inputs):
        still.register_forward_pre_hook(_of_copies)
    unpacked = over_images(unpack_attention(still, example_inputs), example_inputs)
    folded = fold_batch_norm(unpacked, example)
    program = export_program(folded, example)
    graph = read_graph(program)
    used = Counter(node.layer for node in graph.layers if node.layer is not None)
    computed = [node.layer for node in graph.layers if node.layer is not None and node.computed_bias]
    reasons = (
        _why_left(folded, used)
        | dict.fromkeys(_read_otherwise(program), "its weight is read by other operators as well")
        | dict.fromkeys(computed, "its bias is computed anew at every run")
        | dict.fromkeys(
            _of_constants(graph, program), "it computes with constants alone, and is folded when the file is written"
        )
    )
    order = [name for name in used if name not in reasons]
    heads = tuple(
        replace(one, group=replace(one.group, reason=one.group.reason or _first(reasons, one.group.producers)))
        for one in find_heads(graph_module(program), graph, example.doubled())
    )
    in_heads = {name for one in heads for name in one.group.producers}
    couplings = tuple(
        _forbid(one, reason)
        if (reason := _first(reasons, one.group.producers)) is not None
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


def _check_floats(model: nn.Module, example_inputs: tuple[torch.Tensor, ...]) -> None:
    numbered = ((f"input {number}", one) for number, one in enumerate(example_inputs))
    for name, one in (*model.named_parameters(), *model.named_buffers(), *numbered):
        odd = isinstance(one, nn.Parameter) and one.is_floating_point() and one.dtype != torch.float32
        if odd or one.device.type != "cpu":
            raise RequestError(
                f"a model and its inputs must be float32 on the CPU; {name!r} is {one.dtype} on {one.device}; "
                "give it .float().cpu()"
            )


def _copied(model: nn.Module) -> nn.Module:
    """A copy in evaluation, whose weights are all its own: those that are computed of others are computed once. A layer that is
    all of a model is one in a row of one, so that others can take its place."""
    try:
        found = copy.deepcopy(model).eval().requires_grad_(False)
        for module in [*found.modules()]:
            if parametrize.is_parametrized(module):
                _compute_once(module)
        return nn.Sequential(found) if type(found).forward in FORWARDS else found
    except RuntimeError as error:  # a weight that is not a leaf of the autograd graph
        raise RequestError(
            f"a model must be one that copy.deepcopy can copy; it stopped at: {first_line(error)}; where it has "
            "torch.nn.utils.weight_norm, call remove_weight_norm on its layers"
        ) from error


def _compute_once(module: nn.Module) -> None:
    """Have a module whose tensors are computed of others hold them themselves, in place. torch's own way takes what computes
    them from the class, which the model that was copied has as well."""
    values = {name: getattr(module, name) for name in cast("nn.ModuleDict", module.parametrizations)}
    del module.parametrizations
    module.__class__ = type(module).__bases__[0]
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value.detach().clone(), requires_grad=False))


def _changes(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> bool:
    """Whether a model writes into what it is given; not where it fails, which tracing it will tell."""
    given = tuple(one.clone() for one in inputs)
    before = [one._version for one in given]
    try:
        with torch.no_grad():
            model(*given)
    except Exception:  # noqa: BLE001
        return False
    return [one._version for one in given] != before  # also where what was written is what was there


def _of_copies(_: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """What is run again and again on the same batches must not write into them."""
    return tuple(one.clone() for one in given)


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
    solver = Solver(prepared.model, ())

    def why_not(some: Sequence[ChannelGroup]) -> str | None:
        plan = Plan(
            {
                name: LayerPlan(Sparsity(group.pattern, max(1, group.width // 4) / group.width))
                for group in some
                for name in group.producers
            }
        )
        try:
            _, built = rebuilt(prepared, plan, cuts_of(prepared, plan, solver), {}, solver)
            said = restructure(prepared.inventory, plan).graph
        except Exception as error:  # noqa: BLE001  torch raises whatever the narrower network makes it stumble over
            return f"the network without them cannot be built ({first_line(error)})"
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


def _first(reasons: Mapping[str, str], names: Iterable[str]) -> str | None:
    return next((reasons[name] for name in names if name in reasons), None)


def _forbid(coupling: Coupling, reason: str) -> Coupling:
    return replace(coupling, group=replace(coupling.group, reason=reason))


def _of_constants(graph: Graph, program: ExportedProgram) -> set[str]:
    """The layers that nothing given to the model reaches, but for tables that are looked up at run time all the same: large
    ones, and those read by as many words as there are."""
    fixed = {
        node.name
        for node in program.graph.nodes
        if all(isinstance(size, int) for size in getattr(node.meta.get("val"), "shape", ()))
    }
    reached: set[str] = set()
    for node in graph.nodes:
        if node.op == "input" or not reached.isdisjoint(node.inputs):
            reached.add(node.name)
    return {
        node.layer
        for node in graph.layers
        if node.layer
        and node.name not in reached
        and (node.op != "embedding" or (node.name in fixed and node.weights <= FOLDED))
    }


def _read_otherwise(program: ExportedProgram) -> set[str]:
    """The layers whose weight is an ordinary tensor as well, as that of an embedding whose transpose gives the logits."""
    parameters, found = program.graph_signature.inputs_to_parameters, set[str]()
    for node in program.graph.nodes:
        layer, _, parameter = parameters.get(node.name, "").rpartition(".")
        if parameter != "weight":
            continue
        places = [
            WEIGHT_ARGUMENT.get(operator_name(user)) if user.op == "call_function" else None for user in node.users
        ]
        as_weight = [
            place is not None and len(user.args) > place and user.args[place] is node
            for user, place in zip(node.users, places, strict=True)
        ]
        if any(as_weight) and not all(as_weight):
            found.add(layer)
    return found


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
