"""The network with its new shapes: which channels and heads a plan cuts, and the model built without them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from autocomp.compress.attention import HeadCut, Heads, choose_heads, cut_heads
from autocomp.compress.blocks import drop_blocks, without_blocks
from autocomp.compress.channels import Coupling, Cut, choose_units, gone_channels, prune
from autocomp.compress.solve import Gone, Solver
from autocomp.graph import Graph
from autocomp.inventory import Inventory, ResidualBlock
from autocomp.plan import Plan, Sparsity
from autocomp.trace import Example, OutputForm, copied_trace, export_program, graph_module, read_graph

if TYPE_CHECKING:
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


def cuts_of(prepared: Prepared, plan: Plan, solver: Solver) -> Cuts:
    """Which channels and heads go is decided on the untouched weights, by the saliency that the plan names."""
    chosen = {
        (group.name, group.pattern): (group.kept(level), plan[group.name].sparsity)
        for group, level in prepared.inventory.unit_levels(plan)
    }

    def scores(asked: Sparsity | None) -> Callable[[str], torch.Tensor]:
        return partial(solver.scores, saliency="magnitude" if asked is None else asked.saliency)

    channels: list[Cut] = []
    for one in prepared.couplings:
        if (one.group.name, "channel") in chosen:
            kept, asked = chosen[one.group.name, "channel"]
            channels.append((one, choose_units(prepared.model, one, kept, scores(asked))))
    heads: list[HeadCut] = []
    for each in prepared.heads:
        if (each.group.name, "head") in chosen:
            kept, asked = chosen[each.group.name, "head"]
            heads.append((each, choose_heads(each, kept, scores(asked))))
    made_up_for = {
        consumer
        for group, _ in prepared.inventory.unit_levels(plan)
        for consumer in group.consumers
        if (own := plan[group.name].sparsity) is not None and own.saliency == "hessian"
        if consumer in prepared.inventory.by_name and prepared.inventory.by_name[consumer].sees_inputs
    }
    sides: dict[tuple[str, str], set[int]] = {}
    for (path, side, dim), indices in gone_channels(channels).items():
        if dim is None and side != "own":
            sides.setdefault((path, side), set()).update(indices)
    for each, units in heads:
        for side, tables in (("out", each.rows), ("in", each.columns)):
            for path, table in tables.items():
                sides.setdefault((path, side), set()).update(index for unit in units for index in table[unit])
    paths = {path for path, _ in sides}
    gone = {
        path: Gone(
            tuple(sorted(sides.get((path, "out"), ()))), tuple(sorted(sides.get((path, "in"), ()))), path in made_up_for
        )
        for path in sorted(paths)
    }
    return Cuts(tuple(channels), tuple(heads), gone)


def rebuilt(
    prepared: Prepared, plan: Plan, cuts: Cuts, factors: Mapping[str, nn.Sequential], solver: Solver
) -> tuple[GraphModule, Graph]:
    """Ranks truncated, channels and heads cut, blocks left out.

    Args:
        factors: layer → the stages that take its place.
        solver: of the prepared model.
    """
    blocks: tuple[ResidualBlock, ...] = prepared.inventory.dropped(plan)
    module, graph = _traced(prepared, cuts, factors, solver)
    if cuts.heads:
        cut_heads(module, cuts.heads)
        drop_blocks(module, blocks)
        program = export_program(module, prepared.example)
        return graph_module(program), read_graph(program)
    # The shapes of what stays are known, and tracing once more would take longer than most of the rest.
    if blocks:
        drop_blocks(module, blocks)
        graph = without_blocks(graph, blocks)
    return module, graph


def _traced(
    prepared: Prepared, cuts: Cuts, factors: Mapping[str, nn.Sequential], solver: Solver
) -> tuple[GraphModule, Graph]:
    """With ranks truncated and channels cut, as a traced module of its own."""
    if not (factors or cuts.channels):
        module, graph = solver.traced(prepared.example)
        return copied_trace(module), graph
    model = copy.deepcopy(prepared.model)
    for name, stages in factors.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, copy.deepcopy(stages))
    program = export_program(prune(model, cuts.channels) if cuts.channels else model, prepared.example)
    return graph_module(program), read_graph(program)
