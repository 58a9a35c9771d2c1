"""Channel pruning that makes layers smaller. Torch-Pruning's dependency graph finds the coupled channels (DepGraph,
Fang et al., CVPR 2023); this module reads off, once a model, what every module loses with each of them, and cuts.

Torch-Pruning is silently wrong on some graphs (a strided slice with zero-padded channels as shortcut, for one). So no
group is believed: all are tried on random channels, and the physically pruned network must compute what the original
computes with the same channels masked.
"""

from __future__ import annotations

import copy
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeVar

from autocomp.errors import CompressionError, first_line
from autocomp.graph import ACTIVATIONS, COPIES, Graph, ModuleT, copied
from autocomp.graph import Node as GraphNode
from autocomp.inventory import ChannelGroup

if TYPE_CHECKING:
    import torch
    import torch_pruning as tp

#: Random channel sets that every group must survive, and the share of channels cut in each.
TRIAL_SHARES = (0.25, 0.5)

Side = Literal["out", "in", "own"]

#: Operations that give every channel what they make of that channel alone.
PER_CHANNEL = (
    ACTIVATIONS
    | COPIES
    | {"hardswish", "hardswish_", "hardsigmoid", "sigmoid", "silu", "silu_", "gelu", "tanh", "elu", "leaky_relu"}
    | {"max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"}
)


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

Item = TypeVar("Item")


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
        with warnings.catch_warnings():
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
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and module.groups > 1 and not _depthwise(module):
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
        return "out" if "out_channels" in member.dep.handler.__name__ or _depthwise(module) else "in"
    if isinstance(module, nn.Embedding):
        return "out"
    holders = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.PReLU, nn.Parameter)
    return "own" if isinstance(module, holders) else None


def _depthwise(module: torch.nn.Module) -> bool:
    groups = getattr(module, "groups", 1)
    return bool(groups > 1 and module.in_channels == module.out_channels == groups)


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


def shake(model: ModuleT) -> ModuleT:
    """A copy of ``model`` with noise on every parameter, for trials of what is coupled: a layer of zeros (a fresh head,
    the last norm of a residual branch) would hide what goes wrong before it."""
    import torch

    shaken = copied(model).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in shaken.parameters():
        if parameter.is_floating_point():
            size = max(0.02, 0.1 * float(parameter.square().mean().sqrt()))
            parameter.data = parameter.data + size * torch.randn(parameter.shape, generator=generator)
    return shaken


def failing(items: Sequence[Item], why_not: Callable[[Sequence[Item]], str | None]) -> dict[int, str]:
    """``id`` of an item → why it fails. Items are tried together; where that fails, by halves.

    Args:
        why_not: why some items fail together; None where they do not.
    """
    reason = why_not(items) if items else None
    if reason is None:
        return {}
    if len(items) == 1:
        return {id(items[0]): reason}
    middle = len(items) // 2
    found = failing(items[:middle], why_not) | failing(items[middle:], why_not)
    rest = [item for item in items if id(item) not in found]
    if rest and (reason := why_not(rest)) is not None:
        found |= dict.fromkeys(map(id, rest), reason)  # right alone, wrong together
    return found


def why_not(
    couplings: Sequence[Coupling], model: torch.nn.Module, example_inputs: tuple[torch.Tensor, ...]
) -> str | None:
    """Why random channels of these groups cannot be cut; None where pruned and masked network agree."""
    import torch

    generator = torch.Generator().manual_seed(sum(one.group.width for one in couplings))
    inputs = tuple(
        torch.randn(2, *x.shape[1:], generator=generator).to(x.dtype)
        if x.is_floating_point()
        else torch.cat([x[:1], x[:1]])
        for x in example_inputs
    )
    for share in TRIAL_SHARES:
        cuts = [
            (one, torch.randperm(one.group.width, generator=generator)[: max(1, int(one.group.width * share))].tolist())
            for one in couplings
        ]
        try:
            masked, pruned = mask(model, cuts), prune(model, cuts)
            with torch.no_grad():
                expected, actual = flat_output(masked(*inputs)), flat_output(pruned(*inputs))
        except (RuntimeError, ValueError, IndexError, AssertionError, TypeError, CompressionError) as error:
            return f"the pruned network does not run ({first_line(error)[:120]})"
        if expected.shape != actual.shape:
            return "they are the model's output"
        if not torch.allclose(expected, actual, rtol=1e-3, atol=1e-4 * float(expected.abs().max() + 1e-12)):
            return "the pruned network differs from the masked one (the coupling was not understood)"
    return None


