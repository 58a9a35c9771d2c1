"""Facts about a model: its compressible layers, the channels that are coupled, and what was left alone and why."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from autocomp.errors import PlanError, did_you_mean
from autocomp.graph import Graph
from autocomp.plan import SEEING, Format, LayerPlan, Plan, Rank, RankMethod, Sparsity, units_kept

#: What each kind of layer can be compressed by, beside channels where these are free. A kernel that computes in
#: integers is what ``integer`` says; ranks are those of the weight seen as a matrix.
INTEGER_KINDS = frozenset({"conv2d", "linear"})
RANKED_KINDS = frozenset({"conv2d", "linear", "embedding"})


@dataclass(frozen=True)
class LayerInfo:
    """A compressible layer.

    ``name`` is its ``named_modules()`` path, ``kind`` ``conv2d``, ``conv_transpose2d``, ``linear`` or ``embedding``.
    Shapes are those of the weight and of one example's input and output; ``macs`` are for one example. ``group`` names
    the channel group that its output channels belong to, None where they are not coupled to anything that may be
    pruned; ``reason`` then says why. ``groups`` are those of a grouped convolution. ``called`` tells a module that the
    model calls from one whose weight it computes with by itself, where no two modules can take its place.
    """

    name: str
    kind: str
    weight_shape: tuple[int, ...]
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    macs: int
    params: int
    group: str | None
    reason: str | None = None
    groups: int = 1
    called: bool = True

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """The weight as the (out, in·k·k) matrix that a rank is counted in; an embedding's is (rows, width)."""
        return _matrix_shape("svd", self.weight_shape)

    @property
    def computes_integers(self) -> bool:
        """Whether runtimes have integer kernels for it; other layers' weights can be stored in few bits all the same."""
        return self.kind in INTEGER_KINDS

    @property
    def sees_inputs(self) -> bool:
        """Whether what it multiplies its weights with can be watched: what looks at a layer's inputs asks for that."""
        return self.kind in INTEGER_KINDS and self.called

    @property
    def largest_paying_rank(self) -> int:
        """The largest rank at which two factors hold fewer weights than the matrix; 0 where none does, or where the
        layer is a grouped or transposed convolution, which is no single matrix, or is not called."""
        return self.largest_rank("svd")

    def largest_rank(self, method: RankMethod) -> int:
        """The largest rank at which the factors of a method hold fewer weights than the layer; 0 where none does."""
        shape, all_weights = self.weight_shape, math.prod(self.weight_shape)
        # The factors grow with the rank, and at the full one they are no smaller than the layer.
        truncations = range(1, self.full_rank(method))
        largest = bisect_left(truncations, all_weights, key=lambda r: _factor_weights(method, r, shape, shape))
        return largest if method != "nmf" or largest > 1 else 0

    def full_rank(self, method: RankMethod) -> int:
        """The rank at which a method's factors leave nothing out; 0 where the layer has no factors by that method."""
        if self.kind not in RANKED_KINDS or self.groups > 1 or not self.called:
            return 0
        if method in {"spatial", "tucker2"} and (self.kind != "conv2d" or min(self.weight_shape[2:]) < 2):
            return 0
        return self.weight_shape[0] if method == "tucker2" else min(_matrix_shape(method, self.weight_shape))

    def saves(self, rank: Rank, outputs_cut: int = 0, inputs_cut: int = 0) -> bool:
        """Whether the factors of a rank hold fewer weights than the layer, both without the channels that are cut."""
        if rank.r >= self.full_rank(rank.method):
            return False
        out_dim, in_dim = (1, 0) if self.kind == "embedding" else (0, 1)
        shape = list(self.weight_shape)
        shape[out_dim] -= outputs_cut
        shape[in_dim] -= inputs_cut
        return _factor_weights(rank.method, rank.r, shape, self.weight_shape) < math.prod(shape)


def _matrix_shape(method: RankMethod, shape: Sequence[int]) -> tuple[int, int]:
    """A weight as the matrix that a method makes two factors of."""
    if method == "spatial":
        outputs, inputs, height, width = shape
        return outputs * width, inputs * height
    return shape[0], math.prod(shape[1:])


