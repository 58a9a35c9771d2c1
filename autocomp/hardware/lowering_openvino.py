"""From a network's structure to the kernels that openvino really runs on an x86 CPU.

openvino keeps images channels-last from the first convolution on, fuses whatever works value by value (activations,
additions, roundings) into the convolution or product before it, and joins what is left of it into one kernel. The rules
follow its CPU plugin's graph optimizer and low-precision transformations, and are held against its compiled graphs by
the tests.
"""

from __future__ import annotations

from collections.abc import Callable

from autocomp.changed import changed
from autocomp.compress.structure import Structure
from autocomp.graph import ACTIVATIONS, ADDITIONS, ATTENTION, COPIES, RESHAPES, Node
from autocomp.hardware.kernels import CURVED, MOVES, ROW_BY_ROW, Kernel, convolution, in_company
from autocomp.hardware.layouts_openvino import Joined, Lowering
from autocomp.hardware.lowering import ELEMENTWISE, FREE, GLOBAL_POOLS, KINDS, WINDOW_POOLS, changes_nothing
from autocomp.hardware.weighted import weighted_kernel

#: Works on one tensor value by value: fused into a convolution or product in front.
UNARY = ACTIVATIONS | {
    *("gelu", "silu", "silu_", "sigmoid", "tanh", "hardswish", "hardswish_"),
    *("leaky_relu", "leaky_relu_", "elu", "elu_", "softplus", "exp", "sqrt", "abs", "neg"),
}
#: Of these, an exponential or the like.
CURVES = {"gelu", "silu", "silu_", "sigmoid", "tanh", "elu", "elu_", "softplus", "exp"}
#: Works value by value on one tensor or several: what follows each other is one kernel.
VALUE_BY_VALUE = UNARY | ADDITIONS | ELEMENTWISE | {"mul_", "sub_", "div_", "pow", "rsqrt", "log"}


def lower(structure: Structure, batch: int, bfloat16: bool = False) -> tuple[Kernel, ...]:
    """The kernel calls of one inference with openvino on an x86 CPU, in order.

    Args:
        structure: of the compressed network, as :func:`autocomp.compress.structure.restructure` gives it.
        batch: examples per inference; elements and MACs are multiplied by it.
        bfloat16: whether floats are computed in bfloat16; one library then has all products of them.
    """
    graph = structure.graph
    state = Lowering(
        graph,
        bfloat16,
        frozenset(structure.integer_layers),
        structure.dynamic_layers,
        structure.integer_tables,
        structure.rounded | structure.rounded_for_products,
    )
    for node in graph.nodes:
        if _is_constant(state, node):
            state.constants.add(node.name)
            state.write(node.name, integers=False, last=False)
        elif node.name not in state.done and node.name not in state.joined:
            _one(state, node)
    for name in graph.outputs:
        state.read(name, integers=False, last=False)
    return in_company(kernel.batched(batch) for kernel in state.kernels)


def _is_constant(state: Lowering, node: Node) -> bool:
    """Made from nothing, or from what is: folded when the file is compiled."""
    return node.op != "input" and state.constants.issuperset(node.inputs)


def _one(state: Lowering, node: Node) -> None:
    plain = node.op if node.op.startswith("__") else node.op.removesuffix("_")
    if node.op in FREE or changes_nothing(state.graph, node) or _is_sliced_again(state, node):
        if node.inputs:
            _alias(state, node, node.inputs[0])
        else:
            state.write(node.name, integers=False, last=False)
    elif node.op in {"conv2d", "conv_transpose2d"}:
        _conv(state, node)
    elif node.op == "linear":
        _linear(state, node)
    elif node.op in _OWN:
        _OWN[node.op](state, node)
    elif node.op in RESHAPES:
        _reshape(state, node)
    elif node.op in ADDITIONS:
        _add(state, node)
    elif node.op in VALUE_BY_VALUE or plain in VALUE_BY_VALUE:
        _elementwise(state, node)
    else:
        _other(state, node, plain)


def _is_sliced_again(state: Lowering, node: Node) -> bool:
    """Slices along one axis after the other are one."""
    user = state.graph.sole_user(node.name)
    return node.op == "slice" and user is not None and user.op == "slice"


def _alias(state: Lowering, node: Node, source: str) -> None:
    """The same tensor under another name."""
    for known in (state.floats, state.integers, state.last):
        if source in known:
            known.add(node.name)
    state.done.add(node.name)


