"""What a model under a plan, or an ONNX file, is foreseen to take on a target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autocomp.compress.apply import apply
from autocomp.compress.prepare import prepare
from autocomp.compress.rebuild import Prepared
from autocomp.compress.structure import restructure
from autocomp.errors import RequestError, UncoveredKernelError
from autocomp.export.artifact import export
from autocomp.hardware.followed import CompiledPlan, followed
from autocomp.hardware.footprint import footprint_bytes
from autocomp.hardware.kernels import Kernel
from autocomp.hardware.latency import Forecast, MemorySource
from autocomp.hardware.runtimes.runtime import cpu_runtime, example_arrays
from autocomp.hardware.target import Target
from autocomp.hardware.timed_files import RUNS, compiled_kernels
from autocomp.plan import Plan
from autocomp.task import Task


def forecast_plan(task: Task, plan: Plan, target: Target, in_part: bool) -> Forecast:
    """Of a task's model under a plan. Where the target's runtime is on this machine, the kernels are those of the graph that
    it compiles of the file.

    Args:
        in_part: where the latency model does not know all kernels, predict the others.

    Raises:
        UncoveredKernelError: the latency model does not know a kernel, and ``in_part`` is False.
    """
    prepared = prepare(task.model, task.example_inputs, task.dynamic_dims)
    structure = restructure(prepared.inventory, plan, target.numerics)
    target.check_kernels(structure)
    kernels = target.lower(structure)
    if target.reachable:
        kernels = _as_compiled(kernels, task, prepared, plan, target)
    memory = target.peak_memory_bytes(structure, kernels)
    return _forecast(target, kernels, memory, "counted" if target.memory is None else "fitted", in_part)


def forecast_file(path: Path, target: Target, input_shapes: Sequence[tuple[int, ...]], in_part: bool) -> Forecast:
    """Of an ONNX file. Its memory is measured.

    Args:
        input_shapes: of one example of each input, where the file leaves dimensions open.
        in_part: where the latency model does not know all kernels, predict the others.

    Raises:
        RequestError: the target is not this machine, there is no such file, or its batch is fixed and not the target's.
        UncoveredKernelError: the latency model does not know a kernel, and ``in_part`` is False.
        MeasurementError: the runtime cannot load the file.
    """
    if not target.reachable:
        raise RequestError(
            f"a file's kernels are read off the graph that the runtime compiles of it on this machine; {target.name} runs "
            f"{target.runtime}, elsewhere; give a task, or --target cpu"
        )
    if target.artifact == "torch":
        raise RequestError(
            f"a file is predicted by a runtime that takes ONNX; got {path} for {target.name}, which runs torch packages; give "
            "a task"
        )
    if not path.is_file():
        raise RequestError(f"an ONNX file must exist; got {path}")
    runtime = cpu_runtime(target.runtime)
    file = runtime.load(path, target.threads)
    # The first input has the batch; others may be states, whose first dimension is something else.
    fixed = file.input_shapes[0][0] if file.input_shapes and file.input_shapes[0] else None
    if fixed not in (None, target.batch):
        raise RequestError(
            f"a file whose batch is fixed is predicted at that; {path} has {fixed}, got {target.batch}; say --batch {fixed}"
        )
    inputs = example_arrays(file, target.batch, shapes=input_shapes)
    kernels = [sample.kernel for sample in runtime.kernel_samples(path, inputs, target.threads, RUNS)]
    memory = footprint_bytes(target.runtime, path, inputs, target.threads)
    return _forecast(target, kernels, memory, "measured", in_part)


def _as_compiled(
    foreseen: tuple[Kernel, ...], task: Task, prepared: Prepared, plan: Plan, target: Target
) -> tuple[Kernel, ...]:
    """The kernels that the target's runtime makes of a plan's file, called after what they compute."""
    compressed = apply(prepared, plan, task.calibration, target.numerics)
    file = export(compressed, target.artifact)
    inputs = prepared.example.arrays(target.batch)
    (compiled,) = compiled_kernels(target.runtime, target.threads, inputs, {0: file}).values()
    return followed(target.lower, [CompiledPlan(foreseen, compiled)], lambda _: True).put_right(foreseen)


def _forecast(
    target: Target, kernels: Sequence[Kernel], memory: int, memory_source: MemorySource, in_part: bool
) -> Forecast:
    try:
        return Forecast(target.model.predict(kernels), memory, memory_source)
    except UncoveredKernelError as error:
        if not in_part:
            raise
        covered = [kernel for kernel in kernels if target.model.covers(kernel)]
        return Forecast(target.model.predict(covered), memory, memory_source, error)
