"""Facts about a model: its compressible layers, the channels that are coupled, and what was left alone and why."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

from autocomp.errors import PlanError, did_you_mean
from autocomp.graph import Graph
from autocomp.plan import Plan


@dataclass(frozen=True)
class LayerInfo:
    """A compressible layer.

    ``name`` is its ``named_modules()`` path, ``kind`` ``conv2d`` or ``linear``. Shapes are those of the weight and of
    one example's input and output; ``macs`` are for one example. ``group`` names the channel group that its output
    channels belong to, None where they are not coupled to anything that may be pruned; ``reason`` then says why.
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

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """The weight as the (out, in·k·k) matrix that a rank is counted in."""
        columns = 1
        for size in self.weight_shape[1:]:
            columns *= size
        return self.weight_shape[0], columns

    @property
    def largest_paying_rank(self) -> int:
        """The largest rank at which two factors hold fewer weights than the matrix; 0 where none does, or where the
        layer is a grouped convolution, which is no single matrix."""
        if self.kind == "conv2d" and self.weight_shape[1] != self.in_shape[0]:
            return 0
        rows, columns = self.matrix_shape
        return math.ceil(rows * columns / (rows + columns)) - 1


@dataclass(frozen=True)
class ChannelGroup:
    """Output channels that can only be pruned together.

    ``producers`` are the layers whose output channels they are; ``consumers`` maps a layer that reads them to the
    number of its input channels that belong to one of them (more than one behind a flatten). A group that cannot be
    pruned rightly has a ``reason`` and is forbidden.
    """

    name: str
    width: int
    producers: tuple[str, ...]
    consumers: Mapping[str, int]
    reason: str | None = None

    @property
    def prunable(self) -> bool:
        return self.reason is None

    def kept(self, level: float) -> int:
        """The channels left at a sparsity ``level``; never fewer than one."""
        return max(1, self.width - round(self.width * level))


@dataclass(frozen=True)
class Inventory:
    """The layers in execution order, the channel groups, and what is left as it is: (module path, reason)."""

    layers: tuple[LayerInfo, ...]
    groups: tuple[ChannelGroup, ...]
    skipped: tuple[tuple[str, str], ...]
    graph: Graph

    @cached_property
    def by_name(self) -> Mapping[str, LayerInfo]:
        return MappingProxyType({layer.name: layer for layer in self.layers})

    @cached_property
    def group_of(self) -> Mapping[str, ChannelGroup]:
        """Producer layer → its group, prunable or not."""
        return MappingProxyType({name: group for group in self.groups for name in group.producers})

    def channel_levels(self, plan: Plan) -> Iterator[tuple[ChannelGroup, float]]:
        """The groups that a plan prunes, with their level."""
        for group in self.groups:
            level = plan[group.producers[0]].channel_level()
            if level > 0:
                yield group, level

    def check(self, plan: Plan) -> None:
        """Whether ``plan`` fits this model.

        Raises:
            PlanError: it names a layer that does not exist, a rank that is no truncation, a channel group that cannot
                be pruned or whose members disagree, or a block to drop.
        """
        if plan.dropped_blocks:
            raise PlanError(f"no residual block of this model may be left out; got {', '.join(plan.dropped_blocks)}")
        for name, layer_plan in plan.layers.items():
            layer = self.by_name.get(name)
            if layer is None:
                raise PlanError(
                    f"a plan may only name compressible layers; got {name!r}; {did_you_mean(name, self.by_name)}"
                )
            if layer_plan.rank is not None:
                if layer.largest_paying_rank == 0:
                    raise PlanError(
                        f"no rank of {name!r} saves weights (it is small, or grouped); got {layer_plan.rank.r}"
                    )
                largest = min(layer.matrix_shape)
                if layer_plan.rank.r >= largest:
                    raise PlanError(f"the rank of {name!r} must be below {largest}; got {layer_plan.rank.r}")
            self._check_channels(name, layer_plan.channel_level(), plan)

    def _check_channels(self, name: str, level: float, plan: Plan) -> None:
        if level == 0:
            return
        group = self.group_of.get(name)
        if group is None or not group.prunable:
            reason = group.reason if group is not None else "they belong to no channel group"
            raise PlanError(f"the channels of {name!r} cannot be pruned: {reason}")
        for member in group.producers:
            if plan[member].channel_level() != level:
                raise PlanError(
                    f"coupled layers must lose the same channels; {name!r} has level {level}, "
                    f"{member!r} has {plan[member].channel_level()}; give all of {', '.join(group.producers)} one level"
                )


def layers_of(graph: Graph, groups: tuple[ChannelGroup, ...]) -> tuple[LayerInfo, ...]:
    """The compressible layers of a traced model, in execution order."""
    found = []
    group_of = {name: group for group in groups for name in group.producers}
    for node in graph.layers:
        if node.layer is None:
            continue
        group = group_of.get(node.layer)
        found.append(
            LayerInfo(
                name=node.layer,
                kind=node.op,
                weight_shape=node.weight_shape,
                in_shape=graph.by_name[node.inputs[0]].shape[1:],
                out_shape=node.shape[1:],
                macs=node.macs,
                params=node.weights + (node.weight_shape[0] if node.has_bias else 0),
                group=group.name if group is not None and group.prunable else None,
                reason=group.reason if group is not None else "its output channels are not coupled to a layer",
            )
        )
    return tuple(found)
