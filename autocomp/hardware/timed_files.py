"""Files timed side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

from autocomp.hardware.runtimes.runtime import cpu_runtime, loaded_run, reference_run
from autocomp.hardware.timing import Timing, TimingSettings, measure

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from autocomp.hardware.target import RuntimeName

SETTINGS = TimingSettings(max_rounds=16)

#: Is told (rounds done, of so many, what is being done).
Progress = Callable[[int, int, str], None]


class TimeFiles(Protocol):
    """Times files on a machine."""

    def __call__(
        self,
        runtime: RuntimeName,
        threads: int,
        inputs: Sequence[npt.NDArray[np.generic]],
        models: Mapping[int, bytes],
        progress: Progress | None = None,
    ) -> dict[int, Timing]: ...


def time_files(
    runtime: RuntimeName,
    threads: int,
    inputs: Sequence[npt.NDArray[np.generic]],
    models: Mapping[int, bytes],
    progress: Progress | None = None,
) -> dict[int, Timing]:
    """Interleaved timings of files on this machine, by their numbers.

    Args:
        inputs: of every file.

    Raises:
        MeasurementError: the runtime refuses a file.
    """
    runs = cpu_runtime(runtime)
    candidates = {str(number): partial(loaded_run, runs, model, threads, inputs) for number, model in models.items()}
    tell = None if progress is None else lambda done, of: progress(done, of, "timing")
    timings = measure(candidates, SETTINGS, tell, reference=reference_run(runs, threads))
    return {int(name): timing for name, timing in timings.items()}
