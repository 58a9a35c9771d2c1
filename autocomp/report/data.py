"""What a report shows, read from a run folder and checked; drawing it is another matter (``draw``, ``page``).

Only the folder's own files are read: run.json, front.csv, trials.csv, layers.json and, for each point,
exports/<trial>/plan.json and verification.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeVar, get_args

from autocomp.errors import PlanError, RunError
from autocomp.plan import LayerPlan, Plan, units_kept
from autocomp.report.read import Fields, read_csv, read_object, read_objects
from autocomp.task import Direction, Metric
from autocomp.trial import Source, TrialState

POINT_COLUMNS = (
    "trial", "is_baseline", "metric_search", "metric_test", "size_bytes", "latency_ms", "latency_std_ms",
    "latency_source", "measured_metric", "measured_metric_low", "measured_metric_high", "measured_size_bytes",
    "measured_latency_ms", "measured_latency_spread", "plan_hash",
)  # fmt: skip
_SOURCES: tuple[Source, ...] = get_args(Source)
_STATES: tuple[TrialState, ...] = get_args(TrialState)
_DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
TRIAL_COLUMNS = (*POINT_COLUMNS, "state", "seconds", "error")


@dataclass(frozen=True)
class TaskFacts:
    """The task as the run recorded it; the numbers of examples are None where the task did not say."""

    name: str
    metric: Metric
    search_examples: int | None
    test_examples: int | None


@dataclass(frozen=True)
class TargetFacts:
    """The target as the run recorded it. ``held_out_error`` is the latency model's mean absolute error, relative."""

    name: str
    device: str
    runtime: str
    format: str
    threads: int | None
    batch: int | None
    latency_source: Source
    held_out_error: float | None
    held_out_note: str
    note: str


@dataclass(frozen=True)
class LayerFacts:
    """A compressible layer. ``weight_shape`` is that of the module's weight; layers of one ``group`` lose their channels
    together, a whole one of ``units`` (several channels, where these are heads) at a time, and those of one residual
    ``block`` are left out together."""

    name: str
    kind: str
    weight_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    macs: int
    params: int
    group: str | None
    block: str | None = None
    units: int | None = None

    @property
    def outputs(self) -> int:
        """Its output channels, or columns."""
        if self.kind == "embedding":
            return self.weight_shape[-1]
        return self.out_shape[0] if self.kind == "conv_transpose2d" else self.weight_shape[0]

    def channels_kept(self, level: float) -> float:
        """The share of its output channels that a sparsity level leaves: of whole units, one at least."""
        units = self.units or self.outputs
        return units_kept(units, level) / units

    @property
    def full_rank(self) -> int:
        """The rank of the weight seen as an (out, in·k·k) matrix."""
        return min(self.weight_shape[0], math.prod(self.weight_shape[1:]))


@dataclass(frozen=True)
class StoredFormat:
    """The format of a layer, in words, and the bits of a weight."""

    weight_bits: int
    name: str


@dataclass(frozen=True)
class LayerRow:
    """What a point does to one layer. ``format`` is what it has in the file, where that was verified (between integer
    layers it may be another than the plan's), else that of the plan.

    ``channels_kept`` is the share of output channels left (also where a coupled layer's plan removes them, then
    ``coupled`` is true); ``rank_share`` the share of the full rank left; ``zeros`` the share of single weights zeroed.
    """

    layer: LayerFacts
    plan: LayerPlan
    format: StoredFormat | None
    channels_kept: float
    coupled: bool
    rank_share: float
    zeros: float
    dropped: bool

    @property
    def untouched(self) -> bool:
        return self.plan.untouched and not self.coupled and not self.dropped


@dataclass(frozen=True)
class Point:
    """One row of the front: what was predicted, and what the exported file then did.

    ``metric_search`` and ``metric_test`` are the simulated model's; ``measured_metric`` the exported file's on the test
    split; ``drop_low``/``drop_high`` the paired 95 % interval of its drop against the uncompressed file (positive is
    worse). ``measured_latency_spread`` is the spread of the repeats relative to ``measured_latency_ms``.
    None = not measured. ``settled`` is False where the timings never agreed. ``parent`` is the trial that it was recovered
    from, with which seed; None where it was not. ``formats`` are those of the file's layers; None where it was not
    verified.
    """

    trial: int
    is_baseline: bool
    metric_search: float
    metric_test: float | None
    size_bytes: int
    latency_ms: float
    latency_std_ms: float | None
    latency_source: Source
    measured_metric: float | None
    drop_low: float | None
    drop_high: float | None
    measured_size_bytes: int | None
    measured_latency_ms: float | None
    measured_latency_spread: float | None
    plan_hash: str
    plan: Plan | None
    settled: bool | None
    runtime: str | None
    parent: int | None
    recovery_seed: int | None
    formats: Mapping[str, StoredFormat] | None

    @property
    def label(self) -> str:
        """What a point is called where there is little room."""
        if self.is_baseline:
            return "uncompressed"
        return str(self.trial) if self.parent is None else f"{self.parent} recovered"

    @property
    def name(self) -> str:
        """What a point is called in sentences."""
        return self.label if self.is_baseline else f"trial {self.label}"

    @property
    def verified(self) -> bool:
        """Whether the exported file was scored on the test split."""
        return self.measured_metric is not None


