"""What a plan is worth to a search: how much it is expected to add to the front, or towards the end of it that is wanted, and
whether what it costs is within the limits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from autocomp.pareto import reference_share
from autocomp.search.hypervolume import Point, expected_improvements, mean_below
from autocomp.search.landscape import Landscape
from autocomp.search.limits import ENDS, Goal, Limits
from autocomp.search.surrogate import RESOLUTION

Vector = npt.NDArray[np.float64]

#: The drop that is as bad as no plan at all, as a share of the untouched network's metric, where no limit is asked for: trials
#: take turns, so that the front grows as far as anyone may want it to go, and closely where most will want it.
WORST_DROPS = (0.2, 0.05)
#: Before it is predicted in full, a plan is thought to keep a limit up to this multiple of it.
NEARLY = 1.05

NONE = Limits()
#: Indices of plans of earlier searches, and their drops as shares of the metric.
Earlier = tuple[tuple[dict[str, int], float], ...]


@dataclass(frozen=True)
class Wish:
    """What is searched for, and what is known before. ``recovers``: what is found is trained on. ``given``: what is proposed
    under a number, and why. ``again``: stopped trials whose plans may be proposed again."""

    limits: Limits = NONE
    goal: Goal = "front"
    earlier: Earlier = ()
    recovers: bool = False
    given: Mapping[int, tuple[dict[str, int], str]] = field(default_factory=dict)
    again: frozenset[int] = frozenset()

    @property
    def of_all_drops(self) -> bool:
        """Whether a whole front is wanted: of an end that no drop is allowed for, what is best at every drop. Where recovery
        follows, it is not known before at which of them."""
        return self.goal == "front" or self.idle is not None

    @property
    def idle(self) -> int | None:
        """Which cost, latency (0) or size (1), matters no more than that it is within its limit: to the front of an end."""
        return 1 - ENDS[self.goal] if self.goal in ENDS and self.limits.max_drop is None else None


WHOLE_FRONT = Wish()


class Worth:
    """What plans of a landscape are worth to a wish. Costs are shares of the untouched network's, latency and size, shape
    (plans, 2), unless said."""

    def __init__(self, landscape: Landscape, wish: Wish) -> None:
        self._landscape, self._wish = landscape, wish

    def worst_drop(self, scale: float, number: int) -> float:
        """The reference point's drop for a trial, as a share of the metric, whose value for the untouched network is
        ``scale``."""
        if self._wish.limits.max_drop is None:
            return WORST_DROPS[number % len(WORST_DROPS)]
        return max(self._wish.limits.max_drop / scale, RESOLUTION)

    def costs(self, shares: Sequence[tuple[float, float]] | Vector) -> Vector:
        """Costs as shares of the reference point's. One that matters no more than that it is within its limit is nothing where
        it is."""
        given, limits, idle = np.reshape(shares, (-1, 2)), self.limit_shares, self._wish.idle
        found: Vector = given / np.minimum(limits, self._reference)
        if idle is not None:
            within = np.isfinite(given[:, idle]) & (given[:, idle] <= limits[idle])
            found[:, idle] = np.where(within, 0.0, found[:, idle])
        return found

    @cached_property
    def _reference(self) -> Vector:
        """Where no limit is below it: the untouched network; where even the smallest plan that is foreseen is no faster, a
        point beyond that plan, since what is only smaller would count for nothing; and so with the fastest one."""
        shares = np.array([self._landscape.shares(choice) for choice in self._landscape.front])
        shares = shares[np.isfinite(shares).all(axis=1)]
        if not len(shares):
            return np.ones(2)
        ends = shares[shares[:, 1].argmin(), 0], shares[shares[:, 0].argmin(), 1]
        return np.array([reference_share(float(end)) for end in ends])

    @property
    def limit_shares(self) -> Vector:
        """What may be predicted of a plan; infinite without a limit. Shape (2,)."""
        untouched, limits = self._landscape.untouched, self._wish.limits
        return np.array(
            [limits.foreseen_latency_ms / untouched.latency_ms, limits.foreseen_size_bytes / untouched.size_bytes]
        )

    def nearly_allowed(self, shares: Vector) -> npt.NDArray[np.bool_]:
        """Whether costs are foreseen and, nearly, within the limits."""
        return within(shares, NEARLY * self.limit_shares) & np.isfinite(shares).all(axis=1)

    def gains(
        self, drops: tuple[Vector, Vector], shares: Vector, points: Sequence[Point], worst_drop: float, scale: float
    ) -> Vector:
        """What is expected of plans beyond the best that are known, in units of the reference point.

        Args:
            drops: medians, as shares of the metric and above :data:`RESOLUTION`, and the spreads of their logarithm.
            points: of the best plans that keep the limits, as shares of the reference point, sorted.
            worst_drop: the reference point's.
            scale: the untouched network's metric.
        """
        medians, spreads = drops
        medians, offset, costs = medians / worst_drop, RESOLUTION / worst_drop, self.costs(shares)
        if self._wish.of_all_drops:
            return expected_improvements(medians, spreads, offset, costs, points)
        most = 1.0
        if self._wish.limits.max_drop is not None:  # below the resolution, a part of it: else nothing would be likely
            most = max(self._wish.limits.max_drop / scale, RESOLUTION / 4.0) / worst_drop
        return _improvements(self._wish.goal, medians, spreads, offset, costs, points, most)


def within(shares: Vector, most: Vector) -> npt.NDArray[np.bool_]:
    """Of plans, shape (plans, 2), whether neither share is larger than that."""
    found: npt.NDArray[np.bool_] = np.logical_and.reduce(shares <= most, axis=1)
    return found


def _improvements(
    goal: Goal,
    medians: Vector,
    spreads: Vector,
    offset: float,
    costs: Vector,
    known: Sequence[Point],
    most: float,
) -> Vector:
    """What is expected beyond the best of the ``known`` plans, which keep the limits, in units of the reference point (see
    :func:`autocomp.search.hypervolume.expected_improvements`).

    Args:
        most: the drop that is allowed.
    """
    if goal == "most-accurate":
        best = min((point[0] for point in known), default=1.0)
        return mean_below(best + offset, medians, spreads)
    place = ENDS[goal]
    cost = costs[:, place]
    # Where none is known, whatever keeps the limits is an improvement.
    costliest = float(np.max(cost[np.isfinite(cost)], initial=1.0))
    best = min((point[1 + place] for point in known), default=costliest)
    kept: Vector = ndtr((math.log(most + offset) - np.log(medians)) / spreads)
    return np.maximum(best - cost, 0.0) * kept
