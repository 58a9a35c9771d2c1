"""Single weights cut: exactly as many as asked for, the smallest, ties by position."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autocomp.compress.prune import kept_count, magnitude_mask

levels = st.floats(0, 1, exclude_min=True, exclude_max=True)
weights = st.lists(st.integers(-3, 3), min_size=1, max_size=60)


@given(st.integers(1, 10**7), levels)
def test_the_count_is_the_level_to_the_nearest_weight(count: int, level: float) -> None:
    kept = kept_count(count, level)
    assert 0 <= kept <= count
    assert abs((count - kept) - count * level) <= 0.5


@settings(deadline=None)
@given(weights, levels)
def test_as_many_stay_as_promised_and_none_is_smaller_than_one_that_went(values: list[int], level: float) -> None:
    weight = torch.tensor(values, dtype=torch.float32)
    mask = magnitude_mask(weight, level)
    assert int(mask.sum()) == kept_count(len(values), level)
    if mask.any() and not mask.all():
        assert weight[mask].abs().min() >= weight[~mask].abs().max()


@settings(deadline=None)
@given(weights, levels)
def test_of_equal_weights_the_first_stay(values: list[int], level: float) -> None:
    mask = magnitude_mask(torch.tensor(values, dtype=torch.float32), level).tolist()
    by_rank = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))
    assert [i for i in by_rank if mask[i]] == by_rank[: sum(mask)]


def test_the_mask_has_the_shape_of_the_weight_and_leaves_it_alone() -> None:
    weight = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    before = weight.detach().clone()
    mask = magnitude_mask(weight, 0.75)
    assert (mask.shape, mask.dtype, int(mask.sum())) == (weight.shape, torch.bool, 12)
    assert torch.equal(weight, before)


def test_a_higher_level_cuts_what_a_lower_one_does_and_more() -> None:
    weight = torch.randn(8, 50, generator=torch.Generator().manual_seed(0))
    masks = [magnitude_mask(weight, level) for level in (0.2, 0.5, 0.9)]
    for wider, narrower in itertools.pairwise(masks):
        assert not (narrower & ~wider).any()
