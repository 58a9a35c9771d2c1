"""Which channels go together. Torch-Pruning's dependency graph finds them (DepGraph, Fang et al., CVPR 2023); this
module reads off, once a model, what every module loses with each of them.

Torch-Pruning is silently wrong on some graphs (a strided slice with zero-padded channels as shortcut, for one). So no
group is believed: all are tried on random channels, and the physically pruned network must compute what the original
computes with the same channels masked.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING
from unittest import mock

from autocomp.compress.agreement import agree, failing, of_same_shapes, output_tensors, shake
from autocomp.compress.channels import Coupling, Side, Slice, depthwise, mask, prune
from autocomp.errors import CompressionError, first_line
from autocomp.graph import ACTIVATIONS, COPIES, Graph
from autocomp.graph import Node as GraphNode
from autocomp.inventory import ChannelGroup

if TYPE_CHECKING:
    import torch
    import torch_pruning as tp

#: Random channel sets that every group must survive, and the share of channels cut in each.
TRIAL_SHARES = (0.25, 0.5)

#: A group that reaches more places, or has more indices in all of them, is not followed.
MOST_DEPENDENCIES, MOST_INDICES = 4000, 4_000_000

#: Operations that give every channel what they make of that channel alone.
PER_CHANNEL = (
    ACTIVATIONS
    | COPIES
    | {"hardswish", "hardswish_", "hardsigmoid", "sigmoid", "silu", "silu_", "gelu", "tanh", "elu", "leaky_relu"}
    | {"max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"}
)


def find_couplings(
    model: torch.nn.Module,
    example_inputs: tuple[torch.Tensor, ...],
    order: Sequence[str],
    traced: Graph | None = None,
) -> tuple[Coupling, ...]:
    """The channel groups of a model, each checked on random channel sets; those that fail carry the reason.

    Args:
        model: in eval mode, batch norms folded; left as it is.
        example_inputs: positional inputs, batch first.
        order: the compressible layers' paths in execution order.
        traced: the model's graph. Where Torch-Pruning cannot follow the model, the layers are tried whose channels go
            straight to the next ones.
    """
    from torch import nn

    work = copy.deepcopy(model)
    paths: dict[int, str] = {id(module): path for path, module in work.named_modules()}
    paths |= {id(parameter): path for path, parameter in work.named_parameters()}
    try:
        with warnings.catch_warnings(), _bounded_groups():
            # Where it gives up on a channel count, it goes on for hours and finds nothing.
            warnings.filterwarnings("error", "Maximum recursive depth")
            graph = _dependency_graph(work, example_inputs)
            roots = [nn.Conv2d, nn.ConvTranspose2d, nn.Linear]
            groups = list(graph.get_all_groups(root_module_types=roots))
    except Exception as error:  # noqa: BLE001  Torch-Pruning raises whatever the graph makes it stumble over
        reason = f"Torch-Pruning cannot follow the model ({first_line(error)[:120]})"
        straight = list(_straight_chains(traced)) if traced is not None else []
        known = {name for one in straight for name in one.group.producers}
        others = [Coupling(ChannelGroup(name, 0, (name,), {}, reason), ()) for name in order if name not in known]
        return _checked(
            sorted([*straight, *others], key=lambda one: order.index(one.group.name)), model, example_inputs
        )
    found: dict[str, Coupling] = {}
    for members in groups:
        coupling = _coupling(members, paths, order)
        if coupling is not None:
            found.setdefault(coupling.group.name, coupling)
    ordered = sorted(found.values(), key=lambda coupling: order.index(coupling.group.name))
    return _checked(ordered, model, example_inputs)


@contextmanager
def _bounded_groups() -> Iterator[None]:
    """Stops Torch-Pruning at a group that grows without end: where channels are rearranged again and again (windows of
    attention), it follows every arrangement, quadratically and for tens of gigabytes."""
    from torch_pruning.dependency import graph

    class Bounded(graph.Group):  # type: ignore[misc]
        indices = 0

        def add_dep(self, dep: object, idxs: Sequence[object]) -> None:
            self.indices += len(idxs)
            if len(self) >= MOST_DEPENDENCIES or self.indices > MOST_INDICES:
                raise CompressionError(f"a group of channels reaches further than {len(self)} places")
            super().add_dep(dep, idxs)

    with mock.patch.object(graph, "Group", Bounded):
        yield


def _straight_chains(graph: Graph) -> Iterator[Coupling]:
    """The layers whose channels nothing joins, splits or adds to others on the way to the layers that read them."""
    depthwise = {node.layer for node in graph.layers if node.groups > 1}
    for start in graph.layers:
        if start.op in {"conv2d", "linear"} and start.layer not in depthwise:
            members = _chain(graph, start)
            if members is not None:
                rows = tuple((channel,) for channel in range(start.outputs))
                producers = tuple(dict.fromkeys(path for path, side in members if side == "out"))
                consumers = {path: 1 for path, side in members if side == "in"}
                reason = None if start.outputs > 1 else "it has a single channel"
                group = ChannelGroup(producers[0], start.outputs, producers, consumers, reason)
                yield Coupling(group, tuple(Slice(path, side, rows) for path, side in members))


def _chain(graph: Graph, start: GraphNode) -> list[tuple[str, Side]] | None:
    """What loses a channel with ``start``; None where that is not to be seen at once."""
    members: list[tuple[str, Side]] = [(start.layer or "", "out")]
    waiting = [start]
    while waiting:
        node = waiting.pop()
        if node.name in graph.outputs:
            return None
        for user in graph.users[node.name]:
            vectors = len(user.shape) == 2 and user.shape[1] == start.outputs
            if user.layer is None:
                if user.parameters or len(user.inputs) > 1 or not (user.op in PER_CHANNEL or vectors):
                    return None
                waiting.append(user)
            elif user.op == "conv2d" and user.groups == user.outputs == start.outputs:
                members.append((user.layer, "out"))
                waiting.append(user)
            elif user.groups == 1 and (user.op == start.op or (user.op == "linear" and len(node.shape) == 2)):
                members.append((user.layer, "in"))
            else:
                return None
    return members if len(members) > 1 else None


def _coupling(members: tp.Group, paths: Mapping[int, str], order: Sequence[str]) -> Coupling | None:
    """A group of Torch-Pruning's in our terms; None where it prunes no layer's outputs."""
    from torch import nn

    width = len(members[0].idxs)
    rows: dict[tuple[str, Side, int | None], list[list[int]]] = {}
    reason, conv_groups = None, {1}
    for member in members:
        module = member.dep.target.module
        path = paths.get(id(module))
        side = _side(module, member)
        if path is None or side is None:
            if path is not None and any(True for _ in module.parameters()):
                reason = reason or f"{type(module).__name__} {path} holds them in its own way"
            continue
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            reason = reason or f"{type(module).__name__} {path} normalizes over them"
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and module.groups > 1 and not depthwise(module):
            conv_groups.add(module.groups)
        dim = int(member.dep.target.pruning_dim) if isinstance(module, nn.Parameter) else None
        table = rows.setdefault((path, side, dim), [[] for _ in range(width)])
        for index, root in zip(member.idxs, member.root_idxs, strict=True):
            if 0 <= root < width and index not in table[root]:
                table[root].append(int(index))
    produced = {path for path, side, _ in rows if side == "out" and path in order}
    if not produced:
        return None
    per_unit = max(conv_groups)
    if len(conv_groups) > 2 or width % per_unit:
        reason, per_unit = reason or "convolutions of different group counts share them", 1
    # A grouped convolution loses the same channels in each of its groups.
    units = [[unit + part * (width // per_unit) for part in range(per_unit)] for unit in range(width // per_unit)]
    slices = tuple(
        Slice(path, side, tuple(tuple(sorted(i for root in unit for i in table[root])) for unit in units), dim)
        for (path, side, dim), table in rows.items()
    )
    if any(len({len(row) for row in one.indices}) > 1 for one in slices):
        reason = reason or "they are not all read alike"
    consumed = {one.path: len(one.indices[0]) for one in slices if one.side == "in" and one.path in order}
    producers = tuple(name for name in order if name in produced)
    group = ChannelGroup(
        producers[0],
        len(units),
        producers,
        {name: consumed[name] for name in order if name in consumed},
        reason if len(units) > 1 else "it has a single channel",
        per_unit,
    )
    return Coupling(group, slices)


def _side(module: object, member: tp.GroupItem) -> Side | None:
    from torch import nn

    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
        return "out" if "out_channels" in member.dep.handler.__name__ or depthwise(module) else "in"
    if isinstance(module, nn.Embedding):
        return "out"
    holders = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.PReLU, nn.Parameter)
    return "own" if isinstance(module, holders) else None


def _checked(
    couplings: Sequence[Coupling], model: torch.nn.Module, example_inputs: tuple[torch.Tensor, ...]
) -> tuple[Coupling, ...]:
    """The couplings, with a reason where pruning them would not be right. All are cut at once; where that is not
    right, halves tell which ones it is."""
    open_ones = [one for one in couplings if one.group.prunable]
    shaken = shake(model)
    # The last layer's channels mostly are the model's output, which would make every joint trial fail.
    found = failing(open_ones[-1:], lambda some: why_not(some, shaken, example_inputs))
    found |= failing(open_ones[:-1], lambda some: why_not(some, shaken, example_inputs))
    return tuple(
        replace(one, group=replace(one.group, reason=found[id(one)])) if id(one) in found else one for one in couplings
    )


def why_not(
    couplings: Sequence[Coupling], model: torch.nn.Module, example_inputs: tuple[torch.Tensor, ...]
) -> str | None:
    """Why random channels of these groups cannot be cut; None where pruned and masked network agree."""
    import torch

    generator = torch.Generator().manual_seed(sum(one.group.width for one in couplings))
    inputs = _trial_inputs(model, example_inputs, generator)
    for share in TRIAL_SHARES:
        cuts = [
            (one, torch.randperm(one.group.width, generator=generator)[: max(1, int(one.group.width * share))].tolist())
            for one in couplings
        ]
        try:
            masked, pruned = mask(model, cuts), prune(model, cuts)
            with torch.no_grad():
                expected, actual = masked(*inputs), pruned(*inputs)
        except (RuntimeError, ValueError, IndexError, AssertionError, TypeError, CompressionError) as error:
            return f"the pruned network does not run ({first_line(error)[:120]})"
        if not of_same_shapes(expected, actual):
            return "they are the model's output"
        if not agree(expected, actual):
            return "the pruned network differs from the masked one (the coupling was not understood)"
    return None


def _trial_inputs(
    model: torch.nn.Module, example_inputs: tuple[torch.Tensor, ...], generator: torch.Generator
) -> tuple[torch.Tensor, ...]:
    """Noise, which hides nothing; the example where the model makes no numbers of that, as one that begins with a logarithm."""
    import torch

    doubled = tuple(torch.cat([x[:1], x[:1]]) for x in example_inputs)
    noise = tuple(
        torch.randn(x.shape, generator=generator).to(x.dtype) if x.is_floating_point() else x for x in doubled
    )
    try:
        with torch.no_grad():
            numbers = not any(bool(one.isnan().any()) for one in output_tensors(model(*noise)))
    except (RuntimeError, IndexError, ValueError):
        numbers = False
    return noise if numbers else doubled


def _dependency_graph(model: torch.nn.Module, example_inputs: tuple[torch.Tensor, ...]) -> tp.DependencyGraph:
    import torch
    import torch_pruning as tp

    model.requires_grad_(True)  # Torch-Pruning follows the autograd graph
    with torch.enable_grad():
        return tp.DependencyGraph().build_dependency(
            model, example_inputs=example_inputs, output_transform=output_tensors, verbose=False
        )
