"""One point of a finished run's front, by what a user calls it."""

from __future__ import annotations

from typing import cast, get_args

from autocomp.errors import RequestError, RunError
from autocomp.run import Json, RunFolder
from autocomp.search.flow import front_of, metric_of
from autocomp.search.limits import Goal
from autocomp.search.points import BASELINE, goal_trial, knee_trial, verifications
from autocomp.task import Metric
from autocomp.trial import Trial


def picked(folder: RunFolder, which: str | int | None, max_latency_ms: float | None) -> Trial:
    """See :meth:`autocomp.finished.Run.pick`."""
    points = front_of(folder)
    if not points:
        raise RunError(f"{folder.path} has no finished trial to pick from; resume it with search --resume")
    metric, verified = metric_of(folder), verifications(folder)
    ends = [goal for goal in get_args(Goal) if goal != "front"]
    if len(points) == 1 and which in {None, "knee", *ends}:
        raise RunError(
            f"the front of {folder.path} holds the uncompressed model only, no other plan kept the limits; "
            "pick it with 0, or search on with --resume and more --trials"
        )
    if max_latency_ms is not None and which is not None:
        raise RequestError(f"a latency limit picks the point itself; got --pick {which} as well; leave one out")
    if max_latency_ms is not None:
        return _most_accurate_within(max_latency_ms, points, metric, verified)
    if which in {None, "knee"}:
        return knee_trial(points, metric)
    if which in ends:
        return goal_trial(points, cast("Goal", which), metric, verified, folder.request().max_drop)
    if not is_number(which):
        raise RequestError(f"--pick takes knee, most-accurate, fastest, smallest or a trial number; got {which!r}")
    found = [point for point in points if point.number == int(which)]
    if not found:
        numbers = ", ".join(str(point.number) for point in points)
        raise RunError(f"trial {which} is not on the front of {folder.path}; the front has {numbers}")
    return found[0]


def is_number(which: str | int) -> bool:
    """Whether a trial is named by its number."""
    return not isinstance(which, str) or (which.isascii() and which.isdecimal())  # of a table's column it is numpy's


def _most_accurate_within(
    max_latency_ms: float, points: list[Trial], metric: Metric, verified: dict[str, Json]
) -> Trial:
    others = [point for point in points if point.number != BASELINE]
    fast = [point for point in others if _latency_ms(point, verified) <= max_latency_ms]
    if not fast:
        best = min(_latency_ms(point, verified) for point in others)
        raise RunError(
            f"no front point keeps {max_latency_ms} ms; the fastest takes {best:.3f} ms; ask for that or more"
        )
    return min(fast, key=lambda point: (metric.drop(0.0, point.metric or 0.0), point.number))


def _latency_ms(point: Trial, verified: dict[str, Json]) -> float:
    """Measured where it was, also where the timings never settled: no file is handed out that was never seen to be so fast."""
    measured = verified.get(point.key, {}).get("measured")
    found = measured.get("latency_ms") if isinstance(measured, dict) else None
    if isinstance(found, (int, float)):
        return float(found)
    return point.cost.latency_ms if point.cost is not None else float("inf")
