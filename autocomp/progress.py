"""What the command line shows: progress on stderr, tables on stdout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, cast

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from autocomp.run import Json, JsonValue
from autocomp.task import Metric
from autocomp.trial import Trial

if TYPE_CHECKING:
    from autocomp.finished import Run
    from autocomp.hardware.latency import Forecast

#: Kernels shown of a prediction; the rest are summed.
SHOWN_KERNELS = 20

#: What is said of a target that has no latency model.
NOT_CALIBRATED = "not calibrated"


class Progress:
    """Bars and lines on stderr; a :class:`autocomp.watch.Watcher`. Where stderr is no terminal, lines only."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
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

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

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
        """The front as a table on stderr."""
        rows = run.front
        table = Table(title=f"front of {run.folder.path}", title_justify="left")
        for column in ("trial", "metric (search)", "metric (file)", "kB", "ms", ""):
            table.add_column(column, justify="right")
        for row in rows.to_dict("records"):
            measured = not math.isnan(row["measured_latency_ms"])
            predicted = f"{row['latency_ms']:.3f} ± {row['latency_std_ms']:.3f}"
            table.add_row(
                _name(row["trial"], row["parent"]),
                f"{row['metric_search']:.4g}",
                f"{row['measured_metric']:.4g}",
                f"{row['measured_size_bytes'] / 1000:.1f}",
                f"{row['measured_latency_ms']:.3f}" if measured else predicted,
                _source(measured, row["measured_latency_settled"], row["latency_source"]),
            )
        self._console.print(table)


def _name(trial: int, parent: float | None) -> str:
    """A trial's number, by which it is picked, and that of the trial it was recovered from."""
    recovered = parent is not None and not math.isnan(parent)
    return f"{trial} ({parent:.0f} recovered)" if recovered else str(trial)


def _source(measured: bool, settled: object, otherwise: object) -> str:
    """Where a row's milliseconds come from."""
    if not measured:
        return str(otherwise)
    return "measured" if settled is True else "measured, never settled"


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


def verification_table(documents: Sequence[Json]) -> None:
    """Predicted beside measured, a row per point."""
    table = Table()
    for column in ("trial", "metric simulated", "file", "bytes predicted", "file", "ms predicted", "file", "spread"):
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
            "" if measured["latency_spread"] is None else _spread(measured),
        )
    Console().print(table)


def _spread(measured: dict[str, JsonValue]) -> str:
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
    from autocomp.hardware.resolve import profile_here

    found: list[Json] = []
    for shipped in shipped_profiles():
        profile = profile_here(shipped, shipped.file.threads, shipped.file.batch)
        model = profile.model() if profile.calibrated else None
        reasons = why_not_here(profile, profile.file.threads, profile.file.batch)
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
                "holds_here": not reasons if profile.measurable else None,
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
            None: "not measurable here",
            True: "its profile holds here",
            False: f"calibrates first: {entry['why_not']}",
        }
        holds = here[cast("bool | None", entry["holds_here"])]
        console.print(
            f"    ms: {entry['latency_source']}; mean held-out error {error}; {escape(holds)}",
            soft_wrap=True,
            highlight=False,
        )
