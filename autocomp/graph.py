"""The model's data flow as plain facts: what inventory, compression and lowering share.

One node per tensor operation, in execution order; weights are not nodes but belong to the node that uses them, which
names its layer by the ``named_modules()`` path. :mod:`autocomp.trace` reads it off a model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

#: The batch dimension in a :attr:`Node.shape`. A dimension of -4 is four times the batch: examples were cut in four.
BATCH = -1

#: Operators that compute with a layer's own weight → where they take it.
WEIGHT_ARGUMENT = MappingProxyType({"conv2d": 1, "conv_transpose2d": 1, "linear": 1, "embedding": 0})
WEIGHTED = frozenset(WEIGHT_ARGUMENT)
CONVOLUTIONS = frozenset({"conv2d", "conv_transpose2d"})

#: Activations that a runtime folds into the operator before them.
ACTIVATIONS = frozenset({"relu", "relu_", "hardtanh", "hardtanh_", "clamp", "relu6"})

ATTENTION = "scaled_dot_product_attention"

ADDITIONS = frozenset({"add", "add_"})

#: Operators that give their input on unchanged (in evaluation).
COPIES = frozenset({"dropout", "dropout_", "contiguous", "clone", "alias", "detach", "detach_", "lift_fresh_copy"})

PADS = frozenset({"pad", "constant_pad_nd"})

RESHAPES = frozenset({"view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze"})


@dataclass(frozen=True)
class Node:
    """One operation and its result.

    ``shape`` is that of the result for inputs of the example's size: negative numbers count batches, () stands for
    several results, whose parts are nodes of their own. ``layer`` is set where the operation uses a layer's weight,
    ``weight_shape`` where it has a weight, whosever; ``kernel``, ``stride`` and ``groups`` where it is a convolution.
    ``numbers`` are the whole numbers among the arguments, in order, lists flattened: the order of a permutation, the sizes of
    a view (-1: what is left), the dimension of a concatenation. ``parameters`` counts the elements of other parameters,
    buffers and constants that it reads. ``free`` are the dimensions, batches apart, whose length is not fixed.
    ``computed_bias`` tells a bias that is not the layer's own parameter but made of
    others as the model runs; ``reads_booleans`` that some tensor it reads is of these.
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
    numbers: tuple[int, ...] = ()
    parameters: int = 0
    free: tuple[int, ...] = ()
    computed_bias: bool = False
    reads_booleans: bool = False

    @property
    def elements(self) -> int:
        """Elements of the result for one example."""
        return abs(math.prod(self.shape))  # batches alone are negative

    @property
    def weights(self) -> int:
        """Elements of the weight; 1 for operations without one."""
        return math.prod(self.weight_shape)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one example; 0 for operations without weights."""
        if self.op == "conv2d":
            return self.elements * self.weight_shape[1] * self.kernel[0] * self.kernel[1]
        if self.op == "conv_transpose2d":  # every value read meets every weight of its group's outputs
            positions = self.elements // (self.weight_shape[1] * self.groups * self.stride[0] * self.stride[1])
            return positions * self.weight_shape[0] * self.weight_shape[1] * self.kernel[0] * self.kernel[1]
        if self.op == "linear":
            return self.elements * self.weight_shape[1]
        return 0

    @property
    def is_gemm(self) -> bool:
        """Whether it is a linear over plain vectors, which ONNX writes as one ``Gemm``; over sequences it is a
        ``MatMul`` and an addition."""
        return self.op == "linear" and len(self.shape) == 2

    @property
    def outputs(self) -> int:
        """Output channels of a layer: convolutions have them in dimension 1 of the result, others in the last."""
        if self.op == "conv_transpose2d":
            return self.weight_shape[1] * self.groups
        return self.weight_shape[1] if self.op == "embedding" else self.weight_shape[0]


@dataclass(frozen=True)
class Graph:
    """Nodes in execution order. ``inputs`` are the names of the model's inputs, which are nodes of op ``input``."""

    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]

    @cached_property
    def by_name(self) -> Mapping[str, Node]:
        return {node.name: node for node in self.nodes}

    @cached_property
    def users(self) -> Mapping[str, tuple[Node, ...]]:
        """Node name → the nodes that read its result, in order."""
        found: dict[str, list[Node]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                if name in found:
                    found[name].append(node)
        return {name: tuple(nodes) for name, nodes in found.items()}

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
