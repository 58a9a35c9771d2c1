"""The sampler that knows what it searches: it starts from the whole front that sensitivities and the target's models foresee,
learns from every trial how far the sum of errors is off, and proposes the plan that is expected to add most to the front.

It is an ordinary Optuna sampler: a study of (metric, latency in ms, size in bytes), whose parameters are the space's decisions,
can use it anywhere.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from optuna import Study
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autocomp.pareto import front
from autocomp.search.hypervolume import Point, expected_improvement
from autocomp.search.landscape import Choice, Costs, Landscape
from autocomp.space import KINDS, SearchSpace

Vector = npt.NDArray[np.float64]

#: The drop that is as bad as no plan at all, as a share of the untouched network's metric, where no limit is asked for.
WORST_DROP = 0.1
#: Below this share of the metric, drops are not told apart.
RESOLUTION = 0.001
#: Before anything is known, the logarithm of a drop is foreseen this well by the output error.
PRIOR_STD = 0.7
#: Trials that the surrogate learns from: those on the front, then the latest.
MOST_LEARNT = 200
#: Plans looked at beside the predicted front: the best ones so far with a few choices changed.
NEIGHBOURS, CHANGES = 150, (1, 2, 3, 5)


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """One integer per decision: the index of its option."""
    return {decision.name: IntDistribution(0, len(decision.options) - 1) for decision in space.decisions}


@dataclass(frozen=True)
class Bounds:
    """What the user asked for; None where nothing."""

    latency_ms: float | None = None
    size_bytes: float | None = None
    drop: float | None = None


@dataclass(frozen=True)
class _Seen:
    """A trial's choice and its drop as a share of the metric; the drop of one that is not finished is the foreseen one."""

    choice: Choice
    drop: float


@dataclass
class _Surrogate:
    """Drops from foreseen output errors: in the logarithm a straight line of slope 1, and what a Gaussian process learns of
    the rest from how large the error is and which kinds of choices it comes from."""

    landscape: Landscape
    process: object = field(init=False, default=None)

    def learn(self, seen: Sequence[_Seen]) -> None:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

        if not seen:
            return
        scales = [1.0, *[0.5] * len(KINDS)]
        kernel = ConstantKernel(PRIOR_STD**2, (0.01, 4.0)) * RBF(scales, (0.2, 10.0)) + WhiteKernel(0.05, (0.01, 0.3))
        learner = GaussianProcessRegressor(kernel, optimizer="fmin_l_bfgs_b" if len(seen) > len(scales) else None)
        off = [math.log((max(one.drop, 0.0) + RESOLUTION) / self._prior(one.choice)) for one in seen]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a scale at its bound is as good as any beyond it
            self.process = learner.fit(np.array([self._features(one.choice) for one in seen]), np.array(off))

    def drops(self, choices: Sequence[Choice]) -> tuple[Vector, Vector]:
        """Means and standard deviations, as shares of the metric."""
        if self.process is None:
            mean, std = np.zeros(len(choices)), np.full(len(choices), PRIOR_STD)
        else:
            features = np.array([self._features(choice) for choice in choices])
            mean, std = self.process.predict(features, return_std=True)  # type: ignore[attr-defined]
        middle = np.array([self._prior(choice) for choice in choices]) * np.exp(mean)
        return np.maximum(middle - RESOLUTION, 0.0), middle * std + RESOLUTION / 5

    def _prior(self, choice: Choice) -> float:
        return min(self.landscape.error(choice), 1.0) + RESOLUTION

    def _features(self, choice: Choice) -> list[float]:
        by_kind = self.landscape.error_by_kind(choice)
        total = sum(by_kind.values()) + RESOLUTION / 10
        return [math.log(total) / 2, *(by_kind[kind] / total for kind in KINDS)]


