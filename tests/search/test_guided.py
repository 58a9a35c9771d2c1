"""The guided sampler: in a study of its own, with limits, and what it finds."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import optuna
import pytest

from autocomp.errors import RequestError
from autocomp.pareto import hypervolume
from autocomp.plan import Plan
from autocomp.search import guided, surrogate
from autocomp.search.books import distributions
from autocomp.search.guided import GuidedSampler
from autocomp.search.landscape import Landscape
from autocomp.search.limits import Goal, Limits
from autocomp.search.sampler import SamplerName, make_sampler
from autocomp.search.worth import WORST_DROPS, Wish
from autocomp.task import Score
from autocomp.trial import Cost, Trial
from tests.search.synthetic import BASELINE, PaperBench, landscape_of, request, search, synthetic_space
from tests.search.test_sampler import new_study


def volume(trials: tuple[Trial, ...], of_costs: tuple[float, float] = (1.0, 1.0)) -> float:
    """What trials dominate; by one cost alone where the other weighs nothing."""
    base = trials[0].cost
    assert base is not None
    return hypervolume(
        [
            (
                (BASELINE - trial.metric) / (WORST_DROPS[0] * BASELINE),
                of_costs[0] * trial.cost.latency_ms / base.latency_ms,
                of_costs[1] * trial.cost.size_bytes / base.size_bytes,
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


def test_what_is_learned_late_is_what_was_learned_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a resumed search learns it: by then better plans are known than at the milestone that smoothness is learned at."""
    monkeypatch.setattr(surrogate, "MOST_LEARNT", 12)
    landscape, chance = landscape_of(synthetic_space()), random.Random(0)
    choices = [tuple(chance.randrange(len(group.errors)) for group in landscape.groups) for _ in range(40)]
    seen = [surrogate.Seen(place, choice, 1.0 / (1 + place)) for place, choice in enumerate(choices[:28])]

    def best_first(seen: Sequence[surrogate.Seen]) -> list[surrogate.Seen]:
        return sorted(seen, key=lambda one: one.drop)

    in_time, late = surrogate.Surrogate(landscape), surrogate.Surrogate(landscape)
    for number in (26, 28):  # of one milestone
        in_time.learn(seen[:number], number, best_first)
    late.learn(seen, 28, best_first)
    for one, other in zip(in_time.drops(choices), late.drops(choices), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("goal", [pytest.param("front", marks=pytest.mark.exhaustive), "most-accurate"])
def test_room_that_a_correction_made_is_used(goal: Goal) -> None:
    """Files take three quarters of what is foreseen: 2 ms allow a prediction of 2.66."""
    landscape, limits = landscape_of(synthetic_space()), Limits(latency_ms=2.0, latency_factor=0.75)
    study, bench, asked = new_study().study, PaperBench(), list[float]()
    study.sampler = GuidedSampler(landscape, 0, Wish(limits, goal))
    for _ in range(12):
        trial = study.ask(distributions(synthetic_space()))
        plan = synthetic_space().plan(trial.params)
        cost = bench.cost(plan)
        asked.append(cost.latency_ms)
        study.tell(trial, [bench.score(plan).value, cost.latency_ms, float(cost.size_bytes)])
    assert max(asked[1:]) > 2.2
    assert all(0.75 * latency_ms <= 2.0 for latency_ms in asked[1:])


@dataclass(frozen=True)
class LeanBench(PaperBench):
    """Ranks take memory."""

    def cost(self, plan: Plan) -> Cost:
        ranks = sum(one.rank is not None for one in plan.layers.values())
        return replace(super().cost(plan), peak_memory_bytes=1000 + 500 * ranks)


def test_what_a_correction_put_over_a_limit_is_not_to_be_beaten() -> None:
    """Files take a tenth more memory than foreseen, so that two ranks break a limit that they kept: without them the fastest
    plan is slower than what was found before."""
    bench = LeanBench()
    landscape = Landscape(synthetic_space(), landscape_of(synthetic_space()).errors, bench.cost)
    study = new_study().study
    found: list[tuple[float, int]] = []
    for limits, trials in (
        (Limits(memory_bytes=2000, max_drop=60.0), 10),
        (Limits(memory_bytes=2000, max_drop=60.0, memory_factor=1.1), 8),
    ):
        study.sampler = GuidedSampler(landscape, 0, Wish(limits, "fastest"))
        for _ in range(trials):
            trial = study.ask(distributions(synthetic_space()))
            plan = synthetic_space().plan(trial.params)
            cost = bench.cost(plan)
            found.append((cost.latency_ms, cost.peak_memory_bytes))
            study.tell(trial, [bench.score(plan).value, cost.latency_ms, float(cost.size_bytes)])
    over = [latency_ms for latency_ms, memory in found[:10] if memory == 2000]
    kept = [latency_ms for latency_ms, memory in found if memory < 2000]
    alone = 0.1 + 0.4 * (3 + 0.25)  # one rank of a quarter, all in integers
    assert over
    assert min(over) < alone
    assert min(kept) == pytest.approx(alone)


def test_where_training_follows_plans_of_other_kinds_are_proposed_within_the_limits() -> None:
    """Each does with less of a kind of choice than what is best by itself, as far as the limits let it."""
    space, limits = synthetic_space(), Limits(size_bytes=12_000)
    landscape = landscape_of(space)
    others = landscape.sparing(limits)
    assert {*others.values()} <= {"unstructured", "rank", "format"}
    assert len(others) > 1
    kinds = {"unstructured": 3, "rank": 4, "format": 5}
    extents = {spared: space.extent(landscape.plan(choice)) for choice, spared in others.items()}
    for spared, extent in extents.items():
        assert extent[kinds[spared]] == min(other[kinds[spared]] for other in extents.values())
    assert all(landscape.keeps(choice, limits) for choice in others)

    def tried(wish: Wish) -> list[str]:
        study, bench = new_study().study, PaperBench()
        study.sampler = GuidedSampler(landscape, 0, wish)
        for _ in range(16):
            trial = study.ask(distributions(space))
            cost = bench.cost(space.plan(trial.params))
            study.tell(trial, [bench.score(space.plan(trial.params)).value, cost.latency_ms, float(cost.size_bytes)])
        return [space.plan(one.params).hash for one in study.trials]

    wanted = {landscape.plan_hash(choice) for choice in others}
    assert wanted <= {*tried(Wish(limits, "most-accurate", recovers=True))}
    assert not wanted <= {*tried(Wish(limits, "most-accurate"))}


@pytest.mark.parametrize(("goal", "of_latency"), [("fastest", 1.0), ("smallest", 0.0)])
def test_where_training_follows_an_end_is_sought_at_every_drop_and_the_other_cost_is_no_matter(
    goal: Goal, of_latency: float
) -> None:
    asked = request("auto", trials=16, goal=goal, max_drop=0.5, recover_epochs=1)
    of_costs = of_latency, 1.0 - of_latency
    sought, whole = (search(new_study(), one) for one in (asked, replace(asked, goal="front")))
    assert volume(sought, of_costs) > volume(whole, of_costs)
    assert volume(sought) < volume(whole)


@dataclass(frozen=True)
class SlowBench(PaperBench):
    """Nothing makes it faster, and fewer bits may take time, as on a target without integer kernels."""

    per_format_ms: float = 0.0

    def cost(self, plan: Plan) -> Cost:
        formats = sum(one.format is not None for one in plan.layers.values())
        latency_ms = super().cost(Plan()).latency_ms + self.per_format_ms * formats
        return replace(super().cost(plan), latency_ms=latency_ms)


def a_dozen(wish: Wish, per_format_ms: float) -> list[tuple[float, Cost]]:
    """Metric and cost of what is proposed on such a target."""
    space, bench = synthetic_space(), SlowBench(per_format_ms=per_format_ms)
    study, found = new_study().study, list[tuple[float, Cost]]()
    study.sampler = GuidedSampler(Landscape(space, landscape_of(space).errors, bench.cost), 0, wish)
    for _ in range(12):
        plan = space.plan((trial := study.ask(distributions(space))).params)
        metric, cost = bench.score(plan).value, bench.cost(plan)
        study.tell(trial, [metric, cost.latency_ms, float(cost.size_bytes)])
        found.append((metric, cost))
    return found


def test_the_smallest_may_take_longer_than_the_untouched_network() -> None:
    """Where fewer bits make files smaller and nothing faster, as on a target without integer kernels."""

    costs = [cost for _, cost in a_dozen(Wish(goal="smallest"), per_format_ms=0.3)]
    smallest = min(costs, key=lambda cost: cost.size_bytes)
    assert smallest.size_bytes < 0.15 * costs[0].size_bytes
    assert max(cost.latency_ms for cost in costs) > costs[0].latency_ms


@pytest.mark.parametrize("per_format_ms", [0.0, 0.1])
def test_where_nothing_is_faster_the_front_reaches_to_what_is_smaller(per_format_ms: float) -> None:
    found = a_dozen(Wish(), per_format_ms)
    (best, base), metrics = found[0], [metric for metric, _ in found]
    assert min(cost.size_bytes for _, cost in found) < 0.15 * base.size_bytes
    # A plan that loses more than the reference point's drop adds nothing.
    assert best - min(metrics) < WORST_DROPS[0] * best


def test_a_limit_on_the_other_cost_is_kept_while_an_end_is_sought_at_every_drop() -> None:
    asked = request("auto", trials=16, goal="fastest", max_drop=0.5, recover_epochs=1, max_size_kb=40.0)
    kept = [one.cost.size_bytes <= 40_000 for one in search(new_study(), asked)[1:] if one.cost is not None]
    assert sum(kept) >= 14


def test_plans_just_over_a_limit_do_not_crowd_out_those_that_keep_it() -> None:
    """Latency comes in steps, of which one is a little over the limit, and a low rank, which keeps it, loses far more."""
    space = synthetic_space()

    def ranks(plan: Plan) -> int:
        return sum(one.rank is not None for one in plan.layers.values())

    def cost(plan: Plan) -> Cost:
        latency = 0.5 if ranks(plan) else 1.02 if plan.layers else 2.0
        return replace(PaperBench().cost(plan), latency_ms=latency, latency_std_ms=0.0)

    errors = {
        name: [0.05 * bool(index) for index in range(len(found))] if name.startswith("rank") else found
        for name, found in landscape_of(space).errors.items()
    }
    study = optuna.create_study(directions=["maximize", "minimize", "minimize"])
    study.sampler = sampler = GuidedSampler(
        Landscape(space, errors, cost), 0, Wish(Limits(latency_ms=1.0), "most-accurate")
    )
    for number in range(12):
        plan = space.plan(study.ask(distributions(space)).params)
        found = cost(plan)
        assert number == 0 or found.latency_ms <= 1.0, sampler.why
        study.tell(number, [BASELINE * (1 - 0.05 * ranks(plan)), found.latency_ms, float(found.size_bytes)])


def test_of_a_long_earlier_search_the_foremost_plans_are_gone_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guided, "MOST_EARLIER", 40)
    land, chance = landscape_of(synthetic_space()), random.Random(0)
    drawn = [{one.name: chance.randrange(len(one.options)) for one in land.space.decisions} for _ in range(200)]
    best = {one.name: int(one.kind == "format") for one in land.space.decisions}
    earlier = tuple((indices, 0.3) for indices in drawn)
    sampler = GuidedSampler(land, 0, Wish(earlier=(*earlier[:100], (best, 0.0), *earlier[100:])))
    assert len(sampler._earlier) == 40
    assert land.choice(best) in {one.choice for one in sampler._earlier}
    few = GuidedSampler(land, 0, Wish(earlier=earlier[:40]))
    assert [land.indices(one.choice) for one in few._earlier] == drawn[:40]