@dataclass(frozen=True)
class TrialRow:
    """How one trial went; ``metric_search`` is None where it did not complete."""

    trial: int
    state: TrialState
    metric_search: float | None
    seconds: float | None
    error: str | None


@dataclass(frozen=True)
class ReportData:
    """All that a report shows. ``points`` holds the baseline first, then the front in the order of front.csv."""

    run: str
    created: str
    task: TaskFacts
    target: TargetFacts
    request: tuple[tuple[str, str], ...]
    versions: tuple[tuple[str, str], ...]
    fingerprint: tuple[tuple[str, str], ...]
    layers: tuple[LayerFacts, ...]
    points: tuple[Point, ...]
    trials: tuple[TrialRow, ...]

    @property
    def baseline(self) -> Point:
        return self.points[0]

    @property
    def front(self) -> tuple[Point, ...]:
        """The points without the baseline."""
        return self.points[1:]

    @property
    def asked(self) -> str:
        """The number of trials that the request asked for, in words."""
        return dict(self.request).get("trials", "?")

    def layer_plan(self, point: Point) -> tuple[LayerRow, ...]:
        """What ``point`` does to every layer, in network order; empty where its plan was not found."""
        if point.plan is None:
            return ()
        return tuple(_layer_row(layer, point.plan, point.formats, self.layers) for layer in self.layers)


#: The unit of metrics that run from 0 to 100.
PERCENT = "%"

Row = TypeVar("Row", "Point", "TrialRow")


def load(run_dir: Path) -> ReportData:
    """Read a run folder.

    Raises:
        RunError: the folder or one of its files is missing, a value in it is malformed, or a plan under exports/ is
            not the one that front.csv lists.
    """
    if not run_dir.is_dir():
        raise RunError(f"a run must be a folder; {run_dir} is none; name one that `autocomp search --out` wrote")
    front = read_csv(run_dir / "front.csv", POINT_COLUMNS)
    run = read_object(run_dir / "run.json")
    layers = tuple(_layer(entry) for entry in read_objects(run_dir / "layers.json"))
    points = tuple(_point(row, run_dir, frozenset(layer.name for layer in layers)) for row in front)
    if not points or [point.is_baseline for point in points] != [True] + [False] * (len(points) - 1):
        raise RunError(
            f"{run_dir / 'front.csv'} must have the baseline as its first row, and once; run the search again"
        )
    trials = tuple(_trial(row) for row in read_csv(run_dir / "trials.csv", TRIAL_COLUMNS))
    task = _task(run.inner("task"))
    if task.metric.unit == PERCENT:
        points, trials = tuple(_as_share(point) for point in points), tuple(_as_share(trial) for trial in trials)
    return ReportData(
        run=str(run_dir),
        created=run.text("created", ""),
        task=task,
        target=_target(run.inner("target")),
        request=run.facts("request"),
        versions=run.facts("versions"),
        fingerprint=run.facts("fingerprint"),
        layers=layers,
        points=points,
        trials=trials,
    )


def _task(entry: Fields) -> TaskFacts:
    metric = Metric(entry.text("metric"), entry.choice("direction", _DIRECTIONS), entry.text("unit", ""))
    examples = entry.maybe_integer("search_examples"), entry.maybe_integer("test_examples")
    return TaskFacts(entry.text("name"), metric, *examples)


def _target(entry: Fields) -> TargetFacts:
    return TargetFacts(
        name=entry.text("name"),
        device=entry.text("device", ""),
        runtime=entry.text("runtime", ""),
        format=entry.text("format", ""),
        threads=entry.maybe_integer("threads"),
        batch=entry.maybe_integer("batch"),
        latency_source=entry.choice("latency_source", _SOURCES),
        held_out_error=entry.maybe_number("held_out_error"),
        held_out_note=entry.text("held_out_note", ""),
        note=entry.text("note", ""),
    )


def _layer(entry: Fields) -> LayerFacts:
    group = entry.values.get("group")
    shape = entry.shape("weight_shape")
    if not shape:
        raise RunError(f"{entry.where}: weight_shape must hold the output channels; it is empty; search again")
    return LayerFacts(
        name=entry.text("name"),
        kind=entry.text("kind"),
        weight_shape=shape,
        out_shape=entry.shape("out_shape"),
        macs=entry.integer("macs"),
        params=entry.integer("params"),
        group=None if group is None else str(group),
        block=entry.text("block", "") or None,
        units=entry.maybe_integer("channel_units"),
    )


