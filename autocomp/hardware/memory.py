"""Peak memory of one inference: the weights as they lie in memory, and the largest set of activations alive at once."""

from __future__ import annotations

import math

from autocomp.compress.structure import Structure

FLOAT_BYTES = 4


def peak_memory_bytes(structure: Structure, batch: int) -> int:
    """Bytes of weights plus live activations at the worst moment.

    A packed weight counts as what it is unpacked to when the file is loaded: a byte a level where an integer kernel or a
    lookup reads it, else floats. A sparse one counts as dense.
    """
    weights = sum(FLOAT_BYTES * node.parameters for node in structure.graph.nodes)
    for node in structure.graph.layers:
        layer = structure.layers[node.layer or ""]
        stays = layer.format is not None and (layer.format.integer_activations or node.op == "embedding")
        weights += math.prod(layer.weight_shape) * (1 if stays else FLOAT_BYTES)
        weights += node.outputs * FLOAT_BYTES * (int(layer.has_bias) + int(layer.format is not None))
    return weights + batch * _activations(structure)


def _activations(structure: Structure) -> int:
    """The largest sum of results that are still to be read, for one example."""
    graph = structure.graph
    place = {node.name: position for position, node in enumerate(graph.nodes)}
    last = {name: max([place[name], *(place[user.name] for user in users)]) for name, users in graph.users.items()}
    largest = 0
    for position in range(len(graph.nodes)):
        alive = [node for node in graph.nodes[: position + 1] if last[node.name] >= position]
        largest = max(
            largest, sum(node.elements * (1 if node.name in structure.rounded else FLOAT_BYTES) for node in alive)
        )
    return largest
