"""The pictures as files: drawn from :mod:`~autocomp.report.views` onto figures of their own, never a global state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autocomp.report import words
from autocomp.report.data import LayerRow, Point, ReportData
from autocomp.report.figure import ACCENT, BAND, BLUE, INK, QUIET, new_figure, plain, save, shades, tidy
from autocomp.report.pictures import (
    growth_figure,
    held_out_figure,
    intervals_figure,
    rungs_figure,
    sensitivity_figure,
    spent_figure,
)
from autocomp.report.shown import Shown
from autocomp.report.views import Comparison, FrontRow, comparisons, front_view, intervals, metric_window

if TYPE_CHECKING:  # matplotlib loads on use
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_NAMED_LAYERS = 60
_MOST_NAMED_POINTS = 16
#: The share of a picture's width at either side where names go inwards.
_SIDE = 0.12


def draw(run: Shown, folder: Path) -> tuple[Path, ...]:
    """Write the page's pictures as PNG and SVG into ``folder``; return the files.

    ``plan`` and ``time_and_bytes`` are of the knee. What the run does not tell is left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data, chosen = run.data, run.knee
    rows, found = data.layer_plan(chosen), intervals(data, [one.point for one in run.listed])
    figures = {
        "front": front_figure(data, chosen, [one.point.trial for one in run.listed]),
        "predicted_vs_measured": agreement_figure(data),
        "plan": plan_figure(rows, _plan_title(data, chosen)) if rows else None,
        "time_and_bytes": spent_figure(data, chosen),
        "drops": intervals_figure(data, found) if found else None,
        "hypervolume": growth_figure(run.growth),
        "rungs": rungs_figure(data, run.climbed),
        "held_out": held_out_figure(data),
        "sensitivities": sensitivity_figure(data),
    }
    drawn = {name: figure for name, figure in figures.items() if figure is not None}
    return tuple(path for name, figure in drawn.items() for path in save(figure, folder / name))


