"""The shape of a compressed network, worked out from its plan alone, without touching a weight (about a millisecond).

What :func:`autocomp.compress.apply.apply` builds in torch and what :func:`restructure` says of it agree node by node.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from autocomp.changed import changed
from autocomp.compress.blocks import without_blocks
from autocomp.compress.prune import kept_count
from autocomp.compress.quantize import (
    DEFAULT_NUMERICS,
    Numerics,
    complete_formats,
    quantized_tensors,
    rounded_for_products,
)
from autocomp.compress.shapes import SPLITS, follow, part, unflattened
from autocomp.compress.shortcuts import Shortcut, find_shortcuts
from autocomp.graph import CONVOLUTIONS, Graph, Node
from autocomp.inventory import Inventory
from autocomp.plan import Format, LayerPlan, Plan, Rank, Sparsity


@dataclass(frozen=True)
class LayerShape:
    """How one layer of the restructured network is stored: ``kept`` of its weights are not cut. ``sparse_product``: it is
    multiplied without its zeros, see :func:`is_sparse_product`."""

    weight_shape: tuple[int, ...]
    has_bias: bool
    format: Format | None
    kept: int | None
    sparse_product: bool = False


@dataclass(frozen=True)
class Structure:
    """The data flow of the compressed network, how its layers are stored, and the nodes whose results are rounded on a
    calibrated grid: for all that read them, or only for the products that do. ``shortcuts`` are convolutions of ones in its
    file."""

    graph: Graph
    layers: dict[str, LayerShape]
    rounded: frozenset[str] = frozenset()
    rounded_for_products: frozenset[str] = frozenset()
    shortcuts: tuple[Shortcut, ...] = ()

    @property
    def quantized_layers(self) -> tuple[str, ...]:
        """The layers with a format, of whatever kind."""
        return tuple(name for name, layer in self.layers.items() if layer.format is not None)

    @property
    def integer_layers(self) -> tuple[str, ...]:
        """The layers that read a calibrated grid, and so are computed in integers."""
        return tuple(
            name for name, layer in self.layers.items() if layer.format is not None and layer.format.calibrated
        )

    @property
    def dynamic_layers(self) -> frozenset[str]:
        """The layers that round what they read on a grid of the moment."""
        formats = ((name, layer.format) for name, layer in self.layers.items())
        return frozenset(name for name, chosen in formats if chosen is not None and chosen.dynamic)

    @property
    def integer_tables(self) -> frozenset[str]:
        """The embeddings that stay integers."""
        tables = (node.layer for node in self.graph.layers if node.op == "embedding" and node.layer is not None)
        formats = {name: self.layers[name].format for name in tables}
        return frozenset(name for name, chosen in formats.items() if chosen is not None and chosen.tables_of_integers)

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
    outputs, inputs_cut, sizes = _widths(inventory, plan)
    nodes: dict[str, Node] = {}
    layers: dict[str, LayerShape] = {}
    renamed: dict[str, str] = {}
    before = without_blocks(inventory.graph, inventory.dropped(plan)) if plan.dropped_blocks else inventory.graph
    reshaped: set[str] = set()
    for node in before.nodes:
        inputs = tuple(renamed.get(name, name) for name in node.inputs) if renamed else node.inputs
        if node.name in sizes:
            shaped = _recounted(node, sizes[node.name])
        elif node.op == "getitem" or not reshaped.isdisjoint(node.inputs):
            shaped = _follow(node, before, nodes, renamed)
        else:
            shaped = node
        shaped = shaped if shaped.inputs == inputs else changed(shaped, inputs=inputs)
        if node.layer is not None and node.layer in inventory.by_name:
            layer_plan = plan[node.layer]
            whole = _resized(shaped, outputs.get(node.layer), inputs_cut.get(node.layer, 0))
            source = nodes[whole.inputs[0]].shape if whole.inputs else ()
            for stage in _split(whole, source, layer_plan.rank, node):
                nodes[stage.name] = stage
                layers[stage.layer or ""] = _stored(stage, layer_plan, numerics)
                renamed[node.name] = stage.name
            shaped = whole
        else:
            nodes[node.name] = shaped
            if node.layer is not None:
                layers[node.layer] = _stored(shaped, LayerPlan(), numerics)
        if shaped.shape != node.shape:
            reshaped.add(node.name)
    returned = tuple(renamed.get(name, name) for name in before.outputs)
    graph = Graph(tuple(nodes.values()), returned)
    formats = complete_formats(graph, {name: layer.format for name, layer in layers.items()}, numerics)
    rounded = quantized_tensors(graph, formats, numerics)
    return Structure(
        graph,
        {
            name: changed(
                layer, format=formats[name], sparse_product=layer.sparse_product and formats[name] == layer.format
            )
            for name, layer in layers.items()
        },
        frozenset(rounded),
        frozenset(rounded_for_products(graph, formats, rounded)),
        find_shortcuts(graph, rounded) if numerics.convolved_shortcuts else (),
    )


def is_sparse_product(node: Node, mask: Sparsity | None, chosen: Format | None, numerics: Numerics) -> bool:
    """Whether a layer is computed without its zeros: a linear in half precision with two zeros in every four of its weights."""
    return (
        numerics.sparse_products
        and numerics.floats != "fp32"
        and node.op == "linear"
        and not node.computed_bias
        and mask is not None
        and mask.pattern == "2:4"
        and node.weight_shape[1] % 4 == 0  # what is left over in a row is not cut
        and (chosen is None or (chosen.weight_bits == 16 and not chosen.simulated))
    )


def _widths(
    inventory: Inventory, plan: Plan
) -> tuple[dict[str, int], dict[str, int], dict[str, list[tuple[int, int]]]]:
    """Layer → its output channels; layer → how many of its input channels are cut; node → positions among its sizes,
    and by how much these shrink."""
    outputs: dict[str, int] = {}
    inputs_cut: dict[str, int] = {}
    sizes: dict[str, list[tuple[int, int]]] = {}
    for group, level in inventory.unit_levels(plan):
        kept = group.kept(level)
        for name in group.producers:
            outputs[name] = kept * group.unit
        for name, per_unit in group.consumers.items():
            inputs_cut[name] = inputs_cut.get(name, 0) + (group.width - kept) * per_unit
        for node, position, each in group.sizes:
            sizes.setdefault(node, []).append((position, each * (group.width - kept)))
    return outputs, inputs_cut, sizes


def _resized(node: Node, outputs: int | None, inputs_cut: int) -> Node:
    if outputs is None and not inputs_cut:
        return node
    weight = list(node.weight_shape)
    depthwise = node.op == "conv2d" and node.groups > 1 and node.groups == weight[0] and weight[1] == 1
    out_dim, in_dim = (1, 0) if node.op in {"conv_transpose2d", "embedding"} else (0, 1)
    groups = node.groups
    if outputs is not None:
        weight[out_dim] = outputs // groups if node.op == "conv_transpose2d" else outputs
        groups = outputs if depthwise else groups
    if not depthwise:
        weight[in_dim] -= inputs_cut if node.op == "conv_transpose2d" else inputs_cut // groups
    resized = changed(node, weight_shape=tuple(weight), groups=groups)
    channels = 1 if node.op in CONVOLUTIONS else len(node.shape) - 1
    return changed(resized, shape=(*node.shape[:channels], resized.outputs, *node.shape[channels + 1 :]))


def _split(node: Node, source: tuple[int, ...], rank: Rank | None, uncut: Node) -> tuple[Node, ...]:
    """The node, or the stages that a truncated rank makes of it, as :func:`autocomp.compress.factorize.factorize` does.

    Args:
        source: the shape of what the node reads.
        uncut: the node with all of its channels.
    """
    if rank is None:
        return (node,)
    if rank.method == "spatial":
        return _spatial_stages(node, source, rank.r)
    if rank.method == "tucker2":
        inner = rank.input_rank(uncut.weight_shape[1], uncut.weight_shape[0])
        first = _stage(node, 0, node.inputs, (inner, node.weight_shape[1], 1, 1), source[2:])
        middle = _stage(node, 1, (first.name,), (rank.r, inner, *node.kernel), node.shape[2:], of=node)
        return first, middle, _last_stage(node, 2, middle.name, rank.r)
    r = rank.r
    convolution = node.op == "conv2d"
    middle_shape = (node.shape[0], r, *node.shape[2:]) if convolution else (*node.shape[:-1], r)
    weight = (node.weight_shape[0], r) if node.op == "embedding" else (r, *node.weight_shape[1:])
    first = changed(
        node, name=f"{node.name}/0", layer=f"{node.layer}.0", weight_shape=weight, shape=middle_shape, has_bias=False
    )
    return first, _last_stage(node, 1, first.name, r)


def _spatial_stages(node: Node, source: tuple[int, ...], r: int) -> tuple[Node, ...]:
    (height, width), (down, across), (top, left) = node.kernel, node.stride, node.padding
    between = (node.shape[2], source[3])
    first = _stage(node, 0, node.inputs, (r, node.weight_shape[1], height, 1), between)
    last = _stage(node, 1, (first.name,), (node.outputs, r, 1, width), node.shape[2:])
    return (
        changed(first, stride=(down, 1), padding=(top, 0)),
        changed(last, stride=(1, across), padding=(0, left), has_bias=node.has_bias),
    )


def _stage(
    node: Node,
    number: int,
    inputs: tuple[str, ...],
    weight: tuple[int, ...],
    size: tuple[int, ...],
    of: Node | None = None,
) -> Node:
    """A convolution in a factorized one's row, which moves as ``of`` does or by single steps."""
    stage = Node(
        name=f"{node.name}/{number}",
        op="conv2d",
        inputs=inputs,
        shape=(node.shape[0], weight[0], *size),
        layer=f"{node.layer}.{number}",
        weight_shape=weight,
        kernel=(weight[2], weight[3]),
        free=node.free,
    )
    return stage if of is None else changed(stage, stride=of.stride, padding=of.padding)


