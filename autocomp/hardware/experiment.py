"""The networks that a CPU is calibrated on: random small nets under random plans, as exported files.

Their shapes lie where compressed layers live: widths that are no powers of two, split ranks, integer layers between
float ones. They are of four families, in turn: convolutional nets (plain, residual, dense), nets of inverted residual
blocks with gates, small transformers, and multi-layer perceptrons. One number names a network, so that an interrupted
calibration goes on where it stopped.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from autocomp.compress.apply import Prepared, apply, prepare
from autocomp.compress.quantize import Numerics
from autocomp.compress.structure import Structure, restructure
from autocomp.export.to_onnx import export_onnx
from autocomp.plan import Format, LayerPlan, Plan, Rank, Sparsity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

#: Plans tried on one random network; tracing it costs as much as measuring.
PLANS_PER_NETWORK = 4

#: Families of networks take turns, and so do their kinds, so that a short calibration has seen every kernel as well.
FAMILIES = ("conv", "encoder", "gated", "perceptron", "conv", "encoder")
CONV_KINDS = ("residual", "dense", "plain")


@dataclass(frozen=True)
class Specimen:
    """A file to be measured, with the structure that lowering sees and an input of batch 1."""

    name: str
    structure: Structure
    model: bytes
    example: npt.NDArray[Any]


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
    def __init__(self, rng: random.Random, channels: int, kind: str) -> None:
        super().__init__()
        width = 4 * rng.randint(2, 16)
        self.stem = nn.Conv2d(channels, width, 3, rng.choice((1, 1, 2)), 1)
        blocks: list[nn.Module] = []
        pool = kind == "plain" or rng.random() < 0.5
        for place in range(rng.randint(2, 5)):
            wider = min(192, max(8, round(width * rng.choice((1, 1, 1.5, 2)) / 4) * 4))
            middle = min(192, max(8, round(wider * rng.choice((0.5, 0.75, 1, 1)) / 4) * 4))
            stride = 2 if place == 1 or (place and rng.random() < 0.3) else 1
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


class _Inverted(nn.Module):
    """A 1×1 conv, a depthwise one, a gate computed from the mean (squeeze and excitation) or none, a 1×1 conv; the
    shortcut of option A (He et al., 2016) where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, wider: int, act: type[nn.Module], gate: bool) -> None:
        super().__init__()
        self.expand = nn.Conv2d(inputs, wider, 1)
        self.depthwise = nn.Conv2d(wider, wider, 3, stride, 1, groups=wider)
        self.act = act()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(wider, wider // 4, 1),
            nn.ReLU(),
            nn.Conv2d(wider // 4, wider, 1),
            nn.Sigmoid(),
        )
        self.gated = gate
        self.project = nn.Conv2d(wider, outputs, 1)
        self.stride, self.more = stride, outputs - inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act(self.depthwise(self.act(self.expand(x))))
        y = self.project(y * self.gate(y) if self.gated else y)
        if self.stride > 1 or self.more:
            half = self.more // 2
            x = x[:, :, :: self.stride, :: self.stride]
            x = functional.pad(x, (0, 0, 0, 0, half, self.more - half))
        return x + y  # type: ignore[no-any-return]


class _GatedNet(nn.Module):
    def __init__(self, rng: random.Random, channels: int, turn: int) -> None:
        super().__init__()
        width = 8 * rng.randint(2, 5)
        act = (nn.Hardswish, nn.SiLU, nn.ReLU6)[turn % 3]
        gate = turn % 2 == 0
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, 2, 1), act())
        blocks = []
        for place in range(rng.randint(2, 4)):
            outputs = width + 8 * rng.choice((0, 0, 1, 2))
            stride = 2 if place and rng.random() < 0.4 else 1
            blocks.append(_Inverted(width, outputs, stride, width * rng.choice((2, 3, 4)), act, gate))
            width = outputs
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.blocks(self.stem(x)).mean(dim=(2, 3)))  # type: ignore[no-any-return]


