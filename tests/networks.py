"""Small seeded networks that the tests share: one for every way in which layers are coupled."""

from __future__ import annotations

import random
from collections.abc import Callable, Container, Iterable, Sequence
from functools import cache
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as functional
from torch import nn

from autocomp.compress.agreement import flat_output
from autocomp.compress.apply import Compressed, apply
from autocomp.compress.prepare import prepare
from autocomp.compress.quantize import Numerics
from autocomp.compress.rebuild import Prepared
from autocomp.export.to_onnx import export_onnx
from autocomp.hardware.fingerprint import this_machine
from autocomp.hardware.runtimes.onnxruntime import load
from autocomp.hardware.runtimes.runtime import batch_outputs
from autocomp.inventory import Inventory, LayerInfo
from autocomp.plan import (
    N_OF_M,
    WEIGHT_BITS,
    Clip,
    Format,
    Granularity,
    Grid,
    LayerPlan,
    Pattern,
    Plan,
    Rank,
    RankMethod,
    Rounding,
    Saliency,
    Sparsity,
)

#: On layers this small a second thread is no help, and on a busy machine each of them waits for it.
torch.set_num_threads(1)

SIZE = 8
CLASSES = 5
#: Of the networks that read words: how many they know, and how many make an example.
WORDS = 30
TOKENS = 6


class Block(nn.Module):
    """Two 3×3 convs around a shortcut: itself, or a 1×1 conv where the shape changes."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class PaddedBlock(nn.Module):
    """Option A of He et al. (2016): a strided slice whose missing channels are zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.missing = outputs - inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        short = x
        if self.stride > 1 or self.missing:
            half = self.missing // 2
            short = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.missing - half))
        return functional.relu(y + short)


class Head(nn.Module):
    """Global average and a linear."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.linear(x.mean(dim=(2, 3)))
        return result


def plain() -> nn.Module:
    """Convs of odd widths, a window pool, and two linears behind a flatten."""
    return ready(
        nn.Sequential(
            nn.Conv2d(3, 12, 3, padding=1),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Conv2d(12, 20, 3, padding=1, bias=False),
            nn.BatchNorm2d(20),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(20, 16, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * (SIZE // 2) ** 2, 24),
            nn.ReLU(),
            nn.Linear(24, CLASSES),
        ),
        seed=1,
    )


def residual() -> nn.Module:
    """A stem, an identity shortcut and two of 1×1 convs."""
    stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    return ready(
        nn.Sequential(stem, Block(16, 12, 16, 1), Block(16, 24, 24, 2), Block(24, 32, 32, 2), Head(32)), seed=2
    )


def option_a() -> nn.Module:
    """The CIFAR ResNets' form: only the inside of a block is free."""
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    return ready(
        nn.Sequential(stem, PaddedBlock(8, 8, 1), PaddedBlock(8, 16, 2), PaddedBlock(16, 16, 1), Head(16)), seed=3
    )


def mlp() -> nn.Module:
    """Linears alone, one with a batch norm."""
    return ready(
        nn.Sequential(
            nn.Linear(20, 32),
            nn.BatchNorm1d(32),
            nn.ReLU(),
            nn.Linear(32, 24, bias=False),
            nn.ReLU(),
            nn.Linear(24, CLASSES),
        ),
        seed=4,
    )


def separable() -> nn.Module:
    """Depthwise 3×3 and pointwise 1×1 convs, as in MobileNets."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()]
    for inputs, outputs, stride in ((16, 24, 1), (24, 32, 2)):
        layers += [
            nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
            nn.BatchNorm2d(inputs),
            nn.ReLU6(),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU6(),
        ]
    return ready(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES)), seed=5)


def squeeze() -> nn.Module:
    """Inverted residual blocks with squeeze-and-excitation and smooth activations, as in MobileNetV3 and EfficientNet."""
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.Hardswish())
    return ready(
        nn.Sequential(stem, InvertedBlock(8, 16, 8, nn.Hardswish()), InvertedBlock(8, 24, 12, nn.SiLU()), Head(12)),
        seed=6,
    )


class Squeeze(nn.Module):
    """A gate a channel, made of the averages of all of them."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.reduce(functional.adaptive_avg_pool2d(x, 1)))
        return x * functional.hardsigmoid(self.expand(y))


