"""The page and the pictures: complete, escaped, self-contained, and alive in a real browser."""

from __future__ import annotations

import functools
import json
import re
import shutil
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from autocomp.errors import RunError
from autocomp.report.draw import draw, front_figure
from autocomp.report.load import load
from autocomp.report.page import html, script_json, write
from autocomp.report.pictures import held_out_figure
from autocomp.report.shown import shown
from autocomp.report.views import knee
from autocomp.trial import RECOVERED
from tests.report.synthetic import LAYERS, TRIALS, Kind, front_rows, write_run

EVIL = Kind(
    "jetson-orin-nano", metric="loss $<img src=x onerror=alert(1)>", task="</script><script>alert('t')</script>"
)


DRAWN = ("evil",)  # nothing measured in time; names that a picture's mathematics would trip over


@dataclass
class Parsed(HTMLParser):
    """What is in a page: attributes by tag, texts outside scripts, and the data element."""

    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    data: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = "data" if dict(attrs).get("id") == "report-data" else tag

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "data":
            self.data += data
        elif not self._inside:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


@functools.cache
def parse(page: Path) -> Parsed:
    parsed = Parsed()
    parsed.feed(page.read_text())
    return parsed


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    kinds = {
        "cpu": Kind(), "jetson": Kind("jetson-orin-nano"), "bare": Kind(verified=False), "evil": EVIL,
        "ruined": Kind(ruined=2),
    }  # fmt: skip
    runs = {name: write_run(folder / name, kind) for name, kind in kinds.items()}
    return {name: write(run) if name in DRAWN else undrawn(run) for name, run in runs.items()}


def undrawn(run: Path) -> Path:
    """The page of a run without its pictures, which take most of the time."""
    data = load(run)
    page = run / "report.html"
    page.write_text(html(shown([data])))
    return page


@pytest.mark.parametrize("name", ["cpu", "jetson", "bare", "evil"])
def test_every_point_can_be_chosen_and_has_its_plan(pages: dict[str, Path], name: str) -> None:
    page = parse(pages[name])
    options = [attrs["value"] for tag, attrs in page.tags if tag == "option"]
    rows = [attrs["data-row"] for tag, attrs in page.tags if tag == "tr" and "data-row" in attrs]
    assert rows == [str(trial) for trial in (0, *TRIALS)]
    assert options == rows * 2  # the point, and the one beside it
    data = json.loads(page.data)
    assert list(data["points"]) == rows
    plans = data["runs"][0]["plans"]
    assert [len(plans[row]["cells"]) for row in rows] == [len(LAYERS)] * len(rows)


def test_the_numbers_shown_are_those_of_the_csv(pages: dict[str, Path]) -> None:
    text = parse(pages["cpu"]).text
    for row in front_rows(Kind()):
        size, measured = row["size_bytes"], row["measured_size_bytes"]
        assert isinstance(size, int)
        assert isinstance(measured, float)
        assert f"{size:,} {int(measured):,}" in text
        for key in ("metric_search", "metric_test", "measured_metric"):
            value = row[key]
            assert isinstance(value, float)
            assert f"{100 * value:.2f} %" in text


@pytest.mark.parametrize(("name", "source"), [("cpu", "fitted"), ("jetson", "datasheet"), ("bare", "fitted")])
def test_every_latency_shown_carries_its_source(pages: dict[str, Path], name: str, source: str) -> None:
    found = re.findall(r"\d ms(?: [\d.,]+× \w+)?,? \(?(\S+)", parse(pages[name]).text)
    assert len(found) > 2 * len(TRIALS)
    allowed = {source, "measured"} if name == "cpu" else {source}
    assert {each.strip(",;()") for each in found} <= {*allowed, "predicted"}


def test_what_was_not_measured_is_said(pages: dict[str, Path]) -> None:
    assert "No latency here was measured on the device" in parse(pages["jetson"]).text
    assert "within the model's error" in parse(pages["jetson"]).text
    assert "±35 %" in parse(pages["jetson"]).text
    assert "12 of 12 points are not verified" in parse(pages["bare"]).text
    assert "not in RAM" in parse(pages["cpu"]).text


def test_trials_that_failed_are_listed_with_their_error(pages: dict[str, Path]) -> None:
    text = parse(pages["cpu"]).text
    assert "64 trials asked for; 61 complete, 2 failed, 1 begun and not ended" in text
    assert f"trials 13, 44 {Kind().error}" in text


def test_nothing_is_fetched(pages: dict[str, Path]) -> None:
    for page in pages.values():
        tags = parse(page).tags
        assert not [attrs for _, attrs in tags if {"src", "srcset", "data", "action"} & set(attrs)]
        assert not [attrs for _, attrs in tags if not (attrs.get("href") or "#").startswith("#")]
        assert not [tag for tag, _ in tags if tag in ("link", "iframe", "object", "embed", "base", "img")]
        policy = next(attrs["content"] for _, attrs in tags if attrs.get("http-equiv") == "Content-Security-Policy")
        assert policy is not None
        assert "default-src 'none'" in policy
        assert "http" not in policy


def test_text_of_the_run_is_never_markup(pages: dict[str, Path]) -> None:
    page = parse(pages["evil"])
    assert sum(tag == "script" for tag, _ in page.tags) == 4
    assert EVIL.task in page.text
    assert EVIL.metric in page.text
    hovers = [point["hover"] for point in json.loads(page.data)["points"].values()]
    assert all("<img" not in hover and "&lt;img" in hover for hover in hovers)


