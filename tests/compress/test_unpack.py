"""A packed attention and its unpacked form compute the same, whatever they are called with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from autocomp.compress.prepare import prepare
from autocomp.compress.unpack import UnpackedAttention, unpack_attention
from tests.networks import inputs, prepared, ready

WIDTH, HEADS, QUERIES, KEYS = 12, 3, 4, 5


def packed(**settings: Any) -> nn.MultiheadAttention:
    attention = nn.MultiheadAttention(WIDTH, HEADS, **settings)
    return ready(attention, seed=1)  # type: ignore[return-value]


def three(batch_first: bool, kdim: int = WIDTH, vdim: int = WIDTH, batch: int = 2) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(2)
    sizes = ((QUERIES, WIDTH), (KEYS, kdim), (KEYS, vdim))
    given = [torch.randn(batch, tokens, width, generator=generator) for tokens, width in sizes]
    return tuple(given) if batch_first else tuple(x.transpose(0, 1) for x in given)


def boolean(*shape: int) -> torch.Tensor:
    """A mask that leaves every row a key."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.4
    mask[..., 0] = False
    return mask


MASKS: dict[str, dict[str, torch.Tensor]] = {
    "none": {},
    "bool": {"attn_mask": boolean(QUERIES, KEYS)},
    "float": {"attn_mask": torch.randn(QUERIES, KEYS, generator=torch.Generator().manual_seed(4))},
    "a head": {"attn_mask": boolean(2 * HEADS, QUERIES, KEYS)},
    "padding": {"key_padding_mask": boolean(2, KEYS)},
    "both": {"key_padding_mask": boolean(2, KEYS), "attn_mask": boolean(QUERIES, KEYS)},
    "float padding": {"key_padding_mask": boolean(2, KEYS).float() * -3},
}


def assert_same(one: nn.Module, other: nn.Module, given: tuple[torch.Tensor, ...], **called: Any) -> None:
    with torch.no_grad():
        expected, actual = one(*given, **called), other(*given, **called)
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-4, atol=1e-5)
    assert (actual[1] is None) == (expected[1] is None)
    if expected[1] is not None:
        torch.testing.assert_close(actual[1], expected[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("batch_first", [True, False])
def test_masks_and_the_place_of_the_batch(mask: str, batch_first: bool) -> None:
    attention = packed(batch_first=batch_first)
    for need_weights in (True, False):
        called: dict[str, Any] = {"need_weights": need_weights, **MASKS[mask]}
        assert_same(attention, UnpackedAttention(attention), three(batch_first), **called)


@pytest.mark.parametrize("settings", [{"bias": False}, {"kdim": 7}, {"kdim": 7, "vdim": 9}])
def test_widths_of_their_own_and_no_biases(settings: dict[str, int]) -> None:
    attention = packed(batch_first=True, **settings)
    given = three(True, settings.get("kdim", WIDTH), settings.get("vdim", WIDTH))
    assert_same(attention, UnpackedAttention(attention), given)


def test_weights_may_be_asked_for_head_by_head() -> None:
    attention = packed(batch_first=True)
    assert_same(attention, UnpackedAttention(attention), three(True), average_attn_weights=False)


def test_a_sequence_without_a_batch_is_computed_as_well() -> None:
    attention = packed()
    given = tuple(x[:, 0] for x in three(False))
    assert_same(attention, UnpackedAttention(attention), given)
    assert_same(attention, UnpackedAttention(attention), given, key_padding_mask=boolean(KEYS))


def test_the_weights_are_copies() -> None:
    attention = packed()
    unpacked = UnpackedAttention(attention)
    before = attention.in_proj_weight.detach().clone()
    with torch.no_grad():
        unpacked.query.weight.zero_()
        unpacked.out.weight.zero_()
    assert torch.equal(attention.in_proj_weight, before)
    assert attention.out_proj.weight.any()


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_torchs_encoder_is_unpacked(norm_first: bool, activation: str) -> None:
    """In evaluation it takes a fast path past its attention's forward."""
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 20, batch_first=True, norm_first=norm_first, activation=activation)
    model = ready(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), seed=5)
    x = torch.randn(3, KEYS, WIDTH, generator=torch.Generator().manual_seed(6))
    unpacked = unpack_attention(model, (x[:1],))
    assert isinstance(unpacked.get_submodule("layers.1.self_attn"), UnpackedAttention)
    with torch.no_grad():
        torch.testing.assert_close(unpacked(x), model(x), rtol=1e-4, atol=1e-5)


def test_torchs_decoder_is_unpacked() -> None:
    model = ready(nn.TransformerDecoderLayer(WIDTH, HEADS, 20, batch_first=True), seed=5)
    given = three(True)[:2]
    unpacked = unpack_attention(model, given)
    assert isinstance(unpacked.get_submodule("multihead_attn"), UnpackedAttention)
    with torch.no_grad():
        torch.testing.assert_close(unpacked(*given), model(*given), rtol=1e-4, atol=1e-5)


def test_the_model_is_left_as_it_is() -> None:
    model = ready(nn.TransformerEncoderLayer(WIDTH, HEADS, 20, batch_first=True), seed=5)
    unpack_attention(model, (torch.zeros(1, KEYS, WIDTH),))
    assert type(model.get_submodule("self_attn")) is nn.MultiheadAttention


def test_a_model_without_a_packed_attention_is_given_back() -> None:
    model = nn.Linear(3, 4)
    assert unpack_attention(model, (torch.zeros(1, 3),)) is model


@pytest.mark.parametrize("settings", [{"add_bias_kv": True}, {"add_zero_attn": True}])
def test_settings_that_the_unpacked_form_has_not_stay_packed(settings: dict[str, bool]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **settings)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.attention(x, x, x)[0]
            return result

    model = ready(Net(), seed=0)
    assert unpack_attention(model, (torch.zeros(1, KEYS, WIDTH),)) is model


def test_a_model_that_reaches_into_its_attention_stays_packed() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.attention(x, x, x)[0] * self.attention.in_proj_weight.mean()
            return result

    model = ready(Net(), seed=0)
    assert unpack_attention(model, (torch.zeros(1, KEYS, WIDTH),)) is model
    assert dict(prepare(model, (torch.zeros(1, KEYS, WIDTH),)).inventory.skipped)["attention"]


def test_what_was_packed_is_four_layers_of_the_inventory() -> None:
    names = [layer.name for layer in prepared("packed").inventory.layers]
    assert [name for name in names if name.startswith("cross")] == [
        *(f"cross.{name}" for name in ("query", "key", "value", "out")),
    ]
    batch = inputs("packed", 3, seed=1)
    assert prepared("packed").model(*batch).shape == (3, 5)


@pytest.mark.parametrize("also", [None, 3, 0.5, "mask", "nothing"])
def test_what_a_model_gives_besides_floats_is_no_hindrance(also: object) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, object]:
            result: torch.Tensor = self.attention(x, x, x)[0]
            return result, {"mask": result > 0, "nothing": result[:, :0]}.get(str(also), also)

    unpacked = unpack_attention(ready(Net(), seed=0), (torch.ones(1, KEYS, WIDTH),))
    assert isinstance(unpacked.get_submodule("attention"), UnpackedAttention)