def _factor_weights(method: RankMethod, r: int, shape: Sequence[int], uncut: Sequence[int]) -> int:
    """How many weights the factors of a rank hold.

    Args:
        shape: of the layer's weight, without the channels that are cut.
        uncut: of the layer's weight with all of its channels, which Tucker-2's other rank is a share of.
    """
    if method != "tucker2":
        return r * sum(_matrix_shape(method, shape))
    outputs, inputs, height, width = shape
    inner = Rank(method, r).input_rank(uncut[1], uncut[0])
    return inputs * inner + inner * r * height * width + r * outputs


@dataclass(frozen=True)
class ChannelGroup:
    """Output channels that can only be pruned together, unit by unit.

    ``producers`` are the layers whose output channels they are, ``unit`` of each to a unit (more than one where a
    grouped convolution loses a channel in each of its groups, or a unit is an attention head); ``width`` counts units.
    ``consumers`` maps a layer that reads them to the number of its input channels that belong to a unit. ``pattern``
    is the sparsity pattern that prunes it. A group that cannot be pruned rightly has a ``reason`` and is forbidden.
    ``sizes`` are sizes in the graph that count units: (node, position among its sizes, by how much a unit shrinks it).
    """

    name: str
    width: int
    producers: tuple[str, ...]
    consumers: Mapping[str, int]
    reason: str | None = None
    unit: int = 1
    pattern: Literal["channel", "head"] = "channel"
    sizes: tuple[tuple[str, int, int], ...] = ()

    @property
    def prunable(self) -> bool:
        return self.reason is None

    def kept(self, level: float) -> int:
        """The units left at a sparsity ``level``; never fewer than one."""
        return units_kept(self.width, level)


@dataclass(frozen=True)
class ResidualBlock:
    """Layers beside an identity shortcut, which may be left out together: ``shortcut + branch`` becomes ``shortcut``.

    ``addition`` is the node that joins the two, ``position`` the shortcut's place among its inputs.
    """

    name: str
    layers: tuple[str, ...]
    addition: str
    position: int


@dataclass(frozen=True)
class Inventory:
    """The layers in execution order, the channel groups, the residual blocks that may be left out, and what is left as
    it is: (module path, reason)."""

    layers: tuple[LayerInfo, ...]
    groups: tuple[ChannelGroup, ...]
    skipped: tuple[tuple[str, str], ...]
    graph: Graph
    blocks: tuple[ResidualBlock, ...] = ()

    @cached_property
    def by_name(self) -> Mapping[str, LayerInfo]:
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def group_of(self) -> Mapping[tuple[str, str], ChannelGroup]:
        """(producer layer, pattern) → its group, prunable or not."""
        return {(name, group.pattern): group for group in self.groups for name in group.producers}

    @cached_property
    def blocks_by_name(self) -> Mapping[str, ResidualBlock]:
        return {block.name: block for block in self.blocks}

    def dropped(self, plan: Plan) -> tuple[ResidualBlock, ...]:
        """The blocks that a plan leaves out."""
        return tuple(self.blocks_by_name[name] for name in plan.dropped_blocks)

    def unit_levels(self, plan: Plan) -> Iterator[tuple[ChannelGroup, float]]:
        """The groups that a plan prunes, channels and heads, with their level."""
        for group in self.groups:
            sparsity = plan[group.name].sparsity
            if sparsity is not None and sparsity.pattern == group.pattern:
                yield group, sparsity.level

    def check(self, plan: Plan) -> None:
        """Whether ``plan`` fits this model.

        Raises:
            PlanError: it names a layer or a block that does not exist, a rank that is no truncation, a format that no
                kernel computes, or a channel group that cannot be pruned or whose members disagree.
        """
        for name in plan.dropped_blocks:
            if name not in self.blocks_by_name:
                raise PlanError(
                    f"only a residual block with an identity shortcut may be left out; got {name!r}; "
                    + (did_you_mean(name, self.blocks_by_name) if self.blocks else "this model has none")
                )
        for name, layer_plan in plan.layers.items():
            layer = self.by_name.get(name)
            if layer is None:
                raise PlanError(
                    f"a plan may only name compressible layers; got {name!r}; {did_you_mean(name, self.by_name)}"
                )
            if layer_plan.rank is not None:
                _check_rank(layer, layer_plan.rank)
            if layer_plan.format is not None:
                self._check_format(layer, layer_plan.format)
            _check_moments(layer, layer_plan)
            if layer_plan.sparsity is not None and layer_plan.mask is None:
                self._check_units(name, layer_plan.sparsity, plan)

    def _check_format(self, layer: LayerInfo, chosen: Format) -> None:
        if chosen.integer_activations and not layer.computes_integers:
            raise PlanError(
                f"a layer of kind {layer.kind} has no integer kernel; {layer.name!r} was given {chosen}; "
                f"give it w{chosen.weight_bits}a32, which stores the weights in few bits and computes in floats"
            )
        if chosen.simulated and layer.kind == "embedding":
            raise PlanError(
                f"an embedding reads no activations that could be rounded; {layer.name!r} was given {chosen}; "
                f"give it w{chosen.weight_bits}a32"
            )
        if chosen.in_float8 and layer.kind != "linear":
            raise PlanError(
                f"floats of 8 bits are multiplied in linears only; {layer.name!r} ({layer.kind}) was given {chosen}; give it "
                "w8a8 or w8a32"
            )
        if chosen.dynamic and layer.kind != "linear":
            raise PlanError(
                f"activations are rounded dynamically in linears only; {layer.name!r} ({layer.kind}) was given {chosen}; "
                f"give it w{chosen.weight_bits}a8"
            )

    def _check_units(self, name: str, sparsity: Sparsity, plan: Plan) -> None:
        what = "heads" if sparsity.pattern == "head" else "channels"
        group = self.group_of.get((name, sparsity.pattern))
        if group is None or not group.prunable:
            reason = group.reason if group is not None else f"they belong to no group of {what}"
            raise PlanError(f"the {what} of {name!r} cannot be pruned: {reason}")
        for member in group.producers:
            if plan[member].sparsity != sparsity:
                raise PlanError(
                    f"coupled layers must lose the same {what}; {name!r} has {sparsity.pattern} {sparsity.level}, "
                    f"{member!r} has {plan[member].describe()}; give all of {', '.join(group.producers)} one level"
                )


