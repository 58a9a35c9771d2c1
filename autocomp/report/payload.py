"""What the page's script needs: the pictures as numbers, and every point's plan and numbers as words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape

from autocomp.report import words
from autocomp.report.card import card
from autocomp.report.data import LayerRow, Point, ReportData, Spent, TrialRow
from autocomp.report.handful import beside
from autocomp.report.shown import Shown, shared_window
from autocomp.report.tried import by_fate, searched
from autocomp.report.views import (
    FrontRow,
    best_latency,
    comparisons,
    drop,
    factors,
    front_view,
    intervals,
    measured_latency,
    predicted_latency,
)

Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]

#: Model cards are in a page of up to so many points; of more, those of the points worth a look.
MOST_CARDS = 40
#: Of the kernels that no layer is behind, so many kinds are named.
MOST_OTHERS = 6


def payload(runs: Sequence[Shown]) -> dict[str, Json]:
    """Numbers and words by the names that the scripts read; text for pictures is escaped, as plotly reads tags in it."""
    first = runs[0].data
    views = [front_view(run.data) for run in runs]
    latencies = dict.fromkeys(words.latency_label(view) for view in views)
    metrics = dict.fromkeys(words.metric_label(first, view) for view in views)
    window, scale = shared_window(runs), 100.0 if first.metric_is_share else 1.0
    return {
        "chosen": runs[0].key(runs[0].opens),
        "base": runs[0].key(first.baseline),
        "several": len(runs) > 1,
        "units": [first.metric_unit, first.change_unit],
        "lost": first.lost,
        "maximize": first.task.metric.direction == "maximize",
        "axes": {
            "metric": escape(" or ".join(metrics)),
            "searched": escape(f"{first.task.metric.name}{words.in_unit(first)} (search split)"),
            "latency": escape(" or ".join(latencies)),
            "timed": all(view.latency_measured for view in views),
            "range": None if window is None else [scale * window.low, scale * window.high],
        },
        "runs": [_run(run) for run in runs],
        "points": {run.key(point): _point(run, row) for run in runs for row in front_view(run.data).rows
                   for point in (row.point,)},
    }  # fmt: skip


def command(data: ReportData, point: Point) -> str:
    """The command that writes the point's file."""
    return words.command("export", data.run, f"--pick {point.trial}")


def _run(run: Shown) -> dict[str, Json]:
    data = run.data
    done, held, labels = run.growth, data.held_out, {point.trial: point.label for point in data.points}
    cells, parts, plans = _plans(data)
    return {
        "name": data.name,
        "title": run.title,
        "quantities": [name for name, _, _ in _numbers(data, data.baseline)],
        "layers": [[layer.name, layer.kind, "×".join(map(str, layer.weight_shape))] for layer in data.layers],
        "cells": cells,
        "parts": parts,
        "plans": plans,
        "spent": {name: _spent(data, spent) for name, spent in data.spent.items()},
        "agreement": [
            {
                "x": escape(f"measured {words.comparison_unit(data, each)[0]}"),
                "y": words.error_label(data, each),
                "log": each.quantity != "metric",
                "band": each.band * (100.0 if words.in_percent(data, each) else 1.0),
                "labels": [labels[trial] for trial, _, _ in each.pairs],
                "measured": [words.comparison_unit(data, each)[1] * measured for _, _, measured in each.pairs],
                "errors": [error * (100.0 if words.in_percent(data, each) else 1.0) for error in each.errors],
            }
            for each in comparisons(data)
        ],
        "intervals": _intervals(run),
        "growth": {"trials": [*done.trials], "volumes": [*done.volumes]},
        "rungs": _rungs(run),
        "heldOut": None
        if held is None
        else {
            "errors": [held.median, 0.1, 0.2],
            "shares": [0.5, held.within_10, held.within_20],
            "mean": held.mean,
            "measured": [_short(measured) for measured, _ in held.pairs],
            "predicted": [_short(predicted) for _, predicted in held.pairs],
        },
        "trials": [_trial(data, trial) for trial in searched(data)],
        "table": data.table,
    }


