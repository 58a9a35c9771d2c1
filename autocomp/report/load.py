"""A run folder → what a report shows of it, every value checked.

Only the folder's own files are read: run.json, front.csv, trials.csv, layers.json, explanation.json, events.jsonl and, for
each point, exports/<trial>/plan.json and verification.json.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TypeVar, get_args

from autocomp.errors import PlanError, RunError
from autocomp.plan import Plan
from autocomp.report.data import (
    PERCENT,
    LayerFacts,
    Point,
    ReportData,
    StoredFormat,
    TargetFacts,
    TaskFacts,
    TrialRow,
)
from autocomp.report.explanation import read_explanation
from autocomp.report.read import Fields, read_csv, read_object, read_objects
from autocomp.task import Direction, Metric
from autocomp.trial import Rung, Source, TrialState

POINT_COLUMNS = (
    "trial", "is_baseline", "metric_search", "metric_test", "size_bytes", "latency_ms", "latency_std_ms",
    "latency_source", "measured_metric", "measured_metric_low", "measured_metric_high", "measured_size_bytes",
    "measured_latency_ms", "measured_latency_spread", "plan_hash",
)  # fmt: skip
_SOURCES: tuple[Source, ...] = get_args(Source)
_STATES: tuple[TrialState, ...] = get_args(TrialState)
_DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
TRIAL_COLUMNS = (*POINT_COLUMNS, "state", "seconds", "error")

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
    task = _task(run.inner("task"), points[0].test_examples)
    if task.metric.unit == PERCENT:
        points, trials = tuple(_as_share(point) for point in points), tuple(_as_share(trial) for trial in trials)
    explained = read_explanation(run_dir)
    return ReportData(
        run=str(run_dir),
        created=run.text("created", ""),
        task=task,
        target=_target(run.inner("target")),
        # Where the data lay on one machine is nothing that a page should pass on.
        request=tuple(fact for fact in run.facts("request") if fact[0] != "data"),
        versions=run.facts("versions"),
        fingerprint=run.facts("fingerprint"),
        layers=layers,
        points=points,
        trials=trials,
        spent=explained.spent,
        held_out=explained.held_out,
        sensitivities=explained.sensitivities,
        table=(run_dir / "front.csv").read_text(encoding="utf-8"),
    )


def _task(entry: Fields, test_examples: int | None) -> TaskFacts:
    metric = Metric(entry.text("metric"), entry.choice("direction", _DIRECTIONS), entry.text("unit", ""))
    return TaskFacts(entry.text("name"), metric, entry.maybe_integer("search_examples"), test_examples)


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
        runtime_version=entry.text("runtime_version", ""),
        clocks=entry.text("clocks", ""),
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
    changed = {name: value / 100 for name, value in found.items() if value is not None}
    if isinstance(row, TrialRow):
        rungs = tuple(replace(rung, metric=rung.metric / 100) for rung in row.rungs)
        return replace(row, rungs=rungs, **changed)
    return replace(row, **changed)


def _trial(row: Fields) -> TrialRow:
    metric = row.maybe_number("metric_search")
    error = row.text("error", "") or None
    state = row.choice("state", _STATES)
    return TrialRow(
        row.integer("trial"),
        state,
        metric,
        row.maybe_number("seconds"),
        error,
        row.maybe_number("latency_ms"),
        row.maybe_integer("size_bytes"),
        row.text("plan", ""),
        row.text("uniform", "") or None,
        row.text("why", "") or None,
        tuple(Rung(share, value) for share, value in row.pairs("rungs")),
    )


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
        measured_baseline_latency_ms=row.maybe_number("measured_baseline_latency_ms"),
        test_examples=checked.inner("measured").maybe_integer("examples") if same else None,
        settled=checked.inner("measured").maybe_flag("settled") if same else None,
        runtime=checked.text("runtime", "") or None if same else None,
        parent=row.maybe_integer("parent"),
        recovery_seed=row.maybe_integer("recovery_seed"),
        formats=_formats(checked) if same else None,
        peak_memory_bytes=row.maybe_integer("peak_memory_bytes"),
        timed_on=checked.text("timed_on", "") or None if same else None,
        measured_memory_bytes=checked.inner("measured").maybe_integer("peak_memory_bytes") if same else None,
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
