"""Who is told how long work goes on. The command line draws it; the default says nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from autocomp.task import Metric
from autocomp.trial import Trial


class Watcher(Protocol):
    """Is told how the work goes on."""

    def say(self, line: str) -> None:
        """Something that the user should know."""

    def trial(self, trial: Trial, trials: Sequence[Trial], asked: int, metric: Metric) -> None:
        """A trial is finished; ``trials`` are all so far, ``asked`` how many there are to be."""

    def step(self, what: str, done: int, of: int, note: str = "") -> None:
        """A step of something else that takes a while."""


class Silent:
    """A watcher that says nothing."""

    def say(self, line: str) -> None: ...
    def trial(self, trial: Trial, trials: Sequence[Trial], asked: int, metric: Metric) -> None: ...
    def step(self, what: str, done: int, of: int, note: str = "") -> None: ...


def calibrating(watcher: Watcher) -> Callable[[float, str], None]:
    """Tells ``watcher`` of a calibration: the share of the budget that is spent, and what was found last."""

    def told(share: float, note: str) -> None:
        watcher.step("calibrating", round(100 * share), 100, note)

    return told


SILENT: Watcher = Silent()
