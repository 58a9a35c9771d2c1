"""Writes the networks of a calibration as torch packages: what :mod:`autocomp.hardware.graph_writer` writes as ONNX, in the
very form that :mod:`autocomp.export.to_torch` gives compressed networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.fx.node import Argument
from torch.nn import functional

from autocomp.compress.quantize import Floats
from autocomp.errors import RequestError
from autocomp.export.semi_structured import SparseLinear
from autocomp.export.to_torch import DTYPES, write_package
from autocomp.export.torch_layers import (
    Float8Levels,
    Float8Linear,
    FromLevels,
    IntegerLinear,
    IntegerTable,
    Levels,
    StoredWeight,
)
from autocomp.hardware.graph_writer import GRID_STEP, Value, Zeros
from autocomp.trace import Example

#: Says that a value is rounded: every grid of a calibration is the same.
GRID = ("grid", "0")


class PackageWriter:
    """A network under way: a traced module, one node an operation. See
    :class:`autocomp.hardware.graph_writer.NetworkWriter`."""

    def __init__(
        self, seed: int, floats: Floats, stored: bool = False, zeros: Zeros | None = None, sparse: bool = False
    ) -> None:
        self._random = torch.Generator().manual_seed(seed)
        self._floats, self._stored, self._zeros, self._sparse = DTYPES[floats], stored, zeros, sparse
        self._root, self._graph = nn.Module(), torch.fx.Graph()
        self._nodes: dict[str, torch.fx.Node] = {}
        #: Rounded value → its levels; they become floats again where something else reads them.
        self._levels: dict[str, torch.fx.Node] = {}
        self._rounded: dict[str, Value] = {}
        self._float8: dict[str, torch.fx.Node] = {}
        self._example: torch.Tensor | None = None

    # ---- the parts of a graph

    def input(self, shape: tuple[int, ...], integers: bool = False) -> Value:
        """The network's input, (batch, …), its batch left open."""
        self._nodes["x"] = self._graph.placeholder("x")
        self._example = torch.zeros(1, *shape, dtype=torch.int64 if integers else torch.float32)
        return Value("x", shape)

    def finish(self, result: Value) -> bytes:
        """The package, with ``result`` as its output."""
        self._graph.output(self._read(result))
        module = torch.fx.GraphModule(self._root, self._graph)
        module.graph.eliminate_dead_code()
        module.delete_all_unused_submodules()
        assert self._example is not None
        return write_package(module.eval(), Example((self._example,)), self._floats)

    def _add(self, node: torch.fx.Node, shape: tuple[int, ...], low: int = -1) -> Value:
        name = f"v{len(self._nodes)}"
        self._nodes[name] = node
        return Value(name, shape, low)

    def _call(self, function: Callable[..., object], *arguments: Argument) -> torch.fx.Node:
        return self._graph.call_function(function, arguments)

    def _module(self, module: nn.Module, *arguments: torch.fx.Node) -> torch.fx.Node:
        name = f"m{len(list(self._root.children()))}"
        self._root.add_module(name, module)
        return self._graph.call_module(name, arguments)

    def _parameter(self, values: torch.Tensor) -> torch.fx.Node:
        name = f"p{len(list(self._root.parameters()))}"
        self._root.register_parameter(name, nn.Parameter(values, requires_grad=False))
        return self._graph.get_attr(name)

    def _read(self, x: Value) -> torch.fx.Node:
        """A value as floats."""
        if x.name not in self._nodes:
            self._nodes[x.name] = self._module(FromLevels(GRID_STEP, 0, self._floats), self._levels[x.name])
        return self._nodes[x.name]

    # ---- rounding

    def rounded(self, x: Value) -> Value:
        """``x`` on a calibrated grid of 8 bits; what is on one already stays as it is."""
        if x.grid is not None:
            return x
        if x.name not in self._rounded:
            name = f"{x.name}.r"
            self._levels[name] = self._module(Levels(GRID_STEP, 0), self._read(x))
            self._rounded[x.name] = replace(x, name=name, grid=GRID)
        return self._rounded[x.name]

    def _integers(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randint(-127, 128, shape, generator=self._random, dtype=torch.int8)

    def _weight(self, shape: tuple[int, ...], fan_in: int, integers: bool, turned: bool = False) -> torch.fx.Node:
        """A weight of floats, or one stored in bytes. ``turned``: its outputs are the second dimension."""
        outputs = shape[1] if turned else shape[0]
        if integers or self._stored:
            scale = torch.full((shape[0],), self._step(fan_in))
            return self._module(StoredWeight(self._integers(shape), scale, 0, self._floats))
        weight = torch.randn(shape, generator=self._random) / math.sqrt(fan_in)
        if self._zeros is not None:
            rows = weight.transpose(0, 1) if turned else weight
            rows = rows.reshape(outputs, -1) * self._kept(outputs, weight.numel() // outputs, self._zeros)
            weight = rows.reshape(weight.transpose(0, 1).shape if turned else shape)
            weight = weight.transpose(0, 1).contiguous() if turned else weight
        return self._parameter(weight)

    def _kept(self, outputs: int, fan_in: int, zeros: Zeros) -> torch.Tensor:
        """The weights that are not zero; rows of fewer than four stay whole."""
        if zeros == "unstructured":
            return torch.rand((outputs, fan_in), generator=self._random) > 0.9
        kept, whole = torch.ones((outputs, fan_in), dtype=torch.bool), fan_in // 4 * 4
        order = torch.rand((outputs, whole // 4, 4), generator=self._random).argsort(dim=2)
        kept[:, :whole] = (order < 2).reshape(outputs, whole)
        return kept

    @staticmethod
    def _step(fan_in: int) -> float:
        """Between two levels of a weight, so that outputs are about as large as inputs."""
        return 1.7 / math.sqrt(fan_in) / 127

    def _bias(self, size: int) -> torch.Tensor:
        return 0.01 * torch.randn(size, generator=self._random)

    # ---- layers

    def conv(
        self,
        x: Value,
        outputs: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        integers: bool = False,
        activation: str | None = None,
    ) -> Value:
        """A convolution over (channels, height, width), padded by half its kernel, and the activation behind it."""
        channels, height, width = x.shape
        x = self.rounded(x) if integers else x
        shape = (outputs, channels // groups, kernel, kernel)
        weight = self._weight(shape, math.prod(shape[1:]), integers)
        pad = kernel // 2
        bias = self._parameter(self._bias(outputs))
        node = self._call(functional.conv2d, self._read(x), weight, bias, stride, pad, 1, groups)
        out = (height + 2 * pad - kernel) // stride + 1, (width + 2 * pad - kernel) // stride + 1
        y = self._add(node, (outputs, *out))
        return self.activation(y, activation) if activation is not None else y

    def transposed_conv(self, x: Value, outputs: int) -> Value:
        """Twice the height and width."""
        channels, height, width = x.shape
        weight = self._weight((channels, outputs, 2, 2), channels, integers=False, turned=True)
        return self._add(
            self._call(functional.conv_transpose2d, self._read(x), weight, None, 2), (outputs, 2 * height, 2 * width)
        )

    def linear(self, x: Value, outputs: int, integers: bool = False, relu: bool = False) -> Value:
        """A linear over plain vectors (features,)."""
        y = self._add(self._linear(x, outputs, integers, True), (outputs,))
        return self.activation(y, "Relu") if relu else y

    def product(self, x: Value, outputs: int, how: str, bias: bool = True) -> Value:
        """A linear over (tokens, features), or over vectors. ``how``: ``float``, ``calibrated`` (8 bits), ``float8``, or
        ``sparse`` (two zeros in every four weights, which are not multiplied).

        Raises:
            RequestError: ``dynamic``, for which torch has no kernel.
        """
        if how == "dynamic":
            raise RequestError("torch packages round on calibrated grids; got dynamic; leave it out")
        if how == "float8":
            return self._add(self._float8_linear(x, outputs, bias), (*x.shape[:-1], outputs))
        if how == "sparse":
            return self._add(self._sparse_linear(x, outputs, bias), (*x.shape[:-1], outputs))
        return self._add(self._linear(x, outputs, how == "calibrated", bias), (*x.shape[:-1], outputs))

    def _float8_linear(self, x: Value, outputs: int, bias: bool) -> torch.fx.Node:
        inputs = x.shape[-1]
        if x.name not in self._float8:
            self._float8[x.name] = self._module(Float8Levels(GRID_STEP, inputs), self._read(x))
        weight = torch.randn((outputs, inputs), generator=self._random).to(torch.float8_e4m3fn)
        scale = torch.full((outputs,), GRID_STEP / math.sqrt(inputs))
        linear = Float8Linear(weight, scale, self._bias(outputs) if bias else None, self._floats)
        return self._module(linear, self._float8[x.name])

    def _sparse_linear(self, x: Value, outputs: int, bias: bool) -> torch.fx.Node:
        inputs = x.shape[-1]
        weight = torch.randn((outputs, inputs), generator=self._random) / math.sqrt(inputs)
        weight *= self._kept(outputs, inputs, "2:4")
        rows = math.prod(x.shape[:-1])
        linear = SparseLinear(weight, self._bias(outputs) if bias else None, rows, self._floats)
        return self._module(linear, self._read(x))

    def _linear(self, x: Value, outputs: int, integers: bool, bias: bool) -> torch.fx.Node:
        inputs, shift = x.shape[-1], self._bias(outputs) if bias else None
        if not integers and self._sparse and self._zeros == "2:4":
            return self._sparse_linear(x, outputs, bias)
        if not integers:
            weight = self._weight((outputs, inputs), inputs, integers=False)
            return self._call(
                functional.linear, self._read(x), weight, None if shift is None else self._parameter(shift)
            )
        levels = self._levels[self.rounded(x).name]
        scale = torch.full((outputs,), GRID_STEP * self._step(inputs))
        rows = math.prod(x.shape[:-1])
        stored = self._integers((outputs, inputs))
        return self._module(IntegerLinear(stored, scale, shift, 0, rows, self._floats), levels)

    def activation(self, x: Value, op: str) -> Value:
        """``Relu``, ``HardSwish``, ``Gelu``, ``Sigmoid``, ``Clip`` (at 6) or ``Silu``."""
        function: dict[str, Callable[..., object]] = {
            "Relu": functional.relu,
            "HardSwish": functional.hardswish,
            "Gelu": functional.gelu,
            "Sigmoid": torch.sigmoid,
            "Clip": functional.relu6,
            "Silu": functional.silu,
        }
        node = self._call(function[op], self._read(x))
        return self._add(node, x.shape, low=0 if op in {"Relu", "Clip"} else -1)

    def add(self, a: Value, b: Value, relu: bool = False, before_norm: bool = False) -> Value:  # noqa: ARG002
        """The sum of two, which in torch is the same wherever it stands."""
        y = self._add(self._call(torch.add, self._read(a), self._read(b)), a.shape)
        return self.activation(y, "Relu") if relu else y

    def joined(self, a: Value, b: Value) -> Value:
        """Channels of both."""
        shape = (a.shape[0] + b.shape[0], *a.shape[1:])
        return self._add(self._call(torch.cat, [self._read(a), self._read(b)], 1), shape)

    def gated(self, x: Value, squeezed: int, integers: bool) -> Value:
        """Squeeze and excitation."""
        mean = self._add(self._call(torch.mean, self._read(x), (2, 3), True), (x.shape[0], 1, 1))
        gate = self.conv(mean, squeezed, 1, integers=integers, activation="Relu")
        gate = self.activation(self.conv(gate, x.shape[0], 1, integers=integers), "Sigmoid")
        return self._add(self._call(torch.mul, self._read(x), self._read(gate)), x.shape)

    def pool(self, x: Value, op: str, kernel: int, stride: int) -> Value:
        """``MaxPool`` or ``AveragePool``."""
        pad = kernel // 2 if stride < kernel else 0
        function = functional.max_pool2d if op == "MaxPool" else functional.avg_pool2d
        side = [(size + 2 * pad - kernel) // stride + 1 for size in x.shape[1:]]
        return self._add(self._call(function, self._read(x), kernel, stride, pad), (x.shape[0], *side), x.low)

    def mean(self, x: Value, axes: Sequence[int]) -> Value:
        """The mean over some axes, which go; the batch is axis 0."""
        shape = tuple(size for axis, size in enumerate(x.shape, 1) if axis not in axes)
        return self._add(self._call(torch.mean, self._read(x), tuple(axes)), shape, x.low)

    def pooled_vector(self, x: Value) -> Value:
        """The mean of each channel, as a vector."""
        mean = self._call(functional.adaptive_avg_pool2d, self._read(x), 1)
        return self._add(self._call(torch.flatten, mean, 1), x.shape[:1], x.low)

    def halves(self, x: Value) -> tuple[Value, Value]:
        """The first and the second half of the channels (their number is even)."""
        half, source = x.shape[0] // 2, self._read(x)
        first, second = (self._call(torch.narrow, source, 1, start, half) for start in (0, half))
        shape = (half, *x.shape[1:])
        return self._add(first, shape, x.low), self._add(second, shape, x.low)

    def shifted(self, x: Value, outputs: int, stride: int) -> Value:
        """The shortcut of option A (He et al., 2016): every ``stride``-th pixel, and channels of zeros on both sides."""
        more = outputs - x.shape[0]
        node = self._call(_every, self._read(x), stride)
        node = self._call(functional.pad, node, (0, 0, 0, 0, more // 2, more - more // 2))
        return self._add(node, (outputs, *(-(-size // stride) for size in x.shape[1:])))

    def embedding(self, ids: Value, rows: int, width: int, integers: bool) -> Value:
        """Rows of a table of floats, or of one of 8-bit levels with a scale for each."""
        shape, source = (*ids.shape, width), self._read(ids)
        if integers:
            table = IntegerTable(self._integers((rows, width)), torch.full((rows,), 0.02), self._floats)
            return self._add(self._module(table, source), shape)
        weight = self._parameter(torch.randn((rows, width), generator=self._random))
        return self._add(self._call(functional.embedding, source, weight), shape)

    def norm(self, x: Value) -> Value:
        """Layer norm over the last axis."""
        size = x.shape[-1]
        parts = [self._parameter(torch.ones(size)), self._parameter(torch.zeros(size))]
        return self._add(self._call(functional.layer_norm, self._read(x), (size,), *parts), x.shape)

    def batch_norm(self, x: Value) -> Value:
        """One that stands before its layer, and so is not folded into one."""
        return self._add(self._module(nn.BatchNorm2d(x.shape[0]).eval().to(self._floats), self._read(x)), x.shape)

    def attention(self, query: Value, key: Value, value: Value, heads: int, whole: bool) -> Value:
        """Scaled dot-product attention of (tokens, heads · width) each.

        Args:
            whole: as one operator; else as products and a softmax.
        """
        tokens, features = query.shape
        parts = [self._call(_by_heads, self._read(one), heads) for one in (query, key, value)]
        function = functional.scaled_dot_product_attention if whole else _written_out
        return self._add(self._call(_joined_heads, self._call(function, *parts)), (tokens, features))


def _every(x: torch.Tensor, stride: int) -> torch.Tensor:
    return x[:, :, ::stride, ::stride]


def _by_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(batch, tokens, heads · width) → (batch, heads, tokens, width)."""
    return x.reshape(*x.shape[:2], heads, x.shape[2] // heads).transpose(1, 2)


def _joined_heads(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, 2).flatten(2)


def _written_out(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    scores: torch.Tensor = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)
    return scores.softmax(dim=-1) @ value
