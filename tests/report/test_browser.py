"""The page in a real browser, as a reader uses it: choose, compare, share, ship."""

from __future__ import annotations

import csv
import io
import re
import shutil
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from autocomp.plan import Plan
from autocomp.report.load import load
from autocomp.report.page import html
from autocomp.report.payload import payload
from autocomp.report.shown import Marked, shown
from tests.report.browser import Reader, chromium
from tests.report.synthetic import LAYERS, TRIALS, Kind, plan, write_csv, write_run
from tests.report.synthetic_long import write_long_run

if TYPE_CHECKING:
    from playwright.sync_api import Page

HARMFUL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def everybody() -> Iterator[Reader]:
    with chromium() as started:
        yield Reader(started)


@pytest.fixture
def reader(everybody: Reader) -> Iterator[Reader]:
    """Who uses a page; nothing must have been fetched, no dialog have come up, and the consoles be empty."""
    yield everybody
    assert (everybody.said, everybody.fetched) == ([], [])


def written(runs: list[Path], page: Path) -> Path:
    """The page of runs, without their figures, which take most of the time."""
    page.write_text(html(shown([load(run) for run in runs])))
    return page


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs, each with its page, and one page of two of them."""
    folder = tmp_path_factory.mktemp("runs")
    kinds = {
        "cpu": Kind(), "jetson": Kind("jetson-orin-nano"), "ruined": Kind(ruined=2),
        "evil": Kind(metric="loss <img src=x onerror=alert(1)>", task=f"</script>{HARMFUL}", stem=HARMFUL, error=HARMFUL),
    }  # fmt: skip
    for name, kind in kinds.items():
        run = write_run(folder / name, kind)
        if name == "ruined":  # of a run that tells less
            (run / "explanation.json").unlink()
        written([run], run / "report.html")
    written([folder / "cpu", folder / "jetson"], folder / "together.html")
    return folder


def front(run: Path) -> dict[str, dict[str, str]]:
    """front.csv by trial."""
    rows = csv.DictReader(io.StringIO((run / "front.csv").read_text()))
    return {row["trial"]: row for row in rows}


def texts(page: Page, selector: str) -> list[str]:
    return page.locator(selector).all_inner_texts()


def seen(page: Page, picture: str) -> None:
    """Have a picture in view, and drawn."""
    page.locator(f"#{picture}").scroll_into_view_if_needed()
    page.locator(f"#{picture} .main-svg").first.wait_for()
    page.evaluate(
        "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
    )  # what moved is redrawn


def opens_table(page: Page) -> None:
    page.locator("#layers").evaluate("(it) => { it.open = true; }")


def greyed(page: Page) -> set[str]:
    return {row.get_attribute("data-row") or "" for row in page.locator("tr.out").all()}


def test_a_slider_greys_out_what_does_not_qualify(reader: Reader, runs: Path) -> None:
    rows = front(runs / "cpu")
    page = reader.opens(runs / "cpu" / "report.html")
    assert greyed(page) == set()
    page.locator("#limit-ms").fill("500")
    limit = float(page.locator("#number-ms").input_value())
    slow = {trial for trial, row in rows.items() if float(row["measured_latency_ms"]) > limit}
    assert 0 < len(slow) < len(rows)
    assert greyed(page) == slow
    assert page.locator("#qualify").inner_text() == f"{len(rows) - len(slow)} of {len(rows)} points qualify"
    page.locator("#number-kb").fill("300")
    large = {trial for trial, row in rows.items() if float(row["measured_size_bytes"]) > 300_000}
    assert greyed(page) == slow | large
    best = page.locator("#best button").all_inner_texts()
    assert len(best) == 3
    assert not {name.removeprefix("trial ") for name in best} & (slow | large)
    seen(page, "front-ms")
    opacities = page.evaluate("document.getElementById('front-ms').data.at(-1).marker.opacity")
    assert [opacity < 1 for opacity in opacities] == [trial in slow | large for trial in rows]
    page.get_by_role("button", name="no limits").click()
    assert greyed(page) == set()


def test_the_drop_that_is_limited_is_that_of_the_search_split(reader: Reader, runs: Path) -> None:
    rows = front(runs / "cpu")
    base = float(rows["0"]["metric_search"])
    page = reader.opens(runs / "cpu" / "report.html")
    page.locator("#number-drop").fill("2")
    assert greyed(page) == {trial for trial, row in rows.items() if base - float(row["metric_search"]) > 0.02}


def test_the_numbers_of_a_chosen_point_are_those_of_the_csv(reader: Reader, runs: Path) -> None:
    page = reader.opens(runs / "cpu" / "report.html")
    for trial, row in front(runs / "cpu").items():
        page.locator("#pick").select_option(trial)
        lines = [texts(page, f"#point-numbers tbody tr:nth-child({line}) td")[:2] for line in range(1, 6)]
        search, test, size, latency, memory = lines
        assert search[0] == f"{100 * float(row['metric_search']):.2f} %"
        assert test[1] == f"{100 * float(row['measured_metric']):.2f} %"
        assert size == [f"{int(row['size_bytes']):,}", f"{float(row['measured_size_bytes']):,.0f}"]
        for column, said in (("latency_ms", latency[0]), ("measured_latency_ms", latency[1])):
            assert float(said.split(" ")[0]) == pytest.approx(float(row[column]), rel=5e-3)
        assert latency[1].endswith("(measured, ±2 %)")
        assert memory[0].endswith("(predicted)")
        assert page.locator("#point-plan tbody tr").count() == len(LAYERS)
        chosen = page.locator(".card.chosen").count()
        assert chosen == page.locator(f'.card[data-point="{trial}"]').count()


def test_two_points_stand_side_by_side(reader: Reader, runs: Path) -> None:
    page = reader.opens(runs / "cpu" / "report.html")
    page.locator("#pick").select_option("40")
    page.locator("#beside").select_option("8")
    titles = texts(page, "#point-numbers thead th")
    assert titles == ["trial 40, predicted", "measured on the file", "trial 8, predicted", "measured on the file"]
    assert texts(page, "#point-strips h3") == ["trial 40, from input to output", "trial 8, from input to output"]
    opens_table(page)
    told = texts(page, "#point-plan tbody td:last-child")
    mine, theirs = plan(10, Kind()), plan(3, Kind())
    same = [mine[name] == theirs[name] for name in LAYERS]
    assert [text == "the same" for text in told] == same
    assert told[1] == theirs["block1.conv1"].describe()


def test_a_link_shares_what_was_chosen(reader: Reader, runs: Path) -> None:
    report = runs / "cpu" / "report.html"
    page = reader.opens(report)
    page.locator("#number-ms").fill("1.5")
    page.locator("#pick").select_option("17")
    page.locator("#beside").select_option("31")
    page.get_by_role("link", name="Trust").click()  # a link within the page leaves the choice in its address
    page.get_by_role("button", name="copy a link").click()
    link = page.evaluate("navigator.clipboard.readText()")
    grey = greyed(page)
    page = reader.opens_anew(report, "#" + link.partition("#")[2])
    assert link == page.url
    assert page.locator("html").get_attribute("data-chosen") == "17"
    assert page.locator("#beside").input_value() == "31"
    assert page.locator("#number-ms").input_value() == "1.5"
    assert greyed(page) == grey != set()
    assert "--pick 17" in page.locator("#command").inner_text()
    page = reader.opens(report, "#point=999&ms=fast&kb=")  # a link to what is not there shows the page as it is
    assert page.locator("#qualify").inner_text().startswith("No limit is set")


def test_the_page_hands_out_plan_table_and_card(reader: Reader, runs: Path) -> None:
    found = {}
    page = reader.opens(runs / "cpu" / "report.html")
    page.locator("#pick").select_option("52")
    for name in ("plan.json", "front.csv", "model card"):
        with page.expect_download() as waited:
            page.get_by_role("button", name=name).click()
        found[waited.value.suggested_filename] = Path(waited.value.path()).read_text()
    assert Plan.from_json(found["plan.json"]) == plan(11, Kind())
    assert found["front.csv"] == (runs / "cpu" / "front.csv").read_text()
    assert found["MODEL_CARD.md"].startswith("# digits, compressed for cpu\n")


def test_texts_of_a_user_are_harmless(reader: Reader, runs: Path) -> None:
    page = reader.opens(runs / "evil" / "report.html")
    assert page.locator("h1").inner_text().startswith(f"</script>{HARMFUL} on")
    opens_table(page)
    for trial in (0, *TRIALS):
        page.locator("#pick").select_option(str(trial))
        assert page.locator("#point-plan tbody th").first.inner_text() == HARMFUL
    page.locator("#all-trials").check()
    page.locator("#front-ms .point").first.hover(force=True)
    assert HARMFUL in page.locator("#why").inner_text()
    assert page.locator("main img, main script").count() == 0


def test_pictures_are_drawn_when_they_are_seen_and_points_in_them_can_be_clicked(reader: Reader, runs: Path) -> None:
    page = reader.opens_anew(runs / "jetson" / "report.html")
    assert page.locator("#growth-0 .main-svg").count() == 0
    assert page.locator("#rungs-0").count() == 1
    for picture in page.locator(".plot").all():
        picture.scroll_into_view_if_needed()
        picture.locator(".main-svg").first.wait_for()
    seen(page, "front-ms")
    page.locator("#front-ms .point").nth(5).click(force=True)
    assert page.locator("html").get_attribute("data-chosen") == str(TRIALS[4])
    assert f"point={TRIALS[4]}" in page.url


def test_a_metric_of_nothing_at_all_is_drawn(reader: Reader, tmp_path: Path) -> None:
    """A scale of logarithms has no place for it, and the picture of size and latency has none of it."""
    run = write_run(tmp_path / "run", Kind(ruined=1))
    for table in ("front.csv", "trials.csv"):
        rows = list(csv.DictReader(io.StringIO((run / table).read_text())))
        for row in rows:
            if row["trial"] == str(TRIALS[-1]):
                row |= dict.fromkeys(("metric_search", "metric_test", "measured_metric"), "0.0")
        write_csv(run / table, tuple(rows[0]), [dict(row) for row in rows])
    page = reader.opens_anew(written([run], tmp_path / "report.html"))
    for picture in ("front-ms", "front-both"):
        seen(page, picture)
        assert page.locator(f"#{picture} .point").count() > 5


@pytest.mark.parametrize("name", ["cpu", "jetson", "ruined"])
def test_names_in_the_pictures_cover_neither_each_other_nor_leave_them(reader: Reader, runs: Path, name: str) -> None:
    """Also where points that are worth a look lie on one spot."""
    page = reader.opens_anew(runs / name / "report.html")
    boxes = """(id) => [...document.querySelectorAll(`#${id} .textpoint text`)].filter((it) => it.textContent)
        .map((it) => it.getBoundingClientRect()).map(({ left, right, top, bottom }) => [left, right, top, bottom])"""
    for picture in ("front-ms", "front-kb", "front-both"):
        seen(page, picture)
        names = page.evaluate(boxes, picture)
        assert len(names) >= 4
        sides = page.locator(f"#{picture}").bounding_box()
        assert sides is not None
        for left, right, top, bottom in names:
            assert sides["x"] <= left < right <= sides["x"] + sides["width"]
            covering = [
                one
                for one in names
                if min(right, one[1]) - max(left, one[0]) > 1 and min(bottom, one[3]) - max(top, one[2]) > 3
            ]
            assert covering == [[left, right, top, bottom]]


def test_a_page_opens_at_what_was_asked_for(runs: Path) -> None:
    data = load(runs / "cpu")
    for wanted, opens in ((None, TRIALS[2]), (TRIALS[5], TRIALS[5]), (99, TRIALS[2])):
        (run,) = shown([data], [Marked(TRIALS[2], wanted)])
        assert payload([run])["chosen"] == str(opens)
        assert f"<option value='{opens}' selected>" in html([run])


def test_the_reader_sees_all_points_on_asking(reader: Reader, runs: Path) -> None:
    page = reader.opens(runs / "ruined" / "report.html")
    seen(page, "front-ms")
    seen(page, "front-kb")

    def near() -> list[bool]:
        low = "document.getElementById('{}').layout.yaxis.range[0] > 50"
        return [page.evaluate(low.format(name)) for name in ("front-ms", "front-kb")]

    ranges = [near()]
    for _ in range(2):
        page.locator("#window").click()
        ranges.append(near())
    page.evaluate("document.getElementById('front-kb').emit('plotly_doubleclick')")
    ranges.append(near())
    page.locator("#window").click()
    for trial in (
        TRIALS[0],
        TRIALS[-1],
        TRIALS[0],
    ):  # a near point, a hidden one, which must be seen, and a near one
        page.locator("#pick").select_option(str(trial))
        ranges.append(near())
    assert "is not told by this run" in page.locator("#point-numbers").inner_text()
    assert ranges == [[each] * 2 for each in (True, False, True, False, True, False, False)]


def test_dominated_and_uniform_trials_are_shown_on_asking(reader: Reader, runs: Path) -> None:
    page = reader.opens(runs / "cpu" / "report.html")
    counts = "document.getElementById('front-ms').data.map((trace) => trace.x.length)"
    seen(page, "front-ms")
    assert page.evaluate(counts) == [12]
    page.locator("#all-trials").check()
    others, uniform, points = page.evaluate(counts)
    assert (others + uniform, points) == (61 - 12, 12)
    values = page.evaluate("document.getElementById('front-ms').data.at(-1).x")
    assert values == [float(row["latency_ms"]) for row in front(runs / "cpu").values()]  # all on one footing
    table = page.locator("#trials-0 tbody")
    assert "expected of step" in table.inner_text()
    page.locator("#trials-0 select").select_option(label="least drop")
    for _ in range(6):
        page.get_by_role("button", name="later").click()
    assert "61 to 64 of 64" in page.locator("#trials-0").inner_text()
    assert Kind().error in table.inner_text()


def test_every_trial_is_shown_whole_where_the_points_had_a_window(reader: Reader, runs: Path) -> None:
    """It is of what files measured on the test split, and trials are of the search split."""
    page = reader.opens(runs / "ruined" / "report.html")
    seen(page, "front-ms")
    assert page.locator(".window").is_visible()
    page.locator("#all-trials").check()
    low = page.evaluate("document.getElementById('front-ms')._fullLayout.yaxis.range[0]")
    assert low < min(float(row["metric_search"]) * 100 for row in front(runs / "ruined").values())
    assert page.locator(".window").is_hidden()
    page.locator("#all-trials").uncheck()
    assert page.locator(".window").is_visible()


def test_of_several_runs_the_most_accurate_point_is_the_best_of_all(reader: Reader, runs: Path, tmp_path: Path) -> None:
    """Not the one that lost least of its own run's metric."""
    poorer = shutil.copytree(runs / "cpu", tmp_path / "poorer")
    lines = (poorer / "front.csv").read_text().splitlines()
    place = lines[0].split(",").index("metric_search")
    cells = [line.split(",") for line in lines[1:]]
    best = max(float(row[place]) for row in cells)
    for row in cells:  # all of them as good as its baseline, which is poor
        row[place] = str(best / 2)
    (poorer / "front.csv").write_text("\n".join([lines[0], *(",".join(row) for row in cells)]) + "\n")
    page = reader.opens(written([runs / "cpu", poorer], tmp_path / "together.html"))
    page.locator("#number-drop").fill("50")
    assert page.locator("#best button").first.inner_text().startswith("cpu, ")


