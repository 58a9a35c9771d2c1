"""A search that begins with what an earlier one found; and one whose files break the limit that was asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from autocomp.errors import ExportError, RunError
from autocomp.hardware.timing import Timing
from autocomp.plan import Adjustment, Plan
from autocomp.run import Json, RunFolder
from autocomp.search import flow, rounds, sensitivity, verify
from autocomp.search.begin import METRIC, Setup, begin
from autocomp.search.candidates import TRIED_SHORTLY
from autocomp.search.earlier import TAKEN_OVER, TRAINED, adopt, earlier_findings, take_over
from autocomp.search.evaluate import Workbench
from autocomp.search.last_rung import LastRung
from autocomp.search.limits import CORRECTED
from autocomp.search.points import VERIFIED, verifications
from autocomp.search.recovery import EVENT, weights_path
from autocomp.search.sensitivity import MEASURED
from autocomp.search.stored_plan import plan_text
from autocomp.search.study import open_study
from autocomp.search.verify import Exported
from autocomp.search.warm_start import CHOSEN, EARLIER, WARMED, warmed_up
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
    begun_from = Path(shutil.copytree(finished_run, tmp_path / "earlier"))
    setup = replace(small_setup(), request=replace(REQUEST, trials=6, max_drop=40.0, begun_from=str(begun_from)))
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
    shutil.rmtree(begun_from)
    more = replace(setup, request=replace(setup.request, trials=8))
    flow.search(more, run, True, SILENT)  # what was taken over is in the run itself
    assert len(flow.load_trials(run)) == 8


def test_what_holds_is_taken_over_once(finished_run: Path, tmp_path: Path) -> None:
    setup, earlier = small_setup(), RunFolder(finished_run)
    run = begun(setup, tmp_path / "run")
    for _ in range(2):
        take_over(setup, run, earlier)
    events = list(run.events())
    assert sum(event.get("event") == TAKEN_OVER for event in events) == 1
    assert sum(event.get("event") == MEASURED for event in events) == len(setup.space.decisions)
    found = earlier_findings(setup, run)
    touched = [trial for trial in flow.load_trials(earlier) if trial.plan != Plan() and trial.metric is not None]
    assert found.metrics == {trial.plan.hash: trial.metric for trial in touched}
    assert {setup.space.plan(indices).hash for indices, _ in found.scored} == set(found.metrics)


@pytest.mark.parametrize("adjustments", [(), ("bias",)])
def test_sensitivities_hold_beside_the_same_adjustments_alone(
    adjustments: tuple[Adjustment, ...], finished_run: Path, tmp_path: Path
) -> None:
    setup = small_setup()
    setup = replace(setup, space=replace(setup.space, adjustments=adjustments))
    earlier, run = RunFolder(finished_run), begun(setup, tmp_path / "run")
    take_over(setup, run, earlier)
    measured = [event for event in run.events() if event["event"] == MEASURED]
    assert len(measured) == (0 if adjustments else len(setup.space.decisions))
    event = sensitivity.told(setup.space.decisions[0], [0.0] * len(setup.space.decisions[0].options), adjustments)
    run.append_event(event)
    following = begun(setup, tmp_path / "following")
    take_over(setup, following, run)
    assert any(one == event for one in following.events())


@pytest.mark.parametrize(("threads", "settled"), [(1, True), (2, True), (1, False)])
def test_timings_that_settled_are_taken_over_where_they_were_measured_alike(
    threads: int, settled: bool, finished_run: Path, tmp_path: Path
) -> None:
    earlier = RunFolder(Path(shutil.copytree(finished_run, tmp_path / "earlier")))
    document = earlier.read()
    target = cast("Json", document["target"]) | {"threads": threads}
    earlier.write("run.json", json.dumps(document | {"target": target}))
    timed: Json = {
        "event": WARMED,
        "plan_hash": Plan().hash,
        "latency_ms": 1.0,
        "latency_spread": 0.0,
        "settled": settled,
    }
    earlier.append_event({"event": CHOSEN, "plans": [plan_text(Plan())]}, timed)
    setup = small_setup()
    run = begun(setup, tmp_path / "run")
    take_over(setup, run, earlier)
    holds = threads == setup.request.threads and settled
    assert [event["plan_hash"] for event in run.events() if event["event"] == EARLIER] == [Plan().hash] * holds


@pytest.mark.parametrize(
    ("told", "holds"),
    [({}, True), ({"settled": False}, False), ({"latency_ms": None}, False), ({"timed_on": "a board"}, False)],
)
def test_the_files_of_an_earlier_runs_points_correct_what_is_foreseen(
    told: Json, holds: bool, finished_run: Path, tmp_path: Path
) -> None:
    earlier = RunFolder(Path(shutil.copytree(finished_run, tmp_path / "earlier")))
    setup, run = small_setup(), begun(small_setup(), tmp_path / "run")
    trial = next(one for one in flow.load_trials(earlier) if one.plan != Plan() and one.cost is not None)
    foreseen = setup.bench.cost(trial.plan).latency_ms
    measured = {"latency_ms": 0.8 * foreseen, "latency_spread": 0.0, "settled": True, **told}
    document: Json = {
        "plan_hash": trial.plan.hash,
        "key": trial.key,
        "measured": measured,
        "timed_on": told.get("timed_on"),
    }
    earlier.append_event({"event": VERIFIED, "verification": document})
    take_over(setup, run, earlier)
    assert [event["plan_hash"] for event in run.events() if event["event"] == EARLIER] == [trial.plan.hash] * holds
    reachable = replace(setup.bench, target=replace(setup.bench.target, reachable=True))
    warmed = warmed_up(reachable, setup.space, 2, 0, run, lambda *_: None)
    assert (warmed.cost(trial.plan).latency_ms < 0.9 * foreseen) == holds


def test_what_was_trained_is_adopted_once_each_by_its_plan_seed_and_recipe(finished_run: Path, tmp_path: Path) -> None:
    """Also where a kill tore the taking over, and where training gave two of them the same weights."""
    first = RunFolder(Path(shutil.copytree(finished_run, tmp_path / "first")))
    touched = [trial for trial in flow.load_trials(first) if trial.plan != Plan() and trial.cost is not None][:2]
    trained: list[Json] = [
        {
            "event": EVENT,
            "parent": trial.number,
            "plan_hash": trial.plan.hash,
            "seed": seed,
            "epochs": 1,
            "metric": 80.0,
            "seconds": 1.0,
            "weights": f"weights{trial.number}",
            "recipe": "{}",
        }
        for trial in touched
        for seed in (0, 1)
    ]
    for event in trained:
        path = weights_path(first, str(event["weights"]))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"trained")
    first.append_event(*trained)
    setup, run = small_setup(), begun(small_setup(), tmp_path / "run")
    take_over(setup, run, first)
    written = (run.path / "events.jsonl").read_bytes()
    (run.path / "events.jsonl").write_bytes(written[:-20])
    take_over(setup, run, first)
    assert len(earlier_findings(setup, run).trained) == 2
    parents = [replace(trial, number=7 + place) for place, trial in enumerate(touched)]
    assert adopt(run, parents)
    assert not adopt(run, parents)
    adopted = [(event["parent"], event["seed"]) for event in run.events() if event["event"] == EVENT]
    assert adopted == [(7, 0), (7, 1), (8, 0), (8, 1)]
    assert weights_path(run, str(trained[0]["weights"])).read_bytes() == b"trained"
    open_study(run.journal, "maximize")
    following = begun(setup, tmp_path / "following")
    take_over(setup, following, run)  # where none of it was a trial
    assert earlier_findings(setup, following) == earlier_findings(setup, run)


def test_of_several_trainings_the_best_counts(tmp_path: Path) -> None:
    setup = small_setup()
    run = begun(setup, tmp_path / "run")
    plan = setup.space.plan({setup.space.decisions[0].name: 1})
    text = plan_text(plan)
    for metric in (80.0, 85.0, 82.0):
        run.append_event({"event": TRAINED, "plan": text, "metric": metric})
    ((indices, drop),) = earlier_findings(setup, run).trained
    assert setup.space.plan(indices) == plan
    assert drop * setup.baseline.value == pytest.approx(setup.baseline.value - 85.0)


def test_files_of_several_sittings_are_compared_by_the_untouched_ones(finished_run: Path, tmp_path: Path) -> None:
    """The machine was slower by a half when points were verified."""
    earlier = RunFolder(Path(shutil.copytree(finished_run, tmp_path / "earlier")))
    point = flow.front_of(earlier)[-1]
    warmed: Json = {"plan_hash": Plan().hash, "latency_ms": 1.0, "latency_spread": 0.0, "settled": True}
    measured: Json = {"latency_ms": 0.6, "baseline_latency_ms": 1.5, "settled": True}
    document: Json = {"plan_hash": point.plan.hash, "key": point.key, "measured": measured}
    earlier.append_event(
        {"event": CHOSEN, "plans": [plan_text(Plan())]},
        {"event": WARMED, **warmed},
        {"event": VERIFIED, "verification": document},
    )
    setup = small_setup()
    run = begun(setup, tmp_path / "run")
    take_over(setup, run, earlier)
    timed = {event["plan_hash"]: event["latency_ms"] for event in run.events() if event["event"] == EARLIER}
    assert timed == {Plan().hash: 1.0, point.plan.hash: pytest.approx(0.4)}


def test_other_arithmetic_makes_metrics_hints(finished_run: Path, tmp_path: Path) -> None:
    setup = small_setup()
    target = replace(setup.bench.target, numerics=replace(setup.bench.target.numerics, symmetric_activations=True))
    setup = replace(setup, bench=replace(setup.bench, target=target))
    run = begun(setup, tmp_path / "run")
    take_over(setup, run, RunFolder(finished_run))
    found = earlier_findings(setup, run)
    assert found.scored
    assert found.metrics == {}


def test_a_run_of_another_network_is_refused(finished_run: Path, tmp_path: Path) -> None:
    other = RunFolder(Path(shutil.copytree(finished_run, tmp_path / "other")))
    other.write("run.json", json.dumps(other.read() | {"weights_hash": "0" * 16}))
    setup, run = small_setup(), RunFolder(tmp_path / "run")
    setup = replace(setup, request=replace(setup.request, begun_from=str(other.path)))
    with pytest.raises(RunError, match="--from must name a run of the same network and task"):
        flow.search(setup, run, False, SILENT)
    assert not run.exists()  # the same --out is free for the run that was meant


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_on_other_data_is_refused(resume: bool, finished_run: Path, tmp_path: Path) -> None:
    """Scores of one search split say nothing of another."""
    other = RunFolder(Path(shutil.copytree(finished_run, tmp_path / "other")))
    document, setup = other.read(), small_setup()

    def on(metric: float) -> RunFolder:
        other.write("run.json", json.dumps(document | {"task": cast("Json", document["task"]) | {METRIC: metric}}))
        if resume:
            return other
        return RunFolder(tmp_path / f"run{metric}")

    def begin_on(metric: float) -> None:
        run = on(metric)
        if resume:
            begin(setup, run)
        else:
            asked = replace(setup, request=replace(setup.request, begun_from=str(other.path)))
            flow.search(asked, run, False, SILENT)

    here = setup.baseline.value
    with pytest.raises(RunError, match=f"is {here - 10:.6g}; it is {here:.6g} now; give the same data, or"):
        begin_on(here - 10)
    begin_on(here - 1)  # one of a hundred examples, which other arithmetic may turn
    assert cast("Json", other.read()["task"])[METRIC] == (here if resume else here - 1)


def test_a_run_that_was_stopped_before_its_first_trial_is_begun_from(finished_run: Path, tmp_path: Path) -> None:
    earlier = RunFolder(Path(shutil.copytree(finished_run, tmp_path / "earlier")))
    earlier.journal.unlink()
    setup, run = small_setup(), begun(small_setup(), tmp_path / "run")
    take_over(setup, run, earlier)
    assert earlier_findings(setup, run).scored == ()
    assert sum(event["event"] == MEASURED for event in run.events()) == len(setup.space.decisions)


def test_what_a_kill_tore_is_taken_over_once_all_the_same(finished_run: Path, tmp_path: Path) -> None:
    setup, earlier = small_setup(), RunFolder(finished_run)
    whole, torn = begun(setup, tmp_path / "whole"), begun(setup, tmp_path / "torn")
    take_over(setup, whole, earlier)
    written = (whole.path / "events.jsonl").read_bytes()
    (torn.path / "events.jsonl").write_bytes(written[:-20])
    take_over(setup, torn, earlier)
    assert earlier_findings(setup, torn) == earlier_findings(setup, whole)


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
            found[number] = Timing(took_ms[number], 0.01, 0.0, True, 9, 1.0)
        return found

    monkeypatch.setattr(flow, "time_files", time_files)
    monkeypatch.setattr(rounds, "warmed_up", lambda bench, *_: bench)
    run, heard = RunFolder(tmp_path / "run"), Heard()
    points = flow.search(setup, run, False, heard)
    corrected = [event for event in run.events() if event.get("event") == CORRECTED]
    assert corrected
    assert corrected[-1]["latency"] == pytest.approx(times)
    assert any(f"what is predicted is corrected ({times:.3f} times" in line for line in heard.lines)
    assert len(flow.load_trials(run)) > 4
    assert len(points) > 1
    assert all(took_ms[point.number] <= limit_ms for point in points[1:])
    verified = [event["verification"] for event in run.events() if event.get("event") == VERIFIED]
    sittings = {cast("Json", cast("Json", one)["measured"])["baseline_latency_ms"] for one in verified}
    assert sittings == {took_ms[0]}
    # What is measured after the last trial leaves a run that is over as it is.
    found = verifications(run)[points[-1].key]
    slower: Json = {**cast("Json", found["measured"]), "latency_ms": 2 * limit_ms}
    run.append_event({"event": VERIFIED, "verification": {**found, "measured": slower}})
    trials = flow.load_trials(run)
    again = flow.search(setup, run, True, heard)
    assert flow.load_trials(run) == trials
    assert points[-1].number not in {point.number for point in again}


def asks_for_latency(finished_run: Path, share: float) -> Setup:
    """A search that measures files, and keeps a limit that is a share of the untouched network's latency."""
    setup = small_setup()
    bench = replace(setup.bench, target=replace(setup.bench.target, reachable=True))
    limit_ms = share * bench.cost(Plan()).latency_ms
    asked = replace(REQUEST, trials=4, max_latency_ms=limit_ms, goal="most-accurate", begun_from=str(finished_run))
    return replace(setup, bench=bench, request=asked)


