"""The choices a search may make for a network, as a list of decisions.

A space is a list of decisions with a finite number of options each, the first of which always is "leave it". What a
sampler proposes is one index per decision. :mod:`autocomp.space_builder` makes one of a file's rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from autocomp.inventory import Inventory
from autocomp.plan import UNIT_PATTERNS, Adjustment, Drop, Format, LayerPlan, Plan, Rank, Sparsity

Kind = Literal["block", "channel", "head", "unstructured", "rank", "format"]
KINDS: tuple[Kind, ...] = ("block", "channel", "head", "unstructured", "rank", "format")


@dataclass(frozen=True)
class Spread:
    """A level of sparsity for many layers together: what each of them loses where one threshold holds for all."""

    by_layer: tuple[tuple[str, Sparsity], ...]


Option = Sparsity | Rank | Format | Drop | Spread


@dataclass(frozen=True)
class Decision:
    """One thing to decide. ``layers`` share the answer (coupled channels); ``options`` has "leave it" (None) first,
    then ever stronger ones."""

    name: str
    kind: Kind
    layers: tuple[str, ...]
    options: tuple[Option | None, ...]

    @property
    def option_names(self) -> tuple[str, ...]:
        """What each option is, in words that tell it from all others."""
        return tuple("" if option is None else repr(option) for option in self.options)


@dataclass(frozen=True)
class SearchSpace:
    """The decisions for one model on one target, and the adjustments of every plan that compresses something."""

    decisions: tuple[Decision, ...]
    inventory: Inventory
    adjustments: tuple[Adjustment, ...] = ()

    @cached_property
    def by_name(self) -> Mapping[str, Decision]:
        return {decision.name: decision for decision in self.decisions}

    def plan(self, indices: Mapping[str, int]) -> Plan:
        """The plan of one index per decision (missing ones count as "leave it").

        What is decided for one layer goes before what is decided for all. Coupled channels come first: a layer whose
        channels are pruned is not also pruned weight by weight, and a rank that no longer saves anything in the narrower
        layer is left out. So different indices may be one plan.
        """
        chosen: dict[Kind, dict[str, Option]] = {kind: {} for kind in KINDS}
        for decision in self.decisions:
            option = decision.options[indices.get(decision.name, 0)]
            if isinstance(option, Spread):
                chosen[decision.kind].update(option.by_layer)
            elif option is not None:
                chosen[decision.kind].update(dict.fromkeys(decision.layers, option))
        blocks = self.inventory.blocks_by_name
        gone = {layer for name in chosen["block"] for layer in blocks[name].layers}
        single = {name: one for name, one in chosen["unstructured"].items() if name not in gone}
        sparsity = {**single, **chosen["head"], **chosen["channel"]}
        narrow = Plan({name: LayerPlan(sparsity=s) for name, s in sparsity.items() if isinstance(s, Sparsity)})
        cut = _cut_channels(self.inventory, narrow)
        layers = {}
        for layer in self.inventory.layers:
            # What is left out has no rank and no format, but loses the channels that it is coupled by.
            rank = chosen["rank"].get(layer.name) if layer.name not in gone else None
            if isinstance(rank, Rank) and not layer.saves(rank, *cut.get(layer.name, (0, 0))):
                rank = None
            layers[layer.name] = LayerPlan(
                sparsity=narrow[layer.name].sparsity,
                rank=rank if isinstance(rank, Rank) else None,
                format=_as_format(chosen["format"].get(layer.name)) if layer.name not in gone else None,
            )
        plan = Plan(layers, tuple(chosen["block"]))
        return replace(plan, adjustments=self.adjustments) if plan != Plan() else plan

    def indices(self, plan: Plan) -> dict[str, int] | None:
        """The other way round; None where the space does not have the plan, or only by one threshold for many layers."""
        found: dict[str, int] = {}
        for decision in self.decisions:
            first = decision.layers[0]
            layer = plan[first]
            wanted: Option | None = layer.format if decision.kind == "format" else layer.rank
            if decision.kind == "block":
                wanted = Drop() if first in plan.dropped_blocks else None
            elif decision.kind in (*UNIT_PATTERNS, "unstructured"):
                # Channels are pruned as one, so any of the layers says it; what they are coupled to it need not.
                units = decision.kind in UNIT_PATTERNS
                wanted = layer.sparsity if units == (layer.mask is None) else None
            if wanted in decision.options:
                found[decision.name] = decision.options.index(wanted)
        return found if self.plan(found) == plan else None

    def extent(self, plan: Plan) -> tuple[float, ...]:
        """How far a plan goes in each kind of choice, from 0 for "leave it" everywhere to 1 for the last option everywhere."""
        indices = self.indices(plan) or {}
        found: dict[Kind, list[float]] = {kind: [] for kind in KINDS}
        for decision in self.decisions:
            found[decision.kind].append(indices.get(decision.name, 0) / (len(decision.options) - 1))
        return tuple(sum(shares) / len(shares) if shares else 0.0 for shares in found.values())

    def uniform(self, strengths: Mapping[Kind, int]) -> dict[str, int]:
        """The indices that give every decision of a kind the same strength (or its strongest, where it has fewer)."""
        return {
            decision.name: min(strengths.get(decision.kind, 0), len(decision.options) - 1)
            for decision in self.decisions
        }

    def strengths(self, kind: Kind) -> int:
        """The number of options of the decisions of a kind, "leave it" included."""
        return max((len(decision.options) for decision in self.decisions if decision.kind == kind), default=1)


def _as_format(option: Option | None) -> Format | None:
    return option if isinstance(option, Format) else None


def _cut_channels(inventory: Inventory, plan: Plan) -> dict[str, tuple[int, int]]:
    """Layer → (output channels cut, input channels cut)."""
    found: dict[str, tuple[int, int]] = {}
    for group, level in inventory.unit_levels(plan):
        gone = group.width - group.kept(level)
        for name in group.producers:
            out, into = found.get(name, (0, 0))
            found[name] = (out + gone * group.unit, into)
        for name, per_unit in group.consumers.items():
            out, into = found.get(name, (0, 0))
            found[name] = (out, into + gone * per_unit)
    return found
