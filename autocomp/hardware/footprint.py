"""The memory that a file takes while it runs, measured in a process of its own.

What counts is what the process holds after some inferences over what it held before it loaded the file: weights as the
runtime lays them out, activations, and what the runtime needs to know of the graph. Copies that live only while the file
is loaded are given back first (glibc's ``malloc_trim``); without that, figures of one file differ by a tenth.
"""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from autocomp.errors import MeasurementError
from autocomp.hardware.runtimes.runtime import Array, cpu_runtime, reference_run

_STATUS = Path("/proc/self/status")
#: Inferences before the memory is read: the first few still allocate.
RUNS = 3


def tells_memory() -> bool:
    """Whether this system tells what a process holds."""
    return _STATUS.exists()


def footprint_bytes(runtime: str, model: bytes | Path, inputs: Sequence[Array], threads: int) -> int:
    """Bytes that a process holds more for running ``model``.

    Args:
        runtime: the name of one that :func:`autocomp.hardware.runtimes.runtime.cpu_runtime` knows.

    Raises:
        MeasurementError: the system does not tell (no ``/proc``), or the runtime refused the file.
    """
    if not tells_memory():
        raise MeasurementError(f"memory is read off {_STATUS}, which this system has not; measure it on Linux")
    with tempfile.TemporaryDirectory(prefix="autocomp-memory-") as folder:
        file, arrays = Path(folder, "model.onnx"), Path(folder, "inputs.npz")
        if isinstance(model, Path):
            file = model  # where it lies: weights may lie beside it
        else:
            file.write_bytes(model)
        np.savez(arrays, *inputs)
        command = [sys.executable, "-m", "autocomp.hardware.footprint", runtime, str(file), str(arrays), str(threads)]
        # However many cores there are, malloc gives every thread an arena of its own; one is what one thread has.
        ran = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "MALLOC_ARENA_MAX": "1"}
        )
    if ran.returncode != 0:
        last = (ran.stderr.strip().splitlines() or ["nothing"])[-1]
        raise MeasurementError(f"a file must run in a process of its own to tell its memory; it says: {last[:300]}")
    return int(ran.stdout)


def _held_bytes() -> int:
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    line = next(line for line in _STATUS.read_text(encoding="utf-8").splitlines() if line.startswith("VmRSS"))
    return 1024 * int(line.split()[1])


def _main(name: str, file: str, arrays: str, threads: int) -> None:
    runtime = cpu_runtime(name)
    with np.load(arrays) as stored:
        inputs = [stored[key] for key in stored.files]
    reference_run(runtime, threads)()  # the runtime itself is not the file's
    before = _held_bytes()
    loaded = runtime.load(Path(file), threads)
    for _ in range(RUNS):
        loaded.run(*inputs)
    sys.stdout.write(f"{_held_bytes() - before}\n")


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
