"""Evaluations in a process of their own, which is ended where one takes too long or too much memory."""

from __future__ import annotations

import os
import pickle
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from autocomp.plan import Plan
from autocomp.search.evaluate import Outcome, evaluate
from autocomp.search.rungs import Hurdle

if TYPE_CHECKING:
    from autocomp.search.evaluate import Workbench

#: Seconds between two looks at the process.
LOOK_S = 0.1


class Confined:
    """One evaluation after the other, in one process as long as it keeps the limits.

    Args:
        bench: the pickled :class:`autocomp.search.evaluate.Workbench`.
        limit_s, limit_gb: of an evaluation, and of the process; None for none.
    """

    def __init__(self, bench: bytes, limit_s: float | None, limit_gb: float | None) -> None:
        self._bench, self._limit_s, self._limit_gb = bench, limit_s, limit_gb
        self._process: subprocess.Popen[bytes] | None = None

    def evaluate(self, plan: Plan, hurdle: Hurdle | None) -> Outcome:
        process = self._running()
        began = time.monotonic()
        try:
            _send(process.stdin, pickle.dumps((plan, hurdle)))
            while not _ready(process.stdout):
                broken = self._broken(process.pid, time.monotonic() - began)
                if broken is not None:
                    self.close()
                    return Outcome(None, None, time.monotonic() - began, broken)
            outcome: Outcome = pickle.loads(_received(process.stdout))
        except (EOFError, BrokenPipeError):
            code = process.wait()
            self.close()
            how = f"of signal {-code}" if code < 0 else f"with exit code {code}"
            return Outcome(
                None, None, time.monotonic() - began, f"WorkError: its process died {how}; was it out of memory?"
            )
        return outcome

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "autocomp.search.confined"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            _send(self._process.stdin, self._bench)
            _received(self._process.stdout)  # it has read it: the time of an evaluation is its own
        return self._process

    def _broken(self, pid: int, seconds: float) -> str | None:
        if self._limit_s is not None and seconds > self._limit_s:
            return f"TimeoutError: a trial must end within {self._limit_s:g} s; raise --trial-timeout"
        if self._limit_gb is not None and (held_gb := _held_bytes(pid) / 1e9) > self._limit_gb:
            return f"MemoryError: a trial must take at most {self._limit_gb:g} GB; it took {held_gb:.2f}"
        return None


def _ready(pipe: Any) -> bool:
    return bool(select.select([pipe], [], [], LOOK_S)[0])


def _held_bytes(pid: int) -> int:
    try:
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    except FileNotFoundError:
        return 0  # it has just ended
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _send(pipe: Any, message: bytes) -> None:
    pipe.write(len(message).to_bytes(8, "big"))
    pipe.write(message)
    pipe.flush()


def _received(pipe: Any) -> bytes:
    """Raises:
    EOFError: the other side has gone.
    """
    size = pipe.read(8)
    if len(size) < 8:
        raise EOFError
    message: bytes = pipe.read(int.from_bytes(size, "big"))
    return message


def _main(requests: BinaryIO, answers: BinaryIO) -> None:
    bench: Workbench = pickle.loads(_received(requests))
    _send(answers, b"")
    while True:
        try:
            plan, hurdle = pickle.loads(_received(requests))
        except EOFError:
            return
        _send(answers, pickle.dumps(evaluate(bench, plan, hurdle)))


if __name__ == "__main__":
    private = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a user's code prints is no answer
    _main(sys.stdin.buffer, private)
