"""The page's parts, each a piece of HTML; every text that comes from a run is escaped here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from autocomp.report import words
from autocomp.report.data import Point, ReportData
from autocomp.report.payload import command
from autocomp.report.views import (
    Pick,
    best_latency,
    comparisons,
    drop,
    factors,
    front_view,
    measured_latency,
    metric_window,
    picks,
    predicted_latency,
)
from autocomp.trial import RECOVERED


def _badges(said: Sequence[str]) -> str:
    return "".join(f'<span class="badge">{escape(each)}</span>' for each in said)


def _section(anchor: str, title: str, body: str) -> str:
    return f'<section id="{anchor}"><h2>{escape(title)}</h2>{body}</section>'


def headline(data: ReportData) -> str:
    target = data.target
    threads = "" if target.threads is None else f"{target.threads} thread{'s' * (target.threads != 1)}"
    batch = "" if target.batch is None else f"batch {target.batch}"
    facts = [target.device, target.runtime, target.format, threads, batch]
    return (
        f"<header><p class='eyebrow'>autocomp report</p><h1>{escape(data.task.name)} on {escape(target.name)}</h1>"
        f"<p class='facts'>{escape(' · '.join(fact for fact in facts if fact))}</p>"
        f"<p class='promise'>{escape(words.latency_promise(data))}</p>"
        + (f"<p class='quiet'>{escape(target.note)}</p>" if target.note else "")
        + "</header>"
    )


def cards(data: ReportData, chosen: Point) -> str:
    body = "".join(_card(data, pick) for pick in picks(data, chosen))
    said = words.near_meaning(data) if data.front else "The search found no point besides the uncompressed model."
    answer = f'<section id="answer" class="cards" aria-label="the answer">{body}</section>'
    return f"{answer}<p class='quiet'>{escape(said)}</p>"


def _card(data: ReportData, pick: Pick) -> str:
    point = pick.point
    value = point.measured_metric if point.verified else point.metric_search
    bytes_now = point.measured_size_bytes or point.size_bytes
    ms, gain = best_latency(data, point), factors(data, point)
    change, metric = drop(data, point), data.task.metric.name
    split = "exported file, test split" if point.verified else "simulated model, search split"
    against = "" if point.is_baseline else f" <b>{words.smaller(gain)}</b>"
    faster = "" if point.is_baseline else f"<b>{words.faster(gain)}</b> "
    worse = "" if point.is_baseline else f"<p class='drop'>{escape(words.drop_words(data, change))}</p>"
    said = [note.text for note in words.notes(data, point) if note.about != "drop"]
    return (
        f"<article class='card{' base' if point.is_baseline else ''}'>"
        f"<h3>{escape(', '.join(pick.names))}"
        + ("" if point.is_baseline else f" <button type='button' data-trial='{point.trial}'>{point.name}</button>")
        + f"</h3><p class='big'>{escape(words.metric(data, value))}</p>"
        f"<p class='what'>{escape(metric)} ({split})</p>{worse}"
        f"<p title='{bytes_now:,} bytes'><span class='number'>{words.size(bytes_now)}</span>{against}</p>"
        f"<p><span class='number'>{escape(words.latency(ms))}</span><br>{faster}</p>{_badges(said)}</article>"
    )


def front(data: ReportData) -> str:
    view = front_view(data)
    timed = "measured on the exported files" if view.latency_measured else "predicted; the bars are the model's error"
    return _section(
        "front",
        "The front",
        f"<p class='quiet'>{escape(data.task.metric.name)}: {view.basis}. Latency: {timed}. "
        f"Click a point to see its plan below.</p>{_window_note(data)}"
        "<div class='plots'><div id='front-latency' class='plot'></div><div id='front-size' class='plot'></div></div>",
    )


def _window_note(data: ReportData) -> str:
    """That points lie outside the pictures and how to see them; the button is for those who cannot double-click."""
    window = metric_window(data, front_view(data))
    if window is None:
        return ""
    return (
        f"<p class='window' data-whole='false'><span class='zoomed'>{escape(words.hidden(window))} "
        f"({escape(words.hidden_meaning(data))}); double-click to see all</span>"
        "<span class='whole'>All points are shown; double-click to zoom in again</span> "
        "<button type='button' id='window'>see all</button></p>"
    )


def point(data: ReportData, chosen: Point) -> str:
    options = "".join(
        f"<option value='{each.trial}'{' selected' if each.trial == chosen.trial else ''}>{escape(label)}</option>"
        for each, label in ((each, _option(data, each, chosen)) for each in data.points)
    )
    return _section(
        "point",
        "One point, layer by layer",
        f"<label for='pick'>Point</label> <select id='pick'>{options}</select>"
        "<div id='point-numbers'></div><div id='point-plan' class='scroll'></div>"
        "<noscript><p>The plans are shown by this page's own script, which is switched off.</p></noscript>",
    )


def _option(data: ReportData, each: Point, chosen: Point) -> str:
    value = words.metric(data, each.measured_metric if each.verified else each.metric_search)
    knee = " (knee)" if each.trial == chosen.trial and not each.is_baseline else ""
    ms = best_latency(data, each)
    return f"{each.name}{knee}: {value}, {words.size(each.measured_size_bytes or each.size_bytes)}, {words.latency(ms)}"


#: Title, second line, and which notes stand in the column.
_COLUMNS = (
    ("search", "simulated", ""),
    ("test", "simulated", ""),
    ("test", "exported file", "measured metric"),
    ("drop", "95 % interval", "drop"),
    ("bytes", "predicted", ""),
    ("bytes", "measured", ""),
    ("latency", "predicted", "predicted latency"),
    ("latency", "measured", "measured latency"),
    ("against", "uncompressed", ""),
)


def table(data: ReportData, chosen: Point) -> str:
    head = "<th>point</th>" + "".join(f"<th>{top}<small>{below}</small></th>" for top, below, _ in _COLUMNS)
    body = "".join(_row(data, each, chosen) for each in data.points)
    metric = escape(data.task.metric.name)
    return _section(
        "points",
        "Every point, predicted beside measured",
        f"<p class='quiet'>search and test: {metric} on that split. ± beside a measured latency is the spread of its "
        "repeats, beside any other the error of the prediction.</p>"
        f"<div class='scroll'><table class='numbers'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>",
    )


def _row(data: ReportData, each: Point, chosen: Point) -> str:
    measured, gain = measured_latency(each), factors(data, each)
    speed = "measured" if gain.speed_measured else predicted_latency(data, each).source
    change = words.drop_words(data, drop(data, each)).removeprefix("drop ").removesuffix(", indistinguishable")
    against = f"{words.smaller(gain)}; {words.faster(gain)} ({speed})"
    cells = [
        words.metric(data, each.metric_search),
        words.metric(data, each.metric_test),
        words.metric(data, each.measured_metric),
        words.NONE if each.is_baseline else change,
        words.exact_size(each.size_bytes),
        words.exact_size(each.measured_size_bytes),
        words.latency(predicted_latency(data, each)),
        words.NONE if measured is None else words.latency(measured),
        words.NONE if each.is_baseline else against,
    ]
    knee = _badges(["knee"] if each.trial == chosen.trial and not each.is_baseline else [])
    said = words.notes(data, each)
    choose = f"<button type='button' data-trial='{each.trial}'>{each.name}</button>"
    return (
        f"<tr data-row='{each.trial}'><th>{choose}{knee}</th>"
        + "".join(
            f"<td>{_two_lines(cell)}{_badges([note.text for note in said if note.about == about])}</td>"
            for cell, (_, _, about) in zip(cells, _COLUMNS)
        )
        + "</tr>"
    )


def _two_lines(cell: str) -> str:
    """A cell's number, and below it what brackets or a semicolon put beside it: a source, an interval."""
    number, *rest = re.split(r" (?=[(\[])|; ", cell, maxsplit=1)
    return escape(number) + "".join(f" <small>{escape(each)}</small>" for each in rest)


