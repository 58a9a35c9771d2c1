"""From a network's structure to the kernels that onnxruntime really runs on a CPU.

onnxruntime fuses activations and additions into convolutions, keeps float convolutions in a blocked layout (NCHWc) and
integer ones channels-last, and converts between formats and layouts wherever neighbours differ. These conversions are
what a format costs beyond its own layer, so that they are kernels of their own here. The rules follow onnxruntime's
NchwcTransformer, QDQ fusions and transpose optimizer, and are held against its compiled graphs by the tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from autocomp.changed import changed
from autocomp.compress.structure import Structure
from autocomp.graph import ACTIVATIONS, ADDITIONS, COPIES, PADS, RESHAPES, Graph, Node
from autocomp.hardware.kernels import CURVED, MOVES, ROW_BY_ROW, Kernel, convolution, in_company, spread
from autocomp.hardware.layouts import BLOCKED, FLOAT, FLOAT_LAST, INTEGER, INTEGER_LAST, Form, Lowering
from autocomp.hardware.weighted import (
    lower_attention,
    lower_conv,
    lower_linear,
    lower_lookup,
    lower_product,
    lower_shortcut,
    lower_transposed_conv,
)

#: What a runtime computes nothing for; the parts of a split are written by the split.
FREE = COPIES | {"input", "getitem", "to", "_assert_tensor_metadata", "new_ones", "new_zeros", "new_full"}

GLOBAL_POOLS = frozenset({"adaptive_avg_pool2d", "adaptive_avg_pool1d", "mean"})
LINE_POOLS = frozenset({"max_pool1d", "avg_pool1d"})
WINDOW_POOLS = frozenset({"max_pool2d", "avg_pool2d"}) | LINE_POOLS
#: Activations that float convolutions take in, beside the rectifiers of :data:`ACTIVATIONS`; in blocks one more.
CURVES = frozenset({"hardsigmoid", "hardsigmoid_", "sigmoid", "tanh"})
BLOCKED_CURVES = CURVES | {"hardswish", "hardswish_"}

#: Operations by what their time is like: one value from each, values moved, and a few of their own.
ELEMENTWISE = frozenset(
    {
        *(
            "mul",
            "sub",
            "div",
            "neg",
            "abs",
            "maximum",
            "minimum",
            "where",
            "rsub",
        ),
        *("masked_fill", "eq", "ne", "ge", "gt", "le", "lt", "logical_not", "__and__", "leaky_relu", "elu", "softplus"),
        *("hardswish", "hardsigmoid", "prelu", "bitwise_not"),
    }
)
KINDS = {
    **dict.fromkeys(ELEMENTWISE, "elementwise"),
    **dict.fromkeys(("sigmoid", "tanh", "exp", "log", "pow", "sqrt", "rsqrt"), "transcendental"),
    **dict.fromkeys(("slice", "select", "narrow"), "slice"),
    **dict.fromkeys(("pad", "constant_pad_nd"), "pad"),
    **dict.fromkeys(("index", "index_select", "gather"), "gather"),
    **dict.fromkeys(("expand", "expand_as", "repeat", "stack", "roll", "flip", "zeros_like"), "move"),
    **dict.fromkeys(("chunk", "split", "split_with_sizes", "unbind", "upsample_nearest2d"), "move"),
    **dict.fromkeys(("transpose", "permute", "t"), "transpose"),
    **dict.fromkeys(("softmax", "_softmax", "log_softmax"), "softmax"),
    **dict.fromkeys(("layer_norm", "native_layer_norm", "rms_norm"), "layer_norm"),
    **dict.fromkeys(("sum", "amax", "amin", "cumsum", "linalg_vector_norm", "norm"), "reduce"),
    **dict.fromkeys(("clamp_min", "clamp_max"), "activation"),
    "silu": "quick_gelu",
}


def lower(structure: Structure, batch: int, block: int) -> tuple[Kernel, ...]:
    """The kernel calls of one inference with onnxruntime on a CPU, in order.

    Args:
        structure: of the compressed network, as :func:`autocomp.compress.structure.restructure` gives it.
        batch: examples per inference; elements and MACs are multiplied by it.
        block: channels in a block of the NCHWc layout (16 with AVX-512, 8 with AVX2, 1 where onnxruntime has no such
            layout, as on most Arm CPUs). Blocked tensors and weights are padded to whole blocks, and that is what a
            blocked convolution's numbers count.
    """
    graph = structure.graph
    shortcuts = {one.pad: one for one in structure.shortcuts}
    sliced = {name for one in structure.shortcuts for name in one.slices}
    formats = {name: layer.format for name, layer in structure.layers.items() if layer.format is not None}
    state = Lowering(
        graph,
        frozenset(structure.integer_layers),
        structure.dynamic_layers,
        structure.integer_tables,
        structure.rounded | shortcuts.keys(),
        not any(chosen.needs_two_bit_type for chosen in formats.values()),
        block,
    )
    fused: dict[str, str] = {}
    for node in graph.nodes:
        if node.name in fused:
            state.forms[node.name] = state.forms[fused[node.name]]
            if fused[node.name] in state.conv_at:
                state.conv_at[node.name] = state.conv_at[fused[node.name]]
            continue
        of_parameters = node.layer is not None and not node.inputs  # folded when the file is loaded
        if node.op in FREE or of_parameters or changes_nothing(graph, node):
            if node.inputs:
                state.forms[node.name] = state.forms[node.inputs[0]]
            else:
                state.write(node, FLOAT)
            continue
        if node.name in sliced:
            continue  # by the convolution that pads
        if node.name in shortcuts:
            lower_shortcut(state, node, shortcuts[node.name])
            continue
        tail = graph.tail(node)
        if _one(state, node, tail) and tail is not node:
            fused[tail.name] = node.name
    for name in graph.outputs:
        state.read(name, FLOAT)
    return in_company(kernel.batched(batch) for kernel in state.kernels)


def changes_nothing(graph: Graph, node: Node) -> bool:
    """A slice along some axis of all of it, as ``x[:, :, ::2]`` has two, and one tensor joined to no other."""
    return (
        node.op in {"slice", "cat", "concat"}
        and len(node.inputs) == 1
        and graph.by_name[node.inputs[0]].shape == node.shape
    )


def _one(state: Lowering, node: Node, tail: Node) -> bool:
    """Lower one node; whether the activation behind it is folded in."""
    if node.op == "conv2d":
        return lower_conv(state, node, tail)
    if node.op == "linear":
        return (
            lower_linear(state, node, tail)
            if node.is_gemm and node.layer not in state.dynamic_layers
            else lower_product(state, node)
        )
    if node.op in _OWN:
        _OWN[node.op](state, node)
        return False
    if node.op == "conv1d":
        return _conv1d(state, node)
    if node.op == "batch_norm":
        return _batch_norm(state, node)
    if node.op in ADDITIONS and len(node.inputs) == 2:
        return _add(state, node, tail)
    return _other(state, node)


def _conv1d(state: Lowering, node: Node) -> bool:
    """No layer of a plan's, and never in blocks. Of its weight no more is known than how many numbers it has, its bias among
    them or not."""
    source = state.graph.by_name[node.inputs[0]]
    outputs, inputs = abs(node.shape[1]), abs(source.shape[1])
    stride, groups = (node.numbers or (1,))[0], node.numbers[3] if len(node.numbers) > 3 else 1
    biased = node.parameters % outputs == 0 and (node.parameters // outputs - 1) % (inputs // groups) == 0
    weights = node.parameters - (outputs if biased else 0)
    state.read(source.name, FLOAT)
    state.kernels.append(
        Kernel(
            convolution("conv", groups, inputs // groups),
            (node.name,),
            macs=node.elements * weights // outputs,
            in_elements=source.elements,
            out_elements=node.elements,
            weight_elements=weights,
            kernel_area=max(1, weights // outputs // (inputs // groups)),
            stride=stride,
            groups=groups,
        )
    )
    state.write(node, FLOAT)
    return True


def _batch_norm(state: Lowering, node: Node) -> bool:
    """One that was not folded. What lies in blocks is normalized by a convolution of one weight a channel."""
    source, channels = node.inputs[0], node.shape[1]
    if state.born(source, BLOCKED):
        channels = math.ceil(channels / state.block) * state.block  # whole blocks are computed
        elements = node.elements // node.shape[1] * channels
        kernel = Kernel(
            convolution("conv_nchwc", channels, 1),
            (node.name,),
            macs=elements,
            in_elements=elements,
            out_elements=elements,
            weight_elements=channels,
            groups=channels,
        )
        state.kernels.append(kernel)
        state.write(node, BLOCKED)
        return True
    state.read(source, FLOAT)
    state.kernels.append(Kernel("batch_norm", (node.name,), in_elements=node.elements, out_elements=node.elements))
    state.write(node, FLOAT)
    return False


def _cat(state: Lowering, node: Node) -> None:
    """Joined as blocks where all are whole blocks, in integers where all are and the result is, else in floats."""
    names, form, op = node.inputs, FLOAT, "cat"
    shapes = [state.graph.by_name[name].shape for name in names]
    if all(
        state.born(name, BLOCKED) and shape[1] % state.block == 0 for name, shape in zip(names, shapes, strict=True)
    ):
        form = BLOCKED
    elif node.name in state.rounded and all(state.forms[name][0].quantized for name in names):
        form = INTEGER_LAST if all(INTEGER_LAST in state.forms[name] for name in names) else INTEGER
        op = "cat_integer"
    for name in names:
        state.read(name, form)
    state.kernels.append(Kernel(op, (node.name,), in_elements=node.elements, out_elements=node.elements))
    state.write(node, form)


def _add(state: Lowering, node: Node, tail: Node) -> bool:
    """An integer addition, one that is fused into a float conv before it, or one of its own."""
    read = sum(state.graph.by_name[name].elements for name in node.inputs)
    alone = Kernel(spread("add", read, node.elements), (node.name,), in_elements=read, out_elements=node.elements)
    if tail.name in state.rounded and all(name in state.rounded for name in node.inputs):
        last = all(INTEGER_LAST in state.forms[name] for name in node.inputs)
        form = INTEGER_LAST if last else INTEGER
        for name in node.inputs:
            state.read(name, form)
        state.kernels.append(changed(alone, op="qlinear_add"))
        state.write(node, form)
        return True
    if all(state.born(name, BLOCKED) for name in node.inputs):
        for name in node.inputs:
            if name in state.conv_at:
                position = state.conv_at[name]
                state.kernels[position] = changed(state.kernels[position], fused_add=True)
                state.write(node, BLOCKED)
                return True
        state.kernels.append(alone)
        state.write(node, BLOCKED)
        return False
    for name in node.inputs:
        if name in state.conv_at and state.born(name, FLOAT):
            for other in node.inputs:
                state.read(other, FLOAT)
            position = state.conv_at[name]
            state.kernels[position] = changed(state.kernels[position], fused_add=True)
            state.write(node, FLOAT)
            return True
    if any(state.born(name, FLOAT_LAST) for name in node.inputs):
        for name in node.inputs:
            near = not {FLOAT_LAST, INTEGER_LAST}.isdisjoint(state.forms[name])
            state.read(name, FLOAT_LAST if near else FLOAT)
        state.kernels.append(alone)
        state.write(node, FLOAT_LAST)
        return tail.name in state.rounded
    for name in node.inputs:
        if tail.name in state.rounded and FLOAT not in state.forms[name] and INTEGER_LAST in state.forms[name]:
            state.detour(name)
        state.read(name, FLOAT)
    state.kernels.append(alone)
    state.write(node, FLOAT)
    # A rectifier in front of a quantization whose zero is the lowest level does nothing: onnxruntime takes it out.
    return tail.name in state.rounded


def _other(state: Lowering, node: Node) -> bool:
    if not node.inputs:  # made from nothing, a constant: folded
        state.write(node, FLOAT)
        return False
    read = sum(state.graph.by_name[name].elements for name in node.inputs)
    kernel = Kernel(node.op, (node.name,), in_elements=read, out_elements=node.elements)
    source = node.inputs[0]
    if node.op in RESHAPES:
        form = INTEGER if any(form.quantized for form in state.forms[source]) else FLOAT
        state.read(source, form)
        state.kernels.append(changed(kernel, op="reshape"))
        state.write(node, form)
    elif node.op == "slice" and state.forms[source][0].quantized:  # which commutes with rounding
        state.kernels.append(changed(kernel, op="slice", in_elements=node.elements, out_elements=node.elements))
        state.write(node, state.forms[source][0])
    elif node.op in PADS and state.born(source, INTEGER_LAST):
        state.read(source, FLOAT_LAST)
        state.kernels.append(changed(kernel, op="pad", in_elements=node.elements, out_elements=node.elements))
        state.write(node, FLOAT_LAST)
    elif node.op in BLOCKED_CURVES and _behind_conv(state, source, node.op in CURVES):
        conv = state.kernels[state.conv_at[source]]
        state.kernels[state.conv_at[source]] = changed(conv, op=conv.op + CURVED)
        state.forms[node.name] = state.forms[source]
    elif node.op in ACTIVATIONS and node.name in state.rounded:
        # In front of a rounding whose lowest level is zero it does nothing: onnxruntime takes it out.
        state.forms[node.name] = state.forms[source]
    elif node.op in ACTIVATIONS or node.op in WINDOW_POOLS:
        form = _pool_form(state, node) if node.op in WINDOW_POOLS else state.any_float(source)
        state.read(source, form)
        if node.op in WINDOW_POOLS:
            op = {INTEGER_LAST: "pool_nhwc", INTEGER: "pool_integer", BLOCKED: "pool_nchwc"}.get(form, "pool")
            wider = read / max(1, node.elements)
            stride = max(1, round(wider if node.op in LINE_POOLS else math.sqrt(wider)))
            area = node.numbers[0] if node.op in LINE_POOLS else math.prod(node.numbers[:2])
            kernel = changed(kernel, op=op, kernel_area=area, stride=stride)
        state.kernels.append(kernel if node.op in WINDOW_POOLS else changed(kernel, op="activation"))
        state.write(node, form)
    elif node.op in GLOBAL_POOLS:
        images = len(state.graph.by_name[source].shape) == 4
        inner = 1 if images or not node.shape else abs(node.shape[-1])
        # Where an integer convolution reads the means, too, onnxruntime leaves the channels last.
        readers = {user.layer for user in state.graph.users[node.name] if user.op == "conv2d"}
        last = images and state.forms[source][0] == INTEGER_LAST and bool(readers & state.quantized_layers)
        state.read(source, FLOAT_LAST if last else FLOAT)
        op = "global_pool_nhwc" if last else "global_pool" if images else "reduce"
        state.kernels.append(changed(kernel, op=op, inner=inner))
        state.write(node, FLOAT_LAST if last else FLOAT)
    else:
        for name in node.inputs:
            state.read(name, FLOAT)
        plain = node.op if node.op.startswith("__") else node.op.removesuffix("_")
        if plain in {"matmul", "bmm"}:
            inner = abs(state.graph.by_name[node.inputs[0]].shape[-1])
            kernel = changed(kernel, op="matmul", macs=node.elements * inner, inner=abs(node.shape[-1]))
        else:
            op = KINDS.get(plain, node.op)
            if plain == "hardswish":  # a gate, and a product with it
                state.kernels.append(changed(kernel, op="elementwise"))
                read *= 2
                kernel = changed(kernel, in_elements=read)
            inner = abs(node.shape[-1]) if op in ROW_BY_ROW and node.shape else 1
            kernel = changed(kernel, op=spread(op, read, node.elements), inner=inner)
        # What only moves data reads no more than it writes; the parts of a split are nodes of their own.
        if kernel.op in MOVES:
            moved = node.elements if node.shape else read
            kernel = changed(kernel, in_elements=moved, out_elements=moved)
        state.kernels.append(kernel)
        state.write(node, FLOAT)
    return False


def _behind_conv(state: Lowering, source: str, not_in_blocks: bool) -> bool:
    """Whether a float convolution writes it for one reader, which it can take in."""
    node = state.graph.by_name[source]
    floats = state.forms[source] == [BLOCKED] or (not_in_blocks and state.forms[source] == [FLOAT])
    return node.op == "conv2d" and floats and state.graph.sole_user(source) is not None and source in state.conv_at


def _pool_form(state: Lowering, node: Node) -> Form:
    """A maximum commutes with rounding: onnxruntime takes it in integers where its input or its result is rounded.
    In floats, only whole blocks of channels are pooled as blocks."""
    have = state.forms[node.inputs[0]]
    if node.op == "max_pool2d":
        if INTEGER_LAST in have:
            return INTEGER_LAST
        if INTEGER in have or node.name in state.rounded:
            return INTEGER
    in_blocks = state.block > 1 and node.shape[1] % state.block == 0 and node.op not in LINE_POOLS
    return BLOCKED if in_blocks else FLOAT


_OWN: dict[str, Callable[[Lowering, Node], None]] = {
    "conv_transpose2d": lower_transposed_conv,
    "embedding": lower_lookup,
    "scaled_dot_product_attention": lower_attention,
    "cat": _cat,
    "concat": _cat,
}
