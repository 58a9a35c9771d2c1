"""Weights cut: exactly as many as asked for, in the pattern asked for, those of least saliency."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autocomp.compress.prune import Moment, cut_weights, kept_count
from autocomp.errors import CompressionError
from autocomp.plan import N_OF_M, Pattern, Saliency, Sparsity

levels = st.floats(0, 1, exclude_min=True, exclude_max=True)
weights = st.lists(st.integers(-3, 3), min_size=1, max_size=60)
SALIENCIES: tuple[Saliency, ...] = ("magnitude", "taylor", "wanda", "hessian")
PATTERNS: tuple[Pattern, ...] = ("unstructured", "2:4", "1:4", "4:8", "block")


def sparsity(pattern: Pattern, level: float = 0.5, saliency: Saliency = "magnitude") -> Sparsity:
    if pattern in N_OF_M:
        n, m = N_OF_M[pattern]
        level = 1 - n / m
    return Sparsity(pattern, level, saliency)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moment(columns: int, groups: int = 1, seed: int = 0) -> Moment:
    """Of correlated inputs of different sizes."""
    mixed = normal(groups, 4 * columns, columns, seed=seed) @ normal(groups, columns, columns, seed=seed + 1)
    inputs = mixed * torch.logspace(-1, 1, columns)
    return Moment(inputs.mT @ inputs / (4 * columns), inputs.mean(dim=1))


def output_error(before: torch.Tensor, after: torch.Tensor, seen: Moment) -> float:
    rows = len(before) // len(seen.second)
    change = (before - after).reshape(len(seen.second), rows, -1)
    return float(((change @ seen.second) * change).sum())


@given(st.lists(st.integers(1, 300), min_size=2, max_size=4), levels)
def test_the_count_is_the_level_to_the_nearest_weight(shape: list[int], level: float) -> None:
    weights, kept = math.prod(shape), kept_count(tuple(shape), Sparsity("unstructured", level))
    assert 0 <= kept <= weights
    assert abs((weights - kept) - weights * level) <= 0.5


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(PATTERNS),
    st.sampled_from(SALIENCIES),
    st.tuples(st.integers(1, 9), st.integers(1, 19), st.integers(1, 3)),
    levels,
)
def test_as_many_stay_as_promised(
    pattern: Pattern, saliency: Saliency, size: tuple[int, int, int], level: float
) -> None:
    rows, inputs, kernel = size
    weight = normal(rows, inputs, kernel, kernel)
    asked = sparsity(pattern, level, saliency)
    new, mask = cut_weights(weight, asked, moment(weight[0].numel()), normal(*weight.shape).square())
    assert (new.shape, mask.shape, mask.dtype) == (weight.shape, weight.shape, torch.bool)
    assert int(mask.sum()) == kept_count(tuple(weight.shape), asked)
    assert not new[~mask].any()
    if saliency != "hessian":
        assert torch.equal(new[mask], weight[mask])
    whole = inputs // 4 * 4
    along = mask[:, :whole].movedim(1, -1).reshape(-1, 4)
    if pattern == "2:4":
        assert (along.sum(dim=1) == 2).all()
    elif pattern == "1:4":
        assert (along.sum(dim=1) == 1).all()
    elif pattern == "block":
        assert ((along.sum(dim=1) == 4) | (along.sum(dim=1) == 0)).all()
    elif pattern == "4:8":
        assert (mask[:, : inputs // 8 * 8].movedim(1, -1).reshape(-1, 8).sum(dim=1) == 4).all()
    if pattern != "unstructured":
        assert mask[:, inputs // 8 * 8 if pattern == "4:8" else whole :].all()  # what fills no group stays


@settings(deadline=None)
@given(weights, levels)
def test_none_that_stays_is_smaller_than_one_that_went(values: list[int], level: float) -> None:
    weight = torch.tensor([values], dtype=torch.float32)
    _, mask = cut_weights(weight, Sparsity("unstructured", level))
    if mask.any() and not mask.all():
        assert weight[mask].abs().min() >= weight[~mask].abs().max()


@settings(deadline=None)
@given(weights, levels)
def test_of_equal_weights_the_first_stay(values: list[int], level: float) -> None:
    _, mask = cut_weights(torch.tensor([values], dtype=torch.float32), Sparsity("unstructured", level))
    by_rank = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))
    assert [i for i in by_rank if mask[0, i]] == by_rank[: int(mask.sum())]


@pytest.mark.parametrize("saliency", SALIENCIES)
def test_the_weight_is_left_alone(saliency: Saliency) -> None:
    weight = normal(4, 8, 3, 3).requires_grad_()
    before = weight.detach().clone()
    cut_weights(weight, Sparsity("unstructured", 0.75, saliency), moment(72), torch.ones(4, 8, 3, 3))
    assert torch.equal(weight, before)


def test_a_higher_level_cuts_what_a_lower_one_does_and_more() -> None:
    masks = [cut_weights(normal(8, 50), Sparsity("unstructured", level))[1] for level in (0.2, 0.5, 0.9)]
    for wider, narrower in itertools.pairwise(masks):
        assert not (narrower & ~wider).any()


def test_wanda_cuts_as_much_in_every_row_and_what_meets_small_inputs() -> None:
    weight = torch.ones(6, 40)
    seen = moment(40)
    _, mask = cut_weights(weight, Sparsity("unstructured", 0.5, "wanda"), seen)
    assert (mask.sum(dim=1) == 20).all()
    sizes = seen.second[0].diagonal()
    assert sizes[mask[0]].min() >= sizes[~mask[0]].max()


def test_taylor_cuts_what_the_output_depends_on_least() -> None:
    gradient = torch.arange(1.0, 41.0).reshape(4, 10)
    _, mask = cut_weights(torch.ones(4, 10), Sparsity("unstructured", 0.25, "taylor"), gradient=gradient)
    assert gradient[~mask].max() < gradient[mask].min()


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("groups", [1, 4])
def test_the_surgeon_hurts_the_outputs_least(pattern: Pattern, groups: int) -> None:
    weight, seen = normal(16, 16, 3, 3), moment(144, groups)
    errors = {}
    saliencies: tuple[Saliency, ...] = ("magnitude", "wanda", "hessian")
    for saliency in saliencies:
        new, _ = cut_weights(weight, sparsity(pattern, 0.5, saliency), seen)
        errors[saliency] = output_error(weight, new, seen)
    assert errors["hessian"] < 0.85 * min(errors["wanda"], errors["magnitude"])


def test_a_saliency_without_what_it_asks_for_is_an_error() -> None:
    for saliency in ("taylor", "wanda", "hessian"):
        with pytest.raises(CompressionError, match=saliency):
            cut_weights(normal(4, 8), Sparsity("unstructured", 0.5, saliency))
