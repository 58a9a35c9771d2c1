"""What torch executes of a package, as kernels: one for every aten operation that computes or moves something. In eager mode
nothing is fused, and a CUDA graph replays the same kernels.

The names of kernels are ``family_precision``; an operation that no rule knows keeps its own name, so that a latency model can
refuse it. The precision of a product is that of what it multiplies, of everything else that of what it writes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from autocomp.hardware.kernels import ROW_BY_ROW, Kernel

Shape = tuple[int, ...]

#: Operations that give one value for each.
POINTWISE = frozenset(
    {
        *("relu", "relu6", "hardtanh", "clamp", "clamp_min", "clamp_max", "leaky_relu", "elu", "tanh", "sigmoid"),
        *("silu", "hardswish", "hardsigmoid", "gelu", "mish", "softplus", "prelu"),
        *("add", "sub", "rsub", "mul", "div", "pow", "sqrt", "rsqrt", "exp", "log", "neg", "abs", "maximum", "minimum"),
        *("where", "masked_fill", "eq", "ne", "ge", "gt", "le", "lt", "logical_not", "bitwise_not", "__and__"),
        *("round", "addcmul", "to", "_to_copy", "batch_norm"),
    }
)
#: Data is moved, nothing computed. What of it only names the same memory anew is no kernel.
COPIES = frozenset(
    {
        *("cat", "concat", "stack", "pad", "constant_pad_nd", "clone", "contiguous", "reshape", "flatten", "roll"),
        *("repeat", "index", "index_select", "gather", "upsample_nearest2d", "flip", "_unsafe_view"),
    }
)
FAMILIES = {
    **dict.fromkeys(POINTWISE, "elementwise"),
    **dict.fromkeys(COPIES, "copy"),
    **dict.fromkeys(("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d"), "pool"),
    **dict.fromkeys(("max_pool1d", "avg_pool1d", "adaptive_avg_pool1d"), "pool"),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "linalg_vector_norm", "norm", "cumsum"), "reduce"),
    **dict.fromkeys(("layer_norm", "native_layer_norm", "group_norm", "instance_norm", "rms_norm"), "layer_norm"),
    **dict.fromkeys(("softmax", "_softmax", "log_softmax"), "softmax"),
    **dict.fromkeys(("matmul", "bmm"), "matmul"),
    **dict.fromkeys(("arange", "zeros", "ones", "full", "new_zeros", "new_ones", "new_full", "zeros_like"), "fill"),
    "embedding": "gather",
    "scaled_dot_product_attention": "attention",
    "linear": "gemm",
    "_int_mm": "gemm",
    "_scaled_mm": "gemm",
    "_sparse_semi_structured_addmm": "sparse_gemm",
    "conv2d": "conv",
    "conv_transpose2d": "conv_transpose",
}
#: Families that have a weight, whose precision is what they multiply.
WEIGHTED = frozenset({"gemm", "sparse_gemm", "conv", "depthwise", "grouped_conv", "conv_transpose"})
#: torch's types in short.
PRECISIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float8_e4m3fn": "fp8"}


@dataclass(frozen=True)
class ExecutedNode:
    """One aten operation as it was executed.

    ``op`` is its name without namespace and overload, ``dtype`` the type of its result, ``read_dtype`` that of what it reads
    first, in torch's words. ``read`` are the shapes of the tensors that were computed before, or of its first constant where
    there are none; ``weight`` as :class:`autocomp.graph.Node` has it, None where there is none; ``kernel`` that of a
    convolution or pool. ``view``: the result is memory that was there before. ``time_us`` is the mean of the lower half of
    its times.
    """

    name: str
    op: str
    dtype: str
    read_dtype: str
    read: tuple[Shape, ...]
    result: Shape
    weight: Shape | None
    kernel: Shape
    stride: int
    groups: int
    view: bool
    time_us: float


def family_of(op: str, groups: int = 1, inputs_per_group: int = 0) -> str:
    """The family of an aten operation, in place or not; its own name where it has none."""
    plain = op if op.startswith("__") else op.removesuffix("_")
    family = FAMILIES.get(plain, op)
    if family == "conv" and groups > 1:
        return "depthwise" if inputs_per_group == 1 else "grouped_conv"
    return family


def kernel_of(node: ExecutedNode) -> Kernel | None:
    """The kernel of an executed operation; None where nothing is computed."""
    if node.view:
        return None
    family = family_of(node.op, node.groups, node.weight[1] if node.weight is not None and len(node.weight) > 1 else 0)
    dtype = node.read_dtype if family in WEIGHTED else node.dtype
    op = f"{family}_{PRECISIONS.get(dtype, dtype)}"
    read, written = sum(map(math.prod, node.read)), math.prod(node.result)
    if family in WEIGHTED and node.weight is not None:
        return Kernel(
            op,
            (node.name,),
            macs=_macs(node, family),
            in_elements=read,
            out_elements=written,
            weight_elements=math.prod(node.weight),
            kernel_area=math.prod(node.kernel),
            stride=node.stride,
            groups=node.groups,
        )
    if family in {"matmul", "attention"}:
        inner = node.read[0][-1] if family == "matmul" else node.read[1][-2]
        return Kernel(
            op,
            (node.name,),
            macs=written * inner * (1 if family == "matmul" else 2),
            in_elements=read,
            out_elements=written,
            inner=node.result[-1],
        )
    if family == "fill":
        return Kernel(family, (node.name,), out_elements=written)
    if family in {"copy", "gather"}:
        return Kernel(op, (node.name,), in_elements=written, out_elements=written)
    last = node.result[-1] if family in ROW_BY_ROW and node.result else 1
    area, stride = (math.prod(node.kernel), node.stride) if family == "pool" and node.kernel else (1, 1)
    return Kernel(op, (node.name,), in_elements=read, out_elements=written, kernel_area=area, stride=stride, inner=last)


def _macs(node: ExecutedNode, family: str) -> int:
    assert node.weight is not None
    if family == "sparse_gemm":  # which writes the result the other way round
        return node.result[-1] * math.prod(node.weight)
    if family == "gemm":
        return math.prod(node.result[:-1]) * math.prod(node.weight)
    counted = node.read[0] if family == "conv_transpose" else node.result
    return math.prod(counted) * math.prod(node.weight[1:])