def test_several_runs_stand_on_one_page(reader: Reader, runs: Path) -> None:
    page = reader.opens(runs / "together.html")
    assert texts(page, "#legend > span") == ["● cpu", "■ jetson"]
    assert page.locator('.of-run[data-run="0"]').first.is_visible()
    page.locator("#pick").select_option("2-17")
    assert page.locator("#command").inner_text() == f"autocomp export {runs / 'jetson'} --pick 17"
    assert page.locator('.of-run[data-run="1"]').first.is_visible()
    assert page.locator('.of-run[data-run="0"]').first.is_hidden()
    assert "point=2-17" in page.url
    assert texts(page, "#point-numbers thead th")[0] == "jetson, trial 17, predicted"
    assert "datasheet" in page.locator("#point-numbers").inner_text()


def test_the_keyboard_alone_will_do(reader: Reader, runs: Path) -> None:
    page = reader.opens_anew(runs / "cpu" / "report.html")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "skip to the points"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "choose-title"
    page.locator("#limit-ms").focus()
    page.keyboard.press("PageDown")
    page.keyboard.press("PageDown")
    assert greyed(page) != set()
    page.locator(".card button").nth(2).focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "point-title"


def axe() -> str:
    package = pytest.importorskip(
        "axe_playwright_python", reason="axe-core is not installed: nothing was checked by it"
    )
    return resources.files(package).joinpath("axe.min.js").read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "width", "scheme"), [("cpu", 1280, "light"), ("together", 390, "dark")])