def agreement(data: ReportData) -> str:
    panels = "".join(
        f"<figure><figcaption><b>{escape(words.comparison_name(data, each))}</b> "
        f"{escape(words.agreement(data, each))}</figcaption>"
        + (f"<div id='agreement-{index}' class='plot small'></div>" if each.pairs else "")
        + "</figure>"
        for index, each in enumerate(comparisons(data))
    )
    return _section(
        "agreement",
        "Predicted against measured",
        "<p class='quiet'>Each dot is a point of the front; the band is what counts as agreement.</p>"
        f"<div class='plots three'>{panels}</div>",
    )


def trials(data: ReportData) -> str:
    searched = [t for t in data.trials if t.trial < RECOVERED]
    recovered = len(data.trials) - len(searched)
    counts = {state: sum(t.state == state for t in searched) for state in ("complete", "failed", "running")}
    seconds = sum(t.seconds or 0.0 for t in searched)
    said = (
        f"{data.asked} trials asked for; {counts['complete']} complete, {counts['failed']} failed"
        + (f", {counts['running']} begun and not ended" if counts["running"] else "")
        + f"; {words.digits(seconds)} s in all."
        + (f" {recovered} points were recovered besides." if recovered else "")
    )
    failed = [t for t in data.trials if t.state == "failed"]
    rows = "".join(f"<tr><th>trial {t.trial}</th><td>{escape(t.error or 'no error text')}</td></tr>" for t in failed)
    listed = (
        f"<details{' open' if len(failed) <= 5 else ''}><summary>What failed, and why</summary>"
        f"<div class='scroll'><table class='errors'>{rows}</table></div></details>"
        if failed
        else ""
    )
    return _section("trials", "Trials", f"<p>{escape(said)}</p>{listed}")


