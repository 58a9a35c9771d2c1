"""A search that begins with what an earlier one found; and one whose files break the limit that was asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from autocomp.errors import RunError
from autocomp.hardware.timing import Timing
from autocomp.plan import Plan
from autocomp.run import RunFolder
from autocomp.search import flow, sensitivity
from autocomp.search.begin import Setup, begin
from autocomp.search.earlier import TAKEN_OVER, earlier_findings, take_over
from autocomp.search.evaluate import Workbench
from autocomp.search.limits import CORRECTED
from autocomp.search.sensitivity import MEASURED
from autocomp.watch import SILENT, Silent
from tests.targets import REQUEST, small_setup

pytestmark = pytest.mark.slow


def begun(setup: Setup, folder: Path) -> RunFolder:
    """A run folder with nothing in it but that it was begun."""
    run = RunFolder(folder)
    with run.working():
        begin(setup, run)
    return run


def test_nothing_is_measured_or_scored_twice(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = replace(small_setup(), request=replace(REQUEST, trials=6, max_drop=40.0, begun_from=str(finished_run)))
    scored: list[Plan] = []
    before = Workbench.climb

    def climb(bench: Workbench, plan: Plan, *rest: object) -> object:
        scored.append(plan)
        return before(bench, plan, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Workbench, "climb", climb)
    monkeypatch.setattr(sensitivity, "_outputs", None)  # a pass would need it
    monkeypatch.setattr(flow, "verify", lambda *given, **named: None)
    run = RunFolder(tmp_path / "run")
    monkeypatch.setattr(flow, "_verify_all", lambda setup, folder, watcher: flow.front_of(folder))
    flow.search(setup, run, False, SILENT)
    old = {trial.plan.hash for trial in flow.load_trials(RunFolder(finished_run))}
    new = {trial.plan.hash for trial in flow.load_trials(run)}
    assert not old.intersection(plan.hash for plan in scored if plan != Plan())
    assert old & new - {Plan().hash}  # what it found was good enough to come again


def test_what_holds_is_taken_over_once(finished_run: Path, tmp_path: Path) -> None:
    setup, earlier = small_setup(), RunFolder(finished_run)
    run = begun(setup, tmp_path / "run")
    for _ in range(2):
        take_over(setup, run, earlier)
    events = list(run.events())
    assert sum(event.get("event") == TAKEN_OVER for event in events) == 1
    assert sum(event.get("event") == MEASURED for event in events) == len(setup.space.decisions)
    hints, metrics = earlier_findings(setup, run)
    touched = [trial for trial in flow.load_trials(earlier) if trial.plan != Plan() and trial.metric is not None]
    assert metrics == {trial.plan.hash: trial.metric for trial in touched}
    assert {setup.space.plan(indices).hash for indices, _ in hints} == set(metrics)


def test_other_arithmetic_makes_metrics_hints(finished_run: Path, tmp_path: Path) -> None:
    setup = small_setup()
    target = replace(setup.bench.target, numerics=replace(setup.bench.target.numerics, symmetric_activations=True))
    setup = replace(setup, bench=replace(setup.bench, target=target))
    run = begun(setup, tmp_path / "run")
    take_over(setup, run, RunFolder(finished_run))
    hints, metrics = earlier_findings(setup, run)
    assert hints
    assert metrics == {}


def test_a_run_of_another_network_is_refused(finished_run: Path, tmp_path: Path) -> None:
    other = RunFolder(Path(shutil.copytree(finished_run, tmp_path / "other")))
    other.write("run.json", json.dumps(other.read() | {"weights_hash": "0" * 16}))
    run = begun(small_setup(), tmp_path / "run")
    with pytest.raises(RunError, match="--from must name a run of the same network and task"):
        take_over(small_setup(), run, other)


class Heard(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.mark.parametrize("times", [1.2, pytest.param(0.8, marks=pytest.mark.exhaustive)])
def test_files_that_take_other_than_foreseen_correct_the_search(
    times: float, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files take a fifth longer than was predicted, or a fifth less; in the end all of the front keep the limit as measured."""
    setup = small_setup()
    bench = replace(setup.bench, target=replace(setup.bench.target, reachable=True))
    limit_ms = 0.7 * bench.cost(Plan()).latency_ms
    asked = replace(REQUEST, trials=4, max_latency_ms=limit_ms, goal="most-accurate", begun_from=str(finished_run))
    setup = replace(setup, bench=bench, request=asked)
    took_ms: dict[int, float] = {}

    def time_files(bench: Workbench, models: Mapping[int, bytes], *_: object) -> dict[int, Timing]:
        trials = {trial.number: trial for trial in flow.load_trials(run)}
        found = {}
        for number in models:
            cost = trials[number].cost
            assert cost is not None
            took_ms[number] = times * cost.latency_ms
            found[number] = Timing(took_ms[number], 0.01, 0.01, True, 9, 1.0)
        return found

    monkeypatch.setattr(flow, "time_files", time_files)
    monkeypatch.setattr(flow, "warmed_up", lambda bench, *_: bench)
    run, heard = RunFolder(tmp_path / "run"), Heard()
    points = flow.search(setup, run, False, heard)
    corrected = [event for event in run.events() if event.get("event") == CORRECTED]
    assert corrected
    assert corrected[-1]["latency"] == pytest.approx(times)
    assert any(f"what is predicted is corrected ({times:.3f} times" in line for line in heard.lines)
    assert len(flow.load_trials(run)) > 4
    assert len(points) > 1
    assert all(took_ms[point.number] <= limit_ms for point in points[1:])
