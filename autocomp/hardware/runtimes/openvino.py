"""openvino on the CPU: load a file, run it, and time the nodes of the graph that it compiles.

Stock settings for one request at a time, so that what is measured here is what a user of the file gets; only the threads
are set. A file is compiled for the shapes that it is run with, as ``model.reshape`` does it for whoever deploys one:
openvino works shapes that are left open out anew at every call.

Floats are computed as floats, or in bfloat16 where that is asked for. Left to itself openvino would take bfloat16 on every
CPU that has it: other numbers and other kernels than elsewhere, for one and the same file.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy.typing as npt

from autocomp.errors import MeasurementError
from autocomp.hardware.fitted import KernelSample
from autocomp.hardware.observed_openvino import CompiledNode, samples_of
from autocomp.hardware.runtimes.profiled import lower_half_mean
from autocomp.hardware.runtimes.runtime import Files, check_inputs, check_runs, check_threads

if TYPE_CHECKING:
    import openvino

Array = npt.NDArray[Any]

#: See :class:`autocomp.hardware.runtimes.runtime.Runtime`.
files: Files = "onnx"
Shape = tuple[int, ...]

#: openvino's words for what floats are computed in.
Precision = Literal["f32", "bf16"]

#: Runs at the start of a profile that are not counted.
WARMUP_RUNS = 5

#: openvino's words for what it may leave out, having laid the tensors out so that there is nothing to do. All else runs,
#: though openvino calls what takes it less than a microsecond not executed.
SPARED = frozenset(
    {"Const", "Input", "Output", "Reshape", "Transpose", "Reorder", "Split", "Concatenation", "StridedSlice", "Gather"}
)


@dataclass(frozen=True)
class OpenvinoFile:
    """A file that was read; compiled when it is first run with inputs of some shapes."""

    model: openvino.Model = field(repr=False, compare=False)
    threads: int
    precision: Precision
    input_names: tuple[str, ...]
    input_shapes: tuple[tuple[int | None, ...], ...]
    input_dtypes: tuple[str, ...]
    _compiled: dict[tuple[Shape, ...], openvino.CompiledModel] = field(default_factory=dict, repr=False, compare=False)

    def run(self, *arrays: Array) -> list[Array]:
        """All outputs, for inputs in the file's order, of the shapes and dtypes that the file declares.

        Raises:
            MeasurementError: openvino refused the inputs, or failed on them.
        """
        check_inputs(self, arrays)
        shapes = tuple(array.shape for array in arrays)
        try:
            if shapes not in self._compiled:
                self._compiled[shapes] = _compile(self.model, shapes, self.threads, self.precision, profiled=False)
            results = self._compiled[shapes](list(arrays))
        except _refusals() as error:
            raise MeasurementError(_one_line("run", error)) from error
        return [results[place] for place in range(len(results))]

    def bound(self, *arrays: Array) -> Callable[[], object]:
        """See :class:`autocomp.hardware.runtimes.runtime.LoadedFile`."""
        return partial(self.run, *arrays)


def load(model: bytes | Path, threads: int, precision: Precision = "f32") -> OpenvinoFile:
    """See :class:`autocomp.hardware.runtimes.runtime.Runtime`. A packed file is refused: openvino does not unpack it."""
    check_threads(threads)
    read = _read(model)
    return OpenvinoFile(
        model=read,
        threads=threads,
        precision=precision,
        input_names=tuple(one.any_name for one in read.inputs),
        input_shapes=tuple(
            tuple(None if size.is_dynamic else size.get_length() for size in one.partial_shape) for one in read.inputs
        ),
        input_dtypes=tuple(one.get_element_type().to_dtype().name for one in read.inputs),
    )


def kernel_samples(
    model: bytes | Path, inputs: Sequence[Array], threads: int, runs: int, precision: Precision = "f32"
) -> tuple[KernelSample, ...]:
    """See :class:`autocomp.hardware.runtimes.runtime.Runtime`."""
    return samples_of(compiled_nodes(model, inputs, threads, runs, precision))


@dataclass(frozen=True)
class InBfloat16:
    """The runtime that computes floats in bfloat16. Other numbers than floats', so that files are scored with it too."""

    files: Files = "onnx"

    def load(self, model: bytes | Path, threads: int) -> OpenvinoFile:
        """See :class:`autocomp.hardware.runtimes.runtime.Runtime`."""
        return load(model, threads, "bf16")

    def kernel_samples(
        self, model: bytes | Path, inputs: Sequence[Array], threads: int, runs: int
    ) -> tuple[KernelSample, ...]:
        """See :class:`autocomp.hardware.runtimes.runtime.Runtime`."""
        return kernel_samples(model, inputs, threads, runs, "bf16")


