"""The sampler that knows what it searches: it starts from the whole front that sensitivities and the target's models foresee,
learns from every trial how far the sum of errors is off, and proposes the plan that is expected to add most to the front, or
to come nearest to the end of it that is wanted.

It is an ordinary Optuna sampler: a study of (metric, latency in ms, size in bytes), whose parameters are the space's decisions,
can use it anywhere.
"""

from __future__ import annotations

import itertools
import math
import random
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from autocomp.pareto import front
from autocomp.search.books import Books, distributions
from autocomp.search.hypervolume import Point
from autocomp.search.landscape import Changes, Choice, Landscape
from autocomp.search.limits import ENDS
from autocomp.search.pool import Bound, between, foreseen_anew, neighbours
from autocomp.search.surrogate import RESOLUTION, Seen, Surrogate
from autocomp.search.worth import WHOLE_FRONT, Wish, Worth, within

Vector = npt.NDArray[np.float64]

#: Where training follows, every such trial is one of the plans that differ in kind, as long as there are any.
OTHERS_EVERY = 2
#: Plans looked at beside the predicted front: neighbours at one price, and as many at none; between two; of other fronts.
NEIGHBOURS, BETWEEN, FORESEEN_ANEW = 75, 60, 60
#: Before so many plans are known, too little is for changes that no price makes the best.
EARLY = 12
#: Of the plans looked at, so many that promise most and keep the limits are told apart by full predictions; and so many may
#: turn out to break a limit before no more is predicted for it.
PREDICTED, DISAPPOINTED = 25, 50
#: Looks at neighbours, each at other ones, before there is thought to be none; plans drawn by chance, of which one that was not
#: tried is taken; and how often the untouched network is tried where that fails.
LOOKS, DRAWN, UNTOUCHED_TRIES = 4, 1000, 2
#: Trials of earlier searches are numbered down from here; and so many are gone by.
EARLIER, MOST_EARLIER = -1, 500


@dataclass(frozen=True)
class _Known:
    """What a proposal goes by: of all plans of known drop those that no other one dominates; all that need not be proposed
    again; and the reference point's drop, with the best of the plans that keep the limits (``keeping``) as shares of that
    point, sorted. ``untouched``: whether the untouched network is among what is known or at work, or has failed for good;
    ``scale``: its metric."""

    best: tuple[Seen, ...]
    keeping: tuple[Seen, ...]
    tried: frozenset[Choice]
    worst_drop: float
    points: tuple[Point, ...]
    untouched: bool
    scale: float = 1.0


