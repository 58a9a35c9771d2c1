"""The guided sampler: in a study of its own, with limits, and what it finds."""

from __future__ import annotations

import optuna
import pytest

from autocomp.errors import RequestError
from autocomp.pareto import hypervolume
from autocomp.plan import Plan
from autocomp.search.guided import WORST_DROP, GuidedSampler
from autocomp.search.sampler import SamplerName, make_sampler
from autocomp.trial import Trial
from tests.search.synthetic import BASELINE, PaperBench, landscape_of, request, search, synthetic_space
from tests.search.test_sampler import new_study


def volume(trials: tuple[Trial, ...]) -> float:
    base = trials[0].cost
    assert base is not None
    return hypervolume(
        [
            (
                (BASELINE - trial.metric) / (WORST_DROP * BASELINE),
                trial.cost.latency_ms / base.latency_ms,
                trial.cost.size_bytes / base.size_bytes,
            )
            for trial in trials
            if trial.metric is not None and trial.cost is not None
        ]
    )


@pytest.mark.parametrize("rival", ["nsga2", "tpe", "random"])
def test_a_dozen_trials_are_worth_more_than_a_hundred_of_others(rival: SamplerName) -> None:
    guided = search(new_study(), request("auto", trials=12))
    assert volume(guided) > volume(search(new_study(), request(rival, trials=100)))


def test_limits_are_kept_by_nearly_all_that_is_proposed() -> None:
    trials = search(new_study(), request("auto", trials=20, max_latency_ms=2.0, max_size_kb=60.0))
    kept = [one for one in trials if one.cost and one.cost.latency_ms <= 2.0 and one.cost.size_bytes <= 60_000]
    assert len(kept) >= 17


def test_it_samples_for_a_study_of_ones_own() -> None:
    """Minimized, and without this project's ledger."""
    land, bench = landscape_of(synthetic_space()), PaperBench()
    sampler = GuidedSampler(land, seed=1)
    study = optuna.create_study(directions=["minimize"] * 3, sampler=sampler)

    def objective(trial: optuna.Trial) -> tuple[float, float, float]:
        indices = {one.name: trial.suggest_int(one.name, 0, len(one.options) - 1) for one in land.space.decisions}
        plan = land.space.plan(indices)
        cost = bench.cost(plan)
        return 100.0 - bench.score(plan).value, cost.latency_ms, float(cost.size_bytes)

    study.optimize(objective, n_trials=8)
    assert land.plan(land.choice(study.trials[0].params)) == Plan()
    assert len({land.choice(trial.params) for trial in study.trials}) == 8
    assert "hypervolume" in sampler.why


def test_why_a_plan_was_proposed_is_in_the_journal() -> None:
    opened = new_study()
    search(opened, request("auto", trials=4))
    first, *others = (trial.user_attrs["why"] for trial in opened.study.trials)
    assert first == "the untouched network"
    assert all("of hypervolume" in why and "bytes" in why for why in others)


def test_trials_that_are_still_at_work_are_not_proposed_again() -> None:
    land = landscape_of(synthetic_space())
    study = optuna.create_study(directions=["maximize", "minimize", "minimize"])
    asked = []
    for number in range(6):
        study.sampler = make_sampler("auto", land.space, 0, number, land)
        trial = study.ask(study.sampler.infer_relative_search_space(study, None))  # type: ignore[arg-type]
        asked.append(land.choice(trial.params))
        if number == 0:
            cost = PaperBench().cost(Plan())
            study.tell(trial, [BASELINE, cost.latency_ms, float(cost.size_bytes)])
    assert len(set(asked)) == 6


def test_without_sensitivities_there_is_no_guide() -> None:
    with pytest.raises(RequestError, match="goes by sensitivities"):
        make_sampler("auto", synthetic_space(), 0, 0)
