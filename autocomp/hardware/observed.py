"""A profiled node as the kernel that lowering would have predicted for it, so that one model learns from both."""

from __future__ import annotations

import math
from collections.abc import Iterable

from autocomp.hardware.fitted import KernelSample, timed_kernels
from autocomp.hardware.kernels import CURVED, MOVES, ROW_BY_ROW, Kernel, convolution, spread
from autocomp.hardware.runtimes.profiled import NodeTime

#: onnxruntime's operators → lowering's kinds of kernel. Blocked convolutions are told apart by their domain.
KINDS = {
    "Conv": "conv",
    "FusedConv": "conv",
    "QLinearConv": "qlinear_conv",
    "Gemm": "gemm",
    "FusedGemm": "gemm",
    "QGemm": "qgemm",
    "Add": "add",
    "QLinearAdd": "qlinear_add",
    "Relu": "activation",
    "Clip": "activation",
    "QuantizeLinear": "quantize",
    "DequantizeLinear": "dequantize",
    "Transpose": "transpose",
    "ReorderInput": "reorder_input",
    "ReorderOutput": "reorder_output",
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalMaxPool"), "pool"),
    "NhwcMaxPool": "pool_nhwc",
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2", "GlobalAveragePool"), "reduce"),
    "Sum": "add",
    "MatMul": "matmul",
    "FusedMatMul": "matmul",
    "MatMulIntegerToFloat": "matmul_integer",
    "QLinearMatMul": "qlinear_matmul",
    "DynamicQuantizeMatMul": "dynamic_matmul",
    "DynamicQuantizeLinear": "dynamic_quantize",
    "Attention": "attention",
    "LayerNormalization": "layer_norm",
    "BatchNormalization": "batch_norm",
    "Softmax": "softmax",
    "Gelu": "gelu",
    "BiasGelu": "gelu",
    "QuickGelu": "quick_gelu",
    "ConvTranspose": "conv_transpose",
    **dict.fromkeys(("Mul", "Sub", "Div", "HardSwish", "HardSigmoid", "Where", "Cast", "LeakyRelu"), "elementwise"),
    **dict.fromkeys(("PRelu", "Equal", "Not", "And", "IsNaN", "Max", "Min", "Abs", "Neg", "Range"), "elementwise"),
    **dict.fromkeys(("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Or"), "elementwise"),
    **dict.fromkeys(("Sigmoid", "Tanh", "Exp", "Log", "Pow", "Sqrt", "Erf"), "transcendental"),
    "Slice": "slice",
    "Pad": "pad",
    **dict.fromkeys(("Gather", "GatherND", "GatherElements"), "gather"),
    **dict.fromkeys(("Split", "Expand"), "move"),
    "Concat": "cat",
    "QLinearConcat": "cat_integer",
    "Reshape": "reshape",
    **dict.fromkeys(("Flatten", "Shape", "Size", "Identity", "Squeeze", "Unsqueeze"), "reshape"),
}
_BLOCKED_DOMAIN = "com.microsoft.nchwc"
POOLS = {"pool", "pool_nchwc", "pool_nhwc", "pool_integer"}
#: Activations that a kernel has as it writes its products; every other one it goes over all of its results once more for.
_STRAIGHT = {None, "Relu", "Clip", "LeakyRelu"}
_LINEAR = {"gemm", "qgemm", "matmul", "matmul_integer", "qlinear_matmul", "dynamic_matmul"}
_WITH_WEIGHTS = {"conv", "conv_nchwc", "qlinear_conv", "conv_transpose"} | _LINEAR


def kind_of(op: str, domain: str, dtype: str = "float32") -> str | None:
    """Lowering's name for an operator of a compiled graph; None for one that lowering never predicts.

    Args:
        dtype: of what it reads; pooling and transposing 8 bits are kernels of their own.
    """
    if domain == _BLOCKED_DOMAIN and op in {"Conv", "MaxPool", "AveragePool", "GlobalAveragePool"}:
        return {"Conv": "conv_nchwc", "GlobalAveragePool": "reduce"}.get(op, "pool_nchwc")
    kind = KINDS.get(op)
    if kind in {"pool", "transpose"} and dtype in {"uint8", "int8"}:
        return f"{kind}_integer"
    return kind