def _fused(state: Lowering, node: Node, kernel: int) -> Node:
    """The last of the operations behind ``node`` that its kernel, at some position, computes as well; behind a rounding
    there are none."""
    while (
        node.name not in state.rounded and (user := state.graph.sole_user(node.name)) is not None and user.op in UNARY
    ):
        state.done.add(node.name)
        node = user
        here = state.kernels[kernel]
        if user.op in CURVES and CURVED not in here.op:
            state.kernels[kernel] = changed(here, op=here.op + CURVED)
    return node


def _conv(state: Lowering, node: Node) -> None:
    """With the activation behind it; an addition behind that may be fused in when its other side is known."""
    integers = node.layer in state.quantized
    state.read(node.inputs[0], integers=integers, last=True)
    op = ("conv" if node.op == "conv2d" else "conv_transpose") + ("_int8" if integers else "")
    state.kernels.append(
        weighted_kernel(node, convolution(op, node.groups, node.weight_shape[1]), state.elements(node.inputs[0]))
    )
    result = _fused(state, node, len(state.kernels) - 1)
    user = state.graph.sole_user(result.name)
    if node.op == "conv2d" and user is not None and user.op in ADDITIONS and len(user.inputs) == 2:
        state.conv_at[result.name] = (len(state.kernels) - 1, integers)
        state.done.add(result.name)
    else:
        _write_rounded(state, result, integers=integers, last=True)


def _add(state: Lowering, node: Node) -> None:
    """Fused into the convolution in front of it (of two, into an integer one, else into that of its first input), where
    that can take it in; else value by value."""
    fitting = [name for name in node.inputs if name in state.conv_at]
    taken = next((name for name in fitting if state.conv_at[name][1]), next(iter(fitting), None))
    for name in fitting:
        if name != taken:
            _write_rounded(state, state.graph.by_name[name], integers=state.conv_at[name][1], last=True)
    if taken is None:
        _elementwise(state, node)
        return
    position, integers = state.conv_at[taken]
    other = node.inputs[1 - node.inputs.index(taken)]
    same = state.graph.by_name[other].shape == state.graph.by_name[taken].shape
    if not same or (not integers and other not in state.floats):
        _write_rounded(state, state.graph.by_name[taken], integers=integers, last=True)
        _elementwise(state, node)
        return
    state.kernels[position] = changed(state.kernels[position], fused_add=True)
    result = _fused(state, node, position)
    stays = integers and _stays_integer(state, result)
    if integers and other not in state.integers and other not in fitting:
        # Sums are scaled after the addition: its other side is divided by the scale, if by no convolution of its own.
        state.emit("elementwise", other, node.elements, node.elements)
    state.read(other, integers=stays and other in state.integers, last=True)
    _write_rounded(state, result, integers=integers, last=True)


def _stays_integer(state: Lowering, result: Node) -> bool:
    """Whether a rounded result of an integer kernel stays in 8 bits: something reads these, and nothing floats but
    additions, which scale what they read by themselves. So does an activation that alone reads it."""
    users = state.graph.users[result.name]
    if result.name in state.rounded and len(users) == 1 and users[0].op in UNARY:
        return True
    integers = [state.reads_integers(user) for user in users]
    fitting = all(integer or user.op in ADDITIONS for user, integer in zip(users, integers, strict=True))
    return result.name in state.rounded and any(integers) and fitting


def _write_rounded(state: Lowering, result: Node, *, integers: bool, last: bool) -> None:
    """A kernel's result: 8-bit where an integer kernel computed it and nothing else reads it, else floats; what integer
    kernels wrote for float ones has yet to be scaled."""
    stays = integers and _stays_integer(state, result)
    users = state.graph.users[result.name]
    if not stays and result.name in state.rounded and any(map(state.reads_integers, users)):
        # Rounded for one reader, it is what the others read as well.
        state.emit("quantize", result.name, result.elements, result.elements)
        state.write(result.name, integers=True, last=last)
        return
    state.write(result.name, integers=stays, last=last)
    if integers and not stays and result.name in state.rounded and not (users and all(map(_is_scaled_by, users))):
        # Another kernel scales it.
        state.emit("dequantize", result.name, result.elements, result.elements)


def _is_scaled_by(user: Node) -> bool:
    """Whether an operation scales what it reads by itself, or leaves it to the kernel in front."""
    return user.op in GLOBAL_POOLS or user.layer is not None


