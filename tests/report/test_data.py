"""Reading a run folder and what is concluded from it, before anything is drawn."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocomp.errors import RunError
from autocomp.pareto import NEAR_SHARE
from autocomp.report import words
from autocomp.report.data import LayerFacts, Point, ReportData, StoredFormat
from autocomp.report.load import load
from autocomp.report.views import (
    WINDOW_SHARE,
    Latency,
    best_latency,
    comparisons,
    drop,
    factors,
    front_view,
    knee,
    measured_no_faster,
    metric_window,
    picks,
    within_model_error,
)
from autocomp.task import Direction, Metric
from tests.report.synthetic import TRIALS, Kind, front_rows, write_run


@pytest.fixture(scope="module")
def cpu(tmp_path_factory: pytest.TempPathFactory) -> ReportData:
    return load(write_run(tmp_path_factory.mktemp("report") / "cpu"))


@pytest.fixture(scope="module")
def jetson(tmp_path_factory: pytest.TempPathFactory) -> ReportData:
    return load(write_run(tmp_path_factory.mktemp("report") / "jetson", Kind("jetson-orin-nano")))


def test_points_hold_the_numbers_of_the_csv(cpu: ReportData) -> None:
    for point, row in zip(cpu.points, front_rows(Kind()), strict=True):
        assert (point.trial, point.metric_search, point.size_bytes) == (
            row["trial"], row["metric_search"], row["size_bytes"],
        )  # fmt: skip
        assert (point.measured_metric, point.drop_low, point.drop_high) == (
            row["measured_metric"], row["measured_metric_low"], row["measured_metric_high"],
        )  # fmt: skip
        assert point.plan is not None
        assert point.plan.hash == row["plan_hash"]
    assert cpu.baseline.is_baseline
    assert cpu.asked == "64"
    assert [t.trial for t in cpu.trials if t.state == "failed"] == [13, 44]


def test_reading_a_run_loads_no_heavy_library() -> None:
    script = (
        "import sys, autocomp.report.data, autocomp.report.views, autocomp.report.draw, autocomp.report.page\n"
        "print({'torch', 'matplotlib', 'plotly', 'optuna', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_layer_shows_the_channels_that_a_coupled_layer_takes_from_it(cpu: ReportData) -> None:
    alike = replace(cpu, layers=tuple(replace(layer, units=64) for layer in cpu.layers))
    tied = replace(alike, layers=tuple(replace(layer, group="all") for layer in alike.layers))
    point = cpu.points[7]
    kept = {row.layer.name: row.channels_kept for row in alike.layer_plan(point)}
    assert kept["stem"] == 1.0
    assert kept["block1.conv1"] < 1.0
    rows = tied.layer_plan(point)
    assert {row.channels_kept for row in rows} == {min(kept.values())}
    assert [row.coupled for row in rows] == [kept[row.layer.name] == 1.0 for row in rows]


def test_channels_are_counted_in_whole_units_of_what_the_layer_gives() -> None:
    heads = LayerFacts("q", "linear", (64, 32), (7, 64), 0, 0, "q", units=6)
    assert heads.channels_kept(0.25) == 4 / 6
    up = LayerFacts("up", "conv_transpose2d", (12, 5, 2, 2), (5, 8, 8), 0, 0, None)
    table = LayerFacts("words", "embedding", (30522, 384), (7, 384), 0, 0, None)
    assert (up.outputs, table.outputs, heads.outputs) == (5, 384, 64)
    assert up.channels_kept(0.0) == 1.0


def test_what_a_layer_has_in_the_file_is_shown(tmp_path: Path) -> None:
    """Between integer layers a layer is computed in integers whatever its plan says."""
    run = write_run(tmp_path / "run")
    path = run / "exports" / str(TRIALS[0]) / "verification.json"
    document = json.loads(path.read_text())
    document["layer_formats"] = {"stem": {"weight_bits": 8, "name": "w8a8"}}
    path.write_text(json.dumps(document))
    data = load(run)
    rows = {row.layer.name: row for row in data.layer_plan(data.points[1])}
    assert rows["stem"].plan.format is None
    assert rows["stem"].format == StoredFormat(8, "w8a8")
    assert rows["head"].format is None
    planned = {row.layer.name: row for row in data.layer_plan(data.points[2])}
    assert planned["head"].format == StoredFormat(8, "w8a8")


def test_rank_zeros_and_dropped_blocks_are_read_from_the_plan(cpu: ReportData) -> None:
    rows = {row.layer.name: row for row in cpu.layer_plan(cpu.points[-1])}
    assert {name for name, row in rows.items() if row.dropped} == {"block4.conv1", "block4.conv2"}
    assert rows["block4.conv1"].rank_share == 24 / 64
    assert rows["block1.conv2"].zeros == pytest.approx(0.88)
    assert all(row.untouched for row in cpu.layer_plan(cpu.baseline))


def test_a_folder_without_exports_still_gives_data_and_says_what_is_not_known(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", Kind(verified=False))
    shutil.rmtree(run / "exports")
    data = load(run)
    assert all(point.plan is None for point in data.front)
    assert data.layer_plan(data.front[0]) == ()
    assert data.layer_plan(data.baseline) != ()  # the untouched plan needs no file
    assert all("not verified" in [note.text for note in words.notes(data, point)] for point in data.points)
    assert not any(comparison.pairs for comparison in comparisons(data))


@pytest.mark.parametrize("name", ["front.csv", "trials.csv", "layers.json", "run.json"])
def test_a_missing_file_is_one_line_that_names_it(tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path / "run")
    (run / name).unlink()
    with pytest.raises(RunError, match=name.replace(".", r"\.")) as caught:
        load(run)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("front.csv", "0.985,", "good,", "row 1: metric_search must be a number; got 'good'"),
        ("front.csv", "fitted", "guessed", "latency_source must be one of measured, fitted, datasheet; got 'guessed'"),
        ("front.csv", "plan_hash", "hash", "plan_hash missing"),
        ("front.csv", "0,True,", "0,False,", "must have the baseline as its first row"),
        ("front.csv", "1480000,2.4,", "1480000,-2.4,", "must be positive; got 1480000 and -2.4"),
        ("trials.csv", "failed", "lost", "state must be one of complete, failed, running, stopped; got 'lost'"),
        ("trials.csv", "0.1111:", "some:", "rungs must be pairs of numbers; got 'some:"),
        ("run.json", "maximize", "up", "direction must be one of maximize, minimize; got 'up'"),
        ("run.json", '"task": {', '"job": {', "task must be an object"),
        ("layers.json", '"macs": 640', '"macs": 6.5', "macs must be a whole number; got 6.5"),
        ("layers.json", "[", "", "must be JSON"),
        ("exports/3/plan.json", '"weight_bits": 8', '"weight_bits": 4', "must be the plan that front.csv lists"),
        ("exports/3/plan.json", "layers", "lairs", "a plan must be the JSON"),
    ],
)
def test_a_broken_file_is_one_line_with_the_rule_and_the_value(
    tmp_path: Path, name: str, old: str, new: str, said: str
) -> None:
    run = write_run(tmp_path / "run")
    text = (run / name).read_text()
    assert old in text
    (run / name).write_text(text.replace(old, new, 1))
    with pytest.raises(RunError) as caught:
        load(run)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="must be a folder"):
        load(tmp_path / "nothing")


def test_a_verification_of_another_plan_is_not_believed(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert load(run).points[7].settled is False
    path = run / "exports" / "23" / "verification.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "plan_hash": "another"}))
    assert load(run).points[7].settled is None


def test_like_is_compared_with_like(cpu: ReportData, jetson: ReportData) -> None:
    base, point = cpu.baseline, cpu.front[4]
    assert base.measured_latency_ms is not None
    assert point.measured_latency_ms is not None
    assert factors(cpu, point).speed == base.measured_latency_ms / point.measured_latency_ms
    assert factors(cpu, point).speed_measured
    alone = replace(cpu, points=(replace(base, measured_latency_ms=None), *cpu.front))
    assert factors(alone, point).speed == base.latency_ms / point.latency_ms
    assert not factors(alone, point).speed_measured
    assert not factors(jetson, jetson.front[4]).speed_measured
    assert best_latency(jetson, jetson.front[4]).source == "datasheet"


def test_the_front_stands_on_one_footing(cpu: ReportData) -> None:
    assert front_view(cpu).basis == "exported file, test split"
    unverified = replace(cpu.front[2], measured_metric=None, measured_latency_ms=None)
    mixed = replace(cpu, points=(*cpu.points[:3], unverified, *cpu.points[4:]))
    view = front_view(mixed)
    assert view.basis == "simulated model, search split"
    assert not view.latency_measured
    assert [row.metric for row in view.rows] == [point.metric_search for point in mixed.points]


def test_a_gain_below_the_models_error_is_labelled(jetson: ReportData, cpu: ReportData) -> None:
    label = "within the model's error"
    labelled = [p.trial for p in jetson.points if label in [note.text for note in words.notes(jetson, p)]]
    base = jetson.baseline.latency_ms
    expected = [p.trial for p in jetson.front if base - p.latency_ms < 0.35 * math.hypot(base, p.latency_ms)]
    assert 0 < len(expected) < len(jetson.front)
    assert labelled == expected
    assert not any(within_model_error(cpu, point) for point in cpu.points)


def test_a_measured_gain_within_its_error_is_labelled(cpu: ReportData) -> None:
    base = cpu.baseline.measured_latency_ms
    assert base is not None
    assert measured_no_faster(cpu, replace(cpu.front[0], measured_latency_ms=0.99 * base))
    assert not measured_no_faster(cpu, replace(cpu.front[0], measured_latency_ms=0.8 * base))


def test_an_interval_that_holds_zero_is_indistinguishable(cpu: ReportData) -> None:
    for point in cpu.front:
        found = drop(cpu, point)
        assert found.low is not None
        assert found.high is not None
        assert found.indistinguishable == (found.low <= 0 <= found.high)
        assert words.drop_words(cpu, found).endswith("indistinguishable") == found.indistinguishable
    assert {drop(cpu, point).indistinguishable for point in cpu.front} == {True, False}


def test_a_drop_is_positive_where_it_is_worse_in_either_direction(tmp_path: Path) -> None:
    data = load(write_run(tmp_path / "run", Kind(metric="perplexity")))
    change = drop(data, data.points[-1])
    assert change.value > 0
    assert words.drop_words(data, change).startswith("rise +")
    assert picks(data, knee(data))[-1].point.metric_search == min(p.metric_search for p in data.front)


def test_a_metric_has_its_unit_wherever_it_is_shown(cpu: ReportData, tmp_path: Path) -> None:
    plain = load(write_run(tmp_path / "run", Kind(metric="perplexity")))
    decibels = replace(plain, task=replace(plain.task, metric=Metric("PSNR", "maximize", "dB")))
    point = decibels.points[-1]
    assert words.metric(decibels, 31.25) == "31.25 dB"
    assert words.drop_words(decibels, drop(decibels, point)).partition(" [")[0].endswith(" dB")
    assert words.worse(decibels, 0.5) == "0.500 dB worse"
    assert words.metric_label(decibels, front_view(decibels)).startswith("PSNR in dB (")
    assert words.lost_on_test(decibels) == "drop of PSNR on the test split (dB)"
    assert words.lost_on_test(cpu) == "drop of accuracy on the test split (points)"
    assert words.metric(plain, 31.25) == "31.25"
    assert words.lost_on_test(plain) == "rise of perplexity on the test split"


def test_a_speed_up_is_counted_from_the_same_sitting(cpu: ReportData) -> None:
    """What was timed again by itself moves no other point's factor, whatever the machine was like."""
    point, base_ms = cpu.front[2], cpu.baseline.measured_latency_ms
    assert base_ms is not None
    assert point.measured_latency_ms is not None
    sitting = replace(point, measured_baseline_latency_ms=base_ms)
    slow = replace(cpu.baseline, measured_latency_ms=1.2 * base_ms)
    later = replace(cpu, points=(slow, *cpu.front))
    assert factors(later, sitting) == factors(cpu, point)
    alike = replace(sitting, measured_latency_ms=base_ms)
    assert measured_no_faster(later, alike)
    assert factors(later, alike).speed == 1.0


