"""Whether a task scores its model as searches need it, found out before anything is compressed."""

from __future__ import annotations

import copy
import math
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from autocomp.errors import TaskError
from autocomp.task import Score, Split, Task
from autocomp.tasks.inputs import digest
from autocomp.tasks.user_file import described, file_of, line_of, one_line

if TYPE_CHECKING:
    import torch
    from torch import nn

#: What is looked at of a split before a search: of the test split, whether it can be scored; of the search split, whether it is
#: the same part twice.
PART = 0.1
#: What evaluate must do, where it raises.
SCORE = "score the untouched model; on the search split it raised"
#: Without outcomes, scores of one model may differ by this share of them: of examples in another order.
SAME = 1e-3


class _Watched:
    """A model that remembers what it was first given; without one it goes no further than that."""

    def __init__(self, model: nn.Module | None) -> None:
        self._model = model
        self.first: bytes | None = None

    def __call__(self, *inputs: torch.Tensor) -> Any:
        if self.first is None:
            self.first = digest(inputs)
        if self._model is None:
            raise _SeenError
        return self._model(*inputs)


class _SeenError(Exception):
    """Enough was seen."""


def check_task(task: Task) -> Score:
    """The score of the untouched model on the whole search split, found to be fit to compare others with.

    A copy of the model, in evaluation mode, is scored; ``task.model`` stays as it is. ``evaluate`` is given a plain
    function, as it will be for an exported file.

    Raises:
        TaskError: the model cannot be copied, or called on its example or its calibration batches; ``evaluate`` raised, never
            called what it was given, gave it other inputs another time, or returned something other than a :class:`Score`; the
            value is NaN or infinite; or the outcomes are not a row of finite numbers.
    """
    try:
        model = copy.deepcopy(task.model).eval()
    except Exception as error:
        raise TaskError(
            f"task {task.name!r}: the model must be copyable by copy.deepcopy; it raised {one_line(error)}"
        ) from error
    _check_inputs(task, model)
    score, first = _scored(task, model, "search", 1.0, SCORE)
    _check_same_again(task, model, score, first)
    return score


def _check_same_again(task: Task, model: nn.Module, before: Score, first: bytes | None) -> None:
    """Whether ``evaluate`` scores the same examples again, of the whole split and of a part: outcomes are compared in pairs."""
    of = ""
    if first == _first_of(task):
        if not task.takes_parts or _first_of(task, PART) == _first_of(task, PART):
            return
        of = f" of a part of the split, fraction={PART}"
    elif before.outcomes is None and math.isclose(
        _scored(task, model, "search", 1.0, SCORE)[0].value, before.value, rel_tol=SAME
    ):
        return
    raise TaskError(
        f"task {task.name!r}: evaluate must score the same examples in the same order every time, or drops are luck; what it "
        f"gave the model first{of} differed between two calls; shuffle and draw nothing, or seed it anew in every call"
    )


def _first_of(task: Task, *part: float) -> bytes | None:
    """A digest of what ``evaluate`` gives first."""
    import torch

    watched = _Watched(None)
    with torch.no_grad(), suppress(Exception):  # ours, or what evaluate makes of it
        task.evaluate(watched, "search", *part)
    return watched.first


def _check_inputs(task: Task, model: nn.Module) -> None:
    import torch

    for what, inputs in (("example_inputs", task.example_inputs), ("a batch of calibration", task.calibration[0])):
        try:
            with torch.no_grad():
                # Copies: a model may write into what it is given.
                model(*(one.clone() if isinstance(one, torch.Tensor) else one for one in inputs))
        except Exception as error:
            raise TaskError(
                f"task {task.name!r}: {what} must be the model's positional inputs, with a batch dimension and without labels; "
                f"on shapes {', '.join(str(tuple(getattr(one, 'shape', ()))) for one in inputs)} it raised {one_line(error)}"
            ) from error


def check_test_split(task: Task, model: nn.Module) -> None:
    """Whether ``evaluate`` scores the test split, which is otherwise not asked for before a search is through: on a part of it,
    where it takes parts. What it scores is not looked at.

    Args:
        model: of the task.

    Raises:
        TaskError: as :func:`check_task`.
    """
    _scored(task, model, "test", PART, "score the test split as well, at the end; it raised")


def _scored(task: Task, model: nn.Module, split: Split, part: float, must: str) -> tuple[Score, bytes | None]:
    """The untouched model's score on a split, or a part of it where the task takes parts, and what it was first given.

    Args:
        must: what ``evaluate`` must do, as it is told where it raises.
    """
    import torch

    watched = _Watched(model)

    def predict(*inputs: torch.Tensor) -> Any:
        return watched(*inputs)

    try:
        with torch.no_grad():
            score: object = task.evaluate(predict, split, *([part] if part < 1.0 and task.takes_parts else []))
    except Exception as error:
        raise TaskError(
            f"task {task.name!r}: evaluate must {must} {one_line(error)}{line_of(error, file_of(task.evaluate))}"
        ) from error
    found = _checked_score(task, score, split)
    if part == 1.0 and watched.first is None:
        raise TaskError(
            f"task {task.name!r}: evaluate must score what its first argument gives, predict; it never called it, so that all "
            "plans would score the same; call predict(*inputs) in the place of the model"
        )
    return found, watched.first


def _checked_score(task: Task, score: object, split: Split) -> Score:
    name = task.name
    if not isinstance(score, Score):
        raise TaskError(
            f"task {name!r}: evaluate must return a Score(value, outcomes); got {described(score)}; "
            "wrap the number in autocomp's Score"
        )
    try:
        value = float(score.value)
        outcomes = None if score.outcomes is None else np.asarray(score.outcomes, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TaskError(f"task {name!r}: a score must be made of numbers; {one_line(error)}") from error
    if not math.isfinite(value):
        raise TaskError(
            f"task {name!r}: the untouched model must score a finite number on the {split} split; got {value}; "
            "check the model, its weights and evaluate"
        )
    if outcomes is not None and (outcomes.ndim != 1 or outcomes.size == 0 or not np.isfinite(outcomes).all()):
        raise TaskError(
            f"task {name!r}: outcomes must be one finite number per example, shape (examples,); got shape "
            f"{outcomes.shape} with {np.count_nonzero(~np.isfinite(outcomes))} not finite; leave them out or mend them"
        )
    if outcomes is not None and not any(
        math.isclose(value, k * outcomes.mean(), rel_tol=1e-3, abs_tol=1e-9) for k in (1, 100)
    ):
        raise TaskError(
            f"task {name!r}: outcomes must be what the value is the mean of, or a hundred times that, so that intervals can be "
            f"told; got the value {value:.6g} and outcomes of mean {outcomes.mean():.6g}; leave them out where it is no mean"
        )
    shares = outcomes is not None and outcomes.mean() > 0 and bool(np.isin(outcomes, (0.0, 1.0)).all())
    if shares and task.metric.unit == "%" and value <= 1.0:
        raise TaskError(
            f"task {name!r}: a metric whose unit is % has values of 0 to 100; got {value:.6g} for outcomes of mean "
            f"{value:.6g}; multiply it by 100, or leave the unit out"
        )
    return Score(value, outcomes)
