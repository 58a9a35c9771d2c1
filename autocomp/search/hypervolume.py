"""The hypervolume that a front dominates, in three objectives that are all minimized, and how much a new point may add to it.

The third axis is cut where points lie; between two of them the dominated area of the other two is one staircase (Emmerich,
Deutz and Klinkenberg, 2011, describe the expected improvement that follows, for any number of uncertain objectives; here one
is uncertain, and the others are known).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

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


def expected_improvement(mean: float, std: float, costs: tuple[float, float], front: Sequence[Point]) -> float:
    """The volume that a point is expected to add, whose value is normal and whose costs are known.

    Args:
        front: sorted by the value.
    """

    def below(limit: float) -> float:
        """∫ P(value ≤ z) dz up to a limit."""
        if limit == -math.inf:
            return 0.0
        z = (limit - mean) / std
        return (limit - mean) * _cumulative(z) + std * math.exp(-z * z / 2.0) / math.sqrt(2.0 * math.pi)

    inside = [point for point in front if point[0] < 1.0]
    total, covered, start = 0.0, list[tuple[float, float]](), -math.inf
    for point in [*inside, None]:
        end = 1.0 if point is None else point[0]
        area = area_left(covered, costs)
        if area <= 0.0:
            break
        total += area * (below(end) - below(start))
        start = end
        if point is not None:
            covered.append(point[1:])
    return total


def _cumulative(z: float) -> float:
    return 0.5 * (1.0 + math.erf(z / math.sqrt(2.0)))
