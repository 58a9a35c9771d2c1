"""Measures this machine and fits its latency model. Interrupted, it goes on where it stopped."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from autocomp.errors import BoardLostError, MeasurementError
from autocomp.hardware.design import next_network, parts_by_error
from autocomp.hardware.experiment import FAMILIES, Packages, Specimen, network_files, network_number
from autocomp.hardware.fingerprint import Fingerprint
from autocomp.hardware.fit import QUIET, fit
from autocomp.hardware.fitted import FittedModel, KernelSample
from autocomp.hardware.gains import Gain, measure_gains
from autocomp.hardware.measured_memory import measured_memory
from autocomp.hardware.measurements import (
    PROFILED,
    MeasuredNetwork,
    Row,
    append,
    file_rows,
    kernel_row,
    read_measurements,
    whole,
)
from autocomp.hardware.memory import MemoryModel
from autocomp.hardware.runtimes.runtime import Runtime, cpu_runtime, loaded_run, reference_run
from autocomp.hardware.timing import Timing, TimingSettings, measure, sample_ms

#: Calibration wants many files more than it wants each to the last percent; and of those with many weights, which feel
#: every neighbour in the shared cache, it wants to have some at all.
SETTINGS = TimingSettings(repeats=20, max_rounds=10, tolerance=0.04, patience_s=15.0)
#: Shares of the budget after which it is looked at which families of networks are foreseen worst.
LOOKS = (0.3, 0.6)
#: The seed of the networks that are profiled alone, from that of those that are timed.
OTHER_SEED = 1
#: Of the files that are profiled alone, one in so many tells of kernels that only move or convert values as well.
WHOLE_EVERY = 4
#: Networks that have most kinds of kernel between them. On a slow machine few files are timed within a budget, and a profile of
#: these is what makes the model know a kind at all.
FIRST = 2 * len(FAMILIES)
#: 64-bit x86 by its names.
X86 = frozenset({"x86_64", "AMD64", "amd64"})
#: Runs of a file under the profiler.
PROFILE_RUNS = 40
#: Where a runtime has refused so many networks and none was timed, it cannot be calibrated.
MOST_REFUSED = 8

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Calibration:
    """A finished calibration. Of ``profiled`` more kernels the file was not timed, ``dropped`` files never settled and were
    left out; ``gains`` are what 8 bits and the like are worth; ``memory`` is None on a system that does not tell what a
    process holds."""

    model: FittedModel
    networks: tuple[MeasuredNetwork, ...]
    profiled: int
    dropped: int
    gains: tuple[Gain, ...]
    memory: MemoryModel | None


def nchwc_block(fingerprint: Fingerprint) -> int:
    """Channels in a block of onnxruntime's NCHWc layout on such a CPU, as far as is known; 1 where it has none."""
    if fingerprint.architecture not in X86:
        return 1
    return 16 if "avx512f" in fingerprint.features else 8


