"""What every runtime promises: to load a file, to run it, and to say what kernels it makes of it and how long each takes.

A runtime is a module of this folder with these functions, or an object of one; ``tests/hardware/test_runtimes.py`` holds
each of them to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from autocomp.errors import MeasurementError, RequestError
from autocomp.hardware.fitted import KernelSample

Array = npt.NDArray[Any]

#: Of the reference's products.
WEIGHTS = ((256, 256), (2048, 1024))


class Bindable(Protocol):
    """A file, loaded afresh, to be timed."""

    def bound(self, *arrays: Array) -> Callable[[], object]:
        """What runs it once on these inputs, for the instrument of :mod:`autocomp.hardware.timing`."""
        ...


#: What a runtime takes: ONNX, or torch's packages.
Files = Literal["onnx", "torch"]


class Loads(Protocol):
    """What loads files to be timed."""

    @property
    def files(self) -> Files: ...

    def load(self, model: bytes | Path, threads: int) -> Bindable:
        """See :meth:`Runtime.load`."""
        ...


class LoadedFile(Bindable, Protocol):
    """A file, loaded afresh. A dimension that the file leaves open is None in ``input_shapes``."""

    @property
    def input_names(self) -> tuple[str, ...]: ...

    @property
    def input_shapes(self) -> tuple[tuple[int | None, ...], ...]: ...

    @property
    def input_dtypes(self) -> tuple[str, ...]: ...

    def run(self, *arrays: Array) -> list[Array]:
        """All outputs, for inputs in the file's order, of the shapes and dtypes that the file declares.

        Raises:
            MeasurementError: the runtime refused the inputs, or failed on them.
        """
        ...


class Runtime(Protocol):
    """Runs files on this machine, or on a board, on a given number of threads, with stock settings."""

    @property
    def files(self) -> Files: ...

    def load(self, model: bytes | Path, threads: int) -> LoadedFile:
        """A file in a session of its own.

        Raises:
            RequestError: fewer than one thread.
            MeasurementError: the runtime cannot load the file.
        """
        ...

    def kernel_samples(
        self, model: bytes | Path, inputs: Sequence[Array], threads: int, runs: int
    ) -> tuple[KernelSample, ...]:
        """The kernels of the graph that the runtime compiles of ``model``, in its order, each with the mean of the
        lower half of ``runs`` times, the profiler's own cost included. One that lowering never predicts keeps the
        runtime's name.

        Raises:
            RequestError: fewer than one thread or run.
            MeasurementError: the runtime refused the file or the inputs.
        """
        ...


def check_threads(threads: int) -> None:
    """Raises:
    RequestError: fewer than one.
    """
    if threads < 1:
        raise RequestError(f"threads must be at least 1; got {threads}")


def check_runs(runs: int) -> None:
    """Raises:
    RequestError: fewer than one.
    """
    if runs < 1:
        raise RequestError(f"a profile needs at least 1 run; got {runs}")


def check_inputs(file: LoadedFile, arrays: Sequence[Array]) -> None:
    """Raises:
    MeasurementError: not as many as the file takes.
    """
    if len(arrays) != len(file.input_names):
        raise MeasurementError(
            f"the file takes {len(file.input_names)} inputs ({', '.join(file.input_names)}); got {len(arrays)}; "
            "give them in this order"
        )


def cpu_runtime(name: str) -> Runtime:
    """The runtime of that name, loaded now."""
    if name.startswith("openvino"):
        from autocomp.hardware.runtimes import openvino

        return openvino.InBfloat16() if name == "openvino-bf16" else openvino
    if name.startswith("torch"):
        from autocomp.hardware.runtimes.torch_package import TorchPackages

        return TorchPackages("cuda" if name == "torch-cuda" else "cpu")
    from autocomp.hardware.runtimes import onnxruntime

    return onnxruntime


def loaded_run(runtime: Loads, model: bytes | Path, threads: int, inputs: Sequence[Array]) -> Callable[[], object]:
    """A file loaded afresh, and what runs it once on these inputs: a candidate for
    :func:`autocomp.hardware.timing.measure`.

    Raises:
        RequestError: fewer than one thread.
        MeasurementError: the runtime cannot load the file.
    """
    return runtime.load(model, threads).bound(*inputs)


def reference_run(runtime: Loads, threads: int) -> Callable[[], object]:
    """A fixed computation of less than a millisecond, to time beside files: two products of 64×256 with 256×256 floats, and
    a vector times 8 MB of weights. What slows a file down slows this as well: a neighbour on the same core or a lower
    clock for vector units the products, which whole numbers would not show; a neighbour in the shared cache the vector.
    """
    model = _reference_package() if runtime.files == "torch" else _reference_file()
    return loaded_run(runtime, model, threads, [np.ones((64, 256), np.float32), np.ones((1, 2048), np.float32)])


@cache
def _reference_package() -> bytes:
    import torch

    from autocomp.export.package import package

    class Products(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.large = (torch.nn.Parameter(torch.from_numpy(_random(*shape))) for shape in WEIGHTS)

        def forward(self, x: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x @ self.w @ self.w, v @ self.large

    with torch.no_grad():
        return package(torch.export.export(Products(), (torch.ones(64, 256), torch.ones(1, 2048)), strict=False))


def _random(rows: int, columns: int) -> npt.NDArray[np.float32]:
    values = np.random.default_rng(0).standard_normal((rows, columns)) / np.sqrt(rows)
    return np.asarray(values, np.float32)


@cache
def _reference_file() -> bytes:
    import onnx
    from onnx import helper, numpy_helper

    def tensor(name: str, rows: int, columns: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (rows, columns))

    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("MatMul", ["h", "w"], ["y"]),
            helper.make_node("MatMul", ["v", "large"], ["z"]),
        ],
        "reference",
        [tensor("x", 64, 256), tensor("v", 1, 2048)],
        [tensor("y", 64, 256), tensor("z", 1, 1024)],
        [numpy_helper.from_array(_random(*shape), name) for shape, name in zip(WEIGHTS, ("w", "large"))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return bytes(model.SerializeToString())


def batch_outputs(file: LoadedFile, *arrays: Array) -> list[Array]:
    """All outputs for a batch of inputs, batch first.

    A file whose batch is fixed gets the batch in pieces of that size; the last piece is filled up by repeating its last
    example, and what comes of the filling is dropped.

    Raises:
        MeasurementError: the runtime refused the inputs, or failed on them.
    """
    fixed = file.input_shapes[0][0] if file.input_shapes and file.input_shapes[0] else None
    count = len(arrays[0]) if arrays and arrays[0].ndim else 0
    if fixed is None or count in (0, fixed):
        return file.run(*arrays)
    pieces = []
    for start in range(0, count, fixed):
        piece = [array[start : start + fixed] for array in arrays]
        missing = fixed - len(piece[0])
        if missing:
            piece = [np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) for part in piece]
        pieces.append(file.run(*piece))
    return [np.concatenate(parts)[:count] for parts in zip(*pieces)]


def example_arrays(
    file: LoadedFile, batch: int = 1, seed: int = 0, shapes: Sequence[tuple[int, ...]] = ()
) -> tuple[Array, ...]:
    """Inputs of the right shapes and dtypes: floats are standard normal, everything else zero (a valid index anywhere).

    Args:
        shapes: of one example of each input, in the file's order, batch left out; default: as the file says.

    Raises:
        RequestError: shapes are given that are not the file's.
        MeasurementError: the file leaves a dimension other than the first open, and no shapes are given.
    """
    generator = np.random.default_rng(seed)
    arrays = []
    if shapes and len(shapes) != len(file.input_names):
        raise RequestError(
            f"the file takes {len(file.input_names)} inputs; got {len(shapes)} shapes; give one for each"
        )
    for place, (name, shape, dtype) in enumerate(
        zip(file.input_names, file.input_shapes, file.input_dtypes, strict=True)
    ):
        given = shapes[place] if shapes else shape[1:]
        if len(given) != len(shape) - 1 or any(b not in (None, a) for a, b in zip(given, shape[1:], strict=False)):
            raise RequestError(f"input {name!r} is {shape} with the batch first; got {given} for one example")
        if None in given:
            raise MeasurementError(
                f"example inputs need every dimension but the first fixed; input {name!r} has {shape}; "
                "give an example's shape"
            )
        sizes = [batch if shape[0] is None else shape[0], *(size for size in given if size is not None)]
        if np.issubdtype(np.dtype(dtype), np.floating):
            arrays.append(generator.standard_normal(sizes).astype(dtype))
        else:
            arrays.append(np.zeros(sizes, dtype))
    return tuple(arrays)
