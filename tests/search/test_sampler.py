"""What every sampler must do, whichever it is."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import get_args

import optuna
import pytest
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import NSGAIISampler

from autocomp.errors import RequestError
from autocomp.plan import Plan
from autocomp.search.books import distributions
from autocomp.search.sampler import GeneticSampler, SamplerName, StartingSampler, make_sampler, uniform_indices
from autocomp.search.study import RunStudy
from tests.search.synthetic import PaperBench, hashes, one_option_space, request, search, synthetic_space


def new_study() -> RunStudy:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return RunStudy(optuna.create_study(directions=["maximize", "minimize", "minimize"]))


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Sampler → the plans that a fresh process is proposed, by hash."""
    folder = tmp_path_factory.mktemp("elsewhere")
    command = [sys.executable, "-m", "tests.search.synthetic", str(folder)]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True, timeout=120
    )
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", get_args(SamplerName))
class TestSampler:
    def test_proposals_are_indices_of_the_space(self, name: SamplerName) -> None:
        opened, space = new_study(), synthetic_space()
        search(opened, request(name), space=space)
        for trial in opened.study.trials:
            assert trial.params.keys() == space.by_name.keys()
            for decision in space.decisions:
                index = trial.params[decision.name]
                assert isinstance(index, int)
                assert 0 <= index < len(decision.options)

    def test_the_first_trial_is_the_untouched_plan(self, name: SamplerName) -> None:
        for seed in (0, 1, 2):
            (first,) = search(new_study(), request(name, trials=1, seed=seed))
            assert first.plan == Plan()

    def test_the_same_seed_proposes_the_same_in_a_fresh_process(
        self, name: SamplerName, elsewhere: dict[str, list[str]]
    ) -> None:
        here = hashes(search(new_study(), request(name)))
        assert here == elsewhere[name]
        assert len(set(here)) > 20

    def test_another_seed_proposes_something_else(self, name: SamplerName) -> None:
        if name == "uniform":
            pytest.skip("the uniform plans have no chance in them")
        first, second = (hashes(search(new_study(), request(name, seed=seed))) for seed in (0, 1))
        assert first != second

    def test_failed_trials_are_tolerated(self, name: SamplerName) -> None:
        bench = PaperBench(fails=lambda plan: any(lp.rank is not None for lp in plan.layers.values()))
        trials = search(new_study(), request(name), bench)
        assert len(trials) == 40
        assert {trial.state for trial in trials} == {"complete", "failed"}
        assert trials[0].state == "complete"

    def test_when_everything_else_fails_it_goes_on_proposing(self, name: SamplerName) -> None:
        trials = search(new_study(), request(name, trials=20), PaperBench(fails=lambda plan: plan != Plan()))
        assert {trial.state for trial in trials if trial.plan != Plan()} == {"failed"}
        assert len(trials) == 20

    def test_limits_are_taken_along(self, name: SamplerName) -> None:
        trials = search(new_study(), request(name, max_latency_ms=2.0, max_size_kb=60.0, max_drop=8.0))
        assert {trial.state for trial in trials} == {"complete"}

    def test_a_space_of_one_option_is_enough(self, name: SamplerName) -> None:
        bench = PaperBench()
        trials = search(new_study(), request(name, trials=20), bench, one_option_space())
        assert len(trials) == 20
        assert trials[0].plan == Plan()
        assert len(set(hashes(trials))) == 2
        assert len(bench.scored) == 2  # a plan that is known is not evaluated again


def test_the_first_uniform_plans_are_the_formats_alone() -> None:
    space = synthetic_space()
    first = [space.plan(indices) for indices in islice(uniform_indices(space), 4)]
    bits = [{lp.format.weight_bits for lp in plan.layers.values() if lp.format is not None} for plan in first]
    assert bits == [set(), {8}, {4}, {2}]
    assert all(lp.rank is None and lp.sparsity is None for plan in first for lp in plan.layers.values())


def test_a_limit_draws_the_search_towards_what_keeps_it() -> None:
    def kept(max_size_kb: float | None) -> int:
        trials = search(new_study(), replace(request("nsga2", trials=80), max_size_kb=max_size_kb))
        return sum(trial.cost is not None and trial.cost.size_bytes <= 12_000 for trial in trials[40:])

    assert kept(12.0) > kept(None)


def test_an_unknown_sampler_names_the_near_ones() -> None:
    with pytest.raises(RequestError, match="got 'nsga3'; did you mean nsga2"):
        make_sampler("nsga3", synthetic_space(), 0, 0)  # type: ignore[arg-type]


def test_a_decision_is_one_integer() -> None:
    space = synthetic_space()
    for name, distribution in distributions(space).items():
        assert isinstance(distribution, optuna.distributions.IntDistribution)
        assert (distribution.low, distribution.high) == (0, len(space.by_name[name].options) - 1)


@pytest.mark.parametrize("workers", [1, 7, 80])
def test_generations_are_those_that_optuna_counts(workers: int) -> None:
    """However many trials are asked for at a time, and whichever of them is told first, or fails."""
    space, chance = synthetic_space(), random.Random(workers)
    study, asked, generations = new_study().study, list[optuna.Trial](), set[int]()
    for number in range(220):
        sampler = GeneticSampler(distributions(space), number)
        study.sampler = sampler
        asked.append(study.ask(distributions(space)))
        frozen = study.get_trials(deepcopy=False)[number]
        given = frozen.system_attrs[sampler._get_generation_key()]
        frozen.system_attrs.pop(sampler._get_generation_key())
        study._thread_local.cached_all_trials = None
        assert given == NSGAIISampler.get_trial_generation(sampler, study, frozen)
        generations.add(given)
        while len(asked) >= workers:
            done = asked.pop(chance.randrange(len(asked)))
            if chance.random() < 0.1:
                study.tell(done, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(done, [chance.random() for _ in range(3)])
    assert len(generations) >= 3


def test_trials_that_are_given_count_to_generations() -> None:
    """Those that are enqueued do not: NSGA-II would begin by chance behind them."""
    decided: dict[str, BaseDistribution] = {name: IntDistribution(0, 3) for name in "abcdef"}
    given = [
        dict.fromkeys("abcdef", 3),
        dict.fromkeys("abcdef", 2),
        *({**dict.fromkeys("abcdef", 3), name: 2} for name in "ab"),
    ]
    sampler = StartingSampler(given, NSGAIISampler(population_size=4, seed=0, mutation_prob=0.0))
    study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)
    for number in range(8):
        trial = study.ask(decided)
        assert number >= len(given) or trial.params == given[number]
        assert min(trial.params.values()) >= 2  # of parents that have no less
        study.tell(trial, [-sum(trial.params.values()), sum(trial.params.values())])
