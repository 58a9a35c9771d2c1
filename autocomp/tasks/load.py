"""From a name, or a user's own file, to a task; and the check that it scores before it is compressed."""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from autocomp.errors import TaskError, did_you_mean
from autocomp.run import seen_from
from autocomp.task import Score, Split, Task
from autocomp.tasks.user_file import described, file_of, line_of, one_line, task_of_file

if TYPE_CHECKING:  # listing the tasks must not load torch
    import torch
    from torch import nn

Progress = Callable[[str], None]
#: From who is told of the progress, and the folder of data, to the task.
BuiltinTask = Callable[[Progress | None, Path | None], Task]
#: The same for a model that is named, or lies in a folder: ``NAME`` of ``torchvision:NAME``.
ModelTask = Callable[[str, Path | None, Progress | None], Task]

DEFAULT_TASK = "digits"
#: A task of a user's own.
OWN_FILE = re.compile(r"(?P<file>.+\.py)(?::(?P<function>.*))?")
DEFAULT_FUNCTION = "task"
WITHOUT_DATA = frozenset({"digits"})
#: Of the test split, what is scored before a search, to see that it can be.
TEST_PART = 0.1


@dataclass(frozen=True)
class Loaded:
    """A task, and the folder of data that it was made with; None where it was made without."""

    task: Task
    data: Path | None = None


def builtin_tasks() -> Mapping[str, BuiltinTask]:
    """The tasks that come with autocomp: name → a function from ``progress`` and ``data`` to the task."""
    return MappingProxyType(
        {
            "digits": _digits,
            "mnist-lenet300": _mnist_lenet300,
            "mnist-lenet5": _mnist_lenet5,
            "cifar10-resnet20": _cifar10_resnet20,
            "cifar10-resnet56": _cifar10_resnet56,
            "stsb-minilm": _stsb_minilm,
        }
    )


def model_tasks() -> Mapping[str, ModelTask]:
    """What may stand before a colon: ``torchvision:NAME``, ``timm:NAME``, ``hf:FOLDER``."""
    return MappingProxyType({"torchvision": _torchvision, "timm": _timm, "hf": _huggingface})


def load_task(name: str | None, progress: Progress | None = None, data: Path | None = None) -> Task:
    """The task called ``name``; see :func:`load`."""
    return load(name, progress, data).task


def load(name: str | None, progress: Progress | None = None, data: Path | None = None) -> Loaded:
    """The task called ``name``: a built-in one, a model by its name or folder, or a user's ``FILE.py[:function]``.

    A user's function (``task`` where none is named) returns a :class:`Task`, or any object with a task's fields; see
    :func:`autocomp.tasks.user_file.task_of_file`.

    Args:
        name: what to load; None for the embedded digits.
        progress: is told, line by line, what takes the time.
        data: the folder of data. Default: the one in the environment variable AUTOCOMP_DATA, for tasks that take data.

    Raises:
        TaskError: the name is unknown; the task takes no data, or its data are not there; a user's file is wrong.
    """
    if name is None:
        name = DEFAULT_TASK
    if (builtin := builtin_tasks().get(name)) is not None:
        if name not in WITHOUT_DATA:
            folder = _folder(data)
            return Loaded(builtin(progress, folder), folder)
        if data is not None:
            raise TaskError(f"--data must be for a task that takes data; {name} takes none; leave --data out")
        return Loaded(builtin(progress, None))
    prefix, colon, model = name.partition(":")
    if colon and (maker := model_tasks().get(prefix)) is not None:
        if not model:
            raise TaskError(f"a model must be named behind the colon; got {name!r}; write {prefix}:NAME")
        folder = _folder(data)
        return Loaded(maker(model, folder, progress), folder)
    own = OWN_FILE.fullmatch(name)
    if own is None:
        raise TaskError(
            "a task must be a built-in name, FILE.py[:function], torchvision:NAME, timm:NAME or hf:FOLDER; "
            f"got {name!r}; {did_you_mean(name, builtin_tasks())}"
        )
    function = DEFAULT_FUNCTION if own["function"] is None else own["function"]
    folder = _folder(data)
    task, took_data = task_of_file(Path(own["file"]), function, folder, data_asked=data is not None)
    return Loaded(task, folder if took_data else None)


def task_seen_from(folder: Path, name: str) -> str:
    """A task's name, as it is found from here if its file, or the folder or weights of a model, is in another folder only."""
    for pattern in (OWN_FILE.pattern, "hf:(?P<file>.+)", ".+@(?P<file>.+)"):
        if (match := re.fullmatch(pattern, name)) is not None:
            start, end = match.span("file")
            return name[:start] + seen_from(folder, match["file"]) + name[end:]
    return name


