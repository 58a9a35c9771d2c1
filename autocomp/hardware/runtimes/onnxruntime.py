"""onnxruntime on the CPU: load a file, run it, and time its nodes.

Stock settings, so that what is measured here is what a user of the file gets; only the threads are set.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from autocomp.errors import MeasurementError
from autocomp.hardware.fitted import KernelSample
from autocomp.hardware.observed import samples_of
from autocomp.hardware.runtimes.profiled import NodeEvents, NodeTime, OptimizedNode, join, name_nodes, optimized_nodes
from autocomp.hardware.runtimes.runtime import Files, check_inputs, check_runs, check_threads

if TYPE_CHECKING:
    import onnx
    import onnxruntime

Array = npt.NDArray[Any]

#: See :class:`autocomp.hardware.runtimes.runtime.Runtime`.
files: Files = "onnx"

#: Runs at the start of a profile that are not counted: the first allocate memory and pack weights.
WARMUP_RUNS = 5
_ERRORS_ONLY = 3
_NODE_EVENT = "_kernel_time"


@dataclass(frozen=True)
class LoadedModel:
    """A file in a session of its own. A dimension that the file leaves open is None in ``input_shapes``."""

    session: onnxruntime.InferenceSession = field(repr=False, compare=False)
    input_names: tuple[str, ...]
    input_shapes: tuple[tuple[int | None, ...], ...]
    input_dtypes: tuple[str, ...]

    def run(self, *arrays: Array) -> list[Array]:
        """All outputs, for inputs in the file's order, of the shapes and dtypes that the file declares.

        Raises:
            MeasurementError: onnxruntime refused the inputs, or failed on them.
        """
        check_inputs(self, arrays)
        try:
            outputs: list[Array] = self.session.run(None, dict(zip(self.input_names, arrays, strict=True)))
        except _refusals() as error:
            raise MeasurementError(_one_line("run", error)) from error
        return outputs

    def bound(self, *arrays: Array) -> Callable[[], object]:
        """See :class:`autocomp.hardware.runtimes.runtime.LoadedFile`."""
        return partial(self.run, *arrays)


def load(model: bytes | Path, threads: int, as_written: bool = False) -> LoadedModel:
    """A fresh session on ``threads`` threads, one operator at a time, on the CPU.

    Args:
        as_written: compute every operator as the file has it, rounded tensors in floats. That is what the file means on
            any device; onnxruntime's fused 8-bit kernels add up in 16 bits, and saturate, on x86 without VNNI.

    Raises:
        RequestError: fewer than one thread.
        MeasurementError: onnxruntime cannot load the file.
    """
    options = _options(threads)
    if as_written:
        options.graph_optimization_level = _as_it_is()
    return _loaded(_session(model, options))


def profile(model: bytes | Path, inputs: Sequence[Array], threads: int, runs: int = 60) -> tuple[NodeTime, ...]:
    """The time of every node of the graph that onnxruntime makes of ``model``, in the graph's order.

    ``inputs`` are in the file's order. The first few runs are left out of the ``runs``. The profiler counts in whole
    microseconds, rounded down, and its own work adds some two to every node, so that a reshape that does nothing reads
    2: the sum over the nodes is not the latency of the model, and a fit to whole models has to take that out.

    Raises:
        RequestError: fewer than one thread or run.
        MeasurementError: onnxruntime refused the file or the inputs.
    """
    check_runs(runs)
    with tempfile.TemporaryDirectory(prefix="autocomp-profile-") as folder:
        compiled = _compiled(model, _options(threads), Path(folder))
        # Profiled is the compiled graph itself, every node of it named: what onnxruntime fuses has no name of its own.
        name_nodes(compiled)
        options = _options(threads)
        options.graph_optimization_level = _as_it_is()
        options.add_session_config_entry(
            "session.disable_quant_qdq", "1"
        )  # or shared dequantizations are doubled again
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder, "profile"))
        session = _session(compiled.SerializeToString(), options)
        loaded = _loaded(session)
        try:
            for _ in range(WARMUP_RUNS + runs):
                loaded.run(*inputs)
        finally:
            written = session.end_profiling()
        return joined(compiled, json.loads(Path(written).read_text(encoding="utf-8")), inputs)


def joined(compiled: onnx.ModelProto, document: list[dict[str, Any]], inputs: Sequence[Array]) -> tuple[NodeTime, ...]:
    """Every node of a compiled graph with its time.

    Args:
        document: what onnxruntime's profiler wrote of it, with the first runs.
        inputs: that it was run on.
    """
    constants = {tensor.name for tensor in compiled.graph.initializer}
    names = [one.name for one in compiled.graph.input if one.name not in constants]
    given = {name: (array.dtype.name, array.shape) for name, array in zip(names, inputs, strict=True)}
    return join(compiled.graph, _node_events(document), given)


def kernel_samples(model: bytes | Path, inputs: Sequence[Array], threads: int, runs: int) -> tuple[KernelSample, ...]:
    """See :class:`autocomp.hardware.runtimes.runtime.Runtime`."""
    return samples_of(profile(model, inputs, threads, runs))


def optimized_ops(model: bytes | Path) -> tuple[OptimizedNode, ...]:
    """The nodes of the graph that onnxruntime makes of ``model`` on this machine, in its order.

    Raises:
        MeasurementError: onnxruntime cannot load the file.
    """
    with tempfile.TemporaryDirectory(prefix="autocomp-graph-") as folder:
        return optimized_nodes(_compiled(model, _options(threads=1), Path(folder)).graph)


def _options(threads: int) -> onnxruntime.SessionOptions:
    import onnxruntime

    check_threads(threads)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _ERRORS_ONLY
    # Idle threads may spin within a run, as they do by default, but not after it: they would take the processor from
    # the next file to be timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _session(model: bytes | Path, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
        )
    except _refusals() as error:
        raise MeasurementError(_one_line("load", error)) from error


def _loaded(session: onnxruntime.InferenceSession) -> LoadedModel:
    inputs = session.get_inputs()
    return LoadedModel(
        session=session,
        input_names=tuple(one.name for one in inputs),
        input_shapes=tuple(tuple(size if isinstance(size, int) else None for size in one.shape) for one in inputs),
        input_dtypes=tuple(numpy_name(one.type) for one in inputs),
    )


def numpy_name(tensor_type: str) -> str:
    """A type in onnxruntime's words in numpy's: ``tensor(float)`` → ``float32``."""
    word = tensor_type.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(word, word)


def _as_it_is() -> object:
    import onnxruntime

    return onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL


def _compiled(model: bytes | Path, options: onnxruntime.SessionOptions, folder: Path) -> onnx.ModelProto:
    """The model that onnxruntime makes of a file on this machine, with its own operators and layouts."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    if isinstance(model, Path):
        # With the weights that lie beside it: the compiled file lies elsewhere.
        with contextlib.suppress(DecodeError, OSError):  # onnxruntime's own word on the file follows
            model = onnx.load(model).SerializeToString()
    optimized = folder / "optimized.onnx"
    options.optimized_model_filepath = str(optimized)
    _session(model, options)
    return onnx.load(optimized)


