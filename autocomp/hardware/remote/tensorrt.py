"""TensorRT on a board, by its own ``trtexec``: engines are built there, and timed there."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy.typing as npt
import onnx

from autocomp.errors import BoardError
from autocomp.hardware.remote.connection import Board
from autocomp.hardware.runtimes.runtime import Files
from autocomp.hardware.trtexec import build_options, shapes_option

Array = npt.NDArray[Any]

#: Milliseconds that trtexec runs an engine before it times it.
WARMUP_MS = 200


@dataclass(frozen=True, eq=False)
class EngineFile:
    """A file that is to be an engine on a board."""

    board: Board = field(repr=False)
    model: bytes = field(repr=False)

    def bound(self, *arrays: Array) -> EngineOnBoard:
        """Builds the engine, for inputs of these shapes; the one that was built of this file before, where there is one.

        Raises:
            BoardError: trtexec cannot build it; says why.
        """
        file = onnx.load_from_string(self.model)
        shapes = shapes_option(file, [array.shape for array in arrays])
        options = [*build_options(file), *shapes]
        model = self.board.put(self.model)
        name = hashlib.sha256(" ".join([model, *options]).encode()).hexdigest()
        self.board.ask({"do": "engine", "name": name, "model": model, "options": options})
        return EngineOnBoard(self.board, name, tuple(shapes))


@dataclass(frozen=True, eq=False)
class EngineOnBoard:
    """See :class:`autocomp.hardware.timing.TimesItself`: every block loads the engine afresh. What counts is the time of the
    GPU, as ``trtexec`` prints it, for inputs of its own that lie there already."""

    board: Board = field(repr=False)
    name: str
    shapes: tuple[str, ...]

    def __call__(self) -> object:
        return self.block(0, 1, 1)

    def block(self, warmup: int, calls: int, samples: int) -> Sequence[float]:
        """In a process of its own, which warms up for a while before its first run, and for ``warmup`` runs more."""
        wanted = warmup + calls * samples
        options = [*self.shapes, "--useSpinWait", f"--warmUp={WARMUP_MS}", "--avgRuns=1"]
        answer, _ = self.board.ask({"do": "time_engine", "name": self.name, "samples": wanted, "options": options})
        seconds = cast("list[float]", answer["seconds"])
        if len(seconds) < wanted:
            raise BoardError(
                f"trtexec on {self.board.host} must time {wanted} runs; it timed {len(seconds)}; try it by hand"
            )
        return [sum(seconds[first : first + calls]) for first in range(warmup, wanted, calls)]


@dataclass(frozen=True)
class TensorrtOnBoard:
    """See :class:`autocomp.hardware.runtimes.runtime.Loads`.

    Raises:
        BoardError: the board has no ``trtexec``.
    """

    board: Board
    files: ClassVar[Files] = "onnx"

    def __post_init__(self) -> None:
        if not self.board.facts["trtexec"]:
            raise BoardError(
                f"{self.board.host} must have trtexec, on its path or in /usr/src/tensorrt/bin; it has none; install it "
                "there: sudo apt-get install libnvinfer-bin"
            )

    @property
    def version(self) -> str:
        """Of the board's TensorRT."""
        answer, _ = self.board.ask({"do": "tensorrt_version"})
        return str(answer["version"]) or "of an unknown version"

    def load(self, model: bytes | Path, threads: int) -> EngineFile:  # noqa: ARG002
        """``threads`` mean nothing to a GPU."""
        return EngineFile(self.board, model if isinstance(model, bytes) else model.read_bytes())
