"""What the command line shows: progress on stderr, tables on stdout."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stdout
from types import TracebackType
from typing import TYPE_CHECKING, cast

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from autocomp.errors import TargetError
from autocomp.run import Json, JsonValue
from autocomp.task import Metric
from autocomp.trial import Trial

if TYPE_CHECKING:
    from autocomp.finished import Run
    from autocomp.hardware.latency import Forecast
    from autocomp.report.shown import Shown

#: Kernels shown of a prediction; the rest are summed.
SHOWN_KERNELS = 20
#: Columns of what is written to no terminal.
LOG_WIDTH = 100

#: What is said of a target that has no latency model.
NOT_CALIBRATED = "not calibrated"


class Progress:
    """Bars and lines on stderr; a :class:`autocomp.watch.Watcher`. Where stderr is no terminal, lines only."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        if not self._console.is_terminal:
            self._console.width = max(self._console.width, LOG_WIDTH)
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._ids: dict[str, TaskID] = {}
        self._told: dict[str, int] = {}
        self._begun = ExitStack()

    def __enter__(self) -> Progress:
        self._begun.enter_context(self._bars)
        # What a task's own code prints is no part of what a command answers.
        self._begun.enter_context(redirect_stdout(sys.stderr))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._begun.close()

    def say(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)

    def step(self, what: str, done: int, of: int, note: str = "") -> None:
        if what not in self._ids:
            self._ids[what] = self._bars.add_task(what, total=of, note=note)
        if not self._console.is_terminal and 10 * done // of > self._told.get(what, -1):
            self._told[what] = 10 * done // of
            self.say(f"{what}: {done} of {of}{f'; {note}' if note else ''}")
        self._bars.update(self._ids[what], completed=done, total=of, note=note)

    def trial(self, trial: Trial, trials: Sequence[Trial], asked: int, metric: Metric) -> None:
        best = _best_so_far(trials, metric)
        self.step("searching", len(trials), asked, best)
        if trial.state == "failed":
            self.say(f"trial {trial.number} failed: {trial.error}")

    def front(self, run: Run) -> None:
        """The points worth a look on stderr: what they are called, what was measured of them and what only predicted."""
        from autocomp.report.load import load
        from autocomp.report.shown import shown

        (alone,) = shown([load(run.folder.path)])
        self._console.print(front_table(alone))
        for mark, said in front_marks(alone):
            self.say(f"{mark} {said}")
        more = len(alone.data.points) - len(alone.listed)
        if more:
            self.say(f"{more} more points are on the front; report.html and front.csv have them all")


#: What a front's table says of a number in one character.
_MARKS = {
    "indistinguishable": "=",
    "within the model's error": "~",
    "measured: no faster": "!",
    "timings never settled": "?",
    "not verified": "*",
}
_MEANINGS = {
    "=": "what is lost is indistinguishable from nothing",
    "~": "the predicted gain in latency is within the model's error",
    "!": "measured: no faster than uncompressed",
    "?": "its timings never settled",
    "*": "not verified: the simulated model's, on the search split",
}


def front_marks(run: Shown) -> list[tuple[str, str]]:
    """The marks in a front's table, and what they mean."""
    from autocomp.report import words

    notes = {note.text for one in run.listed for note in words.notes(run.data, one.point)}
    return [(mark, _MEANINGS[mark]) for text, mark in _MARKS.items() if text in notes]


