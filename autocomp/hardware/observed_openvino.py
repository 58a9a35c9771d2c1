"""A node of openvino's compiled graph as the kernel that lowering would have predicted for it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from autocomp.hardware.fitted import KernelSample, timed_kernels
from autocomp.hardware.kernels import CURVED, MOVES, ROW_BY_ROW, Kernel, convolution

Shape = tuple[int, ...]


@dataclass(frozen=True)
class CompiledNode:
    """One node that openvino executes: its ``kind`` and ``primitive`` in openvino's words, the layers of the file that
    it came from and their kinds (empty for one that openvino put in), the dtype and layout of its first result and first
    input (letters in the order in which the dimensions lie in memory: ``abcd`` is channels first, ``acdb`` channels last),
    all shapes as the file has them, and the mean of the lower half of its times."""

    kind: str
    name: str
    sources: tuple[str, ...]
    source_kinds: tuple[str, ...]
    primitive: str
    dtype: str
    layout: str
    input_dtype: str
    input_layout: str
    input_shapes: tuple[Shape, ...]
    output_shapes: tuple[Shape, ...]
    time_us: float


#: openvino's kinds of nodes → lowering's kinds of kernel, of those that are told by it alone.
KINDS = {
    "MVN": "layer_norm",
    "Softmax": "softmax",
    "Transpose": "transpose",
    "Pooling": "pool",
    "Reduce": "reduce",
    "Pad": "pad",
    "StridedSlice": "slice",
    "Concatenation": "cat",
    "Split": "move",
    "Broadcast": "move",
    "Tile": "move",
    "Interpolate": "move",
    "Gather": "gather",
    "GatherND": "gather",
    "GatherElements": "gather",
    "Eltwise": "elementwise",
    "Convert": "convert",
    "Subgraph": "elementwise",
    "FakeQuantize": "elementwise",
    "Math": "elementwise",
}
#: Layers of a file that take every value through an exponential or the like.
_CURVES = {"Sigmoid", "Swish", "Tanh", "Gelu", "Elu", "Exp", "SoftPlus", "Mish", "Erf"}
_INTEGERS = {"u8", "i8"}


def kernel_of(node: CompiledNode) -> Kernel:
    """The kernel behind a node. One that lowering never predicts keeps openvino's name."""
    out = math.prod(node.output_shapes[0]) if node.output_shapes else 0
    if node.kind in {"Convolution", "Deconvolution"}:
        return _convolution(node, out)
    if node.kind == "FullyConnected":
        weights = math.prod(node.input_shapes[1])
        rows = math.prod(node.output_shapes[0][:-1])
        op = f"linear{_integer(node)}"
        # A product of floats with something fused into it is another kernel, of another library.
        if not _integer(node) and "mlas" not in node.primitive and "bf16" not in node.primitive:
            op = "linear_fused"
        op += _curved(node)
        return Kernel(op, (node.name,), rows * weights, math.prod(node.input_shapes[0]), out, weights)
    if node.kind == "MatMul" or _is_attention(node):
        read = sum(math.prod(shape) for shape in node.input_shapes)
        depth = node.input_shapes[0][-1]
        if node.kind == "MatMul":
            return Kernel("matmul", (node.name,), out * depth, read, out, inner=node.output_shapes[0][-1])
        tokens = node.input_shapes[1][-1]
        return Kernel("attention", (node.name,), 2 * out * tokens, read, out, inner=node.output_shapes[0][-1])
    if node.kind == "Subgraph" and (layers := _perceptron(node)):
        return _joined_products(node, layers, out)
    if node.kind == "Reorder":
        turned = node.layout != node.input_layout and node.layout != "a"
        op = "reorder" if turned else _conversion(node)
        return Kernel(op, (node.name,), in_elements=out, out_elements=out)
    kind = KINDS.get(node.kind)
    if kind is None or not node.input_shapes:
        return Kernel(f"openvino.{node.kind}", (node.name,), in_elements=out, out_elements=out)
    if kind in MOVES or kind == "cat":
        moved = sum(math.prod(shape) for shape in node.output_shapes)
        return Kernel(kind, (node.name,), in_elements=moved, out_elements=moved)
    if kind in {"elementwise", "convert"}:
        read = sum(math.prod(shape) for shape in node.input_shapes)
        return Kernel(_conversion(node) + _curved(node), (node.name,), in_elements=read, out_elements=out)
    read = math.prod(node.input_shapes[0])
    inner = node.output_shapes[0][-1] if kind in ROW_BY_ROW and node.output_shapes[0] else 1
    if kind == "pool":
        return _pool(node, read, out)
    if kind == "reduce" and len(node.input_shapes[0]) == 4:
        kind, inner = "global_pool", 1
    return Kernel(kind, (node.name,), in_elements=read, out_elements=out, inner=inner)


