"""The page's fourth part: what the search knew, tried and found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from html import escape

from autocomp.report import words
from autocomp.report.data import ReportData, Sensitivity
from autocomp.report.markup import plot, quiet, scroll, section
from autocomp.report.shown import Shown
from autocomp.report.tried import WORST_DROP, by_fate, reference, searched
from autocomp.report.trusting import of_runs
from autocomp.report.views import depth

#: Sensitivities are shown open up to so many lines.
FEW_DECISIONS = 30


def understand(runs: Sequence[Shown]) -> str:
    bodies = [_tried(run, index) + _sensitivities(run.data) for index, run in enumerate(runs)]
    return section("why", "What the search tried, and why", of_runs(runs, "search", bodies))


def _tried(run: Shown, index: int) -> str:
    data = run.data
    return (
        f"<p>{escape(_counts(data))}</p>{_failed(data)}{_growth(run, index)}{_rungs(run, index)}"
        "<h3 class='spaced needs-script'>Every trial</h3>"
        f"<div class='trials needs-script' id='trials-{index}'></div>"
    )


def _counts(data: ReportData) -> str:
    trials = searched(data)
    recovered = len(data.trials) - len(trials)
    counts = {state: sum(t.state == state for t in trials) for state in ("complete", "stopped", "failed", "running")}
    seconds = sum(t.seconds or 0.0 for t in trials)
    return (
        f"{data.asked} trials asked for; {counts['complete']} complete, {counts['failed']} failed"
        + (f", {counts['stopped']} stopped since they could not join the front" if counts["stopped"] else "")
        + (f", {counts['running']} begun and not ended" if counts["running"] else "")
        + f"; {words.digits(seconds)} s in all; proposed by {dict(data.request).get('sampler', 'a sampler')}."
        + (f" {recovered} points were recovered besides." if recovered else "")
    )


def _failed(data: ReportData) -> str:
    """Failed trials, those of one error together."""
    by_error: dict[str, list[int]] = defaultdict(list)
    for trial in data.trials:
        if trial.state == "failed":
            by_error[trial.error or "no error text"].append(trial.trial)
    if not by_error:
        return ""
    rows = "".join(
        f"<tr><th scope='row'>{escape(_numbers(numbers))}</th><td>{escape(error)}</td></tr>"
        for error, numbers in by_error.items()
    )
    return (
        f"<details{' open' if len(by_error) <= 5 else ''}><summary>What failed, and why</summary>"
        + scroll("failed trials", f"<table class='errors'>{rows}</table>")
        + "</details>"
    )


def _numbers(numbers: Sequence[int], most: int = 8) -> str:
    said = ", ".join(str(number) for number in numbers[:most])
    more = f" and {len(numbers) - most} more" if len(numbers) > most else ""
    return f"trial{'s' * (len(numbers) > 1)} {said}{more}"


def _growth(run: Shown, index: int) -> str:
    data, found = run.data, run.growth
    if not found.trials:
        return quiet("No trial was finished.")
    latency_ms, size_bytes = reference(data)
    own = (latency_ms, size_bytes) == (data.baseline.latency_ms, data.baseline.size_bytes)
    said = (
        f"The share of the space between no cost at all and {'the uncompressed model' if own else 'a point beyond all'} "
        f"({words.digits(latency_ms)} ms, predicted, and {words.size(round(size_bytes))}, at a {data.lost} of "
        f"{words.percent(WORST_DROP)}) that the front covers: {found.volumes[-1]:.3f} after {found.trials[-1] + 1} trials. By "
        "the search split and predicted costs, as the search goes."
    )
    return (
        "<h3 class='spaced'>Hypervolume over trials</h3>"
        + quiet(said)
        + plot(f"growth-{index}", "the hypervolume after each trial; it ends at the number told above", "plot small")
    )


def _rungs(run: Shown, index: int) -> str:
    title = "<h3 class='spaced'>How far evaluations came</h3>"
    if not run.climbed:
        return title + quiet("Every trial was evaluated on the whole search split at once.")
    counts = {fate: len(ones) for fate, ones in by_fate(run.climbed).items()}
    said = (
        f"{run.data.task.metric.name} on ever larger parts of the search split, a line a trial: {counts['stopped']} "
        f"were stopped on a part, {counts['complete'] + counts['front']} saw all of it, {counts['front']} of these are on "
        "the front."
    )
    return title + quiet(said) + plot(f"rungs-{index}", "the metric of every trial on parts of the split", "plot small")


def _sensitivities(data: ReportData) -> str:
    title = "<h3 class='spaced'>What each choice does by itself</h3>"
    if not data.sensitivities:
        return title + quiet("This search did not measure it: the sampler auto does, before its first trial.")
    by_kind: dict[str, list[Sensitivity]] = defaultdict(list)
    for one in data.sensitivities:
        by_kind[one.kind].append(one)
    tables = "".join(_kind(kind, ones) for kind, ones in by_kind.items())
    return (
        title
        + quiet(
            "The error that a choice, alone, makes in the network's output on calibration data, as a share of the output's "
            "variance: 0 changes nothing, 1 leaves nothing of it. Dark is what a layer does not bear."
        )
        + f"<details{' open' if len(data.sensitivities) <= FEW_DECISIONS else ''}><summary>"
        f"{len(data.sensitivities)} decisions</summary>{tables}</details>"
    )


def _kind(kind: str, ones: Sequence[Sensitivity]) -> str:
    rows = "".join(
        f"<tr><th scope='row'>{escape(one.decision.partition(':')[2] or one.decision)}</th>"
        + "".join(_cell(one, place) for place in range(1, len(one.errors)))
        + "</tr>"
        for one in ones
    )
    return f"<h4>{escape(kind)}</h4>" + scroll(f"sensitivities, {kind}", f"<table class='heatmap'>{rows}</table>")


def _cell(one: Sensitivity, place: int) -> str:
    error = one.errors[place]
    name = one.options[place] if one.options else f"option {place}"
    return f"<td class='heat' style='--d:{depth(error):.2f}'>{escape(name)} <small>{words.brief(error)}</small></td>"
