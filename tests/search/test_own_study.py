"""The guided sampler in studies that are not a run's: with earlier trials, several threads, parameters of the user's own, and
saved as Ray Tune saves its searchers."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import optuna
import pytest
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler
from optuna.trial import TrialState

from autocomp import api
from autocomp.errors import RunError
from autocomp.plan import Plan
from autocomp.search.books import distributions
from autocomp.search.guided import GuidedSampler
from autocomp.search.landscape import Choice, Landscape
from autocomp.search.sampler import StartingSampler
from autocomp.space import SearchSpace
from autocomp.trial import Cost
from tests import small_task
from tests.search.synthetic import PaperBench, landscape_of, synthetic_space
from tests.targets import made_target

SPACE = synthetic_space()


def objective(trial: optuna.Trial) -> tuple[float, float, float]:
    indices = {one.name: trial.suggest_int(one.name, 0, len(one.options) - 1) for one in SPACE.decisions}
    plan = SPACE.plan(indices)
    cost = PaperBench().cost(plan)
    return PaperBench().score(plan).value, cost.latency_ms, float(cost.size_bytes)


def cost_of(plan: Plan) -> Cost:
    return PaperBench().cost(plan)


def study_of(sampler: BaseSampler) -> optuna.Study:
    return optuna.create_study(directions=["maximize", "minimize", "minimize"], sampler=sampler)


def choices(study: optuna.Study, land: Landscape) -> list[Choice]:
    return [land.choice(trial.params) for trial in study.trials]


def test_trials_of_another_sampler_are_learned_from() -> None:
    land = landscape_of(SPACE)
    study = study_of(RandomSampler(0))
    study.optimize(objective, n_trials=5)
    study.sampler = sampler = GuidedSampler(land, 0)
    study.optimize(objective, n_trials=4)
    assert land.plan(choices(study, land)[5]) == Plan()  # what drops are counted from
    assert "it is expected" in sampler.why
    assert sampler._surrogate._process is not None


def test_an_untouched_network_that_fails_is_tried_again_and_not_for_ever() -> None:
    land = landscape_of(SPACE)
    study = study_of(GuidedSampler(land, 0))

    def failing(trial: optuna.Trial) -> tuple[float, float, float]:
        found = objective(trial)
        if SPACE.plan(trial.params) == Plan():
            raise RuntimeError("out of memory")
        return found

    study.optimize(failing, n_trials=6, catch=(RuntimeError,))
    failed = [trial.number for trial in study.trials if trial.state == TrialState.FAIL]
    assert failed == [0, 1]
    study.optimize(objective, n_trials=2)
    assert len(set(choices(study, land))) == len(study.trials) - 1


def test_several_threads_propose_different_plans() -> None:
    for seed in range(3):
        land = landscape_of(SPACE)
        study = study_of(GuidedSampler(land, seed))
        study.optimize(objective, n_trials=16, n_jobs=4)
        assert len(set(choices(study, land))) == 16


def test_a_saved_sampler_goes_on_as_it_would_have() -> None:
    sampler = GuidedSampler(Landscape(SPACE, landscape_of(SPACE).errors, cost_of), 0)
    study = study_of(sampler)
    study.optimize(objective, n_trials=6)
    kept: GuidedSampler = pickle.loads(pickle.dumps(sampler))
    assert kept.indices(study, 6) == sampler.indices(study, 6)
    assert kept.why == sampler.why


def test_another_study_is_begun_anew() -> None:
    """Its trials have the numbers of the first one's."""
    land = landscape_of(SPACE)
    sampler = GuidedSampler(land, 0)
    study_of(sampler).optimize(objective, n_trials=6)
    second, alone = study_of(sampler), study_of(GuidedSampler(land, 0))

    def otherwise(trial: optuna.Trial) -> tuple[float, float, float]:
        metric, latency_ms, size_bytes = objective(trial)
        return 0.5 * metric, latency_ms, size_bytes

    for study in (second, alone):
        study.optimize(otherwise, n_trials=6)
    assert choices(second, land) == choices(alone, land)


def test_a_metric_without_end_is_no_knowledge() -> None:
    land = landscape_of(SPACE)
    study = study_of(GuidedSampler(land, 0))
    study.optimize(objective, n_trials=2)
    _, latency_ms, size_bytes = study.trials[1].values
    study.tell(study.ask(distributions(SPACE)), [-math.inf, latency_ms, size_bytes])
    study.optimize(objective, n_trials=2)
    assert len(set(choices(study, land))) == 5


def test_parameters_that_are_no_decisions_are_drawn_within_their_range() -> None:
    study = study_of(GuidedSampler(landscape_of(SPACE), 0))

    def own(trial: optuna.Trial) -> tuple[float, float, float]:
        trial.suggest_float("rate", 1e-4, 1e-2, log=True)
        trial.suggest_int("batch", 16, 64)
        return objective(trial)

    study.optimize(own, n_trials=6)
    assert len({trial.params["rate"] for trial in study.trials}) == 6
    assert all(16 <= trial.params["batch"] <= 64 for trial in study.trials)