def test_axe_finds_nothing_serious(
    reader: Reader, runs: Path, name: str, width: int, scheme: Literal["light", "dark"]
) -> None:
    script = axe()
    report = runs / "together.html" if name == "together" else runs / name / "report.html"
    page = reader.opens(report, "#kb=400")
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    for details in page.locator("details").all():
        details.evaluate("(it) => { it.open = true; }")
    page.evaluate(script)
    found = page.evaluate("axe.run({ resultTypes: ['violations'] })")
    serious = [
        f"{one['id']}: {node['html'][:150]} {node['failureSummary'][:200]}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]
    assert serious == []
    assert len(found["passes"]) > 20


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_page_of_5000_trials_is_small_and_alive(reader: Reader, tmp_path: Path) -> None:
    report = written([write_long_run(tmp_path / "long")], tmp_path / "report.html")
    assert report.stat().st_size < 8_000_000
    page = reader.opens(report)
    page.locator("#all-trials").check()
    page.locator("#limit-kb").fill("300")
    assert "of 4799 trials off the front are drawn" in page.locator("#others").inner_text()
    assert re.fullmatch(r"\d+ of 201 points qualify", page.locator("#qualify").inner_text())
    assert "1 to 10 of 5000" in page.locator("#trials-0").inner_text()
    assert page.locator("#points tbody tr:visible").count() <= 9
    page.locator("#more").click()
    assert page.locator("#points tbody tr:visible").count() == 201