def _plans(data: ReportData) -> tuple[Json, Json, Json]:
    """The layers' cells and parts of plan.json, each once, and every point's plan as the numbers of these; -1 is a layer that
    the plan does not name."""
    cells: dict[str, int] = {}
    parts: dict[str, int] = {}
    plans: dict[str, Json] = {}
    for point in data.points:
        if point.plan is None:
            continue
        named = json.loads(point.plan.to_json())["layers"]
        said = [json.dumps(named[layer.name]) if layer.name in named else None for layer in data.layers]
        plans[str(point.trial)] = {
            "cells": [cells.setdefault(_cells(row), len(cells)) for row in data.layer_plan(point)],
            "parts": [-1 if part is None else parts.setdefault(part, len(parts)) for part in said],
            "dropped": [*point.plan.dropped_blocks],
            "adjusted": [*point.plan.adjustments],
        }
    return [json.loads(cell) for cell in cells], [json.loads(part) for part in parts], plans


def _intervals(run: Shown) -> Json:
    scale = 100.0 if run.data.metric_is_share else 1.0
    found = intervals(run.data, [one.point for one in run.listed])
    return {
        "x": escape(words.lost_on_test(run.data)),
        "labels": [escape(each.point.name) for each in found],
        "drops": [scale * each.drop.value for each in found],
        "lows": [scale * (each.drop.low or 0.0) for each in found],
        "highs": [scale * (each.drop.high or 0.0) for each in found],
    }


def _rungs(run: Shown) -> Json:
    """By fate, the lines of all its trials as one: what lies between two of them is null. None where every trial saw the whole
    split at once."""
    if not run.climbed:
        return None
    scale = 100.0 if run.data.metric_is_share else 1.0
    found: dict[str, Json] = {}
    for fate, ones in by_fate(run.climbed).items():
        found[fate] = {
            "count": len(ones),
            "trials": [place for one in ones for place in (*[one.trial] * len(one.shares), None)],
            "shares": [_short(share) for one in ones for share in (*(100 * each for each in one.shares), None)],
            "metrics": [_short(value) for one in ones for value in (*(scale * each for each in one.metrics), None)],
        }
    return found


def _trial(data: ReportData, trial: TrialRow) -> list[Json]:
    """[number, state, metric, drop, milliseconds, kilobytes, plan, uniform, why, error], numbers as they are shown."""
    scale = 100.0 if data.metric_is_share else 1.0
    metric, lost = None, None
    if trial.metric_search is not None:
        metric = scale * trial.metric_search
        lost = scale * data.task.metric.drop(data.baseline.metric_search, trial.metric_search)
    return [
        trial.trial,
        trial.state,
        _short(metric),
        _short(lost),
        _short(trial.latency_ms),
        None if trial.size_bytes is None else trial.size_bytes / 1000,
        trial.plan,
        trial.uniform,
        trial.why,
        None if trial.error is None else trial.error[:300],
    ]


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _spent(data: ReportData, spent: Spent) -> dict[str, Json]:
    """Microseconds and bytes, layer by layer in network order, then what no layer is behind."""
    names = [layer.name for layer in data.layers]
    others = sorted(spent.other_latency_ms.items(), key=lambda other: -other[1])
    return {
        "us": [round(1000 * spent.latency_ms.get(name, 0.0), 2) for name in names],
        "otherUs": round(1000 * sum(spent.other_latency_ms.values()), 2),
        "others": [f"{op} {words.digits(1000 * ms)} µs" for op, ms in others[:MOST_OTHERS]],
        "bytes": [spent.size_bytes.get(name, 0) for name in names],
        "otherBytes": spent.other_size_bytes,
    }


