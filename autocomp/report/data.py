"""What a report shows of a run; reading it from the folder (``load``) and drawing it (``draw``, ``page``) are other matters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePath
from types import MappingProxyType

from autocomp.hardware.latency import HeldOutError
from autocomp.plan import LayerPlan, Plan, units_kept
from autocomp.task import Metric
from autocomp.trial import Rung, Source, TrialState

#: The unit of metrics that run from 0 to 100.
PERCENT = "%"


@dataclass(frozen=True)
class TaskFacts:
    """The task as the run recorded it; the numbers of examples are None where the task did not say."""

    name: str
    metric: Metric
    search_examples: int | None
    test_examples: int | None


@dataclass(frozen=True)
class TargetFacts:
    """The target as the run recorded it. ``held_out_error`` is the latency model's mean absolute error, relative; ``clocks``
    say how the device was set (clocks, power mode), in words."""

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
    runtime_version: str = ""
    clocks: str = ""

    @property
    def runtime_words(self) -> str:
        """Runtime and version; a version may say the runtime's name by itself."""
        named = self.runtime_version.lower().startswith(self.runtime.lower())
        return self.runtime_version if named and self.runtime else f"{self.runtime} {self.runtime_version}".strip()


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
    worse). ``measured_latency_spread`` is the standard error of ``measured_latency_ms``, relative to it;
    ``measured_baseline_latency_ms`` what the uncompressed file took in the same sitting.
    None = not measured. ``settled`` is False where the timings never agreed. ``parent`` is the trial that it was recovered
    from, with which seed; None where it was not. ``formats`` are those of the file's layers; None where it was not
    verified. ``peak_memory_bytes`` is predicted, of a process that runs it; ``measured_memory_bytes`` its file's.
    ``test_examples`` are those that it was scored on. ``timed_on`` is the board that it was timed on, where that was not the
    machine of the search.
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
    peak_memory_bytes: int | None = None
    timed_on: str | None = None
    measured_memory_bytes: int | None = None
    measured_baseline_latency_ms: float | None = None
    test_examples: int | None = None

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
    """How one trial went; its numbers are those predicted, and None where it did not complete.

    ``plan`` says in words what it did, ``uniform`` what it did to every layer alike (None where it did not), ``why`` what
    the sampler expected of it (None where it did not say), ``rungs`` its metric on the parts of the search split that it was
    evaluated on before all of it.
    """

    trial: int
    state: TrialState
    metric_search: float | None
    seconds: float | None
    error: str | None
    latency_ms: float | None = None
    size_bytes: int | None = None
    plan: str = ""
    uniform: str | None = None
    why: str | None = None
    rungs: tuple[Rung, ...] = ()


@dataclass(frozen=True)
class Spent:
    """Where a plan's predicted time and bytes go, by layer; ``other`` is what no layer is behind."""

    latency_ms: Mapping[str, float]
    other_latency_ms: Mapping[str, float]
    size_bytes: Mapping[str, int]
    other_size_bytes: int


@dataclass(frozen=True)
class Sensitivity:
    """What each option of a decision does to the network's output by itself: its error as a share of the outputs' variance.

    The first option is to leave the layer as it is. ``options`` are their names, where the run tells them.
    """

    decision: str
    kind: str
    errors: tuple[float, ...]
    options: tuple[str, ...]


@dataclass(frozen=True)
class ReportData:
    """All that a report shows. ``points`` holds the baseline first, then the front in the order of front.csv.

    ``spent`` is known of plans by their hash, and empty, as ``held_out`` is None, where the run does not tell. ``table`` is
    front.csv as it is. ``called`` is the run's name where that of its folder does not tell it from others.
    """

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
    spent: Mapping[str, Spent] = field(default_factory=lambda: MappingProxyType({}))
    held_out: HeldOutError | None = None
    sensitivities: tuple[Sensitivity, ...] = ()
    table: str = ""
    called: str = ""

    @property
    def name(self) -> str:
        """What the run is called where several stand side by side."""
        return self.called or PurePath(self.run).name or self.run

    @property
    def baseline(self) -> Point:
        return self.points[0]

    @property
    def front(self) -> tuple[Point, ...]:
        """The points without the baseline."""
        return self.points[1:]

    @cached_property
    def metric_is_share(self) -> bool:
        """Whether the metric is one that people read in percent: it says so, or is an accuracy between 0 and 1."""
        if self.task.metric.unit == PERCENT:
            return True
        values = [v for p in self.points for v in (p.metric_search, p.metric_test, p.measured_metric) if v is not None]
        return "accuracy" in self.task.metric.name.lower() and all(0.0 <= value <= 1.0 for value in values)

    @property
    def metric_unit(self) -> str:
        """What stands behind a metric's number: `` %``, `` dB``, or nothing."""
        unit = "%" if self.metric_is_share else self.task.metric.unit
        return f" {unit}" if unit else ""

    @property
    def change_unit(self) -> str:
        """What stands behind a difference of two."""
        return " points" if self.metric_is_share else self.metric_unit

    @property
    def lost(self) -> str:
        """What a change for the worse is called."""
        return self.task.metric.lost

    @property
    def allowed(self) -> str | None:
        """``drop of 2 points``, where the request allows no larger one."""
        if self.max_drop is None:
            return None
        scale = 100.0 if self.metric_is_share and self.task.metric.unit != PERCENT else 1.0
        return f"{self.lost} of {scale * self.max_drop:g}{self.change_unit}"

    @property
    def max_drop(self) -> float | None:
        """The largest drop that the request allows, in the metric's own units."""
        said = dict(self.request).get("max_drop", "null")
        return None if said == "null" else float(said)

    @property
    def asked(self) -> str:
        """The number of trials that the request asked for, in words."""
        return dict(self.request).get("trials", "?")

    def layer_plan(self, point: Point) -> tuple[LayerRow, ...]:
        """What ``point`` does to every layer, in network order; empty where its plan was not found."""
        if point.plan is None:
            return ()
        return tuple(_layer_row(layer, point.plan, point.formats, self.layers) for layer in self.layers)


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
