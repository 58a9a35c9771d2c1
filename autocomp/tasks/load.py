"""From a name, or a user's own file, to a task."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from autocomp.errors import TaskError, did_you_mean
from autocomp.run import seen_from
from autocomp.task import Task
from autocomp.tasks.user_file import task_of_file

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


def names_task(name: str) -> bool:
    """Whether it is a name that a task may be loaded by; that of a :class:`Task` that somebody made need not be."""
    prefix, colon, _ = name.partition(":")
    return name in builtin_tasks() or bool(colon and prefix in model_tasks()) or OWN_FILE.fullmatch(name) is not None


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
