"""How large the report's page is, and how long until a reader can use it, in a headless Chromium.

    python benchmarks/report.py [--repeats N]     writes results/reference/report_page.csv

Runs are made up, as the tests of the report make them up: 60 layers, a fifth of the trials on the front at most 200. Alive
is when the page's own script has run, so that limits and points can be chosen; drawn is when the first picture is there after
scrolling to it; grey is what one move of a slider takes until all three pictures show it. Milliseconds are the median of the
repeats, each in a new browser; load is the machine's, of one minute: other work slows all of them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tables import write_table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # what makes up runs is the tests'

from autocomp.report.load import load  # noqa: E402
from autocomp.report.page import html  # noqa: E402
from autocomp.report.shown import shown  # noqa: E402
from tests.report.synthetic_long import write_long_run  # noqa: E402

TRIALS = (60, 500, 5000)
#: When the page came alive, read off its own clock.
WATCH = """new MutationObserver(() => {
  if (document.documentElement.dataset.ready === "true") window.aliveAt ??= performance.now();
}).observe(document, { attributes: true, subtree: true, attributeFilter: ["data-ready"] });"""
MOVE = """async (value) => {
  const began = performance.now(), slider = document.getElementById("limit-kb");
  slider.value = value;
  slider.dispatchEvent(new Event("input"));
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  return performance.now() - began;
}"""


def opened(page: Path, executable: str) -> tuple[float, float, float]:
    """Milliseconds until the page is alive, until its first picture is drawn, and of one move of a slider."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        tab.add_init_script(WATCH)
        tab.goto(page.as_uri(), wait_until="commit")
        tab.wait_for_selector('html[data-ready="true"]')
        tab.locator("#front-ms").scroll_into_view_if_needed()
        tab.locator("#front-ms .main-svg").first.wait_for()
        drawn = float(tab.evaluate("performance.now()"))
        tab.locator("#front-both .main-svg").first.wait_for()
        moved = [float(tab.evaluate(MOVE, value)) for value in (500, 400, 300)]
        alive = float(tab.evaluate("window.aliveAt"))
        browser.close()
    return alive, drawn, statistics.median(moved)


def measured(trials: int, repeats: int, executable: str, folder: Path) -> dict[str, object]:
    run = write_long_run(folder / str(trials), trials=trials, front=min(200, trials // 5))
    began = time.perf_counter()
    data = load(run)
    text = html(shown([data]))
    seconds = time.perf_counter() - began
    page = folder / f"{trials}.html"
    page.write_text(text, encoding="utf-8")
    found = [opened(page, executable) for _ in range(repeats)]
    alive, drawn, moved = (statistics.median(column) for column in zip(*found, strict=True))
    return {
        "trials": trials,
        "front": len(data.points),
        "page_bytes": page.stat().st_size,
        "written_s": round(seconds, 2),
        "alive_ms": round(alive),
        "drawn_ms": round(drawn),
        "slider_ms": round(moved),
        "repeats": repeats,
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        raise SystemExit(
            "a Chromium must be installed; none of chromium, chromium-browser, google-chrome is on the path"
        )
    with tempfile.TemporaryDirectory() as folder:
        rows = [measured(trials, arguments.repeats, executable, Path(folder)) for trials in TRIALS]
    for row in rows:
        print(row, flush=True)
    write_table(ROOT / "results" / "reference" / "report_page.csv", rows)


if __name__ == "__main__":
    main()