def test_the_error_told_of_latencies_is_that_of_the_points(jetson: ReportData) -> None:
    def with_errors(*errors: float) -> ReportData:
        front = (replace(p, latency_std_ms=e * p.latency_ms) for p, e in zip(jetson.front, errors, strict=False))
        return replace(jetson, points=(jetson.baseline, *front))

    apart = with_errors(0.19, 0.2)
    assert "a mean error of 35 % (9 published networks, leave-one-out); of these points ±19 to 20 %." in (
        words.latency_promise(apart)
    )
    assert words.latency_label(front_view(apart)) == "latency (ms, datasheet, ±19 to 35 %, not measured)"
    assert "of these points" not in words.latency_promise(with_errors(0.35, 0.35))


def test_within_a_drop_that_was_asked_for_the_ends_are_those_of_the_whole_front(tmp_path: Path) -> None:
    data = load(write_run(tmp_path / "run", Kind(ruined=3)))
    asked = replace(data, request=(*data.request, ("max_drop", "0.08")))  # of an accuracy between 0 and 1
    name, fastest = named(asked, "fastest")
    assert name == "fastest within a drop of 8 points"
    assert fastest == min(data.front, key=lambda p: p.measured_latency_ms or 0)
    assert "Within a drop of 8 points:" in words.near_meaning(asked)


