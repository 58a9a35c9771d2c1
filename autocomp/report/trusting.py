"""The page's third part: what the numbers are worth."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from autocomp.hardware.latency import HeldOutError
from autocomp.report import words
from autocomp.report.data import ReportData
from autocomp.report.markup import facts, plot, quiet, section
from autocomp.report.shown import Shown
from autocomp.report.views import comparisons, intervals


def of_runs(runs: Sequence[Shown], one: str, bodies: Sequence[str]) -> str:
    """A part of every run; the script shows that of the chosen point's run.

    Args:
        one: what a run's part is called where there are several.
        bodies: HTML.
    """
    if len(runs) == 1:
        return bodies[0]
    return "".join(
        f"<div class='of-run' data-run='{index}'><h3>{escape(f'{one}: {run.data.name}, {run.title}')}</h3>{body}</div>"
        for index, (run, body) in enumerate(zip(runs, bodies, strict=True))
    )


def trust(runs: Sequence[Shown]) -> str:
    return section("trust", "Trust", of_runs(runs, "run", [_trust(run, index) for index, run in enumerate(runs)]))


def _trust(run: Shown, index: int) -> str:
    data = run.data
    return (
        f"<h3>Predicted against measured</h3>{_agreement(data, index)}"
        f"<h3 class='spaced'>What the metric loses, with its interval</h3>{_intervals(run, index)}"
        f"<div class='two'><div><h3>The latency model, on networks that it never saw</h3>{_held_out(data, index)}</div>"
        f"<div><h3>Where the numbers hold</h3>{_device(data)}</div></div>"
    )


def _agreement(data: ReportData, index: int) -> str:
    panels = "".join(
        f"<figure><figcaption><b>{escape(words.comparison_name(data, each))}</b> "
        f"{escape(words.agreement(data, each))}</figcaption>"
        + (
            plot(f"agreement-{index}-{place}", f"{each.quantity}: predicted minus measured", "plot small")
            if each.pairs
            else quiet(_why_not(data, each.quantity))
        )
        + "</figure>"
        for place, each in enumerate(comparisons(data))
    )
    return (
        quiet("Each dot is a point of the front; the band is what counts as agreement.")
        + f"<div class='plots three'>{panels}</div>"
    )


def _why_not(data: ReportData, quantity: str) -> str:
    if quantity == "latency" and any(point.verified for point in data.points):
        return (
            f"{data.target.name} was out of reach from where this ran. Who has it measures it: "
            f"{words.command('verify', data.run, '--host user@board')}"
        )
    return f"No exported file was scored yet: {words.command('verify', data.run, '--pick front')}"


def _intervals(run: Shown, index: int) -> str:
    found = intervals(run.data, [one.point for one in run.listed])
    if not found:
        return quiet("No file has a paired interval: it takes exported files that were scored example by example.")
    same = [each.point.name for each in found if each.drop.indistinguishable]
    said = f"Indistinguishable from uncompressed: {', '.join(same)}." if same else "None is indistinguishable."
    return quiet(
        f"The {run.data.lost} of the exported file on the test split, against the uncompressed file on the same examples, with "
        f"the paired 95 % interval. {said}"
    ) + plot(
        f"intervals-{index}",
        f"{run.data.lost}s with their intervals; the same numbers stand in the table of points",
        "plot small",
    )


def _held_out(data: ReportData, index: int) -> str:
    held = data.held_out
    if held is None:
        error = data.target.held_out_error
        known = "an unknown error" if error is None else f"a mean error of {words.percent(error)}"
        note = f" ({data.target.held_out_note})" if data.target.held_out_note else ""
        return quiet(
            f"This run tells {known}{note}, and no more of it; `{words.command('verify', data.run)}` writes what there is."
        )
    return (
        f"<p>Mean error {words.percent(held.mean)}, median {words.percent(held.median)}; {held.within_10:.0%} of "
        f"{held.networks} held-out networks within ±10 %, {held.within_20:.0%} within ±20 %.</p>"
        + (quiet(held.note) if held.note else "")
        + plot(f"held-out-{index}", f"{_drawn(held)}, as told above", "plot small")
    )


def _drawn(held: HeldOutError) -> str:
    return "latency predicted against measured" if held.pairs else "the share of held-out networks within an error"


def _device(data: ReportData) -> str:
    target = data.target
    timed_on = {point.timed_on for point in data.points if point.timed_on}
    ran_in = {point.runtime for point in data.points if point.runtime}
    pairs = [
        ("target", target.name),
        ("device", target.device),
        ("runtime", target.runtime_words),
        ("files scored with", ", ".join(sorted(ran_in)) or "none was"),
        ("files timed on", ", ".join(sorted(timed_on)) or _timed(data)),
        ("format", target.format),
        ("threads", words.NONE if target.threads is None else str(target.threads)),
        ("batch", words.NONE if target.batch is None else str(target.batch)),
        ("clocks and power", target.clocks or "not told"),
        ("predictions are", target.latency_source),
    ]
    return facts(pairs)


def _timed(data: ReportData) -> str:
    measured = sum(point.measured_latency_ms is not None for point in data.points)
    return "the machine of the search" if measured else "nothing: not measured"


def notes(runs: Sequence[Shown]) -> str:
    """What the numbers are and are not."""
    said: list[str] = []
    for run in runs:
        said += _notes(run.data)
    items = "".join(f"<li>{escape(each)}</li>" for each in dict.fromkeys(said))
    return section("notes", "What these numbers are, and are not", f"<ul>{items}</ul>")


def _notes(data: ReportData) -> list[str]:
    count = len([p for p in data.points if not p.verified])
    examples = "" if data.task.test_examples is None else f" ({data.task.test_examples:,} examples)"
    paired = (
        f"The interval beside a {data.lost} is the paired 95 % interval against the uncompressed file; where it holds 0 the "
        "two are called indistinguishable, which is not a proof that they are equal."
    )
    said = [
        "A packed file is small on disk and in transfer, not in RAM: the runtime unpacks its weights when it loads it.",
        f"Points were chosen by the search split. The test split{examples} was read at the end, on the exported "
        "files; no point, seed or recipe was chosen by it.",
        "Chosen points are the optimistic ones: trust the measured column over the predicted one.",
        "A factor compares like with like: two measurements, or else two predictions.",
        *([paired] if intervals(data, data.points) else []),
        words.latency_promise(data),
    ]
    if any(p.verified and p.measured_latency_ms is None for p in data.points):
        said.append(
            "A latency that is not marked measured was not measured: the device was out of reach from where this ran."
        )
    if count:
        said.append(
            f"{count} of {len(data.points)} points are not verified: no exported file of theirs was scored. "
            f"Their metric is the simulated model's. Verify them: {words.command('verify', data.run, '--pick front')}"
        )
    return said


def origin(runs: Sequence[Shown]) -> str:
    bodies = [_origin(run.data) for run in runs]
    return f"<section id='origin' aria-label='how this was made'>{of_runs(runs, 'made', bodies)}</section>"


def _origin(data: ReportData) -> str:
    groups = (("request", data.request), ("versions", data.versions), ("machine", data.fingerprint))
    tables = "".join(f"<div><h3>{title}</h3>{facts(pairs)}</div>" for title, pairs in groups if pairs)
    return f"<details><summary>How this run was made</summary><div class='origin'>{tables}</div></details>" + quiet(
        data.created
    )