def _node_events(document: list[dict[str, Any]]) -> dict[str, NodeEvents]:
    """The profiler's events by node, without the first runs."""
    by_node: dict[str, list[dict[str, Any]]] = {}
    for event in document:
        if event.get("cat") == "Node" and event["name"].endswith(_NODE_EVENT):
            by_node.setdefault(event["name"].removesuffix(_NODE_EVENT), []).append(event)
    return {
        name: NodeEvents(
            times_us=tuple(float(event["dur"]) for event in events[WARMUP_RUNS:]),
            outputs=tuple(
                (dtype, tuple(shape))
                for described in events[-1]["args"]["output_type_shape"]
                for dtype, shape in described.items()
            ),
        )
        for name, events in by_node.items()
    }


def _refusals() -> tuple[type[Exception], ...]:
    """What onnxruntime raises: kinds of its own that share no base, and Python's for inputs that it cannot take."""
    from onnxruntime.capi import onnxruntime_pybind11_state as native

    own = [kind for kind in vars(native).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*own, ValueError, RuntimeError)


def _one_line(verb: str, error: Exception) -> str:
    reason = " ".join(str(error).split()).removeprefix("[ONNXRuntimeError] : ")
    return f"onnxruntime must be able to {verb} the file; it says: {reason}; check the file and its inputs"