def compiled_nodes(
    model: bytes | Path, inputs: Sequence[Array], threads: int, runs: int, precision: Precision = "f32"
) -> tuple[CompiledNode, ...]:
    """The nodes of the compiled graph that are executed, in its order.

    Raises:
        RequestError: fewer than one thread or run.
        MeasurementError: openvino refused the file or the inputs.
    """
    check_runs(runs)
    check_threads(threads)
    times_us: dict[str, list[float]] = {}
    ran: set[str] = set()
    try:
        read = _read(model)
        kinds = {op.get_friendly_name(): _kind(op) for op in read.get_ops()}
        compiled = _compile(read, tuple(array.shape for array in inputs), threads, precision, profiled=True)
        request = compiled.create_infer_request()
        for run in range(WARMUP_RUNS + runs):
            request.infer(list(inputs))
            for info in request.profiling_info:
                if info.status == info.Status.EXECUTED:
                    ran.add(info.node_name)
                if run >= WARMUP_RUNS:
                    times_us.setdefault(info.node_name, []).append(info.real_time.total_seconds() * 1e6)
        graph = compiled.get_runtime_model()
    except _refusals() as error:
        raise MeasurementError(_one_line("run", error)) from error
    nodes = [
        _node(op, kinds, lower_half_mean(times_us.get(op.get_friendly_name(), [0.0]))) for op in graph.get_ordered_ops()
    ]
    return tuple(node for node in nodes if node.name in ran or node.kind not in SPARED)


def _kind(op: openvino.Node) -> str:
    """Of a file's layer, in openvino's words; x · sigmoid(x) is one to it."""
    if op.get_type_name() == "Multiply":
        given = [one.get_source_output() for one in op.inputs()]
        for gate, x in itertools.permutations(given):
            node = gate.get_node()
            if node.get_type_name() == "Sigmoid" and node.input(0).get_source_output() == x:
                return "Swish"
    return str(op.get_type_name())


def _node(op: openvino.Node, kinds: Mapping[str, str], time_us: float) -> CompiledNode:
    """Args:
    kinds: of the file's layers, by name.
    """
    about = op.get_rt_info()

    def word(key: str) -> str:
        return str(about[key].astype(str)) if key in about else ""

    first = op.inputs()[0].get_source_output() if op.inputs() else None
    sources = tuple(word("originalLayersNames").split(","))
    return CompiledNode(
        kind=word("layerType"),
        name=op.get_friendly_name(),
        sources=sources,
        source_kinds=tuple(kinds.get(name, "") for name in sources),
        primitive=word("primitiveType"),
        dtype=word("outputPrecisions").partition(",")[0],
        layout=word("outputLayouts").partition(",")[0],
        input_dtype="" if first is None else _of_result(first, "outputPrecisions"),
        input_layout="" if first is None else _of_result(first, "outputLayouts"),
        input_shapes=tuple(tuple(one.get_shape()) for one in op.inputs()),
        output_shapes=tuple(tuple(one.get_shape()) for one in op.outputs()),
        time_us=time_us,
    )


def _of_result(result: openvino.Output, key: str) -> str:
    """What is told of one result of a node that may have several."""
    words = str(result.get_node().get_rt_info()[key].astype(str)).split(",")
    return words[result.get_index()] if len(words) > result.get_index() else words[0]


def _read(model: bytes | Path) -> openvino.Model:
    import openvino

    core = openvino.Core()
    try:
        return core.read_model(model if isinstance(model, bytes) else str(model))
    except _refusals() as error:
        raise MeasurementError(_one_line("load", error)) from error


def _compile(
    model: openvino.Model, shapes: tuple[Shape, ...], threads: int, precision: Precision, *, profiled: bool
) -> openvino.CompiledModel:
    import openvino

    fixed = model.clone()
    fixed.reshape({one.any_name: list(shape) for one, shape in zip(fixed.inputs, shapes, strict=True)})
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERF_COUNT": profiled,
        "INFERENCE_PRECISION_HINT": precision,
    }
    return openvino.Core().compile_model(fixed, "CPU", settings)


def _refusals() -> tuple[type[Exception], ...]:
    """What openvino raises, in Python's own kinds."""
    return (RuntimeError, ValueError, TypeError)


def _one_line(verb: str, error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("Exception from")]
    reason = " ".join(lines)[:300]
    return f"openvino must be able to {verb} the file; it says: {reason}; check the file and its inputs"
