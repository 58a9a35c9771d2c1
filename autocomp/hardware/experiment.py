"""The networks that a machine is calibrated on: random nets, written as files in the form that compressed networks have.

Their shapes lie where compressed layers live: widths that are no powers of two, split ranks, integer layers between
float ones. They are of six families, in turn. One number names a network, so that an interrupted calibration goes on
where it stopped. Files of one network differ in their formats, and in a fresh draw of ranks.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from autocomp.compress.quantize import Floats
from autocomp.hardware.graph_writer import GraphWriter, NetworkWriter, Value, Zeros

#: Files of one network, measured side by side.
FILES_PER_NETWORK = 4

#: Families of networks take turns, so that a short calibration has seen every kernel as well.
FAMILIES = ("residual", "encoder", "inverted", "plain", "dense", "encoder", "inverted", "perceptron")

#: Multiplications of a network: small ones are calls and conversions, large ones arithmetic and memory.
LEAST_MACS, MOST_MACS = 1e6, 4e8


@dataclass(frozen=True)
class Packages:
    """How a runtime's torch packages are written: what they compute floats in, whether its device multiplies floats of 8
    bits, and whether it multiplies no zeros of weights that have two in every four."""

    floats: Floats
    float8: bool = False
    sparse: bool = False


@dataclass(frozen=True)
class Specimen:
    """A file to be measured, with an input of batch 1. Files of one ``architecture`` share their shapes."""

    name: str
    architecture: str
    model: bytes
    example: npt.NDArray[Any]

    def batch_of(self, size: int) -> npt.NDArray[Any]:
        """An input of so many examples: noise, or the example's indices again and again."""
        repeated = np.repeat(self.example, size, axis=0)
        if not np.issubdtype(repeated.dtype, np.floating):
            return repeated
        noise: npt.NDArray[np.float64] = np.asarray(np.random.default_rng(0).standard_normal(repeated.shape))
        return noise.astype(np.float32)