def test_the_cards_name_each_extreme_once(cpu: ReportData) -> None:
    cards = picks(cpu, knee(cpu))
    assert [name for card in cards for name in card.names] == [
        "uncompressed", "knee", "smallest within 5 %", "fastest within 5 %", "most accurate",
    ]  # fmt: skip
    assert len({card.point.trial for card in cards}) == len(cards)
    assert knee(cpu).trial in TRIALS[1:-1]
    assert knee(cpu, 3).trial == 3
    with pytest.raises(RunError, match="must be a trial of the front; got 4"):
        knee(cpu, 4)


def test_what_is_no_smaller_or_faster_than_the_uncompressed_model_has_no_such_name(cpu: ReportData) -> None:
    slow = tuple(replace(point, measured_latency_ms=9.0, latency_ms=9.0) for point in cpu.front)
    names = {name for card in picks(replace(cpu, points=(cpu.baseline, *slow)), cpu.front[0]) for name in card.names}
    assert "smallest within 5 %" in names
    assert not [name for name in names if name.startswith("fastest")]


def named(data: ReportData, start: str) -> tuple[str, Point]:
    return next((n, card.point) for card in picks(data, knee(data)) for n in card.names if n.startswith(start))


@pytest.mark.parametrize("metric", ["accuracy", "perplexity"])
def test_a_ruined_point_is_neither_the_smallest_nor_the_fastest(tmp_path: Path, metric: str) -> None:
    data = load(write_run(tmp_path / "run", Kind(metric=metric, ruined=3)))
    base = data.baseline.metric_search
    good = [p for p in data.front if data.task.metric.drop(base, p.metric_search) <= NEAR_SHARE * base]
    assert 0 < len(good) <= len(data.front) - 3
    name, smallest = named(data, "smallest")
    assert (name, smallest) == ("smallest within 5 %", min(good, key=lambda p: p.measured_size_bytes or 0))
    name, fastest = named(data, "fastest")
    assert (name, fastest) == ("fastest within 5 %", min(good, key=lambda p: p.measured_latency_ms or 0))


