"""The errors a user of autocomp can meet.

    AutocompError
    ├── RequestError        the request was wrong; the command line ends with exit code 2
    │   ├── PlanError       a plan, or a level in it, is outside its range or does not fit the model
    │   ├── SpaceError      a search-space file has a typo, or a pattern that matches no layer
    │   ├── TaskError       a task is unknown, cannot be loaded, or cannot be scored untouched
    │   ├── TargetError     a target is unknown, or its profile is not for this machine
    │   └── RunError        a run folder is missing, holds another run, or was asked for differently
    └── WorkError           the request was right and the work failed; exit code 1
        ├── TraceError      torch.export could not follow the model; names the operator
        ├── CompressionError  a plan could not be applied
        ├── ExportError     the file could not be written
        ├── MeasurementError  a runtime refused the file, or too little could be measured
        │   └── BoardError    a board cannot be reached, or lacks what it was asked for
        └── UncoveredKernelError  the latency model was not calibrated on an operator; names the layers

Every message is one line: the rule, the value given, the way out.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class AutocompError(Exception):
    """Base of everything autocomp raises on purpose."""


class RequestError(AutocompError):
    """The request was wrong: exit code 2."""


class PlanError(RequestError):
    """A plan is malformed, or does not fit the model it was given for."""


class SpaceError(RequestError):
    """A search space is malformed, or names layers that do not exist."""


class TaskError(RequestError):
    """A task is unknown, cannot be loaded, or does not score when untouched."""


class TargetError(RequestError):
    """A target is unknown, or its profile does not hold here."""


class RunError(RequestError):
    """A run folder is missing, holds another run, or was requested differently."""


class WorkError(AutocompError):
    """The request was right, the work failed: exit code 1."""


class TraceError(WorkError):
    """The model's data flow could not be followed."""


class CompressionError(WorkError):
    """A plan could not be applied to the model."""


class ExportError(WorkError):
    """The file could not be written."""


class MeasurementError(WorkError):
    """A runtime refused the file, or too little could be measured."""


class BoardError(MeasurementError):
    """A board cannot be reached, or lacks what it was asked for."""


class BoardLostError(BoardError):
    """The connection to a board is gone for good."""


class UncoveredKernelError(WorkError):
    """The latency model was never calibrated on an operator that the plan needs.

    ``layers`` are the layers (or graph nodes, where no layer is behind it) that need it.
    """

    def __init__(self, message: str, layers: tuple[str, ...]) -> None:
        super().__init__(message)
        self.layers = layers


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line of at most 300 characters."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # colours
    return next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)[:300]


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """The tail of an error line: the near matches of ``given``, or else everything known."""
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=3, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(near) + "?"
    return "known: " + ", ".join(names)


def check_known(what: str, given: str, known: Iterable[str]) -> None:
    """Raises:
    RequestError: ``given`` is none of the known ones; names the near ones.
    """
    known = tuple(known)
    if given not in known:
        raise RequestError(f"a {what} must be a known one; got {given!r}; {did_you_mean(given, known)}")
