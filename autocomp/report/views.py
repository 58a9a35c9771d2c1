"""What the pictures and the page say of a :class:`ReportData`: figures as data, before anything is drawn.

Two rules hold everywhere: like is compared with like (measured with measured, predicted with predicted), and points are
chosen by the search split, never by the test split (what a picture leaves out at first goes by the values it shows).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from autocomp import pareto
from autocomp.errors import RunError
from autocomp.report.data import Point, ReportData
from autocomp.trial import Source

Quantity = Literal["latency", "size", "metric"]
Basis = Literal["exported file, test split", "simulated model, test split", "simulated model, search split"]

#: A prediction is said to agree within these: relative for latency and size, points for a metric that is a share.
LATENCY_BAND, SIZE_BAND, METRIC_BAND = 0.20, 0.01, 0.005
#: The front's pictures start zoomed to the points at most this much worse than the uncompressed model (relative).
WINDOW_SHARE = 0.20
#: Errors of the output from here on are drawn as strongly as they can be, below the other as weakly.
STRONGEST, WEAKEST = 1.0, 1e-5
_WINDOW_MARGIN = 0.12


@dataclass(frozen=True)
class Latency:
    """Milliseconds, where they come from, and how far off they may be (relative; None where nobody knows)."""

    ms: float
    source: Source
    error: float | None


def predicted_latency(data: ReportData, point: Point) -> Latency:
    """The prediction; its error is its own standard deviation or else the model's held-out error."""
    own = None if point.latency_std_ms is None else point.latency_std_ms / point.latency_ms
    return Latency(point.latency_ms, point.latency_source, own if own is not None else data.target.held_out_error)


def measured_latency(point: Point) -> Latency | None:
    """The exported file's own latency with its standard error; None where the target was out of reach."""
    if point.measured_latency_ms is None:
        return None
    return Latency(point.measured_latency_ms, "measured", point.measured_latency_spread)


def best_latency(data: ReportData, point: Point) -> Latency:
    """Measured where it was measured, else predicted."""
    return measured_latency(point) or predicted_latency(data, point)


@dataclass(frozen=True)
class Factors:
    """How many times smaller and faster than the uncompressed file. ``speed_measured`` is False for predictions."""

    size: float
    speed: float
    speed_measured: bool


def factors(data: ReportData, point: Point) -> Factors:
    base = data.baseline
    size, speed = base.size_bytes / point.size_bytes, base.latency_ms / point.latency_ms
    if base.measured_size_bytes and point.measured_size_bytes:
        size = base.measured_size_bytes / point.measured_size_bytes
    untouched_ms = _untouched_ms(data, point)
    measured = bool(untouched_ms and point.measured_latency_ms)
    if untouched_ms and point.measured_latency_ms:
        speed = untouched_ms / point.measured_latency_ms
    return Factors(size, speed, measured)


def _untouched_ms(data: ReportData, point: Point) -> float | None:
    """What the uncompressed file took side by side with the point's: another sitting's may have been on a machine in another
    mood."""
    return point.measured_baseline_latency_ms or data.baseline.measured_latency_ms


def within_model_error(data: ReportData, point: Point) -> bool:
    """Whether the predicted gain in latency is smaller than the prediction's error (of the two latencies together)."""
    if point.is_baseline:
        return False
    pair = [predicted_latency(data, each) for each in (data.baseline, point)]
    error_ms = math.hypot(*((each.error or 0.0) * each.ms for each in pair))
    return pair[0].ms - pair[1].ms < error_ms


def predicted_slower(data: ReportData, point: Point) -> bool:
    """Whether the point is predicted to be slower than the uncompressed network, by more than the prediction's error."""
    base, own = (predicted_latency(data, each) for each in (data.baseline, point))
    return own.ms - base.ms > math.hypot((base.error or 0.0) * base.ms, (own.error or 0.0) * own.ms)


def measured_no_faster(data: ReportData, point: Point) -> bool:
    """Whether the measured gain in latency is within the error of the two timings, or is none."""
    base, own, base_ms = measured_latency(data.baseline), measured_latency(point), _untouched_ms(data, point)
    if point.is_baseline or base is None or own is None or base_ms is None:
        return False
    return base_ms - own.ms <= math.hypot((base.error or 0.0) * base_ms, (own.error or 0.0) * own.ms)


@dataclass(frozen=True)
class Drop:
    """How much worse than the uncompressed model (negative: better); the interval only where files were scored."""

    value: float
    low: float | None
    high: float | None
    basis: Basis

    @property
    def indistinguishable(self) -> bool:
        """Whether the paired 95 % interval holds 0."""
        return self.low is not None and self.high is not None and self.low <= 0.0 <= self.high