def test_where_no_point_is_near_the_cards_say_so(tmp_path: Path) -> None:
    data = load(write_run(tmp_path / "run", Kind(ruined=len(TRIALS))))
    assert named(data, "smallest") == ("smallest (no point within 5 %)", data.points[-1])
    assert named(data, "fastest")[0] == "fastest (no point within 5 %)"


_VALUES = st.floats(-1e6, 1e6)


@given(_VALUES, _VALUES, st.floats(0.001, 1.0))
def test_near_is_relative_and_mirrored_for_a_metric_to_minimize(base: float, value: float, share: float) -> None:
    up, down = Metric("m", "maximize"), Metric("m", "minimize")
    assert up.near(base, value, share) == down.near(-base, -value, share)
    assert up.near(base, max(base, value), share)  # as good or better is always near
    assert up.near(base, base - share * abs(base), share)
    assert not up.near(base, base - 1.01 * share * abs(base) - 1e-6, share)


@pytest.mark.parametrize(("metric", "side"), [("accuracy", "below"), ("perplexity", "above")])
def test_the_picture_starts_at_the_points_near_the_uncompressed_model(tmp_path: Path, metric: str, side: str) -> None:
    data = load(write_run(tmp_path / "run", Kind(metric=metric, ruined=2)))
    view = front_view(data)
    window = metric_window(data, view)
    assert window is not None
    assert (window.side, window.hidden) == (side, TRIALS[-2:])
    assert words.hidden(2, side) == f"2 points lie {side}"
    assert words.hidden(1, side) == f"1 point lies {side}"
    assert len(view.rows) == len(TRIALS) + 1  # the points themselves all stay
    for row in view.rows:
        assert (window.low < row.metric < window.high) == (row.point.trial not in window.hidden)
        if data.task.metric.near(view.rows[0].metric, row.metric, WINDOW_SHARE):
            assert row.point.trial not in window.hidden