def shipping(data: ReportData) -> str:
    example = command(data, data.front[0] if data.front else data.baseline)
    return _section(
        "ship",
        "Ship a point",
        f"<p>This writes the chosen point's file, its plan and its verification:</p>"
        f"<pre id='command'>{escape(example)}</pre>",
    )


def honest_notes(data: ReportData) -> str:
    target, count = data.target, len([p for p in data.points if not p.verified])
    examples = "" if data.task.test_examples is None else f" ({data.task.test_examples:,} examples)"
    said = [
        "A packed file is small on disk and in transfer, not in RAM: the runtime unpacks its weights when it loads it.",
        f"Points were chosen by the search split. The test split{examples} was read once per front point, at the end, "
        "on the exported file; no point, seed or recipe was chosen by it.",
        "The interval beside a drop is the paired 95 % interval against the uncompressed file; where it holds 0 the "
        "two are called indistinguishable, which is not a proof that they are equal.",
        "Chosen points are the optimistic ones: trust the measured column over the predicted one.",
        "A factor compares like with like: two measurements, or else two predictions.",
        words.latency_promise(data),
    ]
    if any(p.measured_latency_ms is None for p in data.points):
        said.append(
            f"A latency marked {target.latency_source} was not measured: the device is out of reach from where this ran."
        )
    if count:
        said.append(
            f"{count} of {len(data.points)} points are not verified: no exported file of theirs was scored. "
            "Their metric is the simulated model's. Verify them: autocomp verify RUN --pick front"
        )
    items = "".join(f"<li>{escape(each)}</li>" for each in said)
    return _section("notes", "What these numbers are, and are not", f"<ul>{items}</ul>")


def origin(data: ReportData) -> str:
    groups = (("request", data.request), ("versions", data.versions), ("machine", data.fingerprint))
    tables = "".join(
        f"<div><h3>{title}</h3><dl>"
        + "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts)
        + "</dl></div>"
        for title, facts in groups
        if facts
    )
    return (
        f"<section id='origin'><details><summary>How this run was made</summary><div class='origin'>{tables}</div>"
        f"</details><p class='quiet'>{escape(data.created)}</p></section>"
    )
