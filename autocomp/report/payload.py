"""What the page's script needs: the two pictures as numbers, and every point's plan and numbers as words."""

from __future__ import annotations

import shlex
from html import escape

from autocomp.report import words
from autocomp.report.data import LayerRow, Point, ReportData
from autocomp.report.views import (
    FrontRow,
    best_latency,
    comparisons,
    drop,
    factors,
    front_view,
    is_share,
    measured_latency,
    metric_window,
    predicted_latency,
)

Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]


def payload(data: ReportData, chosen: Point) -> dict[str, Json]:
    """Numbers and words by the names that page.js reads; text for pictures is escaped, as plotly reads tags in it."""
    view = front_view(data)
    window = metric_window(data, view)
    scale = 100.0 if is_share(data) else 1.0
    labels = {point.trial: point.label for point in data.points}
    return {
        "chosen": chosen.trial,
        "front": {
            "metric": escape(words.metric_label(data, view)),
            "latency": escape(words.latency_label(data, view)),
            "timed": view.latency_measured,
            "range": [scale * window.low, scale * window.high] if window else None,
            "hidden": [*window.hidden] if window else [],
            "points": [_front_point(data, row, scale) for row in view.rows],
        },
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
        "layers": [[layer.name, layer.kind, "×".join(map(str, layer.weight_shape))] for layer in data.layers],
        "points": {str(point.trial): _point(data, point) for point in data.points},
    }


def command(data: ReportData, point: Point) -> str:
    """The command that writes the point's file."""
    return f"autocomp export {shlex.quote(data.run)} --pick {point.trial}"


def _front_point(data: ReportData, row: FrontRow, scale: float) -> dict[str, Json]:
    return {
        "trial": row.point.trial,
        "label": row.point.label,
        "baseline": row.point.is_baseline,
        "metric": scale * row.metric,
        "ms": row.latency.ms,
        "error_ms": row.latency.ms * (row.latency.error or 0.0),
        "kb": row.size_bytes / 1000,
        "hover": "<br>".join(escape(line) for line in _hover(data, row.point)),
    }


def _hover(data: ReportData, point: Point) -> list[str]:
    rows = [f"{label}: {predicted} → {measured}" for label, predicted, measured in _numbers(data, point)]
    return [f"{point.name} (predicted → measured)", *rows, *_changes(data, point), *_notes(data, point)]


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
    ]


def _notes(data: ReportData, point: Point) -> list[str]:
    return [note.text for note in words.notes(data, point)]


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


def _point(data: ReportData, point: Point) -> dict[str, Json]:
    plan = data.layer_plan(point)
    return {
        "name": point.name,
        "numbers": [list(row) for row in _numbers(data, point)],
        "changes": [*_changes(data, point)],
        "notes": [*_notes(data, point)],
        "runtime": point.runtime,
        "command": None if point.is_baseline else command(data, point),
        "dropped": [*point.plan.dropped_blocks] if point.plan else [],
        "plan": [_layer(row) for row in plan] if plan else None,
    }


def _layer(row: LayerRow) -> list[Json]:
    """[dropped, [share left, words] of channels, rank, bits, weights]; a share of 1 is untouched."""
    rank, form = row.plan.rank, row.format
    coupled = " (coupled)" if row.coupled else ""
    return [
        row.dropped,
        [row.channels_kept, f"{words.brief(100 * row.channels_kept)} % of {row.layer.outputs}{coupled}"],
        [row.rank_share, "full" if rank is None else f"{rank.r} of {row.layer.full_rank}"],
        [1.0, "float 32"] if form is None else [form.weight_bits / 32, form.name],
        [1.0 - row.zeros, f"{words.brief(100 * (1.0 - row.zeros))} %"],
    ]