def test_the_picture_shows_all_where_all_or_none_are_near(cpu: ReportData, tmp_path: Path) -> None:
    assert metric_window(cpu, front_view(cpu)) is None
    ruined = load(write_run(tmp_path / "run", Kind(ruined=len(TRIALS))))
    assert metric_window(ruined, front_view(ruined)) is None
    empty = replace(cpu, points=cpu.points[:1])
    assert metric_window(empty, front_view(empty)) is None


@given(st.lists(st.floats(0.0, 100.0), min_size=1, max_size=11), st.sampled_from(["maximize", "minimize"]))
def test_a_window_holds_the_baseline_and_hides_worse_points_only(
    cpu: ReportData, values: list[float], direction: Direction
) -> None:
    scored = (replace(p, measured_metric=None, metric_search=v) for p, v in zip(cpu.points, [50.0, *values]))
    data = replace(cpu, task=replace(cpu.task, metric=Metric("score", direction)), points=tuple(scored))
    view = front_view(data)
    window = metric_window(data, view)
    if window is not None:
        assert window.low < 50.0 < window.high
        for row in view.rows:
            hidden = row.point.trial in window.hidden
            assert hidden != (window.low <= row.metric <= window.high)
            assert not hidden or data.task.metric.drop(50.0, row.metric) > WINDOW_SHARE * 50.0


def test_a_run_that_found_nothing_has_only_its_baseline(cpu: ReportData) -> None:
    empty = replace(cpu, points=cpu.points[:1])
    assert knee(empty) == cpu.baseline
    assert [card.names for card in picks(empty, knee(empty))] == [("uncompressed",)]


def test_no_choice_reads_the_test_split(cpu: ReportData) -> None:
    def worse(point: Point) -> Point:
        return replace(point, metric_test=0.1, measured_metric=point.trial / 100, drop_low=0.5, drop_high=0.9)

    other = replace(cpu, points=tuple(worse(point) for point in cpu.points))
    assert [(c.names, c.point.trial) for c in picks(other, knee(other))] == [
        (c.names, c.point.trial) for c in picks(cpu, knee(cpu))
    ]


def test_agreement_counts_the_pairs_inside_the_band(cpu: ReportData) -> None:
    latency, size, metric = comparisons(cpu)
    assert latency.within == size.within == metric.within == 12
    off = replace(latency, pairs=(*latency.pairs[:-1], (52, 1.21, 1.0)))
    assert (off.within, len(off.pairs)) == (11, 12)
    assert words.agreement(cpu, off) == "11 of 12 within ±20 %"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (Latency(2.3149, "datasheet", 0.35), "2.31 ms (datasheet, ±35 %)"),
        (Latency(0.06812, "measured", 0.021), "0.0681 ms (measured, ±2.1 %)"),
        (Latency(1234.5, "fitted", None), "1,234 ms (fitted, error unknown)"),
    ],
)
def test_a_latency_is_never_bare(value: Latency, said: str) -> None:
    assert words.latency(value) == said


@given(st.floats(1e-4, 1e9))
def test_shown_digits_are_the_number_within_half_a_percent(value: float) -> None:
    assert float(words.digits(value).replace(",", "")) == pytest.approx(value, rel=0.005)


def test_a_slower_or_larger_point_is_not_called_faster(cpu: ReportData) -> None:
    worse = replace(cpu.front[0], measured_latency_ms=4.6, measured_size_bytes=2_960_000)
    assert words.smaller(factors(cpu, worse)) == "2.00× larger"
    assert words.faster(factors(cpu, worse)).endswith("× slower")


def test_two_digits_say_enough_of_a_number_whatever_it_rounds_to() -> None:
    numbers = (0.0412, 4.12, 99.4, 99.6, 99.97, 100.0, 1234.5)
    assert [words.brief(number) for number in numbers] == ["0.041", "4.1", "99", "100", "100", "100", "1,234"]