def _check_rank(layer: LayerInfo, rank: Rank) -> None:
    if layer.largest_rank(rank.method) == 0:
        raise PlanError(
            f"no rank of {layer.name!r} by {rank.method} saves weights (it is small, grouped, transposed or not called as "
            f"a module, or the method is for other layers); got {rank.r}"
        )
    full = layer.full_rank(rank.method)
    if rank.r >= full:
        raise PlanError(f"the rank of {layer.name!r} must be below {full}; got {rank.r}")
    if rank.method == "nmf" and rank.r < 2:
        raise PlanError(f"a non-negative factorization has a rank of at least 2; {layer.name!r} was given {rank.r}")


def _check_moments(layer: LayerInfo, layer_plan: LayerPlan) -> None:
    if layer.sees_inputs:
        return
    # What takes whole units goes by magnitude where a layer cannot be watched.
    if layer_plan.mask is not None and layer_plan.mask.saliency in SEEING:
        wrong, instead = str(layer_plan.mask.saliency), "magnitude"
    elif layer_plan.format is not None and layer_plan.format.rounding != "nearest":
        wrong, instead = layer_plan.format.rounding, "nearest"
    elif layer_plan.rank is not None and layer_plan.rank.method == "whitened":
        wrong, instead = "whitened", "svd"
    else:
        return
    raise PlanError(
        f"{wrong} looks at what convolutions and linears read; {layer.name!r} ({layer.kind}) cannot be watched; "
        f"give it {instead}"
    )


def layers_of(graph: Graph, groups: tuple[ChannelGroup, ...]) -> tuple[LayerInfo, ...]:
    """The compressible layers of a traced model, in execution order."""
    found = []
    group_of = {name: group for group in groups for name in group.producers if group.pattern == "channel"}
    for node in graph.layers:
        if node.layer is None:
            continue
        group = group_of.get(node.layer)
        found.append(
            LayerInfo(
                name=node.layer,
                kind=node.op,
                weight_shape=node.weight_shape,
                in_shape=graph.by_name[node.inputs[0]].shape[1:] if node.inputs else (),
                out_shape=node.shape[1:],
                macs=node.macs,
                params=node.weights + (node.outputs if node.has_bias else 0),
                group=group.name if group is not None and group.prunable else None,
                reason=group.reason if group is not None else "its output channels are not coupled to a layer",
                groups=node.groups,
            )
        )
    return tuple(found)