def _numbers(data: ReportData, point: Point) -> list[tuple[str, str, str]]:
    """(quantity, predicted, measured) in words."""
    measured, metric = measured_latency(point), data.task.metric.name
    return [
        (f"{metric}, search split", words.metric(data, point.metric_search), words.NONE),
        (f"{metric}, test split", words.metric(data, point.metric_test), words.metric(data, point.measured_metric)),
        ("size, bytes", words.exact_size(point.size_bytes), words.exact_size(point.measured_size_bytes)),
        (
            "latency",
            words.latency(predicted_latency(data, point)),
            words.NONE if measured is None else words.latency(measured),
        ),
        (
            "memory to run it",
            words.memory(point.peak_memory_bytes, "predicted"),
            words.memory(point.measured_memory_bytes, "measured"),
        ),
    ]


def _changes(data: ReportData, point: Point) -> list[str]:
    """Against the uncompressed file, and the point that it was recovered from."""
    if point.is_baseline:
        return []
    gain = factors(data, point)
    source = "measured" if gain.speed_measured else best_latency(data, point).source
    change = drop(data, point)
    said = [
        f"{words.drop_words(data, change)} ({change.basis})",
        f"{words.smaller(gain)}, {words.faster(gain)} ({source})",
    ]
    if point.parent is not None:
        said.append(f"recovered: trial {point.parent} trained on, with seed {point.recovery_seed}")
    return said


def _point(run: Shown, row: FrontRow) -> dict[str, Json]:
    data, point = run.data, row.point
    scale = 100.0 if data.metric_is_share else 1.0
    notes = [note.text for note in words.notes(data, point)]
    rows = [f"{label}: {predicted} → {measured}" for label, predicted, measured in _numbers(data, point)]
    hover = [f"{run.name(point)} (predicted → measured)", *rows, *_changes(data, point), *notes]
    listed = any(one.point.trial == point.trial for one in run.listed)
    return {
        "run": 0 if run.place is None else run.place - 1,
        "trial": point.trial,
        "label": point.label,
        "mark": ", ".join(name.partition(" within")[0].partition(" (no")[0] for name in run.names(point)),
        "name": run.name(point),
        "baseline": point.is_baseline,
        "listed": listed,
        "metric": scale * row.metric,
        "ms": row.latency.ms,
        "error_ms": row.latency.ms * (row.latency.error or 0.0),
        "kb": row.size_bytes / 1000,
        # What a limit is held against is the best that is known of the point itself. A drop of exactly a limit is within it,
        # whatever its last digits.
        "limit_ms": best_latency(data, point).ms,
        "limit_kb": (point.measured_size_bytes or point.size_bytes) / 1000,
        "limit_drop": round(scale * data.task.metric.drop(data.baseline.metric_search, point.metric_search), 9),
        "searched": [scale * point.metric_search, point.latency_ms, point.size_bytes / 1000],
        "hover": "<br>".join(escape(line) for line in hover),
        "numbers": [[predicted, measured] for _, predicted, measured in _numbers(data, point)],
        "changes": [*_changes(data, point)],
        "than": None if point.trial == run.knee.trial else f"{beside(data, point, run.knee)} (the knee)",
        "notes": [*notes],
        "runtime": point.runtime,
        "hash": point.plan_hash,
        "command": command(data, point),
        "card": card(data, point) if listed or len(data.points) <= MOST_CARDS else None,
    }


def _cells(row: LayerRow) -> str:
    """[dropped, [share left, words] of channels, rank, bits, weights, the plan in words] as JSON; 1 is untouched. Of bits the
    share is that of their logarithm: 8 are as far from 32 as 2 are from 8."""
    rank, form = row.plan.rank, row.format
    coupled = " (coupled)" if row.coupled else ""
    return json.dumps(
        [
            row.dropped,
            [row.channels_kept, f"{words.brief(100 * row.channels_kept)} % of {row.layer.outputs}{coupled}"],
            [row.rank_share, "full" if rank is None else f"{rank.r} of {row.layer.full_rank}"],
            [1.0, "float 32", "32"]
            if form is None
            else [words.bits_share(form.weight_bits), form.name, str(form.weight_bits)],
            [1.0 - row.zeros, f"{words.brief(100 * (1.0 - row.zeros))} %"],
            "left out" if row.dropped else row.plan.describe() + coupled,
        ]
    )
