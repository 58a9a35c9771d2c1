"""The page's first part: what was searched, the points worth a look, limits to set, the front, and every point in a table."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from autocomp.report import words
from autocomp.report.data import Point, ReportData
from autocomp.report.handful import Listed
from autocomp.report.markup import badges, latency, plot, quiet, scroll, section
from autocomp.report.shown import Shown, shared_window
from autocomp.report.views import (
    best_latency,
    drop,
    factors,
    front_view,
    measured_latency,
    predicted_latency,
)
from autocomp.report.words import Note


def headline(runs: Sequence[Shown]) -> str:
    if len(runs) == 1:
        return f"<header><p class='eyebrow'>autocomp report</p>{_about(runs[0].data, 'h1')}</header>"
    names = " and ".join(dict.fromkeys(run.title for run in runs))
    each = "".join(f"<li><b>{escape(run.data.name)}</b>{_about(run.data)}</li>" for run in runs)
    return (
        f"<header><p class='eyebrow'>autocomp report</p><h1>{escape(names)}</h1><ul class='runs'>{each}</ul></header>"
    )


def _about(data: ReportData, title: str | None = None) -> str:
    target = data.target
    threads = "" if target.threads is None else f"{target.threads} thread{'s' * (target.threads != 1)}"
    batch = "" if target.batch is None else f"batch {target.batch}"
    known = [target.device, target.runtime_words, target.format, threads, batch]
    head = f"<{title}>{escape(data.task.name)} on {escape(target.name)}</{title}>" if title else ""
    return (
        f"{head}<p class='facts'>{escape(' · '.join(fact for fact in known if fact))}</p>"
        f"<p class='promise'>{escape(words.latency_promise(data))}</p>" + (quiet(target.note) if target.note else "")
    )


def choose(runs: Sequence[Shown]) -> str:
    said = " ".join(dict.fromkeys(words.near_meaning(run.data) for run in runs))
    if not any(run.data.front for run in runs):
        said = "The search found no point besides the uncompressed model."
    return section(
        "choose",
        "Choose",
        f"{_limits(runs[0].data)}{''.join(map(_cards, runs))}{quiet(said)}{_fronts(runs)}{_table(runs)}",
    )


def _limits(data: ReportData) -> str:
    unit, lost = data.change_unit.strip(), data.lost
    rows = "".join(
        f"<div class='limit'><label for='limit-{name}'>{label} at most</label>"
        f"<input type='range' id='limit-{name}' data-limit='{name}' min='0' max='1000' value='1000'>"
        f"<span><input type='number' id='number-{name}' data-limit='{name}' min='0' step='any' placeholder='any' "
        f"aria-label='{label} at most, {escape(unit_name)}'> {escape(unit_name)}</span></div>"
        for name, label, unit_name in (("ms", "Latency", "ms"), ("kb", "Size", "kB"), ("drop", lost.capitalize(), unit))
    )
    return (
        f"<form id='limits' class='needs-script' aria-label='limits'>{rows}"
        "<div class='outcome'><p id='qualify' role='status'></p><button type='reset'>no limits</button></div>"
        f"<div id='best'></div>"
        + quiet(
            f"{lost.capitalize()}s are limited by the search split: a point that is chosen by the test split would no longer "
            "be tested by it."
        )
        + "</form>"
    )


def _cards(run: Shown) -> str:
    head = "" if run.place is None else f"<h3 class='run-name'>{escape(run.data.name)}: {escape(run.title)}</h3>"
    body = "".join(_card(run, one) for one in run.listed)
    return f'{head}<div class="cards" role="group" aria-label="points worth a look">{body}</div>'


def _card(run: Shown, one: Listed) -> str:
    data, point = run.data, one.point
    value = point.measured_metric if point.verified else point.metric_search
    bytes_now = point.measured_size_bytes or point.size_bytes
    gain, change = factors(data, point), drop(data, point)
    split = "exported file, test split" if point.verified else "simulated model, search split"
    against = "" if point.is_baseline else f" <b>{words.smaller(gain)}</b>"
    faster = "" if point.is_baseline else f" <b>{words.faster(gain)}</b>"
    worse = "" if point.is_baseline else f"<p class='drop'>{escape(words.drop_words(data, change))}</p>"
    said = [note.text for note in words.notes(data, point) if note.about != "drop"]
    title = ", ".join(one.names) or "in between"
    key = escape(run.key(point))
    return (
        f"<article class='card{' base' if point.is_baseline else ''}' data-point='{key}'>"
        f"<h3>{escape(title)}</h3>"
        f"<p class='big'>{escape(words.metric(data, value))}</p>"
        f"<p class='what'>{escape(data.task.metric.name)} ({split})</p>{worse}"
        f"<p><span class='number'>{words.size(bytes_now)}</span>{against}</p>"
        f"<p>{latency(best_latency(data, point), faster)}</p>"
        f"<p class='why'>{escape(one.why)}</p>{badges(said)}"
        f"<button type='button' data-key='{key}'>{escape(point.name)}</button></article>"
    )


def _fronts(runs: Sequence[Shown]) -> str:
    views = [front_view(run.data) for run in runs]
    metric = runs[0].data.task.metric.name
    basis = " or ".join(dict.fromkeys(view.basis for view in views))
    timed = " or ".join(
        dict.fromkeys(
            "measured on the exported files" if view.latency_measured else "predicted; the bars are the model's error"
            for view in views
        )
    )
    third = "colour is the run" if len(runs) > 1 else "colour is the third of the three"
    return (
        "<h3 class='spaced'>The front</h3>"
        f"<div class='needs-script toggles'><label><input type='checkbox' id='all-trials'> every trial, as it was searched "
        "(search split, predicted costs)</label> <span id='others' role='status'></span></div>"
        f"<p class='quiet' id='basis'>{escape(metric)}: {basis}. Latency: {timed}; {third}. "
        f"Click a point, or choose it in the table below.</p>{_window_note(runs)}"
        "<p id='legend'></p><div class='plots'>"
        + plot("front-ms", f"{metric} against latency; the same numbers stand in the table below")
        + plot("front-kb", f"{metric} against size; the same numbers stand in the table below")
        + plot("front-both", f"size against latency, coloured by {metric}; the same numbers stand in the table below")
        + "</div>"
    )


def _window_note(runs: Sequence[Shown]) -> str:
    """That points lie outside the pictures and how to see them; the button is for those who cannot double-click."""
    window = shared_window(runs)
    if window is None:
        return ""
    said = f"{words.hidden(len(window.hidden), window.side)} ({words.hidden_meaning(runs[0].data)})"
    return (
        f"<p class='window needs-script' data-whole='false'><span class='zoomed'>{escape(said)}; double-click to see all</span>"
        "<span class='whole'>All points are shown; double-click to zoom in again</span> "
        "<button type='button' id='window'>see all</button></p>"
    )


#: Title, where it is the same for all metrics; second line; and which notes stand in the column.
_COLUMNS = (
    ("search", "simulated", ""),
    ("test", "simulated", ""),
    ("test", "exported file", "measured metric"),
    ("", "95 % interval", "drop"),
    ("bytes", "predicted", ""),
    ("bytes", "measured", ""),
    ("latency", "predicted", "predicted latency"),
    ("latency", "measured", "measured latency"),
    ("against", "uncompressed", ""),
)


def _table(runs: Sequence[Shown]) -> str:
    head = "<th scope='col'>point</th>" + "".join(
        f"<th scope='col'>{top or runs[0].data.lost}<small>{below}</small></th>" for top, below, _ in _COLUMNS
    )
    body = "".join(_heading(run) + "".join(_row(run, each) for each in run.data.points) for run in runs)
    count = sum(len(run.data.points) for run in runs)
    more = count - sum(len(run.listed) for run in runs)
    button = f"<button type='button' id='more' class='needs-script' aria-expanded='false'>all {count} points</button>"
    metric = escape(runs[0].data.task.metric.name)
    return (
        "<h3 class='spaced'>Every point, predicted beside measured</h3>"
        f"<p class='quiet'>search and test: {metric} on that split. ± beside a measured latency is its standard "
        f"error, beside any other that of the prediction. {button if more > 0 else ''}</p>"
        + scroll(
            "every point",
            f"<table class='numbers' id='points'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>",
        )
    )


def _heading(run: Shown) -> str:
    if run.place is None:
        return ""
    return f"<tr class='of'><th colspan='{len(_COLUMNS) + 1}'>{escape(run.data.name)}: {escape(run.title)}</th></tr>"


def _row(run: Shown, each: Point) -> str:
    data = run.data
    change = words.change_words(data, drop(data, each)).removesuffix(", indistinguishable")
    said = words.notes(data, each)
    listed = any(one.point.trial == each.trial for one in run.listed)
    key = escape(run.key(each))
    cells = [
        escape(words.metric(data, each.metric_search)),
        escape(words.metric(data, each.metric_test)),
        escape(words.metric(data, each.measured_metric)),
        words.NONE if each.is_baseline else _two_lines(change, " ["),
        words.exact_size(each.size_bytes),
        words.exact_size(each.measured_size_bytes),
        latency(predicted_latency(data, each)),
        _measured(data, each),
        words.NONE if each.is_baseline else _against(data, each),
    ]
    earned = badges([name for name in run.names(each) if name != "uncompressed"])
    return (
        f"<tr data-row='{key}'{'' if listed else ' class=more'}>"
        f"<th scope='row'><button type='button' data-key='{key}'>{escape(each.name)}</button> {earned}</th>"
        + "".join(f"<td>{cell}{_said(said, about)}</td>" for cell, (_, _, about) in zip(cells, _COLUMNS, strict=True))
        + "</tr>"
    )


def _said(notes: Sequence[Note], about: str) -> str:
    return badges([note.text for note in notes if note.about == about])


def _measured(data: ReportData, each: Point) -> str:
    found = measured_latency(each)
    if found is not None:
        return latency(found)
    return words.NONE if each.verified or data.target.latency_source == "measured" else badges(["not measured"])


def _against(data: ReportData, each: Point) -> str:
    gain = factors(data, each)
    source = "measured" if gain.speed_measured else predicted_latency(data, each).source
    return f"{words.smaller(gain)} <small>{words.faster(gain)} ({source})</small>"


def _two_lines(cell: str, mark: str) -> str:
    """A cell's number, and below it what begins at ``mark``."""
    number, found, rest = cell.partition(mark)
    return escape(number) + (f" <small>{escape(mark.strip() + rest)}</small>" if found else "")