def measured_block(runtime: Runtime) -> int:
    """Channels in a block of onnxruntime's NCHWc layout, by what it compiles of a convolution with one filter: that writes a
    whole block. 1 where it uses no such layout."""
    import onnx
    from onnx import helper

    size = 8
    image, result = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (1, channels, size, size))
        for name, channels in (("x", 4), ("y", 1))
    )
    filters = helper.make_tensor("w", onnx.TensorProto.FLOAT, (1, 4, 3, 3), [0.5] * 36)
    conv = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    graph = helper.make_graph([conv], "block", [image], [result], [filters])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    samples = runtime.kernel_samples(model.SerializeToString(), [np.zeros((1, 4, size, size), np.float32)], 1, 1)
    blocked = [one.kernel.out_elements // size**2 for one in samples if one.kernel.op.startswith("conv_nchwc")]
    return max(blocked, default=1)


def narrow_products(fingerprint: Fingerprint) -> bool:
    """Whether 8-bit products on such a CPU are added up in 16 bits: x86 before VNNI."""
    features = set(fingerprint.features)
    return "avx2" in features and not features & {"avx512_vnni", "avx_vnni"}


def calibrate(
    folder: Path,
    budget_s: float,
    threads: int,
    batch: int,
    here: Fingerprint,
    seed: int = 0,
    progress: Progress | None = None,
    elsewhere: Runtime | None = None,
    packages: Packages | None = None,
) -> Calibration:
    """Measure random compressed networks until the budget is spent, then fit.

    Args:
        folder: where ``measurements.csv`` grows, file by file; an earlier one there is continued.
        budget_s: seconds for measuring, those of an earlier, interrupted calibration not counted.
        threads, batch: of the target.
        here: the machine that is calibrated, with its runtime.
        progress: called with the share done and a line of what was found.
        elsewhere: the runtime, where that machine is another one; memory is not measured there.
        packages: how the runtime's torch packages are written; None for ONNX. Of packages memory is not measured either: it is
            the device's.

    Raises:
        MeasurementError: too few files settled to fit a model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "measurements.csv"
    if path.exists() and (kept := whole(text := path.read_text(encoding="utf-8"))) != text:
        path.write_text(kept, encoding="utf-8")
    how = _Conditions(cpu_runtime(here.runtime) if elsewhere is None else elsewhere, threads, batch, here, packages)
    dropped = _measure(path, budget_s, how, seed, progress)
    if progress is not None:
        progress(1.0, "measuring what 8 bits, zeros, channels and ranks are worth")
    gains = measure_gains(folder / "gains.csv", how.runtime, threads, batch, narrow_products(here), packages)
    done = read_measurements(path)
    networks, profiled = done.networks, done.profiled
    memory = None
    if elsewhere is None and packages is None:
        if progress is not None:
            progress(1.0, "measuring memory")
        memory = measured_memory(folder / "memory.csv", networks, here, threads, batch, narrow_products(here))
    repeatability = statistics.median([network.spread for network in networks]) if networks else 0.0
    if progress is not None:
        progress(1.0, f"fitting to {len(networks)} files, and to parts of them for the held-out error")
    note = "random nets (residual, plain, dense, inverted residuals, transformers, perceptrons); architectures held out"
    return Calibration(fit(networks, profiled, repeatability, note), networks, len(profiled), dropped, gains, memory)


@dataclass(frozen=True)
class _Conditions:
    """What files are measured with."""

    runtime: Runtime
    threads: int
    batch: int
    here: Fingerprint
    packages: Packages | None


def _measure(path: Path, budget_s: float, how: _Conditions, seed: int, progress: Progress | None) -> int:
    """Append measured networks to ``path`` until the budget is spent; how many never settled."""
    done = read_measurements(path)
    taken, alone = done.timed_numbers, done.profiled_numbers
    narrow, rounds_at_run_time = narrow_products(how.here), how.here.runtime == "onnxruntime"
    parts, looks = parts_by_error(done), list(LOOKS)
    reference = reference_run(how.runtime, how.threads)
    began, count, dropped, refused = time.monotonic(), len(done.networks), 0, 0
    quiet_ms = min((network.reference_us / 1e3 for network in done.networks), default=math.inf)
    while (spent := time.monotonic() - began) < budget_s:
        if looks and spent > looks[0] * budget_s:
            looks.pop(0)
            parts = parts_by_error(read_measurements(path))
        started = time.monotonic()
        # Files of one network are measured side by side.
        number = next_network(taken, parts)
        taken.add(number)
        group = network_files(seed, number, narrow, rounds_at_run_time, how.packages)
        rows: list[Row] = []
        try:
            timings = _time_group(group, how, reference, quiet_ms)
            for specimen in group:
                timing = timings[specimen.name]
                quiet_ms = min(quiet_ms, timing.reference_ms)
                if timing.settled:
                    rows.extend(file_rows(specimen.name, timing, _profile(specimen, how)))
        except BoardLostError:
            raise
        except MeasurementError as error:
            refused += 1
            if refused == MOST_REFUSED and not count:
                raise
            if progress is not None:
                progress(min(1.0, spent / budget_s), f"a network is left out, which the runtime refuses: {error}")
            # A runtime in a process of its own may have ended with it.
            reference = reference_run(how.runtime, how.threads)
            continue
        settled = sum(timing.settled for timing in timings.values())
        count, dropped = count + settled, dropped + len(group) - settled
        append(path, rows)
        # As long again: a profile is had for a tenth of the time of a timing, and tells of other shapes.
        now = time.monotonic()
        until = now + (now - started)
        while time.monotonic() <= until:
            number = next_network(alone, parts)
            alone.add(number)
            files = network_files(seed + OTHER_SEED, number, narrow, rounds_at_run_time, how.packages)
            try:
                append(path, _profiled_rows(files[number % len(files)], how, reference, quiet_ms))
            except BoardLostError:
                raise
            except MeasurementError:
                continue  # one that the runtime refuses, as it does where files are timed
        if progress is not None:
            latencies = ", ".join(f"{timings[s.name].latency_ms:.3f}" for s in group)
            progress(min(1.0, spent / budget_s), f"{count} files measured; last: {latencies} ms")
    return dropped


def _profiled_rows(specimen: Specimen, how: _Conditions, reference: Callable[[], object], quiet_ms: float) -> list[Row]:
    """The kernels that multiply; of the first networks, which have most kinds of kernel between them, and of one file in
    :data:`WHOLE_EVERY` after these, all of them. None where the machine was not quiet before and after."""
    number = network_number(specimen.name)
    whole = number < FIRST or number % WHOLE_EVERY == 0
    limit_ms = QUIET * quiet_ms
    if sample_ms(reference, SETTINGS) > limit_ms:
        return []
    samples = _profile(specimen, how)
    if sample_ms(reference, SETTINGS) > limit_ms:
        return []
    return [kernel_row(specimen.name, PROFILED, sample) for sample in samples if whole or sample.kernel.macs]


def _time_group(
    group: Sequence[Specimen], how: _Conditions, reference: Callable[[], object], quiet_ms: float
) -> dict[str, Timing]:
    candidates = {
        one.name: partial(loaded_run, how.runtime, one.model, how.threads, [one.batch_of(how.batch)]) for one in group
    }
    return measure(candidates, SETTINGS, reference=reference, quiet_ms=quiet_ms)


def _profile(specimen: Specimen, how: _Conditions) -> Sequence[KernelSample]:
    return how.runtime.kernel_samples(specimen.model, [specimen.batch_of(how.batch)], how.threads, PROFILE_RUNS)
