"""The page's second part: one point, beside another one, layer by layer; and how to ship it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from autocomp.report import words
from autocomp.report.data import Point, ReportData
from autocomp.report.markup import quiet, section
from autocomp.report.payload import command
from autocomp.report.shown import Shown
from autocomp.report.views import best_latency


def point(runs: Sequence[Shown]) -> str:
    return section(
        "point",
        "One point, layer by layer",
        "<div class='pickers needs-script'>"
        f"<span><label for='pick'>Point</label> <select id='pick'>{_options(runs, runs[0].opens)}</select></span>"
        f"<span><label for='beside'>beside</label> <select id='beside'>{_options(runs, runs[0].data.baseline)}</select></span>"
        "</div><div id='point-numbers'></div><div id='point-strips'></div>"
        "<details id='layers'><summary>Layer by layer, as a table</summary>"
        "<div id='point-plan' class='scroll' role='region' tabindex='0' aria-label='layer by layer'></div></details>"
        "<noscript><p>The plans are shown by this page's own script, which is switched off.</p></noscript>",
    )


def _options(runs: Sequence[Shown], selected: Point) -> str:
    def of(run: Shown, mine: bool) -> str:
        return "".join(
            f"<option value='{escape(run.key(each))}'{' selected' if mine and each.trial == selected.trial else ''}>"
            f"{escape(_option(run, each))}</option>"
            for each in run.data.points
        )

    if len(runs) == 1:
        return of(runs[0], True)
    return "".join(
        f"<optgroup label='{escape(run.data.name)}'>{of(run, place == 0)}</optgroup>" for place, run in enumerate(runs)
    )


def _option(run: Shown, each: Point) -> str:
    data: ReportData = run.data
    value = words.metric(data, each.measured_metric if each.verified else each.metric_search)
    names = ", ".join(name for name in run.names(each) if name != "uncompressed")
    earned = f" ({names})" if names else ""
    ms = best_latency(data, each)
    return f"{run.name(each)}{earned}: {value}, {words.size(each.measured_size_bytes or each.size_bytes)}, {words.latency(ms)}"


def ship(runs: Sequence[Shown]) -> str:
    run = runs[0]
    example = command(run.data, run.data.front[0] if run.data.front else run.data.baseline)
    return section(
        "ship",
        "Ship it",
        "<p>This writes the chosen point's file with its plan and a model card beside it:</p>"
        f"<div class='command'><pre id='command' tabindex='0'>{escape(example)}</pre>"
        "<button type='button' id='copy' class='needs-script'>copy</button></div>"
        "<p class='needs-script downloads'><button type='button' data-download='plan'>plan.json</button> "
        "<button type='button' data-download='card'>model card</button> "
        "<button type='button' data-download='table'>front.csv</button> "
        "<button type='button' id='link'>copy a link to this point</button> <span id='copied' role='status'></span></p>"
        + quiet(
            "A packed file is small on disk and in transfer, not in memory: the runtime unpacks its weights when it loads it."
        ),
    )
