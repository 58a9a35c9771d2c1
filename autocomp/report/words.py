"""Numbers as people read them, each latency with its source and its error."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from autocomp.pareto import NEAR_SHARE
from autocomp.report.data import Point, ReportData
from autocomp.report.views import (
    WINDOW_SHARE,
    Comparison,
    Drop,
    Factors,
    FrontView,
    Latency,
    drop,
    measured_no_faster,
    predicted_latency,
    predicted_slower,
    within_model_error,
)

NONE = "–"


def digits(value: float, significant: int = 3) -> str:
    """``value`` at three significant digits or more, with thousands, never in exponents above 0.0001."""
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    return f"{value:,.{max(0, significant - 1 - exponent)}f}" if exponent > -5 else f"{value:.{significant - 1}e}"


def command(verb: str, run: str, options: str = "") -> str:
    """A command of a run, as it can be copied."""
    return f"autocomp {verb} {shlex.quote(run)} {options}".rstrip()


def percent(share: float) -> str:
    """``35 %``, ``4.1 %``: two significant digits say enough of an error."""
    return f"{brief(100 * share)} %"


def brief(value: float) -> str:
    """Two significant digits without trailing zeros."""
    return f"{value:.2g}" if abs(value) < 99.5 else f"{value:,.0f}"


def latency(value: Latency) -> str:
    """``2.31 ms (datasheet, ±35 %)``: never bare."""
    return f"{digits(value.ms)} ms ({value.source}, {latency_error(value)})"


def latency_error(value: Latency) -> str:
    """``±35 %``: the standard error of a timing, or the error of a prediction."""
    if value.error is None:
        return "error unknown"
    return f"±{percent(value.error)}"


def size(size_bytes: int) -> str:
    """Decimal units: 1 kB is 1,000 bytes."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size_bytes >= scale:
            return f"{digits(size_bytes / scale)} {unit}"
    return f"{size_bytes} bytes"


def memory(peak_memory_bytes: int | None, source: Literal["predicted", "measured"]) -> str:
    """What a process holds for running a point."""
    return NONE if peak_memory_bytes is None else f"{size(peak_memory_bytes)} ({source})"


def bits_share(weight_bits: int) -> float:
    """How much of 32 bits is left, by the logarithm: each halving takes as much."""
    return math.log2(weight_bits) / 5


def exact_size(size_bytes: int | None) -> str:
    return NONE if size_bytes is None else f"{size_bytes:,}"


def factor(value: float, more: str, less: str) -> str:
    """``2.40× smaller``, or ``1.10× larger`` where ``value`` is below 1."""
    return f"{digits(value)}× {more}" if value >= 1 else f"{digits(1 / value)}× {less}"


def smaller(gain: Factors) -> str:
    return factor(gain.size, "smaller", "larger")


def faster(gain: Factors) -> str:
    return factor(gain.speed, "faster", "slower")


def metric(data: ReportData, value: float | None) -> str:
    if value is None:
        return NONE
    return f"{100 * value:.2f} %" if data.metric_is_share else digits(value, 4) + data.metric_unit


def in_unit(data: ReportData) -> str:
    """What stands behind the metric's name in a title."""
    unit = data.metric_unit
    return f" in{unit}" if unit else ""


def in_brackets(data: ReportData) -> str:
    """What stands behind the name of a difference in a title."""
    unit = data.change_unit.strip()
    return f" ({unit})" if unit else ""


def lost_on_test(data: ReportData) -> str:
    """The title of the paired intervals' axis."""
    return f"{data.lost} of {data.task.metric.name} on the test split{in_brackets(data)}"


def _change(data: ReportData, value: float) -> str:
    shown = f"{100 * value:+.2f}" if data.metric_is_share else f"{'-' if value < 0 else '+'}{digits(abs(value))}"
    return shown.replace("-", "−")


def drop_words(data: ReportData, value: Drop) -> str:
    """``drop +0.40 points [−0.10, +0.90], indistinguishable``; positive is worse."""
    return f"{data.lost} {change_words(data, value)}"


def change_words(data: ReportData, value: Drop) -> str:
    """The same without a word before it."""
    words = _change(data, value.value) + data.change_unit
    if value.low is not None and value.high is not None:
        words += f" [{_change(data, value.low)}, {_change(data, value.high)}]"
    return words + (", indistinguishable" if value.indistinguishable else "")


def worse(data: ReportData, value: float) -> str:
    """``0.40 points worse``, ``no worse`` where it is not, ``better`` where it is that."""
    if value == 0:
        return "no worse"
    amount = (f"{100 * abs(value):.2f}" if data.metric_is_share else digits(abs(value))) + data.change_unit
    return f"{amount} {'worse' if value > 0 else 'better'}"


@dataclass(frozen=True)
class Note:
    """What must be said beside one of a point's numbers."""

    about: Literal["drop", "predicted latency", "measured latency", "measured metric"]
    text: str