def _linear(state: Lowering, node: Node) -> None:
    if node.layer in state.dynamic:
        # Weights would be converted at every call: nothing to be offered, and not calibrated.
        state.kernels.append(weighted_kernel(node, "linear_dynamic", state.elements(node.inputs[0])))
        state.write(node.name, integers=False, last=False)
        return
    integers = node.layer in state.quantized
    state.read(node.inputs[0], integers=integers, last=False)
    user = state.graph.sole_user(node.name)
    joined = (user is not None and user.op in UNARY) or _is_scaled_key(state, node)
    op = "linear_int8" if integers else "linear_fused" if joined and not state.bfloat16 else "linear"
    state.kernels.append(weighted_kernel(node, op, state.elements(node.inputs[0])))
    result = _fused(state, node, len(state.kernels) - 1)
    _write_rounded(state, result, integers=integers, last=False)


def _is_scaled_key(state: Lowering, node: Node) -> bool:
    """Whether a product makes the keys of an attention: the scale of the scores is fused into it."""
    name = node.name
    while (user := state.graph.sole_user(name)) is not None:
        if user.op == ATTENTION:
            return user.inputs[1] == name
        if user.op not in RESHAPES | COPIES | {"transpose", "permute"}:
            return False
        name = user.name
    return False


def _reshape(state: Lowering, node: Node) -> None:
    source = node.inputs[0]
    state.read(source, integers=source not in state.floats, last=False)
    _alias(state, node, source)
    state.last.discard(node.name)


def _elementwise(state: Lowering, node: Node) -> None:
    """One kernel for all that follows each other; a rounding behind it is computed as well."""
    parts = [state.joined.get(read, Joined((read,))) for read in node.inputs]
    inputs = tuple(name for part in parts for name in part.inputs)
    parameters = node.parameters + sum(part.parameters for part in parts)
    curved = node.op in CURVES or any(part.curved for part in parts)
    user = state.graph.sole_user(node.name)
    if user is not None and user.op in VALUE_BY_VALUE and user.shape == node.shape:
        state.joined[node.name] = Joined(inputs, parameters, curved)
        return
    last = any(name in state.last for name in inputs)
    for name in dict.fromkeys(inputs):
        if state.elements(name) == node.elements:
            state.read(name, integers=name not in state.floats, last=last)
    read = sum(map(state.elements, dict.fromkeys(inputs))) + parameters
    _emit_rounded(state, node, inputs[0] in state.floats, read, last=last, curved=curved)


def _emit_rounded(
    state: Lowering, result: Node, reads_floats: bool, read: int, *, last: bool, curved: bool = False
) -> None:
    """An elementwise kernel that writes what is read of it: floats, 8 bits, or both."""
    users = state.graph.users[result.name]
    integers = [state.reads_integers(user) for user in users]
    only = bool(integers) and all(integers)
    op = "quantize" if only and reads_floats else "dequantize" if not only and not reads_floats else "elementwise"
    state.emit(op + CURVED if curved else op, result.name, read, result.elements)
    state.write(result.name, integers=only, last=last)
    if any(integers):
        state.integers.add(result.name)


def _layer_norm(state: Lowering, node: Node) -> None:
    source, width = node.inputs[0], abs(node.shape[-1])
    state.read(source, integers=False, last=False)
    state.emit("layer_norm", node.name, state.elements(source), node.elements, inner=width)
    _emit_rounded(state, node, reads_floats=True, read=node.elements + 2 * width, last=False)


def _batch_norm(state: Lowering, node: Node) -> None:
    """One that was not folded: a product and a sum, value by value."""
    _elementwise(state, changed(node, parameters=2 * node.shape[1]))


def _lookup(state: Lowering, node: Node) -> None:
    rows = node.elements // max(1, node.outputs)
    state.emit("gather", node.layer or node.name, node.elements, node.elements)
    if node.layer in state.tables:
        state.emit("gather", node.layer or node.name, rows, rows)
        state.emit("dequantize", node.layer or node.name, node.elements + rows, node.elements)
    state.write(node.name, integers=False, last=False)


