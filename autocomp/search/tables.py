"""The run's tables, rebuilt from what it holds as truth: the study and the events."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import cast

from autocomp.pareto import RUINED_SHARE, front, knee
from autocomp.plan import Plan
from autocomp.run import Json, JsonValue, RunFolder
from autocomp.search.limits import Goal, Limits
from autocomp.task import Metric
from autocomp.trial import Trial

FRONT_COLUMNS = (
    "trial",
    "is_baseline",
    "metric_search",
    "metric_test",
    "size_bytes",
    "latency_ms",
    "latency_std_ms",
    "latency_source",
    "measured_metric",
    "measured_metric_low",
    "measured_metric_high",
    "measured_size_bytes",
    "measured_latency_ms",
    "measured_latency_spread",
    "measured_latency_settled",
    "plan_hash",
    "parent",
    "recovery_seed",
    "peak_memory_bytes",
)
TRIAL_COLUMNS = (*FRONT_COLUMNS, "state", "seconds", "error", "plan", "uniform", "why", "rungs")

VERIFIED = "verified"
BASELINE = 0


def broken(trial: Trial, limits: Limits, drop: float, verified: Json | None) -> bool:
    """Whether a trial breaks a limit: by its file where that was measured, otherwise by what is predicted of it."""
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
                cast("float", measured["size_bytes"]), measured["latency_ms"], measured.get("peak_memory_bytes")
            ),
        ]
    return any(excess > 0 for excess in excesses)


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
    untouched = baseline.metric
    kept = [
        t
        for t in trials
        if t.metric is not None
        and t.cost is not None
        and not broken(t, limits, metric.drop(untouched, t.metric), verified.get(t.key))
    ]
    candidates = list({t.key: t for t in reversed(kept)}.values())[::-1]
    rows = [
        (metric.drop(baseline.metric, t.metric), t.cost.latency_ms, t.cost.size_bytes)
        for t in candidates
        if t.metric is not None and t.cost is not None
    ]
    best = [candidates[place] for place in front(rows)] if rows else []
    return [baseline, *(t for t in sorted(best, key=lambda t: t.number) if t.number != BASELINE)]


def front_in(folder: RunFolder, trials: Sequence[Trial], metric: Metric) -> list[Trial]:
    """The front of some trials of a run, within the limits that it was asked for, as far as these are corrected by now."""
    limits = Limits.of(folder.request(), folder.events())
    return front_trials(trials, metric, limits, verifications(folder))


def goal_trial(points: Sequence[Trial], goal: Goal, metric: Metric, verified: Mapping[str, Json]) -> Trial:
    """The end of a front that is wanted, by what was measured of files where it was; the baseline only where there is nothing
    else. Accuracy is that of the search split: no point is chosen by the test split.

    Args:
        points: baseline first, as :func:`front_trials` gives them.
    """
    others = [point for point in points if point.number != BASELINE] or list(points)

    def costs(point: Trial) -> tuple[float, float, float]:
        assert point.cost is not None
        measured = cast("Mapping[str, float | None]", verified.get(point.key, {}).get("measured", {}))
        latency_ms = measured.get("latency_ms") or point.cost.latency_ms
        size_bytes = measured.get("size_bytes") or point.cost.size_bytes
        drop = metric.drop(0.0, point.metric or 0.0)
        if goal == "fastest":
            return latency_ms, drop, size_bytes
        return (size_bytes, drop, latency_ms) if goal == "smallest" else (drop, latency_ms, size_bytes)

    return min(others, key=costs)


def knee_trial(points: Sequence[Trial], metric: Metric) -> Trial:
    """The front point nearest to the ideal one, of those that are not ruined if there are any; the baseline only where there
    is nothing else."""
    others = [t for t in points if t.number != BASELINE and t.metric is not None and t.cost is not None] or list(points)
    base = next((t.metric for t in points if t.number == BASELINE and t.metric is not None), 0.0)
    losses = [metric.drop(base, cast("float", t.metric)) for t in others]
    costs = [t.cost for t in others if t.cost is not None]
    latencies, sizes = [c.latency_ms for c in costs], [c.size_bytes for c in costs]
    return others[knee(losses, latencies, sizes, RUINED_SHARE * abs(base) or math.inf)]


def verifications(folder: RunFolder) -> dict[str, Json]:
    """What was verified (:attr:`autocomp.trial.Trial.key`) → its latest verification."""
    found: dict[str, Json] = {}
    for event in folder.events():
        if event.get("event") == VERIFIED:
            document = cast("Json", event["verification"])
            found[cast("str", document.get("key", document["plan_hash"]))] = document
    return found


def write_tables(folder: RunFolder, metric: Metric, trials: Sequence[Trial]) -> list[Trial]:
    """Write ``front.csv``, ``trials.csv`` and the front points' ``plan.json`` and ``verification.json``.

    Returns:
        The rows of ``front.csv``, baseline first.
    """
    verified = verifications(folder)
    points, sampler = front_in(folder, trials, metric), folder.request().sampler
    touched = {name for trial in trials for name in trial.plan.layers}
    rows = [{**_row(t, verified.get(t.key)), "uniform": _uniform(t.plan, touched, sampler)} for t in trials]
    folder.write("front.csv", _csv(FRONT_COLUMNS, [_row(t, verified.get(t.key)) for t in points]))
    folder.write("trials.csv", _csv(TRIAL_COLUMNS, rows))
    for point in points:
        folder.write(f"exports/{point.number}/plan.json", point.plan.to_json() + "\n")
        if point.key in verified:
            folder.write_json(
                f"exports/{point.number}/verification.json", {**verified[point.key], "trial": point.number}
            )
    return points


def _uniform(plan: Plan, touched: Collection[str], sampler: str) -> str | None:
    """What a plan does to every layer alike, of those that any trial touched; None where it does not. The sampler uniform
    goes as far with every layer as with the others, though what that is may differ between them."""
    said = {plan[name] for name in touched}
    if not plan.layers:
        return None
    if len(said) == 1 and not plan.dropped_blocks:
        return next(iter(said)).describe()
    return "one strength for all" if sampler == "uniform" else None


def _plan_words(plan: Plan) -> str:
    """A plan in a line: how many layers each kind of choice was made for."""
    counts = Counter(
        words
        for layer in plan.layers.values()
        for words in (
            None if layer.rank is None else "low rank",
            None if layer.sparsity is None else layer.sparsity.pattern,
            None if layer.format is None else str(layer.format),
        )
        if words is not None
    )
    said = [f"{words} ×{count}" for words, count in counts.most_common()]
    return ", ".join([*said, *(f"without {block}" for block in plan.dropped_blocks)]) or "untouched"


def _csv(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _row(trial: Trial, verified: Json | None) -> dict[str, object]:
    cost = trial.cost
    row: dict[str, object] = {
        "trial": trial.number,
        "is_baseline": "true" if trial.number == BASELINE else "false",
        "metric_search": trial.metric,
        "plan_hash": trial.plan.hash,
        "parent": trial.parent,
        "recovery_seed": trial.recovery_seed,
        "state": trial.state,
        "seconds": None if trial.seconds is None else round(trial.seconds, 3),
        "error": trial.error,
        "plan": _plan_words(trial.plan),
        "why": trial.why,
        "rungs": " ".join(f"{rung.share:.4g}:{rung.metric:.6g}" for rung in trial.rungs) or None,
    }
    if cost is not None:
        row |= {
            "size_bytes": cost.size_bytes,
            "latency_ms": cost.latency_ms,
            "latency_std_ms": cost.latency_std_ms,
            "latency_source": cost.latency_source,
            "peak_memory_bytes": cost.peak_memory_bytes,
        }
    if verified is not None:
        measured = cast("dict[str, JsonValue]", verified["measured"])
        row |= {
            "metric_test": cast("dict[str, JsonValue]", verified["simulated"])["metric_test"],
            "measured_metric": measured["metric_test"],
            "measured_metric_low": measured["drop_low"],
            "measured_metric_high": measured["drop_high"],
            "measured_size_bytes": measured["size_bytes"],
            "measured_latency_ms": measured["latency_ms"],
            "measured_latency_spread": measured["latency_spread"],
            "measured_latency_settled": {True: "true", False: "false"}.get(cast("bool", measured["settled"])),
        }
    return row
