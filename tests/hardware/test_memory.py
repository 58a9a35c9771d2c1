"""Peak memory, on a chain that can be counted by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autocomp.compress.structure import LayerShape, Structure
from autocomp.graph import BATCH, Graph, Node
from autocomp.hardware.memory import peak_memory_bytes
from autocomp.plan import Format

#: conv 3 → 8 with a bias, on 4×4; a rectifier; a flatten; a linear to 5 without a bias.
NODES = (
    Node("x", "input", (), (BATCH, 3, 4, 4)),
    Node("conv", "conv2d", ("x",), (BATCH, 8, 4, 4), "conv", (8, 3, 3, 3), True, kernel=(3, 3)),
    Node("relu", "relu", ("conv",), (BATCH, 8, 4, 4)),
    Node("flat", "flatten", ("relu",), (BATCH, 128)),
    Node("head", "linear", ("flat",), (BATCH, 5), "head", (5, 128)),
)
LAYERS = {
    "conv": LayerShape((8, 3, 3, 3), has_bias=True, format=None, kept=None),
    "head": LayerShape((5, 128), has_bias=False, format=None, kept=None),
}
CHAIN = Structure(Graph(NODES, ("head",)), LAYERS)

#: 216 and 8 and 640 floats.
WEIGHTS = 4 * (216 + 8 + 640)


@pytest.mark.parametrize("batch", [1, 4])
def test_weights_and_the_two_largest_neighbours(batch: int) -> None:
    assert peak_memory_bytes(CHAIN, batch) == WEIGHTS + batch * 4 * (128 + 128)


def test_what_is_still_to_be_read_counts() -> None:
    """With a shortcut from the input to the end, the 48 input values stay alive throughout."""
    add = Node("add", "add", ("flat", "x"), (BATCH, 128))
    graph = Graph((*NODES[:4], add, replace(NODES[4], inputs=("add",))), ("head",))
    assert peak_memory_bytes(Structure(graph, LAYERS), 1) == WEIGHTS + 4 * (128 + 128 + 48)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_a_quantized_weight_takes_a_byte_a_level_and_its_steps(bits: int) -> None:
    layers = {**LAYERS, "conv": replace(LAYERS["conv"], format=Format(bits))}
    weights = 216 + 4 * 8 + 4 * 8 + 4 * 640  # levels, biases, steps; and the float layer
    assert peak_memory_bytes(Structure(CHAIN.graph, layers), 1) == weights + 4 * 256


def test_a_rounded_activation_takes_a_byte() -> None:
    rounded = Structure(CHAIN.graph, LAYERS, frozenset({"conv", "relu", "flat"}))
    assert peak_memory_bytes(rounded, 1) == WEIGHTS + max(4 * 48 + 128, 128 + 128)


def test_sparse_weights_lie_dense_in_memory() -> None:
    layers = {**LAYERS, "conv": replace(LAYERS["conv"], kept=20)}
    assert peak_memory_bytes(Structure(CHAIN.graph, layers), 1) == peak_memory_bytes(CHAIN, 1)
