"""Channel pruning that makes layers smaller: what goes together when a channel goes, and the cutting of it."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from autocomp.errors import CompressionError
from autocomp.inventory import ChannelGroup

if TYPE_CHECKING:
    import torch

Side = Literal["out", "in", "own"]


@dataclass(frozen=True)
class Slice:
    """What one module, or one bare parameter, loses with each unit of a group.

    ``side``: its outputs, its inputs, or (norms, slopes, parameters) what it holds per channel. ``indices`` are the
    channels on that side, a row a unit; ``dim`` is a bare parameter's dimension, None for a module.
    """

    path: str
    side: Side
    indices: tuple[tuple[int, ...], ...]
    dim: int | None = None


@dataclass(frozen=True)
class Coupling:
    """A channel group and the slices that go together when one of its units goes."""

    group: ChannelGroup
    slices: tuple[Slice, ...]


Cut = tuple[Coupling, Sequence[int]]


def choose_units(
    model: torch.nn.Module, coupling: Coupling, kept: int, scores: Callable[[str], torch.Tensor]
) -> list[int]:
    """The units of a group to cut so that ``kept`` stay: those whose weights, of all that is cut with them (as in
    DepGraph), have the least scores together; ties broken by index.

    Args:
        scores: module → a score for each of its weights, of the weight's shape.

    Returns:
        Sorted units, ``group.width - kept`` of them.
    """
    order = unit_scores(model, coupling, scores).sort(stable=True).indices
    return sorted(order[: coupling.group.width - kept].tolist())


def unit_scores(model: torch.nn.Module, coupling: Coupling, scores: Callable[[str], torch.Tensor]) -> torch.Tensor:
    """The sum of the scores of all weights that go with each unit of a group, (width,)."""
    import torch

    total = torch.zeros(coupling.group.width, dtype=torch.float64)
    for one in coupling.slices:
        if one.side == "own":
            continue
        along = _along(model.get_submodule(one.path), one.side)
        energy = scores(one.path).double().movedim(along, 0).flatten(1).sum(dim=1)
        indices = torch.tensor(one.indices)
        total += energy[indices % len(energy)].sum(dim=1)
    return total


def prune(model: torch.nn.Module, cuts: Iterable[Cut]) -> torch.nn.Module:
    """A copy of ``model`` without the given units of each group.

    Where low-rank stages have taken a layer's place, the first loses inputs and the last outputs.
    """
    from torch import nn

    work = copy.deepcopy(model).requires_grad_(False)
    for (path, side, dim), gone in gone_channels(cuts).items():
        if dim is not None:
            parent, _, name = path.rpartition(".")
            owner, parameter = work.get_submodule(parent), work.get_parameter(path)
            setattr(owner, name, _kept(parameter, dim, gone))
            continue
        module = work.get_submodule(path)
        if isinstance(module, nn.Sequential):
            module = module[-1 if side == "out" else 0]
        cut_channels(module, side, gone)
    return work


def mask(model: torch.nn.Module, cuts: Iterable[Cut]) -> torch.nn.Module:
    """A copy of ``model`` of unchanged shapes with the given units zeroed: what pruning must equal."""
    import torch
    from torch import nn

    work = copy.deepcopy(model).requires_grad_(False)
    with torch.no_grad():
        for (path, side, dim), gone in gone_channels(cuts).items():
            indices = torch.tensor(sorted(gone))
            if dim is not None:
                work.get_parameter(path).index_fill_(dim, indices, 0)
                continue
            module = work.get_submodule(path)
            if isinstance(module, nn.PReLU):
                continue  # a slope does nothing to a zero, and may be shared by all channels
            if getattr(module, "weight", None) is None:
                # A norm that has none gives zeros for zeros if their mean is zero.
                mean = getattr(module, "running_mean", None)
                if mean is not None:
                    mean.index_fill_(0, indices, 0)
                continue
            weight = module.get_parameter("weight")
            along = _along(module, side)
            weight.index_fill_(along, torch.unique(indices % weight.shape[along]), 0)
            bias = getattr(module, "bias", None)
            if side != "in" and bias is not None:
                bias.index_fill_(0, indices, 0)
    return work


def gone_channels(cuts: Iterable[Cut]) -> dict[tuple[str, Side, int | None], set[int]]:
    """What every module loses, over all groups, in the channels of the untouched model."""
    gone: dict[tuple[str, Side, int | None], set[int]] = defaultdict(set)
    for coupling, units in cuts:
        for one in coupling.slices:
            gone[one.path, one.side, one.dim].update(index for unit in units for index in one.indices[unit])
    return gone


def _along(module: torch.nn.Module, side: Side) -> int:
    """The dimension of a module's weight that one of its sides counts."""
    from torch import nn

    swapped = isinstance(module, (nn.ConvTranspose2d, nn.Embedding))
    return int((side == "in") != swapped) if side != "own" else 0


def depthwise(module: torch.nn.Module) -> bool:
    groups = getattr(module, "groups", 1)
    return bool(groups > 1 and module.in_channels == module.out_channels == groups)


def _kept(parameter: torch.Tensor, dim: int, gone: set[int]) -> torch.nn.Parameter:
    import torch

    stay = torch.tensor([index for index in range(parameter.shape[dim]) if index not in gone])
    if len(stay) == 0:
        raise CompressionError("a layer must keep a channel; all of them were to be cut")
    return torch.nn.Parameter(parameter.detach().index_select(dim, stay), requires_grad=False)


def cut_channels(module: torch.nn.Module, side: Side, gone: set[int]) -> None:
    """Take channels out of one module, in place."""
    from torch import nn

    if isinstance(module, nn.PReLU) and module.num_parameters == 1:
        return
    weight = module.get_parameter("weight") if getattr(module, "weight", None) is not None else None
    if weight is not None:
        along = _along(module, side)
        # A grouped convolution's weight holds the inputs of one group, and loses the same ones in each.
        module.weight = _kept(weight, along, {index % weight.shape[along] for index in gone})
    if side != "in" and getattr(module, "bias", None) is not None:
        module.bias = _kept(module.get_parameter("bias"), 0, gone)
    for name in ("running_mean", "running_var"):
        if getattr(module, name, None) is not None:
            module.register_buffer(name, _kept(module.get_buffer(name), 0, gone).data)
    for name, count in _counts(module, side, len(gone)):
        setattr(module, name, count)


def _counts(module: torch.nn.Module, side: Side, gone: int) -> Iterator[tuple[str, int]]:
    """The attributes that say how many channels a module has, and their new values."""
    names: dict[Side, tuple[str, ...]] = {
        "out": ("out_channels", "out_features", "embedding_dim"),
        "in": ("in_channels", "in_features"),
        "own": ("num_features", "num_parameters"),
    }
    every = ("out_channels", "in_channels", "groups") if depthwise(module) else names[side]
    for name in every:
        if hasattr(module, name):
            yield name, int(getattr(module, name)) - gone
