"""The report as one page that needs nothing else: plotly, styles and data are inside, and nothing is fetched."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from autocomp.report import choosing, deciding, trusting, understanding
from autocomp.report.draw import draw
from autocomp.report.load import load
from autocomp.report.payload import payload
from autocomp.report.shown import Marked, Shown, shown

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
<script>document.documentElement.dataset.ready = "soon";</script>
<style>$style</style>
</head>
<body>
<a class="skip" href="#choose">skip to the points</a>
<nav aria-label="parts of the page">$links</nav>
<main>
$body
</main>
<script type="application/json" id="report-data">$data</script>
<script type="text/plain" id="plotly-source">$plotly</script>
<script>$script</script>
</body>
</html>
""")

_LINKS = (
    ("choose", "Choose"),
    ("point", "One point"),
    ("ship", "Ship"),
    ("trust", "Trust"),
    ("why", "Why"),
    ("notes", "Notes"),
)
#: The page's own scripts, in the order in which they are read; they share one scope.
_SCRIPTS = ("state", "plots", "names", "fronts", "limits", "strip", "point", "ship", "trust", "trials", "main")


def write(run_dir: Path, marked: Marked | None = None) -> Path:
    """Draw the figures and write report.html into a run folder; return the page's path.

    ``marked`` is what the caller has found already; else the knee is :func:`~autocomp.report.views.knee`.

    Raises:
        RunError: the folder is no run, or a file of it is missing or malformed.
    """
    data = load(run_dir)
    (alone,) = shown([data], [marked or Marked()])
    draw(alone, run_dir / "figures")
    page = run_dir / "report.html"
    page.write_text(html([alone]), encoding="utf-8")
    return page


def write_together(run_dirs: Sequence[Path], marked: Sequence[Marked], page: Path) -> Path:
    """Write one page of several runs; return its path.

    Raises:
        RunError: as :func:`write`.
        RequestError: the runs' metrics are not one.
    """
    together = shown([load(run_dir) for run_dir in run_dirs], marked)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(html(together), encoding="utf-8")
    return page


def html(runs: Sequence[Shown]) -> str:
    """The whole page (about 5 MB, nearly all of it plotly)."""
    from plotly.offline import get_plotlyjs

    parts = (
        choosing.headline(runs),
        choosing.choose(runs),
        deciding.point(runs),
        deciding.ship(runs),
        trusting.trust(runs),
        understanding.understand(runs),
        trusting.notes(runs),
        trusting.origin(runs),
    )
    script = "\n".join(_asset(f"{name}.js") for name in _SCRIPTS)
    return _PAGE.substitute(
        title=escape("autocomp: " + " and ".join(dict.fromkeys(run.title for run in runs))),
        style=_asset("page.css"),
        links="".join(f"<a href='#{anchor}'>{title}</a>" for anchor, title in _LINKS),
        body="\n".join(parts),
        data=script_json(payload(runs)),
        plotly=_inline(get_plotlyjs()),
        script=_inline(f'(() => {{\n"use strict";\n{script}\n}})();'),
    )


def _asset(name: str) -> str:
    return resources.files("autocomp.report").joinpath("assets", name).read_text(encoding="utf-8")


def _inline(script: str) -> str:
    return script.replace("</script", r"<\/script").replace("<!--", r"<\!--")


def script_json(document: object) -> str:
    """JSON that cannot end the script element that holds it, whatever its texts are."""
    return json.dumps(document, ensure_ascii=False, allow_nan=False).replace("<", r"\u003c")
