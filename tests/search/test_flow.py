"""A search from request to verified front, and the same folder taken up again."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autocomp.errors import RunError, SpaceError, TaskError, WorkError
from autocomp.finished import Run
from autocomp.plan import Plan
from autocomp.run import RunFolder
from autocomp.search import flow
from autocomp.search.begin import Setup
from autocomp.search.drop import drop_interval
from autocomp.search.landscape import UNFORESEEN, Landscape, without_errors
from autocomp.search.points import verifications
from autocomp.search.rungs import FEWEST
from autocomp.search.tables import FRONT_COLUMNS, TRIAL_COLUMNS
from autocomp.task import Metric, Predict, Score, Split, Task
from autocomp.trial import Trial
from autocomp.watch import SILENT, Silent
from tests import small_task
from tests.targets import REQUEST, made_target, small_setup, with_task

pytestmark = pytest.mark.slow


class Heard(Silent):
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.trials: list[int] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def trial(self, trial: Trial, trials: object, asked: int, metric: object) -> None:
        self.trials.append(trial.number)


def counting(task: Task, log: Path, die_at: int | None = None) -> Task:
    """``task`` with a line in ``log`` for every evaluation on the search split; number ``die_at`` kills the process."""

    def evaluate(predict: Predict, split: Split, fraction: float = 1.0) -> Score:
        score = task.evaluate(predict, split, fraction)  # raises where no more than the first inputs are looked at
        if split == "search":
            if die_at is not None and len(_lines(log)) == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            with log.open("a") as file:
                file.write("evaluated\n")
        return score

    return replace(task, evaluate=evaluate)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def plans(trials: Iterable[Trial]) -> list[str]:
    return [trial.plan.hash for trial in trials]


def document(path: Path) -> Any:
    return json.loads(path.read_text())


#: Of a file of one or two kilobytes, which only a network for tests is.
SOME_BYTES = 64


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> RunFolder:
    """A copy to change."""
    return RunFolder(Path(shutil.copytree(finished_run, tmp_path / "run")))


class TestFinished:
    def test_the_folder_holds_what_the_contract_says(self, finished_run: Path) -> None:
        names = {path.name for path in finished_run.iterdir()} - {".lock"}
        assert names == {"run.json", "study.log", "events.jsonl", "layers.json", "front.csv", "trials.csv", "exports"}
        front = rows(finished_run / "front.csv")
        assert tuple(front[0]) == FRONT_COLUMNS
        assert {path.name for path in (finished_run / "exports").iterdir()} == {row["trial"] for row in front}
        for row in front:
            files = {path.name for path in (finished_run / "exports" / row["trial"]).iterdir()}
            assert files == {"model.onnx", "plan.json", "verification.json"}

    def test_run_json_says_what_was_asked_and_where(self, finished_run: Path) -> None:
        found = document(finished_run / "run.json")
        assert RunFolder(finished_run).request() == REQUEST
        told = {"name": "small", "metric": "accuracy", "direction": "maximize", "search_examples": 100}
        assert told.items() <= found["task"].items()
        assert found["target"]["latency_source"] == "fitted"
        assert {"autocomp", "torch", "onnxruntime", "optuna"} <= set(found["versions"])
        assert {"weights_hash", "profile_hash", "space_hash", "git_commit", "fingerprint", "created"} <= set(found)

    def test_there_are_as_many_trials_as_asked_for_and_the_first_is_untouched(self, finished_run: Path) -> None:
        trials = rows(finished_run / "trials.csv")
        assert tuple(trials[0]) == TRIAL_COLUMNS
        assert [row["trial"] for row in trials] == [str(number) for number in range(REQUEST.trials)]
        assert {row["state"] for row in trials} == {"complete"}
        assert trials[0]["plan_hash"] == Plan().hash
        assert [row["is_baseline"] for row in trials] == ["true"] + ["false"] * (REQUEST.trials - 1)

    def test_the_front_starts_with_the_baseline_and_beats_it(self, finished_run: Path) -> None:
        front = rows(finished_run / "front.csv")
        assert front[0]["trial"] == "0"
        assert len(front) > 1
        assert all(int(row["size_bytes"]) < int(front[0]["size_bytes"]) for row in front[1:])

    def test_every_point_is_a_file_of_the_predicted_size(self, finished_run: Path) -> None:
        for row in rows(finished_run / "front.csv"):
            size = (finished_run / "exports" / row["trial"] / "model.onnx").stat().st_size
            assert int(row["measured_size_bytes"]) == size
            assert int(row["size_bytes"]) == pytest.approx(size, rel=0.01, abs=SOME_BYTES)

    def test_every_point_is_verified_on_the_test_split(self, finished_run: Path) -> None:
        for row in rows(finished_run / "front.csv"):
            found = document(finished_run / "exports" / row["trial"] / "verification.json")
            measured = found["measured"]
            assert str(found["trial"]) == row["trial"]
            assert found["plan_hash"] == row["plan_hash"]
            assert float(row["measured_metric"]) == measured["metric_test"]
            assert abs(found["simulated"]["metric_test"] - measured["metric_test"]) <= 2.0  # two images of a hundred
            assert measured["drop_low"] <= measured["drop"] <= measured["drop_high"]
            assert float(row["measured_metric_low"]) == measured["drop_low"]

    def test_a_target_out_of_reach_has_no_measured_latency(self, finished_run: Path) -> None:
        for row in rows(finished_run / "front.csv"):
            assert row["measured_latency_ms"] == ""
            assert float(row["latency_ms"]) > 0
            assert row["latency_source"] == "fitted"

    def test_the_plans_beside_the_files_are_those_of_the_trials(self, finished_run: Path) -> None:
        by_number = {trial.number: trial for trial in flow.load_trials(RunFolder(finished_run))}
        for row in rows(finished_run / "front.csv"):
            text = (finished_run / "exports" / row["trial"] / "plan.json").read_text()
            assert Plan.from_json(text) == by_number[int(row["trial"])].plan

    def test_the_inventory_is_written(self, finished_run: Path) -> None:
        layers = json.loads((finished_run / "layers.json").read_text())
        assert [layer["name"] for layer in layers] == ["stem", "conv1", "conv2", "head"]
        assert [layer["prunable"] for layer in layers] == [True, True, True, False]

    def test_tables_are_rebuilt_from_the_truth(self, run: RunFolder, finished_run: Path) -> None:
        for path in run.path.rglob("*"):
            if path.is_file() and path.name not in {"run.json", "study.log", "events.jsonl", "model.onnx"}:
                path.unlink()
        flow.rebuild(run)
        for name in ("front.csv", "trials.csv"):
            assert (run.path / name).read_text() == (finished_run / name).read_text()
        for path in (finished_run / "exports").rglob("*.json"):
            assert (run.path / path.relative_to(finished_run)).read_text() == path.read_text()

    def test_points_that_were_verified_are_not_verified_again(self, run: RunFolder) -> None:
        before = (run.path / "events.jsonl").read_bytes()
        heard = Heard()
        flow.search(small_setup(), run, resume=True, watcher=heard)
        assert (run.path / "events.jsonl").read_bytes() == before
        assert heard.trials == []

    def test_a_verification_that_a_crash_cut_short_is_made_up_for(self, run: RunFolder) -> None:
        path = run.path / "events.jsonl"
        path.write_bytes(path.read_bytes()[:-30])
        points = flow.front_of(run)
        lost = {point.plan.hash for point in points} - set(verifications(run))
        assert len(lost) == 1
        flow.search(small_setup(), run, resume=True, watcher=SILENT)
        assert {point.plan.hash for point in points} <= set(verifications(run))
        assert all(row["measured_metric"] for row in rows(run.path / "front.csv"))


CHILD = """
import sys
from pathlib import Path
from autocomp.run import RunFolder
from autocomp.search import flow
from autocomp.search.begin import Setup
from autocomp.watch import SILENT
from tests import small_task
from tests.search.test_flow import counting
from tests.targets import with_task
folder, log = Path(sys.argv[1]), Path(sys.argv[2])
flow.search(with_task(counting(small_task.task(), log, die_at=6)), RunFolder(folder), resume=False, watcher=SILENT)
"""


@pytest.mark.exhaustive
def test_killed_in_mid_search_it_goes_on_as_if_undisturbed(finished_run: Path, tmp_path: Path) -> None:
    """The child scores the untouched model once for the check, then trials 0 to 4, and dies in trial 5."""
    folder, log = RunFolder(tmp_path / "run"), tmp_path / "evaluations"
    command = [sys.executable, "-c", CHILD, str(folder.path), str(log)]
    child = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False, timeout=120
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert len(_lines(log)) == 6
    assert [trial.state for trial in flow.load_trials(folder)] == ["complete"] * 5 + ["running"]
    heard = Heard()
    flow.search(with_task(counting(small_task.task(), log)), folder, resume=True, watcher=heard)
    trials = flow.load_trials(folder)
    undisturbed = flow.load_trials(RunFolder(finished_run))
    assert heard.trials == [5, 6, 7]
    assert [trial.number for trial in trials] == list(range(REQUEST.trials))
    assert {trial.state for trial in trials} == {"complete"}
    assert plans(trials) == plans(undisturbed)
    assert [trial.metric for trial in trials] == [trial.metric for trial in undisturbed]
    assert len(_lines(log)) == 2 + len(set(plans(trials)))  # each plan once, and the check of both sittings
    assert plans(flow.front_of(folder)) == plans(flow.front_of(RunFolder(finished_run)))


def test_a_trial_that_raises_is_recorded_and_the_search_goes_on(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    setup = with_task(small_task.raising_task(), trials=6)
    flow.search(setup, folder, resume=False, watcher=SILENT)
    trials = flow.load_trials(folder)
    failed = [trial for trial in trials if trial.state == "failed"]
    assert len(trials) == 6
    assert failed
    assert trials[0].state == "complete"
    assert {trial.error for trial in failed} == {"AssertionError: a weight is zero"}
    told = {row["trial"]: row for row in rows(folder.path / "trials.csv")}
    for trial in failed:
        assert told[str(trial.number)]["state"] == "failed"
        assert told[str(trial.number)]["error"] == trial.error
        assert told[str(trial.number)]["metric_search"] == ""
    assert {trial.number for trial in failed}.isdisjoint(point.number for point in flow.front_of(folder))


@pytest.mark.exhaustive
def test_a_score_that_is_no_number_fails_the_trial_and_not_the_search(tmp_path: Path) -> None:
    task = small_task.task()
    seen: list[str] = []

    def evaluate(predict: Predict, split: Split, fraction: float = 1.0) -> Score:
        score = task.evaluate(predict, split, fraction)  # raises where no more than the first inputs are looked at
        seen.append(split)
        return Score(float("nan")) if split == "search" and seen.count(split) == 3 else score

    folder = RunFolder(tmp_path / "run")
    flow.search(with_task(replace(task, evaluate=evaluate), trials=3), folder, resume=False, watcher=SILENT)
    states = [(trial.state, trial.error) for trial in flow.load_trials(folder)]
    assert states[0] == states[2] == ("complete", None)
    assert states[1] == ("failed", "WorkError: a trial's accuracy must be a finite number; got nan")


def test_an_evaluation_need_not_think_of_gradients(finished_run: Path) -> None:
    task = small_task.task()

    def evaluate(predict: Predict, split: Split, fraction: float = 1.0) -> Score:
        return Score(float(predict(*task.example_inputs).numpy().mean()))

    bench = replace(small_setup().bench, task=replace(task, evaluate=evaluate))
    score = bench.climb(Plan(), bench.cost(Plan()), None).score
    assert score is not None
    assert np.isfinite(score.value)


def test_an_evaluation_of_two_parameters_is_asked_for_whole_splits(tmp_path: Path) -> None:
    task, asked = small_task.task(), list[str]()

    def evaluate(predict: Predict, split: Split) -> Score:
        asked.append(split)
        outcomes = task.evaluate(predict, split).outcomes
        assert outcomes is not None
        right = np.resize(outcomes, 2 * FEWEST * 9)  # enough to be looked at in parts
        return Score(100.0 * float(right.mean()), right)

    given = with_task(replace(task, evaluate=evaluate), trials=2)  # type: ignore[arg-type]
    trials = flow.search(given, RunFolder(tmp_path / "run"), resume=False, watcher=SILENT)
    assert trials
    assert {*asked} == {"search", "test"}


def test_a_test_split_that_cannot_be_scored_is_told_before_the_search(tmp_path: Path) -> None:
    task = small_task.task()

    def evaluate(predict: Predict, split: Split, fraction: float = 1.0) -> Score:
        return task.evaluate(predict, {"search": "search"}[split], fraction)  # type: ignore[arg-type]

    folder = RunFolder(tmp_path / "run")
    with pytest.raises(TaskError, match="evaluate must score the test split as well, at the end; it raised KeyError"):
        flow.search(with_task(replace(task, evaluate=evaluate), trials=2), folder, resume=False, watcher=SILENT)
    assert not folder.exists()


def test_a_test_split_that_fails_in_the_end_is_told_with_the_way_on(tmp_path: Path) -> None:
    task = small_task.task()

    def evaluate(predict: Predict, split: Split, fraction: float = 1.0) -> Score:
        if split == "test" and fraction == 1.0:
            raise KeyError("the last image")
        return task.evaluate(predict, split, fraction)

    given, folder = with_task(replace(task, evaluate=evaluate), trials=2), RunFolder(tmp_path / "run")
    with pytest.raises(WorkError, match=r"untouched network's file must be scored .*last image.* with --resume"):
        flow.search(given, folder, resume=False, watcher=SILENT)
    assert len(flow.load_trials(folder)) == 2
    assert len(flow.search(with_task(task, trials=2), folder, resume=True, watcher=SILENT)) > 1


def test_where_not_even_the_untouched_model_can_be_evaluated_it_says_why(tmp_path: Path) -> None:
    setup = small_setup()
    blind = replace(setup, bench=replace(setup.bench, target=made_target(frozenset({"gemm"}))))
    with pytest.raises(WorkError, match=r"untouched model could not be evaluated: UncoveredKernelError"):
        flow.search(
            replace(blind, request=replace(REQUEST, trials=2, sampler="random")),
            RunFolder(tmp_path / "run"),
            False,
            SILENT,
        )


def test_limits_that_nothing_keeps_leave_the_uncompressed_model(tmp_path: Path) -> None:
    folder, heard = RunFolder(tmp_path / "run"), Heard()
    setup = small_setup()
    asked = replace(REQUEST, trials=2, max_size_kb=1.5, max_drop=0.0)
    flow.search(replace(setup, request=asked), folder, resume=False, watcher=heard)
    assert [row["trial"] for row in rows(folder.path / "front.csv")] == ["0"]
    assert any("no trial kept the limits" in line for line in heard.lines)
    for goal in ("knee", "most-accurate", "fastest", "smallest"):
        with pytest.raises(RunError, match="holds the uncompressed model only"):
            Run(folder).pick(goal)
    assert Run(folder).pick(0).plan == Plan()


def test_a_limit_that_no_plan_is_foreseen_to_keep_for_sure_is_searched_for_all_the_same(tmp_path: Path) -> None:
    setup = small_setup()
    land = Landscape(setup.space, without_errors(setup.space), setup.bench.cost)
    costs = [land.cost(land.best(changes, UNFORESEEN, 0.0)) for changes in land.changes]
    least = min(cost.latency_ms for cost in costs if cost is not None)  # with the doubt of it, no plan is within that
    folder = RunFolder(tmp_path / "run")
    flow.search(small_setup(max_latency_ms=least, max_drop=5.0, trials=2), folder, resume=False, watcher=SILENT)
    assert [trial.state for trial in flow.load_trials(folder)][:2] == ["complete", "complete"]


def test_the_front_keeps_the_limits_asked_for(run: RunFolder) -> None:
    """The same trials under a limit: as if it had been asked for from the start."""
    points = flow.front_of(run)
    sizes = sorted(point.cost.size_bytes for point in points if point.cost is not None)
    changed = run.read()
    changed["request"]["max_size_kb"] = sizes[(len(sizes) - 1) // 2] / 1000  # type: ignore[index,call-overload]
    run.write_json("run.json", changed)
    kept = flow.rebuild(run)
    assert 1 < len(kept) < len(points)
    assert all(p.cost is not None and p.cost.size_bytes <= sizes[(len(sizes) - 1) // 2] for p in kept[1:])


class TestRefused:
    """Each is one line, and changes nothing."""

    def refused(self, setup: Setup, folder: Path, resume: bool) -> str:
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
        with pytest.raises(RunError) as caught:
            flow.search(setup, RunFolder(folder), resume, SILENT)
        after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
        assert after == before
        message = str(caught.value)
        assert "\n" not in message
        assert str(folder) in message or "--resume must ask" in message
        return message

    def test_another_run_in_out(self, run: RunFolder) -> None:
        assert "resume it with --resume, or name another" in self.refused(small_setup(), run.path, resume=False)

    def test_a_changed_request(self, run: RunFolder) -> None:
        changed = replace(small_setup(), request=replace(REQUEST, seed=4, max_drop=1.0))
        message = self.refused(changed, run.path, resume=True)
        assert "seed was 3 and is now 4" in message
        assert "max_drop was None and is now 1.0" in message

    def test_resume_without_a_run(self, tmp_path: Path) -> None:
        assert "leave --resume out" in self.refused(small_setup(), tmp_path / "nothing", resume=True)

    def test_foreign_files_in_out(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("x")
        assert "holds other files" in self.refused(small_setup(), tmp_path, resume=False)

    def test_a_changed_model(self, run: RunFolder) -> None:
        import copy

        import torch

        setup = small_setup()
        model = copy.deepcopy(setup.bench.prepared.model)
        with torch.no_grad():
            next(model.parameters()).add_(0.01)
        bench = replace(setup.bench, prepared=replace(setup.bench.prepared, model=model))
        assert "the model is not the one" in self.refused(replace(setup, bench=bench), run.path, resume=True)

    def test_a_changed_space_file(self, run: RunFolder) -> None:
        setup = small_setup()
        fewer = replace(setup.space, decisions=setup.space.decisions[1:])
        assert "choices of space default" in self.refused(replace(setup, space=fewer), run.path, resume=True)

    def test_a_changed_profile(self, run: RunFolder) -> None:
        setup = small_setup()
        target = replace(setup.bench.target, profile_hash="another")
        changed = replace(setup, bench=replace(setup.bench, target=target))
        assert "the profile of made-up is not the one" in self.refused(changed, run.path, resume=True)


def test_going_on_for_longer_is_no_change_of_the_request(run: RunFolder, finished_run: Path) -> None:
    longer = replace(small_setup(), request=replace(REQUEST, trials=REQUEST.trials + 1))
    flow.search(longer, run, resume=True, watcher=SILENT)
    trials = flow.load_trials(run)
    assert len(trials) == REQUEST.trials + 1
    assert plans(trials)[:-1] == plans(flow.load_trials(RunFolder(finished_run)))
    assert document(run.path / "run.json")["created"] == document(finished_run / "run.json")["created"]


def test_a_space_that_fits_no_layer_is_found_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("name: own\nrules: [{layers: 'block*', format: [w8a8]}]")
    with pytest.raises(SpaceError, match=r"matches none of: stem, conv1, conv2, head"):
        with_task(small_task.task(), space=str(tmp_path / "own.yaml"))


def test_the_drops_interval_is_paired() -> None:
    metric = Metric("accuracy", "maximize", "%")
    right = np.array([1.0] * 90 + [0.0] * 10)
    certain = np.linspace(0.2, 0.9, 100)
    worse = right.copy()
    worse[:5] = 0.0
    drop, low, high = drop_interval(metric, Score(90.0, right), Score(85.0, worse))
    assert drop == pytest.approx(5.0)
    assert 0.0 < low < drop < high < 10.0
    drop, low, high = drop_interval(metric, Score(90.0, right), Score(90.0, right))
    assert (drop, low) == (0.0, -high)
    assert 0.0 < high < 2.5  # a hundred images cannot tell more
    drop, low, high = drop_interval(metric, Score(55.0, certain), Score(54.0, certain - 0.01))
    assert [low, high] == pytest.approx([1.0, 1.0])  # the same loss on every one
    assert drop_interval(metric, Score(90.0), Score(85.0)) == (5.0, -np.inf, np.inf)
