"""The model's data flow as plain facts, read off ``torch.export``: what inventory, compression and lowering share.

One node per tensor operation, in execution order; weights are not nodes but belong to the node that uses them, which
names its layer by the ``named_modules()`` path.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from autocomp.errors import TraceError, first_line

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram
    from torch.fx import GraphModule
    from torch.fx import Node as FxNode

#: Stands for the batch dimension in a :attr:`Node.shape`.
BATCH = -1

#: Operators that compute with a layer's own weight.
WEIGHTED = frozenset({"conv2d", "linear"})

#: Activations that a runtime folds into the operator before them.
ACTIVATIONS = frozenset({"relu", "relu_", "hardtanh", "hardtanh_", "clamp", "relu6"})

ADDITIONS = frozenset({"add", "add_"})


@dataclass(frozen=True)
class Node:
    """One operation and its result.

    ``shape`` is that of the result, with :data:`BATCH` for the batch dimension. ``layer`` and ``weight_shape`` are set
    where the operation uses a layer's weight; ``kernel``, ``stride`` and ``groups`` where it is a convolution.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    layer: str | None = None
    weight_shape: tuple[int, ...] = ()
    has_bias: bool = False
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    groups: int = 1

    @property
    def elements(self) -> int:
        """Elements of the result for one example."""
        return math.prod(size for size in self.shape if size != BATCH)

    @property
    def weights(self) -> int:
        """Elements of the weight; 1 for operations without one."""
        return math.prod(self.weight_shape)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one example; 0 for operations without weights."""
        if self.op == "conv2d":
            return self.elements * self.weight_shape[1] * self.kernel[0] * self.kernel[1]
        if self.op == "linear":
            return self.elements * self.weight_shape[1]
        return 0


@dataclass(frozen=True)
class Graph:
    """Nodes in execution order. ``inputs`` are the names of the model's inputs, which are nodes of op ``input``."""

    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]

    @cached_property
    def by_name(self) -> Mapping[str, Node]:
        return MappingProxyType({node.name: node for node in self.nodes})

    @cached_property
    def users(self) -> Mapping[str, tuple[Node, ...]]:
        """Node name → the nodes that read its result, in order."""
        found: dict[str, list[Node]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                if name in found:
                    found[name].append(node)
        return MappingProxyType({name: tuple(nodes) for name, nodes in found.items()})

    def sole_user(self, name: str) -> Node | None:
        """The one node that reads ``name``, or None where several do or the model returns it."""
        users = self.users[name]
        return users[0] if len(users) == 1 and name not in self.outputs else None

    def tail(self, node: Node) -> Node:
        """Where a runtime that folds activations writes the result of ``node``: the activation behind it, or itself."""
        user = self.sole_user(node.name)
        return user if user is not None and user.op in ACTIVATIONS else node

    @property
    def layers(self) -> tuple[Node, ...]:
        """The nodes that use a layer's weight."""
        return tuple(node for node in self.nodes if node.layer is not None)


def free_batch(
    example_inputs: tuple[torch.Tensor, ...],
) -> tuple[tuple[torch.Tensor, ...], tuple[dict[int, object], ...]]:
    """Example inputs, and the dynamic shapes that leave their batch free, as torch.export and torch.onnx want them.

    A dimension of 1 is taken for a constant, so that the batch is free only from an example of 2.
    """
    import torch

    doubled = tuple(torch.cat([x[:1], x[:1]]) for x in example_inputs)
    return doubled, tuple({0: torch.export.Dim.DYNAMIC} for _ in doubled)


def export_program(model: torch.nn.Module, example_inputs: tuple[torch.Tensor, ...]) -> ExportedProgram:
    """``torch.export`` of ``model`` (in eval mode) with a free batch dimension.

    Args:
        model: left as it is.
        example_inputs: the model's positional inputs at batch 1 (or more), batch first.

    Raises:
        TraceError: torch.export cannot follow the model; names what stopped it.
    """
    import torch

    doubled, shapes = free_batch(example_inputs)
    try:
        with torch.no_grad():
            return torch.export.export(model, doubled, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch.export raises whatever the model's own code raises
        raise TraceError(
            f"a model must be one that torch.export can follow with a free batch size; it stopped at: {first_line(error)}; "
            "see the torch.export documentation for what to rewrite"
        ) from error


def read_graph(program: ExportedProgram) -> Graph:
    """The :class:`Graph` of an exported program."""
    signature = program.graph_signature
    weights = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    constants = set(signature.inputs_to_lifted_tensor_constants)
    nodes: list[Node] = []
    outputs: tuple[str, ...] = ()
    for node in program.graph.nodes:
        if node.op == "placeholder":
            if node.name not in weights and node.name not in constants:
                nodes.append(Node(node.name, "input", (), _shape(node)))
        elif node.op == "call_function":
            if _is_tensor(node):
                nodes.append(_read_node(node, weights))
        elif node.op == "output":
            outputs = tuple(spec.arg.name for spec in signature.output_specs if hasattr(spec.arg, "name"))
    return Graph(tuple(nodes), outputs)


def _read_node(node: FxNode, weights: Mapping[str, str]) -> Node:
    from torch._ops import OpOverload

    # "aten.conv2d.default" -> "conv2d"; plain Python functions (getitem) keep their name.
    target = cast("OpOverload | Callable[..., object]", node.target)
    op = str(target).split(".")[1] if isinstance(target, OpOverload) else target.__name__
    inputs = tuple(source.name for source in node.all_input_nodes if source.name not in weights and _is_tensor(source))
    fact = Node(node.name, op, inputs, _shape(node))
    if op not in WEIGHTED or len(node.args) < 2:
        return fact
    weight = cast("FxNode", node.args[1])
    layer, _, parameter = weights.get(weight.name, "").rpartition(".")
    if parameter != "weight":
        return fact
    bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    weight_shape = tuple(int(size) for size in weight.meta["val"].shape)
    if op == "linear":
        return Node(node.name, op, inputs, fact.shape, layer, weight_shape, bias is not None)
    return Node(
        node.name,
        op,
        inputs,
        fact.shape,
        layer,
        weight_shape,
        bias is not None,
        kernel=(weight_shape[2], weight_shape[3]),
        stride=_pair(node, 3, 1),
        padding=_pair(node, 4, 0),
        groups=cast("int", node.args[6]) if len(node.args) > 6 else 1,
    )


def _is_tensor(node: FxNode) -> bool:
    """Whether ``node`` gives a tensor, or several (sizes and numbers are not data flow)."""
    value = node.meta.get("val")
    parts = value if isinstance(value, (list, tuple)) else (value,)
    return len(parts) > 0 and all(hasattr(part, "shape") for part in parts)


def _pair(node: FxNode, position: int, default: int) -> tuple[int, int]:
    value = node.args[position] if len(node.args) > position else default
    if isinstance(value, (list, tuple)):
        first, second = (value[0], value[-1])
        return int(cast("int", first)), int(cast("int", second))
    if isinstance(value, int):
        return value, value
    return default, default  # padding="same" and the like


def _shape(node: FxNode) -> tuple[int, ...]:
    """The result's shape; () for an operation with several results, whose parts are nodes of their own."""
    value = node.meta["val"]
    if isinstance(value, (list, tuple)):
        return ()
    return tuple(size if isinstance(size, int) else BATCH for size in value.shape)


def graph_module(program: ExportedProgram) -> GraphModule:
    """The exported program as a module that can be run and edited; its nodes have the graph's names.

    The guards that torch.export puts in front are taken out: shapes are checked by what the module computes.
    """
    module = program.module(check_guards=False)
    # An input called as a Python builtin is (nn.Sequential's is ``input``) has been given another name on the way.
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    for node, name in zip(placeholders, program.graph_signature.user_inputs, strict=True):
        node.name = name
    module.recompile()
    return module