def kernel_of(node: NodeTime) -> Kernel | None:
    """The kernel behind a profiled node; None where lowering has no such kernel."""
    kind = kind_of(node.op, node.domain, node.dtype)
    if kind is None or not node.output_shapes or not node.input_shapes:
        return None
    out_elements, last = math.prod(node.output_shapes[0]), (1, *node.output_shapes[0])[-1]
    if kind in MOVES:
        moved = sum(math.prod(shape) for shape in node.output_shapes)
        return Kernel(kind, (node.name,), in_elements=moved, out_elements=moved)
    if kind == "attention":
        read, tokens = sum(math.prod(shape) for shape in node.input_shapes), node.input_shapes[1][-2]
        macs = 2 * out_elements * tokens
        return Kernel(kind, (node.name,), macs=macs, in_elements=read, out_elements=out_elements, inner=last)
    if kind == "matmul" and node.weight_shape is None:
        read, depth = sum(math.prod(shape) for shape in node.input_shapes), node.input_shapes[0][-1]
        macs = out_elements * depth
        return Kernel(kind, (node.name,), macs=macs, in_elements=read, out_elements=out_elements, inner=last)
    if kind not in _WITH_WEIGHTS:
        moving = node.input_shapes[: 2 if kind in {"add", "elementwise"} else 1]
        read = sum(math.prod(shape) for shape in moving)
        if kind in {"qlinear_add", "cat", "cat_integer"}:
            read = out_elements * (2 if kind == "qlinear_add" else 1)
        kind = spread(kind, read, out_elements)
        area, stride = (math.prod(node.kernel), node.strides[0]) if kind in POOLS and node.kernel else (1, 1)
        if kind == "reduce" and len(node.input_shapes[0]) == 4:
            kind = "global_pool_nhwc" if node.input_layout == "nhwc" else "global_pool"
        inner = last if kind in ROW_BY_ROW else _channels(node) if kind == "transpose_integer" else 1
        return Kernel(
            kind,
            (node.name,),
            in_elements=read,
            out_elements=out_elements,
            kernel_area=area,
            stride=stride,
            inner=inner,
        )
    if node.weight_shape is None:
        return None
    weights = math.prod(node.weight_shape)
    if kind in _LINEAR:
        macs = math.prod(node.output_shapes[0][:-1]) * weights
    else:
        counted = math.prod(node.input_shapes[0]) if kind == "conv_transpose" else out_elements
        macs = counted * math.prod(node.weight_shape[1:])
        kind = convolution(kind, node.group, node.weight_shape[1])
        kind += "" if node.activation in _STRAIGHT else CURVED
    return Kernel(
        kind,
        (node.name,),
        macs=macs,
        in_elements=math.prod(node.input_shapes[0]),
        out_elements=out_elements,
        weight_elements=weights,
        kernel_area=math.prod(node.kernel) if node.kernel else 1,
        stride=node.strides[0] if node.strides else 1,
        groups=node.group,
        fused_add=node.fused_add,
    )


def _channels(node: NodeTime) -> int:
    """Of an image that is turned from channels first to channels last, or back; where the layout of what is turned is
    known, both shapes are told channels first."""
    before, after = node.input_shapes[0], node.output_shapes[0]
    first = len(before) == len(after) == 4 and after in (before, (before[0], before[2], before[3], before[1]))
    return before[1] if first else before[-1]


def samples_of(nodes: Iterable[NodeTime]) -> tuple[KernelSample, ...]:
    """The kernels of a profiled file with their times, the profiler's own cost included. One that lowering never predicts
    keeps the runtime's name, so that a latency model can say that it does not know it."""
    done = [node for node in nodes if node.output_shapes]
    kernels = (kernel_of(node) or Kernel(f"{node.domain}.{node.op}".lstrip("."), (node.name,)) for node in done)
    return timed_kernels(kernels, (node.time_us for node in done))