@dataclass
class _Build:
    """A network being written: what it is written with, the random numbers of its shapes, and of its file's formats.

    ``turn`` counts the networks of its family before it; ``integers`` is the share of layers with 8 bits, ``split`` of
    those of truncated rank. ``others`` is the share of products of 8 bits that are not rounded on calibrated grids, but in the
    ``other`` way; ``sparse`` that of products of floats with two zeros in every four weights.
    """

    writer: NetworkWriter
    shapes: random.Random
    formats: random.Random
    turn: int
    integers: float
    other: str
    others: float
    split: float
    sparse: float

    def is_integer(self) -> bool:
        return self.formats.random() < self.integers

    def conv(self, x: Value, outputs: int, kernel: int, stride: int = 1, activation: str | None = None) -> Value:
        """A convolution, or the two of a truncated rank."""
        inputs, integers = x.shape[0], self.is_integer()
        pays = math.floor(inputs * outputs * kernel**2 / (inputs * kernel**2 + outputs))
        if pays < 4 or self.formats.random() >= self.split:
            return self.writer.conv(x, outputs, kernel, stride, integers=integers, activation=activation)
        middle = self.writer.conv(x, self.formats.randint(max(2, pays // 4), pays), kernel, stride, integers=integers)
        return self.writer.conv(middle, outputs, 1, integers=integers, activation=activation)

    def product(self, x: Value, outputs: int, bias: bool = True) -> Value:
        """A linear over a sequence, or the two of a truncated rank."""
        how = "float"
        if self.is_integer():
            how = self.other if self.formats.random() < self.others else "calibrated"
        elif self.sparse and self.formats.random() < self.sparse:
            how = "sparse"
        pays = math.floor(x.shape[1] * outputs / (x.shape[1] + outputs))
        if pays < 4 or self.formats.random() >= self.split:
            return self.writer.product(x, outputs, how, bias)
        middle = self.writer.product(x, self.formats.randint(max(2, pays // 4), pays), how, bias=False)
        return self.writer.product(middle, outputs, how, bias)

    def linear(self, x: Value, outputs: int, relu: bool = False) -> Value:
        return self.writer.linear(x, outputs, self.is_integer(), relu)


def family_of(network: int) -> str:
    """The family of a network, by its number."""
    return FAMILIES[network % len(FAMILIES)]


def network_number(name: str) -> int:
    """Of the network that a specimen is a plan of."""
    return int(name.rpartition("-")[2]) // FILES_PER_NETWORK


def network_writer(
    seed: int, narrow_products: bool, packages: Packages | None = None, stored: bool = False, zeros: Zeros | None = None
) -> NetworkWriter:
    """What writes a network as a file of a runtime.

    Args:
        narrow_products: of the machine, see :class:`autocomp.compress.quantize.Numerics`.
        packages: how torch packages are written; None for ONNX.
        stored, zeros: see :class:`autocomp.hardware.graph_writer.GraphWriter`.
    """
    if packages is None:
        return GraphWriter(seed, narrow_products, stored, zeros)
    from autocomp.hardware.package_writer import PackageWriter

    return PackageWriter(seed, packages.floats, stored, zeros, packages.sparse)


def network_files(
    seed: int,
    network: int,
    narrow_products: bool = False,
    rounds_at_run_time: bool = True,
    packages: Packages | None = None,
) -> tuple[Specimen, ...]:
    """The files of one network. Those of number ``n`` are the same in every process.

    Args:
        narrow_products: of the machine, see :class:`autocomp.compress.quantize.Numerics`.
        rounds_at_run_time: whether some products round what they read on a grid of the moment.
        packages: see :func:`network_writer`.
    """
    first = FILES_PER_NETWORK * network
    return tuple(
        _specimen(seed, number, narrow_products, rounds_at_run_time, packages)
        for number in range(first, first + FILES_PER_NETWORK)
    )


def _specimen(
    seed: int, number: int, narrow_products: bool, rounds_at_run_time: bool, packages: Packages | None
) -> Specimen:
    network, turn = divmod(number, FILES_PER_NETWORK)
    in_float8 = packages is not None and packages.float8
    shapes, formats = random.Random(f"{seed}/network/{network}"), random.Random(f"{seed}/file/{number}")
    # The first file of a network is in floats, the next two in integers, the last a mixture.
    integers = (0.0, 1.0 - formats.choice((0.0, 0.1, 0.3)), 1.0 - formats.choice((0.0, 0.1, 0.3)), 0.5)[turn]
    build = _Build(
        network_writer(number, narrow_products, packages),
        shapes,
        formats,
        network // len(FAMILIES),
        integers,
        other="float8" if in_float8 else "dynamic",
        others=(0.0, 0.0, 1.0, 0.7)[turn] if rounds_at_run_time or in_float8 else 0.0,
        split=formats.choice((0.0, 0.2, 0.5)),
        sparse=(0.0, 0.5, 0.5, 0.7)[turn] if packages is not None and packages.sparse else 0.0,
    )
    family = family_of(network)
    result, example = _encoder(build) if family == "encoder" else _FAMILIES[family](build)
    return Specimen(f"random-{seed}-{number}", f"random-{seed}/{network}", build.writer.finish(result), example)


def _depth(rng: random.Random, least: int, most: int) -> int:
    """A number of blocks, evenly drawn on a logarithmic scale."""
    return round(math.exp(rng.uniform(math.log(least), math.log(most))))


def _width(rng: random.Random, least: int, most: int, multiple: int = 4) -> int:
    """A width, evenly drawn on a logarithmic scale; a multiple of 4 or 8 mostly, but pruned layers have any."""
    value = math.exp(rng.uniform(math.log(least), math.log(most)))
    step = rng.choice((1, multiple, multiple, 2 * multiple))
    return max(least, round(value / step) * step)


def _image(build: _Build) -> tuple[Value, npt.NDArray[Any], float]:
    """An input image, and how many multiplications the network should make of it."""
    rng = build.shapes
    channels, side = rng.choice((1, 3, 3)), rng.choice((8, 14, 16, 20, 28, 32, 32, 48, 56, 64, 96))
    example = np.random.default_rng(0).standard_normal((1, channels, side, side)).astype(np.float32)
    return (
        build.writer.input((channels, side, side)),
        example,
        math.exp(rng.uniform(*map(math.log, (LEAST_MACS, MOST_MACS)))),
    )


def _stem(build: _Build, x: Value, macs: float, blocks: int, layers: int = 1) -> tuple[Value, int, list[int]]:
    """The first convolution; the width at which blocks of so many 3×3 convolutions take so many multiplications; and the
    blocks' strides."""
    rng = build.shapes
    large = x.shape[1] > 40
    kernel, stride = (rng.choice((3, 5, 7)), 2) if large else (3, rng.choice((1, 1, 2)))
    side = max(1, x.shape[1] // (stride * (2 if large else 1)))
    strides = _strides(rng, side, blocks)
    pixels = sum((side / math.prod(strides[: place + 1])) ** 2 for place in range(blocks))
    width = max(8, min(320, round(math.sqrt(macs / (9 * pixels * layers)) / 4) * 4))
    y = build.conv(x, max(8, min(64, width)), kernel, stride, rng.choice(("Relu", "HardSwish", "Relu")))
    return (build.writer.pool(y, "MaxPool", 3, 2) if large else y), width, strides


def _head(build: _Build, x: Value) -> Value:
    """From channels to classes, some by way of many more channels: weights that no cache near the core holds."""
    rng, writer = build.shapes, build.writer
    if rng.random() < 0.4:
        x = build.conv(x, _width(rng, 256, 1536, 8), 1, 1, "Relu")
    x = writer.pooled_vector(x) if rng.random() < 0.5 else writer.mean(x, (2, 3))
    if rng.random() < 0.4:
        x = build.linear(x, _width(rng, 32, 1024), relu=True)
    return build.linear(x, rng.choice((10, 100, 1000)))


def _wider(rng: random.Random, width: int) -> int:
    """The next stage's width."""
    return max(8, min(640, round(width * rng.choice((1, 1.25, 1.5, 2)))))


def _strides(rng: random.Random, side: int, blocks: int) -> list[int]:
    """Of every block; an image never falls below 4 pixels a side."""
    strides = []
    for place in range(blocks):
        stride = 2 if place and side >= 8 and rng.random() < 0.4 else 1
        side //= stride
        strides.append(stride)
    return strides


def _residual(build: _Build) -> tuple[Value, npt.NDArray[Any]]:
    """Basic and bottleneck blocks; some pruned within; shortcuts by a 1×1 convolution or option A."""
    rng, writer = build.shapes, build.writer
    x, example, macs = _image(build)
    y, width, strides = _stem(build, x, macs, _depth(rng, 2, 10), 2)
    bottleneck, option_a = rng.random() < 0.3, rng.random() < 0.3
    for stride in strides:
        outputs = y.shape[0] if stride == 1 and rng.random() < 0.8 else _wider(rng, max(width, y.shape[0]))
        middle = _width(rng, 8, max(9, outputs))
        inner = build.conv(y, middle, 1 if bottleneck else 3, 1 if bottleneck else stride, "Relu")
        if bottleneck:
            inner = build.conv(inner, middle, 3, stride, "Relu")
        inner = build.conv(inner, outputs, 1 if bottleneck else 3)
        if stride == 1 and outputs == y.shape[0]:
            short = y
        else:
            short = writer.shifted(y, outputs, stride) if option_a else build.conv(y, outputs, 1, stride)
        y = writer.add(inner, short, relu=True)
    return _head(build, y), example


def _plain(build: _Build) -> tuple[Value, npt.NDArray[Any]]:
    """Convolutions and pooling in a row, sometimes up again."""
    rng, writer = build.shapes, build.writer
    x, example, macs = _image(build)
    y, width, strides = _stem(build, x, macs, _depth(rng, 3, 10))
    for stride in strides:
        if stride == 2 and rng.random() < 0.6:
            y = writer.pool(y, rng.choice(("MaxPool", "MaxPool", "AveragePool")), *rng.choice(((2, 2), (3, 2), (2, 2))))
            stride = 1
        width = _width(rng, max(8, width // 2), 2 * width)
        y = build.conv(y, min(384, width), rng.choice((1, 3, 3, 3, 5)), stride, "Relu")
    if build.turn % 2 == 0:
        y = writer.activation(writer.transposed_conv(y, _width(rng, 8, 64)), "Relu")
    return _head(build, y), example


def _dense(build: _Build) -> tuple[Value, npt.NDArray[Any]]:
    """Blocks whose outputs are joined to their inputs, and branches joined to each other, of all channels or of half
    of them each."""
    rng, writer = build.shapes, build.writer
    x, example, macs = _image(build)
    y, width, strides = _stem(build, x, macs, _depth(rng, 3, 16))
    growth = max(8, min(64, width // 2))
    branches = build.turn % 3 == 0
    for stride in strides:
        if stride == 2:
            y = writer.pool(build.conv(y, max(8, y.shape[0] // 2), 1, 1, "Relu"), "AveragePool", 2, 2)
        if branches:
            a, b = writer.halves(y) if y.shape[0] % 2 == 0 and build.turn % 2 == 0 else (y, y)
            y = writer.joined(build.conv(a, growth, 1, 1, "Relu"), build.conv(b, growth, 3, 1, "Relu"))
        else:
            inner = writer.activation(writer.batch_norm(y), "Relu") if build.turn % 2 else y
            inner = build.conv(inner, 2 * growth, 1, 1, "Relu") if rng.random() < 0.5 else inner
            y = writer.joined(y, build.conv(inner, growth, 3, 1, "Relu"))
    return _head(build, y), example


def _inverted(build: _Build) -> tuple[Value, npt.NDArray[Any]]:
    """Inverted residual blocks: 1×1, depthwise or grouped, a gate or none, 1×1."""
    rng, writer = build.shapes, build.writer
    x, example, macs = _image(build)
    y, width, strides = _stem(build, x, macs, _depth(rng, 2, 16))
    act, gate, grouped = ("HardSwish", "Silu", "Clip", "Relu")[build.turn % 4], build.turn % 2 == 0, build.turn % 3 == 1
    for place, stride in enumerate(strides):
        width = min(320, width * stride)
        outputs = y.shape[0] if stride == 1 and rng.random() < 0.7 else _width(rng, max(8, width // 4), max(9, width))
        wide = 8 * max(1, round(y.shape[0] * rng.choice((2, 3, 4, 6)) / 8))
        if (build.turn + place) % 2 == 0:  # no whole vector blocks, as pruning leaves them
            wide -= 4 if grouped else rng.choice((1, 2, 3))
        groups = wide if not grouped else 4 if wide % 8 else wide // 8
        inner = build.conv(y, wide, 1, 1, act)
        kernel, integers = rng.choice((3, 3, 5)), build.is_integer()
        inner = writer.conv(inner, wide, kernel, stride, groups, integers, act)
        if gate:
            inner = writer.gated(inner, max(4, wide // 4), build.is_integer())
        inner = build.conv(inner, outputs, 1)
        y = writer.add(y, inner) if stride == 1 and outputs == y.shape[0] else inner
    return _head(build, y), example


def _encoder(build: _Build) -> tuple[Value, npt.NDArray[Any]]:
    """Embeddings, and transformer layers that normalize before or behind; heads and widths as pruning leaves them."""
    rng, writer = build.shapes, build.writer
    heads, size = rng.choice((2, 3, 4, 6, 8, 12)), rng.choice((16, 32, 32, 64))
    width = heads * size
    tokens = rng.choice((8, 16, 24, 37, 50, 64, 96, 128, 197))
    ids = writer.input((tokens,), integers=True)
    rows = rng.choice((500, 5000))
    x = writer.embedding(ids, rows, width, build.is_integer())
    first, whole = rng.random() < 0.5, build.formats.random() < 0.75
    for _ in range(_depth(rng, 1, 12)):
        kept, inner = rng.randint(max(1, heads // 3), heads), _width(rng, width, 4 * width)
        y = writer.norm(x) if first else x
        q, k, v = (build.product(y, kept * size) for _ in range(3))
        y = build.product(writer.attention(q, k, v, kept, whole), width)
        x = writer.add(x, y, before_norm=True)
        x = x if first else writer.norm(x)
        y = writer.norm(x) if first else x
        y = build.product(writer.activation(build.product(y, inner), "Gelu"), width)
        x = writer.add(x, y, before_norm=True)
        x = x if first else writer.norm(x)
    example = np.random.default_rng(0).integers(0, rows, (1, tokens))
    return build.linear(writer.mean(x, (1,)), 10), example


def _perceptron(build: _Build) -> tuple[Value, npt.NDArray[Any]]:
    """Linears over plain vectors."""
    rng = build.shapes
    inputs = rng.choice((64, 300, 784, 1536))
    example = np.random.default_rng(0).standard_normal((1, inputs)).astype(np.float32)
    x = build.writer.input((inputs,))
    for _ in range(rng.randint(2, 5)):
        x = build.linear(x, _width(rng, 32, 3072), relu=True)
    return build.linear(x, 10), example


_FAMILIES: dict[str, Callable[[_Build], tuple[Value, npt.NDArray[Any]]]] = {
    "residual": _residual,
    "plain": _plain,
    "dense": _dense,
    "inverted": _inverted,
    "encoder": _encoder,
    "perceptron": _perceptron,
}