def _last_stage(node: Node, number: int, before: str, r: int) -> Node:
    """From r channels to the outputs."""
    convolution = node.op == "conv2d"
    return Node(
        name=f"{node.name}/{number}",
        op="conv2d" if convolution else "linear",
        inputs=(before,),
        shape=node.shape,
        layer=f"{node.layer}.{number}",
        weight_shape=(node.outputs, r, 1, 1) if convolution else (node.outputs, r),
        has_bias=node.has_bias,
        free=node.free,
    )


def _stored(node: Node, layer_plan: LayerPlan, numerics: Numerics) -> LayerShape:
    kept = None if layer_plan.mask is None else kept_count(node.weight_shape, layer_plan.mask)
    sparse = is_sparse_product(node, layer_plan.mask, layer_plan.format, numerics)
    return LayerShape(node.weight_shape, node.has_bias, layer_plan.format, kept, sparse)


def _follow(node: Node, before: Graph, nodes: Mapping[str, Node], renamed: Mapping[str, str]) -> Node:
    """A node with the shape that its narrower inputs give it."""

    def now(name: str) -> Node:
        return nodes[renamed.get(name, name)]

    old = [before.by_name[name] for name in node.inputs]
    new = [now(name) for name in node.inputs]
    if node.op == "getitem" and old[0].op in SPLITS and old[0].inputs:  # without, it is one of a parameter
        split = old[0]
        shape = part(node, split, before.by_name[split.inputs[0]].shape, now(split.inputs[0]).shape)
    elif all(was.shape == is_now.shape for was, is_now in zip(old, new, strict=True)):
        return node
    elif node.layer is not None:
        shape = (*new[0].shape[:-1], node.shape[-1]) if node.op == "linear" else node.shape
    else:
        shape = follow(node, old, new)
    if shape == node.shape:
        return node
    single = node.parameters == 1  # a number, whatever it is multiplied with
    parameters = 1 if single else node.parameters * _count(shape) // _count(node.shape)
    return changed(node, shape=shape, parameters=parameters)


def _count(shape: tuple[int, ...]) -> int:
    return math.prod(abs(size) for size in shape)


def _recounted(node: Node, shrunk: list[tuple[int, int]]) -> Node:
    """A view whose sizes count heads, with fewer of them."""
    first = unflattened(node) if node.op == "unflatten" else 0
    shape = list(node.shape)
    for position, amount in shrunk:
        shape[first + position] -= amount
    return changed(node, shape=tuple(shape))