def drop(data: ReportData, point: Point) -> Drop:
    """The drop on the best evidence that ``point`` and the baseline share."""
    base, metric = data.baseline, data.task.metric
    if base.measured_metric is not None and point.measured_metric is not None:
        value = metric.drop(base.measured_metric, point.measured_metric)
        return Drop(value, point.drop_low, point.drop_high, "exported file, test split")
    if base.metric_test is not None and point.metric_test is not None:
        return Drop(metric.drop(base.metric_test, point.metric_test), None, None, "simulated model, test split")
    return Drop(metric.drop(base.metric_search, point.metric_search), None, None, "simulated model, search split")


@dataclass(frozen=True)
class FrontRow:
    """A point as the front's picture shows it. ``speed``: how many times faster than the uncompressed model, by two
    measurements of one sitting, or two predictions."""

    point: Point
    metric: float
    latency: Latency
    speed: float
    size_bytes: int


@dataclass(frozen=True)
class FrontView:
    """The front with all its points on one footing: exported files only where every point was measured."""

    basis: Basis
    latency_measured: bool
    rows: tuple[FrontRow, ...]


def front_view(data: ReportData) -> FrontView:
    points = data.points
    scored = all(point.measured_metric is not None for point in points)
    timed = all(point.measured_latency_ms is not None for point in points)
    sized = all(point.measured_size_bytes is not None for point in points)
    basis: Basis = "exported file, test split" if scored else "simulated model, search split"
    rows = tuple(
        FrontRow(
            point=point,
            metric=point.metric_search if not scored or point.measured_metric is None else point.measured_metric,
            latency=best_latency(data, point) if timed else predicted_latency(data, point),
            speed=factors(data, point).speed if timed else data.baseline.latency_ms / point.latency_ms,
            size_bytes=point.size_bytes if not sized or not point.measured_size_bytes else point.measured_size_bytes,
        )
        for point in points
    )
    return FrontView(basis, timed, rows)


@dataclass(frozen=True)
class Window:
    """The part of the metric's axis to show first, margins included, and the trials outside it, all on one side."""

    low: float
    high: float
    side: Literal["below", "above"]
    hidden: tuple[int, ...]


def metric_window(data: ReportData, view: FrontView) -> Window | None:
    """Around the points within WINDOW_SHARE of the uncompressed model; None where the picture should show all.

    A ruined network would else squeeze all others into a corner. All are shown where every point is near or none is.
    """
    task_metric, base = data.task.metric, view.rows[0].metric
    inside = [row.metric for row in view.rows if task_metric.near(base, row.metric, WINDOW_SHARE)]
    if len(inside) in (1, len(view.rows)):
        return None
    low, high = min(inside), max(inside)
    # (Nearly) equal points have no span of their own: the nearest point outside then gives the picture its scale.
    nearest = min(abs(row.metric - base) for row in view.rows if not low <= row.metric <= high)
    margin = _WINDOW_MARGIN * max(high - low, 0.01 * nearest)
    low, high = low - margin, high + margin
    hidden = tuple(row.point.trial for row in view.rows if not low <= row.metric <= high)
    return Window(low, high, "below" if task_metric.direction == "maximize" else "above", hidden) if hidden else None


def knee(data: ReportData, trial: int | None = None) -> Point:
    """The point nearest to the ideal one: metric on the search split, log latency and log size, each scaled to 0…1; of those
    that are not ruined, if there are any.

    ``trial`` names the point where the caller has found the knee already. The baseline where there is no other point.

    Raises:
        RunError: ``trial`` is not on the front.
    """
    candidates = data.front or (data.baseline,)
    if trial is not None:
        named = [point for point in candidates if point.trial == trial]
        if not named:
            known = ", ".join(str(point.trial) for point in candidates)
            raise RunError(f"the knee must be a trial of the front; got {trial}; it holds {known}")
        return named[0]
    base = data.baseline.metric_search
    place = pareto.knee(
        [data.task.metric.drop(base, point.metric_search) for point in candidates],
        [point.latency_ms for point in candidates],
        [point.size_bytes for point in candidates],
        tuple(share * abs(base) or math.inf for share in pareto.KNEE_SHARES),
    )
    return candidates[place]


@dataclass(frozen=True)
class Pick:
    """A point worth a card, and the names that it earns."""

    names: tuple[str, ...]
    point: Point