def _log_ticks(axes: Axes, values: Sequence[float]) -> None:
    """A log x axis with plain numbers; few decades need the ticks between the powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    span = max(values) / min(values)
    subs = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0) if span < 4 else (1.0, 2.0, 5.0) if span < 100 else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(min(values) / span**0.12 / 1.03, max(values) * span**0.08 * 1.03)  # room for labels


def front_figure(data: ReportData, chosen: Point, listed: Sequence[int] = ()) -> Figure:
    """Accuracy against latency coloured by size, and accuracy against size coloured by latency.

    Args:
        listed: trials that are named where there are too many to name them all.
    """
    view = front_view(data)
    figure = new_figure(11, 4.8)
    left, right = figure.subplots(1, 2, sharey=True)
    scale = 100.0 if data.metric_is_share else 1.0
    metric = [scale * row.metric for row in view.rows]
    ms = [row.latency.ms for row in view.rows]
    kilobytes = [row.size_bytes / 1000 for row in view.rows]
    named = [
        row for row in view.rows if len(view.rows) <= _MOST_NAMED_POINTS or row.point.trial in (chosen.trial, *listed)
    ]
    _panel(left, (ms, metric, kilobytes), "size (kB)")
    _panel(right, (kilobytes, metric, ms), "latency (ms)")
    if not view.latency_measured:
        error = [row.latency.ms * (row.latency.error or 0.0) for row in view.rows]
        left.errorbar(ms, metric, xerr=error, fmt="none", ecolor=QUIET, elinewidth=0.9, alpha=0.6, zorder=1)
        ends = [m - e for m, e in zip(ms, error)] + [m + e for m, e in zip(ms, error)]
        _log_ticks(left, [end for end in ends if end > 0] + ms)
    window = metric_window(data, view)
    if window is None:
        left.margins(y=0.12)
    else:
        left.set_ylim(scale * window.low, scale * window.high)
        said = f"{words.hidden(len(window.hidden), window.side)} this picture ({words.hidden_meaning(data)})"
        figure.supxlabel(plain(said), fontsize=9, color=ACCENT, x=0.01, ha="left")
    for row in named:
        value = scale * row.metric
        _name(left, row, (row.latency.ms, value), chosen)
        _name(right, row, (row.size_bytes / 1000, value), chosen)
    left.set_xlabel(words.latency_label(view))
    left.set_ylabel(plain(words.metric_label(data, view)))
    right.set_xlabel("size of the file (kB)")
    figure.suptitle(plain(f"{data.task.name} on {data.target.name}"), color=INK, fontweight="bold", x=0.01, ha="left")
    return figure


def _panel(axes: Axes, values: tuple[list[float], list[float], list[float]], colour: str) -> None:
    from matplotlib.colors import LogNorm

    x, y, shade = values
    tidy(axes)
    _log_ticks(axes, x)
    norm = LogNorm(min(shade), max(shade) if max(shade) > min(shade) else 1.01 * min(shade))
    points = axes.scatter(x[1:], y[1:], c=shade[1:], norm=norm, s=62, cmap="viridis", edgecolors="white", zorder=3)
    axes.scatter(x[:1], y[:1], marker="D", s=58, color=INK, zorder=3)
    bar = axes.figure.colorbar(points, ax=axes, label=colour, pad=0.02)
    bar.outline.set_visible(False)
    _log_bar(bar.ax, shade)


def _log_bar(axes: Axes, values: Sequence[float]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    subs = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if max(values) / min(values) < 6 else (1.0, 2.0, 5.0)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _name(axes: Axes, row: FrontRow, at: tuple[float, float], chosen: Point) -> None:
    is_knee = row.point.trial == chosen.trial
    if is_knee:
        axes.scatter(*at, s=170, facecolors="none", edgecolors=ACCENT, linewidths=1.8, zorder=4)
    label = f"{row.point.label} (knee)" if is_knee and not row.point.is_baseline else row.point.label
    place = (
        {"xytext": (8, -17), "ha": "right"} if row.point.is_baseline else {"xytext": (0, 10), "ha": _inwards(axes, at)}
    )
    colour = ACCENT if is_knee else INK if row.point.is_baseline else QUIET
    axes.annotate(label, at, textcoords="offset points", fontsize=8, color=colour, **place)  # type: ignore[arg-type]


def _inwards(axes: Axes, at: tuple[float, float]) -> str:
    """How a name stands at a point, so that it stays off the sides of the picture. The limits of ``axes`` are final."""
    across, _ = axes.transAxes.inverted().transform(axes.transData.transform(at))
    return "left" if across < _SIDE else "right" if across > 1.0 - _SIDE else "center"


def _plan_title(data: ReportData, point: Point) -> str:
    name = point.name if point.is_baseline else f"{point.name}, the knee"
    return f"Plan of {name}: {data.task.name} on {data.target.name}"


def plan_figure(rows: Sequence[LayerRow], title: str) -> Figure:
    """One line a layer in network order, four columns: channels kept, rank left, weight bits, weights left."""
    named = len(rows) <= _MOST_NAMED_LAYERS
    figure = new_figure(8.4, 1.5 + (0.27 * len(rows) if named else 0.12 * len(rows)))
    axes = figure.subplots()
    cells = [_cells(row) for row in rows]
    axes.imshow([[share for share, _ in line] for line in cells], cmap=shades(), vmin=0.0, vmax=1.0, aspect="auto")
    for y, line in enumerate(cells):
        for x, (share, text) in enumerate(line):
            ink = QUIET if share == 1.0 else "white" if share < 0.45 else INK
            if named:
                axes.text(x, y, text, ha="center", va="center", fontsize=8, color=ink)
    axes.set_xticks(range(4), ["channels kept", "rank kept", "bits (weight / input)", "weights kept (not zero)"])
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelsize=8.5)
    axes.set_yticks(range(len(rows)) if named else [], [plain(row.layer.name) for row in rows] if named else None)
    axes.set_xticks([0.5, 1.5, 2.5], minor=True)
    axes.set_yticks([y - 0.5 for y in range(1, len(rows))], minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)
    figure.suptitle(plain(title), color=INK, fontweight="bold", fontsize=11, x=0.01, ha="left")
    return figure


def _cells(row: LayerRow) -> tuple[tuple[float, str], ...]:
    """(share left, words) of the four columns; a share of 1 is an untouched cell."""
    if row.dropped:
        return ((0.0, "dropped"),) * 4
    rank, form = row.plan.rank, row.format
    return (
        (row.channels_kept, f"{row.channels_kept:.0%} of {row.layer.outputs}"),
        (row.rank_share, "full" if rank is None else f"{rank.r} of {row.layer.full_rank}"),
        (1.0, "float 32") if form is None else (form.weight_bits / 32, form.name),
        (1.0 - row.zeros, f"{1.0 - row.zeros:.0%}"),
    )


def agreement_figure(data: ReportData) -> Figure:
    """Predicted minus measured for latency, size and the metric, with the band that counts as agreement."""
    figure = new_figure(12, 3.9)
    for axes, comparison in zip(figure.subplots(1, 3), comparisons(data)):
        _agreement_panel(axes, data, comparison)
    return figure


def _agreement_panel(axes: Axes, data: ReportData, comparison: Comparison) -> None:
    tidy(axes)
    unit, scale = words.comparison_unit(data, comparison)
    axes.set_title(
        plain(f"{words.comparison_name(data, comparison)}: {words.agreement(data, comparison)}"), fontsize=10
    )
    if not comparison.pairs:
        axes.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axes.transAxes, color=QUIET)
        axes.set(xticks=[], yticks=[])
        return
    measured = [scale * value for _, _, value in comparison.pairs]
    errors = [100 * error if words.in_percent(data, comparison) else error for error in comparison.errors]
    band = 100 * comparison.band if words.in_percent(data, comparison) else comparison.band
    if comparison.quantity != "metric":
        _log_ticks(axes, measured)
    axes.axhspan(-band, band, color=BAND, lw=0)
    axes.axhline(0, color=QUIET, linewidth=1)
    axes.scatter(measured, errors, s=42, color=BLUE, edgecolors="white", zorder=3)
    reach = 1.25 * max(band, *(abs(error) for error in errors))
    axes.set_ylim(-reach, reach)
    axes.set_xlabel(plain(f"measured {unit}"))
    axes.set_ylabel(words.error_label(data, comparison))
