"""Plans worth a look: what each has of the ones it comes from, and whether it keeps what is asked for."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocomp.search.landscape import Changes, Choice, Landscape
from autocomp.search.pool import CHANGES, Bound, between, foreseen_anew, neighbours
from autocomp.space import KINDS
from tests.search.synthetic import landscape_of, synthetic_space

LAND: Landscape = landscape_of(synthetic_space())
SEEDS = st.integers(0, 2**32)


def by_chance(chance: random.Random, count: int) -> list[Choice]:
    return [tuple(chance.randrange(len(group.errors)) for group in LAND.groups) for _ in range(count)]


def apart(one: Choice, other: Choice) -> int:
    return sum(mine != its for mine, its in zip(one, other, strict=True))


@given(SEEDS, st.booleans())
def test_neighbours_differ_in_a_few_choices_from_a_parent(seed: int, one_price: bool) -> None:
    chance = random.Random(seed)
    parents = by_chance(chance, 3)
    found = [*neighbours(LAND, parents, 20, chance, one_price)]
    assert len(found) == 20
    for choice, parent in found:
        assert parent in parents
        assert apart(choice, parent) <= max(CHANGES)
        assert LAND.choice(LAND.indices(choice)) == choice


@given(SEEDS)
def test_between_two_parents_every_choice_is_one_of_theirs(seed: int) -> None:
    chance = random.Random(seed)
    parents = by_chance(chance, 4)
    for choice, parent in between(parents, 20, chance):
        assert parent in parents
        assert any(
            all(place in pair for place, *pair in zip(choice, parent, other, strict=True))
            for other in parents
            if other is not parent
        )


def test_nothing_is_between_one_parent_and_itself() -> None:
    assert [*between([LAND.choice({})], 20, random.Random(0))] == []


@given(SEEDS)
def test_what_is_foreseen_anew_comes_with_the_nearest_known_plan(seed: int) -> None:
    chance = random.Random(seed)
    parents = by_chance(chance, 4)
    for choice, parent in foreseen_anew(LAND, parents, None, 10, chance):
        assert apart(choice, parent) == min(apart(choice, one) for one in parents)


def test_fronts_that_are_foreseen_anew_are_of_other_plans() -> None:
    """As many of them as of the front of sums are not on that."""
    found = {choice for choice, _ in foreseen_anew(LAND, [LAND.choice({})], None, 300, random.Random(0))}
    assert len(found.difference(LAND.front)) > len(LAND.front)


@pytest.mark.parametrize("most", [(0.6, np.inf), (np.inf, 0.2), (0.7, 0.4)])
def test_within_limits_what_is_foreseen_anew_just_keeps_them(most: tuple[float, float]) -> None:
    def keeps(choices: Sequence[tuple[Choice, Changes]]) -> npt.NDArray[np.bool_]:
        near = [LAND.shares_nearly(one, by.reference, by) for one, by in choices]
        return np.array([bool((np.array(one) <= most).all()) for one in near])

    found = foreseen_anew(LAND, [LAND.choice({})], Bound(keeps, by_cost=True), 60, random.Random(0))
    shares = np.array([LAND.shares(choice) for choice, _ in found])
    kept = (shares <= np.array(most) * 1.02).all(axis=1)
    assert kept.mean() > 0.8
    assert (shares / most).max(axis=1)[kept].mean() > 0.8


@pytest.mark.parametrize("most", [0.02, 0.1, 0.4])
def test_what_is_foreseen_anew_just_keeps_an_error(most: float) -> None:
    def keeps(choices: Sequence[tuple[Choice, Changes]]) -> npt.NDArray[np.bool_]:
        return np.array([LAND.error(one) <= most for one, _ in choices])

    found = foreseen_anew(LAND, [LAND.choice({})], Bound(keeps, by_cost=False), 60, random.Random(0))
    errors = np.array([LAND.error(choice) for choice, _ in found])
    assert (errors <= most).all()
    assert errors.mean() > 0.5 * most


@given(SEEDS, st.floats(0.0, 10.0), st.floats(0.0, 10.0))
def test_at_a_price_every_group_has_its_best(seed: int, latency_price: float, size_price: float) -> None:
    draws = np.random.default_rng(seed)
    of_kinds, of_groups = draws.uniform(0.1, 3.0, len(KINDS)), draws.uniform(0.1, 3.0, len(LAND.groups))
    changes = random.Random(seed).choice(LAND.changes)
    choice = LAND.best(changes, latency_price, size_price, LAND.weighed(of_kinds, of_groups))

    def price(one: Choice) -> float:
        untouched = LAND.choice({})
        alone = [(*untouched[:place], one[place], *untouched[place + 1 :]) for place in range(len(one))]
        latency, size = LAND.shares_nearly(one, changes.reference, changes)
        return latency_price * latency + size_price * size + float(LAND.errors_by_kind(alone) @ of_kinds @ of_groups)

    for place in range(len(LAND.groups)):
        for other in range(len(LAND.groups[place].errors)):
            assert price(choice) <= price((*choice[:place], other, *choice[place + 1 :])) + 1e-9
