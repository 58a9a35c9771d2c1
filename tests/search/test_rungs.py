"""Evaluations that stop where the plan cannot join the front any more."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from autocomp.plan import Plan
from autocomp.search.drop import CONFIDENCE_Z
from autocomp.search.evaluate import Outcome, Workbench
from autocomp.search.ledger import Knowledge, Ledger, run_trials
from autocomp.search.limits import Limits
from autocomp.search.rungs import PARTS, Climb, Hurdle, Remembering, climb, parts_of
from autocomp.search.study import open_study, read_trials
from autocomp.task import Metric, Predict, Score, Split, Task
from autocomp.trial import Cost, Rung
from tests.search.synthetic import BASELINE, PaperBench, landscape_of, request, search_in, searched, synthetic_space

EXAMPLES = 3000
COST = Cost(1.0, 0.1, 1000, 1, 1, "fitted")


class Echo(torch.nn.Module):
    """Gives what it is given: outcomes of 0 and 1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def task_of(outcomes: torch.Tensor, whole_only: bool = False) -> Task:
    def evaluate(predict: Predict, split: Split, fraction: float = 1.0) -> Score:
        count = EXAMPLES if whole_only else round(fraction * EXAMPLES)
        right = np.concatenate([predict(part).numpy() for part in torch.split(outcomes[:count], 100)]).astype(
            np.float64
        )
        return Score(100 * float(right.mean()), right)

    return Task("echo", Echo(), (outcomes[:1],), [(outcomes[:1],)], evaluate, Metric("accuracy"))


# No two batches of it are alike.
UNTOUCHED = (torch.rand(EXAMPLES, generator=torch.Generator().manual_seed(0)) > 0.1).float()


class Wrong:
    """A network that is wrong on every so-manieth example as well, and counts what it is asked."""

    def __init__(self, every: int) -> None:
        self.every, self.asked = every, 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.asked += len(x)
        return x * (torch.arange(len(x)) % self.every != 1)


def climbed(network: Wrong, hurdle: Hurdle | None) -> Climb:
    task = task_of(UNTOUCHED)
    return climb(task, network, COST, parts_of(task, task.evaluate(task.model, "search")), hurdle)


def test_a_hopeless_plan_is_stopped_on_the_first_part() -> None:
    network = Wrong(every=3)
    found = climbed(network, Hurdle(front=((1.0, 0.9, 900.0),)))
    assert found.score is None
    assert [rung.share for rung in found.rungs] == [PARTS[0]]
    assert network.asked < EXAMPLES / 8
    assert 20.0 < found.drop < 40.0
    assert 0.0 < found.drop_std < 5.0


def test_a_plan_that_may_join_sees_the_whole_split_and_nothing_twice() -> None:
    for hurdle in (Hurdle(), Hurdle(front=((1.0, 1.1, 900.0),)), Hurdle(front=((40.0, 0.9, 900.0),))):
        network = Wrong(every=3)
        found = climbed(network, hurdle)
        assert found.score is not None
        assert [rung.share for rung in found.rungs] == [*PARTS, 1.0]
        assert found.rungs[-1].metric == found.score.value
        assert network.asked <= EXAMPLES + 200  # but for the last batch of a part


def test_the_limit_of_the_drop_stops_as_well() -> None:
    assert climbed(Wrong(every=3), Hurdle(max_drop=5.0)).score is None
    assert climbed(Wrong(every=100), Hurdle(max_drop=5.0)).score is not None


def test_without_a_hurdle_there_are_no_parts() -> None:
    found = climbed(Wrong(every=3), None)
    assert found.score is not None
    assert found.rungs == ()


def test_a_task_that_takes_no_parts_has_none() -> None:
    whole = task_of(UNTOUCHED, whole_only=True)
    assert parts_of(whole, whole.evaluate(whole.model, "search")) == ()
    assert parts_of(whole, Score(90.0)) == ()


def test_parts_are_scored_by_a_copy_in_evaluation_mode() -> None:
    class Trained(Echo):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(1, affine=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 0.0 * self.norm(x[:, None])[:, 0] if self.training else super().forward(x)

    task = replace(task_of(UNTOUCHED), model=Trained().train())
    before = copy.deepcopy(task.model.state_dict())
    parts = parts_of(task, Score(90.0, np.ones(EXAMPLES)))
    wanted = [100 * float(UNTOUCHED[: round(share * EXAMPLES)].mean()) for share in PARTS]
    assert [score.value for _, score in parts] == pytest.approx(wanted)
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())
    assert task.model.training


def test_what_an_evaluation_writes_into_outputs_is_not_kept() -> None:
    predict = Remembering(Wrong(every=2))
    one = torch.ones(4)
    first = predict(one)
    assert isinstance(first, torch.Tensor)
    kept = first.clone()
    first.zero_()
    assert torch.equal(predict(one), kept)  # type: ignore[arg-type]
    predict.last_look = True
    assert torch.equal(predict(one), kept)  # type: ignore[arg-type]
    assert not predict.known


