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
from autocomp.plan import Rank, RankMethod
from tests.compress.test_prune import moment, output_error

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
    first, second = pair = factorize(conv, Rank("svd", min(conv.weight.flatten(1).shape)))
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
    torch.testing.assert_close(factorize(linear, Rank("svd", 7))(x), linear(x), rtol=1e-4, atol=1e-5)


def test_a_layer_of_low_rank_loses_nothing() -> None:
    linear = nn.Linear(20, 16)
    with torch.no_grad():
        linear.weight.copy_(matrix(16, 3) @ matrix(3, 20, seed=1))
    x = matrix(4, 20, seed=2)
    torch.testing.assert_close(factorize(linear, Rank("svd", 3))(x), linear(x), rtol=1e-4, atol=1e-4)


def test_the_layer_is_left_as_it_is_and_the_pair_shares_nothing_with_it() -> None:
    conv = nn.Conv2d(4, 6, 3)
    before = copy.deepcopy(conv.state_dict())
    pair = factorize(conv, Rank("svd", 2))
    for parameter in pair.parameters():
        assert not parameter.requires_grad
        parameter.data.zero_()
    assert all(torch.equal(value, before[name]) for name, value in conv.state_dict().items())
    assert not pair.training


def test_what_has_no_rank_is_refused() -> None:
    for layer in (nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.BatchNorm2d(4)):
        with pytest.raises(CompressionError) as raised:
            factorize(layer, Rank("svd", 2))
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("conv", [conv for conv in CONVS if min(conv.kernel_size) > 1], ids=str)
@pytest.mark.parametrize("method", ["spatial", "tucker2"])
def test_the_factors_of_a_conv_at_full_rank_are_the_conv(conv: nn.Conv2d, method: RankMethod) -> None:
    x = torch.randn(2, 6, 9, 9, generator=torch.Generator().manual_seed(1))
    stages = factorize(conv, Rank(method, 18 if method == "spatial" else 8))
    torch.testing.assert_close(stages(x), conv(x), rtol=1e-4, atol=1e-4)
    kernels = [stage.kernel_size for stage in stages.children() if isinstance(stage, nn.Conv2d)]
    assert kernels == ([(3, 1), (1, 3)] if method == "spatial" else [(1, 1), (3, 3), (1, 1)])
    assert [stage.bias is not None for stage in [*stages.children()][:-1]] == [False] * (len(stages) - 1)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_matrix_of_one_sign_has_no_other_part(sign: int) -> None:
    layer = nn.Linear(30, 20)
    layer.weight.data = sign * layer.weight.data.abs()
    first, last = (stage.get_parameter("weight") for stage in factorize(layer, Rank("nmf", 6)))
    error = (last @ first - layer.weight).detach().norm() / layer.weight.detach().norm()
    assert float(error) < 0.5


@pytest.mark.parametrize("method", ["svd", "spatial", "tucker2", "nmf"])
def test_a_higher_rank_is_closer(method: RankMethod) -> None:
    conv = nn.Conv2d(12, 16, 3, padding=1)
    x = torch.randn(2, 12, 9, 9, generator=torch.Generator().manual_seed(1))
    errors = [float((factorize(conv, Rank(method, r))(x) - conv(x)).detach().norm()) for r in (2, 6, 12)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.8 * errors[0]


def test_a_whitened_factorization_hurts_the_outputs_least() -> None:
    linear, seen = nn.Linear(40, 24), moment(40)
    plain, whitened = factorize(linear, Rank("svd", 8), seen), factorize(linear, Rank("whitened", 8), seen)
    factors = [[stage.get_parameter("weight").detach() for stage in one.children()] for one in (plain, whitened)]
    products = [last @ first for first, last in factors]
    errors = [output_error(linear.weight.detach(), product, seen) for product in products]
    assert errors[1] < 0.5 * errors[0]
    # No product of that rank does better (Eckart and Young, of the weights times the root of the moment).
    values, vectors = torch.linalg.eigh(seen.second[0].double())
    root = vectors * values.clamp_min(0).sqrt()
    dropped = torch.linalg.svdvals(linear.weight.detach().double() @ root)[8:].square().sum()
    assert errors[1] == pytest.approx(float(dropped), rel=1e-2)
    with pytest.raises(CompressionError, match="calibration"):
        factorize(linear, Rank("whitened", 8))


def test_non_negative_factors_are_of_one_sign_each() -> None:
    first, last = (stage.get_parameter("weight") for stage in factorize(nn.Linear(30, 20), Rank("nmf", 7)))
    assert (first >= 0).all()
    assert (last[:, :4] >= 0).all()
    assert (last[:, 4:] <= 0).all()


def test_factors_of_convolutions_are_for_convolutions() -> None:
    for rank in (Rank("spatial", 2), Rank("tucker2", 2)):
        with pytest.raises(CompressionError, match=rank.method):
            factorize(nn.Linear(8, 8), rank)
