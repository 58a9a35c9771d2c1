"""The network with its new shapes: which channels and heads a plan cuts, and the model built without them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from autocomp.compress.attention import HeadCut, Heads, choose_heads, cut_heads
from autocomp.compress.blocks import drop_blocks
from autocomp.compress.channels import Coupling, Cut, choose_units, gone_channels, prune
from autocomp.compress.solve import Gone
from autocomp.graph import Example, OutputForm, export_program, graph_module
from autocomp.inventory import Inventory, ResidualBlock
from autocomp.plan import Plan

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule


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
class Cuts:
    """The units that a plan cuts, and the channels that its layers lose by them."""

    channels: tuple[Cut, ...]
    heads: tuple[HeadCut, ...]
    gone: Mapping[str, Gone]


def cuts_of(prepared: Prepared, plan: Plan) -> Cuts:
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
    return Cuts(channels, heads, gone)


def rebuilt(
    prepared: Prepared, plan: Plan, cuts: Cuts, factors: Mapping[str, nn.Sequential]
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