def _attention(state: Lowering, node: Node) -> None:
    """One kernel, which turns queries and values by itself, and without a mask its result as well; the keys are turned
    first."""
    for name in node.inputs:
        state.read(name, integers=False, last=False)
    _, key, value, *_ = (state.graph.by_name[name] for name in node.inputs)
    tokens = abs(key.shape[-2])
    read = sum(state.elements(name) for name in node.inputs)
    state.emit("transpose", node.name, key.elements, key.elements, inner=tokens)
    macs = 2 * node.elements * tokens
    state.kernels.append(Kernel("attention", (node.name,), macs, read, node.elements, inner=abs(value.shape[-1])))
    if len(node.inputs) > 3:  # rows that are masked altogether are looked for, and put right
        state.emit("quantize", node.name, node.elements, node.elements)
        state.emit("dequantize", node.name, 2 * node.elements, node.elements)
    state.write(node.name, integers=False, last=False)
    user = state.graph.sole_user(node.name)
    if len(node.inputs) <= 3 and user is not None and user.op in {"transpose", "permute"}:
        _alias(state, user, node.name)


def _transpose(state: Lowering, node: Node) -> None:
    source = node.inputs[0]
    users = state.graph.users[node.name]
    if users and all(user.op == ATTENTION for user in users):
        _alias(state, node, source)
        return
    state.read(source, integers=source not in state.floats, last=False)
    state.emit("transpose", node.name, node.elements, node.elements, inner=abs(node.shape[-1]))
    if any(map(state.reads_integers, users)) and source in state.floats:
        state.emit("quantize", node.name, node.elements, node.elements)
        state.integers.add(node.name)
    state.write(node.name, integers=source not in state.floats, last=False)


def _cat(state: Lowering, node: Node) -> None:
    integers = all(name in state.integers for name in node.inputs) and node.name in state.rounded
    last = any(name in state.last for name in node.inputs)
    for name in node.inputs:
        state.read(name, integers=integers, last=last)
    if len(node.inputs) > 1:
        state.emit("cat", node.name, node.elements, node.elements)
    state.write(node.name, integers=integers, last=last)


def _other(state: Lowering, node: Node, plain: str) -> None:
    source = node.inputs[0]
    last = source in state.last
    read = sum(map(state.elements, node.inputs))
    if node.op in WINDOW_POOLS:
        integers = source in state.integers and node.op == "max_pool2d"
        state.read(source, integers=integers, last=True)
        stride = max(1, round((read / max(1, node.elements)) ** 0.5))
        op = "pool_int8" if integers else "pool"
        state.kernels.append(Kernel(op, (node.name,), in_elements=read, out_elements=node.elements, stride=stride))
        state.write(node.name, integers=integers, last=True)
        return
    op = KINDS.get(plain, node.op)
    if node.op in GLOBAL_POOLS:
        _average(state, node, read, last=last)
        return
    integers = op in MOVES and source not in state.floats
    for name in node.inputs:
        state.read(name, integers=integers and name not in state.floats, last=last and op not in {"matmul"})
    if plain in {"matmul", "bmm"}:
        depth, columns = abs(state.graph.by_name[source].shape[-1]), abs(node.shape[-1])
        state.kernels.append(Kernel("matmul", (node.name,), node.elements * depth, read, node.elements, inner=columns))
    elif op in MOVES:
        moved = node.elements if node.shape else read
        state.emit(op, node.name, moved, moved)
    else:
        inner = abs(node.shape[-1]) if op in ROW_BY_ROW and node.shape else 1
        state.emit(op, node.name, read, node.elements, inner)
    state.write(node.name, integers=integers, last=last)


def _average(state: Lowering, node: Node, read: int, *, last: bool) -> None:
    """Reads and writes floats or 8 bits as it comes."""
    source = node.inputs[0]
    state.read(source, integers=source not in state.floats, last=last)
    images = len(state.graph.by_name[source].shape) == 4
    op, inner = ("global_pool", 1) if images else ("reduce", abs(node.shape[-1]) if node.shape else 1)
    state.emit(op, node.name, read, node.elements, inner)
    users = state.graph.users[node.name]
    state.write(node.name, integers=bool(users) and all(map(state.reads_integers, users)), last=last)


def _hard_sigmoid(state: Lowering, node: Node) -> None:
    """A kernel of its own that reads its two parameters as well, from an image that lies channels-first."""
    state.read(node.inputs[0], integers=False, last=False)
    state.emit("elementwise", node.name, node.elements + 2, node.elements)
    state.write(node.name, integers=False, last=False)


_OWN: dict[str, Callable[[Lowering, Node], None]] = {
    "embedding": _lookup,
    ATTENTION: _attention,
    "layer_norm": _layer_norm,
    "batch_norm": _batch_norm,
    "transpose": _transpose,
    "permute": _transpose,
    "hardsigmoid": _hard_sigmoid,
    "hardsigmoid_": _hard_sigmoid,
    "cat": _cat,
    "concat": _cat,
}