def picks(data: ReportData, knee_point: Point) -> tuple[Pick, ...]:
    """The uncompressed model, the knee, the smallest, fastest and most accurate point; one card a point.

    The smallest and the fastest are sought within :data:`autocomp.pareto.NEAR_SHARE` of the uncompressed metric, on the
    search split, or within the drop that was asked for: a ruined network is small and fast as well. Where no point is that
    near, and no drop was asked for, the names say so; where none is smaller or faster than the uncompressed model, none has the
    name.
    """
    chosen: list[tuple[str, Point]] = [("uncompressed", data.baseline)]
    if data.front:
        view = {row.point.trial: row for row in front_view(data).rows}
        metric, base = data.task.metric, data.baseline.metric_search

        # What stands first, as :func:`autocomp.search.points.goal_trial` has it: of equal ones the better one in the rest.
        def costs(point: Point) -> tuple[float, float, int]:
            row = view[point.trial]
            return metric.drop(base, point.metric_search), 1.0 / row.speed, row.size_bytes

        if data.allowed is None:
            good = [point for point in data.front if metric.near(base, point.metric_search, pareto.NEAR_SHARE)]
            share = f"within {100 * pareto.NEAR_SHARE:g} %"
        else:  # which the whole front keeps
            good, share = list(data.front), f"within a {data.allowed}"
        limit = share if good else f"(no point {share})"
        smallest = min(good or data.front, key=lambda p: (costs(p)[2], *costs(p)))
        fastest = min(good or data.front, key=lambda p: (costs(p)[1], *costs(p)))
        untouched = view[data.baseline.trial]
        chosen.append(("knee", knee_point))
        if view[smallest.trial].size_bytes < untouched.size_bytes:
            chosen.append((f"smallest {limit}", smallest))
        if view[fastest.trial].speed > 1.0:
            chosen.append((f"fastest {limit}", fastest))
        chosen.append(("most accurate", min(data.front, key=costs)))
    trials = dict.fromkeys(point.trial for _, point in chosen)
    return tuple(
        Pick(tuple(name for name, p in chosen if p.trial == trial), next(p for _, p in chosen if p.trial == trial))
        for trial in trials
    )


@dataclass(frozen=True)
class Interval:
    """A point's drop, with the paired interval."""

    point: Point
    drop: Drop


def intervals(data: ReportData, points: Sequence[Point]) -> tuple[Interval, ...]:
    """Of those points that have a paired interval, the uncompressed one left out."""
    found = [Interval(point, drop(data, point)) for point in points if not point.is_baseline]
    return tuple(each for each in found if each.drop.low is not None and each.drop.high is not None)


@dataclass(frozen=True)
class Comparison:
    """Predicted against measured: ``pairs`` are (trial, predicted, measured).

    ``band`` is what counts as agreement: relative, or absolute where ``absolute``.
    """

    quantity: Quantity
    band: float
    absolute: bool
    pairs: tuple[tuple[int, float, float], ...]

    @property
    def errors(self) -> tuple[float, ...]:
        """Predicted minus measured: a share of the measured value, or in the metric's unit where ``absolute``."""
        return tuple((p - m) / (1.0 if self.absolute else abs(m) or 1.0) for _, p, m in self.pairs)

    @property
    def within(self) -> int:
        """The number of pairs inside the band."""
        return sum(abs(error) <= self.band + 1e-12 for error in self.errors)


def comparisons(data: ReportData) -> tuple[Comparison, ...]:
    """Latency within 20 %, size within 1 %, the metric within 0.5 points or two examples (within 1 % if no share)."""
    share = data.metric_is_share
    points = data.points
    latency = [(p.trial, p.latency_ms, p.measured_latency_ms) for p in points if p.measured_latency_ms is not None]
    size = [(p.trial, float(p.size_bytes), float(p.measured_size_bytes)) for p in points if p.measured_size_bytes]
    metric = [
        (p.trial, p.metric_test, p.measured_metric)
        for p in points
        if p.metric_test is not None and p.measured_metric is not None
    ]
    two_examples = 2 / data.task.test_examples if data.task.test_examples else 0.0
    return (
        Comparison("latency", LATENCY_BAND, False, tuple(latency)),
        Comparison("size", SIZE_BAND, False, tuple(size)),
        Comparison("metric", max(METRIC_BAND, two_examples) if share else SIZE_BAND, share, tuple(metric)),
    )


def depth(error: float) -> float:
    """How strongly an error of the output is drawn, 0 … 1, by its logarithm."""
    span = math.log10(STRONGEST / WEAKEST)
    return min(max(math.log10(max(error, WEAKEST) / WEAKEST) / span, 0.0), 1.0)
