"""From a name, or a user's own file, to a task; and the check that it scores before it is compressed."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import inspect
import math
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from autocomp.errors import TaskError, did_you_mean
from autocomp.task import Metric, Score, Task

if TYPE_CHECKING:  # listing the tasks must not load torch
    import torch

Progress = Callable[[str], None]
BuiltinTask = Callable[[Progress | None], Task]

DEFAULT_TASK = "digits"
DEFAULT_FUNCTION = "task"

_REQUIRED_FIELDS = ("name", "model", "example_inputs", "calibration", "evaluate")


def builtin_tasks() -> Mapping[str, BuiltinTask]:
    """The tasks that come with autocomp: name → a function from ``progress`` to the task."""
    return MappingProxyType({"digits": _digits})


def _digits(progress: Progress | None) -> Task:
    from autocomp.tasks.digits import digits

    return digits(progress=progress)


def load_task(name: str | None, progress: Progress | None = None) -> Task:
    """The task called ``name``: a built-in one, a user's ``FILE.py[:function]``, or by default the embedded digits.

    The function (``task`` where none is named) is called without arguments and returns a :class:`Task`, or any object
    with a task's fields. While the file is loaded, its folder is on ``sys.path``, so that it can import its neighbours.

    Args:
        name: what to load; None for the embedded task.
        progress: is told, line by line, what takes the time.

    Raises:
        TaskError: the name is unknown; the file or the function is not there; loading the file or calling the function
            raised; or what came back is not a task.
    """
    if name is None:
        name = DEFAULT_TASK
    if (builtin := builtin_tasks().get(name)) is not None:
        return builtin(progress)
    own = re.fullmatch(r"(?P<file>.+\.py)(?::(?P<function>.*))?", name)
    if own is None:
        hint = did_you_mean(name, builtin_tasks())
        raise TaskError(f"a task must be a built-in name or FILE.py[:function]; got {name!r}; {hint}")
    function = DEFAULT_FUNCTION if own["function"] is None else own["function"]
    return _task_of_file(Path(own["file"]), function)


def check_task(task: Task) -> Score:
    """The score of the untouched model on the whole search split, found to be fit to compare others with.

    A copy of the model, in evaluation mode, is scored; ``task.model`` stays as it is. ``evaluate`` is given a plain
    function, as it will be for an exported file.

    Raises:
        TaskError: the model cannot be copied; ``evaluate`` raised, or returned something other than a :class:`Score`;
            the value is NaN or infinite; or the outcomes are not a row of finite numbers.
    """
    import torch

    try:
        model = copy.deepcopy(task.model).eval()
    except Exception as error:
        raise TaskError(
            f"task {task.name!r}: the model must be copyable by copy.deepcopy; it raised {_one_line(error)}"
        ) from error

    def predict(*inputs: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = model(*inputs)
        return output

    try:
        with torch.no_grad():
            score: object = task.evaluate(predict, "search")
    except Exception as error:
        raise TaskError(
            f"task {task.name!r}: evaluate must score the untouched model; on the search split it raised "
            f"{_one_line(error)}{_line_of(error, _file_of(task.evaluate))}"
        ) from error
    return _checked_score(task.name, score)


def _checked_score(name: str, score: object) -> Score:
    if not isinstance(score, Score):
        raise TaskError(
            f"task {name!r}: evaluate must return a Score(value, outcomes); got {_described(score)}; "
            "wrap the number in autocomp's Score"
        )
    try:
        value = float(score.value)
        outcomes = None if score.outcomes is None else np.asarray(score.outcomes, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TaskError(f"task {name!r}: a score must be made of numbers; {_one_line(error)}") from error
    if not math.isfinite(value):
        raise TaskError(
            f"task {name!r}: the untouched model must score a finite number on the search split; got {value}; "
            "check the model, its weights and evaluate"
        )
    if outcomes is not None and (outcomes.ndim != 1 or outcomes.size == 0 or not np.isfinite(outcomes).all()):
        raise TaskError(
            f"task {name!r}: outcomes must be one finite number per example, shape (examples,); got shape "
            f"{outcomes.shape} with {np.count_nonzero(~np.isfinite(outcomes))} not finite; leave them out or mend them"
        )
    return Score(value, outcomes)


def _task_of_file(path: Path, function: str) -> Task:
    if not path.is_file():
        raise TaskError(f"a task's file must exist; {str(path)!r} does not, seen from {str(Path.cwd())!r}")
    path = path.resolve()
    with _folder_on_path(path.parent):
        module = _executed(path)
        made_here = {
            key: value
            for key, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__
        }
        # A class or a partial that builds the task is as good as a function, so only the listing is narrow.
        maker = vars(module).get(function)
        if not callable(maker):
            hint = did_you_mean(function, made_here) if made_here else "it defines none"
            raise TaskError(f"{path.name} must hold the function that makes the task; it has no {function!r}; {hint}")
        try:
            made: object = maker()
        except (Exception, SystemExit) as error:
            raise TaskError(
                f"{function}() in {path.name} must return a task; it raised "
                f"{_one_line(error)}{_line_of(error, str(path))}"
            ) from error
    return _as_task(made, f"{function}() in {path.name}")


def _executed(path: Path) -> ModuleType:
    # The name is the file's own, so that no task shadows, or is shadowed by, a module of the same stem.
    name = f"autocomp_task_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise TaskError(f"a task's file must be a Python file; Python does not know how to load {str(path)!r}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up by name
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        sys.modules.pop(name, None)
        raise TaskError(
            f"{path.name} must load as Python; it raised {_one_line(error)}{_line_of(error, str(path))}"
        ) from error
    return module


@contextmanager
def _folder_on_path(folder: Path) -> Iterator[None]:
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        if entry in sys.path:  # the file may have tidied up itself
            sys.path.remove(entry)


def _as_task(made: Any, maker: str) -> Task:
    """``made`` itself where it is a task; a task of its fields where it merely has them.

    Raises:
        TaskError: a field is missing, or is not what a task needs.
    """
    import torch

    missing = [field for field in _REQUIRED_FIELDS if not hasattr(made, field)]
    if missing:
        raise TaskError(
            f"{maker} must return a Task; got {_described(made)}, which has no {', '.join(missing)}; "
            "build an autocomp Task from its parts"
        )
    metric = getattr(made, "metric", Metric("accuracy"))
    train = getattr(made, "train", None)
    rules = (
        ("name", "a string", made.name, isinstance(made.name, str)),
        ("model", "a torch.nn.Module", made.model, isinstance(made.model, torch.nn.Module)),
        ("example_inputs", "a tuple of tensors", made.example_inputs, _are_tensors(made.example_inputs)),
        ("calibration", "a list of tuples of tensors", made.calibration, _are_batches(made.calibration)),
        ("evaluate", "callable", made.evaluate, callable(made.evaluate)),
        ("metric", "a Metric", metric, isinstance(metric, Metric)),
        ("train", "a list of tuples of tensors, or None", train, train is None or _are_batches(train)),
    )
    for field, rule, value, holds in rules:
        if not holds:
            raise TaskError(f"{maker} must return a Task whose {field} is {rule}; got {_described(value)}")
    if isinstance(made, Task):
        return made
    return Task(
        name=made.name,
        model=made.model,
        example_inputs=made.example_inputs,
        calibration=made.calibration,
        evaluate=made.evaluate,
        metric=metric,
        train=train,
    )


def _are_tensors(batch: object) -> bool:
    import torch

    return isinstance(batch, tuple) and all(isinstance(tensor, torch.Tensor) for tensor in batch)


def _are_batches(batches: object) -> bool:
    # Only the first is looked at: a sequence may make its batches as they are asked for.
    return isinstance(batches, Sequence) and (len(batches) == 0 or _are_tensors(batches[0]))


def _described(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _one_line(error: BaseException) -> str:
    # A syntax error's text repeats its place, which is told apart.
    text = " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _file_of(function: Callable[..., object]) -> str | None:
    """The file that a function, a bound method or a callable object was written in."""
    for candidate in (function, type(function).__call__):
        try:
            return inspect.getsourcefile(inspect.unwrap(candidate))
        except TypeError:
            continue
    return None


def _line_of(error: BaseException, file: str | None) -> str:
    """``, line 7 of mytask.py``: the innermost line of ``file`` on the way to the error; empty where there is none."""
    if file is None:
        return ""
    if isinstance(error, SyntaxError) and error.filename == file:
        lines = [error.lineno]
    else:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f", line {lines[-1]} of {Path(file).name}" if lines else ""
