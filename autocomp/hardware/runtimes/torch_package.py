"""torch's packages (``.pt2``), run by stock torch on a GPU, or on the CPU: in a process of their own, which holds the device.

What is measured is the package as ``torch.export.load`` gives it, on CUDA captured as a CUDA graph. Nothing here was ever run
on a GPU: the same code runs on the CPU in the tests, but for the capture, the events and the profiler's device times.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any, ClassVar, Literal, cast

import numpy.typing as npt

from autocomp.errors import MeasurementError
from autocomp.hardware.fitted import KernelSample, timed_kernels
from autocomp.hardware.runtimes.runtime import Files, check_inputs, check_runs, check_threads
from autocomp.hardware.runtimes.torch_messages import (
    About,
    Answer,
    Bind,
    Block,
    Drop,
    Load,
    Profile,
    Refused,
    Request,
    Run,
)
from autocomp.hardware.torch_kernels import ExecutedNode, kernel_of

Array = npt.NDArray[Any]
Device = Literal["cuda", "cpu"]


class WorkerProcess:
    """A process that runs packages on one device; it ends with this one.

    Raises:
        MeasurementError: when asked, what the process refuses, or that it has ended.
    """

    def __init__(self, device: Device, threads: int) -> None:
        self._said = tempfile.TemporaryFile("w+b")  # noqa: SIM115  it lives as long as the process
        there, self_end = os.pipe()
        mine, theirs = os.pipe()
        command = [sys.executable, "-m", "autocomp.hardware.runtimes.torch_worker", device, str(threads)]
        self._process = subprocess.Popen(
            [*command, str(there), str(theirs)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._said,
            pass_fds=(there, theirs),
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        os.close(there)
        os.close(theirs)
        self._requests, self._answers = Connection(self_end, readable=False), Connection(mine, writable=False)
        self._lock = threading.Lock()
        self.numbers = itertools.count()
        #: Files that nobody holds any more. A finalizer may run in the middle of a request, and so only takes a note.
        self.unheld: deque[int] = deque()
        weakref.finalize(self, _end, self._requests, self._answers, self._process, self._said)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: Request) -> Answer:
        """Raises:
        MeasurementError: torch refuses, or the process has ended.
        """
        try:
            with self._lock:
                while self.unheld:
                    self._exchanged(Drop(self.unheld.popleft()))
                answer = self._exchanged(request)
        except (OSError, EOFError) as error:
            code = self._process.wait()
            self._said.seek(0)
            last = next(iter(self._said.read().decode(errors="replace").strip().splitlines()[-1:]), "nothing")
            raise MeasurementError(
                f"the process that runs torch packages must live as long as it is asked; it ended with {code} and said "
                f"{last[:300]!r}; is there enough memory?"
            ) from error
        if isinstance(answer, Refused):
            raise MeasurementError(
                f"torch must be able to run the package; it says: {answer.reason}; check the file and its inputs"
            )
        return cast("Answer", answer)

    def _exchanged(self, request: Request) -> object:
        self._requests.send(request)
        return self._answers.recv()


def _end(requests: Connection, answers: Connection, process: subprocess.Popen[bytes], said: IO[bytes]) -> None:
    """The process reads the end of its pipe, and ends."""
    requests.close()
    process.wait()
    answers.close()
    said.close()


#: One process for each device and number of threads: to begin one takes seconds.
_RUNNING: dict[tuple[Device, int], WorkerProcess] = {}


def _worker(device: Device, threads: int) -> WorkerProcess:
    """The process that is running; one that has ended is begun anew."""
    found = _RUNNING.get((device, threads))
    if found is None or not found.alive:
        found = _RUNNING[device, threads] = WorkerProcess(device, threads)
    return found


@dataclass(frozen=True, eq=False)
class FileInWorker:
    """A package that the process has loaded afresh. A dimension that it leaves open is None in ``input_shapes``."""

    worker: WorkerProcess = field(repr=False)
    number: int
    input_names: tuple[str, ...]
    input_shapes: tuple[tuple[int | None, ...], ...]
    input_dtypes: tuple[str, ...]

    def run(self, *arrays: Array) -> list[Array]:
        """All outputs, for inputs in the file's order, of the shapes and dtypes that the file declares.

        Raises:
            MeasurementError: torch refused the inputs, or failed on them.
        """
        check_inputs(self, arrays)
        return cast("list[Array]", self.worker.ask(Run(self.number, arrays)))

    def bound(self, *arrays: Array) -> RunInWorker:
        """See :class:`autocomp.hardware.runtimes.runtime.LoadedFile`. On CUDA it is captured now.

        Raises:
            MeasurementError: torch refused the inputs, or cannot capture what the file computes.
        """
        check_inputs(self, arrays)
        self.worker.ask(Bind(self.number, arrays))
        return RunInWorker(self)


@dataclass(frozen=True, eq=False)
class RunInWorker:
    """See :class:`autocomp.hardware.timing.TimesItself`. The inputs are on the device already, and outputs stay there."""

    file: FileInWorker

    def __call__(self) -> object:
        return self.block(0, 1, 1)

    def block(self, warmup: int, calls: int, samples: int) -> Sequence[float]:
        """By the device's own clock."""
        return cast("list[float]", self.file.worker.ask(Block(self.file.number, warmup, calls, samples)))


@dataclass(frozen=True)
class TorchPackages:
    """See :class:`autocomp.hardware.runtimes.runtime.Runtime`. ``threads`` are those of the CPU that runs or launches it."""

    device: Device
    files: ClassVar[Files] = "torch"

    def load(self, model: bytes | Path, threads: int) -> FileInWorker:
        """See :class:`autocomp.hardware.runtimes.runtime.Runtime`."""
        check_threads(threads)
        worker = _worker(self.device, threads)
        number = next(worker.numbers)
        about = cast("About", worker.ask(Load(number, _bytes(model))))
        file = FileInWorker(worker, number, about.names, about.shapes, about.dtypes)
        weakref.finalize(file, worker.unheld.append, number)
        return file

    def kernel_samples(
        self, model: bytes | Path, inputs: Sequence[Array], threads: int, runs: int
    ) -> tuple[KernelSample, ...]:
        """See :class:`autocomp.hardware.runtimes.runtime.Runtime`: on CUDA the time of the kernels that an operation launched,
        on the CPU that of the operation."""
        check_threads(threads)
        check_runs(runs)
        answer = _worker(self.device, threads).ask(Profile(_bytes(model), inputs, runs))
        nodes = cast("tuple[ExecutedNode, ...]", answer)
        executed = [(kernel, node.time_us) for node in nodes if (kernel := kernel_of(node)) is not None]
        return timed_kernels([kernel for kernel, _ in executed], [time_us for _, time_us in executed])


def _bytes(model: bytes | Path) -> bytes:
    return model if isinstance(model, bytes) else model.read_bytes()