def short_name(name: str | None) -> str:
    """What a run of the task is called where nobody says: ``torchvision:resnet18@w.pth`` → ``resnet18``."""
    name = name or DEFAULT_TASK
    prefix, colon, model = name.partition(":")
    if colon and prefix in model_tasks():
        # A folder's last name, also where it is the folder that one is in.
        found = Path(model).resolve().name if prefix == "hf" else model.partition("@")[0]
    else:
        found = name if name in builtin_tasks() else Path(prefix).stem
    return re.sub(r"[^\w.-]+", "-", found) or DEFAULT_FUNCTION


def check_task(task: Task) -> Score:
    """The score of the untouched model on the whole search split, found to be fit to compare others with.

    A copy of the model, in evaluation mode, is scored; ``task.model`` stays as it is. ``evaluate`` is given a plain
    function, as it will be for an exported file.

    Raises:
        TaskError: the model cannot be copied, or called on its example or its calibration batches; ``evaluate`` raised, never
            called what it was given, or returned something other than a :class:`Score`; the value is NaN or infinite; or the
            outcomes are not a row of finite numbers.
    """
    try:
        model = copy.deepcopy(task.model).eval()
    except Exception as error:
        raise TaskError(
            f"task {task.name!r}: the model must be copyable by copy.deepcopy; it raised {one_line(error)}"
        ) from error
    _check_inputs(task, model)
    return _scored(task, model, "search", 1.0, "score the untouched model; on the search split it raised")


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
    _scored(task, model, "test", TEST_PART, "score the test split as well, at the end; it raised")


def _scored(task: Task, model: nn.Module, split: Split, part: float, must: str) -> Score:
    """The untouched model's score on a split, or a part of it where the task takes parts.

    Args:
        must: what ``evaluate`` must do, as it is told where it raises.
    """
    import torch

    calls = itertools.count()

    def predict(*inputs: torch.Tensor) -> Any:
        next(calls)
        return model(*inputs)

    try:
        with torch.no_grad():
            score: object = task.evaluate(predict, split, *([part] if part < 1.0 and task.takes_parts else []))
    except Exception as error:
        raise TaskError(
            f"task {task.name!r}: evaluate must {must} {one_line(error)}{line_of(error, file_of(task.evaluate))}"
        ) from error
    found = _checked_score(task, score, split)
    if part == 1.0 and next(calls) == 0:
        raise TaskError(
            f"task {task.name!r}: evaluate must score what its first argument gives, predict; it never called it, so that all "
            "plans would score the same; call predict(*inputs) in the place of the model"
        )
    return found


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


def _folder(data: Path | None) -> Path | None:
    from autocomp.tasks.data import data_folder

    folder = data_folder(data)
    return None if folder is None else folder.resolve()


def _digits(progress: Progress | None, _data: Path | None) -> Task:
    from autocomp.tasks.digits import digits

    return digits(progress=progress)


def _mnist_lenet300(progress: Progress | None, data: Path | None) -> Task:
    from autocomp.tasks.mnist import mnist_lenet300

    return mnist_lenet300(progress, data)


def _mnist_lenet5(progress: Progress | None, data: Path | None) -> Task:
    from autocomp.tasks.mnist import mnist_lenet5

    return mnist_lenet5(progress, data)


def _cifar10_resnet20(progress: Progress | None, data: Path | None) -> Task:
    from autocomp.tasks.cifar10 import cifar10_resnet20

    return cifar10_resnet20(progress, data)


def _cifar10_resnet56(progress: Progress | None, data: Path | None) -> Task:
    from autocomp.tasks.cifar10 import cifar10_resnet56

    return cifar10_resnet56(progress, data)


def _stsb_minilm(progress: Progress | None, data: Path | None) -> Task:
    from autocomp.tasks.stsb import stsb_minilm

    return stsb_minilm(progress, data)


def _torchvision(model: str, data: Path | None, progress: Progress | None) -> Task:
    from autocomp.tasks.zoo import torchvision_task

    return torchvision_task(model, data, progress)


def _timm(model: str, data: Path | None, progress: Progress | None) -> Task:
    from autocomp.tasks.zoo import timm_task

    return timm_task(model, data, progress)


def _huggingface(folder: str, data: Path | None, progress: Progress | None) -> Task:
    from autocomp.tasks.huggingface import hf_task

    return hf_task(folder, data, progress)
