"""The grids of weights: levels of their bits, steps that suit, zeros that stay."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autocomp.compress.grids import Levels, grid_of, nearest, with_larger_steps
from autocomp.compress.rounding import quantize_weight
from autocomp.plan import WEIGHT_BITS, Clip, Format, Granularity

UNIFORM = tuple(Format(bits) for bits in WEIGHT_BITS if bits < 16)
FORMATS = (*UNIFORM, Format(2, grid="ternary"), *(Format(bits, grid="codebook") for bits in (2, 3, 4, 6)))
seeds = st.integers(0, 2**20)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(weight: torch.Tensor, chosen: Format) -> float:
    return float((quantize_weight(weight, chosen).dequantized() - weight).norm() / weight.norm())


@settings(max_examples=80, deadline=None)
@given(seeds, st.sampled_from(FORMATS), st.floats(1e-6, 1e6))
def test_levels_are_those_of_the_grid(seed: int, chosen: Format, size: float) -> None:
    weight = normal(6, 3, 3, 3, seed=seed) * size
    levels, scale = grid_of(weight, chosen)
    found = nearest(weight, levels, scale, 0)
    assert (found.dtype, found.shape) == (torch.int8, weight.shape)
    assert {*found.flatten().tolist()} <= {*levels.values.int().tolist()}
    assert len(levels.values) <= 1 << chosen.weight_bits
    assert scale.shape == (6,)
    assert (scale > 0).all()


def test_eight_bits_are_symmetric_and_narrow_ones_use_every_level() -> None:
    ends = [(int(one.values[0]), int(one.values[-1])) for one in map(Levels.of, (Format(8), Format(4), Format(2)))]
    assert ends == [(-127, 127), (-8, 7), (-2, 1)]
    assert Levels.of(Format(1)).values.tolist() == [-1, 1]
    assert Levels.of(Format(2, grid="ternary")).values.tolist() == [-1, 0, 1]
    for chosen in (Format(6), Format(5), Format(4), Format(3), Format(2)):
        found = quantize_weight(normal(4, 4000), chosen).levels
        assert {*found.flatten().tolist()} == {*Levels.of(chosen).values.int().tolist()}


def test_narrow_products_fit_in_pairs_into_sixteen_bits() -> None:
    for chosen in FORMATS:
        levels, _ = grid_of(normal(6, 3, 3, 3), chosen, narrow_products=True)
        assert 2 * 255 * levels.values.abs().max() < 2**15
    stored = quantize_weight(normal(6, 3, 3, 3), Format(8), narrow_products=True)
    assert int(stored.levels.abs().max()) == 64


@settings(max_examples=80, deadline=None)
@given(seeds, st.sampled_from(FORMATS), st.floats(0.05, 0.95))
def test_what_was_cut_stays_zero(seed: int, chosen: Format, level: float) -> None:
    weight = normal(6, 27, seed=seed)
    kept = torch.rand(6, 27, generator=torch.Generator().manual_seed(seed)) > level
    stored = quantize_weight(torch.where(kept, weight, 0.0), chosen, kept)
    assert not stored.levels[~kept].any()
    assert not stored.dequantized()[~kept].any()
    if chosen.weight_bits == 1:
        assert stored.levels[kept].all()


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_at_eight_bits_a_weight_moves_by_at_most_half_a_step(seed: int) -> None:
    weight = normal(6, 50, seed=seed) * torch.logspace(-3, 3, 6)[:, None]
    stored = quantize_weight(weight, Format(8))
    assert ((stored.dequantized() - weight).abs() <= stored.scale[:, None] * 0.5001).all()


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_more_bits_are_closer_and_a_table_closer_than_even_steps(seed: int) -> None:
    weight = normal(8, 300, seed=seed)
    errors = [error(weight, chosen) for chosen in UNIFORM]
    assert errors == sorted(errors)
    assert errors[0] < 0.01
    for bits in (2, 3, 4):
        assert error(weight, Format(bits, grid="codebook")) < error(weight, Format(bits))
    assert error(weight, Format(2)) < error(weight, Format(2, grid="ternary")) < error(weight, Format(1))


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_at_eight_bits_a_rounded_weight_is_its_own_rounding(seed: int) -> None:
    once = quantize_weight(normal(6, 50, seed=seed), Format(8))
    twice = quantize_weight(once.dequantized(), Format(8))
    assert torch.equal(twice.levels, once.levels)
    torch.testing.assert_close(twice.scale, once.scale, rtol=1e-6, atol=0.0)


@settings(max_examples=40, deadline=None)
@given(seeds, st.sampled_from((6, 5, 4, 3, 2)))
def test_a_weight_on_a_narrow_grid_is_found_again(seed: int, bits: int) -> None:
    """Wherever the highest level is in use and nothing lies below its opposite."""
    high = int(Levels.of(Format(bits)).highest)
    levels = torch.randint(-high, high + 1, (6, 30), generator=torch.Generator().manual_seed(seed))
    levels[:, 0] = high
    weight = levels * torch.linspace(0.1, 2.0, 6)[:, None]
    torch.testing.assert_close(quantize_weight(weight, Format(bits)).dequantized(), weight)


@settings(max_examples=40, deadline=None)
@given(seeds, st.sampled_from((2, 3, 4)))
def test_as_many_values_as_a_table_has_lose_nothing_but_eight_bits(seed: int, bits: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(1 << bits, generator=generator)
    weight = values[torch.randint(1 << bits, (6, 40), generator=generator)]
    chosen = Format(bits, grid="codebook", granularity="tensor")
    stored = quantize_weight(weight, chosen)
    if len(torch.unique((weight / stored.scale).round())) == len(torch.unique(weight)):
        assert (stored.dequantized() - weight).abs().max() <= 2.01 * stored.scale


@pytest.mark.parametrize("chosen", FORMATS, ids=str)
def test_a_channel_with_one_weight_left_loses_nothing(chosen: Format) -> None:
    weight = torch.tensor([[0.0, 0.7, 0.0], [0.3, 0.0, 0.0]])
    torch.testing.assert_close(quantize_weight(weight, chosen, weight != 0).dequantized(), weight)


@pytest.mark.parametrize("chosen", FORMATS, ids=str)
def test_a_channel_of_zeros_has_a_step_all_the_same(chosen: Format) -> None:
    stored = quantize_weight(torch.zeros(2, 3, 3, 3), chosen)
    assert chosen.weight_bits == 1 or not stored.levels.any()
    assert (stored.scale > 1e-6).all()
    assert stored.scale.isfinite().all()


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
def test_every_granularity_has_its_steps(granularity: Granularity) -> None:
    weight = normal(6, 5, 3, 3) * torch.logspace(-2, 2, 45).reshape(5, 3, 3)
    chosen = Format(4, 32, granularity=granularity, group=16 if granularity == "group" else 0)
    stored = quantize_weight(weight, chosen)
    assert stored.scale.shape == {"tensor": (), "channel": (6,), "group": (6, 3)}[granularity]
    assert stored.dequantized().shape == weight.shape


def test_finer_steps_are_closer() -> None:
    weight = normal(16, 128) * torch.logspace(-1, 1, 16)[:, None] * torch.logspace(-1, 1, 128)
    errors = [
        error(weight, Format(4, 32, granularity="tensor")),
        error(weight, Format(4, 32)),
        error(weight, Format(4, 32, granularity="group", group=16)),
    ]
    assert errors == sorted(errors, reverse=True)


def test_clipping_is_as_asked_for() -> None:
    weight = normal(2, 10_000)
    weight[:, 0] = 50.0
    clips: tuple[Clip, ...] = ("minmax", "percentile", "mse")
    scales = {clip: quantize_weight(weight, Format(4, clip=clip)).scale for clip in clips}
    torch.testing.assert_close(scales["minmax"], torch.full((2,), 50 / 7))
    assert (scales["percentile"] < 4.5 / 7).all()
    errors = {clip: error(weight, Format(4, clip=clip)) for clip in clips}
    assert errors["mse"] == min(errors.values())


def test_larger_steps_touch_only_the_channels_that_need_them() -> None:
    stored = quantize_weight(normal(3, 20), Format(8))
    larger = with_larger_steps(stored, stored.scale * torch.tensor([0.5, 1.0, 4.0]), Format(8))
    assert torch.equal(larger.levels[:2], stored.levels[:2])
    torch.testing.assert_close(larger.scale, stored.scale * torch.tensor([1.0, 1.0, 4.0]))
    assert (larger.dequantized() - stored.dequantized()).abs().max() <= larger.scale[2] * 0.5001


@pytest.mark.parametrize("chosen", [Format(1), Format(3, grid="codebook")], ids=str)
def test_larger_steps_leave_levels_of_the_grid(chosen: Format) -> None:
    kept = normal(3, 20, seed=1) > 0
    stored = quantize_weight(torch.where(kept, normal(3, 20), 0.0), chosen, kept)
    larger = with_larger_steps(stored, stored.scale * torch.tensor([0.5, 1.0, 9.0]), chosen)
    assert {*larger.levels[kept].tolist()} <= {*stored.levels[kept].tolist()}
    assert not larger.levels[~kept].any()
