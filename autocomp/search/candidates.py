"""Which points of a search are trained, and which of them first."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, cast

from autocomp.pareto import front
from autocomp.plan import Plan
from autocomp.run import Json, Request, RunFolder
from autocomp.search.limits import ENDS, Goal, Limits
from autocomp.search.points import BASELINE, keeping_in
from autocomp.search.recovery import done
from autocomp.search.stored_plan import plan_of
from autocomp.trial import Trial

if TYPE_CHECKING:
    from autocomp.task import Metric

#: At most so many points are recovered; and so many where only the most accurate one is wanted.
MOST_POINTS, MOST_ACCURATE = 8, 2
#: Of so many at most, the most accurate ones, it is looked at how they differ.
MOST_COMPARED = 300
#: So many are trained shortly before these, for a part of their epochs, at least one; not where there are fewer epochs than
#: this, since short trainings would take longer than what they save.
TRIED_SHORTLY, SHORT_SHARE, FEWEST_EPOCHS = 6, 0.05, 6

#: Events: which trials are trained; which plans were solved for after short trainings.
CHOSEN, SOLVED_ANEW = "chosen for training", "solved anew"

#: How far a plan goes in every kind of choice: numbers from 0 to 1.
Extent = Callable[[Plan], Sequence[float]]


def searched_ones(folder: RunFolder, trials: Sequence[Trial]) -> list[Trial]:
    """Those that a search made before any training: neither recovered, nor of plans that were solved for after that."""
    events = (event for event in folder.events() if event["event"] == SOLVED_ANEW)
    anew = {plan.hash for event in events for plan in _plans(event)}
    return [trial for trial in trials if trial.parent is None and trial.plan.hash not in anew]


def plans_anew(folder: RunFolder, trials: Sequence[Trial]) -> tuple[Plan, ...] | None:
    """What was solved for after short trainings; None where that was not done yet of all ``trials``, :func:`searched_ones`."""
    event = decided(folder, SOLVED_ANEW, trials)
    return None if event is None else _plans(event)


def decided(folder: RunFolder, kind: str, trials: Sequence[Trial]) -> Json | None:
    """What was decided before, :data:`CHOSEN` or :data:`SOLVED_ANEW`, if there are no more trials than there were then."""
    last = next((event for event in reversed([*folder.events()]) if event["event"] == kind), None)
    still = last is not None and len(trials) <= cast("int", last.get("searched", len(trials)))
    return last if still else None


def _plans(event: Json) -> tuple[Plan, ...]:
    return tuple(map(plan_of, cast("list[str]", event["plans"])))


def worth_recovering(trials: Sequence[Trial], points: Sequence[Trial]) -> list[Trial]:
    """The points of the front, and those that would be on it if they lost nothing: of what is fast and small, training may
    bring back what compression took. Of many, some evenly from the slowest to the fastest. The fastest comes first, then each
    as far from those before as can be, so that what is interrupted has seen of the whole range.

    Args:
        trials: that keep the limits.
        points: the front.
    """
    searched = [t for t in trials if t.cost is not None and t.number != BASELINE and t.parent is None]
    unique = sorted(_by_plan(searched), key=lambda trial: trial.number)
    rows = [(t.cost.latency_ms, t.cost.size_bytes) for t in unique if t.cost is not None]
    cheap = [unique[place] for place in front(rows)] if rows else []
    on_front = {point.number for point in points if point.parent is None}
    chosen = {t.number: t for t in (*cheap, *(t for t in unique if t.number in on_front))}
    ordered = sorted(chosen.values(), key=lambda t: (t.cost.latency_ms if t.cost is not None else 0.0, t.number))
    if len(ordered) > MOST_POINTS:
        ordered = [ordered[round(step * (len(ordered) - 1) / (MOST_POINTS - 1))] for step in range(MOST_POINTS)]
    return [ordered[place] for place in _spread(len(ordered))]


def _by_plan(trials: Sequence[Trial]) -> list[Trial]:
    """One trial a plan: the first that was scored on the whole split, if any was."""
    ordered = sorted(trials, key=lambda trial: (trial.metric is None, trial.number), reverse=True)
    return [*{trial.plan.hash: trial for trial in ordered}.values()]


def short_epochs(request: Request) -> int:
    """Of a short training, by which it is seen what a long one will bring back; 0 where there is to be none."""
    epochs = request.recover_epochs
    return max(1, round(SHORT_SHARE * epochs)) if epochs >= FEWEST_EPOCHS else 0


def to_train(
    folder: RunFolder, trials: Sequence[Trial], metric: Metric, untouched: float, extent: Extent
) -> list[Trial]:
    """What :func:`most_accurate` finds among trials that keep the limits; once training has begun, the same ones: what
    is measured later is no reason to train others, but new trials are.

    Args:
        trials: :func:`searched_ones`.
        untouched: the untouched network's metric.
    """
    event = decided(folder, CHOSEN, trials)
    if event is None:
        return most_accurate(keeping_in(folder, trials, metric, untouched), metric, untouched, extent)
    by_number = {trial.number: trial for trial in trials}
    return [by_number[number] for number in cast("list[int]", event["trials"]) if number in by_number]


def most_accurate(trials: Sequence[Trial], metric: Metric, untouched: float, extent: Extent) -> list[Trial]:
    """Where nothing but the most accurate one is wanted: of trials before any recovery, the most accurate ones that differ in
    what they do, the best first. Training brings back more of what some choices take than of others (a plan of masks and few
    bits that is right half of the time may end above one that leaves blocks out and is right two times of three), so that the
    best ones by themselves, mostly neighbours, say little about what is best in the end.

    Args:
        trials: that keep the limits; also those that were stopped on a part of the search split.
        untouched: the untouched network's metric.
        extent: how far a plan goes in every kind of choice.
    """
    drops = [(trial, _drop(trial, metric, untouched)) for trial in _by_plan(trials) if trial.number != BASELINE]
    scored = [(trial, drop) for trial, drop in drops if drop is not None]
    ordered = [trial for trial, _ in sorted(scored, key=lambda one: (one[1], one[0].number))]
    # What is ruined differs most from all others.
    ordered = ordered[: min(max(TRIED_SHORTLY, math.ceil(len(ordered) / 2)), MOST_COMPARED)]
    vectors = [extent(trial.plan) for trial in ordered]
    gap = max((math.dist(*pair) for pair in itertools.combinations(vectors, 2)), default=0.0) / 2.0
    chosen: list[int] = []
    while len(chosen) < min(TRIED_SHORTLY, len(ordered)):
        left = [place for place in range(len(ordered)) if place not in chosen]
        apart = [place for place in left if all(math.dist(vectors[place], vectors[one]) >= gap for one in chosen)]
        if apart:
            chosen.append(apart[0])
        else:
            gap /= 2.0
    return [ordered[place] for place in chosen]


def _drop(trial: Trial, metric: Metric, untouched: float) -> float | None:
    """On all of the search split, or on what was seen of it, where the untouched network may do better or worse than on all."""
    if trial.metric is not None:
        return metric.drop(untouched, trial.metric)
    return None if trial.stopped_drop is None else trial.stopped_drop * (abs(untouched) or 1.0)


def tried_shortly(folder: RunFolder, request: Request) -> dict[str, float]:
    """Plans by their hashes, with the metric that a short training brought them to."""
    training = request.seed, short_epochs(request), request.recipe
    return {one.plan_hash: one.metric for one in done(folder) if (one.seed, one.epochs, one.recipe) == training}


def furthest(several: Sequence[Trial], folder: RunFolder, metric: Metric, request: Request) -> list[Trial]:
    """Of points that were trained shortly, the few that came furthest; the first ones where none was."""
    found = tried_shortly(folder, request)
    trained = [point for point in several if point.plan.hash in found]
    ordered = sorted(trained, key=lambda point: metric.drop(0.0, found[point.plan.hash]))
    return (ordered or [*several])[:MOST_ACCURATE]


def wanted_first(points: Sequence[Trial], metric: Metric, goal: Goal) -> list[Trial]:
    """Of a front before any recovery, the untouched plan first, the points that lose least for what they take: the fastest
    first where that is wanted, else the smallest."""
    untouched = points[0].metric or 0.0
    others = [t for t in points[1:] if t.metric is not None and t.cost is not None]
    rows = [(metric.drop(untouched, t.metric or 0.0), _taken(t, goal)) for t in others]
    line = [others[place] for place in front(rows)] if rows else []
    return sorted(line, key=lambda t: (_taken(t, goal), t.number))


def _taken(point: Trial, goal: Goal) -> float:
    assert point.cost is not None
    return (point.cost.latency_ms, point.cost.size_bytes)[ENDS[goal]]


def sought(
    line: Sequence[Trial], folder: RunFolder, untouched: float, metric: Metric, request: Request
) -> Iterator[Trial]:
    """The first of some points that ends within the drop that is allowed, sought by halving: the middle one is recovered,
    then that before it if it ended within the drop, or behind it if it did not, and so on. So ``len(line).bit_length()``
    trainings at most find what training all of them would.

    Args:
        line: as :func:`wanted_first` gives it; each is recovered before the next is asked for.
        untouched: the untouched network's metric.
    """
    outside, within = -1, len(line)
    while within - outside > 1:
        middle = (outside + within) // 2
        yield line[middle]
        drops = [metric.drop(untouched, one.metric) for one in done(folder) if one.is_of(line[middle], request)]
        if drops and Limits(max_drop=request.max_drop or 0.0).allows(sum(drops) / len(drops)):
            within = middle
        else:
            outside = middle


def _spread(count: int) -> list[int]:
    """The numbers below ``count``: the first, then ever the one that is furthest from those before."""
    found: list[int] = []
    while len(found) < count:
        left = sorted({*range(count)} - {*found})
        found.append(max(left, key=lambda one: min((abs(one - other) for other in found), default=-one)))
    return found
