"""What a report explains a run by, as data: a handful of points, the hypervolume, sensitivities, costs, cards."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocomp.errors import RequestError, RunError
from autocomp.hardware.latency import HeldOutError
from autocomp.pareto import BEYOND, NEAR_SHARE, hypervolume
from autocomp.plan import Plan
from autocomp.report import trusting
from autocomp.report.card import Shipped, card
from autocomp.report.data import Point, ReportData, StoredFormat
from autocomp.report.handful import DISTINCT, MOST, beside, handful
from autocomp.report.load import load
from autocomp.report.payload import payload
from autocomp.report.shown import shared_window, shown
from autocomp.report.tried import climbed, growth, reference, searched
from autocomp.report.views import WINDOW_SHARE, depth, front_view, intervals, knee, picks, predicted_slower
from autocomp.report.words import bits_share, notes, worse
from autocomp.search.hypervolume import areas_left
from autocomp.trial import RECOVERED
from tests.report.synthetic import LAYERS, TRIALS, Kind, plan, write_run
from tests.report.synthetic_long import write_long_run


@pytest.fixture(scope="module")
def cpu(tmp_path_factory: pytest.TempPathFactory) -> ReportData:
    return load(write_run(tmp_path_factory.mktemp("explained") / "cpu"))


def measures(point: Point) -> tuple[float, float, float]:
    return (
        math.log(point.measured_latency_ms or 1),
        math.log(point.measured_size_bytes or 1),
        point.metric_search,
    )


class TestHandful:
    def test_points_with_a_name_come_first_and_each_once(self, cpu: ReportData) -> None:
        found = handful(cpu, knee(cpu))
        named = picks(cpu, knee(cpu))
        assert [one.names for one in found[: len(named)]] == [pick.names for pick in named]
        trials = [one.point.trial for one in found]
        assert len(trials) == len(set(trials)) <= MOST
        assert all(one.why for one in found)

    def test_of_a_long_front_only_truly_different_points_are_listed(self, tmp_path: Path) -> None:
        data = load(write_long_run(tmp_path / "run", trials=300, front=120, layers=4))
        found = handful(data, knee(data))
        assert len(found) == MOST < len(data.points)
        between = [one for one in found if not one.names]
        assert between
        metric, base = data.task.metric, data.baseline.metric_search
        assert all(metric.near(base, one.point.metric_search, WINDOW_SHARE) for one in between)
        # Latency, size and drop, each scaled to its span: nobody is a neighbour of one listed before.
        for place, one in enumerate(found):
            if one.names:
                continue
            share = NEAR_SHARE if metric.near(base, one.point.metric_search, NEAR_SHARE) else WINDOW_SHARE
            within = [p for p in data.points if metric.near(base, p.metric_search, share)]
            spans = [max(values) - min(values) for values in zip(*(measures(p) for p in within if not p.is_baseline))]
            for other in found[:place]:
                if other.point in within:
                    pairs = zip(measures(one.point), measures(other.point), spans, strict=True)
                    assert math.hypot(*((a - b) / span for a, b, span in pairs)) >= DISTINCT - 1e-9

    def test_points_that_lose_little_come_before_those_that_lose_much(self, tmp_path: Path) -> None:
        data = load(write_long_run(tmp_path / "run", trials=300, front=120, layers=4))
        metric, base = data.task.metric, data.baseline.metric_search
        between = [one.point for one in handful(data, knee(data)) if not one.names]
        near = [metric.near(base, point.metric_search, NEAR_SHARE) for point in between]
        assert near[0]
        assert near == sorted(near, reverse=True)

    def test_no_point_is_said_to_be_near_that_is_not(self, tmp_path: Path) -> None:
        data = load(write_run(tmp_path / "run", Kind(ruined=len(TRIALS))))
        assert {name for one in handful(data, knee(data)) for name in one.names} >= {"smallest (no point within 5 %)"}
        assert not [one.why for one in handful(data, knee(data)) if "at most" in one.why]

    def test_how_two_points_differ_is_told_in_factors_and_points(self, cpu: ReportData) -> None:
        one, other = cpu.points[9], cpu.points[3]
        size = (other.measured_size_bytes or 0) / (one.measured_size_bytes or 1)
        lost = 100 * (other.metric_search - one.metric_search)
        said = beside(cpu, one, other)
        assert said.startswith(f"{size:.2f}× smaller")
        assert said.endswith(f"than trial {other.trial}, {lost:.2f} points worse on the search split")
        assert worse(cpu, 0.0) == "no worse"
        assert worse(cpu, -0.01) == "1.00 points better"

    def test_beside_the_uncompressed_file_speed_is_that_of_one_sitting(self, cpu: ReportData) -> None:
        one = cpu.points[9]
        timed_again = replace(one, measured_baseline_latency_ms=3.0 * (one.measured_latency_ms or 0.0))
        data = replace(cpu, points=(*cpu.points[:9], timed_again, *cpu.points[10:]))
        assert "3.00× faster than uncompressed" in beside(data, timed_again, data.baseline)

    def test_a_front_of_one_point_has_a_handful(self, cpu: ReportData) -> None:
        alone = replace(cpu, points=cpu.points[:1])
        assert [one.names for one in handful(alone, knee(alone))] == [("uncompressed",)]


UNIT = st.floats(0.0, 1.2)


def sliced(points: list[tuple[float, float, float]]) -> float:
    """The dominated volume, slice by slice: what a corner of nothing is covered by is a staircase."""
    ends = [*(value for value, _, _ in points[1:]), 1.0]
    return sum(
        (end - points[place][0])
        * (1.0 - float(areas_left([one[1:] for one in points[: place + 1]], np.zeros((1, 2)))[0]))
        for place, end in enumerate(ends[: len(points)])
    )


class TestGrowth:
    @given(st.lists(st.tuples(UNIT, UNIT, UNIT), max_size=12))
    def test_the_volume_is_that_of_the_search(self, points: list[tuple[float, float, float]]) -> None:
        inside = [point for point in points if max(point) < 1.0]
        assert hypervolume(inside) == pytest.approx(sliced(sorted(inside)), abs=1e-9)

    def test_it_never_shrinks_and_ends_at_the_front_of_all_trials(self, cpu: ReportData) -> None:
        found = growth(cpu)
        assert found.trials[0] == 0
        assert found.trials[-1] == 62  # the last one that ended
        assert list(found.volumes) == sorted(found.volumes)
        base = cpu.baseline
        costs = [
            (max((base.metric_search - t.metric_search) / (0.1 * base.metric_search), 0.0),
             t.latency_ms / base.latency_ms, t.size_bytes / base.size_bytes)
            for t in cpu.trials if t.metric_search is not None and t.latency_ms is not None and t.size_bytes is not None
        ]  # fmt: skip
        assert found.volumes[-1] == pytest.approx(hypervolume(costs))

    def test_where_nothing_is_faster_what_is_smaller_counts(self, cpu: ReportData) -> None:
        slow = tuple(replace(t, latency_ms=cpu.baseline.latency_ms) for t in cpu.trials if t.latency_ms is not None)
        found = growth(replace(cpu, trials=slow))
        assert reference(replace(cpu, trials=slow)) == (BEYOND * cpu.baseline.latency_ms, cpu.baseline.size_bytes)
        assert found.volumes[-1] > found.volumes[0] >= 0.0
        assert reference(cpu) == (cpu.baseline.latency_ms, cpu.baseline.size_bytes)

    def test_recovered_trials_have_no_say(self, cpu: ReportData) -> None:
        recovered = replace(cpu.trials[3], trial=RECOVERED, metric_search=1.0, latency_ms=0.01, size_bytes=10)
        more = replace(cpu, trials=(*cpu.trials, recovered))
        assert growth(more) == growth(cpu)
        assert recovered not in searched(more)

    def test_of_a_long_search_it_is_told_at_some_trials(self, tmp_path: Path) -> None:
        found = growth(load(write_long_run(tmp_path / "run", trials=700, front=20, layers=2)))
        assert len(found.trials) < 70
        assert (found.trials[0], found.trials[-1]) == (0, 699)

    def test_a_search_without_a_finished_trial_has_none(self, cpu: ReportData) -> None:
        assert growth(replace(cpu, trials=())).trials == ()


class TestClimbed:
    def test_the_last_part_is_all_of_the_split(self, cpu: ReportData) -> None:
        found = climbed(cpu)
        assert {one.trial for one in found} == {one.trial for one in cpu.trials if one.state == "complete"}
        assert {one.trial for one in found if one.fate == "front"} == {one.trial for one in cpu.front}
        metrics = {one.trial: one.metric_search for one in cpu.trials}
        for one in found:
            assert one.shares == (0.1111, 0.3333, 1.0)
            assert one.metrics[-1] == metrics[one.trial]

    def test_a_trial_that_was_stopped_ends_before(self, cpu: ReportData) -> None:
        first = next(one for one in cpu.trials if one.rungs)
        stopped = replace(first, state="stopped", metric_search=None, rungs=first.rungs[:1])
        found = climbed(replace(cpu, trials=(stopped,)))
        assert [(one.fate, one.shares) for one in found] == [("stopped", (0.1111,))]

    def test_a_search_that_looked_at_all_at_once_has_none(self, cpu: ReportData) -> None:
        assert climbed(replace(cpu, trials=tuple(replace(one, rungs=()) for one in cpu.trials))) == ()


class TestExplanation:
    def test_costs_by_layer_are_read_with_the_plan_that_they_are_of(self, cpu: ReportData) -> None:
        spent = cpu.spent[plan(3, Kind()).hash]
        assert set(spent.latency_ms) == set(LAYERS)
        assert spent.other_size_bytes == 903
        told = json.loads(json.dumps(payload(shown([cpu]))))["runs"][0]["spent"][plan(3, Kind()).hash]
        assert told["us"] == [round(1000 * spent.latency_ms[name], 2) for name in LAYERS]
        assert told["otherUs"] == 60.0

    def test_the_latency_models_errors_are_read(self, cpu: ReportData) -> None:
        pairs = ((0.5, 0.51), (2.0, 1.9), (8.0, 8.4))
        assert cpu.held_out == HeldOutError(0.041, 0.032, 0.92, 0.98, 25, "25 of 100", pairs)
        told = json.loads(json.dumps(payload(shown([cpu]))))["runs"][0]["heldOut"]
        assert (told["measured"], told["predicted"]) == ([0.5, 2.0, 8.0], [0.51, 1.9, 8.4])

    def test_sensitivities_have_the_names_of_their_options(self, cpu: ReportData) -> None:
        assert [one.decision for one in cpu.sensitivities] == [f"format:{name}" for name in LAYERS]
        assert cpu.sensitivities[2].errors == (0.0, 0.002, 0.6)
        assert cpu.sensitivities[2].options == ("as it is", "w8a8", "w4a8")
        assert (depth(0.0), depth(1e-5), depth(1.0), depth(10.0)) == (0.0, 0.0, 1.0, 1.0)
        assert depth(1e-3) == pytest.approx(0.4)

    def test_a_run_that_tells_less_is_read_as_well(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "run")
        (run / "explanation.json").unlink()
        with (run / "events.jsonl").open("a") as file:
            file.write('{"event": "sensitivity", "decis')  # cut short by a crash
        data = load(run)
        assert (data.spent, data.held_out) == ({}, None)
        assert len(data.sensitivities) == len(LAYERS)
        assert data.sensitivities[0].options == ()
        (run / "events.jsonl").unlink()
        assert load(run).sensitivities == ()

    @pytest.mark.parametrize(
        ("broken", "said"),
        [
            ({"spent": {"x": {"latency_ms": {"stem": "fast"}}}}, "latency_ms must be an object of numbers"),
            ({"held_out": {"mean": 0.1}}, "median must be a number"),
            (
                {"held_out": {**asdict(HeldOutError(0.1, 0.1, 0.5, 0.9, 4, "")), "pairs": [[1.0]]}},
                "pairs must be a list of pairs of numbers",
            ),
            ({"decisions": [{"name": "format:stem", "options": [1]}]}, "options must be a list of texts"),
            ({"decisions": {}}, "decisions must be a list of objects"),
        ],
    )
    def test_what_is_malformed_is_named(self, tmp_path: Path, broken: dict[str, object], said: str) -> None:
        run = write_run(tmp_path / "run")
        (run / "explanation.json").write_text(json.dumps(broken))
        with pytest.raises(RunError, match=rf"explanation\.json.*{said}.*rebuild"):
            load(run)


def test_only_of_a_file_that_was_scored_it_is_said_that_no_device_was_there_to_time_it(cpu: ReportData) -> None:
    unmeasured = replace(cpu.points[-1], measured_metric=None, measured_latency_ms=None)
    scored = replace(cpu.points[-1], measured_latency_ms=None)
    for last, said in ((unmeasured, False), (scored, True)):
        page = trusting.notes(shown([replace(cpu, points=(*cpu.points[:-1], last))]))
        assert ("the device was out of reach" in page) == said
        assert ("are not verified" in page) == (not said)


class TestCard:
    def test_it_tells_what_was_measured_of_which_file(self, cpu: ReportData) -> None:
        point = cpu.points[4]
        text = card(cpu, point, Shipped("model.onnx", "onnx-packed", 1234, True))
        assert text.startswith("# digits, compressed for cpu\n")
        assert "`model.onnx`: 1,234 bytes, format onnx-packed; the file that was verified." in text
        assert f"{point.measured_size_bytes:,} |" in text
        assert "| 1.25 ms (measured, ±2 %) |" in text
        assert "\n| block1.conv1 | channel 28%, w4a8 | w4a8 |\n" in text
        assert "\n| block4.conv1 | left out | – |\n" in card(cpu, cpu.points[-1])  # there is nothing of it in the file
        other = card(cpu, point, Shipped("model.onnx", "onnx", (cpu.baseline.measured_size_bytes or 0) // 2, False))
        assert "built anew" in other
        assert ": 2.00× smaller than the uncompressed file; its latency and accuracy were not measured.\n" in other
        assert "`model.pt2`: 99 bytes, format torch;" in card(cpu, point, Shipped("model.pt2", "torch", 99, False))
        assert "once" not in text  # `autocomp verify` may have read the test split again

    def test_memory_is_shown_where_it_was_measured(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "run")
        before = load(run).points[4]
        path = run / "exports" / str(before.trial) / "verification.json"
        document = json.loads(path.read_text())
        document["measured"]["peak_memory_bytes"] = 4_560_000
        path.write_text(json.dumps(document))
        data = load(run)
        assert re.search(
            r"\| memory to run it \| .* \(predicted\) \| 4\.56 MB \(measured\) \|", card(data, data.points[4])
        )
        assert re.search(r"\| memory to run it \| .* \(predicted\) \| not measured \|", card(data, data.points[5]))

    def test_what_was_not_measured_is_said(self, tmp_path: Path) -> None:
        data = load(write_run(tmp_path / "jetson", Kind("jetson-orin-nano", verified=False)))
        text = card(data, data.points[4], Shipped("model.onnx", "onnx", 99, False))
        assert "never verified" in text
        assert "| latency | 1.30 ms (datasheet, ±35 %) | not measured |" in text
        assert "No latency here was measured on the device" in text

    def test_texts_of_a_user_stay_texts(self, tmp_path: Path) -> None:
        data = load(write_run(tmp_path / "evil", Kind(task="a | b", stem="<script>alert(1)</script>|x")))
        text = card(data, data.points[-1])
        assert "# a \\| b, compressed" in text
        assert "<script" not in text
        assert "&lt;script>alert(1)&lt;/script>\\|x |" in text


class TestShown:
    def test_runs_with_different_metrics_have_no_page_together(self, cpu: ReportData, tmp_path: Path) -> None:
        other = load(write_run(tmp_path / "other", Kind(metric="perplexity")))
        with pytest.raises(RequestError, match=r"must have one metric; .*accuracy.*perplexity.*make a page of each"):
            shown([cpu, other])

    def test_points_of_several_runs_go_by_the_runs_place(self, cpu: ReportData) -> None:
        (alone,) = shown([cpu])
        first, second = shown([cpu, cpu])
        assert (alone.key(cpu.points[1]), first.key(cpu.points[1]), second.key(cpu.points[1])) == ("3", "1-3", "2-3")
        assert second.name(cpu.points[1]) == "cpu, trial 3"
        told = payload((first, second))
        assert list(json.loads(json.dumps(told["points"]))) == [
            f"{run}-{trial}" for run in (1, 2) for trial in (0, *TRIALS)
        ]

    def test_a_limit_is_held_against_the_best_that_is_known_of_a_point(self, cpu: ReportData) -> None:
        """Though the picture has all points on one footing; and what loses exactly the limit keeps it."""
        slower = replace(cpu.points[1], latency_ms=2.1, measured_latency_ms=2.6, metric_search=0.7)
        base = replace(cpu.baseline, metric_search=0.8)
        unmeasured = replace(cpu.points[2], measured_latency_ms=None)
        data = replace(cpu, points=(base, slower, unmeasured))
        points = json.loads(json.dumps(payload(shown([data]))["points"]))
        assert points[str(slower.trial)]["ms"] == 2.1
        assert [points[str(one.trial)]["limit_ms"] for one in (slower, unmeasured)] == [2.6, unmeasured.latency_ms]
        assert points[str(slower.trial)]["limit_drop"] == 10.0  # 0.8 - 0.7 is a little more than 0.1

    def test_an_axis_of_several_runs_names_what_each_stands_for(self, cpu: ReportData) -> None:
        unscored = replace(cpu, points=(cpu.baseline, replace(cpu.points[1], measured_metric=None)))
        metric = str(json.loads(json.dumps(payload(shown([cpu, unscored]))["axes"]))["metric"])
        assert "exported file, test split" in metric
        assert "simulated model, search split" in metric

    def test_runs_of_one_folder_name_are_told_apart(self, cpu: ReportData) -> None:
        here, there = (replace(cpu, run=f"{place}/cpu") for place in ("here", "there"))
        assert [run.data.name for run in shown([here, there])] == ["here/cpu", "there/cpu"]
        assert [run.data.name for run in shown([here, replace(cpu, run="there/gpu")])] == ["cpu", "gpu"]

    def test_a_window_that_several_runs_share_counts_what_is_outside_it(self, cpu: ReportData, tmp_path: Path) -> None:
        ruined = load(write_run(tmp_path / "ruined", Kind(ruined=2)))
        window = shared_window(shown([cpu, ruined]))
        assert window is not None
        assert window.hidden == TRIALS[-2:]
        low = min(row.metric for row in front_view(ruined).rows)
        scored = replace(cpu.points[1], measured_metric=low - 0.01)
        deep = replace(cpu, points=(replace(cpu.baseline, measured_metric=low), scored))
        assert shared_window(shown([deep, ruined])) is None  # every point of the other is within it


def test_of_equal_points_the_one_that_is_exported_by_that_name_has_it(cpu: ReportData) -> None:
    slow, fast = cpu.points[1], cpu.points[2]
    both = tuple(
        replace(one, metric_search=0.9, latency_ms=ms, measured_latency_ms=None)
        for one, ms in ((slow, 2.0), (fast, 1.0))
    )
    data = replace(cpu, points=(cpu.baseline, *both))
    (best,) = [card.point for card in picks(data, both[0]) if "most accurate" in card.names]
    assert best.trial == fast.trial


def test_a_card_names_integers_that_only_the_file_has(cpu: ReportData) -> None:
    """An untouched layer between integer ones."""
    point = next(one for one in cpu.front if any(row.untouched for row in cpu.layer_plan(one)))
    row = next(row for row in cpu.layer_plan(point) if row.untouched)
    formats = {**(point.formats or {}), row.layer.name: StoredFormat(8, "w8a8")}
    told = card(cpu, replace(point, formats=formats))
    assert f"| {row.layer.name} | untouched | w8a8 |" in told


def test_intervals_are_of_points_whose_files_were_scored(cpu: ReportData, tmp_path: Path) -> None:
    found = intervals(cpu, cpu.points)
    assert [each.point.trial for each in found] == list(TRIALS)
    bare = load(write_run(tmp_path / "bare", Kind(verified=False)))
    assert intervals(bare, bare.points) == ()


def test_a_point_that_is_predicted_to_be_slower_says_so(cpu: ReportData) -> None:
    slow = replace(cpu.points[1], latency_ms=3.0, latency_std_ms=0.05)
    data = replace(cpu, points=(cpu.baseline, slow))
    assert predicted_slower(data, slow)
    assert [note.text for note in notes(data, slow) if note.about == "predicted latency"] == ["predicted: slower"]
    assert not predicted_slower(cpu, cpu.points[1])


def test_a_ruined_network_is_no_knee(tmp_path: Path) -> None:
    data = load(write_run(tmp_path / "run", Kind(ruined=4)))
    assert knee(data).trial in TRIALS[:-4]
    all_ruined = replace(data, points=(data.baseline, *data.points[-4:]))
    assert knee(all_ruined).trial in TRIALS[-4:]


def test_every_halving_of_bits_counts_as_much() -> None:
    assert [bits_share(bits) for bits in (32, 8, 2, 1)] == pytest.approx([1.0, 0.6, 0.2, 0.0])


def test_the_plans_in_a_page_are_those_of_the_run(cpu: ReportData) -> None:
    run = json.loads(json.dumps(payload(shown([cpu]))))["runs"][0]
    for point in cpu.points:
        told = run["plans"][str(point.trial)]
        parts = [run["parts"][place] if place >= 0 else None for place in told["parts"]]
        layers = {name: part for name, part in zip(LAYERS, parts, strict=True) if part is not None}
        assert Plan.from_json(json.dumps({"layers": layers, "dropped_blocks": told["dropped"]})) == point.plan
