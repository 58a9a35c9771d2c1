"""Files timed side by side, read as the runtime compiles them, and run for the memory that they take."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

from autocomp.hardware.footprint import footprint_bytes, tells_memory
from autocomp.hardware.runtimes.runtime import Loads, cpu_runtime, loaded_run, reference_run
from autocomp.hardware.timing import Timing, TimingSettings, measure

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from autocomp.hardware.kernels import Kernel
    from autocomp.hardware.target import RuntimeName

SETTINGS = TimingSettings(max_rounds=16)

#: Is told (rounds done, of so many, what is being done).
Progress = Callable[[int, int, str], None]
ResultT = TypeVar("ResultT")

#: A machine that is slower than it was when it was calibrated, by more than this factor, is disturbed, however evenly.
DISTURBED = 1.1

#: Runs of a file after which it is known which of its nodes are executed.
RUNS = 30


class Place(Protocol):
    """Where files of a target are measured."""

    @property
    def elsewhere(self) -> str | None:
        """What it is called; None where it is this process, which can tell how far it is."""
        ...

    @property
    def another_machine(self) -> bool:
        """Whether that is not the machine that this process is on, and files are scored on."""
        ...

    def there(self, work: Callable[[], ResultT]) -> ResultT:
        """Do something there."""
        ...


@dataclass(frozen=True)
class ThisMachine:
    """Measures here."""

    elsewhere: None = None
    another_machine: bool = False

    def there(self, work: Callable[[], ResultT]) -> ResultT:
        """Do it now."""
        return work()


THIS_MACHINE = ThisMachine()


def compiled_kernels(
    runtime: RuntimeName, threads: int, inputs: Sequence[npt.NDArray[np.generic]], models: Mapping[int, bytes]
) -> dict[int, tuple[Kernel, ...]]:
    """The kernels that the runtime compiles of files, in its order, by their numbers.

    Raises:
        MeasurementError: the runtime refuses a file.
    """
    runs = cpu_runtime(runtime)
    return {
        number: tuple(sample.kernel for sample in runs.kernel_samples(model, inputs, threads, RUNS))
        for number, model in models.items()
    }


def footprints(
    runtime: RuntimeName, threads: int, inputs: Sequence[npt.NDArray[np.generic]], models: Mapping[int, bytes]
) -> dict[int, int]:
    """The bytes that a process holds more for running files, by their numbers; none of any where the system does not tell, or
    the runtime runs them in a process of its own, as torch packages are.

    Raises:
        MeasurementError: the runtime refuses a file.
    """
    if not tells_memory() or cpu_runtime(runtime).files == "torch":
        return {}
    return {number: footprint_bytes(runtime, model, inputs, threads) for number, model in models.items()}


def time_files(
    runtime: RuntimeName,
    threads: int,
    inputs: Sequence[npt.NDArray[np.generic]],
    models: Mapping[int, bytes],
    progress: Progress | None = None,
    pace_us: float | None = None,
) -> dict[int, Timing]:
    """Interleaved timings of files on this machine, by their numbers.

    Args:
        inputs: of every file.
        pace_us: what the reference workload took when the machine was calibrated. What is timed while it takes much longer
            is not settled.

    Raises:
        MeasurementError: the runtime refuses a file.
    """
    return time_with(cpu_runtime(runtime), threads, inputs, models, progress, pace_us)


def time_with(
    runs: Loads,
    threads: int,
    inputs: Sequence[npt.NDArray[np.generic]],
    models: Mapping[int, bytes],
    progress: Progress | None = None,
    pace_us: float | None = None,
) -> dict[int, Timing]:
    """As :func:`time_files`, by a runtime that may be another machine's."""
    candidates = {str(number): partial(loaded_run, runs, model, threads, inputs) for number, model in models.items()}
    tell = None if progress is None else lambda done, of: progress(done, of, "timing")
    quiet_ms = math.inf if pace_us is None else pace_us / 1e3
    timings = measure(candidates, SETTINGS, tell, reference=reference_run(runs, threads), quiet_ms=quiet_ms)
    return {
        int(name): replace(timing, settled=timing.settled and timing.reference_ms <= DISTURBED * quiet_ms)
        for name, timing in timings.items()
    }


def slower_words(timings: Mapping[int, Timing], pace_us: float | None) -> str | None:
    """Where the machine was disturbed all along, or has become slower: by how much, and what to do; None where it was not."""
    if pace_us is None or not timings:
        return None
    times = statistics.median(timing.reference_ms for timing in timings.values()) * 1e3 / pace_us
    if times <= DISTURBED:
        return None
    return (
        f"the machine is {times:.1f} times slower than when it was calibrated, and what was timed meanwhile does not count as "
        "settled; verify again in a quieter moment; where it stays so, delete the folder of the calibration and calibrate anew"
    )