def test_where_nothing_keeps_the_limits_the_nearest_is_proposed() -> None:
    land = landscape_of(synthetic_space())
    least = min(cost.size_bytes for choice in land.front if (cost := land.cost(choice)) is not None)
    study = optuna.create_study(directions=["maximize", "minimize", "minimize"])
    study.sampler = sampler = GuidedSampler(land, 0, Wish(Limits(size_bytes=least / 2), "most-accurate"))
    study.tell(study.ask(distributions(land.space)), [BASELINE, 4.1, 128_000.0])
    plan = land.space.plan(study.ask(distributions(land.space)).params)
    assert PaperBench().cost(plan).size_bytes == least
    assert sampler.why.startswith("comes nearest to the limits, which no plan at hand keeps")


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


def proposed(land: Landscape, bench: PaperBench, wish: Wish, trials: int) -> list[tuple[float, Cost]]:
    """Drops and costs of what is proposed."""
    study, found = new_study().study, list[tuple[float, Cost]]()
    study.sampler = GuidedSampler(land, 0, wish)
    for _ in range(trials):
        plan = land.space.plan((trial := study.ask(distributions(land.space))).params)
        metric, cost = bench.score(plan).value, bench.cost(plan)
        found.append((bench.score(Plan()).value - metric, cost))
        study.tell(trial, [metric, cost.latency_ms, float(cost.size_bytes)])
    return found


