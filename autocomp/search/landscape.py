"""What is foreseen of plans before any is evaluated: their output error, as the sum of what each choice does by itself, and
their cost, as the target's models predict it.

From these comes a whole predicted front at once: with a price on latency and one on size, the best choice of every layer is
known, and the prices are varied (Lagrangian relaxation, as SPDY (Frantar and Alistarh, 2022) and OBC (Frantar, Singh and
Alistarh, 2022) choose levels).
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from autocomp.errors import AutocompError
from autocomp.plan import Plan
from autocomp.space import KINDS, Decision, Kind, SearchSpace
from autocomp.trial import Cost

Vector = npt.NDArray[np.float64]
#: One combination a group: a plan as this module has it.
Choice = tuple[int, ...]

#: Decisions of one layer by itself are made together, since a low rank in few bits is neither one nor the other; as long
#: as there are no more combinations than this.
MOST_COMBINATIONS = 3000
TOGETHER: frozenset[Kind] = frozenset({"unstructured", "rank", "format"})

#: Prices: directions between latency alone and size alone, and how much output error a whole network's worth is.
DIRECTIONS, PRICES = 7, tuple(np.logspace(-3.5, 1.5, 14))

#: A change whose cost is not foreseen.
UNFORESEEN = 1e9

#: From a plan to what it costs.
CostOf = Callable[[Plan], Cost]


@dataclass(frozen=True)
class Costs:
    """A plan's predicted costs; infinite where there is no prediction."""

    latency_ms: float
    latency_std_ms: float
    size_bytes: float


@dataclass(frozen=True)
class Group:
    """Decisions that are made together: their names, and for every combination the index of each one's option and the output
    error."""

    decisions: tuple[str, ...]
    indices: tuple[tuple[int, ...], ...]
    errors: Vector


class Landscape:
    """A search space with what is foreseen of it.

    Args:
        errors: decision → the output error of each of its options by itself, 0 for the first.
        cost: predicted; what it raises of a plan keeps that plan from being proposed.
    """

    def __init__(self, space: SearchSpace, errors: Mapping[str, Sequence[float]], cost: CostOf) -> None:
        self.space, self.errors = space, errors
        self._cost = cost
        self._known: dict[str, Costs] = {}
        self._hashes: dict[Choice, str] = {}
        self.groups = tuple(_group(decisions, errors) for decisions in _grouped(space))
        self._places = [{chosen: place for place, chosen in enumerate(group.indices)} for group in self.groups]

    @cached_property
    def untouched(self) -> Costs:
        return self.costs(self.choice({}))

    def indices(self, choice: Choice) -> dict[str, int]:
        """The index of every decision's option."""
        return {
            name: index
            for group, place in zip(self.groups, choice, strict=True)
            for name, index in zip(group.decisions, group.indices[place], strict=True)
        }

    def choice(self, indices: Mapping[str, int]) -> Choice:
        """The other way round; missing decisions count as "leave it"."""
        return tuple(
            places[tuple(indices.get(name, 0) for name in group.decisions)]
            for group, places in zip(self.groups, self._places, strict=True)
        )

    def plan(self, choice: Choice) -> Plan:
        return self.space.plan(self.indices(choice))

    def plan_hash(self, choice: Choice) -> str:
        """Different choices may be one plan."""
        if choice not in self._hashes:
            self._hashes[choice] = self.plan(choice).hash
        return self._hashes[choice]

    def error(self, choice: Choice) -> float:
        """The output error foreseen: the sum of the options' own."""
        return float(sum(group.errors[place] for group, place in zip(self.groups, choice, strict=True)))

    def error_by_kind(self, choice: Choice) -> dict[Kind, float]:
        """The same, for each kind of decision."""
        found = dict.fromkeys(KINDS, 0.0)
        for name, index in self.indices(choice).items():
            found[self.space.by_name[name].kind] += self.errors[name][index]
        return found

    def costs(self, choice: Choice) -> Costs:
        plan_hash = self.plan_hash(choice)
        if plan_hash not in self._known:
            try:
                cost = self._cost(self.plan(choice))
                found = Costs(cost.latency_ms, cost.latency_std_ms, float(cost.size_bytes))
            except AutocompError:
                found = Costs(math.inf, math.inf, math.inf)
            self._known[plan_hash] = found
        return self._known[plan_hash]

    @cached_property
    def references(self) -> tuple[Choice, ...]:
        """Plans that the cost of a change is told from: what 8 bits cost one layer depends on whether its neighbours have
        them."""
        found = [self.choice(self.space.uniform({"format": strength})) for strength in (0, 1)]
        return tuple(dict.fromkeys(found))

    @cached_property
    def changes(self) -> tuple[tuple[tuple[Vector, Vector], ...], ...]:
        """For every reference and group: what each combination adds to the reference's latency and size, as shares of the
        untouched network's."""
        return tuple(tuple(self._changes(base, group) for group in range(len(self.groups))) for base in self.references)

    def _changes(self, base: Choice, group: int) -> tuple[Vector, Vector]:
        before = self.costs(base)
        found = [
            self.costs((*base[:group], place, *base[group + 1 :])) for place in range(len(self.groups[group].errors))
        ]
        latency = np.array([one.latency_ms - before.latency_ms for one in found]) / self.untouched.latency_ms
        size = np.array([one.size_bytes - before.size_bytes for one in found]) / self.untouched.size_bytes
        # What is not foreseen is given an end, so that no price of nothing makes it nothing at all.
        return np.nan_to_num(latency, posinf=UNFORESEEN), np.nan_to_num(size, posinf=UNFORESEEN)

    def foresee(self) -> None:
        """Predict now what is needed of all proposals: thousands of costs of a large network."""
        for choice in self.front:
            self.costs(choice)

    @cached_property
    def front(self) -> tuple[Choice, ...]:
        """The plans that are best at some prices, by the sum of errors and of changes in cost."""
        found: dict[Choice, None] = {}
        for tables in self.changes:
            for share, price in itertools.product(np.linspace(0.0, 1.0, DIRECTIONS), PRICES):
                found[self.best(tables, price * share, price * (1.0 - share))] = None
        return tuple(found)

    def best(self, tables: Sequence[tuple[Vector, Vector]], latency_price: float, size_price: float) -> Choice:
        """The best choice of every group at these prices."""
        return tuple(
            int(np.argmin(group.errors + latency_price * latency + size_price * size))
            for group, (latency, size) in zip(self.groups, tables, strict=True)
        )


def _grouped(space: SearchSpace) -> Iterator[tuple[Decision, ...]]:
    """Decisions that are made together."""
    by_layer: dict[str, list[Decision]] = defaultdict(list)
    for decision in space.decisions:
        single = decision.kind in TOGETHER and len(decision.layers) == 1 and not decision.name.endswith(":*")
        by_layer[f"layer {decision.layers[0]}" if single else decision.name].append(decision)
    groups = [tuple(decisions) for decisions in by_layer.values()]
    if sum(math.prod(len(one.options) for one in group) for group in groups) <= MOST_COMBINATIONS:
        yield from groups
    else:
        yield from ((decision,) for decision in space.decisions)


def _group(decisions: Sequence[Decision], errors: Mapping[str, Sequence[float]]) -> Group:
    indices = tuple(itertools.product(*(range(len(decision.options)) for decision in decisions)))
    sums = [
        sum(errors[decision.name][index] for decision, index in zip(decisions, chosen, strict=True))
        for chosen in indices
    ]
    return Group(tuple(decision.name for decision in decisions), indices, np.array(sums, dtype=float))
