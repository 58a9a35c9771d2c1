"""A front point as a file: exported, loaded afresh, and its three numbers measured on it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from autocomp.compress.apply import origin
from autocomp.errors import WorkError
from autocomp.export.artifact import export
from autocomp.hardware import timed_files
from autocomp.hardware.kernels import Kernel
from autocomp.hardware.runtimes import onnxruntime
from autocomp.hardware.runtimes.runtime import LoadedFile, Loads, batch_outputs, cpu_runtime, loaded_run
from autocomp.hardware.target import Target
from autocomp.hardware.timed_files import Progress
from autocomp.hardware.timing import Timing
from autocomp.plan import Format, Plan
from autocomp.run import Json
from autocomp.search.drop import drop_interval
from autocomp.search.evaluate import Workbench
from autocomp.task import Predict, Score
from autocomp.trace import OutputForm
from autocomp.trial import Cost, Trial

FoundT = TypeVar("FoundT")


@dataclass(frozen=True)
class Exported:
    """A plan's file, the formats that layers got in it, and the scores of the simulated model and of the file on the test
    split."""

    plan: Plan
    model: bytes
    formats: Mapping[str, Format]
    simulated: Score
    measured: Score


def export_and_score(bench: Workbench, plan: Plan, weights: Path | None = None) -> Exported:
    """Export ``plan`` and score simulated model and file on the test split.

    Args:
        weights: that recovery gave it; None where it was not recovered.

    Raises:
        ExportError: the file cannot be written.
        MeasurementError: the runtime refuses the file.
    """
    compressed = bench.compress(plan, weights)
    model = export(compressed, bench.target.artifact)
    file = _loaded(bench, model)
    with torch.no_grad():
        simulated = bench.task.evaluate(compressed.model, "test")
    measured = bench.task.evaluate(predictor(file, bench.prepared.outputs), "test")
    if not (math.isfinite(simulated.value) and math.isfinite(measured.value)):
        raise WorkError(
            f"the {bench.task.metric.name} on the test split must be a finite number; got {simulated.value} of the "
            f"simulated model and {measured.value} of the file; check evaluate"
        )
    formats = {origin(plan, name)[0]: chosen for name, chosen in compressed.formats.items()}
    return Exported(plan, model, formats, simulated, measured)


def _scored_here(bench: Workbench) -> bool:
    """Whether files are scored by the target itself: it is in reach, and of this machine."""
    return bench.target.reachable and not bench.place.another_machine


def _loaded(bench: Workbench, model: bytes) -> LoadedFile:
    """The file, ready to be scored. One for a device that is not at hand is scored by what it means, not by this machine's
    integer kernels."""
    target = bench.target
    if _scored_here(bench):
        return cpu_runtime(target.runtime).load(model, target.threads)
    if target.artifact == "torch":
        return cpu_runtime("torch-cpu").load(model, target.threads)
    return onnxruntime.load(model, target.threads, as_written=True)


def _scored_by(target: Target) -> str:
    """The runtime that scores files of a target that is out of reach."""
    return "torch-cpu" if target.artifact == "torch" else "onnxruntime"


def predictor(file: LoadedFile, outputs: OutputForm) -> Predict:
    """What an evaluation calls: tensors in, and out what the model gives, nested as the model nests it."""

    def predict(*inputs: torch.Tensor) -> object:
        arrays = batch_outputs(file, *[tensor.detach().cpu().numpy() for tensor in inputs])
        return outputs.filled([torch.from_numpy(array) for array in arrays])

    return predict


def time_files(
    bench: Workbench, models: Mapping[int, bytes], progress: Progress | None = None, board: Loads | None = None
) -> dict[int, Timing]:
    """Interleaved timings of files at the target's batch and threads, by trial number. Empty where out of reach.

    Args:
        board: the target itself, where it is another machine that is connected to.
    """
    if board is not None:
        target = bench.target
        inputs = bench.prepared.example.arrays(target.batch)
        return timed_files.time_with(board, target.threads, inputs, models, progress, target.pace_us)
    if not bench.target.reachable:
        return {}
    work, place = partial(timed_files.time_files, pace_us=bench.target.pace_us), bench.place.elsewhere
    if place is None:
        return _measured(bench, partial(work, progress=progress), models)
    if progress is not None:
        progress(0, len(models), f"timing on {place}")
    return _measured(bench, work, models)


def run_once(bench: Workbench, model: bytes, board: Loads) -> None:
    """Raises:
    BoardError: the board cannot run the file; says why.
    """
    loaded_run(board, model, bench.target.threads, bench.prepared.example.arrays(bench.target.batch))()


def compiled_kernels(bench: Workbench, models: Mapping[int, bytes]) -> dict[int, tuple[Kernel, ...]]:
    """What the target's runtime compiles of files at its batch and threads, by their numbers."""
    return _measured(bench, timed_files.compiled_kernels, models)


def footprints(bench: Workbench, models: Mapping[int, bytes]) -> dict[int, int]:
    """The memory that files take at the target's batch and threads (bytes), by their numbers; none where the system does not
    tell."""
    return _measured(bench, timed_files.footprints, models) if models else {}


def _measured(
    bench: Workbench, work: Callable[..., dict[int, FoundT]], models: Mapping[int, bytes]
) -> dict[int, FoundT]:
    target = bench.target
    inputs = bench.prepared.example.arrays(target.batch)
    return bench.place.there(partial(work, target.runtime, target.threads, inputs, models))


def verification(
    bench: Workbench,
    point: Trial,
    predicted: Cost,
    exported: Exported,
    baseline: Score,
    timing: Timing | None,
    untouched: Timing | None = None,
    peak_memory_bytes: int | None = None,
    timed_on: str | None = None,
) -> Json:
    """What ``verification.json`` and the event of a verified point hold: predicted beside measured.

    Args:
        untouched: of the untouched model's file, side by side with it.
        peak_memory_bytes: of the file, where it was measured.
        timed_on: the board, in words, where the file was timed on one.
    """
    drop, low, high = drop_interval(bench.task.metric, baseline, exported.measured)
    return {
        "trial": point.number,
        "plan_hash": exported.plan.hash,
        "key": point.key,
        "format": bench.target.artifact,
        "file_sha256": hashlib.sha256(exported.model).hexdigest(),
        "layer_formats": {
            name: {"weight_bits": chosen.weight_bits, "name": str(chosen)} for name, chosen in exported.formats.items()
        },
        "predicted": {
            "size_bytes": predicted.size_bytes,
            "latency_ms": predicted.latency_ms,
            "latency_std_ms": predicted.latency_std_ms,
            "latency_source": predicted.latency_source,
        },
        "simulated": {"metric_test": exported.simulated.value},
        "measured": {
            "metric_test": exported.measured.value,
            "examples": None if exported.measured.outcomes is None else len(exported.measured.outcomes),
            "drop": drop,
            "drop_low": low if np.isfinite(low) else None,
            "drop_high": high if np.isfinite(high) else None,
            "size_bytes": len(exported.model),
            "latency_ms": None if timing is None else timing.latency_ms,
            "latency_spread": None if timing is None else timing.error,
            "settled": None if timing is None else timing.settled,
            "baseline_latency_ms": None if untouched is None else untouched.latency_ms,
            "peak_memory_bytes": peak_memory_bytes,
        },
        "runtime": bench.target.runtime if _scored_here(bench) else f"{_scored_by(bench.target)} (metric only)",
        "timed_on": timed_on,
    }
