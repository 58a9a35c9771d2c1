"""The memory that a network takes while it runs.

Counted, where nothing was measured: the weights as they lie in memory, and the largest set of activations alive at once.
Fitted, where a calibration measured it: a non-negative sum of what takes memory in a runtime. Beside weights and
activations these are the kernels themselves, above all those that are compiled for one shape each.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autocomp.compress.structure import Structure
from autocomp.hardware.kernels import Kernel

FLOAT_BYTES = 4

#: What takes memory: bytes for the process, for a kernel of each kind (again for each of its shapes), and per byte.
PARTS = (
    "process",
    "kernels",
    "float_layers",
    "integer_layers",
    "kernel_shapes",
    "float_layer_shapes",
    "integer_layer_shapes",
    "float_convolution_weights",
    "float_product_weights",
    "integer_convolution_weights",
    "integer_product_weights",
    "tables",
    "activations",
)
#: What the allocator leaves to chance.
CHANCE_BYTES = 1e6
#: Networks are held out in so many turns when the error is determined.
FOLDS = 5


@dataclass(frozen=True)
class MeasuredMemory:
    """What a process held for a file: the file's kernels, the bytes of the tables that it looks up in, and the bytes."""

    kernels: tuple[Kernel, ...]
    table_bytes: int
    measured_bytes: int


@dataclass(frozen=True)
class MemoryModel:
    """Bytes for one of each of :data:`PARTS`, and the error on held-out files: mean of the absolute relative one, and the
    share within ±10 %."""

    bytes_for: tuple[float, ...]
    held_out_mean: float
    held_out_within_10: float
    files: int

    def predict(self, kernels: Sequence[Kernel], table_bytes: int) -> int:
        """Bytes that a process holds more for running a network of these kernels."""
        return round(float(self.shares(kernels, table_bytes).sum()))

    def shares(self, kernels: Sequence[Kernel], table_bytes: int) -> npt.NDArray[np.float64]:
        """Bytes for each of :data:`PARTS`."""
        found: npt.NDArray[np.float64] = _parts(kernels, table_bytes) * np.array(self.bytes_for)
        return found


def fit_memory(files: Sequence[MeasuredMemory], architectures: Sequence[str]) -> MemoryModel:
    """Non-negative least squares, errors relative to what was measured and a little more: of the smallest files much is
    chance. The held-out error is that of fits without a fifth of the architectures.

    Args:
        architectures: of each file.
    """
    parts = np.array([_parts(one.kernels, one.table_bytes) for one in files])
    measured = np.array([float(one.measured_bytes) for one in files])
    errors = np.zeros(len(files))
    numbers = {name: number for number, name in enumerate(dict.fromkeys(architectures))}
    folds = np.array([numbers[name] % FOLDS for name in architectures])
    for fold in range(FOLDS):
        out = folds == fold
        if out.any() and not out.all():
            errors[out] = parts[out] @ _bytes_for(parts[~out], measured[~out]) / measured[out] - 1.0
    absolute = np.abs(errors)
    return MemoryModel(
        tuple(_bytes_for(parts, measured).tolist()), float(absolute.mean()), float((absolute <= 0.1).mean()), len(files)
    )


def _bytes_for(parts: npt.NDArray[np.float64], measured: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    from scipy.optimize import nnls

    scale = np.maximum(parts.max(axis=0), 1.0)
    weights = 1.0 / (measured + CHANCE_BYTES)
    solution, _ = nnls(parts / scale * weights[:, None], measured * weights)
    found: npt.NDArray[np.float64] = solution / scale
    return found


def _parts(kernels: Sequence[Kernel], table_bytes: int) -> npt.NDArray[np.float64]:
    floats = [kernel for kernel in kernels if kernel.weight_bytes > kernel.weight_elements]
    integers = [kernel for kernel in kernels if 0 < kernel.weight_bytes == kernel.weight_elements]
    glue = [kernel for kernel in kernels if not kernel.weight_elements]
    weights = [
        sum(kernel.weight_bytes for kernel in kinds if ("conv" in kernel.op) == convolution)
        for kinds in (floats, integers)
        for convolution in (True, False)
    ]
    activations = max((FLOAT_BYTES * (kernel.in_elements + kernel.out_elements) for kernel in kernels), default=0)
    return np.array(
        [
            1.0,
            *(len(kinds) for kinds in (glue, floats, integers)),
            *(_shapes(kinds) for kinds in (glue, floats, integers)),
            *weights,
            table_bytes,
            activations,
        ],
        dtype=np.float64,
    )


def _shapes(kernels: Collection[Kernel]) -> int:
    return len({kernel.shape for kernel in kernels})


def table_bytes(structure: Structure) -> int:
    """Of the tables that a network looks up in, as they lie in memory."""
    tables = [node for node in structure.graph.layers if node.op == "embedding"]
    integers = structure.integer_tables
    return sum(node.weights * (1 if node.layer in integers else FLOAT_BYTES) for node in tables)


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
