"""The report as one page that needs nothing else: plotly, styles and data are inside, and nothing is fetched."""

from __future__ import annotations

import json
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from autocomp.report import sections
from autocomp.report.data import Point, ReportData
from autocomp.report.draw import draw
from autocomp.report.load import load
from autocomp.report.payload import payload
from autocomp.report.views import knee

# The policy forbids the browser what the page promises not to do: load anything from anywhere.
_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
$body
</main>
<script type="application/json" id="report-data">$data</script>
<script>$plotly</script>
<script>$script</script>
</body>
</html>
""")


def write(run_dir: Path, knee_trial: int | None = None) -> Path:
    """Draw the figures and write report.html into a run folder; return the page's path.

    ``knee_trial`` is the front's knee where the caller has found it already, else :func:`~autocomp.report.views.knee`.

    Raises:
        RunError: the folder is no run, or a file of it is missing or malformed.
    """
    data = load(run_dir)
    chosen = knee(data, knee_trial)
    draw(data, run_dir / "figures", chosen)
    page = run_dir / "report.html"
    page.write_text(html(data, chosen), encoding="utf-8")
    return page


def html(data: ReportData, chosen: Point) -> str:
    """The whole page (about 5 MB, nearly all of it plotly)."""
    from plotly.offline import get_plotlyjs

    body = (
        sections.headline(data),
        sections.cards(data, chosen),
        sections.front(data),
        sections.point(data, chosen),
        sections.table(data, chosen),
        sections.agreement(data),
        sections.trials(data),
        sections.shipping(data),
        sections.honest_notes(data),
        sections.origin(data),
    )
    return _PAGE.substitute(
        title=escape(f"autocomp: {data.task.name} on {data.target.name}"),
        style=_asset("page.css"),
        body="\n".join(body),
        data=script_json(payload(data, chosen)),
        plotly=_inline(get_plotlyjs()),
        script=_inline(_asset("page.js")),
    )


def _asset(name: str) -> str:
    return resources.files("autocomp.report").joinpath(name).read_text(encoding="utf-8")


def _inline(script: str) -> str:
    return script.replace("</script", r"<\/script").replace("<!--", r"<\!--")


def script_json(document: object) -> str:
    """JSON that cannot end the script element that holds it, whatever its texts are."""
    return json.dumps(document, ensure_ascii=False, allow_nan=False).replace("<", r"\u003c")