def notes(data: ReportData, point: Point) -> tuple[Note, ...]:
    said = (
        (predicted_slower(data, point), Note("predicted latency", "predicted: slower")),
        (
            within_model_error(data, point) and not predicted_slower(data, point),
            Note("predicted latency", "within the model's error"),
        ),
        (measured_no_faster(data, point), Note("measured latency", "measured: no faster")),
        (not point.is_baseline and drop(data, point).indistinguishable, Note("drop", "indistinguishable")),
        (not point.verified, Note("measured metric", "not verified")),
        (point.settled is False, Note("measured latency", "timings never settled")),
    )
    return tuple(note for holds, note in said if holds)


def agreement(data: ReportData, comparison: Comparison) -> str:
    """``12 of 12 within ±20 %``."""
    if not comparison.pairs:
        return "not measured"
    return f"{comparison.within} of {len(comparison.pairs)} within {band(data, comparison)}"


def band(data: ReportData, comparison: Comparison) -> str:
    if not comparison.absolute:
        return f"±{percent(comparison.band)}"
    return f"±{brief(100 * comparison.band if data.metric_is_share else comparison.band)}{data.change_unit}"


def latency_promise(data: ReportData) -> str:
    """Where this run's milliseconds come from and how far off they may be, in one or two sentences."""
    target = data.target
    error = "an unknown error" if target.held_out_error is None else f"a mean error of {percent(target.held_out_error)}"
    origin = {
        "measured": "Predicted latencies are sums of measurements",
        "fitted": "Predicted latencies come from a model fitted to measurements",
        "datasheet": "Predicted latencies are estimates from a datasheet",
    }[target.latency_source]
    note = f" ({target.held_out_note})" if target.held_out_note else ""
    own = _errors([predicted_latency(data, point) for point in data.front])
    known = target.held_out_error is not None and own == f"±{percent(target.held_out_error)}"
    of_points = f"; of these points {own}" if own and not known else ""
    predicted = f"{origin}, with {error}{note}{of_points}."
    count = sum(point.measured_latency_ms is not None for point in data.points)
    if count == len(data.points):
        return f"Latencies were measured on the exported files. {predicted}"
    if count:
        return f"Latencies of {count} of {len(data.points)} points were measured on the exported files. {predicted}"
    return f"No latency here was measured on the device. {predicted}"


def _errors(latencies: Sequence[Latency]) -> str:
    """``±19 to 20 %``; empty where none is known."""
    known = sorted(one.error for one in latencies if one.error is not None)
    if not known:
        return ""
    low, high = percent(known[0]), percent(known[-1])
    return f"±{high}" if low == high else f"±{low.removesuffix(' %')} to {high}"


def latency_label(view: FrontView) -> str:
    """The latency axis's title: the source is part of it."""
    if view.latency_measured:
        return "latency (ms, measured on the exported file)"
    error = _errors([row.latency for row in view.rows])
    off = f", {error}" if error else ""
    sources = " and ".join(dict.fromkeys(row.latency.source for row in view.rows))
    return f"latency (ms, {sources}{off}, not measured)"


def metric_label(data: ReportData, view: FrontView) -> str:
    """The metric axis's title, with what was scored on which split."""
    return f"{data.task.metric.name}{in_unit(data)} ({view.basis})"


def near_meaning(data: ReportData) -> str:
    """What the cards' names mean."""
    share, name = percent(NEAR_SHARE), data.task.metric.name
    if data.allowed is not None:
        return f"Within a {data.allowed}: that of {name} on the search split, which was asked for."
    return f"Within {share}: {name} on the search split is at most {share} (relative) worse than uncompressed."


def hidden(count: int, side: str) -> str:
    """``2 points lie below``."""
    return f"{count} point{'s' * (count != 1)} {'lies' if count == 1 else 'lie'} {side}"


def hidden_meaning(data: ReportData) -> str:
    """Why points stand outside a window."""
    return f"{data.task.metric.name} more than {percent(WINDOW_SHARE)} worse than uncompressed"


def in_percent(data: ReportData, comparison: Comparison) -> bool:
    """Whether the comparison's errors and band are shown times 100."""
    return not comparison.absolute or data.metric_is_share


def error_label(data: ReportData, comparison: Comparison) -> str:
    """The unit of predicted minus measured."""
    if not comparison.absolute:
        return "predicted − measured (%)"
    return f"predicted − measured{in_brackets(data)}"


def comparison_name(data: ReportData, comparison: Comparison) -> str:
    """The quantity as people call it: the metric has a name of its own."""
    return data.task.metric.name if comparison.quantity == "metric" else comparison.quantity


def comparison_unit(data: ReportData, comparison: Comparison) -> tuple[str, float]:
    """The measured quantity with its unit, and what its numbers are multiplied by."""
    name = comparison_name(data, comparison)
    if comparison.quantity == "latency":
        return f"{name} (ms)", 1.0
    if comparison.quantity == "size":
        return f"{name} (kB)", 1e-3
    return (
        (f"{name} (%)", 100.0)
        if data.metric_is_share
        else (f"{name} ({unit})" if (unit := data.task.metric.unit) else name, 1.0)
    )