@pytest.mark.parametrize("decisions", [1, 2, 3])
def test_all_plans_of_a_small_space_are_tried_before_any_is_tried_again(decisions: int) -> None:
    space = SearchSpace(SPACE.decisions[:decisions], SPACE.inventory)
    land = landscape_of(space)
    count = math.prod(len(one.options) for one in space.decisions)
    study = study_of(GuidedSampler(land, 0))
    for _ in range(count):
        plan = space.plan((trial := study.ask(distributions(space))).params)
        cost = PaperBench().cost(plan)
        study.tell(trial, [PaperBench().score(plan).value, cost.latency_ms, float(cost.size_bytes)])
    assert len({space.plan(trial.params) for trial in study.trials}) == count


@pytest.mark.parametrize("made", [RandomSampler, lambda seed: NSGAIISampler(population_size=4, seed=seed)])
def test_a_study_in_two_sittings_is_that_in_one(made: type[RandomSampler]) -> None:
    """Where a second sitting's sampler is led through what the first proposed."""
    whole = study_of(made(seed=3))
    whole.optimize(objective, n_trials=12)
    before = [trial.params for trial in whole.trials[:7]]
    again = study_of(StartingSampler(before, made(seed=3)))
    again.optimize(objective, n_trials=12)
    assert [trial.params for trial in again.trials] == [trial.params for trial in whole.trials]


def test_a_finished_run_gives_a_study_of_ones_own(tmp_path: Path) -> None:
    run = api.search(small_task.task(), target=made_target(), trials=3, out=tmp_path / "run")
    mine = run.own_study(seed=1, task=small_task.task(), target=made_target())
    study = optuna.create_study(directions=mine.directions, sampler=mine.sampler)
    study.optimize(mine, n_trials=4)
    first = study.trials[0]
    assert mine.plan(first.params) == Plan()
    untouched = run.front.iloc[0]
    assert first.values[:2] == pytest.approx([untouched["metric_search"], untouched["latency_ms"]])
    assert first.values[2] == untouched["size_bytes"]
    assert len({mine.plan(trial.params) for trial in study.trials}) == 4
    kept: GuidedSampler = pickle.loads(pickle.dumps(mine.sampler))
    assert kept.indices(study, 4) == mine.sampler.indices(study, 4)
    assert "it is expected" in mine.sampler.why


def test_a_run_within_limits_guides_within_them(tmp_path: Path) -> None:
    wished = {"goal": "most-accurate", "max_size_kb": 20.0}
    run = api.search(small_task.task(), target=made_target(), trials=3, out=tmp_path / "run", **wished)  # type: ignore[arg-type]
    mine = run.own_study(seed=1, task=small_task.task(), target=made_target())
    study = optuna.create_study(directions=mine.directions, sampler=mine.sampler)
    study.optimize(mine, n_trials=5)
    assert sum(trial.values[2] <= 20_000 for trial in study.trials) == 4  # all but the untouched network


def test_without_sensitivities_a_run_guides_no_study(tmp_path: Path) -> None:
    run = api.search(small_task.task(), target=made_target(), trials=2, sampler="random", out=tmp_path / "run")
    with pytest.raises(RunError, match=r"which a search with sampler auto measures; .* is one with random"):
        run.own_study(task=small_task.task(), target=made_target())


@pytest.mark.exhaustive
def test_it_guides_ray_tunes_own_searcher(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed; pip install 'autocomp[ray]'")
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    run = api.search(small_task.task(), target=made_target(), trials=3, out=tmp_path / "run")
    mine = run.own_study(seed=1, task=small_task.task(), target=made_target())

    def evaluated(config: dict[str, int]) -> None:
        tune.report({"metric": float(-sum(config.values())), "latency_ms": 1.0, "size_bytes": 1.0})

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
    try:
        searcher = OptunaSearch(
            space=mine.distributions,
            metric=["metric", "latency_ms", "size_bytes"],
            mode=["max", "min", "min"],
            sampler=mine.sampler,
        )
        found = tune.Tuner(
            evaluated,
            tune_config=tune.TuneConfig(search_alg=searcher, num_samples=4, max_concurrent_trials=2),
            run_config=tune.RunConfig(storage_path=str(tmp_path / "tune"), name="mine", verbose=0),
        ).fit()
    finally:
        ray.shutdown()
    assert found.num_errors == 0
    configs = [one.config for one in map(found.__getitem__, range(len(found))) if one.config is not None]
    assert len({tuple(sorted(config.items())) for config in configs}) == len(configs) == 4