def test_within_a_limit_that_few_plans_keep_most_proposals_keep_it() -> None:
    """One plan in three thousand does."""
    limits = Limits(size_bytes=1300.0)
    found = proposed(landscape_of(synthetic_space()), PaperBench(), Wish(limits, "most-accurate"), 24)
    keeping = [drop for drop, cost in found if cost.size_bytes <= 1300]
    assert len(keeping) > 18
    assert min(keeping) < 37.0  # which the front of sums alone gives


class ExactBench(PaperBench):
    """Every layer in 8 bits costs two hundredths of a point, and less costs a lot."""

    def score(self, plan: Plan) -> Score:
        bits = [one.format.weight_bits for one in plan.layers.values() if one.format is not None]
        rest = sum(one.rank is not None or one.mask is not None for one in plan.layers.values())
        return Score(BASELINE - 0.02 * bits.count(8) - 5.0 * (len(bits) - bits.count(8)) - 5.0 * rest)


@pytest.mark.parametrize(("max_drop", "layers"), [(0.0, 0), (0.02, 1), (0.05, 2)])
def test_a_drop_too_small_to_be_told_from_none_is_kept_all_the_same(max_drop: float, layers: int) -> None:
    space, bench = synthetic_space(), ExactBench()
    errors = {
        one.name: [
            (BASELINE - bench.score(space.plan({one.name: index})).value) / BASELINE
            for index in range(len(one.options))
        ]
        for one in space.decisions
    }
    land = Landscape(space, errors, bench.cost)
    found = proposed(land, bench, Wish(Limits(max_drop=max_drop), "fastest"), 24)
    fastest = min(cost.latency_ms for drop, cost in found if drop <= max_drop + 1e-9)
    assert fastest == pytest.approx(4.1 - 0.6 * layers)
    found = proposed(land, bench, Wish(Limits(max_drop=max_drop), "smallest"), 24)
    assert min(cost.size_bytes for drop, cost in found if drop <= max_drop + 1e-9) == 128_000 - 24_000 * layers
