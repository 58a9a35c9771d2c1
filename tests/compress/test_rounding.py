"""Roundings that look at the layer's inputs: on the same grid, with less error of the outputs."""

from __future__ import annotations

import pytest
import torch

from autocomp.compress.rounding import quantize_weight
from autocomp.errors import CompressionError
from autocomp.plan import Format, Rounding
from tests.compress.test_prune import moment, normal, output_error

FORMATS = (
    Format(4),
    Format(3),
    Format(2),
    Format(2, grid="ternary"),
    Format(3, grid="codebook"),
    Format(4, granularity="tensor"),
    Format(3, 32, granularity="group", group=16),
)
LOOKING: tuple[Rounding, ...] = ("gptq", "adaround")


def rounded(chosen: Format, rounding: Rounding) -> Format:
    return Format(
        chosen.weight_bits,
        chosen.activation_bits,
        grid=chosen.grid,
        granularity=chosen.granularity,
        group=chosen.group,
        rounding=rounding,
    )


@pytest.mark.parametrize("chosen", FORMATS, ids=str)
@pytest.mark.parametrize("rounding", LOOKING)
@pytest.mark.parametrize("groups", [1, 4])
def test_outputs_are_closer_than_with_the_nearest_levels(chosen: Format, rounding: Rounding, groups: int) -> None:
    weight, seen = normal(16, 8, 3, 3), moment(72, groups)
    nearest = quantize_weight(weight, chosen)
    looking = quantize_weight(weight, rounded(chosen, rounding), moment=seen)
    assert torch.equal(looking.scale, nearest.scale)
    assert {*looking.levels.flatten().tolist()} <= {*range(-128, 128)}
    if chosen.grid != "codebook":
        assert int(looking.levels.min()) >= -(1 << (chosen.weight_bits - 1))
    assert len(torch.unique(looking.levels)) <= 1 << chosen.weight_bits
    error = output_error(weight, looking.dequantized(), seen)
    assert error < 0.8 * output_error(weight, nearest.dequantized(), seen)


@pytest.mark.parametrize("rounding", LOOKING)
def test_what_was_cut_stays_zero(rounding: Rounding) -> None:
    kept = normal(8, 40, seed=3) > 0.5
    weight, seen = torch.where(kept, normal(8, 40), 0.0), moment(40)
    stored = quantize_weight(weight, Format(3, rounding=rounding), kept, moment=seen)
    assert not stored.levels[~kept].any()
    nearest = quantize_weight(weight, Format(3), kept)
    assert output_error(weight, stored.dequantized(), seen) < output_error(weight, nearest.dequantized(), seen)


def test_of_independent_inputs_nearest_is_best() -> None:
    weight = normal(8, 40)
    seen = moment(40)
    independent = type(seen)(torch.eye(40)[None], seen.mean)
    nearest = quantize_weight(weight, Format(4))
    for rounding in LOOKING:
        stored = quantize_weight(weight, Format(4, rounding=rounding), moment=independent)
        assert torch.equal(stored.levels, nearest.levels)


@pytest.mark.parametrize("rounding", LOOKING)
def test_the_same_call_twice_gives_the_same(rounding: Rounding) -> None:
    one, other = (quantize_weight(normal(8, 40), Format(3, rounding=rounding), moment=moment(40)) for _ in range(2))
    assert torch.equal(one.levels, other.levels)


@pytest.mark.parametrize("rounding", LOOKING)
def test_without_calibration_it_is_an_error(rounding: Rounding) -> None:
    with pytest.raises(CompressionError, match=rounding):
        quantize_weight(normal(4, 8), Format(4, rounding=rounding))
