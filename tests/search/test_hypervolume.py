"""The dominated hypervolume and what a point adds to it, against counting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autocomp.pareto import hypervolume
from autocomp.search.hypervolume import Point, areas_left, expected_improvements

#: Corners of a grid of tenths, so that counting cells is exact.
TENTHS = st.integers(0, 10).map(lambda tenth: tenth / 10)
POINTS = st.lists(st.tuples(TENTHS, TENTHS, TENTHS), max_size=6)
CENTRES = np.stack(np.meshgrid(*[np.arange(0.05, 1.0, 0.1)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)


OFFSET = 0.01


def expected_improvement(value: float, spread: float, costs: tuple[float, float], front: list[Point]) -> float:
    """Of a value whose median is given, and the standard deviation of its logarithm."""
    medians, spreads = np.array([value + OFFSET]), np.array([spread])
    return float(expected_improvements(medians, spreads, OFFSET, np.array([costs]), front)[0])


def counted(points: list[Point]) -> float:
    covered = np.zeros(len(CENTRES), dtype=bool)
    for point in points:
        covered |= (np.array(point) <= CENTRES).all(axis=1)
    return float(covered.mean())


@given(points=POINTS)
def test_it_is_what_counting_gives(points: list[Point]) -> None:
    assert hypervolume(points) == pytest.approx(counted(points))


@given(points=POINTS, point=st.tuples(TENTHS, TENTHS, TENTHS))
def test_a_certain_point_adds_what_the_hypervolume_grows_by(points: list[Point], point: Point) -> None:
    gained = expected_improvement(point[0], 1e-9, point[1:], sorted(points))
    assert gained == pytest.approx(hypervolume([*points, point]) - hypervolume(points), abs=1e-6)


@settings(max_examples=20)
@given(points=POINTS, costs=st.tuples(TENTHS, TENTHS), median=st.floats(0.0, 1.0), spread=st.floats(0.05, 0.9))
def test_an_uncertain_one_adds_the_mean_over_what_it_may_be(
    points: list[Point], costs: tuple[float, float], median: float, spread: float
) -> None:
    front = sorted(points)
    draws = (median + OFFSET) * np.exp(spread * np.random.default_rng(0).standard_normal(400))
    each = expected_improvements(draws, np.full(400, 1e-9), OFFSET, np.tile(costs, (400, 1)), front)
    expected = expected_improvement(median, spread, costs, front)
    assert expected == pytest.approx(np.mean(each), abs=4 * float(np.std(each)) / 20 + 1e-3)


def test_beyond_the_reference_there_is_nothing() -> None:
    assert hypervolume([(0.0, 1.0, 0.0), (1.2, 0.1, 0.1)]) == 0.0
    assert expected_improvement(0.1, 0.1, (1.0, 0.5), []) == 0.0
    assert areas_left([(0.2, 0.2)], np.array([(0.5, 0.5)])) == 0.0
    assert areas_left([], np.array([(0.5, 0.5)])) == pytest.approx(0.25)