def test_batches_are_told_apart_by_what_is_in_them() -> None:
    network = Wrong(every=2)
    predict = Remembering(network)
    one, other = torch.ones(4), torch.zeros(4)
    results = [predict(tensor) for tensor in (one, other, one.clone(), one.reshape(2, 2)[0], other)]
    assert network.asked == 10
    assert torch.equal(results[0], results[2])  # type: ignore[arg-type]
    scaled = Remembering(lambda x, by: x * by)
    assert [float(scaled(torch.ones(()), torch.tensor(by))) for by in (1.0, 5.0)] == [1.0, 5.0]  # type: ignore[arg-type]


class Stopping(PaperBench):
    """Stops every other plan that has something to clear."""

    def climb(self, plan: Plan, cost: Cost, hurdle: Hurdle | None) -> Climb:
        metric = self.score(plan).value
        if hurdle is not None and int(plan.hash, 16) % 2:
            return Climb((Rung(1 / 9, metric),), None, BASELINE - metric, 1.0)
        return Climb((), Score(metric))


def test_stopped_trials_are_kept_learnt_from_and_never_on_the_front(tmp_path: Path) -> None:
    bench = Stopping()
    trials = search_in(tmp_path / "study.log", request("auto", trials=14), bench)
    stopped = [trial for trial in trials if trial.state == "stopped"]
    assert 2 <= len(stopped) <= 12
    assert all(trial.metric is None and trial.cost == bench.cost(trial.plan) and trial.rungs for trial in stopped)
    again = search_in(tmp_path / "study.log", request("auto", trials=16), bench)
    assert again[:14] == trials
    assert len({trial.plan.hash for trial in again}) == 16
    assert read_trials(open_study(tmp_path / "study.log", "maximize").study, 0) == again


def test_a_sitting_holds_of_trials_what_another_one_reads(tmp_path: Path) -> None:
    opened, asked = open_study(tmp_path / "study.log", "maximize"), request("auto", trials=14)
    ledger = searched(opened, asked, Stopping())
    assert any(trial.state == "stopped" for trial in ledger.trials)
    assert ledger.trials == read_trials(opened.study, asked.seed)


class Showing(PaperBench):
    """Shows every plan's metric on a part of the split first."""

    def climb(self, plan: Plan, cost: Cost, hurdle: Hurdle | None) -> Climb:
        metric, std = self.score(plan).value, 1e-3
        if hurdle is not None and not hurdle.cleared(BASELINE - metric - CONFIDENCE_Z * std, cost):
            return Climb((Rung(1 / 9, metric),), None, BASELINE - metric, std)
        return Climb((), Score(metric))


def test_where_the_most_accurate_is_wanted_what_is_less_accurate_is_stopped_whatever_it_costs(tmp_path: Path) -> None:
    asked = request("auto", trials=30, max_size_kb=60.0, goal="most-accurate")
    trials = search_in(tmp_path / "study.log", asked, Showing())
    whole = [one for one in trials[1:] if one.cost and one.cost.size_bytes <= 60_000 and one.metric is not None]
    metrics = [one.metric or 0.0 for one in whole]
    assert metrics == sorted(metrics)
    assert any(one.state == "stopped" for one in trials)
    front = search_in(tmp_path / "other.log", replace(asked, goal="front"), Showing())
    assert sum(one.state == "stopped" for one in front) < sum(one.state == "stopped" for one in trials)


def test_what_was_stopped_by_plans_that_break_corrected_limits_is_seen_again(tmp_path: Path) -> None:
    """Files are larger than foreseen: what was worse than others within 60 KB may be the best that is left."""
    asked = request("auto", trials=30, max_size_kb=60.0, goal="most-accurate")
    opened, bench = open_study(tmp_path / "study.log", "maximize"), Showing()
    first = searched(opened, asked, bench)
    corrected = Limits(size_bytes=60_000, size_factor=1.1)
    again = first.to_see_again(corrected)
    assert again
    front = searched(open_study(tmp_path / "other.log", "maximize"), replace(asked, goal="front"), bench)
    assert any(one.state == "stopped" for one in front.trials)
    assert not front.to_see_again(corrected)  # what stops a plan there is no larger
    assert not first.to_see_again(Limits(size_bytes=60_000))
    stopped = [first.trials[number] for number in again]
    assert all(one.state == "stopped" and 1.1 * one.cost.size_bytes <= 60_000 for one in stopped if one.cost)
    second = Ledger(
        opened,
        synthetic_space(),
        asked,
        bench.task.metric,
        BASELINE,
        Knowledge(landscape_of(synthetic_space())),
        corrected,
        12,
        again=frozenset(again),
    )
    assert all(second.known(one.plan) is None for one in stopped)
    run_trials(second, cast("Workbench", bench), None, lambda trial, trials: None)
    whole = [one.metric for one in second.trials[1:] if one.metric and one.cost and 1.1 * one.cost.size_bytes <= 60_000]
    assert all(max(whole) >= bench.score(one.plan).value for one in stopped)


def test_uniform_plans_and_those_of_genetic_samplers_are_seen_whole(tmp_path: Path) -> None:
    for name in ("uniform", "nsga2", "tpe"):
        trials = search_in(tmp_path / f"{name}.log", request(name, trials=8), Stopping())
        assert {trial.state for trial in trials} == {"complete"}


def test_an_outcome_that_stopped_has_no_metric() -> None:
    assert Outcome(None, COST, 1.0, None, (), (3.0, 1.0)).metric is None
