"""The run's tables, rebuilt from what it holds as truth: the study and the events."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import cast

from autocomp.plan import Plan
from autocomp.run import Json, JsonValue, RunFolder
from autocomp.search.points import BASELINE, front_in, verifications
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
    "measured_baseline_latency_ms",
    "plan_hash",
    "parent",
    "recovery_seed",
    "peak_memory_bytes",
)
TRIAL_COLUMNS = (*FRONT_COLUMNS, "state", "seconds", "error", "plan", "uniform", "why", "rungs")


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
            "measured_baseline_latency_ms": measured.get("baseline_latency_ms"),
        }
    return row
