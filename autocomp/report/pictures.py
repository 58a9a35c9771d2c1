"""Pictures of what explains a run, as files: where time and bytes go, what drops are sure, what the search found when, and
what each choice does by itself."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from autocomp.report import words
from autocomp.report.data import Point, ReportData, Sensitivity
from autocomp.report.figure import ACCENT, BLUE, INK, QUIET, new_figure, plain, shades, tidy
from autocomp.report.tried import Climbed, Fate, Growth, by_fate
from autocomp.report.views import Interval, depth

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Of more layers names would not be readable.
MOST_NAMES = 40
#: Of more decisions a picture would not be.
MOST_DECISIONS = 150


def spent_figure(data: ReportData, point: Point) -> Figure | None:
    """Predicted time and bytes of every layer, before and after; None where the run does not tell."""
    before, after = data.spent.get(data.baseline.plan_hash), data.spent.get(point.plan_hash)
    if before is None or after is None:
        return None
    names = [*(layer.name for layer in data.layers), "no layer of its own"]
    figure = new_figure(min(11.0, 3.0 + 0.28 * len(names)), 5.2)
    upper, lower = figure.subplots(2, 1, sharex=True)
    times = [[one.latency_ms.get(name, 0.0) for name in names[:-1]] for one in (before, after)]
    others = [sum(one.other_latency_ms.values()) for one in (before, after)]
    sizes = [[one.size_bytes.get(name, 0) / 1000 for name in names[:-1]] for one in (before, after)]
    left = [one.other_size_bytes / 1000 for one in (before, after)]
    _pairs(upper, [*times[0], others[0]], [*times[1], others[1]], "ms (predicted)")
    _pairs(lower, [*sizes[0], left[0]], [*sizes[1], left[1]], "kB (predicted)")
    if len(names) <= MOST_NAMES:
        lower.set_xticks(range(len(names)), [plain(name) for name in names], rotation=40, ha="right", fontsize=8)
    else:
        lower.set_xticks([])
        lower.set_xlabel("layers, from input to output")
    title = f"Where time and bytes go, uncompressed (outlined) and in {point.name}"
    figure.suptitle(plain(title), color=INK, fontweight="bold", fontsize=11, x=0.01, ha="left")
    return figure


def _pairs(axes: Axes, before: list[float], after: list[float], label: str) -> None:
    tidy(axes)
    axes.bar(range(len(after)), after, color=BLUE, width=0.8)
    axes.bar(range(len(before)), before, facecolor="none", edgecolor=QUIET, width=0.8, linewidth=1)
    axes.set_ylabel(label)


def intervals_figure(data: ReportData, found: tuple[Interval, ...]) -> Figure:
    """Drops of exported files with their paired intervals."""
    scale = 100.0 if data.metric_is_share else 1.0
    figure = new_figure(7.5, 1.4 + 0.32 * len(found))
    axes = figure.subplots()
    tidy(axes)
    axes.axvline(0.0, color=QUIET, linewidth=1)
    for place, each in enumerate(found):
        low, high = scale * (each.drop.low or 0.0), scale * (each.drop.high or 0.0)
        colour = QUIET if each.drop.indistinguishable else BLUE
        axes.plot([low, high], [place, place], color=colour, linewidth=2)
        axes.plot([scale * each.drop.value], [place], "o", color=colour)
    axes.set_yticks(range(len(found)), [plain(each.point.name) for each in found])
    axes.invert_yaxis()
    axes.set_xlabel(plain(f"{words.lost_on_test(data)}; grey: indistinguishable from none"))
    return figure


def growth_figure(found: Growth) -> Figure:
    """The hypervolume after every trial."""
    figure = new_figure(7.5, 3.6)
    axes = figure.subplots()
    tidy(axes)
    axes.step(found.trials, found.volumes, where="post", color=BLUE, linewidth=2)
    axes.set_xlabel("trials")
    axes.set_ylabel("hypervolume (search split, predicted costs)")
    axes.set_ylim(bottom=0.0)
    return figure


def held_out_figure(data: ReportData) -> Figure | None:
    """The latency model on networks that it never saw, predicted against measured; None where they were not kept."""
    held = data.held_out
    if held is None or not held.pairs:
        return None
    figure = new_figure(5.2, 4.6)
    axes = figure.subplots()
    tidy(axes)
    values = [value for pair in held.pairs for value in pair]
    ends = (min(values) / 1.2, max(values) * 1.2)
    for factor, style in ((1.0, "-"), (0.9, ":"), (1.1, ":")):
        axes.plot(ends, [factor * end for end in ends], style, color=QUIET, linewidth=1)
    axes.plot(
        [one for one, _ in held.pairs], [other for _, other in held.pairs], "o", color=BLUE, markersize=4, alpha=0.7
    )
    axes.set(xscale="log", yscale="log", xlabel="measured (ms)", ylabel="predicted (ms)")
    axes.set_title(f"{held.networks} held-out networks: {held.within_10:.0%} within ±10 % (dotted)", fontsize=10)
    return figure


def rungs_figure(data: ReportData, found: tuple[Climbed, ...]) -> Figure | None:
    """The metric of every trial on ever larger parts of the search split; None where all saw the whole at once."""
    if not found:
        return None
    scale = 100.0 if data.metric_is_share else 1.0
    figure = new_figure(7.5, 3.6)
    axes = figure.subplots()
    tidy(axes)
    colours: dict[Fate, str] = {"stopped": QUIET, "complete": BLUE, "front": ACCENT}
    for fate, ones in by_fate(found).items():
        for place, one in enumerate(ones):
            label = f"{fate} ({len(ones)})" if place == 0 else None
            metrics = [scale * value for value in one.metrics]
            axes.plot(
                one.shares, metrics, "o-", color=colours[fate], markersize=3, linewidth=0.9, alpha=0.7, label=label
            )
    shares = sorted({share for one in found for share in one.shares})
    axes.set_xscale("log")
    axes.set_xticks(shares, [f"{100 * share:.3g} %" for share in shares])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("part of the search split that was looked at")
    axes.set_ylabel(plain(data.task.metric.name + words.in_unit(data)))
    axes.legend(frameon=False, fontsize=8)
    return figure


def sensitivity_figure(data: ReportData) -> Figure | None:
    """The error that each option of each decision makes by itself; None where it was not measured."""
    shown = data.sensitivities[:MOST_DECISIONS]
    if not shown:
        return None
    columns = max(len(one.errors) for one in shown) - 1
    figure = new_figure(3.5 + 0.8 * columns, 1.6 + 0.2 * len(shown))
    axes = figure.subplots()
    depths = [_depths(one, columns) for one in shown]
    axes.imshow(depths, cmap=shades().reversed(), vmin=0.0, vmax=1.0, aspect="auto")
    for y, one in enumerate(shown):
        for x, error in enumerate(one.errors[1:]):
            ink = "white" if depths[y][x] > 0.55 else INK
            axes.text(x, y, words.brief(error), ha="center", va="center", fontsize=7, color=ink)
    axes.set_yticks(range(len(shown)), [plain(one.decision) for one in shown], fontsize=7)
    axes.set_xticks(range(columns), [f"option {place + 1}" for place in range(columns)], fontsize=8)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    left = len(data.sensitivities) - len(shown)
    more = f"; {left} more decisions are in report.html" if left else ""
    axes.set_xlabel(f"error of the output as a share of its variance{more}", color=ACCENT if left else INK)
    return figure


def _depths(one: Sensitivity, columns: int) -> list[float]:
    found = [depth(error) for error in one.errors[1:]]
    return [*found, *([math.nan] * (columns - len(found)))]
