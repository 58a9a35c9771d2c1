"""The networks that a CPU is calibrated on: random small convolutional nets under random plans, as exported files.

Their shapes lie where compressed layers live: widths that are no powers of two, split ranks, integer layers between
float ones. One number names a network, so that an interrupted calibration goes on where it stopped.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from autocomp.compress.apply import Prepared, apply, prepare
from autocomp.compress.structure import Structure, restructure
from autocomp.export.to_onnx import export_onnx
from autocomp.plan import Format, LayerPlan, Plan, Rank, Sparsity

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Plans tried on one random network; tracing it costs as much as measuring.
PLANS_PER_NETWORK = 4


@dataclass(frozen=True)
class Specimen:
    """A file to be measured, with the structure that lowering sees."""

    name: str
    structure: Structure
    model: bytes
    input_shape: tuple[int, ...]


class _Block(nn.Module):
    """Two convs; a shortcut is added to them (``residual``), joined to them (``dense``) or absent (``plain``)."""

    def __init__(self, inputs: int, middle: int, outputs: int, stride: int, kernel: int, kind: str, pool: bool) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2) if pool and stride == 2 else nn.Identity()
        stride = 1 if pool else stride
        joined = outputs - inputs if kind == "dense" else outputs
        self.conv1 = nn.Conv2d(inputs, middle, kernel, stride, kernel // 2)
        self.conv2 = nn.Conv2d(middle, joined, 3, 1, 1)
        same = stride == 1 and (inputs == outputs or kind == "dense")
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, inputs if kind == "dense" else outputs, 1, stride)
        self.kind = kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(x)
        y = self.conv2(torch.relu(self.conv1(x)))
        if self.kind == "dense":
            return torch.cat([self.shortcut(x), torch.relu(y)], dim=1)
        return torch.relu(y + self.shortcut(x)) if self.kind == "residual" else torch.relu(y)


class _Net(nn.Module):
    def __init__(self, rng: random.Random, channels: int) -> None:
        super().__init__()
        width = 4 * rng.randint(2, 16)
        self.stem = nn.Conv2d(channels, width, 3, rng.choice((1, 1, 2)), 1)
        blocks: list[nn.Module] = []
        kind = rng.choice(("residual", "residual", "plain", "dense"))
        pool = rng.random() < 0.5
        for place in range(rng.randint(2, 5)):
            wider = min(192, max(8, round(width * rng.choice((1, 1, 1.5, 2)) / 4) * 4))
            middle = min(192, max(8, round(wider * rng.choice((0.5, 0.75, 1, 1)) / 4) * 4))
            stride = 2 if place and rng.random() < 0.4 else 1
            wider = max(wider, width + 8) if kind == "dense" else wider
            blocks.append(_Block(width, middle, wider, stride, rng.choice((1, 3, 3, 3)), kind, pool))
            width = wider
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        hidden = rng.choice((0, 0, 64, 256))
        self.head = nn.Sequential(nn.Linear(width, hidden), nn.ReLU()) if hidden else nn.Identity()
        self.last = nn.Linear(hidden or width, rng.choice((10, 100)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.blocks(torch.relu(self.stem(x)))
        return self.last(self.head(self.pool(y).flatten(1)))  # type: ignore[no-any-return]


def specimens(seed: int, start: int) -> Iterator[Specimen]:
    """Endless specimens, from number ``start`` on. Number ``n`` is the same in every process."""
    number = start
    prepared: Prepared | None = None
    while True:
        if prepared is None or number % PLANS_PER_NETWORK == 0:
            prepared = _network(seed, number // PLANS_PER_NETWORK)
        yield _specimen(prepared, seed, number)
        number += 1


def _network(seed: int, number: int) -> Prepared:
    rng = random.Random(f"{seed}/network/{number}")
    channels = rng.choice((1, 3))
    side = rng.choice((8, 12, 16, 24, 32))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.randrange(2**31))
        net = _Net(rng, channels).eval()
    return prepare(net, (torch.zeros(1, channels, side, side),))


def _specimen(prepared: Prepared, seed: int, number: int) -> Specimen:
    rng = random.Random(f"{seed}/plan/{number}")
    plan = random_plan(prepared, rng)
    shape = tuple(prepared.example_inputs[0].shape)
    noise = torch.randn(4, *shape[1:], generator=torch.Generator().manual_seed(number))
    compressed = apply(prepared, plan, [(noise,)])
    return Specimen(
        f"random-{seed}-{number}", restructure(prepared.inventory, plan), export_onnx(compressed, packed=False), shape
    )


def random_plan(prepared: Prepared, rng: random.Random) -> Plan:
    """A joint plan: mostly one format for the whole network, as plans that pay have, with exceptions per layer."""
    usual = rng.choice((None, Format(8), Format(8)))
    exception = rng.choice((0.0, 0.1, 0.3))
    pruned = rng.choice((0.0, 0.3, 0.7))
    split = rng.choice((0.0, 0.2, 0.5))
    levels = {
        group.name: rng.choice((0.125, 0.25, 0.5, 0.75)) if group.prunable and rng.random() < pruned else 0.0
        for group in prepared.inventory.groups
    }
    layers = {}
    for layer in prepared.inventory.layers:
        level = levels.get(layer.group or "", 0.0)
        largest = layer.largest_paying_rank
        ranked = largest >= 2 and rng.random() < split
        chosen = rng.choice((None, Format(8))) if rng.random() < exception else usual
        layers[layer.name] = LayerPlan(
            sparsity=Sparsity("channel", level) if level else None,
            rank=Rank("svd", rng.randint(max(1, largest // 4), largest)) if ranked else None,
            format=chosen,
        )
    return Plan(layers)