def _integer(node: CompiledNode) -> str:
    return "_int8" if node.input_dtype in _INTEGERS else ""


def _curved(node: CompiledNode) -> str:
    return "" if _CURVES.isdisjoint(node.source_kinds) else CURVED


def _is_attention(node: CompiledNode) -> bool:
    return node.kind == "Subgraph" and any(name.startswith(("ScaledDotProduct", "Softmax")) for name in node.sources)


def _perceptron(node: CompiledNode) -> tuple[Shape, ...]:
    """The weights of the products that a kernel computes one after the other, as where openvino has AVX-512; none where it
    computes no products."""
    width, layers = node.input_shapes[0][-1:], []
    for shape in node.input_shapes[1:]:
        if len(shape) == 2 and shape[1:] == width and min(shape) > 1:
            layers.append(shape)
            width = shape[:1]
    return tuple(layers) if width == node.output_shapes[0][-1:] else ()


def _joined_products(node: CompiledNode, layers: tuple[Shape, ...], out: int) -> Kernel:
    weights = sum(map(math.prod, layers))
    integers = any("Dequantization" in source for source in node.sources)
    return Kernel(
        "perceptron_int8" if integers else "perceptron",
        (node.name,),
        macs=math.prod(node.output_shapes[0][:-1]) * weights,
        in_elements=math.prod(node.input_shapes[0]),
        out_elements=out,
        weight_elements=weights,
        inner=len(layers),
    )


def _conversion(node: CompiledNode) -> str:
    """Elementwise work is one kernel with the conversion at its end or beginning."""
    before, after = node.input_dtype in _INTEGERS, node.dtype in _INTEGERS
    return "quantize" if after and not before else "dequantize" if before and not after else "elementwise"


def _convolution(node: CompiledNode, out: int) -> Kernel:
    weight = node.input_shapes[1]
    groups, weight = (weight[0], weight[1:]) if len(weight) == 5 else (1, weight)
    op = ("conv" if node.kind == "Convolution" else "conv_transpose") + _integer(node)
    counted = out if node.kind == "Convolution" else math.prod(node.input_shapes[0])
    return Kernel(
        convolution(op, groups, weight[1]) + _curved(node),
        (node.name,),
        macs=counted * math.prod(weight[1:]),
        in_elements=math.prod(node.input_shapes[0]),
        out_elements=out,
        weight_elements=groups * math.prod(weight),
        kernel_area=math.prod(weight[2:]),
        stride=_stride(node),
        groups=groups,
        fused_add=node.output_shapes[0] in node.input_shapes[2:],
    )


def _pool(node: CompiledNode, read: int, out: int) -> Kernel:
    stride = _stride(node)
    op = "pool_int8" if node.input_dtype in _INTEGERS else "pool"
    return Kernel(op, (node.name,), in_elements=read, out_elements=out, stride=stride)


def _stride(node: CompiledNode) -> int:
    """Of a window, as far as the sizes of the images tell."""
    before, after = node.input_shapes[0][-1], node.output_shapes[0][-1]
    return max(1, round(max(before, after) / max(1, min(before, after))))


def samples_of(nodes: Iterable[CompiledNode]) -> tuple[KernelSample, ...]:
    """The kernels of a profiled file with their times, the profiler's own cost included."""
    ran = tuple(nodes)
    return timed_kernels(map(kernel_of, ran), (node.time_us for node in ran))