def flat_output(output: object) -> torch.Tensor:
    """All tensors of a model's output in one vector per example."""
    import torch

    return torch.cat([leaf.flatten(1).float() for leaf in _tensors(output)], dim=1)


def _tensors(output: object) -> list[torch.Tensor]:
    import torch
    from torch.utils._pytree import tree_leaves

    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]


def choose_units(model: torch.nn.Module, coupling: Coupling, kept: int) -> list[int]:
    """The units of a group to cut so that ``kept`` stay: those of least group magnitude (L2 over the weights of all
    that is cut with them, as in DepGraph), ties broken by index.

    Returns:
        Sorted units, ``group.width - kept`` of them.
    """
    import torch

    total = torch.zeros(coupling.group.width, dtype=torch.float64)
    for one in coupling.slices:
        if one.side == "own":
            continue
        module = model.get_submodule(one.path)
        along = _along(module, one.side)
        energy = module.get_parameter("weight").detach().double().square().movedim(along, 0).flatten(1).sum(dim=1)
        indices = torch.tensor(one.indices)
        total += energy[indices % len(energy)].sum(dim=1)
    order = total.sort(stable=True).indices
    return sorted(order[: coupling.group.width - kept].tolist())


def prune(model: torch.nn.Module, cuts: Iterable[Cut]) -> torch.nn.Module:
    """A copy of ``model`` without the given units of each group.

    Where a low-rank pair has taken a layer's place, its first half loses inputs and its second outputs.
    """
    from torch import nn

    work = copy.deepcopy(model).requires_grad_(False)
    for (path, side, dim), gone in _gone(cuts).items():
        if dim is not None:
            parent, _, name = path.rpartition(".")
            owner, parameter = work.get_submodule(parent), work.get_parameter(path)
            setattr(owner, name, _kept(parameter, dim, gone))
            continue
        module = work.get_submodule(path)
        if isinstance(module, nn.Sequential):
            module = module[1 if side == "out" else 0]
        _cut(module, side, gone)
    return work


def mask(model: torch.nn.Module, cuts: Iterable[Cut]) -> torch.nn.Module:
    """A copy of ``model`` of unchanged shapes with the given units zeroed: what pruning must equal."""
    import torch
    from torch import nn

    work = copy.deepcopy(model).requires_grad_(False)
    with torch.no_grad():
        for (path, side, dim), gone in _gone(cuts).items():
            indices = torch.tensor(sorted(gone))
            if dim is not None:
                work.get_parameter(path).index_fill_(dim, indices, 0)
                continue
            module = work.get_submodule(path)
            if isinstance(module, nn.PReLU):
                continue  # a slope does nothing to a zero, and may be shared by all channels
            weight = module.get_parameter("weight")
            along = _along(module, side)
            weight.index_fill_(along, torch.unique(indices % weight.shape[along]), 0)
            bias = getattr(module, "bias", None)
            if side != "in" and bias is not None:
                bias.index_fill_(0, indices, 0)
    return work


def _gone(cuts: Iterable[Cut]) -> dict[tuple[str, Side, int | None], set[int]]:
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


def _kept(parameter: torch.Tensor, dim: int, gone: set[int]) -> torch.nn.Parameter:
    import torch

    stay = torch.tensor([index for index in range(parameter.shape[dim]) if index not in gone])
    if len(stay) == 0:
        raise CompressionError("a layer must keep a channel; all of them were to be cut")
    return torch.nn.Parameter(parameter.detach().index_select(dim, stay), requires_grad=False)


def _cut(module: torch.nn.Module, side: Side, gone: set[int]) -> None:
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
    every = ("out_channels", "in_channels", "groups") if _depthwise(module) else names[side]
    for name in every:
        if hasattr(module, name):
            yield name, int(getattr(module, name)) - gone


def _dependency_graph(model: torch.nn.Module, example_inputs: tuple[torch.Tensor, ...]) -> tp.DependencyGraph:
    import torch
    import torch_pruning as tp

    model.requires_grad_(True)  # Torch-Pruning follows the autograd graph
    with torch.enable_grad():
        return tp.DependencyGraph().build_dependency(
            model, example_inputs=example_inputs, output_transform=_tensors, verbose=False
        )