def front_table(run: Shown) -> Table:
    """The points worth a look, by size of the file."""
    from autocomp.report import words
    from autocomp.report.views import best_latency, drop, factors

    data = run.data
    title = f"front of {data.run} ({data.task.metric.name})"
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=0)
    sources = {best_latency(data, one.point).source for one in run.listed}
    # Said once where it is the same of all: a terminal has 80 columns.
    common = sources.pop() if len(sources) == 1 else None
    for column in ("trial", "metric", data.lost, "size", "", "latency", "", common or "ms are"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", min_width=len("uncompressed"))
    for one in sorted(run.listed, key=lambda one: -one.point.size_bytes):
        point, gain, ms = one.point, factors(data, one.point), best_latency(data, one.point)
        lost = words.change_words(data, drop(data, point)).partition(" [")[0]
        recovered = [] if point.parent is None else [f"recovered from {point.parent}"]
        marks: dict[str, str] = defaultdict(str)
        for note in words.notes(data, point):
            marks[note.about] += _MARKS.get(note.text, "")
        table.add_row(
            str(point.trial),
            escape(words.metric(data, point.measured_metric if point.verified else point.metric_search))
            + marks["measured metric"],
            "" if point.is_baseline else lost.split(" ")[0] + marks["drop"],
            words.size(point.measured_size_bytes or point.size_bytes),
            "" if point.is_baseline else f"{gain.size:.2f}×",
            f"{words.digits(ms.ms)} ms" + marks["measured latency"],
            "" if point.is_baseline else f"{gain.speed:.2f}×" + marks["predicted latency"],
            words.latency_error(ms) if common else f"{ms.source} {words.latency_error(ms)}",
            escape(", ".join([*recovered, *one.names])),
        )
    return table


def _best_so_far(trials: Sequence[Trial], metric: Metric) -> str:
    """The smallest and the fastest plan whose metric is at most 1 % worse than the untouched one's, as factors."""
    base = next((t for t in trials if t.number == 0), None)
    if base is None or base.cost is None or base.metric is None:
        return ""
    allowed = 0.01 * abs(base.metric)
    near = [
        t
        for t in trials
        if t.cost is not None and t.metric is not None and metric.drop(base.metric, t.metric) <= allowed
    ]
    smaller = max(base.cost.size_bytes / t.cost.size_bytes for t in near if t.cost is not None)
    faster = max(base.cost.latency_ms / t.cost.latency_ms for t in near if t.cost is not None)
    return f"within 1 %: {smaller:.1f}× smaller, {faster:.1f}× faster (predicted)"


def verification_table(documents: Sequence[Json], metric: Metric) -> None:
    """Predicted beside measured, a row per point."""
    unit = f" ({metric.unit})" if metric.unit else ""
    table = Table(title=escape(f"{metric.name}{unit} on the test split"))
    for column in ("trial", "metric simulated", "file", "bytes predicted", "file", "ms predicted", "file", "±"):
        table.add_column(column, justify="right")
    for document in documents:
        predicted, measured = _part(document, "predicted"), _part(document, "measured")
        table.add_row(
            str(document["trial"]),
            f"{_part(document, 'simulated')['metric_test']:.4g}",
            f"{measured['metric_test']:.4g}",
            str(predicted["size_bytes"]),
            str(measured["size_bytes"]),
            f"{predicted['latency_ms']:.3f}",
            "out of reach" if measured["latency_ms"] is None else f"{measured['latency_ms']:.3f}",
            "" if measured["latency_spread"] is None else _error(measured),
        )
    Console().print(table)


def _error(measured: dict[str, JsonValue]) -> str:
    return f"{measured['latency_spread']:.1%}{'' if measured['settled'] else ', never settled'}"


def _part(document: Json, name: str) -> dict[str, JsonValue]:
    return cast("dict[str, JsonValue]", document[name])


def prediction_table(forecast: Forecast) -> None:
    """Total with its error bar, the memory, and the kernels that take longest."""
    prediction, megabytes = forecast.latency, forecast.peak_memory_bytes / 1e6
    covered = "without what is not covered, " if forecast.uncovered else ""
    title = f"{covered}{prediction.latency_ms:.3f} ± {prediction.std_ms:.3f} ms ({prediction.source})"
    table = Table(title=f"{title}, {megabytes:.2f} MB of memory ({forecast.memory_source})")
    for column in ("kernel", "for", "µs", "share"):
        table.add_column(column, justify="left" if column in {"kernel", "for"} else "right")
    ordered = sorted(prediction.kernels, key=lambda share: -share.latency_ms)
    for share in ordered[:SHOWN_KERNELS]:
        table.add_row(
            share.kernel.op,
            ", ".join(share.kernel.sources),
            f"{share.latency_ms * 1e3:.1f}",
            f"{share.latency_ms / prediction.latency_ms:.0%}",
        )
    rest = sum(share.latency_ms for share in ordered[SHOWN_KERNELS:])
    if rest:
        table.add_row(
            f"{len(ordered) - SHOWN_KERNELS} more", "", f"{rest * 1e3:.1f}", f"{rest / prediction.latency_ms:.0%}"
        )
    Console().print(table)


def targets_document() -> list[Json]:
    """What ``autocomp targets`` shows."""
    from autocomp.hardware.profiles import shipped_profiles, why_not_here
    from autocomp.hardware.resolve import check_measurable, profile_here

    found: list[Json] = []
    for shipped in shipped_profiles():
        measurable = shipped.measurable
        try:
            check_measurable(shipped)
            profile = profile_here(shipped, shipped.file.threads, shipped.file.batch)
            reasons = why_not_here(profile, profile.file.threads, profile.file.batch)
            model = profile.model() if profile.calibrated else None
        except TargetError as error:
            profile, measurable, reasons = shipped, False, [str(error)]
            model = shipped.model() if shipped.calibrated else None
        held_out = None if model is None else model.held_out
        found.append(
            {
                "name": profile.file.name,
                "aliases": list(profile.file.aliases),
                "device": profile.file.device,
                "runtime": profile.file.runtime,
                "format": profile.file.artifact,
                "latency_source": NOT_CALIBRATED if model is None else model.source,
                "held_out_error": None if held_out is None else held_out.mean,
                "held_out_median": None if held_out is None else held_out.median,
                "held_out_networks": None if held_out is None else held_out.networks,
                "holds_here": not reasons if measurable else None,
                "why_not": "; ".join(reasons),
                "note": profile.file.note,
            }
        )
    return found


def targets_list(document: Sequence[Json]) -> None:
    """The targets with what their milliseconds are worth: two lines each, since a narrow table would cut their names."""
    console = Console()
    for entry in document:
        aliases = "".join(f", {alias}" for alias in cast("list[str]", entry["aliases"]))
        about = f"{entry['device']}; {entry['runtime']}, {entry['format']}"
        console.print(f"[bold]{entry['name']}[/bold]{aliases}: {escape(about)}", soft_wrap=True, highlight=False)
        if entry["latency_source"] == NOT_CALIBRATED:
            way = f"autocomp calibrate {entry['name']}, on a machine with its device, makes milliseconds of it"
            console.print(f"    ms: {NOT_CALIBRATED}; {way}", soft_wrap=True, highlight=False)
            continue
        mean, median, networks = (entry[f"held_out_{name}"] for name in ("error", "median", "networks"))
        error = "not known" if mean is None else f"{mean:.1%}, median {median:.1%} of {networks} networks"
        here = {
            None: ": ".join(["not measurable here", *filter(None, [str(entry["why_not"])])]),
            True: "its profile holds here",
            False: f"calibrates first: {entry['why_not']}",
        }
        holds = here[cast("bool | None", entry["holds_here"])]
        console.print(
            f"    ms: {entry['latency_source']}; mean held-out error {error}; {escape(holds)}",
            soft_wrap=True,
            highlight=False,
        )
