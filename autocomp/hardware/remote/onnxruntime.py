"""onnxruntime on a board, by any of its execution providers: a runtime like those of this machine."""

from __future__ import annotations

import json
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy.typing as npt

from autocomp.errors import BoardError
from autocomp.hardware.fingerprint import Fingerprint, from_cpuinfo
from autocomp.hardware.fitted import KernelSample
from autocomp.hardware.observed import samples_of
from autocomp.hardware.remote import agent
from autocomp.hardware.remote.connection import Answer, Board
from autocomp.hardware.runtimes.onnxruntime import WARMUP_RUNS, joined, numpy_name
from autocomp.hardware.runtimes.profiled import name_nodes
from autocomp.hardware.runtimes.runtime import Files, check_inputs, check_runs, check_threads

Array = npt.NDArray[Any]

CPU = "CPUExecutionProvider"


@dataclass(frozen=True, eq=False)
class FileOnBoard:
    """A file that is loaded on a board. A dimension that it leaves open is None in ``input_shapes``."""

    board: Board = field(repr=False)
    name: str
    input_names: tuple[str, ...]
    input_shapes: tuple[tuple[int | None, ...], ...]
    input_dtypes: tuple[str, ...]

    def run(self, *arrays: Array) -> list[Array]:
        """All outputs, for inputs in the file's order, of the shapes and dtypes that the file declares.

        Raises:
            MeasurementError: the board refused the inputs, or failed on them.
        """
        check_inputs(self, arrays)
        described, data = agent.sent(arrays)
        answer, outputs = self.board.ask({"do": "run", "name": self.name, "inputs": described}, data)
        found: list[Array] = agent.received(cast("list[dict[str, Any]]", answer["outputs"]), outputs)
        return found

    def bound(self, *arrays: Array) -> RunOnBoard:
        """See :class:`autocomp.hardware.runtimes.runtime.LoadedFile`."""
        check_inputs(self, arrays)
        described, data = agent.sent(arrays)
        self.board.hold(self.name, {"do": "feed", "inputs": described}, data)
        return RunOnBoard(self)


@dataclass(frozen=True, eq=False)
class RunOnBoard:
    """See :class:`autocomp.hardware.timing.TimesItself`. The inputs are on the board already."""

    file: FileOnBoard

    def __call__(self) -> object:
        return self.block(0, 1, 1)

    def block(self, warmup: int, calls: int, samples: int) -> Sequence[float]:
        """By the board's own clock."""
        request = {"do": "block", "name": self.file.name, "warmup": warmup, "calls": calls, "samples": samples}
        answer, _ = self.file.board.ask(request)
        return cast("list[float]", answer["seconds"])


@dataclass(frozen=True)
class OnnxruntimeOnBoard:
    """See :class:`autocomp.hardware.runtimes.runtime.Runtime`.

    Args:
        provider: onnxruntime's name of what computes, like ``CUDAExecutionProvider``.

    Raises:
        BoardError: the board has no onnxruntime, or it has no such provider.
    """

    board: Board
    provider: str = CPU
    files: ClassVar[Files] = "onnx"

    def __post_init__(self) -> None:
        facts = self.board.facts
        if facts["onnxruntime"] is None:
            raise BoardError(
                f"{self.board.host} must have onnxruntime for its python3 ({facts['python']}); it has none; install it "
                "there: python3 -m pip install onnxruntime"
            )
        has = cast("list[str]", facts["providers"])
        if self.provider not in has:
            raise BoardError(
                f"the onnxruntime of {self.board.host} must have {self.provider}; it has {', '.join(has)}; install a build "
                "that has it"
            )

    @property
    def fingerprint(self) -> Fingerprint:
        """The board, with this runtime."""
        facts = self.board.facts
        return from_cpuinfo(
            str(facts["cpuinfo"]),
            str(facts["architecture"]),
            cast("int", facts["cores"]),
            ("onnxruntime", str(facts["onnxruntime"])),
            str(facts["board"]),
        )

    def load(self, model: bytes | Path, threads: int) -> FileOnBoard:
        """See :class:`autocomp.hardware.runtimes.runtime.Runtime`."""
        check_threads(threads)
        name = f"file{next(self.board.numbers)}"
        about = self.board.hold(name, {"do": "load", **self._asked(model, threads)})
        inputs = cast("list[dict[str, Any]]", about["inputs"])
        file = FileOnBoard(
            self.board,
            name,
            tuple(one["name"] for one in inputs),
            tuple(tuple(one["shape"]) for one in inputs),
            tuple(numpy_name(one["type"]) for one in inputs),
        )
        weakref.finalize(file, self.board.drop, name)
        return file

    def kernel_samples(
        self, model: bytes | Path, inputs: Sequence[Array], threads: int, runs: int
    ) -> tuple[KernelSample, ...]:
        """See :class:`autocomp.hardware.runtimes.runtime.Runtime`."""
        import onnx

        check_threads(threads)
        check_runs(runs)
        given = self._asked(model, threads)
        _, optimized = self.board.ask({"do": "optimize", **given})
        compiled = onnx.load_from_string(optimized)
        name_nodes(compiled)
        asked = self._asked(compiled.SerializeToString(), threads)
        described, data = agent.sent(inputs)
        request = {"do": "profile", **asked, "runs": WARMUP_RUNS + runs, "inputs": described}
        _, written = self.board.ask(request, data)
        self.board.forget([str(given["model"]), str(asked["model"])])
        return samples_of(joined(compiled, json.loads(written), inputs))

    def _asked(self, model: bytes | Path, threads: int) -> Answer:
        data = model if isinstance(model, bytes) else model.read_bytes()
        return {"model": self.board.put(data), "threads": threads, "provider": self.provider}
