"""Lowering of what has weights, and of attention: which of onnxruntime's kernels computes it, what it reads and writes."""

from __future__ import annotations

import math

from autocomp.changed import changed
from autocomp.compress.shortcuts import Shortcut
from autocomp.graph import Node
from autocomp.hardware.kernels import Kernel, convolution, spread
from autocomp.hardware.layouts import BLOCKED, FLOAT, INTEGER, INTEGER_LAST, Lowering

#: A blocked conv needs a multiple of this many input channels.
ALIGNMENT = 4


def weighted_kernel(node: Node, op: str, read: int) -> Kernel:
    """The kernel of a layer that reads so many elements."""
    return Kernel(
        op,
        (node.layer or node.name,),
        macs=node.macs,
        in_elements=read,
        out_elements=node.elements,
        weight_elements=node.weights,
        kernel_area=node.kernel[0] * node.kernel[1],
        stride=node.stride[0],
        groups=node.groups,
    )


def lower_conv(state: Lowering, node: Node, tail: Node) -> bool:
    source = node.inputs[0]
    read = state.graph.by_name[source].elements
    if node.layer in state.quantized_layers:
        state.read(source, INTEGER_LAST)
        op = convolution("qlinear_conv", node.groups, node.weight_shape[1])
        state.kernels.append(weighted_kernel(node, op, read))
        state.write(node, INTEGER_LAST)
        return True
    channels = node.weight_shape[1] * node.groups
    block = state.block
    blocked = node.groups == 1 and (channels < block or channels % ALIGNMENT == 0)
    if node.groups > 1:
        outputs = node.weight_shape[0]
        depthwise = node.weight_shape[1] == 1 and outputs == node.groups
        per_group = outputs // node.groups
        whole = all(size % block == 0 for size in (outputs, node.weight_shape[1], per_group))
        blocked = outputs % ALIGNMENT == 0 if depthwise else whole
    blocked = blocked and block > 1
    op = convolution("conv_nchwc" if blocked else "conv", node.groups, node.weight_shape[1])
    kernel = weighted_kernel(node, op, read)
    reads_blocks = blocked and (channels >= block or node.groups > 1)
    state.read(source, BLOCKED if reads_blocks else FLOAT)
    state.kernels.append(_padded(kernel, node, block, reads_blocks) if blocked else kernel)
    state.write(node, BLOCKED if blocked else FLOAT)
    if state.graph.sole_user(node.name) is not None and tail is node:
        state.conv_at[node.name] = len(state.kernels) - 1
    return True


def lower_shortcut(state: Lowering, pad: Node, shortcut: Shortcut) -> None:
    """A shortcut without weights, as a convolution of ones."""
    source = state.graph.by_name[shortcut.source]
    weight = (pad.shape[1], source.shape[1], 1, 1)
    ones = changed(pad, op="conv2d", weight_shape=weight, kernel=(1, 1), stride=shortcut.stride)
    state.read(source.name, INTEGER_LAST)
    state.kernels.append(weighted_kernel(ones, convolution("qlinear_conv", 1, source.shape[1]), source.elements))
    state.write(pad, INTEGER_LAST)


def _padded(kernel: Kernel, node: Node, block: int, reads_blocks: bool) -> Kernel:
    """A blocked convolution computes whole blocks of channels."""
    outputs = node.weight_shape[0]
    wider_out = math.ceil(outputs / block) * block / outputs
    channels = node.weight_shape[1] * node.groups
    wider_in = math.ceil(channels / block) * block / channels if reads_blocks else 1.0
    both = wider_out * (wider_in if node.groups == 1 else 1.0)
    return changed(
        kernel,
        macs=round(kernel.macs * both),
        in_elements=round(kernel.in_elements * wider_in),
        out_elements=round(kernel.out_elements * wider_out),
        weight_elements=round(kernel.weight_elements * both),
        groups=round(kernel.groups * wider_out) if 1 < kernel.groups == outputs else kernel.groups,
    )


def lower_linear(state: Lowering, node: Node, tail: Node) -> bool:
    source = node.inputs[0]
    read = state.graph.by_name[source].elements
    if node.layer in state.quantized_layers:
        state.read(source, INTEGER)
        state.kernels.append(weighted_kernel(node, "qgemm", read))
        rounded = tail.name in state.rounded
        state.write(node, INTEGER if rounded else FLOAT)
        return rounded
    state.read(source, FLOAT)
    state.kernels.append(weighted_kernel(node, "gemm", read))
    state.write(node, FLOAT)
    return True


