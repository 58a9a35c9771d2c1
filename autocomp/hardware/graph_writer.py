"""Writes an ONNX graph layer by layer, in the very form that :mod:`autocomp.export` gives compressed networks, without
a model behind it: calibration needs thousands of kernels, and tracing a model costs more than timing it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper, numpy_helper

from autocomp.export.opsets import required_ir_version

#: What a file declares; attention as one operator came with opset 23, whose convolutions onnxruntime does not fuse.
OPSET, ATTENTION_OPSET = 21, 23


#: Where weights are zero: nine in ten, anywhere; or two of four in a row.
Zeros = Literal["unstructured", "2:4"]
PATTERNS_OF_ZEROS: tuple[Zeros, ...] = ("unstructured", "2:4")

#: Between two levels of every rounded activation.
GRID_STEP = 0.02


@dataclass(frozen=True)
class Value:
    """A tensor of the graph. ``shape`` leaves the batch out; ``low`` is 0 where no value is negative; ``grid`` names
    the scale and zero point that it was rounded on, if it was."""

    name: str
    shape: tuple[int, ...]
    low: int = -1
    grid: tuple[str, str] | None = None


class NetworkWriter(Protocol):
    """Writes one network of a calibration, layer by layer; see :class:`GraphWriter` for what each method adds."""

    def input(self, shape: tuple[int, ...], integers: bool = False) -> Value: ...

    def finish(self, result: Value) -> bytes: ...

    def conv(
        self,
        x: Value,
        outputs: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        integers: bool = False,
        activation: str | None = None,
    ) -> Value: ...

    def transposed_conv(self, x: Value, outputs: int) -> Value: ...

    def linear(self, x: Value, outputs: int, integers: bool = False, relu: bool = False) -> Value: ...

    def product(self, x: Value, outputs: int, how: str, bias: bool = True) -> Value: ...

    def activation(self, x: Value, op: str) -> Value: ...

    def add(self, a: Value, b: Value, relu: bool = False, before_norm: bool = False) -> Value: ...

    def joined(self, a: Value, b: Value) -> Value: ...

    def gated(self, x: Value, squeezed: int, integers: bool) -> Value: ...

    def pool(self, x: Value, op: str, kernel: int, stride: int) -> Value: ...

    def mean(self, x: Value, axes: Sequence[int]) -> Value: ...

    def pooled_vector(self, x: Value) -> Value: ...

    def halves(self, x: Value) -> tuple[Value, Value]: ...

    def shifted(self, x: Value, outputs: int, stride: int) -> Value: ...

    def embedding(self, ids: Value, rows: int, width: int, integers: bool) -> Value: ...

    def norm(self, x: Value) -> Value: ...

    def batch_norm(self, x: Value) -> Value: ...

    def attention(self, query: Value, key: Value, value: Value, heads: int, whole: bool) -> Value: ...


class GraphWriter:
    """A graph under way, as ONNX. Weights are random; what matters is their shape and how they are stored: with ``stored``, in
    bytes even where they are computed in floats; with ``zeros``, some of the floats are."""

    def __init__(self, seed: int, narrow_products: bool, stored: bool = False, zeros: Zeros | None = None) -> None:
        self._stored, self._zeros = stored, zeros
        self._random = np.random.default_rng(seed)
        self._largest = 63 if narrow_products else 127
        self._nodes: list[Any] = []
        self._initializers: list[Any] = []
        self._inputs: list[Any] = []
        self._rounded: dict[str, Value] = {}
        self._dynamic: dict[str, tuple[str, str, str]] = {}
        self._sizes: dict[tuple[int, ...], str] = {}
        self._count = 0

    # ---- the parts of a graph

    def input(self, shape: tuple[int, ...], integers: bool = False) -> Value:
        """The graph's input, (batch, …), its batch left open."""
        kind = TensorProto.INT64 if integers else TensorProto.FLOAT
        self._inputs.append(helper.make_tensor_value_info("x", kind, ["batch", *shape]))
        return Value("x", shape)

    def node(self, op: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> str:
        """Adds a node; the name of its first output (the others have a number behind it)."""
        name = self._name()
        names = [name, *(f"{name}.{number}" for number in range(1, outputs))]
        self._nodes.append(helper.make_node(op, list(inputs), names, **attributes))
        return name

    def constant(self, array: npt.NDArray[Any]) -> str:
        name = self._name()
        self._initializers.append(numpy_helper.from_array(np.array(array, order="C"), name))
        return name

    def finish(self, result: Value) -> bytes:
        """The file, with ``result`` as its output."""
        self._nodes.append(helper.make_node("Identity", [result.name], ["y"]))
        output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", *result.shape])
        graph = helper.make_graph(self._nodes, "g", self._inputs, [output], self._initializers)
        opset = ATTENTION_OPSET if any(node.op_type == "Attention" for node in self._nodes) else OPSET
        # As old as it may be: boards have old runtimes.
        ir_version = required_ir_version(opset)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
        return bytes(model.SerializeToString())

    def _name(self) -> str:
        self._count += 1
        return f"t{self._count}"

    def _scalar(self, value: float | int, dtype: Any) -> str:
        return self.constant(np.array(value, dtype))

    # ---- rounding

    def rounded(self, x: Value) -> Value:
        """``x`` on a calibrated grid of 8 bits; what is on one already stays as it is."""
        if x.grid is not None:
            return x
        if x.name not in self._rounded:
            grid = self._scalar(GRID_STEP, np.float32), self._scalar(0 if x.low == 0 else 128, np.uint8)
            self._rounded[x.name] = self._on_grid(x, grid)
        return self._rounded[x.name]

    def _on_grid(self, x: Value, grid: tuple[str, str]) -> Value:
        levels = self.node("QuantizeLinear", [x.name, *grid], axis=1)
        return Value(self.node("DequantizeLinear", [levels, *grid], axis=1), x.shape, x.low, grid)

    def _levels(self, shape: tuple[int, ...]) -> npt.NDArray[np.int8]:
        return self._random.integers(-self._largest, self._largest + 1, shape).astype(np.int8)

    def _weight(self, shape: tuple[int, ...], fan_in: int, integers: bool, axis: int = 0) -> str:
        if not (integers or self._stored):
            weight = self._random.standard_normal(shape) / math.sqrt(fan_in)
            if self._zeros is not None:
                weight *= self._kept(shape, axis)
            return self.constant(weight.astype(np.float32))
        scale = np.full(shape[axis], self._step(fan_in), np.float32)
        zero = self.constant(np.zeros(shape[axis], np.int8))
        return self.node(
            "DequantizeLinear", [self.constant(self._levels(shape)), self.constant(scale), zero], axis=axis
        )

    def _kept(self, shape: tuple[int, ...], axis: int) -> npt.NDArray[np.bool_]:
        """The weights that are not zero; ``axis`` is that of the outputs, and rows of fewer than four stay whole."""
        outputs = shape[axis]
        fan_in = math.prod(shape) // outputs
        kept = np.ones((outputs, fan_in), bool)
        if self._zeros == "unstructured":
            kept = self._random.random(kept.shape) > 0.9
        elif self._zeros == "2:4":
            whole = fan_in // 4 * 4
            order = self._random.random((outputs, whole // 4, 4)).argsort(axis=2)
            kept[:, :whole] = (order < 2).reshape(outputs, whole)
        inputs = (size for place, size in enumerate(shape) if place != axis)
        return np.moveaxis(kept.reshape(outputs, *inputs), 0, axis)

    def _step(self, fan_in: int) -> np.float32:
        """Between two levels of a weight, so that outputs are about as large as inputs."""
        return np.float32(1.7 / math.sqrt(fan_in) / self._largest)

    def _bias(self, size: int, fan_in: int = 1, integers: bool = False) -> str:
        if not integers:
            return self.constant(0.01 * self._random.standard_normal(size).astype(np.float32))
        # onnxruntime only computes in integers where the bias counts in steps of the accumulator.
        steps = np.full(size, np.float32(GRID_STEP) * self._step(fan_in), np.float32)
        levels = self._random.integers(-999, 999, size).astype(np.int32)
        return self.node("DequantizeLinear", [self.constant(levels), self.constant(steps)], axis=0)

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
        fan_in = math.prod(shape[1:])
        weight = self._weight(shape, fan_in, integers)
        name = self.node(
            "Conv",
            [x.name, weight, self._bias(outputs, fan_in, integers)],
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[kernel // 2] * 4,
            group=groups,
        )
        out = (height + 2 * (kernel // 2) - kernel) // stride + 1, (width + 2 * (kernel // 2) - kernel) // stride + 1
        y = Value(name, (outputs, *out))
        if integers and activation not in (None, "Relu"):
            y = self.rounded(y)
        if activation is not None:
            y = self.activation(y, activation)
        return self.rounded(y) if integers else y

    def transposed_conv(self, x: Value, outputs: int) -> Value:
        """Twice the height and width."""
        channels, height, width = x.shape
        weight = self._weight((channels, outputs, 2, 2), channels, integers=False)
        name = self.node("ConvTranspose", [x.name, weight], kernel_shape=[2, 2], strides=[2, 2])
        return Value(name, (outputs, 2 * height, 2 * width))

    def linear(self, x: Value, outputs: int, integers: bool = False, relu: bool = False) -> Value:
        """A linear over plain vectors (features,)."""
        x = self.rounded(x) if integers else x
        weight = self._weight((outputs, x.shape[0]), x.shape[0], integers)
        y = Value(self.node("Gemm", [x.name, weight, self._bias(outputs, x.shape[0], integers)], transB=1), (outputs,))
        y = self.activation(y, "Relu") if relu else y
        return self.rounded(y) if integers else y

    def product(self, x: Value, outputs: int, how: str, bias: bool = True) -> Value:
        """A linear over (tokens, features). ``how``: ``float``, ``calibrated`` (8 bits) or ``dynamic``."""
        tokens, features = x.shape
        if how == "dynamic":
            name = self._dynamic_product(x, (features, outputs))
        else:
            x = self.rounded(x) if how == "calibrated" else x
            weight = self._weight((features, outputs), features, how == "calibrated", axis=1)
            name = self.node("MatMul", [x.name, weight])
        if bias:
            name = self.node("Add", [name, self._bias(outputs)])
        return Value(name, (tokens, outputs))

    def _dynamic_product(self, x: Value, shape: tuple[int, int]) -> str:
        if x.name not in self._dynamic:
            levels = self.node("DynamicQuantizeLinear", [x.name], outputs=3)
            self._dynamic[x.name] = (levels, f"{levels}.1", f"{levels}.2")
        levels, scale, zero = self._dynamic[x.name]
        whole = self.node("MatMulInteger", [levels, self.constant(self._levels(shape)), zero])
        steps = self.constant(np.full(shape[1], self._step(shape[0]), np.float32))
        product = self.node("Mul", [scale, steps])
        return self.node("Mul", [self.node("Cast", [whole], to=TensorProto.FLOAT), product])

    def activation(self, x: Value, op: str) -> Value:
        """``Relu``, ``HardSwish``, ``Gelu``, ``Sigmoid``, ``Clip`` (at 6) or ``Silu`` (x · sigmoid(x))."""
        if op == "Silu":
            return Value(self.node("Mul", [x.name, self.node("Sigmoid", [x.name])]), x.shape)
        more = [self._scalar(0, np.float32), self._scalar(6, np.float32)] if op == "Clip" else []
        return Value(self.node(op, [x.name, *more]), x.shape, low=0 if op in {"Relu", "Clip"} else -1)

    def add(self, a: Value, b: Value, relu: bool = False, before_norm: bool = False) -> Value:
        """The sum of two; on a grid where both are."""
        y = Value(self.node("Sum" if before_norm else "Add", [a.name, b.name]), a.shape)
        y = self.activation(y, "Relu") if relu else y
        return self.rounded(y) if a.grid and b.grid else y

    def joined(self, a: Value, b: Value) -> Value:
        """Channels of both."""
        name = self.node("Concat", [a.name, b.name], axis=1)
        return Value(name, (a.shape[0] + b.shape[0], *a.shape[1:]), max(a.low, b.low) if a.low == b.low else -1)

    def gated(self, x: Value, squeezed: int, integers: bool) -> Value:
        """Squeeze and excitation."""
        mean = self.node("ReduceMean", [x.name, self.constant(np.array([2, 3]))], keepdims=1)
        gate = self.conv(Value(mean, (x.shape[0], 1, 1)), squeezed, 1, integers=integers, activation="Relu")
        gate = self.activation(self.conv(gate, x.shape[0], 1, integers=integers), "Sigmoid")
        return Value(self.node("Mul", [x.name, gate.name]), x.shape)

    def pool(self, x: Value, op: str, kernel: int, stride: int) -> Value:
        """``MaxPool`` or ``AveragePool``."""
        pad = kernel // 2 if stride < kernel else 0
        name = self.node(op, [x.name], kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4)
        side = [(size + 2 * pad - kernel) // stride + 1 for size in x.shape[1:]]
        y = Value(name, (x.shape[0], *side), x.low)
        return self._on_grid(y, x.grid) if op == "MaxPool" and x.grid else y  # a maximum lies on its input's grid

    def mean(self, x: Value, axes: Sequence[int]) -> Value:
        """The mean over some axes, which go; the batch is axis 0."""
        name = self.node("ReduceMean", [x.name, self.constant(np.array(axes))], keepdims=0)
        return Value(name, tuple(size for axis, size in enumerate(x.shape, 1) if axis not in axes), x.low)

    def pooled_vector(self, x: Value) -> Value:
        """The mean of each channel, as a vector."""
        name = self.node("ReduceMean", [x.name, self.constant(np.array([2, 3]))], keepdims=1)
        return Value(self.node("Flatten", [name], axis=1), x.shape[:1], x.low)

    def halves(self, x: Value) -> tuple[Value, Value]:
        """The first and the second half of the channels (their number is even)."""
        half = x.shape[0] // 2
        name = self.node("Split", [x.name], outputs=2, axis=1, num_outputs=2)
        first = Value(name, (half, *x.shape[1:]), x.low)
        return first, replace(first, name=f"{name}.1")

    def shifted(self, x: Value, outputs: int, stride: int) -> Value:
        """The shortcut of option A (He et al., 2016): every ``stride``-th pixel, and channels of zeros on both sides."""
        ends = [self.constant(np.array(v)) for v in ([0, 0], [2**31, 2**31], [2, 3], [stride, stride])]
        cut = self.node("Slice", [x.name, *ends])
        more = outputs - x.shape[0]
        pads = [0, more // 2, 0, 0, 0, more - more // 2, 0, 0]
        name = self.node("Pad", [cut, self.constant(np.array(pads)), self._scalar(0, np.float32)], mode="constant")
        return Value(name, (outputs, *(-(-size // stride) for size in x.shape[1:])))

    def embedding(self, ids: Value, rows: int, width: int, integers: bool) -> Value:
        """Rows of a table of floats, or of one of 8-bit levels with a scale for each."""
        shape = (*ids.shape, width)
        if not integers:
            table = self.constant(self._random.standard_normal((rows, width)).astype(np.float32))
            return Value(self.node("Gather", [table, ids.name], axis=0), shape)
        levels = self.node("Gather", [self.constant(self._levels((rows, width))), ids.name], axis=0)
        scales = self.node("Gather", [self.constant(np.full((rows, 1), 0.02, np.float32)), ids.name], axis=0)
        return Value(self.node("Mul", [self.node("Cast", [levels], to=TensorProto.FLOAT), scales]), shape)

    def norm(self, x: Value) -> Value:
        """Layer norm over the last axis."""
        parts = [self.constant(np.ones(x.shape[-1], np.float32)), self.constant(np.zeros(x.shape[-1], np.float32))]
        return Value(self.node("LayerNormalization", [x.name, *parts], axis=-1), x.shape)

    def batch_norm(self, x: Value) -> Value:
        """One that stands before its layer, and so is not folded into one."""
        ones, zeros = np.ones(x.shape[0], np.float32), np.zeros(x.shape[0], np.float32)
        parts = [self.constant(array) for array in (ones, zeros, zeros, ones)]
        return Value(self.node("BatchNormalization", [x.name, *parts]), x.shape)

    def attention(self, query: Value, key: Value, value: Value, heads: int, whole: bool) -> Value:
        """Scaled dot-product attention of (tokens, heads · width) each.

        Args:
            whole: as one operator; else as products and a softmax, as files with weights of 2 bits have it.
        """
        tokens, features = query.shape
        width = features // heads
        q, k, v = (self._by_heads(one, heads) for one in (query, key, value))
        if whole:
            mixed = self.node("Attention", [q, k, v])
        else:
            scale = self.constant(np.array(width**-0.25, np.float32))
            turned = self.node("Transpose", [k], perm=[0, 1, 3, 2])
            scores = self.node("MatMul", [self.node("Mul", [q, scale]), self.node("Mul", [turned, scale])])
            mixed = self.node("MatMul", [self.node("Softmax", [scores], axis=-1), v])
        back = self.node("Transpose", [mixed], perm=[0, 2, 1, 3])
        return Value(self._reshaped(back, features), (tokens, features))

    def _by_heads(self, x: Value, heads: int) -> str:
        return self.node("Transpose", [self._reshaped(x.name, heads, x.shape[1] // heads)], perm=[0, 2, 1, 3])

    def _reshaped(self, name: str, *last: int) -> str:
        """(batch, tokens, …) with new last axes; batch and tokens are read off the input, as torch.onnx has it."""
        for axis in (0, 1):
            if (axis,) not in self._sizes:
                self._sizes[axis,] = self.node("Shape", ["x"], start=axis, end=axis + 1)
        if last not in self._sizes:
            sizes = [self.constant(np.array([size])) for size in last]
            self._sizes[last] = self.node("Concat", [self._sizes[0,], self._sizes[1,], *sizes], axis=0)
        return self.node("Reshape", [name, self._sizes[last]], allowzero=1)
