"""Low rank: the error is the one that Eckart and Young promise, and the layer keeps its geometry."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autocomp.compress.factorize import factorize, truncated_svd
from autocomp.errors import CompressionError

CONVS = [
    nn.Conv2d(6, 8, 3, padding=1),
    nn.Conv2d(6, 8, 3, stride=2, bias=False),
    nn.Conv2d(6, 8, (1, 3), padding=(0, 1), dilation=2),
    nn.Conv2d(6, 8, 3, padding="same", padding_mode="reflect"),
    nn.Conv2d(6, 8, 1),
]


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 24), st.integers(1, 24), st.integers(1, 24), st.integers(0, 100))
def test_the_error_is_the_energy_of_the_dropped_singular_values(rows: int, columns: int, r: int, seed: int) -> None:
    weight = matrix(rows, columns, seed)
    left, right = truncated_svd(weight, r)
    dropped = torch.linalg.svdvals(weight.double())[r:].square().sum().sqrt()
    error = (weight - left @ right).double().norm()
    assert left.shape[1] == right.shape[0] == min(r, rows, columns)
    torch.testing.assert_close(error, dropped, rtol=1e-3, atol=1e-5 * float(weight.norm()))


def test_both_halves_have_weights_of_a_like_scale() -> None:
    left, right = truncated_svd(100 * matrix(16, 40), 8)
    torch.testing.assert_close(left.norm(), right.norm(), rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("conv", CONVS, ids=str)
def test_a_conv_at_full_rank_is_the_conv(conv: nn.Conv2d) -> None:
    x = torch.randn(2, 6, 9, 9, generator=torch.Generator().manual_seed(1))
    first, second = pair = factorize(conv, min(conv.weight.flatten(1).shape))
    torch.testing.assert_close(pair(x), conv(x), rtol=1e-4, atol=1e-5)
    assert isinstance(first, nn.Conv2d)
    assert isinstance(second, nn.Conv2d)
    assert (first.kernel_size, first.bias) == (conv.kernel_size, None)
    assert second.kernel_size == (1, 1)
    assert (second.bias is None) == (conv.bias is None)


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_at_full_rank_is_the_linear(bias: bool) -> None:
    linear = nn.Linear(12, 7, bias=bias)
    x = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(factorize(linear, 7)(x), linear(x), rtol=1e-4, atol=1e-5)


def test_a_layer_of_low_rank_loses_nothing() -> None:
    linear = nn.Linear(20, 16)
    with torch.no_grad():
        linear.weight.copy_(matrix(16, 3) @ matrix(3, 20, seed=1))
    x = matrix(4, 20, seed=2)
    torch.testing.assert_close(factorize(linear, 3)(x), linear(x), rtol=1e-4, atol=1e-4)


def test_the_layer_is_left_as_it_is_and_the_pair_shares_nothing_with_it() -> None:
    conv = nn.Conv2d(4, 6, 3)
    before = copy.deepcopy(conv.state_dict())
    pair = factorize(conv, 2)
    for parameter in pair.parameters():
        assert not parameter.requires_grad
        parameter.data.zero_()
    assert all(torch.equal(value, before[name]) for name, value in conv.state_dict().items())
    assert not pair.training


def test_what_has_no_rank_is_refused() -> None:
    for layer in (nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.BatchNorm2d(4)):
        with pytest.raises(CompressionError) as raised:
            factorize(layer, 2)
        assert "\n" not in str(raised.value)
