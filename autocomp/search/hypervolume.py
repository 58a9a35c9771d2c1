"""The hypervolume that a front dominates, in three objectives that are all minimized, and how much a new point may add to it.

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


def area_left(covered: Iterable[tuple[float, float]], corner: tuple[float, float]) -> float:
    """The area between ``corner`` and (1, 1) that none of some points dominates."""
    x0, y0 = corner
    if x0 >= 1.0 or y0 >= 1.0:
        return 0.0
    steps: list[tuple[float, float]] = []
    for x, y in sorted((max(x, x0), max(y, y0)) for x, y in covered):
        if x < 1.0 and y < (steps[-1][1] if steps else 1.0):
            steps.append((x, y))
    ends = [*(x for x, _ in steps), 1.0][1:]
    taken = sum((end - x) * (1.0 - y) for (x, y), end in zip(steps, ends, strict=True))
    return (1.0 - x0) * (1.0 - y0) - taken


def hypervolume(points: Iterable[Point]) -> float:
    """The volume that some points dominate within the unit cube, whose far corner is the reference."""
    inside = sorted(point for point in points if max(point) < 1.0)
    total, below = 0.0, list[tuple[float, float]]()
    for place, (value, *costs) in enumerate(inside):
        below.append((max(costs[0], 0.0), max(costs[1], 0.0)))
        end = inside[place + 1][0] if place + 1 < len(inside) else 1.0
        total += (max(end, 0.0) - max(value, 0.0)) * (1.0 - area_left(below, (0.0, 0.0)))
    return total


def expected_improvements(means: Vector, stds: Vector, costs: Vector, front: Sequence[Point]) -> Vector:
    """The volumes that points are expected to add, whose values are normal and whose costs are known.

    Args:
        means, stds: shape (points,).
        costs: shape (points, 2).
        front: sorted by the value.

    Returns:
        Shape (points,), each point by itself.
    """
    inside = [point for point in front if point[0] < 1.0]
    total, start = np.zeros(len(means)), np.zeros(len(means))
    for place, end in enumerate([*(point[0] for point in inside), 1.0]):
        below = _integral(end, means, stds)
        total += _areas_left([point[1:] for point in inside[:place]], costs) * (below - start)
        start = below
    return total


def _integral(limit: float, means: Vector, stds: Vector) -> Vector:
    """∫ P(value ≤ z) dz up to a limit."""
    z = (limit - means) / stds
    result: Vector = (limit - means) * ndtr(z) + stds * np.exp(-z * z / 2.0) / math.sqrt(2.0 * math.pi)
    return result


def _areas_left(covered: Iterable[tuple[float, float]], corners: Vector) -> Vector:
    """:func:`area_left` of many corners, shape (corners, 2)."""
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