class GuidedSampler(BaseSampler):
    """Proposes by expected hypervolume.

    ``why`` says of the last proposal what was expected of it.

    Args:
        landscape: may be kept and given to the sampler of the next trial, which then need not look at it anew.
        seed: a proposal is a function of it, the trial's number and the other trials.
    """

    def __init__(self, landscape: Landscape, seed: int, bounds: Bounds = Bounds()) -> None:
        self._landscape, self._seed, self._bounds = landscape, seed, bounds
        self.why = ""

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return distributions(self._landscape.space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, int]:
        chosen = self._landscape.indices(self._proposed(study, trial.number))
        return {name: chosen[name] for name in search_space}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> int:
        return 0

    def _proposed(self, study: Study, number: int) -> Choice:
        land = self._landscape
        if number == 0:
            self.why = "the untouched network"
            return land.choice({})
        chance = random.Random(f"{self._seed}/{number}/guided")
        surrogate = _Surrogate(land)
        seen, tried, scale = self._history(study, number, surrogate)
        best = _best(seen, land)
        unit = self._unit(scale)
        known = sorted(self._point(one.drop, land.costs(one.choice), unit) for one in best)
        pool = list(self._pool(best, tried, chance))
        if not pool:
            self.why = "a plan by chance: all that are near the front are known"
            return tuple(chance.randrange(len(group.errors)) for group in land.groups)
        means, stds = surrogate.drops(pool)
        gains = [
            self._gain(mean, std, land.costs(choice), known, unit)
            for choice, mean, std in zip(pool, means, stds, strict=True)
        ]
        place = max(range(len(pool)), key=lambda one: gains[one])
        costs = land.costs(pool[place])
        self.why = (
            f"adds {gains[place]:.4f} of hypervolume, it is expected: a drop of {means[place]:.2%} ± {stds[place]:.2%} of "
            f"the metric at {costs.latency_ms:.4g} ms and {costs.size_bytes:,.0f} bytes"
        )
        return pool[place]

    def _history(self, study: Study, number: int, surrogate: _Surrogate) -> tuple[list[_Seen], set[Choice], float]:
        """What is known of other trials, the surrogate taught by those that are finished; all that were tried; and the size
        of the untouched network's metric, which drops are shares of (1 where it is not known yet)."""
        land = self._landscape
        finished: list[tuple[Choice, float]] = []
        waiting: list[Choice] = []
        tried: set[Choice] = set()
        for one in study.get_trials(deepcopy=False):
            if one.number == number or not one.params:
                continue
            choice = land.choice(one.params)
            tried.add(choice)
            if one.state == TrialState.COMPLETE and one.values is not None:
                finished.append((choice, one.values[0]))
            elif one.state == TrialState.RUNNING:
                waiting.append(choice)
        untouched = land.choice({})
        base = next((metric for choice, metric in finished if choice == untouched), None)
        if base is None:
            return [], tried, 1.0
        scale = abs(base) or 1.0
        sign = 1.0 if study.directions[0] == StudyDirection.MAXIMIZE else -1.0
        seen = [_Seen(choice, sign * (base - metric) / scale) for choice, metric in finished]
        touched = [one for one in seen if one.choice != untouched]
        surrogate.learn([*dict.fromkeys([*_best(touched, land), *reversed(touched)])][:MOST_LEARNT])
        if waiting:
            means, _ = surrogate.drops(waiting)
            seen += [_Seen(choice, float(mean)) for choice, mean in zip(waiting, means, strict=True)]
        return seen, tried, scale

    def _unit(self, scale: float) -> Point:
        """The reference point: a drop, as a share of the metric, and milliseconds and bytes."""
        untouched, bounds = self._landscape.untouched, self._bounds
        return (
            WORST_DROP if bounds.drop is None else max(bounds.drop / scale, RESOLUTION),
            min(untouched.latency_ms, bounds.latency_ms or math.inf),
            min(untouched.size_bytes, bounds.size_bytes or math.inf),
        )

    @staticmethod
    def _point(drop: float, costs: Costs, unit: Point) -> Point:
        return max(drop, 0.0) / unit[0], costs.latency_ms / unit[1], costs.size_bytes / unit[2]

    def _gain(self, mean: float, std: float, costs: Costs, known: Sequence[Point], unit: Point) -> float:
        """The hypervolume expected of a plan; none of one that may break a limit of latency."""
        limit_ms = self._bounds.latency_ms
        if limit_ms is not None and costs.latency_ms + costs.latency_std_ms > limit_ms:
            return 0.0
        _, latency, size = self._point(0.0, costs, unit)
        return expected_improvement(mean / unit[0], std / unit[0], (latency, size), known)

    def _pool(self, best: Sequence[_Seen], tried: set[Choice], chance: random.Random) -> Iterator[Choice]:
        """Plans worth a look, each once: the predicted front, and neighbours of the best so far (levels moved between
        layers, as EvoPress (Sieberling et al., 2024) moves them, at a price drawn by chance)."""
        land = self._landscape
        plans = {land.plan_hash(choice) for choice in tried}
        for choice in dict.fromkeys([*land.front, *self._neighbours(best, chance)]):
            if choice not in tried and (plan := land.plan_hash(choice)) not in plans:
                plans.add(plan)
                yield choice

    def _neighbours(self, best: Sequence[_Seen], chance: random.Random) -> Iterator[Choice]:
        land = self._landscape
        parents = [one.choice for one in best] or [land.choice({})]
        for _ in range(NEIGHBOURS):
            choice, tables = list(chance.choice(parents)), chance.choice(land.changes)
            price, share = 10.0 ** chance.uniform(-3.5, 0.5), chance.random()
            count = min(chance.choice(CHANGES), len(land.groups))
            for place in chance.sample(range(len(land.groups)), count):
                latency, size = tables[place]
                order = np.argsort(
                    land.groups[place].errors + price * (share * latency + (1.0 - share) * size), kind="stable"
                )
                choice[place] = int(order[1] if len(order) > 1 and order[0] == choice[place] else order[0])
            yield tuple(choice)


def _best(seen: Sequence[_Seen], landscape: Landscape) -> list[_Seen]:
    """Those that no other one dominates."""
    costs = [landscape.costs(one.choice) for one in seen]
    return [
        seen[place]
        for place in front([(one.drop, of.latency_ms, of.size_bytes) for one, of in zip(seen, costs, strict=True)])
    ]
