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
from autocomp.plan import Format, Plan
from autocomp.search.limits import Limits
from autocomp.space import KINDS, Decision, Kind, Option, SearchSpace
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

#: Halvings of a price until the plan that is best at it just keeps a limit.
HALVINGS = 14

#: How many times the error of a kind of choice is counted where a plan is to do with as little of it as it can; and the kinds
#: that are spared together: what takes units out, beside each kind by itself.
SPARED = 30.0
UNITS: frozenset[Kind] = frozenset({"block", "channel", "head"})

#: Plans that were looked at whose hash is kept: a plan of 500 layers is 4 KB.
MOST_HASHES = 10_000
#: And plans of all whose cost is kept, before those of plans that were not tried are forgotten.
MOST_COSTS = 100_000

#: A change whose cost is not foreseen.
UNFORESEEN = 1e9

#: From a plan to what it costs.
CostOf = Callable[[Plan], Cost]


@dataclass(frozen=True)
class Changes:
    """What each combination adds to a reference's latency and size, as shares of the untouched network's: those of all groups
    behind each other, as all vectors here that have an entry a combination."""

    reference: Choice
    latency: Vector
    size: Vector


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
        self._known: dict[str, Cost | None] = {}
        #: Of plans that were tried; and of those that were only looked at, of which a long search looks at many.
        self._remembered: dict[Choice, str] = {}
        self._hashes: dict[Choice, str] = {}
        together = tuple(_grouped(space))
        combinations = sum(math.prod(len(one.options) for one in group) for group in together)
        self._large = combinations > MOST_COMBINATIONS
        decided = tuple((decision,) for decision in space.decisions) if self._large else together
        self.groups = tuple(_group(decisions, errors) for decisions in decided)
        self._places = [{chosen: place for place, chosen in enumerate(group.indices)} for group in self.groups]
        self._sizes = np.array([len(group.indices) for group in self.groups], dtype=int)
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)[:-1]]).astype(int)
        # Where each group's combinations stand, in rows of one length: beyond a group's end, one that is never the best.
        columns = np.arange(self._sizes.max(initial=0))
        self._rows = np.where(columns < self._sizes[:, None], self._starts[:, None] + columns, self._sizes.sum())
        self._errors = np.concatenate([group.errors for group in self.groups])
        self._errors_by_kind = np.hstack([_errors_by_kind(group, space, errors) for group in self.groups])

    @cached_property
    def untouched(self) -> Cost:
        """Raises:
        UncoveredKernelError: the untouched network has no prediction.
        """
        return self._cost(Plan())

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
        if choice in self._remembered:
            return self._remembered[choice]
        if choice not in self._hashes:
            if len(self._hashes) >= MOST_HASHES:
                self._hashes.clear()
            self._hashes[choice] = self.plan(choice).hash
        return self._hashes[choice]

    def remember(self, choice: Choice, plan_hash: str) -> None:
        """What :meth:`plan_hash` would work out, of a plan that was tried."""
        self._remembered[choice] = plan_hash

    def error(self, choice: Choice) -> float:
        """The output error foreseen: the sum of the options' own."""
        return float(sum(group.errors[place] for group, place in zip(self.groups, choice, strict=True)))

    def errors_by_kind(self, choices: Sequence[Choice]) -> Vector:
        """The same, for each kind of decision: shape (choices, kinds)."""
        found: Vector = self._errors_by_kind[:, self._columns(choices)].sum(axis=2).T
        return found

    def errors_by_group(self, choices: Sequence[Choice]) -> Vector:
        """The same, of each group: shape (choices, groups)."""
        found: Vector = self._errors[self._columns(choices)]
        return found

    def _columns(self, choices: Sequence[Choice]) -> npt.NDArray[np.int_]:
        """Where the combinations of choices stand among those of all groups: shape (choices, groups)."""
        found: npt.NDArray[np.int_] = (
            np.asarray(choices, dtype=int).reshape(len(choices), len(self.groups)) + self._starts
        )
        return found

    def cost(self, choice: Choice) -> Cost | None:
        """Predicted; None where there is no prediction."""
        plan_hash = self.plan_hash(choice)
        if plan_hash not in self._known:
            if len(self._known) >= MOST_COSTS:
                tried = {*self._remembered.values()}
                self._known = {one: cost for one, cost in self._known.items() if one in tried}
            try:
                self._known[plan_hash] = self._cost(self.plan(choice))
            except AutocompError:
                self._known[plan_hash] = None
        return self._known[plan_hash]

    def predicted(self, plan: Plan) -> Cost:
        """Raises:
        AutocompError: there is no prediction.
        """
        return self._cost(plan)

    def shares(self, choice: Choice) -> tuple[float, float]:
        """Predicted latency and size, as shares of the untouched network's; infinite where there is no prediction."""
        cost = self.cost(choice)
        if cost is None:
            return math.inf, math.inf
        return cost.latency_ms / self.untouched.latency_ms, cost.size_bytes / self.untouched.size_bytes

    def shares_nearly(self, choice: Choice, base: Choice, changes: Changes) -> tuple[float, float]:
        """The same from those of a plan that differs in a few groups, without a prediction."""
        latency, size = self.shares(base)
        new, old = self._columns([choice, base])
        return (
            latency + float((changes.latency[new] - changes.latency[old]).sum()),
            size + float((changes.size[new] - changes.size[old]).sum()),
        )

    @cached_property
    def references(self) -> tuple[Choice, ...]:
        """Plans that the cost of a change is told from: what 8 bits cost one layer depends on whether its neighbours have
        them. Of the weakest format, which may be one of floats, and of the weakest that computes in integers."""
        found = [self.choice(self.space.uniform({"format": strength})) for strength in (0, 1)]
        integer = {
            decision.name: next((at for at, option in enumerate(decision.options) if _computes_integers(option)), 0)
            for decision in self.space.decisions
        }
        return tuple(dict.fromkeys([*found, *([self.choice(integer)] if any(integer.values()) else [])]))

    @cached_property
    def changes(self) -> tuple[Changes, ...]:
        """From every reference."""
        return tuple(self._all_changes(base) for base in self.references)

    def _all_changes(self, base: Choice) -> Changes:
        """In a large network layers that look the same cost the same: one of them is predicted for all."""
        alike: dict[object, tuple[Vector, Vector]] = {}
        found = []
        for group in range(len(self.groups)):
            looks = self._looks(base, group) if self._large else group
            if looks not in alike:
                alike[looks] = self._changes(base, group)
            found.append(alike[looks])
        latency, size = (np.concatenate(one) for one in zip(*found, strict=True))
        return Changes(base, latency, size)

    def _looks(self, base: Choice, group: int) -> object:
        """What the cost of a decision about one layer depends on, but for its neighbours."""
        decisions = [self.space.by_name[name] for name in self.groups[group].decisions]
        if any(len(decision.layers) != 1 or decision.kind not in TOGETHER for decision in decisions):
            return group
        layer = self.space.inventory.by_name[decisions[0].layers[0]]
        return (
            tuple((decision.kind, decision.options) for decision in decisions),
            (layer.kind, layer.weight_shape, layer.in_shape, layer.out_shape, layer.macs),
            base[group],
        )

    def _changes(self, base: Choice, group: int) -> tuple[Vector, Vector]:
        before = self.shares(base)
        found = [
            self.shares((*base[:group], place, *base[group + 1 :])) for place in range(len(self.groups[group].errors))
        ]
        if not all(math.isfinite(share) for share in before):  # nothing is known of what differs from it
            nothing = np.zeros(len(found))
            return nothing, nothing
        latency, size = (np.array(one) - was for one, was in zip(zip(*found, strict=True), before, strict=True))
        # What is not foreseen is given an end, so that no price of nothing makes it nothing at all.
        return np.nan_to_num(latency, posinf=UNFORESEEN), np.nan_to_num(size, posinf=UNFORESEEN)

    def foresee(self) -> None:
        """Predict now what is needed of all proposals: thousands of costs of a large network."""
        for choice in self.front:
            self.cost(choice)

    @cached_property
    def front(self) -> tuple[Choice, ...]:
        """The plans that are best at some prices, by the sum of errors and of changes in cost."""
        found: dict[Choice, None] = {}
        for changes in self.changes:
            for share, price in itertools.product(np.linspace(0.0, 1.0, DIRECTIONS), PRICES):
                found[self.best(changes, price * share, price * (1.0 - share))] = None
        return tuple(found)

    def keeping(self, limits: Limits, errors: Vector | None = None) -> tuple[Choice, ...]:
        """The plans that are best at the lowest prices at which what they cost keeps the limits, for prices on latency, on size
        and between; none where not even the highest do.

        Args:
            errors: of all combinations, where they are to be counted otherwise.
        """
        found: dict[Choice, None] = {}
        for changes, share in itertools.product(self.changes, np.linspace(0.0, 1.0, DIRECTIONS)):
            kept: Choice | None = None
            low, high = math.log(PRICES[0]) - 1.0, math.log(UNFORESEEN) - 1.0
            for _ in range(HALVINGS):
                price = math.exp((low + high) / 2.0)
                choice = self.best(changes, price * share, price * (1.0 - share), errors)
                if self.keeps(choice, limits):
                    high, kept = math.log(price), choice
                else:
                    low = math.log(price)
            if kept is not None:
                found[kept] = None
        return tuple(found)

    def keeps(self, choice: Choice, limits: Limits) -> bool:
        """Whether what a plan costs keeps the limits."""
        cost = self.cost(choice)
        return cost is not None and all(excess <= 0.0 for excess in limits.broken_by_cost(cost))

    def sparing(self, limits: Limits) -> dict[Choice, str]:
        """Plans within the limits that differ in kind, each with what it has as little of as it can: one kind of choice, or all
        that take units out. Of each the one of least error; none where no plan is foreseen to keep the limits."""
        present = [kind for kind in KINDS if any(decision.kind == kind for decision in self.space.decisions)]
        together = frozenset(present) & UNITS
        found: dict[Choice, str] = {}
        for spared in dict.fromkeys([together, *(frozenset({kind}) for kind in present)]):
            weights = np.array([SPARED if kind in spared else 1.0 for kind in KINDS])
            if spared and (kept := self.keeping_best(limits, weights)):
                found.setdefault(kept[0], " and ".join(kind for kind in KINDS if kind in spared))
        return found

    def keeping_best(self, limits: Limits, weights: Vector) -> tuple[Choice, ...]:
        """As :meth:`keeping`, with the errors of each kind of choice counted so many times; that of the least sum first."""
        errors = self.weighed(weights, np.ones(len(self.groups)))
        kept = self.keeping(limits, errors)
        return tuple(sorted(kept, key=lambda choice: float(errors[self._columns([choice])].sum())))

    def weighed(self, of_kinds: Vector, of_groups: Vector) -> Vector:
        """The errors of all combinations, with those of each kind of choice and of each group counted so many times."""
        found: Vector = of_kinds @ self._errors_by_kind
        return found * np.repeat(of_groups, self._sizes)

    def best(self, changes: Changes, latency_price: float, size_price: float, errors: Vector | None = None) -> Choice:
        """The best choice of every group at these prices."""
        errors = self._errors if errors is None else errors
        priced = errors + latency_price * changes.latency + size_price * changes.size
        return tuple(np.append(priced, math.inf)[self._rows].argmin(axis=1).tolist())

    def by_worth(self, changes: Changes, group: int, latency_price: float, size_price: float) -> npt.NDArray[np.int_]:
        """The combinations of one group at these prices, the best one first."""
        start = self._starts[group]
        of = slice(start, start + self._sizes[group])
        return np.argsort(
            self._errors[of] + latency_price * changes.latency[of] + size_price * changes.size[of], kind="stable"
        )


