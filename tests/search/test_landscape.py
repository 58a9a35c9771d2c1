"""What is foreseen of a space: errors that add up, costs, and the front that prices give."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace

import pytest

from autocomp.errors import UncoveredKernelError
from autocomp.plan import Format, Plan
from autocomp.search import landscape as module
from autocomp.search.landscape import Choice, Landscape, without_errors
from autocomp.trial import Cost
from tests.search.synthetic import LAYERS, PaperBench, landscape_of, synthetic_space


def any_choice(land: Landscape, seed: int) -> Choice:
    chance = random.Random(seed)
    return tuple(chance.randrange(len(group.errors)) for group in land.groups)


def test_decisions_of_one_layer_are_made_together(monkeypatch: pytest.MonkeyPatch) -> None:
    space = synthetic_space()
    assert [len(group.errors) for group in landscape_of(space).groups] == [3 * 3 * 4] * 4
    monkeypatch.setattr(module, "MOST_COMBINATIONS", 100)
    assert len(landscape_of(space).groups) == len(space.decisions)


@pytest.mark.parametrize("seed", range(5))
def test_a_choice_is_indices_and_back(seed: int) -> None:
    land = landscape_of(synthetic_space())
    choice = any_choice(land, seed)
    indices = land.indices(choice)
    assert land.choice(indices) == choice
    assert land.plan(choice) == land.space.plan(indices)
    assert land.error(choice) == pytest.approx(sum(land.errors[name][index] for name, index in indices.items()))
    assert land.errors_by_kind([choice]).sum() == pytest.approx(land.error(choice))


def test_the_front_is_the_best_there_is_where_all_adds_up() -> None:
    """Of the synthetic space's million plans none that is tried is better than the front in all three."""
    land = landscape_of(synthetic_space())

    def values(choice: Choice) -> tuple[float, float, float]:
        return land.error(choice), *land.shares(choice)

    front = [values(choice) for choice in land.front]
    assert land.choice({}) in land.front
    assert len(front) > 10
    tried = [values(any_choice(land, seed)) for seed in range(300)]
    for one, other in itertools.product(tried, front):
        assert not all(a < b - 1e-9 for a, b in zip(one, other, strict=True))


def test_changes_are_told_from_integers_also_where_the_first_format_is_of_floats() -> None:
    """What 8 bits save between layers that have them is not seen from layers that do not."""
    space = synthetic_space()
    decisions = tuple(
        replace(one, options=(None, Format(16, 32), *one.options[1:])) if one.kind == "format" else one
        for one in space.decisions
    )
    wider = replace(space, decisions=decisions)
    land = Landscape(wider, without_errors(wider), PaperBench().cost)
    formats = [{land.plan(one)[layer].format for layer in LAYERS} for one in land.references]
    assert formats == [{None}, {Format(16, 32)}, {Format(8)}]
    assert len(landscape_of(space).references) == 2


def test_a_plan_without_a_prediction_is_never_on_the_front() -> None:
    space, bench = synthetic_space(), PaperBench()

    def cost(plan: Plan) -> Cost:
        if plan["b"].rank is not None:
            raise UncoveredKernelError("not known", ("b",))
        return bench.cost(plan)

    land = Landscape(space, landscape_of(space).errors, cost)
    assert land.cost(land.choice({"rank:b": 1})) is None
    priced = [choice for choice in land.front if land.plan(choice)["b"].rank is not None]
    assert all(land.shares(choice) == (math.inf, math.inf) for choice in priced)
    assert len(priced) < len(land.front) / 2


def test_of_the_costs_of_many_plans_those_that_were_tried_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_COSTS", 10)
    asked: list[str] = []

    def cost(plan: Plan) -> Cost:
        asked.append(plan.hash)
        return PaperBench().cost(plan)

    space = synthetic_space()
    land = Landscape(space, without_errors(space), cost)
    choices = [any_choice(land, seed) for seed in range(30)]
    tried = choices[0]
    land.remember(tried, land.plan(tried).hash)
    found = [land.cost(choice) for choice in choices]
    assert [land.cost(choice) for choice in choices] == found
    assert asked.count(land.plan(tried).hash) == 1
    assert len(asked) > 30