class _Encoder(nn.Module):
    """Embeddings, and transformer layers that normalize before or behind."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.heads = rng.choice((2, 4, 6, 8))
        width = self.heads * rng.choice((16, 32, 64))
        inner = width * rng.choice((2, 3, 4))
        self.table, self.first = nn.Embedding(rng.choice((500, 5000)), width), rng.random() < 0.5
        self.layers = nn.ModuleList()
        for _ in range(rng.randint(1, 3)):
            names = ("query", "key", "value", "out")
            linears = {name: nn.Linear(width, width) for name in names}
            linears |= {"wide": nn.Linear(width, inner), "narrow": nn.Linear(inner, width)}
            self.layers.append(nn.ModuleDict({**linears, "norm1": nn.LayerNorm(width), "norm2": nn.LayerNorm(width)}))
        self.last = nn.Linear(width, 10)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        for layer in self.layers:
            x = self._sublayer(x, layer, "norm1", self._attend)
            x = self._sublayer(x, layer, "norm2", self._feed)
        return self.last(x.mean(dim=1))  # type: ignore[no-any-return]

    def _sublayer(
        self, x: torch.Tensor, layer: nn.Module, norm: str, part: Callable[..., torch.Tensor]
    ) -> torch.Tensor:
        normed = layer.get_submodule(norm)
        result: torch.Tensor = x + part(normed(x), layer) if self.first else normed(x + part(x, layer))
        return result

    def _attend(self, x: torch.Tensor, layer: nn.ModuleDict) -> torch.Tensor:
        q, k, v = (layer[name](x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for name in ("query", "key", "value"))
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return layer["out"](mixed)  # type: ignore[no-any-return]

    def _feed(self, x: torch.Tensor, layer: nn.ModuleDict) -> torch.Tensor:
        return layer["narrow"](functional.gelu(layer["wide"](x)))  # type: ignore[no-any-return]


def _perceptron(rng: random.Random) -> nn.Module:
    """Three linears over plain vectors."""
    inputs, first, second = rng.choice((64, 300, 784)), 4 * rng.randint(16, 150), 4 * rng.randint(8, 75)
    layers = nn.Linear(inputs, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, 10)
    return nn.Sequential(*layers)


def specimens(seed: int, start: int, narrow_products: bool = False) -> Iterator[Specimen]:
    """Endless specimens, from number ``start`` on. Number ``n`` is the same in every process.

    Args:
        narrow_products: of the machine, see :class:`autocomp.compress.quantize.Numerics`.
    """
    number = start
    prepared: Prepared | None = None
    numerics = Numerics(narrow_products=narrow_products)
    while True:
        if prepared is None or number % PLANS_PER_NETWORK == 0:
            prepared = network(seed, number // PLANS_PER_NETWORK)
        yield _specimen(prepared, seed, number, numerics)
        number += 1


def network(seed: int, number: int) -> Prepared:
    """The random network of that number."""
    rng = random.Random(f"{seed}/network/{number}")
    channels = rng.choice((1, 3))
    side = rng.choice((8, 12, 16, 24, 32))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.randrange(2**31))
        turn, place = divmod(number, len(FAMILIES))
        family = FAMILIES[place]
        if family == "encoder":
            encoder = _Encoder(rng)
            ids = torch.randint(0, 500, (1, rng.choice((8, 16, 32, 64, 128))))
            return prepare(encoder.eval(), (ids,), ((1,),))
        if family == "perceptron":
            net = _perceptron(rng)
            return prepare(net.eval(), (torch.zeros(1, net.get_parameter("0.weight").shape[1]),))
        kind = CONV_KINDS[(FAMILIES.count("conv") * turn + FAMILIES[:place].count("conv") + 2) % len(CONV_KINDS)]
        conv = _Net(rng, channels, kind) if family == "conv" else _GatedNet(rng, channels, turn)
        return prepare(conv.eval(), (torch.zeros(1, channels, side, side),))


def _specimen(prepared: Prepared, seed: int, number: int, numerics: Numerics) -> Specimen:
    rng = random.Random(f"{seed}/plan/{number}")
    plan = random_plan(prepared, rng, number % PLANS_PER_NETWORK)
    example = prepared.example.inputs[0]
    generator = torch.Generator().manual_seed(number)
    noise = torch.randn(4, *example.shape[1:], generator=generator) if example.is_floating_point() else example
    compressed = apply(prepared, plan, [(noise,)], numerics)
    return Specimen(
        f"random-{seed}-{number}",
        restructure(prepared.inventory, plan, numerics),
        export_onnx(compressed, packed=any(chosen.weight_bits == 2 for chosen in compressed.formats.values())),
        example.numpy(),
    )


def random_plan(prepared: Prepared, rng: random.Random, turn: int) -> Plan:
    """A joint plan: mostly one format for the whole network, as plans that pay have, with exceptions per layer.

    Args:
        turn: the first plan of a network is in floats, the next two in integers, on calibrated grids and on those of
            the moment; the last is any of these, and has a layer of 2 bits, whose file computes attention in parts.
    """
    usual = (None, Format(8), Format(8), rng.choice((None, Format(8))))[turn]
    exception = rng.choice((0.0, 0.1, 0.3))
    pruned = rng.choice((0.0, 0.3, 0.7))
    split = rng.choice((0.0, 0.2, 0.5))
    levels = {
        (group.name, group.pattern): rng.choice((0.125, 0.25, 0.5, 0.75))
        if group.prunable and rng.random() < pruned
        else 0.0
        for group in prepared.inventory.groups
    }
    sparsity = {
        name: Sparsity(group.pattern, level)
        for group in prepared.inventory.groups
        if (level := levels[group.name, group.pattern]) and group.kept(level) < group.width
        for name in group.producers
    }
    dynamic = (False, False, True, rng.random() < 0.7)[turn]
    layers = {}
    for layer in prepared.inventory.layers:
        largest = layer.largest_paying_rank
        ranked = largest >= 2 and rng.random() < split
        chosen = rng.choice((None, Format(8))) if rng.random() < exception else usual
        if chosen is not None and not layer.computes_integers:
            chosen = Format(8, 32)
        elif chosen is not None and layer.kind == "linear" and len(layer.out_shape) > 1 and dynamic:
            chosen = Format(8, 8, dynamic=True)
        layers[layer.name] = LayerPlan(
            sparsity=sparsity.get(layer.name),
            rank=Rank("svd", rng.randint(max(1, largest // 4), largest)) if ranked else None,
            format=chosen,
        )
    if turn == PLANS_PER_NETWORK - 1:
        first = prepared.inventory.layers[0].name
        layers[first] = replace(layers[first], format=Format(2, 32))
    return Plan(layers)
