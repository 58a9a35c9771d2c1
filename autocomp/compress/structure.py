"""The shape of a compressed network, worked out from its plan alone, without touching a weight (about a millisecond).

What :func:`autocomp.compress.apply.apply` builds in torch and what :func:`restructure` says of it agree node by node.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from autocomp.compress.prune import kept_count
from autocomp.compress.quantize import DEFAULT_NUMERICS, Numerics, complete_formats, quantized_tensors
from autocomp.graph import BATCH, WEIGHTED, Graph, Node
from autocomp.inventory import Inventory
from autocomp.plan import Format, LayerPlan, Plan


@dataclass(frozen=True)
class LayerShape:
    """How one layer of the restructured network is stored: ``kept`` of its weights are not cut."""

    weight_shape: tuple[int, ...]
    has_bias: bool
    format: Format | None
    kept: int | None


@dataclass(frozen=True)
class Structure:
    """The data flow of the compressed network, how its layers are stored, and the nodes whose results are rounded."""

    graph: Graph
    layers: dict[str, LayerShape]
    rounded: frozenset[str] = frozenset()

    @property
    def quantized_layers(self) -> tuple[str, ...]:
        return tuple(name for name, layer in self.layers.items() if layer.format is not None)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one example."""
        return sum(node.macs for node in self.graph.layers)


def restructure(inventory: Inventory, plan: Plan, numerics: Numerics = DEFAULT_NUMERICS) -> Structure:
    """The structure that ``plan`` gives the inventoried model on a runtime with such ``numerics``.

    Raises:
        PlanError: the plan does not fit the model.
    """
    inventory.check(plan)
    outputs, inputs_cut = _widths(inventory, plan)
    nodes: dict[str, Node] = {}
    layers: dict[str, LayerShape] = {}
    renamed: dict[str, str] = {}
    for node in inventory.graph.nodes:
        inputs = tuple(renamed.get(name, name) for name in node.inputs)
        if node.op in WEIGHTED and node.layer is not None:
            layer_plan = plan[node.layer]
            whole = _resized(replace(node, inputs=inputs), outputs.get(node.layer), inputs_cut.get(node.layer, 0))
            for part in _split(whole, layer_plan):
                nodes[part.name] = part
                layers[part.layer or ""] = _stored(part, layer_plan)
                renamed[node.name] = part.name
        else:
            nodes[node.name] = _follow(replace(node, inputs=inputs), inventory.graph, nodes)
    returned = tuple(renamed.get(name, name) for name in inventory.graph.outputs)
    graph = Graph(tuple(nodes.values()), returned)
    formats = complete_formats(graph, {name: layer.format for name, layer in layers.items()}, numerics)
    quantized = [name for name, chosen in formats.items() if chosen is not None]
    return Structure(
        graph,
        {name: replace(layer, format=formats[name]) for name, layer in layers.items()},
        frozenset(quantized_tensors(graph, quantized, numerics)),
    )


def _widths(inventory: Inventory, plan: Plan) -> tuple[dict[str, int], dict[str, int]]:
    """Layer → its output channels; layer → how many of its input channels are cut."""
    outputs: dict[str, int] = {}
    inputs_cut: dict[str, int] = {}
    for group, level in inventory.channel_levels(plan):
        kept = group.kept(level)
        for name in group.producers:
            outputs[name] = kept
        for name, per_channel in group.consumers.items():
            inputs_cut[name] = inputs_cut.get(name, 0) + (group.width - kept) * per_channel
    return outputs, inputs_cut


def _resized(node: Node, outputs: int | None, inputs_cut: int) -> Node:
    weight = list(node.weight_shape)
    depthwise = node.groups > 1 and node.groups == weight[0]
    weight[0] = outputs if outputs is not None else weight[0]
    if node.groups == 1:
        weight[1] -= inputs_cut
    shape = (*node.shape[:-1], weight[0]) if node.op == "linear" else (node.shape[0], weight[0], *node.shape[2:])
    return replace(node, weight_shape=tuple(weight), shape=shape, groups=weight[0] if depthwise else node.groups)


def _split(node: Node, layer_plan: LayerPlan) -> tuple[Node, ...]:
    """The node, or the two halves that a truncated rank makes of it."""
    if layer_plan.rank is None:
        return (node,)
    r = layer_plan.rank.r
    if node.op == "linear":
        middle: tuple[int, ...] = (*node.shape[:-1], r)
        second_weight: tuple[int, ...] = (node.weight_shape[0], r)
    else:
        middle = (node.shape[0], r, *node.shape[2:])
        second_weight = (node.weight_shape[0], r, 1, 1)
    first = replace(
        node,
        name=f"{node.name}/0",
        layer=f"{node.layer}.0",
        weight_shape=(r, *node.weight_shape[1:]),
        shape=middle,
        has_bias=False,
    )
    second = Node(
        name=f"{node.name}/1",
        op=node.op,
        inputs=(first.name,),
        shape=node.shape,
        layer=f"{node.layer}.1",
        weight_shape=second_weight,
        has_bias=node.has_bias,
    )
    return first, second


def _stored(node: Node, layer_plan: LayerPlan) -> LayerShape:
    level = layer_plan.unstructured_level()
    return LayerShape(
        node.weight_shape, node.has_bias, layer_plan.format, kept_count(node.weights, level) if level > 0 else None
    )


def _follow(node: Node, before: Graph, nodes: dict[str, Node]) -> Node:
    """An operation without weights: its result is as wide as what it reads."""
    if not node.inputs or len(node.shape) < 2:
        return node
    original = before.by_name[node.name]
    source_before, source = before.by_name[original.inputs[0]], nodes[node.inputs[0]]
    shape = list(node.shape)
    pairs = [(before.by_name[old], nodes[new]) for old, new in zip(original.inputs, node.inputs, strict=True)]
    if all(old.shape == new.shape for old, new in pairs):
        return node
    joined = sum(old.shape[1] for old, _ in pairs) if node.op == "cat" else 0
    if joined and shape[1] % joined == 0:  # a tensor joined to itself is one input
        shape[1] = shape[1] // joined * sum(new.shape[1] for _, new in pairs)
    elif len(source.shape) > 1 and original.shape[1] == source_before.shape[1]:
        shape[1] = source.shape[1]
    elif original.elements == source_before.elements and shape[0] == BATCH:
        # A flatten or reshape that merges channels with something else: the merged dimension shrinks with them.
        shape[1] = shape[1] * source.elements // source_before.elements
    return replace(node, shape=tuple(shape))
