"""What the search tried: how the dominated hypervolume grew from trial to trial, and how far its evaluations came."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from autocomp import pareto
from autocomp.report.data import ReportData, TrialRow
from autocomp.trial import RECOVERED

#: The reference point's drop, as a share of the uncompressed metric.
WORST_DROP = 0.1
#: Of longer searches the volume is computed at so many trials.
MOST_STEPS = 60

#: Drop, latency and size, each as a share of the reference point's.
_Costs = tuple[float, float, float]


@dataclass(frozen=True)
class Growth:
    """The volume, a share of all between the reference point and the ideal one, that was dominated after so many trials.

    By the search split and predicted costs: what the search itself went by.
    """

    trials: tuple[int, ...]
    volumes: tuple[float, ...]


#: What became of a trial: it was stopped on a part of the split, or saw all of it, or is on the front besides.
Fate = Literal["stopped", "complete", "front"]


@dataclass(frozen=True)
class Climbed:
    """The metric of a trial on ever larger shares of the search split; the last is all of it, unless it was stopped."""

    trial: int
    fate: Fate
    shares: tuple[float, ...]
    metrics: tuple[float, ...]


def climbed(data: ReportData) -> tuple[Climbed, ...]:
    """Of the trials that were evaluated on a part of the split first."""
    front = {point.trial for point in data.front}
    found = []
    for trial in searched(data):
        if not trial.rungs:
            continue
        seen = [(rung.share, rung.metric) for rung in trial.rungs]
        if trial.metric_search is not None:
            seen.append((1.0, trial.metric_search))
        fate: Fate = "front" if trial.trial in front else "complete" if trial.metric_search is not None else "stopped"
        found.append(Climbed(trial.trial, fate, tuple(share for share, _ in seen), tuple(value for _, value in seen)))
    return tuple(found)


def by_fate(found: Sequence[Climbed]) -> dict[Fate, list[Climbed]]:
    return {fate: [one for one in found if one.fate == fate] for fate in get_args(Fate)}


def searched(data: ReportData) -> tuple[TrialRow, ...]:
    """The trials that the sampler proposed, recovered ones left out."""
    return tuple(trial for trial in data.trials if trial.trial < RECOVERED)


def reference(data: ReportData) -> tuple[float, float]:
    """The latency in ms and the bytes that volumes are counted from: the uncompressed ones, or beyond a plan that would count
    for nothing, as the search has it."""
    base = data.baseline
    pairs = [
        (t.latency_ms, t.size_bytes) for t in searched(data) if t.latency_ms is not None and t.size_bytes is not None
    ]
    beside_smallest = min(pairs, key=lambda pair: pair[1], default=(0.0, 0))[0]
    beside_fastest = min(pairs, default=(0.0, 0))[1]
    return (
        base.latency_ms * pareto.reference_share(beside_smallest / base.latency_ms),
        base.size_bytes * pareto.reference_share(beside_fastest / base.size_bytes),
    )


def growth(data: ReportData) -> Growth:
    most = reference(data)
    done = [(trial.trial, costs) for trial in searched(data) if (costs := _costs(data, trial, most)) is not None]
    if not done:
        return Growth((), ())
    numbers = [number for number, _ in done]
    last = numbers[-1]
    steps = last + 1 if last < MOST_STEPS else MOST_STEPS
    ends = sorted({round(last * (step + 1) / steps) for step in range(steps)} | {numbers[0]})
    best: list[_Costs] = []
    begin, volumes = 0, list[float]()
    for end in ends:
        stop = bisect_left(numbers, end + 1)
        best = _front([*best, *(costs for _, costs in done[begin:stop])])
        volumes.append(volumes[-1] if begin == stop and volumes else pareto.hypervolume(best))
        begin = stop
    return Growth(tuple(ends), tuple(volumes))


def _front(costs: list[_Costs]) -> list[_Costs]:
    inside = [each for each in costs if max(each) < 1.0]
    return [inside[place] for place in pareto.front(inside)] if inside else []


def _costs(data: ReportData, trial: TrialRow, most: tuple[float, float]) -> _Costs | None:
    base = data.baseline
    if trial.metric_search is None or trial.latency_ms is None or trial.size_bytes is None:
        return None
    drop = data.task.metric.drop(base.metric_search, trial.metric_search)
    worst = WORST_DROP * (abs(base.metric_search) or 1.0)
    return max(drop, 0.0) / worst, trial.latency_ms / most[0], trial.size_bytes / most[1]
