"""The average of parameters over a training's last steps."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from autocomp.compress.average import STEPS, Average

CPU = torch.device("cpu")


def averaged(values: list[float]) -> float:
    average, tensor = Average(CPU), torch.zeros(3)
    for value in values:
        average.begin_step([tensor])
        tensor.fill_(value)
        average.add([tensor])
    return float(average.values[0][0])


@given(st.floats(-100, 100), st.integers(1, 50))
def test_of_what_does_not_change_it_is_that(value: float, steps: int) -> None:
    assert abs(averaged([value] * steps) - value) <= 1e-4


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=40))
def test_it_lies_among_what_was_seen(values: list[float]) -> None:
    assert min(values) - 1e-4 <= averaged(values) <= max(values) + 1e-4


def test_the_first_step_is_all_there_is_and_later_ones_forget_it() -> None:
    assert averaged([7.0]) == 7.0
    assert abs(averaged([1000.0] + [0.0] * 40)) < 2.0


def test_what_jumps_to_and_fro_is_held_in_the_middle() -> None:
    assert abs(averaged([1.0, -1.0] * (3 * STEPS))) < 0.01
