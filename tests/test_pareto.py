"""The front holds exactly what nothing else beats."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from autocomp.pareto import front, knee

#: Few distinct values, so that equal rows and ties in one column occur.
ROWS = st.lists(st.tuples(*[st.integers(0, 4).map(float)] * 3), min_size=1, max_size=30)


def dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


@given(ROWS)
def test_nobody_on_the_front_is_dominated_and_everybody_off_it_is_dominated_or_equal(
    rows: list[tuple[float, ...]],
) -> None:
    kept = front(rows)
    assert kept == sorted(set(kept))
    assert kept
    on = [rows[place] for place in kept]
    assert len(set(on)) == len(on)
    for row in on:
        assert not any(dominates(other, row) for other in rows)
    for place in set(range(len(rows))) - set(kept):
        assert any(dominates(other, rows[place]) or other == rows[place] for other in on)


@given(ROWS, st.randoms(use_true_random=False))
def test_the_order_of_the_plans_does_not_matter(rows: list[tuple[float, ...]], chance: object) -> None:
    shuffled = list(rows)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    assert {rows[place] for place in front(rows)} == {shuffled[place] for place in front(shuffled)}


def test_of_equal_plans_the_first_stays() -> None:
    assert front([(1, 1), (1, 1), (0, 2)]) == [0, 2]


def test_the_knee_of_a_convex_front_is_its_bend_and_on_the_front() -> None:
    losses = [0.0, 0.5, 1.0, 8.0, 20.0]
    latencies_ms = [4.0, 2.0, 1.1, 1.05, 1.0]
    sizes_bytes = [4000.0, 2000.0, 1100.0, 1050.0, 1000.0]
    chosen = knee(losses, latencies_ms, sizes_bytes)
    assert chosen == 2
    assert chosen in front(np.array([losses, latencies_ms, sizes_bytes]).T)


@given(ROWS)
def test_the_knee_is_never_dominated(rows: list[tuple[float, ...]]) -> None:
    positive = [(loss, latency + 1, size + 1) for loss, latency, size in rows]
    losses, latencies, sizes = (list(column) for column in zip(*positive, strict=True))
    chosen = knee(losses, latencies, sizes)
    assert not any(dominates(other, positive[chosen]) for other in positive)


def test_units_do_not_move_the_knee() -> None:
    losses, latencies, sizes = [0.0, 1.0, 5.0], [9.0, 3.0, 2.0], [9.0, 2.0, 1.0]
    in_other_units = knee([100 * x for x in losses], [1e3 * x for x in latencies], [x / 8 for x in sizes])
    assert in_other_units == knee(losses, latencies, sizes)


def test_the_knee_of_one_point_is_that_point() -> None:
    assert knee([3.0], [1.0], [7.0]) == 0


def test_a_network_that_lost_too_much_is_no_knee_unless_all_did() -> None:
    losses, latencies, sizes = [0.5, 1.0, 80.0], [4.0, 3.0, 0.1], [4.0, 3.0, 0.1]
    assert knee(losses, latencies, sizes) == 2
    assert knee(losses, latencies, sizes, most_losses=(10.0,)) in (0, 1)
    assert knee(losses, latencies, sizes, most_losses=(0.1,)) == 2


def test_where_none_lost_little_the_knee_is_sought_among_those_that_lost_more() -> None:
    losses, latencies, sizes = [6.0, 8.0, 80.0], [4.0, 1.0, 0.1], [4.0, 1.0, 0.1]
    assert knee(losses, latencies, sizes, most_losses=(5.0, 10.0)) in (0, 1)
    # One that lost much is no measure of how little the others did.
    losses, latencies, sizes = [0.0, 6.0, 9.5], [4.0, 3.4, 3.0], [4.0, 3.4, 3.0]
    assert knee(losses, latencies, sizes, most_losses=(5.0, 10.0)) == 0
