"""Channel pruning that makes layers smaller. Torch-Pruning's dependency graph finds the coupled channels (DepGraph,
Fang et al., CVPR 2023) and cuts them; this module decides which, and forbids the groups where the cut is not right.

Torch-Pruning is silently wrong on some graphs (a strided slice with zero-padded channels as shortcut, for one). So no
group is believed: each is tried on random channels, and the physically pruned network must compute what the original
computes with the same channels masked.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from autocomp.errors import CompressionError
from autocomp.inventory import ChannelGroup

if TYPE_CHECKING:
    import torch
    import torch_pruning as tp

#: Random channel sets that every group must survive, and the share of channels cut in each.
TRIAL_SHARES = (0.25, 0.5)


def find_groups(
    model: torch.nn.Module, example_inputs: tuple[torch.Tensor, ...], order: Sequence[str]
) -> tuple[ChannelGroup, ...]:
    """The channel groups of a model, each checked on random channel sets; those that fail carry the reason.

    Args:
        model: in eval mode, batch norms folded; left as it is.
        example_inputs: positional inputs, batch first.
        order: the compressible layers' paths in execution order.
    """
    from torch import nn

    work = copy.deepcopy(model)
    names = {work.get_submodule(name): name for name in order}
    found: list[ChannelGroup] = []
    for members in _dependency_graph(work, example_inputs).get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]):
        cut = [(names.get(m.dep.layer, ""), m) for m in members]
        producers = {name for name, m in cut if name in order and _cuts_outputs(m)}
        if not producers:
            continue  # a layer inside a module that computes with its weights in its own way
        width = _out_channels(work.get_submodule(_first(producers, order)))
        consumers = {name: len(m.idxs) // width for name, m in cut if name in order and not _cuts_outputs(m)}
        ordered = tuple(name for name in order if name in producers)
        group = ChannelGroup(ordered[0], width, ordered, {name: consumers[name] for name in order if name in consumers})
        found.append(_checked(group, model, example_inputs))
    return tuple(sorted(found, key=lambda group: order.index(group.name)))


def _first(names: set[str], order: Sequence[str]) -> str:
    return next(name for name in order if name in names)


def _checked(group: ChannelGroup, model: torch.nn.Module, example_inputs: tuple[torch.Tensor, ...]) -> ChannelGroup:
    """``group``, with a reason where pruning it would not be right."""
    import torch

    if group.width < 2:
        return _forbidden(group, "it has a single channel")
    generator = torch.Generator().manual_seed(group.width)
    inputs = tuple(
        torch.randn(2, *x.shape[1:], generator=generator).to(x.dtype) if x.is_floating_point() else torch.cat([x, x])
        for x in example_inputs
    )
    for share in TRIAL_SHARES:
        count = max(1, int(group.width * share))
        channels = torch.randperm(group.width, generator=generator)[:count].tolist()
        try:
            masked = mask(model, example_inputs, group, channels)
            pruned = prune(model, example_inputs, [(group, channels)])
            with torch.no_grad():
                expected, actual = _flat(masked(*inputs)), _flat(pruned(*inputs))
        except (RuntimeError, ValueError, IndexError, AssertionError, CompressionError) as error:
            return _forbidden(group, f"the pruned network does not run ({str(error).splitlines()[0][:120]})")
        if expected.shape != actual.shape:
            return _forbidden(group, "they are the model's output")
        if not torch.allclose(expected, actual, rtol=1e-3, atol=1e-4 * float(expected.abs().max() + 1e-12)):
            return _forbidden(group, "the pruned network differs from the masked one (the coupling was not understood)")
    return group


def _forbidden(group: ChannelGroup, reason: str) -> ChannelGroup:
    return ChannelGroup(group.name, group.width, group.producers, group.consumers, reason)


def _flat(output: object) -> torch.Tensor:
    """All tensors of a model's output in one vector per example."""
    import torch
    from torch.utils._pytree import tree_leaves

    return torch.cat([leaf.flatten(1) for leaf in tree_leaves(output)], dim=1)


