"""A handful of truly different points out of a front of many, each with a word why it is among them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from autocomp.pareto import NEAR_SHARE
from autocomp.report import words
from autocomp.report.data import Point, ReportData
from autocomp.report.views import WINDOW_SHARE, front_view, picks

#: At most so many points are listed, the uncompressed model among them.
MOST = 8
#: A point nearer than this to one that is listed is too like it; drop, log latency and log size are each scaled to 0…1.
DISTINCT = 0.2


@dataclass(frozen=True)
class Listed:
    """A point worth a look: the names that it earns (none where it only stands between others), and why it is here."""

    point: Point
    names: tuple[str, ...]
    why: str


def handful(data: ReportData, knee_point: Point) -> tuple[Listed, ...]:
    """The uncompressed model and the points that have a name, then those farthest from all of these, as long as they differ:
    first of the points within NEAR_SHARE of the uncompressed model, since few ship what loses more, then of those that the
    pictures show.

    Whether a point is near enough to be listed without a name, and how far it is, goes by the search split.
    """
    named = picks(data, knee_point)
    listed = [Listed(pick.point, pick.names, _why(data, pick.names, pick.point, knee_point)) for pick in named]
    for share in (NEAR_SHARE, WINDOW_SHARE):
        at = _places(data, share)
        while len(listed) < MOST:
            there = [one.point for one in listed if one.point.trial in at]
            taken = {one.point.trial for one in listed}
            apart = {
                point.trial: min((math.dist(at[point.trial], at[one.trial]) for one in there), default=math.inf)
                for point in data.front
                if point.trial in at and point.trial not in taken
            }
            left = [point for point in data.front if apart.get(point.trial, 0.0) >= DISTINCT]
            if not left:
                break
            farthest = max(left, key=lambda point: apart[point.trial])
            place = at[farthest.trial]
            closest = min(there, key=lambda point: math.dist(place, at[point.trial]), default=knee_point)
            listed.append(Listed(farthest, (), beside(data, farthest, closest)))
    return tuple(listed)


def _places(data: ReportData, share: float) -> dict[int, tuple[float, float, float]]:
    """Points within a share of the uncompressed one's metric, by trial: drop, log latency and log size, each scaled so that the
    compressed ones of them go from 0 to 1."""
    metric, base = data.task.metric, data.baseline.metric_search
    rows = [
        (
            row.point,
            (metric.drop(base, row.point.metric_search), math.log(row.latency.ms), math.log(row.size_bytes)),
        )
        for row in front_view(data).rows
        if metric.near(base, row.point.metric_search, share)
    ]
    compressed = [values for point, values in rows if not point.is_baseline]
    ends = [(min(column), max(column)) for column in zip(*compressed)]
    found = {}
    for point, values in rows if compressed else []:
        drop, latency, size = (
            (value - low) / (high - low or 1.0) for value, (low, high) in zip(values, ends, strict=True)
        )
        found[point.trial] = (drop, latency, size)
    return found


def _why(data: ReportData, names: tuple[str, ...], point: Point, knee_point: Point) -> str:
    if point.is_baseline:
        return "what all others are compared with"
    if "knee" in names:
        return f"nearest to the best of {data.lost}, latency and size at once"
    limit = (
        f"at most {words.percent(NEAR_SHARE)} worse on the search split; "
        if any(name.endswith(f" within {100 * NEAR_SHARE:g} %") for name in names)
        else ""
    )
    return limit + beside(data, point, knee_point)


def beside(data: ReportData, point: Point, other: Point) -> str:
    """``1.40× smaller and 1.10× faster than trial 5, 0.30 points worse on the search split``."""
    rows = {row.point.trial: row for row in front_view(data).rows}
    mine, its = rows[point.trial], rows[other.trial]
    size, speed = its.size_bytes / mine.size_bytes, mine.speed / its.speed
    worse = data.task.metric.drop(other.metric_search, point.metric_search)
    return (
        f"{words.factor(size, 'smaller', 'larger')} and {words.factor(speed, 'faster', 'slower')} than {other.name}, "
        f"{words.worse(data, worse)} on the search split"
    )
