"""The runs that a page shows, one or several, and what their points are called there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from autocomp.errors import RequestError
from autocomp.report.data import Point, ReportData
from autocomp.report.handful import Listed, handful
from autocomp.report.tried import Climbed, Growth, climbed, growth
from autocomp.report.views import Window, front_view, knee, metric_window


@dataclass(frozen=True)
class Marked:
    """Trials of a front that a caller has found: its ``knee``, and the end of it that the run was asked for; None where it has
    not, or there is none."""

    knee: int | None = None
    wanted: int | None = None


@dataclass(frozen=True)
class Shown:
    """A run on a page, which ``opens`` at one of its points. ``place`` counts from 1 where there are several, and is None where
    it is alone."""

    data: ReportData
    knee: Point
    opens: Point
    listed: tuple[Listed, ...]
    growth: Growth
    climbed: tuple[Climbed, ...]
    place: int | None = None

    def key(self, point: Point) -> str:
        """What a point goes by in the page and in its address."""
        return str(point.trial) if self.place is None else f"{self.place}-{point.trial}"

    def name(self, point: Point) -> str:
        """What it is called in sentences."""
        return point.name if self.place is None else f"{self.data.name}, {point.name}"

    def names(self, point: Point) -> tuple[str, ...]:
        """The names that it earned: knee, smallest and the like."""
        return next((one.names for one in self.listed if one.point.trial == point.trial), ())

    @property
    def title(self) -> str:
        return f"{self.data.task.name} on {self.data.target.name}"


def shown(runs: Sequence[ReportData], marked: Sequence[Marked] = ()) -> tuple[Shown, ...]:
    """Runs as a page shows them.

    Args:
        marked: of each run what was found already; a page opens at what was asked for, else at the knee.

    Raises:
        RequestError: their metrics are not one, so that they have no common axis.
    """
    for run in runs[1:]:
        if run.task.metric != runs[0].task.metric:
            raise RequestError(
                "runs on one page must have one metric; "
                f"{runs[0].run} has {_metric(runs[0])}, {run.run} has {_metric(run)}; make a page of each"
            )
    found = []
    for index, run in enumerate(_told_apart(runs)):
        of_run = marked[index] if marked else Marked()
        point = knee(run, of_run.knee)
        opens = next((one for one in run.points if one.trial == of_run.wanted), point)
        place = index + 1 if len(runs) > 1 else None
        found.append(Shown(run, point, opens, handful(run, point), growth(run), climbed(run), place))
    return tuple(found)


def shared_window(runs: Sequence[Shown]) -> Window | None:
    """The part of the metric's axis to show first: that every run's own window is in; None where it shows all points."""
    views = [front_view(run.data) for run in runs]
    windows = [metric_window(run.data, view) for run, view in zip(runs, views, strict=True)]
    sides = [window.side for window in windows if window is not None]
    if not sides:
        return None
    values = [[row.metric for row in view.rows] for view in views]
    low = min(window.low if window else min(of_run) for window, of_run in zip(windows, values, strict=True))
    high = max(window.high if window else max(of_run) for window, of_run in zip(windows, values, strict=True))
    outside = tuple(row.point.trial for view in views for row in view.rows if not low <= row.metric <= high)
    return Window(low, high, sides[0], outside) if outside else None


def _told_apart(runs: Sequence[ReportData]) -> list[ReportData]:
    """With names by which each is known: those of the same folder name by all of their path."""
    places = {run.name: {other.run for other in runs if other.name == run.name} for run in runs}
    return [replace(run, called=run.run) if len(places[run.name]) > 1 else run for run in runs]


def _metric(run: ReportData) -> str:
    metric = run.task.metric
    return f"{metric.name} ({metric.unit or 'no unit'}, to {metric.direction})"