def choose_channels(
    model: torch.nn.Module, example_inputs: tuple[torch.Tensor, ...], group: ChannelGroup, kept: int
) -> list[int]:
    """The output channels of ``group`` to cut so that ``kept`` stay: those of least group magnitude (L2 over the
    weights of all producers and consumers, as in DepGraph), ties broken by index.

    Returns:
        Sorted channel indices, ``group.width - kept`` of them.
    """
    import torch_pruning as tp

    work = copy.deepcopy(model)
    members = _group(_dependency_graph(work, example_inputs), work, group, list(range(group.width)))
    importance = tp.importance.GroupMagnitudeImportance(p=2)(members)
    return sorted(importance.sort(stable=True).indices[: group.width - kept].tolist())


def prune(
    model: torch.nn.Module,
    example_inputs: tuple[torch.Tensor, ...],
    channels: Iterable[tuple[ChannelGroup, Sequence[int]]],
) -> torch.nn.Module:
    """A copy of ``model`` without the given output channels of each group.

    Where a low-rank pair has taken a producer's place, the channels are those of the pair's second half.

    Raises:
        CompressionError: Torch-Pruning will not cut a group.
    """
    work = copy.deepcopy(model)
    for group, indices in channels:
        members = _group(_dependency_graph(work, example_inputs), work, group, sorted(indices))
        members.prune()
    return work.requires_grad_(False)


def mask(
    model: torch.nn.Module, example_inputs: tuple[torch.Tensor, ...], group: ChannelGroup, channels: Sequence[int]
) -> torch.nn.Module:
    """A copy of ``model`` of unchanged shapes with the given channels of ``group`` zeroed: what pruning must equal."""
    import torch

    work = copy.deepcopy(model)
    members = _group(_dependency_graph(work, example_inputs), work, group, sorted(channels))
    with torch.no_grad():
        for member in members:
            weight = getattr(member.dep.layer, "weight", None)
            if not isinstance(weight, torch.Tensor) or isinstance(member.dep.layer, torch.nn.PReLU):
                continue  # a PReLU's slope does nothing to a zero, and may be shared by all channels
            inside = [i for i in member.idxs if i < weight.shape[0 if _cuts_outputs(member) else 1]]
            if _cuts_outputs(member):
                weight[inside] = 0
                if member.dep.layer.bias is not None:
                    member.dep.layer.bias[inside] = 0
            else:
                weight[:, inside] = 0
    return work.requires_grad_(False)


def _dependency_graph(model: torch.nn.Module, example_inputs: tuple[torch.Tensor, ...]) -> tp.DependencyGraph:
    import torch
    import torch_pruning as tp

    model.requires_grad_(True)  # Torch-Pruning follows the autograd graph
    with torch.enable_grad():
        return tp.DependencyGraph().build_dependency(model, example_inputs=example_inputs, verbose=False)


def _group(graph: tp.DependencyGraph, model: torch.nn.Module, group: ChannelGroup, channels: list[int]) -> tp.Group:
    from torch import nn
    from torch_pruning import prune_conv_out_channels, prune_linear_out_channels

    layer = model.get_submodule(group.name)
    if isinstance(layer, nn.Sequential):
        layer = layer[-1]
    cut = prune_linear_out_channels if isinstance(layer, nn.Linear) else prune_conv_out_channels
    try:
        return graph.get_pruning_group(layer, cut, channels)
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        raise CompressionError(f"Torch-Pruning cannot cut the channels of {group.name!r}: {error}") from error


def _cuts_outputs(member: tp.GroupItem) -> bool:
    return "out_channels" in member.dep.handler.__name__


def _out_channels(layer: torch.nn.Module) -> int:
    return int(layer.weight.shape[0])  # type: ignore[index]
