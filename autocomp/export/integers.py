"""What torch.onnx does not write: integer products with activations that are rounded at run time, embeddings that stay
integers, and additions that onnxruntime should not fuse. Rewrites of a float graph, in place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from onnx import GraphProto, NodeProto, TensorProto, helper


def replace_node(graph: GraphProto, old: NodeProto, new: Sequence[NodeProto]) -> None:
    """Put nodes in the place of one."""
    nodes = list(graph.node)
    place = next(position for position, node in enumerate(nodes) if node is old or node == old)
    del graph.node[:]
    graph.node.extend([*nodes[:place], *new, *nodes[place + 1 :]])


def dynamic_product(node: NodeProto, weight: str, scale: str, rounded: dict[str, str]) -> list[NodeProto]:
    """A ``MatMul`` or ``Gemm`` as an integer product whose input is rounded on the grid of its own range.

    onnxruntime fuses exactly this: the scales multiplied with each other first, then the product's; the bias last.

    Args:
        node: whose second input is a constant weight.
        weight: the int8 levels, (in, out). ``scale``: float32, (out,).
        rounded: tensor → the stem of its rounded form, for those that have one; a new one is entered.
    """
    source, result = node.input[0], node.output[0]
    nodes = []
    if source not in rounded:
        rounded[source] = f"{result}.x"
        stem = rounded[source]
        nodes.append(helper.make_node("DynamicQuantizeLinear", [source], [stem, f"{stem}.s", f"{stem}.z"]))
    stem = rounded[source]
    biased = node.op_type == "Gemm" and len(node.input) > 2
    last = f"{result}.g" if biased else result
    nodes += [
        helper.make_node("MatMulInteger", [stem, weight, f"{stem}.z"], [f"{result}.m"]),
        helper.make_node("Cast", [f"{result}.m"], [f"{result}.f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{stem}.s", scale], [f"{result}.k"]),
        helper.make_node("Mul", [f"{result}.f", f"{result}.k"], [last]),
    ]
    if biased:
        nodes.append(helper.make_node("Add", [last, node.input[2]], [result]))
    return nodes


def integer_lookup(node: NodeProto, weight: str, scale: str) -> list[NodeProto]:
    """A ``Gather`` of float rows as one of int8 rows and one of their scales: only what is read becomes floats.

    Args:
        weight: the int8 levels, (rows, width). ``scale``: float32, (rows, 1).
    """
    indices, result = node.input[1], node.output[0]
    return [
        helper.make_node("Gather", [weight, indices], [f"{result}.r"], axis=0),
        helper.make_node("Cast", [f"{result}.r"], [f"{result}.f"], to=TensorProto.FLOAT),
        helper.make_node("Gather", [scale, indices], [f"{result}.k"], axis=0),
        helper.make_node("Mul", [f"{result}.f", f"{result}.k"], [result]),
    ]


def sums_before_norms(graph: GraphProto) -> None:
    """Write additions that a ``LayerNormalization`` reads as ``Sum``: the same value, and onnxruntime then leaves out a
    fusion whose kernel takes five times as long as its two parts (measured: 294 µs against 55 at 128 × 384)."""
    constant = {tensor.name for tensor in graph.initializer}
    read = {node.input[0] for node in graph.node if node.op_type == "LayerNormalization"}
    for node in graph.node:
        if node.op_type == "Add" and node.output[0] in read and not constant & {*node.input}:
            node.op_type = "Sum"


def consumers(nodes: Iterable[NodeProto], name: str) -> list[NodeProto]:
    return [node for node in nodes if name in node.input]
