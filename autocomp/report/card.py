"""A model card: what a file is, what was measured of it, and what not, as Markdown beside the file."""

from __future__ import annotations

from dataclasses import dataclass, replace

from autocomp.report import words
from autocomp.report.data import LayerRow, Point, ReportData
from autocomp.report.views import best_latency, drop, factors, intervals, measured_latency, predicted_latency

FILE = "MODEL_CARD.md"


@dataclass(frozen=True)
class Shipped:
    """The file that a card lies beside: its name, format and bytes, and whether it is the very one that was verified."""

    file: str
    format: str
    size_bytes: int
    verified: bool


def card(data: ReportData, point: Point, shipped: Shipped | None = None) -> str:
    """The card of a point; ``shipped`` where its file was written just now."""
    parts = [
        f"# {_plain(data.task.name)}, compressed for {_plain(data.target.name)}\n",
        _summary(data, point, shipped),
        _file(point, shipped),
        _numbers(data, point),
        _limits(data, point),
        _layers(data, point),
        _origin(data, point),
    ]
    return "\n".join(part for part in parts if part)


def _plain(text: str) -> str:
    """A text of the run inside Markdown: no table cell ends in it, and no tag or emphasis begins."""
    told = " ".join(text.split()).replace("\\", "\\\\")
    for mark in "|*`[]":
        told = told.replace(mark, f"\\{mark}")
    return told.replace("&", "&amp;").replace("<", "&lt;")


def _summary(data: ReportData, point: Point, shipped: Shipped | None) -> str:
    if point.is_baseline:
        return "The uncompressed model, as autocomp exports it.\n"
    gain, base = factors(data, point), data.baseline
    what = f"{_plain(point.name.capitalize())} of a search by autocomp"
    if shipped is not None and not shipped.verified:  # another file's gains are not its own
        own = replace(gain, size=(base.measured_size_bytes or base.size_bytes) / shipped.size_bytes)
        unmeasured = f"its latency and {_plain(data.task.metric.name)} were not measured"
        return f"{what}: {words.smaller(own)} than the uncompressed file; {unmeasured}.\n"
    source = "measured" if gain.speed_measured else best_latency(data, point).source
    return (
        f"{what}: {words.smaller(gain)} and {words.faster(gain)} ({source}) "
        f"than the uncompressed file, {_plain(words.drop_words(data, drop(data, point)))}.\n"
    )


def _file(point: Point, shipped: Shipped | None) -> str:
    if shipped is None:
        return ""
    same = (
        "the file that was verified" if shipped.verified else "built anew: the numbers below are those of another file"
    )
    if not shipped.verified and not point.verified:
        same = "never verified"
    return f"`{shipped.file}`: {shipped.size_bytes:,} bytes, format {shipped.format}; {same}.\n"


def _numbers(data: ReportData, point: Point) -> str:
    measured, metric = measured_latency(point), _plain(data.task.metric.name)
    file_metric = words.metric(data, point.measured_metric) if point.verified else "not verified"
    rows = [
        (f"{metric}, search split", words.metric(data, point.metric_search), words.NONE),
        (f"{metric}, test split", words.metric(data, point.metric_test), file_metric),
        (
            f"{data.lost} against uncompressed",
            words.NONE,
            words.NONE if point.is_baseline else _drop(data, point),
        ),
        ("size, bytes", words.exact_size(point.size_bytes), words.exact_size(point.measured_size_bytes)),
        (
            "latency",
            words.latency(predicted_latency(data, point)),
            "not measured" if measured is None else words.latency(measured),
        ),
        (
            "memory to run it",
            words.memory(point.peak_memory_bytes, "predicted"),
            "not measured"
            if point.measured_memory_bytes is None
            else words.memory(point.measured_memory_bytes, "measured"),
        ),
    ]
    lines = [f"| {name} | {_plain(predicted)} | {_plain(found)} |" for name, predicted, found in rows]
    return "\n".join(["| | predicted or simulated | measured on the exported file |", "|---|---|---|", *lines, ""])


def _drop(data: ReportData, point: Point) -> str:
    change = drop(data, point)
    return f"{words.change_words(data, change)} ({change.basis})"


def _limits(data: ReportData, point: Point) -> str:
    paired = (
        f"The interval of a {data.lost} is the paired 95 % interval against the uncompressed file on the same examples."
    )
    said = [
        *([paired] if intervals(data, [point]) else []),
        f"It was chosen by the search split; the test split{_examples(data)} was read at the end, on exported files.",
        "A packed file is small on disk and in transfer, not in memory: the runtime unpacks its weights when it loads it.",
        words.latency_promise(data),
        *(
            f"Its {data.lost if note.about == 'drop' else note.about}: {note.text}."
            for note in words.notes(data, point)
        ),
    ]
    return "\n".join(["## What the numbers are worth\n", *(f"* {_plain(each)}" for each in said), ""])


def _examples(data: ReportData) -> str:
    return "" if data.task.test_examples is None else f" ({data.task.test_examples:,} examples)"


def _layers(data: ReportData, point: Point) -> str:
    # Between integer layers the file has integers also where the plan says nothing.
    rows = [row for row in data.layer_plan(point) if not row.untouched or row.format is not None]
    if not rows:
        return ""
    lines = [
        f"| {_plain(row.layer.name)} | {'left out' if row.dropped else _plain(row.plan.describe())} | "
        f"{_in_the_file(row)} |"
        for row in rows
    ]
    untouched = len(data.layers) - len(rows)
    left = [f"Layers left as they were: {untouched}."] if untouched else []
    adjusted = ", ".join(point.plan.adjustments) if point.plan is not None else ""
    whole = [f"The whole network was adjusted: {adjusted}."] if adjusted else []
    return "\n".join(
        [
            "## What was done to each layer\n",
            "| layer | plan | format in the file |",
            "|---|---|---|",
            *lines,
            "",
            *left,
            *whole,
            "",
        ]
    )


def _in_the_file(row: LayerRow) -> str:
    if row.dropped:
        return words.NONE
    return "float 32" if row.format is None else _plain(row.format.name)


def _origin(data: ReportData, point: Point) -> str:
    target, versions = data.target, ", ".join(f"{name} {version}" for name, version in data.versions)
    facts = [
        ("target", f"{target.name}: {target.device}"),
        ("runtime", target.runtime_words),
        ("threads, batch", f"{target.threads or words.NONE}, {target.batch or words.NONE}"),
        ("clocks and power", target.clocks or "not told"),
        ("plan", f"{point.plan_hash}, in plan.json"),
        ("made", data.created),
        ("with", versions),
    ]
    return "\n".join(
        ["## Where it comes from\n", *(f"* {name}: {_plain(value)}" for name, value in facts if value), ""]
    )
