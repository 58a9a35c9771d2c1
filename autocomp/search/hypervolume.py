"""How much a new point may add to the hypervolume that a front dominates, in three objectives that are all minimized.

The third axis is cut where points lie; between two of them the dominated area of the other two is one staircase (Emmerich,
Deutz and Klinkenberg, 2011, describe the expected improvement that follows, for any number of uncertain objectives; here one
is uncertain, and the others are known).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

Vector = npt.NDArray[np.float64]

#: A value that is uncertain, and two costs that are known, each as a share of the reference point.
Point = tuple[float, float, float]


def expected_improvements(
    medians: Vector, spreads: Vector, offset: float, costs: Vector, front: Sequence[Point]
) -> Vector:
    """The volumes that points are expected to add, whose costs are known and whose values are so in the logarithm: with
    ``offset`` added, they are log-normal. A value below zero adds no more than zero does.

    Args:
        medians, spreads: of the values with the offset, and of their logarithm; shape (points,).
        costs: shape (points, 2).
        front: sorted by the value.

    Returns:
        Shape (points,), each point by itself.
    """
    inside = [point for point in front if point[0] < 1.0]
    total, start = np.zeros(len(medians)), mean_below(offset, medians, spreads)
    for place, end in enumerate([*(max(point[0], 0.0) for point in inside), 1.0]):
        below = mean_below(end + offset, medians, spreads)
        total += areas_left([point[1:] for point in inside[:place]], costs) * (below - start)
        start = below
    return total


def mean_below(limit: float, medians: Vector, spreads: Vector) -> Vector:
    """By how much log-normal values are expected to lie below a limit: ∫ P(value ≤ z) dz from 0 up to it (as a put option is
    priced: Black and Scholes, 1973)."""
    z = (math.log(limit) - np.log(medians)) / spreads
    result: Vector = limit * ndtr(z) - medians * np.exp(spreads**2 / 2.0) * ndtr(z - spreads)
    return result


def areas_left(covered: Iterable[tuple[float, float]], corners: Vector) -> Vector:
    """The areas between each corner, shape (corners, 2), and (1, 1) that none of some points dominates."""
    steps: list[tuple[float, float]] = []
    for x, y in sorted(covered):
        if x < 1.0 and y < (steps[-1][1] if steps else 1.0):
            steps.append((x, y))
    open_ = np.clip(1.0 - corners, 0.0, None)
    if not steps:
        whole: Vector = open_.prod(axis=1)
        return whole
    starts, heights = np.array(steps).T
    ends = np.append(starts[1:], 1.0)
    widths = np.clip(ends - np.maximum(starts, corners[:, :1]), 0.0, None)
    left: Vector = open_.prod(axis=1) - (widths * np.clip(1.0 - np.maximum(heights, corners[:, 1:]), 0.0, None)).sum(
        axis=1
    )
    return np.clip(left, 0.0, None)
