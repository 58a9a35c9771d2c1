"""The journal: what was proposed and how it scored, through kills at any moment."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import cast

import pytest

from autocomp.errors import RunError, UncoveredKernelError
from autocomp.plan import Format, LayerPlan, Plan
from autocomp.run import Json, Request
from autocomp.search import ledger
from autocomp.search.earlier import Findings
from autocomp.search.evaluate import Workbench
from autocomp.search.landscape import Choice, Landscape
from autocomp.search.ledger import MOST_PARAMETERS, Knowledge, Ledger, run_trials
from autocomp.search.limits import Limits
from autocomp.search.points import front_trials, goal_trial
from autocomp.search.sampler import SamplerName, uniform_indices
from autocomp.search.study import open_study, read_study, read_trials
from autocomp.task import Metric
from autocomp.trial import Cost, Trial
from tests.search.synthetic import (
    BASELINE,
    PaperBench,
    hashes,
    landscape_of,
    request,
    search,
    search_in,
    synthetic_space,
)

pytestmark = pytest.mark.slow

#: Optuna's word for it in a journal.
CREATE_TRIAL = 4

KILLED_SAMPLERS: tuple[SamplerName, ...] = ("auto", "nsga2", "tpe", "random")


def test_the_trial_count_asked_for_and_every_plan_evaluated_once(tmp_path: Path) -> None:
    bench = PaperBench()
    trials = search_in(tmp_path / "study.log", request("tpe", trials=30), bench)
    assert [trial.number for trial in trials] == list(range(30))
    assert max(Counter(plan.hash for plan in bench.scored).values()) == 1
    assert {plan.hash for plan in bench.scored} == set(hashes(trials))


def test_going_on_gives_what_an_undisturbed_run_gives(tmp_path: Path) -> None:
    whole = search_in(tmp_path / "whole.log", request("auto", trials=40))
    for trials in (1, 7, 18, 40):
        last = search_in(tmp_path / "parts.log", request("auto", trials=trials))
        assert hashes(last) == hashes(whole[:trials])
    assert [trial.metric for trial in last] == [trial.metric for trial in whole]


@pytest.mark.parametrize(("sampler", "most"), [*((name, MOST_PARAMETERS) for name in KILLED_SAMPLERS), ("auto", 5)])
def test_killed_at_any_line_of_the_journal_it_goes_on_as_if_undisturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: SamplerName, most: int
) -> None:
    """Every line is a moment at which the process can die: between proposals, in the midst of one, after the
    evaluation and before the telling. With more decisions than ``most``, a proposal is one attribute."""
    monkeypatch.setattr(ledger, "MOST_PARAMETERS", most)
    asked = request(sampler, trials=19, max_size_kb=60.0)
    whole = search_in(tmp_path / "whole.log", asked)
    lines = (tmp_path / "whole.log").read_bytes().splitlines(keepends=True)
    began = [place for place, line in enumerate(lines) if json.loads(line)["op_code"] == CREATE_TRIAL]
    assert len(began) == 19
    # Some early ones; then, where a genetic sampler's second generation opens, every one.
    every = 1 if sampler in {"auto", "nsga2"} else 5
    places = [1, 2, began[1] - 2, began[5] + 4, *range(began[16] - 4, began[17] + 4, every)]
    for place in places:
        journal = tmp_path / f"{place}.log"
        torn = lines[place][: len(lines[place]) // 2] if place % 2 else b""
        journal.write_bytes(b"".join(lines[:place]) + torn)
        bench = PaperBench()
        finished = _finished(journal)
        trials = search_in(journal, asked, bench)
        assert hashes(trials) == hashes(whole), f"killed at line {place}: {lines[place]!r}"
        assert [trial.state for trial in trials] == ["complete"] * 19
        assert not {plan.hash for plan in bench.scored} & finished, "evaluated twice"


@pytest.mark.parametrize("most", [5, MOST_PARAMETERS])
@pytest.mark.parametrize("number", [1, 3])
def test_interrupted_while_it_thinks_about_a_proposal_it_goes_on_as_if_undisturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, most: int
) -> None:
    monkeypatch.setattr(ledger, "MOST_PARAMETERS", most)
    whole = search_in(tmp_path / "whole.log", request("auto", trials=6))
    begun, calls, of_plan = open_study(tmp_path / "begun.log", "maximize"), itertools.count(), Landscape.plan_hash

    def interrupted(self: Landscape, choice: Choice) -> str:
        if len(begun.study.trials) >= number and next(calls) == 3:
            raise KeyboardInterrupt
        return of_plan(self, choice)

    with monkeypatch.context() as patched:
        patched.setattr(Landscape, "plan_hash", interrupted)
        with pytest.raises(KeyboardInterrupt):
            search(begun, request("auto", trials=6))
    assert len(begun.study.trials) < 6
    assert hashes(search_in(tmp_path / "begun.log", request("auto", trials=6))) == hashes(whole)


def _finished(journal: Path) -> set[str]:
    try:
        return {trial.plan.hash for trial in read_trials(read_study(journal), 0) if trial.state == "complete"}
    except RunError:
        return set()


def test_looking_at_a_journal_changes_nothing(tmp_path: Path) -> None:
    journal = tmp_path / "study.log"
    search_in(journal, request(trials=3))
    lock = Path(f"{journal}.lock")  # as a process at work holds it
    lock.symlink_to(journal)
    before = journal.read_bytes()
    assert len(read_trials(read_study(journal), 0)) == 3
    assert journal.read_bytes() == before
    assert lock.is_symlink()


@pytest.mark.parametrize("text", [None, "", "no journal\n"])
def test_no_study_to_read_is_one_line(tmp_path: Path, text: str | None) -> None:
    journal = tmp_path / "study.log"
    if text is not None:
        journal.write_text(text)
    with pytest.raises(RunError) as caught:
        read_study(journal)
    assert "\n" not in str(caught.value)


def test_a_lock_that_a_killed_process_left_behind_does_not_stop_anybody(tmp_path: Path) -> None:
    journal = tmp_path / "study.log"
    search_in(journal, request(trials=2))
    Path(f"{journal}.lock").symlink_to(journal)
    assert len(search_in(journal, request(trials=3))) == 3


@pytest.mark.parametrize("kind", [AssertionError, RuntimeError, OSError, AttributeError, KeyError])
def test_whatever_a_trial_raises_is_recorded_and_the_search_goes_on(tmp_path: Path, kind: type[Exception]) -> None:
    class Raising(PaperBench):
        def cost(self, plan: Plan) -> Cost:
            if plan["b"].format == Format(8):
                raise kind("a broken\nkernel")
            return super().cost(plan)

    trials = search_in(tmp_path / "study.log", request("auto", trials=12), Raising())
    failed = [trial for trial in trials if trial.state == "failed"]
    assert failed
    for trial in failed:
        assert trial.plan["b"].format == Format(8)
        assert trial.metric is None
        assert trial.cost is None
        assert trial.error is not None
        assert trial.error.startswith(f"{kind.__name__}: ")
        assert "\n" not in trial.error
    assert len([trial for trial in trials if trial.state == "complete"]) == 12 - len(failed)


def test_without_the_untouched_network_there_is_nothing_to_go_on_with(tmp_path: Path) -> None:
    bench = PaperBench(fails=lambda plan: plan == Plan())
    for _ in range(2):  # nor is there on resume
        assert [one.state for one in search_in(tmp_path / "study.log", request(trials=12), bench)] == ["failed"]


def test_a_known_plan_whose_cost_is_not_foreseen_is_a_failed_trial(tmp_path: Path) -> None:
    """On another target than that of the run that scored it."""

    class Uncovered(PaperBench):
        def cost(self, plan: Plan) -> Cost:
            if plan.layers:
                raise UncoveredKernelError("no such kernel", ())
            return super().cost(plan)

    space, bench = synthetic_space(), Uncovered()
    landscape = Landscape(space, landscape_of(space).errors, bench.cost)
    plans = [space.plan(indices) for indices in uniform_indices(space)]
    knowledge = Knowledge(landscape, Findings(metrics={plan.hash: 80.0 for plan in plans}))
    opened = open_study(tmp_path / "study.log", "maximize")
    ledger = Ledger(opened, space, request("uniform", trials=4), bench.task.metric, BASELINE, knowledge)
    run_trials(ledger, cast("Workbench", bench), None, lambda trial, trials: None)
    assert [one.state for one in ledger.trials] == ["complete", "failed", "failed", "failed"]


def test_a_time_limit_stops_proposing_and_keeps_what_is_found(tmp_path: Path) -> None:
    trials = search_in(tmp_path / "study.log", request(trials=100_000, timeout_s=1e-9))
    assert len(trials) <= 1
    assert len(search_in(tmp_path / "study.log", request(trials=4))) == 4


def test_trials_read_back_as_they_were(tmp_path: Path) -> None:
    bench = PaperBench()
    for trial in search_in(tmp_path / "study.log", request("random", trials=6), bench):
        assert trial.cost == bench.cost(trial.plan)
        assert trial.metric == pytest.approx(bench.score(trial.plan).value)
        assert trial.seconds is not None


def test_the_journal_stays_small(tmp_path: Path) -> None:
    journal = tmp_path / "study.log"
    search_in(journal, request("random", trials=20))
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert len(lines) < 20 * (12 + 12)  # a line a decision, and a dozen a trial


def trial(number: int, metric: float | None, latency_ms: float = 1.0, size_bytes: int = 1000) -> Trial:
    plan = Plan({f"layer{number}": LayerPlan(format=Format(8))}) if number else Plan()
    if metric is None:
        return Trial(number, plan, "failed", None, None, 0.1, 0, error="RuntimeError: no")
    return Trial(number, plan, "complete", metric, Cost(latency_ms, 0.1, size_bytes, 1, 1, "fitted"), 0.1, 0)


BASE = trial(0, 90.0, 4.0, 4000)
METRIC = Metric("accuracy")


def test_the_front_is_the_baseline_and_what_nothing_beats() -> None:
    trials = [BASE, trial(1, 89.0, 2.0, 2000), trial(2, None), trial(3, 88.0, 3.0, 3000), trial(4, 80.0, 1.0, 500)]
    assert [point.number for point in front_trials(trials, METRIC, Limits())] == [0, 1, 4]


def test_an_error_to_be_minimized_is_turned_round() -> None:
    trials = [trial(0, 1.0, 4.0, 4000), trial(1, 1.2, 2.0, 2000), trial(2, 1.4, 2.0, 2000)]
    assert [point.number for point in front_trials(trials, Metric("error", "minimize"), Limits())] == [0, 1]


@pytest.mark.parametrize(
    ("limits", "numbers"),
    [
        (Limits(latency_ms=2.0), [0, 4]),  # of the other one it is not certain
        (Limits(latency_ms=2.2), [0, 1, 4]),
        (Limits(size_bytes=600), [0, 4]),
        (Limits(max_drop=1.0), [0, 1]),
        (Limits(latency_ms=1.5, max_drop=1.0), [0]),
        (Limits(max_drop=0.0), [0]),
    ],
)
def test_the_front_keeps_the_limits(limits: Limits, numbers: list[int]) -> None:
    trials = [BASE, trial(1, 89.0, 2.0, 2000), trial(2, None), trial(4, 80.0, 1.0, 500)]
    assert [point.number for point in front_trials(trials, METRIC, limits)] == numbers


def test_a_drop_of_what_is_allowed_is_kept_however_it_is_rounded() -> None:
    limits, cost = Limits(max_drop=1.0), Cost(1.0, 0.0, 1, 1, 1, "fitted")
    for hundredths in range(7900, 9900):  # as shares of right examples have it: 80.04 - 79.04 is more than 1
        assert limits.broken((hundredths + 100) / 100 - hundredths / 100, cost) <= [0.0]
    assert limits.broken(1.0002, cost) > [0.0]


def test_the_fastest_is_told_by_the_untouched_file_of_its_own_sitting() -> None:
    points = [trial(0, 9.0, 3.0, 900), trial(1, 8.0, 2.0, 500), trial(2, 7.0, 1.5, 400)]

    def verified(*measured: tuple[float, float] | None) -> dict[str, Json]:
        return {
            point.key: {"measured": {"latency_ms": pair[0], "baseline_latency_ms": pair[1], "size_bytes": 100}}
            for point, pair in zip(points, measured, strict=True)
            if pair is not None
        }

    def fastest(*measured: tuple[float, float] | None) -> int:
        return goal_trial(points, "fastest", Metric("score"), verified(*measured), max_drop=10.0).number

    assert fastest((1.0, 1.0), (0.50, 1.0), (0.52, 1.08)) == 2
    assert fastest((1.0, 1.0), (0.50, 1.0), (0.52, 1.0)) == 1
    assert fastest((1.8, 1.8), (1.2, 1.8), None) == 2  # like with like: predictions


def test_without_a_baseline_there_is_no_front() -> None:
    assert front_trials([trial(0, None), trial(1, 80.0)], METRIC, Limits()) == []


def test_two_trials_of_one_plan_count_once() -> None:
    again = Trial(7, trial(1, 89.0).plan, "complete", 89.0, trial(1, 89.0, 2.0, 2000).cost, 0.0, 0)
    assert [p.number for p in front_trials([BASE, trial(1, 89.0, 2.0, 2000), again], METRIC, Limits())] == [0, 1]


def test_limits_come_from_the_request() -> None:
    asked: Request = request(max_latency_ms=2.0, max_size_kb=3.5)
    limits = Limits.of(asked)
    assert limits
    assert (limits.latency_ms, limits.size_bytes, limits.max_drop) == (2.0, 3500.0, None)
    assert not Limits()
    assert limits.broken(0.0, Cost(3.0, 0.1, 1750, 1, 1, "fitted")) == pytest.approx([0.55, -0.5])


def test_the_same_journal_opens_again(tmp_path: Path) -> None:
    study = open_study(tmp_path / "study.log", "minimize").study
    assert study.directions == open_study(tmp_path / "study.log", "minimize").study.directions
