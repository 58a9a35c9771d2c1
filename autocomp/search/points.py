"""Which of a run's trials count: those that keep the limits, the front of them, and the end of it that is wanted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import cast

from autocomp.errors import RunError
from autocomp.pareto import KNEE_SHARES, NEAR_SHARE, front, knee
from autocomp.run import Json, Request, RunFolder
from autocomp.search.limits import ENDS, Goal, Limits
from autocomp.task import Metric
from autocomp.trial import Trial

#: Events: what was measured of a file; that none could be made, or not be scored.
VERIFIED, UNSHIPPABLE, ANOTHER_TRY = "verified", "no file", "another try"
#: The number of the untouched plan's trial.
BASELINE = 0


def broken(trial: Trial, limits: Limits, drop: float, verified: Json | None) -> bool:
    """Whether a trial breaks a limit: by its file where that was measured, otherwise by what is predicted of it. A file keeps a
    latency with one standard error of its timings to spare: it is to keep it when it is timed again."""
    assert trial.cost is not None
    excesses = limits.broken(drop, trial.cost)
    if verified is not None:
        measured = cast("dict[str, float | None]", verified["measured"])
        unmeasured = replace(
            limits,
            latency_ms=limits.latency_ms if measured["latency_ms"] is None else None,
            size_bytes=None,
            memory_bytes=limits.memory_bytes if measured.get("peak_memory_bytes") is None else None,
        )
        excesses = [
            *unmeasured.broken(drop, trial.cost),
            *limits.broken_by_file(
                cast("float", measured["size_bytes"]), with_error(measured), measured.get("peak_memory_bytes")
            ),
        ]
    return any(excess > 0 for excess in excesses)


def with_error(measured: Mapping[str, float | None]) -> float | None:
    """The milliseconds that a file may take: those measured and one standard error more; None where it was not timed."""
    latency_ms = measured["latency_ms"]
    return None if latency_ms is None else latency_ms * (1 + (measured.get("latency_spread") or 0.0))


def front_trials(
    trials: Sequence[Trial], metric: Metric, limits: Limits, verified: Mapping[str, Json] = MappingProxyType({})
) -> list[Trial]:
    """The untouched plan, then the front over loss, predicted latency and size, by number.

    Where a limit is set, the front is that of the trials that keep it. Trials of one plan count once.

    Args:
        verified: what was measured of files, as :func:`verifications` gives it.
    """
    baseline = next((t for t in trials if t.number == BASELINE and t.metric is not None), None)
    if baseline is None or baseline.metric is None:
        return []
    kept = _keeping([t for t in trials if t.metric is not None], metric, limits, verified, baseline.metric)
    candidates = list({t.key: t for t in reversed(kept)}.values())[::-1]
    rows = [
        (metric.drop(baseline.metric, t.metric), t.cost.latency_ms, t.cost.size_bytes)
        for t in candidates
        if t.metric is not None and t.cost is not None
    ]
    best = [candidates[place] for place in front(rows)] if rows else []
    return [baseline, *(t for t in sorted(best, key=lambda t: t.number) if t.number != BASELINE)]


def _keeping(
    trials: Sequence[Trial], metric: Metric, limits: Limits, verified: Mapping[str, Json], untouched: float
) -> list[Trial]:
    return [
        t
        for t in trials
        if t.cost is not None and not broken(t, limits, known_drop(t, metric, untouched), verified.get(t.key))
    ]


def known_drop(trial: Trial, metric: Metric, untouched: float) -> float:
    """What a trial loses on the whole search split; 0 where it was not scored on that: what is not known breaks no limit."""
    return 0.0 if trial.metric is None else metric.drop(untouched, trial.metric)


def keeping_in(folder: RunFolder, trials: Sequence[Trial], metric: Metric, untouched: float) -> list[Trial]:
    """Those of some trials of a run that keep what trials are to keep, and have a file as far as is known.

    Args:
        untouched: the untouched network's metric.
    """
    events = [*folder.events()]
    limits = Limits.of_trials(folder.request(), events)
    return _keeping(shippable(events, trials), metric, limits, _verified(events), untouched)


def front_in(
    folder: RunFolder,
    trials: Sequence[Trial],
    metric: Metric,
    limits_of: Callable[[Request, Iterable[Json]], Limits] = Limits.of,
) -> list[Trial]:
    """The front of some trials of a run that have a file, within the limits that it was asked for, as far as these are
    corrected by now."""
    events = [*folder.events()]
    limits = limits_of(folder.request(), events)
    return front_trials(shippable(events, trials), metric, limits, _verified(events))


def trained_points(folder: RunFolder, trials: Sequence[Trial]) -> list[Trial]:
    """The recovered ones of some trials of a run that have a file, wherever training ended; short trainings aside."""
    events = [*folder.events()]
    short = {event["weights"] for event in events if event.get("short")}
    return [one for one in shippable(events, trials) if one.parent is not None and one.weights not in short]


def shippable(events: Iterable[Json], trials: Sequence[Trial]) -> list[Trial]:
    """Those of some trials of a run whose files could be made when that was last tried, or were not tried yet."""
    without = set[object]()
    for event in events:
        if event.get("event") == UNSHIPPABLE:
            without.add(event["key"])
        elif event.get("event") == ANOTHER_TRY:
            without.clear()
        elif event.get("event") == VERIFIED:  # when it was asked for again
            without.discard(cast("Json", event["verification"]).get("key"))
    return [trial for trial in trials if trial.key not in without]


def doubted(folder: RunFolder, trials: Sequence[Trial], metric: Metric) -> list[Trial]:
    """Trials that nothing but timings which never settled keeps from the limits, and so from the front: worth timing again when
    the machine is quieter."""
    events = [*folder.events()]
    limits, verified = Limits.of(folder.request(), events), _verified(events)
    base = next((trial.metric for trial in trials if trial.number == BASELINE), None)
    if limits.latency_ms is None or base is None:
        return []
    found = {}
    for trial in trials:
        document = verified.get(trial.key)
        if document is None or trial.metric is None or trial.cost is None:
            continue
        measured, drop = cast("Json", document["measured"]), metric.drop(base, trial.metric)
        untimed: Json = {**document, "measured": {**measured, "latency_ms": None}}
        if (
            not measured.get("settled", True)
            and broken(trial, limits, drop, document)
            and not broken(trial, limits, drop, untimed)
        ):
            found[trial.key] = trial
    return [*found.values()]


def goal_trial(
    points: Sequence[Trial], goal: Goal, metric: Metric, verified: Mapping[str, Json], max_drop: float | None
) -> Trial:
    """The end of a front that is wanted, by what was measured of files where it was; the baseline only where there is nothing
    else. Accuracy is that of the search split: no point is chosen by the test split.

    Args:
        points: baseline first, as :func:`front_trials` gives them.
        max_drop: that the front was kept to. Where it was not, a ruined network is its fastest and smallest point, and what
            lost more than :data:`NEAR_SHARE` of the metric is not looked at.

    Raises:
        RunError: nothing is near enough, or nothing that is near is faster, or smaller, than the uncompressed model.
    """
    others = [point for point in points if point.number != BASELINE] or list(points)
    if goal in ENDS and max_drop is None:
        untouched = cast("float", points[0].metric)
        others = [one for one in others if metric.near(untouched, cast("float", one.metric), NEAR_SHARE)]
        if not others:
            raise RunError(
                f"the {goal} point is sought among those within {NEAR_SHARE:.0%} of the uncompressed model; no other is that "
                f"near; pick a trial by its number, or search with --goal {goal} and --max-drop"
            )

    shares = _latency_shares(points, verified)

    def costs(point: Trial) -> tuple[float, float, float]:
        assert point.cost is not None
        measured = cast("Mapping[str, float | None]", verified.get(point.key, {}).get("measured", {}))
        latency, size_bytes = shares[point.number], measured.get("size_bytes") or point.cost.size_bytes
        drop = metric.drop(0.0, point.metric or 0.0)
        if goal == "fastest":
            return latency, drop, size_bytes
        return (size_bytes, drop, latency) if goal == "smallest" else (drop, latency, size_bytes)

    found = min(others, key=costs)
    if goal in ENDS and found.number != BASELINE and costs(found)[0] > costs(points[0])[0]:
        near = (
            f"within {NEAR_SHARE:.0%} of the uncompressed model"
            if max_drop is None
            else f"that lose at most {max_drop:g}"
        )
        raise RunError(
            f"the {goal} point is sought among those {near}, by the score on the search split; none of them is "
            f"{'faster' if goal == 'fastest' else 'smaller'} than the uncompressed model; pick one by its number"
        )
    return found


def _latency_shares(points: Sequence[Trial], verified: Mapping[str, Json]) -> dict[int, float]:
    """Latencies as shares of the untouched network's, by number: where all were timed each by that of its own sitting, and else
    all as they are predicted."""
    timed = {}
    for point in points:
        measured = cast("Mapping[str, float | None]", verified.get(point.key, {}).get("measured", {}))
        timed[point.number] = (measured.get("latency_ms"), measured.get("baseline_latency_ms"))
    base_ms = timed[points[0].number][0]
    measured_shares = {
        number: latency_ms / (beside_ms or base_ms)
        for number, (latency_ms, beside_ms) in timed.items()
        if latency_ms is not None and base_ms is not None
    }
    if len(measured_shares) == len(timed):
        return measured_shares
    costs = {point.number: point.cost.latency_ms for point in points if point.cost is not None}
    return {number: latency_ms / costs[points[0].number] for number, latency_ms in costs.items()}


def knee_trial(points: Sequence[Trial], metric: Metric) -> Trial:
    """The front point nearest to the ideal one, of those that are not ruined if there are any; the baseline only where there
    is nothing else."""
    others = [t for t in points if t.number != BASELINE and t.metric is not None and t.cost is not None] or list(points)
    base = next((t.metric for t in points if t.number == BASELINE and t.metric is not None), 0.0)
    losses = [metric.drop(base, cast("float", t.metric)) for t in others]
    costs = [t.cost for t in others if t.cost is not None]
    latencies, sizes = [c.latency_ms for c in costs], [c.size_bytes for c in costs]
    return others[knee(losses, latencies, sizes, tuple(share * abs(base) or math.inf for share in KNEE_SHARES))]


def verifications(folder: RunFolder) -> dict[str, Json]:
    """What was verified (:attr:`autocomp.trial.Trial.key`) → its latest verification."""
    return _verified(folder.events())


def _verified(events: Iterable[Json]) -> dict[str, Json]:
    found: dict[str, Json] = {}
    for event in events:
        if event.get("event") == VERIFIED:
            document = cast("Json", event["verification"])
            found[cast("str", document.get("key", document["plan_hash"]))] = document
    return found
