"""Recovery as a search's last stage: trials of their own, kept with their weights, never done twice."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from autocomp.compress.recover import recover
from autocomp.compress.recovered import Recovered
from autocomp.errors import RequestError, RunError
from autocomp.export.to_onnx import export_onnx
from autocomp.finished import Run
from autocomp.plan import Format, LayerPlan, Plan
from autocomp.run import Json, RunFolder
from autocomp.search import flow
from autocomp.search import recovery as stage
from autocomp.search.brought_back import ANEW
from autocomp.search.candidates import (
    CHOSEN,
    MOST_ACCURATE,
    MOST_POINTS,
    SOLVED_ANEW,
    TRIED_SHORTLY,
    furthest,
    most_accurate,
    plans_anew,
    searched_ones,
    sought,
    to_train,
    wanted_first,
    worth_recovering,
)
from autocomp.search.limits import Limits
from autocomp.search.points import verifications
from autocomp.search.recovery import EVENT, read_recipe, recipe_of, weights_path
from autocomp.search.stored_plan import plan_text
from autocomp.task import Metric
from autocomp.trial import RECOVERED, Cost, Rung, Trial
from autocomp.watch import SILENT, Silent
from tests import small_task
from tests.search.test_flow import rows
from tests.targets import REQUEST, made_target, small_setup


class Said(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def trial(number: int, latency_ms: float, size_bytes: int, metric: float = 50.0) -> Trial:
    plan = Plan({f"layer{number}": LayerPlan(format=Format(8))}) if number else Plan()
    cost = Cost(latency_ms, 0.0, size_bytes, 1, 1, "fitted")
    return Trial(number, plan, "complete", metric, cost, 1.0, 0)


def test_a_recipe_is_a_file_of_what_a_recovery_knows(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("gradual: true\nl1: 0.001\nlabels: 0.3\n")
    said = read_recipe(path, 5)
    assert json.loads(said) == {"gradual": True, "l1": 0.001}  # what differs from the default
    recovery = recipe_of(replace(REQUEST, recover_epochs=5, recipe=said))
    assert (recovery.epochs, recovery.gradual, recovery.l1) == (5, True, 0.001)
    for text, words in (
        ("gradul: true", "a recipe knows labels, .*did you mean gradual"),
        ("l1: 0.1", "l1 shrinks weights"),
        ("[1, 2", "must be a YAML file"),
        ("epochs: 3", "says 'epochs'"),
    ):
        path.write_text(text)
        with pytest.raises(RequestError, match=words):
            read_recipe(path, 5)
    with pytest.raises(RequestError, match="must be a YAML file"):
        read_recipe(tmp_path / "none.yaml", 5)


def test_what_is_fast_and_small_is_worth_it_whatever_it_lost() -> None:
    trials = [trial(0, 9.0, 900, 90.0), trial(1, 5.0, 500, 85.0), trial(2, 2.0, 200, 10.0), trial(3, 6.0, 600, 20.0)]
    assert [one.number for one in worth_recovering(trials, trials[:2])] == [2, 1]  # the fastest first


def test_a_plan_that_was_stopped_once_is_recovered_as_what_it_scored_on_the_whole_split() -> None:
    """After a correction it may be proposed again."""
    whole = trial(3, 2.0, 200, 80.0)
    stopped = replace(whole, number=1, metric=None, rungs=(Rung(0.1, 99.0),), stopped_drop=0.5)
    trials = [trial(0, 9.0, 900, 90.0), stopped, trial(2, 5.0, 500, 85.0), whole]
    assert [one.number for one in worth_recovering(trials, [trials[0], whole])] == [3]
    metric = Metric("accuracy")
    assert [one.number for one in most_accurate(trials, metric, 90.0, lambda plan: (0.0,))] == [2, 3]


def test_of_many_points_some_are_taken_from_the_slowest_to_the_fastest() -> None:
    trials = [trial(0, 99.0, 9900), *(trial(n, float(n), 100 * (60 - n)) for n in range(1, 50))]
    chosen = [one.number for one in worth_recovering(trials, trials)]
    assert len(chosen) == MOST_POINTS
    assert (min(chosen), max(chosen)) == (1, 49)
    gaps = [later - earlier for earlier, later in itertools.pairwise(sorted(chosen))]
    assert max(gaps) - min(gaps) <= 1
    assert chosen[:2] == [1, 49]  # what is interrupted has seen of the whole range
    assert 20 <= chosen[2] <= 30


def test_an_end_of_the_front_is_sought_by_halving(tmp_path: Path) -> None:
    """Whatever the first point is that ends within the drop, it is found, and few are trained for it."""
    points = [trial(0, 99.0, 9900, 90.0), *(trial(n, float(n), 100 * n, 40.0 + n) for n in range(1, 22))]
    request, metric = replace(REQUEST, recover_epochs=3, max_drop=1.0, goal="fastest"), Metric("accuracy", "maximize")
    line = wanted_first(points, metric, "fastest")
    assert [one.number for one in line] == [*range(1, 22)]
    for first in (1, 2, 9, 20, 21, 22):  # the last: none
        folder, trained = RunFolder(tmp_path / str(first)), []
        folder.path.mkdir()
        for point in sought(line, folder, 90.0, metric, request):
            trained.append(point.number)
            for seed, metric_value in enumerate((89.5, 88.9) if point.number >= first else (88.5, 89.4)):
                folder.append_event(recovered_event(point, seed, metric_value))
        assert len(trained) <= len(line).bit_length() == 5
        assert {first, first - 1} & {*range(1, 22)} <= {*trained}
        # Gone through anew, as by a resumed run, it is the same.
        assert [one.number for one in sought(line, folder, 90.0, metric, request)] == trained


def recovered_event(point: Trial, seed: int, metric: float) -> Json:
    done: Json = {"parent": point.number, "plan_hash": point.plan.hash, "seed": seed, "epochs": 3, "metric": metric}
    return {"event": EVENT, **done, "seconds": 1.0, "weights": "", "recipe": REQUEST.recipe}


def test_the_line_to_an_end_has_what_loses_least_for_what_it_takes() -> None:
    points = [trial(0, 9.0, 900, 90.0), trial(1, 5.0, 100, 80.0), trial(2, 4.0, 300, 85.0), trial(3, 3.0, 200, 70.0)]
    metric = Metric("accuracy", "maximize")
    assert [one.number for one in wanted_first(points, metric, "fastest")] == [3, 2]
    assert [one.number for one in wanted_first(points, metric, "smallest")] == [1, 2]


def test_where_the_most_accurate_is_wanted_the_best_of_every_kind_are_tried_the_best_first() -> None:
    trials = [trial(0, 9.0, 900, 90.0), *(trial(n, float(n), 100 * n, 80.0 + (7 * n) % 10) for n in range(1, 10))]
    kinds = {one.plan.hash: (float(one.number > 4), 0.01 * one.number) for one in trials}

    def chosen(trials: Sequence[Trial], metric: Metric) -> list[int]:
        return [one.number for one in most_accurate(trials, metric, 90.0, lambda plan: kinds[plan.hash])]

    # By accuracy 7, 4, 1, 8, 5, 2, 9, 6, 3; 7 is of one kind, and 4 of the other.
    assert chosen(trials, Metric("accuracy"))[:2] == [7, 4]
    assert chosen(trials, Metric("loss", "minimize"))[:2] == [3, 6]
    assert len(chosen(trials, Metric("accuracy"))) == TRIED_SHORTLY
    assert chosen(trials[:3], Metric("accuracy")) == [1, 2]
    # What was stopped on a part of the split is known by what it lost on that, be it easier or harder than all of it; what
    # failed is not known.
    stopped = replace(trials[7], metric=None, rungs=(Rung(0.1, 99.0),), stopped_drop=0.9)
    failed = replace(trials[4], metric=None)
    assert chosen([*trials[:4], failed, *trials[5:7], stopped, *trials[8:]], Metric("accuracy"))[:2] == [1, 8]


def test_what_was_decided_of_training_holds_until_there_are_more_trials(tmp_path: Path) -> None:
    folder, metric = RunFolder(tmp_path), Metric("accuracy")
    folder.write_json("run.json", {"request": asdict(replace(REQUEST, max_size_kb=10.0))})
    trials = [trial(n, float(10 - n), 100, 90.0 - n) for n in range(4)]

    def chosen(trials: Sequence[Trial]) -> list[int]:
        found = to_train(folder, searched_ones(folder, trials), metric, 90.0, lambda plan: [0.0])
        return [one.number for one in found]

    anew = trial(9, 0.5, 100, 89.5)
    assert chosen(trials) == [1, 2, 3]
    folder.append_event({"event": CHOSEN, "searched": 4, "trials": [2]})
    folder.append_event({"event": SOLVED_ANEW, "searched": 4, "plans": [plan_text(anew.plan)]})
    assert chosen([*trials, anew]) == [2]  # what is solved for is none of them
    assert plans_anew(folder, trials) == (anew.plan,)
    more = [*trials, anew, trial(5, 0.7, 100, 89.0)]
    assert chosen(more) == [1, 5, 2, 3]
    assert plans_anew(folder, searched_ones(folder, more)) is None
    folder.append_event({"event": CHOSEN, "trials": [3]})  # by a run of before, which did not say of how many
    assert chosen(more) == [3]


def test_what_came_furthest_in_a_short_training_is_trained_whole(tmp_path: Path) -> None:
    folder, request = RunFolder(tmp_path), replace(REQUEST, recover_epochs=60)
    points = [trial(n, 1.0, 100, 80.0 - n) for n in range(1, 5)]
    assert furthest(points, folder, Metric("accuracy"), request) == points[:2]
    for point, metric_value in zip(points[1:], (60.0, 85.0, 70.0), strict=True):
        folder.append_event({**recovered_event(point, request.seed, metric_value), "short": True})
    for point in points:  # of other lengths
        folder.append_event({**recovered_event(point, request.seed, 99.0), "epochs": 60})
    assert [one.number for one in furthest(points, folder, Metric("accuracy"), request)] == [3, 4]
    assert [one.number for one in furthest(points, folder, Metric("loss", "minimize"), request)] == [2, 4]


def test_where_recovery_follows_no_trial_is_kept_to_the_drop() -> None:
    request = replace(REQUEST, max_drop=0.5, max_latency_ms=2.0)
    assert Limits.of_trials(request) == Limits.of(request)
    recovering = replace(request, recover_epochs=1)
    assert Limits.of_trials(recovering) == replace(Limits.of(recovering), max_drop=None)


@pytest.fixture(scope="module")
def recovered_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = RunFolder(tmp_path_factory.mktemp("recovered") / "run")
    flow.search(small_setup(recover_epochs=2), folder, resume=False, watcher=SILENT)
    return folder


@pytest.mark.slow
class TestRecovered:
    def test_every_recovered_point_is_a_trial_with_a_parent(self, recovered_run: RunFolder) -> None:
        table = rows(recovered_run.path / "trials.csv")
        own = [row for row in table if row["parent"]]
        events = [event for event in recovered_run.events() if event["event"] == EVENT]
        assert len(own) == len(events) > 0
        by_number = {row["trial"]: row for row in table}
        for count, row in enumerate(own):
            assert int(row["trial"]) == RECOVERED + count
            parent = by_number[row["parent"]]
            for name in ("plan_hash", "size_bytes", "latency_ms"):
                assert row[name] == parent[name]
            assert row["recovery_seed"] == str(REQUEST.seed)
            assert row["state"] == "complete"
        assert len(table) - len(own) == REQUEST.trials

    def test_the_front_is_no_worse_for_it(self, recovered_run: RunFolder) -> None:
        trials = flow.load_trials(recovered_run)
        gains = [
            (one.metric or 0.0) - (next(t for t in trials if t.number == one.parent).metric or 0.0)
            for one in trials
            if one.parent is not None
        ]
        assert max(gains) > 0
        assert any(one.parent is not None for one in flow.front_of(recovered_run))

    def test_recovered_points_are_verified_as_files(self, recovered_run: RunFolder) -> None:
        setup, known = small_setup(recover_epochs=2), verifications(recovered_run)
        points = [point for point in flow.front_of(recovered_run) if point.weights is not None]
        for point in points:
            assert point.weights is not None
            weights = weights_path(recovered_run, point.weights)
            file = export_onnx(setup.bench.compress(point.plan, weights), packed=True)
            assert file == (recovered_run.exports / str(point.number) / "model.onnx").read_bytes()
            measured = known[point.key]["measured"]
            assert isinstance(measured, dict)
            assert measured["size_bytes"] == len(file)

    def test_a_recovered_point_is_verified_again_on_demand(self, recovered_run: RunFolder, tmp_path: Path) -> None:
        run = Run.open(shutil.copytree(recovered_run.path, tmp_path / "run"))
        point = next(point for point in flow.front_of(run.folder) if point.weights is not None)
        (document,) = run.verify(point.number, task=small_task.task(), target=made_target())
        assert (document["trial"], document["key"]) == (point.number, point.key)

    def test_any_trial_that_was_evaluated_is_verified_on_demand(self, recovered_run: RunFolder, tmp_path: Path) -> None:
        run = Run.open(shutil.copytree(recovered_run.path, tmp_path / "run"))
        on_front = {point.number for point in flow.front_of(run.folder)}
        other = next(t for t in flow.load_trials(run.folder) if t.state == "complete" and t.number not in on_front)
        (document,) = run.verify(other.number, task=small_task.task(), target=made_target())
        assert (document["trial"], document["key"]) == (other.number, other.key)
        with pytest.raises(
            RunError, match=r"must be one that was evaluated; 99 is none of .*, whose \d+ are in trials.csv"
        ):
            run.verify(99, task=small_task.task(), target=made_target())

    @pytest.mark.parametrize("epochs", [0, 2])
    def test_a_search_that_begins_from_it_trains_none_of_them_again(
        self, epochs: int, recovered_run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What training made of plans within the new limits is there at once."""
        before = [one for one in flow.load_trials(recovered_run) if one.parent is not None and one.cost is not None]
        limit_bytes = sorted(one.cost.size_bytes for one in before if one.cost is not None)[len(before) // 2]
        within = {one.key: one for one in before if one.cost is not None and one.cost.size_bytes <= limit_bytes}
        asked = replace(REQUEST, trials=2, max_size_kb=(limit_bytes + 1) / 1000)
        asked = replace(asked, recover_epochs=epochs, begun_from=str(recovered_run.path))
        trained = list[Plan]()
        monkeypatch.setattr(
            stage, "recover", lambda prepared, compressed, *given, **named: trained.append(compressed.plan)
        )
        folder = RunFolder(tmp_path / "run")
        points = flow.search(replace(small_setup(), request=asked), folder, resume=False, watcher=SILENT)
        again = {one.key: one for one in flow.load_trials(folder) if one.parent is not None}
        assert {*again} == {*within}
        assert all(again[key].metric == one.metric for key, one in within.items())
        assert not {plan.hash for plan in trained} & {one.plan.hash for one in within.values()}
        assert any(point.parent is not None for point in points)
        shutil.copytree(folder.path, tmp_path / "again")
        flow.search(replace(small_setup(), request=asked), RunFolder(tmp_path / "again"), resume=True, watcher=SILENT)
        assert (tmp_path / "again" / "front.csv").read_text() == (folder.path / "front.csv").read_text()

    def test_going_on_recovers_nothing_twice(self, recovered_run: RunFolder) -> None:
        before = (recovered_run.path / "events.jsonl").read_bytes()
        tables = (recovered_run.path / "trials.csv").read_text()
        flow.search(small_setup(recover_epochs=2), recovered_run, resume=True, watcher=SILENT)
        assert (recovered_run.path / "events.jsonl").read_bytes() == before
        assert (recovered_run.path / "trials.csv").read_text() == tables


@pytest.mark.slow
def test_the_fastest_within_a_drop_is_one_that_training_brought_there(tmp_path: Path) -> None:
    given = small_setup(recover_epochs=2, goal="fastest", max_drop=8.0)
    folder = RunFolder(tmp_path / "run")
    flow.search(given, folder, resume=False, watcher=SILENT)
    trials = flow.load_trials(folder)
    base = trials[0].metric or 0.0
    dropped = {one.number: base - (one.metric or 0.0) for one in trials}
    trained = [one for one in trials if one.parent is not None]
    assert 0 < len(trained) <= len(trials).bit_length()
    assert {one.key for one in trained} <= {*verifications(folder)}  # also what ended outside the drop
    # Trials were not kept to the drop, and what is on the front is.
    assert max(dropped.values()) > 8.0
    assert all(dropped[point.number] <= 8.0 for point in flow.front_of(folder))


@pytest.mark.slow
def test_nothing_is_trained_that_breaks_a_limit_however_fast(tmp_path: Path) -> None:
    """Training brings back accuracy, and no bytes."""
    given = small_setup(recover_epochs=1, sampler="random", max_size_kb=2.2, trials=8)
    folder = RunFolder(tmp_path / "run")
    flow.search(given, folder, resume=False, watcher=SILENT)
    trials = flow.load_trials(folder)
    tried = [one for one in trials if one.parent is None and one.number != 0 and one.cost is not None]
    fastest = min(tried, key=lambda one: one.cost.latency_ms if one.cost else 0.0)
    assert fastest.cost is not None
    assert fastest.cost.size_bytes > 2200
    trained = [one for one in trials if one.parent is not None]
    assert trained
    assert all(one.cost is not None and one.cost.size_bytes <= 2200 for one in trained)


@pytest.mark.slow
def test_the_most_accurate_within_a_size_is_one_that_did_best_in_short_trainings(tmp_path: Path) -> None:
    given = small_setup(recover_epochs=6, goal="most-accurate", max_size_kb=5.0, trials=8)
    folder, watcher = RunFolder(tmp_path / "run"), Said()
    points = flow.search(given, folder, resume=False, watcher=watcher)
    done = [event for event in folder.events() if event["event"] == EVENT]
    short, whole = ([event for event in done if event.get("short") is flag] for flag in (True, False))
    assert {event["epochs"] for event in short} == {1}
    assert {event["epochs"] for event in whole} == {6}
    assert MOST_ACCURATE == len(whole) < len(short) <= TRIED_SHORTLY + ANEW
    anew = plans_anew(folder, searched_ones(folder, flow.load_trials(folder))) or ()
    assert 0 < len(anew) <= ANEW
    tried = {one.plan.hash: one for one in flow.load_trials(folder) if one.parent is None}
    assert [tried[plan.hash].number for plan in anew] == [8, 9][: len(anew)]  # beyond those asked for
    assert {plan.hash for plan in anew} <= {event["plan_hash"] for event in short}
    best = sorted(short, key=lambda event: -float(str(event["metric"])))[:MOST_ACCURATE]
    assert [event["plan_hash"] for event in whole] == [event["plan_hash"] for event in best]
    trained = {str(event["weights"]) for event in whole}
    assert trained <= {one.weights for one in flow.load_trials(folder) if one.key in verifications(folder)}
    assert all(point.cost is None or point.cost.size_bytes <= 5000 for point in points[1:])
    why = [one.why for one in flow.load_trials(folder) if one.why and "has little of" in one.why]
    assert 0 < len(why) <= given.request.trials / 2
    page, wanted = Run.open(folder.path).report().read_text(), Run.open(folder.path).pick("most-accurate")
    assert f'"chosen": "{wanted.number}"' in page  # the page opens at what was asked for
    before = (folder.path / "events.jsonl").read_bytes()
    flow.search(given, folder, resume=True, watcher=watcher)
    assert (folder.path / "events.jsonl").read_bytes() == before


@pytest.mark.exhaustive
def test_a_recovery_that_fails_is_told_and_costs_nothing_else(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(Path(shutil.copytree(finished_run, tmp_path / "run")))
    calls = itertools.count()

    def second_fails(*given: object, **named: object) -> Recovered:
        if next(calls) == 1:
            raise RuntimeError("out of luck")
        return recover(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(stage, "recover", second_fails)
    watcher = Said()
    flow.search(small_setup(recover_epochs=1), folder, resume=True, watcher=watcher)
    failed = [line for line in watcher.lines if "failed: RuntimeError: out of luck" in line]
    assert len(failed) == 1
    done = len([event for event in folder.events() if event["event"] == EVENT])
    assert done == next(calls) - 1
    # The same points are worth it at every sitting: what is left is the one that failed.
    flow.search(small_setup(recover_epochs=1), folder, resume=True, watcher=SILENT)
    assert len([event for event in folder.events() if event["event"] == EVENT]) == done + 1


@pytest.mark.exhaustive
@pytest.mark.slow
def test_an_interrupted_training_goes_on_after_its_last_whole_epoch(finished_run: Path, tmp_path: Path) -> None:
    class Impatient(Silent):
        """Stops what trains once more than ``share`` of it is done; keeps the steps that it is told of."""

        def __init__(self, share: float) -> None:
            self.share, self.steps = share, list[int]()

        def step(self, what: str, done: int, of: int, note: str = "") -> None:
            if what.startswith("recovering") and of > 1:
                self.steps.append(done)
                if done > self.share * of:
                    raise KeyboardInterrupt

    def sitting(folder: RunFolder, share: float) -> list[int]:
        watcher = Impatient(share)
        with suppress(KeyboardInterrupt):
            flow.search(small_setup(recover_epochs=3), folder, True, watcher)
        return watcher.steps

    whole, torn = (RunFolder(Path(shutil.copytree(finished_run, tmp_path / name))) for name in ("whole", "torn"))
    sitting(whole, 1.0)
    sitting(torn, 0.8)
    assert [*(torn.path / "weights").glob("*.unfinished")]
    steps = sitting(torn, 1.0)
    assert steps[0] > 1
    assert not [*(torn.path / "weights").glob("*.unfinished")]
    ends = [[event["weights"] for event in run.events() if event["event"] == EVENT] for run in (whole, torn)]
    assert ends[0] == ends[1]


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_finished_search_may_be_recovered_later(finished_run: Path, tmp_path: Path) -> None:
    folder = RunFolder(Path(shutil.copytree(finished_run, tmp_path / "run")))
    flow.search(small_setup(recover_epochs=1), folder, resume=True, watcher=SILENT)
    assert any(row["parent"] for row in rows(folder.path / "trials.csv"))


def test_epochs_below_none_are_refused() -> None:
    with pytest.raises(RequestError, match=r"0 epochs .* or more; got --recover -1"):
        replace(REQUEST, recover_epochs=-1)