class GuidedSampler(BaseSampler):
    """Proposes by expected hypervolume, or by expected improvement towards a goal.

    ``why`` says of the last proposal what was expected of it. It is for one study at a time, which may be worked on in several
    threads: what it has read of that is kept. It can be pickled where the landscape's costs can.

    Args:
        seed: a proposal is a function of it, the trial's number and the other trials.
    """

    def __init__(self, landscape: Landscape, seed: int, wish: Wish = WHOLE_FRONT) -> None:
        self._landscape, self._seed, self._wish, self._worth = landscape, seed, wish, Worth(landscape, wish)
        self._books, self._surrogate = Books(), Surrogate(landscape)
        self._earlier = _foremost_of(
            [
                Seen(EARLIER - place, landscape.choice(indices), drop)
                for place, (indices, drop) in enumerate(wish.earlier)
            ],
            landscape,
        )
        limits = wish.limits
        self._first = landscape.front if not limits else (*landscape.keeping(limits), *landscape.front)
        self.why = ""
        self._one_by_one = threading.Lock()

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_one_by_one"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _one_by_one=threading.Lock())

    @cached_property
    def _others(self) -> Mapping[Choice, str]:
        """Plans that training may bring back further than others, with what they do with little of."""
        wish = self._wish
        differs = wish.recovers and wish.goal == "most-accurate" and wish.limits.of_costs
        return self._landscape.sparing(wish.limits) if differs else {}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return distributions(self._landscape.space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, int]:
        chosen = self.indices(study, trial.number)
        return {name: chosen[name] for name in search_space}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> object:
        # A parameter of the user's own, of which nothing is known here.
        drawn = RandomSampler(random.Random(f"{self._seed}/{trial.number}/{param_name}").getrandbits(32))
        return drawn.sample_independent(study, trial, param_name, param_distribution)

    def indices(self, study: Study, number: int) -> dict[str, int]:
        """What is proposed for the trial of that number: the index of every decision's option."""
        with self._one_by_one:
            trials = study.get_trials(deepcopy=False)
            if not self._books.are_of(trials):
                self._books, self._surrogate = Books(), Surrogate(self._landscape)
            choice = self._books.proposed[number] = self._proposed(trials, study.directions[0], number)
        return self._landscape.indices(choice)

    def _proposed(self, trials: Sequence[FrozenTrial], direction: StudyDirection, number: int) -> Choice:
        land = self._landscape
        if number == 0:
            self.why = "the untouched network"
            return land.choice({})
        if number in self._wish.given:
            indices, self.why = self._wish.given[number]
            return land.choice(indices)
        chance = random.Random(f"{self._seed}/{number}/guided")
        known = self._known(trials, direction, number)
        if not known.untouched:
            self.why = "the untouched network, which all others are compared with"
            return land.choice({})
        others = self._others if number % OTHERS_EVERY == 0 else {}
        other = next((one for one in others if one not in known.tried), None)
        if other is not None:
            spared = self._others[other]
            self.why = self._words(other, f"has little of {spared}, and training may bring it back further")
            return other
        for _ in range(LOOKS):
            pool = self._pool(known, chance)
            foremost = self._foremost(pool, known, chance) if pool else []
            if foremost:
                break
        else:
            return self._makeshift(pool, known, chance)
        gains = self._gains(foremost, np.array([land.shares(choice) for choice in foremost]), known)
        place = int(gains.argmax())
        self.why = self._words(foremost[place], f"adds {gains[place]:.4f} {self._wanted}, it is expected")
        return foremost[place]

    def _foremost(self, pool: Mapping[Choice, Choice | None], known: _Known, chance: random.Random) -> list[Choice]:
        """Those that keep the limits and promise most by what is nearly foreseen of their costs, none of a plan that was
        tried."""
        land = self._landscape
        near = [self._nearly(choice, base, chance) for choice, base in pool.items()]
        choices, shares = list(pool), np.array(near).reshape(-1, 2)
        gains = np.where(self._worth.nearly_allowed(shares), self._gains(choices, shares, known), -math.inf)
        plans: set[str] = {land.plan_hash(choice) for choice in known.tried}
        foremost: list[Choice] = []
        disappointed = 0
        for place in np.argsort(-gains, kind="stable"):
            choice = choices[place]
            foreseen = pool[choice] is None
            if len(foremost) == PREDICTED or not math.isfinite(gains[place]):
                break
            if (disappointed == DISAPPOINTED and not foreseen) or (plan := land.plan_hash(choice)) in plans:
                continue
            plans.add(plan)
            if land.keeps(choice, self._wish.limits):
                foremost.append(choice)
            else:
                disappointed += not foreseen
        return foremost

    def _gains(self, choices: Sequence[Choice], shares: Vector, known: _Known) -> Vector:
        return self._worth.gains(self._surrogate.drops(choices), shares, known.points, known.worst_drop, known.scale)

    def _makeshift(self, pool: Mapping[Choice, Choice | None], known: _Known, chance: random.Random) -> Choice:
        """Where nothing that was looked at keeps the limits: what breaks them least; by chance where all of it was tried."""
        land, limits = self._landscape, self._wish.limits
        over: dict[Choice, float] = {}
        if limits.of_costs:
            tried = {land.plan_hash(choice) for choice in known.tried}
            over = {
                choice: max(limits.broken_by_cost(cost))
                for choice, base in pool.items()
                if base is None and land.plan_hash(choice) not in tried and (cost := land.cost(choice)) is not None
            }
        if over:
            nearest = min(over, key=lambda choice: over[choice])
            self.why = self._words(nearest, "comes nearest to the limits, which no plan at hand keeps")
            return nearest
        self.why = "a plan by chance: all that are near the front are known"
        return self._by_chance(known, chance)

    def _by_chance(self, known: _Known, chance: random.Random) -> Choice:
        """One that was not tried, of some of these the one that breaks the limits least; any where all were."""
        land, limits = self._landscape, self._wish.limits
        sizes = [len(group.errors) for group in land.groups]
        if math.prod(sizes) <= DRAWN:
            drawn = list(itertools.product(*map(range, sizes)))
            chance.shuffle(drawn)
        else:
            drawn = [tuple(map(chance.randrange, sizes)) for _ in range(DRAWN)]
        tried = {land.plan_hash(choice) for choice in known.tried}
        untried = (choice for choice in drawn if land.plan_hash(choice) not in tried)
        new = list(itertools.islice(untried, PREDICTED if limits.of_costs else 1)) or drawn[:1]
        costs = [(choice, land.cost(choice)) for choice in new]
        over = {choice: max(limits.broken_by_cost(cost), default=0.0) for choice, cost in costs if cost is not None}
        return min(over or new, key=lambda choice: max(over.get(choice, 0.0), 0.0))

    @property
    def _wanted(self) -> str:
        return "of hypervolume" if self._wish.of_all_drops else f"towards the {self._wish.goal}"

    def _words(self, choice: Choice, reason: str) -> str:
        cost, (medians, spreads) = self._landscape.cost(choice), self._surrogate.drops([choice])
        low, middle, high = (max(medians[0] * math.exp(z * spreads[0]) - RESOLUTION, 0.0) for z in (-1.0, 0.0, 1.0))
        costs = "costs that are not foreseen"
        if cost is not None:
            costs = f"{cost.latency_ms:.4g} ms and {cost.size_bytes:,.0f} bytes"
        return f"{reason}: a metric worse by {middle:.2%} ({low:.2%} to {high:.2%}) at {costs}"

    def _known(self, trials: Sequence[FrozenTrial], direction: StudyDirection, number: int) -> _Known:
        """The surrogate is taught by what is finished."""
        land, books = self._landscape, self._books
        books.read(trials, number, land)
        untouched = land.choice({})
        finished = [(number, *books.finished[number]) for number in sorted(books.finished)]
        tried = frozenset([*(choice for _, choice, _ in finished), *books.failed.values(), *books.waiting.values()])
        tried |= {choice for one, (choice, _, _) in books.stopped.items() if one not in self._wish.again}
        base = next((metric for _, choice, metric in finished if choice == untouched), None)
        if base is None:
            failed = sum(choice == untouched for choice in books.failed.values())
            hopeless = untouched in books.waiting.values() or failed >= UNTOUCHED_TRIES
            return _Known((), (), tried, self._worth.worst_drop(1.0, number), (), hopeless)
        scale = abs(base) or 1.0
        sign = 1.0 if direction == StudyDirection.MAXIMIZE else -1.0
        seen = [Seen(number, choice, sign * (base - metric) / scale) for number, choice, metric in finished]
        stopped = [Seen(number, *found) for number, found in sorted(books.stopped.items())]
        touched = [one for one in (*seen, *self._earlier) if one.choice != untouched]
        self._surrogate.learn([*touched, *stopped], number, self._foremost_seen)
        if books.waiting:  # taken to be as they are foreseen
            medians, _ = self._surrogate.drops(list(books.waiting.values()))
            seen += [
                Seen(number, choice, float(median) - RESOLUTION)
                for (number, choice), median in zip(books.waiting.items(), medians, strict=True)
            ]
        best, worst_drop = self._best(seen), self._worth.worst_drop(scale, number)
        limits = self._wish.limits
        keeping = best
        if limits:
            kept = [one for one in seen if limits.allows(one.drop * scale) and land.keeps(one.choice, limits)]
            keeping = self._best(kept)
        costs = self._worth.costs([land.shares(one.choice) for one in keeping])
        points = sorted((max(one.drop, 0.0) / worst_drop, *of_one) for one, of_one in zip(keeping, costs, strict=True))
        return _Known(tuple(best), tuple(keeping), tried, worst_drop, tuple(points), untouched=True, scale=scale)

    def _foremost_seen(self, seen: Sequence[Seen]) -> list[Seen]:
        """Those that no other one dominates first, then the latest."""
        whole = [one for one in seen if one.drop_std == 0.0]
        return [*dict.fromkeys([*self._best(whole), *sorted(seen, key=lambda one: -one.number)])]

    def _best(self, seen: Sequence[Seen]) -> list[Seen]:
        """Those that no other one dominates."""
        costs = self._worth.costs([self._landscape.shares(one.choice) for one in seen])
        rows = [(one.drop, *of_one) for one, of_one in zip(seen, costs, strict=True)]
        return [seen[place] for place in front(rows)]

    def _pool(self, known: _Known, chance: random.Random) -> dict[Choice, Choice | None]:
        """Plans worth a look, that were not tried: the predicted front, what earlier searches found, and what is near or
        between the best so far or foreseen otherwise, with the plan that each is near to."""
        land = self._landscape
        earlier = [one.choice for one in self._earlier]
        found: dict[Choice, Choice | None] = dict.fromkeys(
            choice for choice in (*self._first, *earlier) if choice not in known.tried
        )
        best = [*(one.choice for one in known.best), *earlier] or [land.choice({})]
        # Neighbours of plans that keep the limits do so more often than others, where some layers gain what others lose.
        within = [one.choice for one in known.keeping] or best
        near = [*neighbours(land, best, NEIGHBOURS, chance)]
        early = not self._wish.limits and len(known.tried) < EARLY
        near += neighbours(land, within, NEIGHBOURS, chance, one_price=early)
        near += between(within if len(within) > 1 else best, BETWEEN, chance)
        near += foreseen_anew(land, best, self._bound(known), FORESEEN_ANEW, chance)
        for choice, base in near:
            if choice not in known.tried:
                found.setdefault(choice, base)
        return found

    def _bound(self, known: _Known) -> Bound | None:
        """What plans that are foreseen anew are to keep, as nearly as it can be had."""
        most, limits, goal = self._worth.limit_shares, self._wish.limits, self._wish.goal
        if np.isfinite(most).any():

            def cheap(choices: Sequence[tuple[Choice, Changes]]) -> npt.NDArray[np.bool_]:
                near = [self._landscape.shares_nearly(one, by.reference, by) for one, by in choices]
                return within(np.array(near), most)

            return Bound(cheap, by_cost=True)
        if limits.max_drop is not None and goal in ENDS:
            allowed = limits.max_drop / known.scale + RESOLUTION

            def accurate(choices: Sequence[tuple[Choice, Changes]]) -> npt.NDArray[np.bool_]:
                medians, _ = self._surrogate.drops([one for one, _ in choices])
                return np.less_equal(medians, allowed)

            return Bound(accurate, by_cost=False)
        return None

    def _nearly(self, choice: Choice, base: Choice | None, chance: random.Random) -> tuple[float, float]:
        land = self._landscape
        return land.shares(choice) if base is None else land.shares_nearly(choice, base, chance.choice(land.changes))


def _foremost_of(earlier: Sequence[Seen], landscape: Landscape) -> list[Seen]:
    """Of many those that no other one dominates, by what is nearly foreseen of their costs, then the latest: each of them is
    looked at before every proposal."""
    if len(earlier) <= MOST_EARLIER:
        return [*earlier]
    changes = landscape.changes[0]
    rows = [(one.drop, *landscape.shares_nearly(one.choice, changes.reference, changes)) for one in earlier]
    best = [earlier[place] for place in front(rows)]
    return [*dict.fromkeys([*best, *reversed(earlier)])][:MOST_EARLIER]
