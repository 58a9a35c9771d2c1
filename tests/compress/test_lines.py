"""A convolution over sequences and the one over images in its place compute the same, however it is set and called."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from autocomp.compress.lines import LineConvolution, over_images
from autocomp.compress.prepare import prepare
from tests.networks import NETWORKS, inputs, prepared, ready


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"stride": 2, "padding": 3},
        {"dilation": 3, "groups": 2, "bias": False},
        {"padding": "same", "dilation": 2},
        {"padding": 2, "padding_mode": "reflect"},
        {"padding": 1, "padding_mode": "circular"},
    ],
)
@pytest.mark.parametrize("shape", [(3, 4, 20), (4, 20)])
def test_settings(settings: dict[str, Any], shape: tuple[int, ...]) -> None:
    given = ready(nn.Conv1d(4, 6, 3, **settings), seed=1)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    assert isinstance(given, nn.Conv1d)
    made = LineConvolution(given)
    torch.testing.assert_close(made(x), given(x))
    torch.testing.assert_close(made.weight, given.weight)
    for name in nn.Conv1d.__constants__:
        assert getattr(made, name) == getattr(given, name)


class Causal(nn.Module):
    """Cuts off what its convolution saw of the future, by how it is padded; one of its layers stands at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 3, padding=2)
        self.again = self.conv

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for one in (self.conv, self.again):
            x = functional.relu(one(x)[:, :, : -int(one.padding[0])])
        return x


def test_a_network_that_asks_its_layers_how_they_are_set() -> None:
    model = ready(Causal(), seed=3)
    x = (torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(4)),)
    changed = over_images(model, x)
    assert isinstance(changed, Causal)
    assert isinstance(changed.conv, LineConvolution)
    assert changed.conv is changed.again
    assert type(model.conv) is nn.Conv1d
    torch.testing.assert_close(changed(*x), model(*x))


def test_what_does_more_than_torchs_stays() -> None:
    class Scaled(nn.Conv1d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    hooked = nn.Conv1d(4, 4, 1)
    hooked.register_forward_hook(lambda module, given, result: result + 1)
    model = ready(nn.Sequential(Scaled(4, 4, 1), hooked), seed=5)
    x = (torch.zeros(1, 4, 9),)
    assert over_images(model, x) is model
    assert prepare(model, x).inventory.layers == ()


def test_its_layers_can_be_compressed_and_their_norm_is_folded() -> None:
    network = prepared("lines")
    names = {layer.name: layer.kind for layer in network.inventory.layers}
    assert names == dict.fromkeys(("stem.conv", "first.conv", "second.conv", "last.conv"), "conv2d") | {
        "head": "linear"
    }
    assert not any(node.op == "batch_norm" for node in network.inventory.graph.nodes)
    assert any(group.prunable and group.pattern == "channel" for group in network.inventory.groups)
    with torch.no_grad():
        x = inputs("lines", 3)
        torch.testing.assert_close(network.model(*x), NETWORKS["lines"]()(*x), rtol=1e-4, atol=1e-5)