def without_errors(space: SearchSpace) -> dict[str, list[float]]:
    """For a landscape of costs alone."""
    return {decision.name: [0.0] * len(decision.options) for decision in space.decisions}


def _computes_integers(option: Option | None) -> bool:
    return isinstance(option, Format) and option.integer_activations


def _grouped(space: SearchSpace) -> Iterator[tuple[Decision, ...]]:
    """Decisions that are made together."""
    by_layer: dict[str, list[Decision]] = defaultdict(list)
    for decision in space.decisions:
        single = decision.kind in TOGETHER and len(decision.layers) == 1 and not decision.name.endswith(":*")
        by_layer[f"layer {decision.layers[0]}" if single else decision.name].append(decision)
    yield from (tuple(decisions) for decisions in by_layer.values())


def _group(decisions: Sequence[Decision], errors: Mapping[str, Sequence[float]]) -> Group:
    indices = tuple(itertools.product(*(range(len(decision.options)) for decision in decisions)))
    sums = [
        sum(errors[decision.name][index] for decision, index in zip(decisions, chosen, strict=True))
        for chosen in indices
    ]
    return Group(tuple(decision.name for decision in decisions), indices, np.array(sums, dtype=float))


def _errors_by_kind(group: Group, space: SearchSpace, errors: Mapping[str, Sequence[float]]) -> Vector:
    """Shape (kinds, combinations)."""
    found = np.zeros((len(KINDS), len(group.indices)))
    for place, name in enumerate(group.decisions):
        of_options = np.array(errors[name], dtype=float)
        found[KINDS.index(space.by_name[name].kind)] += of_options[[chosen[place] for chosen in group.indices]]
    return found