def test_script_json_comes_back_whole_and_cannot_end_its_element() -> None:
    document = {"a": "</script><!-- é", "b": [1.5, None, True]}
    assert "<" not in script_json(document)
    assert json.loads(script_json(document)) == document


def test_the_figures_are_written_as_png_and_svg(pages: dict[str, Path]) -> None:
    for run in DRAWN:
        figures = pages[run].parent / "figures"
        names = {
            "front",
            "plan",
            "predicted_vs_measured",
            "time_and_bytes",
            "drops",
            "hypervolume",
            "rungs",
            "sensitivities",
        }
        assert {path.stem for path in figures.iterdir()} == names
        for name in names:
            assert (figures / f"{name}.png").read_bytes().startswith(b"\x89PNG")
            assert "<svg" in (figures / f"{name}.svg").read_text()


def test_held_out_networks_are_drawn_where_they_were_kept(pages: dict[str, Path]) -> None:
    assert held_out_figure(load(pages["cpu"].parent)) is not None
    assert held_out_figure(load(pages["evil"].parent)) is None


def test_the_same_run_gives_the_same_page_and_pictures(pages: dict[str, Path], tmp_path: Path) -> None:
    page = pages["evil"]
    data = load(page.parent)
    assert html(shown([data])) == page.read_text()
    for path in draw(shown([data])[0], tmp_path):
        assert path.read_bytes() == (page.parent / "figures" / path.name).read_bytes()


def test_a_recovered_point_goes_by_the_trial_that_it_came_from(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    head, *rows = (run / "front.csv").read_text().splitlines()
    number = RECOVERED + 2
    last = rows[-1].replace(str(TRIALS[-1]), str(number), 1)
    lines = [head + ",parent,recovery_seed", *(row + ",," for row in rows[:-1]), f"{last},{TRIALS[-2]},7"]
    (run / "front.csv").write_text("\n".join(lines) + "\n")
    (run / "exports" / str(TRIALS[-1])).rename(run / "exports" / str(number))
    page = parse(undrawn(run))
    assert f"trial {TRIALS[-2]} recovered" in page.text
    shown_point = json.loads(page.data)["points"][str(number)]
    assert shown_point["label"] == f"{TRIALS[-2]} recovered"
    assert f"recovered: trial {TRIALS[-2]} trained on, with seed 7" in shown_point["changes"]
    assert shown_point["command"].endswith(f"--pick {number}")


def test_a_run_without_exports_or_with_nothing_found_has_a_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", Kind(verified=False))
    shutil.rmtree(run / "exports")
    front = (run / "front.csv").read_text().splitlines()
    assert "not verified" in parse(undrawn(run)).text
    (run / "front.csv").write_text("\n".join(front[:2]) + "\n")
    page = Parsed()  # the same path as above: not the cached one
    page.feed(write(run).read_text())
    assert "found no point besides the uncompressed model" in page.text


def test_points_outside_the_pictures_are_told_and_stay_in_the_data(pages: dict[str, Path]) -> None:
    page = parse(pages["ruined"])
    assert "2 points lie below (accuracy more than 20 % worse than uncompressed); double-click to see all" in page.text
    data = json.loads(page.data)
    low, high = data["axes"]["range"]
    points = data["points"].values()
    assert [p["trial"] for p in points if not low <= p["metric"] <= high] == list(TRIALS[-2:])
    assert [p["trial"] for p in points] == [0, *TRIALS]
    for card in ("smallest", "fastest"):
        assert f"{card} within 5 %" in page.text


def test_a_page_with_all_points_near_has_no_window(pages: dict[str, Path]) -> None:
    page = parse(pages["cpu"])
    assert "double-click" not in page.text
    assert json.loads(page.data)["axes"]["range"] is None


@pytest.mark.parametrize(("metric", "side"), [("accuracy", "below"), ("loss", "above")])
def test_the_drawn_front_is_zoomed_and_says_what_it_leaves_out(tmp_path: Path, metric: str, side: str) -> None:
    data = load(write_run(tmp_path / "run", Kind("jetson-orin-nano", metric=metric, ruined=2)))
    figure = front_figure(data, knee(data))
    assert (
        figure.get_supxlabel() == f"2 points lie {side} this picture ({metric} more than 20 % worse than uncompressed)"
    )
    scale = 100 if metric == "accuracy" else 1
    values = {p.trial: scale * (p.measured_metric or 0.0) for p in data.points}
    for axes in figure.axes[:2]:
        low, high = axes.get_ylim()
        assert [trial for trial, value in values.items() if not low <= value <= high] == list(TRIALS[-2:])
    near = load(write_run(tmp_path / "near"))
    assert front_figure(near, knee(near)).get_supxlabel() == ""


def test_names_stay_within_their_picture(pages: dict[str, Path]) -> None:
    """Also a long one, of the fastest point, which stands at the side."""
    data = load(pages["cpu"].parent)
    trained = [replace(point, parent=point.trial) for point in data.points[1:]]
    data = replace(data, points=(data.points[0], *trained))
    figure = front_figure(data, min(trained, key=lambda point: point.size_bytes))
    figure.draw_without_rendering()
    for axes in figure.axes[:2]:
        sides = axes.get_window_extent()
        names = [text.get_window_extent() for text in axes.texts]
        assert len(names) == len(data.points)
        assert all(sides.x0 <= name.x0 and name.x1 <= sides.x1 for name in names)


def test_a_broken_run_leaves_no_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "front.csv").unlink()
    with pytest.raises(RunError, match=r"front\.csv"):
        write(run)
    assert not (run / "report.html").exists()