@pytest.mark.parametrize("quiet_later", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_a_slow_machine_corrects_nothing_and_is_looked_at_again(
    quiet_later: bool, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything takes twice as long while the machine is busy, and no timing settles."""
    setup = asks_for_latency(finished_run, 0.7)
    run, heard, sittings = RunFolder(tmp_path / "run"), Heard(), list[set[int]]()

    def time_files(bench: Workbench, models: Mapping[int, bytes], *_: object) -> dict[int, Timing]:
        costs = {trial.number: trial.cost for trial in flow.load_trials(run)}
        sittings.append({*models})
        busy = not quiet_later or len(sittings) == 1
        return {
            number: Timing((2.0 if busy else 1.0) * cost.latency_ms, 0.01, 0.01, not busy, 9, 1.0)
            for number in models
            if (cost := costs[number]) is not None
        }

    monkeypatch.setattr(flow, "time_files", time_files)
    monkeypatch.setattr(rounds, "warmed_up", lambda bench, *_: bench)
    points = flow.search(setup, run, False, heard)
    assert not any(event.get("event") == CORRECTED for event in run.events())
    assert len(flow.load_trials(run)) == 4
    told = any("over --max-latency-ms in timings that never settled" in line for line in heard.lines)
    if quiet_later:
        assert sittings[0] <= set[int]().union(*sittings[1:])  # all that was timed while it was busy
        assert len(sittings) <= 3  # with what took the place of these on the front
        assert len(points) > 1
        assert not told
    else:
        assert len(points) == 1
        assert told
        assert flow.doubted_of(run)


@pytest.mark.parametrize("slower", [1.0, pytest.param(1.2, marks=pytest.mark.exhaustive)])
def test_before_recovery_only_the_files_of_what_will_be_trained_are_measured(
    slower: float, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of what was stopped on a part of the split; where these are slower than foreseen, the search is corrected."""
    setup = asks_for_latency(finished_run, 0.9)
    setup = replace(setup, request=replace(setup.request, trials=24, recover_epochs=1))
    run, sittings, stopped = RunFolder(tmp_path / "run"), list[set[int]](), set[int]()

    def time_files(bench: Workbench, models: Mapping[int, bytes], *_: object) -> dict[int, Timing]:
        trials = {trial.number: trial for trial in flow.load_trials(run)}
        sittings.append({*models})
        stopped.update(number for number in models if trials[number].metric is None)
        return {
            number: Timing((slower if number in stopped else 1.0) * cost.latency_ms, 0.01, 0.0, True, 9, 1.0)
            for number in models
            if (cost := trials[number].cost)
        }

    monkeypatch.setattr(flow, "time_files", time_files)
    monkeypatch.setattr(rounds, "warmed_up", lambda bench, *_: bench)
    monkeypatch.setattr(LastRung, "run", lambda _: sittings.append(set()))
    points = flow.search(setup, run, False, SILENT)
    print("STOPPED", stopped, sittings)
    assert [len(files) for files in sittings[:2]] == [1 + TRIED_SHORTLY, 0]
    assert {point.number for point in points} - sittings[0]  # untrained, others are on the front all the same
    assert all(point.key in verifications(run) for point in points)


def test_a_file_that_cannot_be_made_takes_its_point_off_the_front(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(Path(shutil.copytree(finished_run, tmp_path / "run")))
    lines = (run.path / "events.jsonl").read_text().splitlines(keepends=True)
    (run.path / "events.jsonl").write_text("".join(line for line in lines if f'"{VERIFIED}"' not in line))
    bad = flow.front_of(run)[-1]
    before = verify.export_and_score

    def export_and_score(bench: Workbench, plan: Plan, weights: Path | None) -> Exported:
        if plan == bad.plan:
            raise ExportError("no runtime\nreads it")
        return before(bench, plan, weights)

    monkeypatch.setattr(flow, "export_and_score", export_and_score)
    monkeypatch.setattr(flow, "SIDE_BY_SIDE", 2)  # several batches
    heard = Heard()
    points = flow.search(small_setup(), run, True, heard)
    assert bad.number not in {point.number for point in points}
    assert len(points) > 1
    verified = verifications(run)
    assert all(point.key in verified for point in points)
    said = f"trial {bad.number} leaves the front, its file cannot be made and scored: ExportError: no runtime reads it"
    assert said in heard.lines
    again = flow.search(small_setup(), run, True, SILENT)
    assert [point.number for point in again] == [point.number for point in points]
    with pytest.raises(ExportError):
        flow.verify(small_setup(), run, [bad], SILENT, again=True)
    monkeypatch.setattr(flow, "export_and_score", before)
    mended = RunFolder(Path(shutil.copytree(run.path, tmp_path / "mended")))
    flow.verify(small_setup(), run, [bad], SILENT, again=True)
    assert bad.number in {point.number for point in flow.front_of(run)}  # once it can be made
    # What was passing is tried again when the search is taken up.
    assert bad.number in {point.number for point in flow.search(small_setup(), mended, True, SILENT)}


@pytest.mark.exhaustive
def test_memory_that_was_missed_corrects_memory_alone(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = asks_for_latency(finished_run, 0.9)
    memory_kb = 0.99 * setup.bench.cost(Plan()).peak_memory_bytes / 1000
    setup = replace(setup, request=replace(setup.request, max_memory_kb=memory_kb))
    run = RunFolder(tmp_path / "run")

    def time_files(bench: Workbench, models: Mapping[int, bytes], *_: object) -> dict[int, Timing]:
        costs = {trial.number: trial.cost for trial in flow.load_trials(run)}
        return {
            number: Timing(1.01 * cost.latency_ms, 0.01, 0.0, True, 9, 1.0)
            for number in models
            if (cost := costs[number]) is not None
        }

    def footprints(bench: Workbench, models: Mapping[int, bytes]) -> dict[int, int]:
        return {number: round(1.2 * 1000 * memory_kb) for number in models}

    monkeypatch.setattr(flow, "time_files", time_files)
    monkeypatch.setattr(flow, "footprints", footprints)
    monkeypatch.setattr(rounds, "warmed_up", lambda bench, *_: bench)
    flow.search(setup, run, False, SILENT)
    corrected = [event for event in run.events() if event.get("event") == CORRECTED]
    assert corrected
    assert (corrected[0]["latency"], corrected[0]["size"]) == (1.0, 1.0)
    assert float(str(corrected[0]["memory"])) > 1.2
