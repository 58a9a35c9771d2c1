"""Fronts: which of several plans no other plan beats, and which of those to pick."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def front(costs: npt.ArrayLike) -> list[int]:
    """The rows that no other row dominates, by index, ascending.

    Args:
        costs: shape (plans, objectives), every objective to be minimized. Of equal rows the first stays.
    """
    values = np.asarray(costs, dtype=float)
    if not len(values):
        return []
    # In this order a row can only be dominated by one before it, and is then by one that is kept.
    order = np.lexsort(values.T[::-1])
    kept = np.empty_like(values)
    places: list[int] = []
    for place in order:
        if not (kept[: len(places)] <= values[place]).all(axis=1).any():
            kept[len(places)] = values[place]
            places.append(int(place))
    return sorted(places)


def hypervolume(points: npt.ArrayLike) -> float:
    """The volume that some points dominate within the unit cube, whose far corner is the reference.

    Args:
        points: shape (points, 3), every objective to be minimized; what lies beyond the reference adds nothing, and what is
            below zero no more than zero does.
    """
    values = np.clip(np.asarray(points, dtype=float).reshape(-1, 3), 0.0, None)
    values = values[(values < 1.0).all(axis=1)]
    first, x, y = values[np.argsort(values[:, 1], kind="stable")].T
    widths = np.diff(np.append(x, 1.0))
    # The first axis is cut where points lie; between two of them the area of the other two is one staircase.
    entered, total = np.ones(len(values)), 0.0
    order = np.argsort(first, kind="stable")
    thickness = np.diff(np.append(first[order], 1.0))
    for place, thick in zip(order, thickness, strict=True):
        entered[place] = y[place]
        total += thick * float(widths @ (1.0 - np.minimum.accumulate(entered)))
    return total


#: The reference point beside a plan that must count, as a multiple of what that costs (the usual one: Ishibuchi et al., 2018,
#: How to Specify a Reference Point in Hypervolume Calculation).
BEYOND = 1.1


def reference_share(share: float) -> float:
    """A cost of the reference point, as a share of the untouched network's, where the plan that is best in the other cost takes
    ``share``: the untouched network's, or beyond that plan where it would count for nothing."""
    return 1.0 if share < 1.0 else BEYOND * share


#: The fastest and the smallest are sought among those that lost at most this share of the metric, where nothing else was asked
#: for.
NEAR_SHARE = 0.05
#: So is the knee, and where none is that near, among those that lost a tenth at most: a network that lost more is ruined, and
#: small and fast as well.
KNEE_SHARES = (NEAR_SHARE, 0.1)


def knee(
    metric_losses: Sequence[float],
    latencies_ms: Sequence[float],
    sizes_bytes: Sequence[float],
    most_losses: Sequence[float] = (math.inf,),
) -> int:
    """The point nearest to the ideal one: least loss, latency and size at once.

    Latency and size count by their logarithm (a factor is a factor), the loss as it is; each is scaled to 0…1 over the
    points. Of equally near points the first is taken.

    Args:
        most_losses: points that lose more than the first of these have no say, unless all do; then the next one counts.

    Returns:
        An index into the arguments.
    """
    losses = np.asarray(metric_losses, float)
    near = (np.flatnonzero(losses <= most) for most in most_losses)
    places = next((found for found in near if len(found)), np.arange(len(losses)))
    columns = np.array([losses, np.log(latencies_ms), np.log(sizes_bytes)]).T[places]
    low, high = columns.min(axis=0), columns.max(axis=0)
    scaled = (columns - low) / np.where(high > low, high - low, 1.0)
    return int(places[np.square(scaled).sum(axis=1).argmin()])