def _as_share(row: Row) -> Row:
    """A row whose metric is in percent, with the metric as the share that the rest of the report reckons in."""
    names = {"metric_search", "metric_test", "measured_metric", "drop_low", "drop_high"}
    found = {each.name: getattr(row, each.name) for each in fields(row) if each.name in names}
    return replace(row, **{name: value / 100 for name, value in found.items() if value is not None})


def _trial(row: Fields) -> TrialRow:
    metric = row.maybe_number("metric_search")
    error = row.text("error", "") or None
    state = row.choice("state", _STATES)
    return TrialRow(row.integer("trial"), state, metric, row.maybe_number("seconds"), error)


def _point(row: Fields, run_dir: Path, known: frozenset[str]) -> Point:
    trial, plan_hash = row.integer("trial"), row.text("plan_hash")
    folder = run_dir / "exports" / str(trial)
    verification = folder / "verification.json"
    checked = read_object(verification) if verification.is_file() else Fields({}, str(verification))
    same = checked.text("plan_hash", "") == plan_hash  # an older plan's verification says nothing about this one
    size_bytes, latency_ms = row.integer("size_bytes"), row.number("latency_ms")
    if size_bytes <= 0 or latency_ms <= 0:
        raise RunError(f"{row.where}: size_bytes and latency_ms must be positive; got {size_bytes} and {latency_ms}")
    return Point(
        trial=trial,
        is_baseline=row.flag("is_baseline"),
        metric_search=row.number("metric_search"),
        metric_test=row.maybe_number("metric_test"),
        size_bytes=size_bytes,
        latency_ms=latency_ms,
        latency_std_ms=row.maybe_number("latency_std_ms"),
        latency_source=row.choice("latency_source", _SOURCES),
        measured_metric=row.maybe_number("measured_metric"),
        drop_low=row.maybe_number("measured_metric_low"),
        drop_high=row.maybe_number("measured_metric_high"),
        measured_size_bytes=row.maybe_integer("measured_size_bytes"),
        measured_latency_ms=row.maybe_number("measured_latency_ms"),
        measured_latency_spread=row.maybe_number("measured_latency_spread"),
        plan_hash=plan_hash,
        plan=_plan(folder / "plan.json", plan_hash, known),
        settled=checked.inner("measured").maybe_flag("settled") if same else None,
        runtime=checked.text("runtime", "") or None if same else None,
        parent=row.maybe_integer("parent"),
        recovery_seed=row.maybe_integer("recovery_seed"),
        formats=_formats(checked) if same else None,
    )


def _formats(verification: Fields) -> dict[str, StoredFormat] | None:
    if "layer_formats" not in verification.values:
        return None
    named = verification.inner("layer_formats")
    entries = {name: named.inner(name) for name in named.values}
    return {name: StoredFormat(one.integer("weight_bits"), one.text("name")) for name, one in entries.items()}


def _plan(path: Path, plan_hash: str, known: frozenset[str]) -> Plan | None:
    if not path.is_file():
        return Plan() if plan_hash == Plan().hash else None
    try:
        plan = Plan.from_json(path.read_text(encoding="utf-8"))
    except PlanError as error:
        raise RunError(f"{path}: {error}; export the point again") from None
    if plan.hash != plan_hash:
        raise RunError(
            f"{path} must be the plan that front.csv lists, {plan_hash}; it is {plan.hash}; export the point again"
        )
    strangers = sorted(set(plan.layers) - known)
    if strangers:
        raise RunError(f"{path} must name layers of layers.json; {strangers[0]!r} is none; search again")
    return plan


def _layer_row(
    layer: LayerFacts, plan: Plan, formats: Mapping[str, StoredFormat] | None, layers: tuple[LayerFacts, ...]
) -> LayerRow:
    own = plan[layer.name]
    planned = None if own.format is None else StoredFormat(own.format.weight_bits, str(own.format))
    level = own.channel_level()
    if layer.group is not None:  # channels of coupled layers go together, whichever of them the plan names
        level = max(plan[other.name].channel_level() for other in layers if other.group == layer.group)
    return LayerRow(
        layer=layer,
        plan=own,
        format=planned if formats is None else formats.get(layer.name),
        channels_kept=layer.channels_kept(level),
        coupled=level > own.channel_level(),
        rank_share=1.0 if own.rank is None else min(1.0, own.rank.r / layer.full_rank),
        zeros=own.masked_level(),
        dropped=layer.block in plan.dropped_blocks,
    )