class InvertedBlock(nn.Module):
    """Wider inside, depthwise there, and a shortcut where the widths allow it."""

    def __init__(self, inputs: int, inner: int, outputs: int, activation: nn.Module) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner), activation)
        self.deep = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.norm = nn.BatchNorm2d(inner)
        self.gate = Squeeze(inner, 8)
        self.project = nn.Sequential(nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = inputs == outputs
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.project(self.gate(self.activation(self.norm(self.deep(self.expand(x))))))
        return x + y if self.shortcut else y


def grouped() -> nn.Module:
    """A ResNeXt block: a convolution of four groups inside."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Sequential(nn.Conv2d(12, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
            self.conv2 = nn.Sequential(
                nn.Conv2d(16, 16, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(16), nn.ReLU()
            )
            self.conv3 = nn.Sequential(nn.Conv2d(16, 12, 1, bias=False), nn.BatchNorm2d(12))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return functional.relu(x + self.conv3(self.conv2(self.conv1(x))))

    return ready(nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), Block(), Block(), Head(12)), seed=7)


def dense() -> nn.Module:
    """A dense block: every layer reads all before it, behind a batch norm that nothing can be folded into."""

    class Layer(nn.Module):
        def __init__(self, inputs: int, growth: int) -> None:
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, growth, 3, padding=1, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x, self.conv(functional.relu(self.norm(x)))], dim=1)

    layers = [Layer(12 + 8 * number, 8) for number in range(3)]
    return ready(
        nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), *layers, nn.BatchNorm2d(36), nn.ReLU(), Head(36)), seed=8
    )


def inception() -> nn.Module:
    """Branches of several kernels, and a pool, joined along the channels."""

    class Branches(nn.Module):
        def __init__(self, inputs: int) -> None:
            super().__init__()
            self.one = nn.Conv2d(inputs, 8, 1)
            self.three = nn.Sequential(nn.Conv2d(inputs, 6, 1), nn.ReLU(), nn.Conv2d(6, 10, 3, padding=1))
            self.pooled = nn.Conv2d(inputs, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            pooled = self.pooled(functional.max_pool2d(x, 3, 1, 1))
            return functional.relu(torch.cat([self.one(x), self.three(x), pooled], dim=1))

    stem = nn.Conv2d(3, 10, 3, padding=1), nn.ReLU()
    return ready(nn.Sequential(*stem, Branches(10), nn.AvgPool2d(2), Branches(22), Head(22)), seed=9)


def decoder() -> nn.Module:
    """Down and up again by a transposed convolution, with a skip; the result is nested."""

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 8, 3, padding=1)
            self.down = nn.Conv2d(8, 16, 3, 2, 1)
            self.inner = nn.Conv2d(16, 16, 3, padding=1)
            self.up = nn.ConvTranspose2d(16, 8, 2, 2)
            self.norm = nn.BatchNorm2d(8)
            self.last = nn.Conv2d(16, 6, 3, padding=1)
            self.mask, self.score = nn.Conv2d(6, 1, 1), nn.Linear(16, CLASSES)

        def forward(self, x: torch.Tensor) -> dict[str, object]:
            skip = functional.relu(self.first(x))
            deep = functional.relu(self.inner(functional.relu(self.down(skip))))
            up = functional.relu(self.norm(self.up(deep)))
            mask = self.mask(functional.relu(self.last(torch.cat([skip, up], dim=1))))
            return {"mask": mask, "rest": (None, [self.score(deep.mean(dim=(2, 3)))])}

    return ready(Decoder(), seed=10)


def shuffle() -> nn.Module:
    """Half of the channels through a branch, then a channel shuffle, as in ShuffleNetV2."""

    class Unit(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            half = width // 2
            self.branch = nn.Sequential(
                *(nn.Conv2d(half, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU()),
                *(nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12)),
                *(nn.Conv2d(12, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU()),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            left, right = x.chunk(2, dim=1)
            joined = torch.cat([left, self.branch(right)], dim=1)
            batch, channels, height, width = joined.shape
            turned = joined.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
            return turned.view(batch, channels, height, width)

    return ready(nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), Unit(16), Unit(16), Head(16)), seed=11)


class SelfAttention(nn.Module):
    """Queries, keys and values of three linears, cut into heads as BERT's are: by the width of one, not their number."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.each = width // heads

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        batch, tokens = x.shape[:2]
        q, k, v = (
            linear(x).view(batch, tokens, -1, self.each).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        result: torch.Tensor = self.out(mixed.transpose(1, 2).contiguous().view(batch, tokens, -1))
        return result


class PostNormLayer(nn.Module):
    """The encoder layer of Vaswani et al. (2017): norms behind the additions."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        x = self.norm1(x + self.attention(x, bias))
        result: torch.Tensor = self.norm2(x + self.down(functional.gelu(self.up(x))))
        return result


class Encoder(nn.Module):
    """Tokens and their places → vectors → post-norm layers; the first token is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(WORDS, 16), nn.Embedding(2 * TOKENS, 16)
        self.norm = nn.LayerNorm(16)
        self.layers = nn.ModuleList([PostNormLayer(16, 4, 24) for _ in range(2)])
        self.pool, self.head = nn.Linear(16, 16), nn.Linear(16, CLASSES)

    def forward(self, ids: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        x = self.norm(self.token(ids) + self.place(places))
        bias = (1.0 - seen[:, None, None, :].to(x.dtype)) * -1e4
        for layer in self.layers:
            x = layer(x, bias)
        result: torch.Tensor = self.head(torch.tanh(self.pool(x[:, 0])))
        return result


def encoder() -> nn.Module:
    """A small BERT: embeddings, attention with a mask that is an input, sequences of any length."""
    return ready(Encoder(), seed=12)


class FusedAttention(nn.Module):
    """One linear for queries, keys and values, and a number of heads that is written down, as in ViT."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.heads, self.each = heads, width // heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, self.each).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        result: torch.Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return result


def vit() -> nn.Module:
    """Patches, a class token, places that are a parameter, and pre-norm layers."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.attention = nn.LayerNorm(16), FusedAttention(16, 4)
            self.norm2, self.mlp = nn.LayerNorm(16), nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x + self.attention(self.norm1(x))
            result: torch.Tensor = x + self.mlp(self.norm2(x))
            return result

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch = nn.Conv2d(3, 16, 2, 2)
            self.token = nn.Parameter(torch.zeros(1, 1, 16))
            self.places = nn.Parameter(torch.zeros(1, (SIZE // 2) ** 2 + 1, 16))
            self.layers, self.norm = nn.Sequential(Layer(), Layer()), nn.LayerNorm(16)
            self.head = nn.Linear(16, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.patch(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.places
            result: torch.Tensor = self.head(self.norm(self.layers(x))[:, 0])
            return result

    return ready(Net(), seed=13)


def packed() -> nn.Module:
    """torch's own encoder layer and attention, whose weights are packed."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(6, 16)
            self.layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, norm_first=True)
            self.cross = nn.MultiheadAttention(16, 2)
            self.head = nn.Linear(16, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.layer(self.embed(x))
            turned = x.transpose(0, 1)
            mixed, _ = self.cross(turned[:1], turned, turned, need_weights=False)
            result: torch.Tensor = self.head(mixed[0])
            return result

    return ready(Net(), seed=14)


def tied() -> nn.Module:
    """A language model whose head is its embedding."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Embedding(WORDS, 16)
            self.layer = PostNormLayer(16, 2, 24)
            self.head = nn.Linear(16, WORDS, bias=False)
            self.head.weight = self.token.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.head(self.layer(self.token(ids), None))
            return result

    return ready(Net(), seed=15)


def two_inputs() -> nn.Module:
    """Images and numbers beside them, joined before the head."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 12, 3, 2, 1), nn.Conv2d(12, 16, 3, 2, 1)
            self.numbers = nn.Linear(7, 12)
            self.join, self.head = nn.Linear(28, 16), nn.Linear(16, CLASSES)

        def forward(self, x: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
            x = functional.relu(self.conv2(functional.relu(self.conv1(x)))).mean(dim=(2, 3))
            y = functional.relu(self.numbers(numbers))
            result: torch.Tensor = self.head(functional.relu(self.join(torch.cat([x, y], dim=1))))
            return result

    return ready(Net(), seed=16)


#: Of convolutions and plain linears alone.
CONVOLUTIONAL: dict[str, Callable[[], nn.Module]] = {
    "plain": plain,
    "residual": residual,
    "option_a": option_a,
    "mlp": mlp,
    "separable": separable,
}


#: Every way in which layers are put together.
class Lines(nn.Module):
    """Convolutions over a sequence, with a shortcut and pools, as networks for signals have them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv1d(3, 16, 7, stride=2, padding=3, bias=False), nn.BatchNorm1d(16)
        self.first, self.second = nn.Conv1d(16, 24, 3, padding=1), nn.Conv1d(24, 16, 5, padding="same")
        self.last, self.head = nn.Conv1d(16, 12, 3, dilation=2), nn.Linear(12, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool1d(functional.relu(self.norm(self.stem(x))), 2)
        x = functional.relu(x + self.second(functional.relu(self.first(x))))
        y: torch.Tensor = self.head(functional.relu(self.last(x)).mean(-1))
        return y


def lines() -> nn.Module:
    return ready(Lines(), seed=18)


NETWORKS: dict[str, Callable[[], nn.Module]] = CONVOLUTIONAL | {
    "lines": lines,
    "squeeze": squeeze,
    "grouped": grouped,
    "dense": dense,
    "inception": inception,
    "decoder": decoder,
    "shuffle": shuffle,
    "encoder": encoder,
    "vit": vit,
    "packed": packed,
    "tied": tied,
    "two_inputs": two_inputs,
}
#: What may vary in size besides the batch.
DYNAMIC_DIMS: dict[str, tuple[tuple[int, ...], ...]] = {"encoder": ((1,), (1,)), "tied": ((1,),)}


def thorough(values: Iterable[Any], usual: Container[Any]) -> list[Any]:
    """Values for a parametrized test, tuples where it has several: those that are not ``usual`` are left to CI."""
    marks = pytest.mark.exhaustive
    parts = ((value, value if isinstance(value, tuple) else (value,)) for value in values)
    return [value if value in usual else pytest.param(*each, marks=marks) for value, each in parts]


def seeds(count: int) -> list[Any]:
    """Seeds for a parametrized test: the first, and all in CI."""
    return thorough(range(count), {0})


def inputs(network: str, count: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Standard normal inputs of a network; words of :data:`TOKENS` tokens, whose masks end early here and there."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(count, *shape, generator=generator)

    if network == "mlp":
        return (normal(20),)
    if network == "lines":
        return (normal(3, 64),)
    if network == "packed":
        return (normal(TOKENS, 6),)
    if network in {"encoder", "tied"}:
        ids = torch.randint(WORDS, (count, TOKENS), generator=generator)
        lengths = torch.randint(2, TOKENS + 1, (count, 1), generator=generator)
        return (ids, (torch.arange(TOKENS) < lengths).long())[: len(DYNAMIC_DIMS[network])]
    if network == "two_inputs":
        return normal(3, SIZE, SIZE), normal(7)
    return (normal(3, SIZE, SIZE),)


def numerics_here() -> Numerics:
    """Those of onnxruntime on this machine: what a file that is run here is held against."""
    features = set(this_machine().features)
    return Numerics(narrow_products="avx2" in features and not {"avx512_vnni", "avx_vnni"} & features)


@cache
def prepared(network: str) -> Prepared:
    """A network ready to be compressed; shared between tests, which leave it as it is."""
    return prepare(NETWORKS[network](), inputs(network, 1), DYNAMIC_DIMS.get(network, ()))


@cache
def compressed(network: str, plan: Plan) -> Compressed:
    """Calibrated on two batches of 16, for the machine that the tests run on."""
    calibration = [inputs(network, 16, seed=100), inputs(network, 16, seed=101)]
    return apply(prepared(network), plan, calibration, numerics_here())


@cache
def exported(network: str, plan: Plan, packed: bool) -> bytes:
    return export_onnx(compressed(network, plan), packed)


def run_file(file: bytes, batch: Sequence[torch.Tensor]) -> torch.Tensor:
    """What a file gives for a batch, as one vector an example."""
    arrays = batch_outputs(load(file, threads=1), *(tensor.numpy() for tensor in batch))
    return flat_output([torch.from_numpy(array) for array in arrays])


def run_module(module: nn.Module, batch: Sequence[torch.Tensor]) -> torch.Tensor:
    """What a model gives for a batch, as one vector an example."""
    with torch.no_grad():
        return flat_output(module(*batch))


def uniform_plan(network: str, **choice: Sparsity | Rank | Format) -> Plan:
    """The same choice for every layer."""
    return Plan({layer.name: LayerPlan(**choice) for layer in prepared(network).inventory.layers})  # type: ignore[arg-type]


def eight_bits(network: str) -> Plan:
    """w8a8 where there is an integer kernel, w8a32 elsewhere."""
    return Plan(
        {
            layer.name: LayerPlan(format=Format(8, 8 if layer.computes_integers else 32))
            for layer in prepared(network).inventory.layers
        }
    )


def random_plan(inventory: Inventory, seed: int, formats: bool = True) -> Plan:
    """Every method in some layers: ranks that pay, channels, heads or single weights cut, all bits and grids with
    activations of every kind that the layer takes, and blocks left out."""
    chance = random.Random(seed)
    sparsity: dict[str, Sparsity] = {}
    for group in inventory.groups:
        level = chance.choice([0.0, 0.25, 0.5, 0.7])
        if group.prunable and level and not sparsity.keys() & {*group.producers}:
            sparsity |= dict.fromkeys(group.producers, Sparsity(group.pattern, level))
    plans = {}
    for layer in inventory.layers:
        cut = sparsity.get(layer.name)
        if cut is None and chance.random() < 0.4:
            cut = _random_mask(layer, chance)
        rank = _random_rank(layer, chance) if chance.random() < 0.3 else None
        chosen = _random_format(layer, chance) if formats and chance.random() < 0.6 else None
        plans[layer.name] = LayerPlan(cut, rank, chosen)
    return Plan(plans, tuple(block.name for block in inventory.blocks if chance.random() < 0.25))


def _random_mask(layer: LayerInfo, chance: random.Random) -> Sparsity:
    patterns: list[Pattern] = ["unstructured", "unstructured", "block", "2:4", "1:4", "4:8"]
    pattern = chance.choice(patterns)
    looks = layer.kind in {"conv2d", "linear"} and layer.called
    saliencies: list[Saliency] = ["magnitude", "taylor", "wanda", "hessian"]
    saliency = chance.choice(saliencies if looks else saliencies[:2])
    if pattern in N_OF_M:
        n, m = N_OF_M[pattern]
        return Sparsity(pattern, 1 - n / m, saliency)
    return Sparsity(pattern, chance.choice([0.3, 0.6, 0.9]), saliency)


def _random_rank(layer: LayerInfo, chance: random.Random) -> Rank | None:
    methods: list[RankMethod] = ["svd", "nmf", "spatial", "tucker2", "whitened"]
    possible = [method for method in methods if layer.largest_rank(method) > 1]
    possible = [method for method in possible if method != "whitened" or layer.kind != "embedding"]
    if not possible:
        return None
    method = chance.choice(possible)
    return Rank(method, chance.randint(2, layer.largest_rank(method)))


def _random_format(layer: LayerInfo, chance: random.Random) -> Format:
    grids: list[tuple[Grid, int]] = [("uniform", bits) for bits in WEIGHT_BITS]
    grid, bits = chance.choice([*grids, ("ternary", 2), ("codebook", 2), ("codebook", 3), ("codebook", 4)])
    kind = chance.random()
    if bits == 16:
        return Format(16, 32)
    roundings: list[Rounding] = ["nearest", "nearest", "gptq", "adaround"]
    rounding = chance.choice(roundings if layer.kind in {"conv2d", "linear"} and layer.called else roundings[:1])
    clip: Clip = chance.choice(get_args(Clip))
    granularity: Granularity = chance.choice(["channel", "tensor"])
    if not layer.computes_integers or kind > 0.8:
        group = chance.choice((0, 0, 16))
        return Format(bits, 32, False, grid, "group" if group else granularity, group, clip, rounding)
    return Format(bits, 8, layer.kind == "linear" and kind < 0.4, grid, granularity, 0, clip, rounding)


def ready(model: nn.Module, seed: int) -> nn.Module:
    """Seeded weights, and batch norms that have statistics of their own, in eval mode."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, like: torch.Tensor) -> torch.Tensor:
        return low + (high - low) * torch.rand(like.shape, generator=generator)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.Embedding)):
                fan_in = module.weight[0].numel() if not isinstance(module, nn.ConvTranspose2d) else len(module.weight)
                size = 0.5 if isinstance(module, nn.Embedding) else (2 / fan_in) ** 0.5
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * size)
                if not isinstance(module, nn.Embedding) and module.bias is not None:
                    module.bias.copy_(uniform(-0.2, 0.2, module.bias))
            elif isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d, nn.LayerNorm)):
                if module.weight is not None and module.bias is not None:
                    module.weight.copy_(uniform(0.5, 1.5, module.weight))
                    module.bias.copy_(uniform(-0.3, 0.3, module.bias))
                if isinstance(module, nn.LayerNorm):
                    continue
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.copy_(uniform(-0.3, 0.3, module.running_mean))
                module.running_var.copy_(uniform(0.5, 1.5, module.running_var))
            elif not isinstance(module, nn.PReLU):  # tokens, places, packed weights
                for parameter in module.parameters(recurse=False):
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()