def lower_product(state: Lowering, node: Node) -> bool:
    """A linear over sequences: ``MatMul`` and an addition, which integer products rounded at run time take in."""
    source = node.inputs[0]
    read = state.graph.by_name[source].elements
    kernel = weighted_kernel(node, "matmul", read)
    if node.layer in state.dynamic_layers:
        state.read(source, FLOAT)
        shared = sum(user.layer in state.dynamic_layers for user in state.graph.users[source]) > 1
        if shared and source not in state.rounded_at_run_time:
            state.kernels.append(Kernel("dynamic_quantize", (source,), in_elements=read, out_elements=read))
            state.rounded_at_run_time.add(source)
        state.kernels.append(changed(kernel, op="matmul_integer" if shared else "dynamic_matmul"))
    else:
        quantized = node.layer in state.quantized_layers
        state.read(source, INTEGER if quantized else FLOAT)
        if quantized and not node.has_bias and _only_rounded(state, node):
            state.kernels.append(changed(kernel, op="qlinear_matmul"))
            state.write(node, INTEGER)
            return False
        state.kernels.append(changed(kernel, op="matmul_integer" if quantized else "matmul"))
        user = state.graph.sole_user(node.name)
        if node.has_bias and not (user is not None and user.op == "gelu"):
            state.kernels.append(
                Kernel(
                    spread("add", node.elements + node.outputs, node.elements),
                    (node.name,),
                    in_elements=node.elements + node.outputs,
                    out_elements=node.elements,
                )
            )
    state.write(node, FLOAT)
    return False


def _only_rounded(state: Lowering, node: Node) -> bool:
    """Whether all that reads a product are products that round it, on one calibrated grid."""
    users = state.graph.users[node.name]
    return bool(users) and all(user.op == "linear" and user.layer in state.quantized_layers for user in users)


def lower_transposed_conv(state: Lowering, node: Node) -> None:
    state.read(node.inputs[0], FLOAT)
    read = state.graph.by_name[node.inputs[0]].elements
    op = convolution("conv_transpose", node.groups, node.weight_shape[1])
    state.kernels.append(weighted_kernel(node, op, read))
    state.write(node, FLOAT)


def lower_lookup(state: Lowering, node: Node) -> None:
    """An embedding; one of integers also looks its scales up and multiplies."""
    rows = node.elements // max(1, node.outputs)
    table = Kernel("gather", (node.layer or node.name,), in_elements=node.elements, out_elements=node.elements)
    state.kernels.append(table)
    if node.layer in state.integer_tables:
        state.kernels.append(changed(table, in_elements=rows, out_elements=rows))
        state.kernels.append(changed(table, op="elementwise"))
        state.kernels.append(
            changed(
                table, op=spread("elementwise", node.elements + rows, node.elements), in_elements=node.elements + rows
            )
        )
    state.write(node, FLOAT)


def lower_attention(state: Lowering, node: Node) -> None:
    """One operator: two products with a softmax between. A file with weights of 2 bits has them one by one."""
    for name in node.inputs:
        state.read(name, FLOAT)
    query, key, *_ = (state.graph.by_name[name] for name in node.inputs)
    tokens, width = abs(key.shape[-2]), abs(query.shape[-1])
    scores = query.elements // width * tokens
    here, out = (node.name,), node.elements
    if state.attention_operator:
        read = sum(state.graph.by_name[name].elements for name in node.inputs)
        state.kernels.append(
            Kernel("attention", here, macs=2 * out * tokens, in_elements=read, out_elements=out, inner=width)
        )
    else:
        between = Kernel("elementwise", here, in_elements=scores, out_elements=scores)
        keys = Kernel("transpose", here, in_elements=key.elements, out_elements=key.elements, inner=tokens)
        first = Kernel("matmul", here, scores * width, query.elements + key.elements, scores, inner=tokens)
        last = Kernel("matmul", here, out * tokens, scores + key.elements, out, inner=width)
        mask_elements = sum(state.graph.by_name[name].elements for name in node.inputs[3:]) + node.parameters
        masked = [
            changed(between, op=spread("add", scores + mask_elements, scores), in_elements=scores + mask_elements)
        ]
        # NaNs of rows that are masked altogether are looked for and replaced, where the mask says yes or no.
        replaced = changed(between, op=spread("elementwise", scores + 1, scores), in_elements=scores + 1)
        checked = [between, replaced] if node.reads_booleans else []
        state.kernels += [*_sizes(key, here), keys, first, *(masked if mask_elements else [])]
        state.kernels += [changed(between, op="softmax", inner=tokens), *checked, last]
    state.write(node, FLOAT)


def _sizes(key: Node, here: tuple[str, ...]) -> list[Kernel]:
    """The keys' shape is read, taken apart and put together again; in between they are three-dimensional."""
    rank = len(key.shape)
    moved = Kernel("reshape", here, in_elements=key.elements, out_elements=key.elements)
    return [
        Kernel("reshape", here, in_elements=key.elements, out_elements=rank),
        Kernel("gather", here, in_elements=rank, out_elements=rank),
        *(Kernel("slice", here, in_elements=length, out_elements=length) for length in (rank - 2, 1, 1)),
        *(Kernel("cat", here, in_elements=length, out_elements=length) for length in (rank, 3)),
        moved,
        moved,
    ]
