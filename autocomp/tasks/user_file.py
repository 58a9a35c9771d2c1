"""A task from a user's own Python file, and what is told of errors in it."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from autocomp.errors import TaskError, did_you_mean
from autocomp.task import Metric, Task

#: Of the names of the modules that users' files are loaded as.
PREFIX = "autocomp_task_"
_REQUIRED_FIELDS = ("name", "model", "example_inputs", "calibration", "evaluate")


def task_of_file(path: Path, function: str, data: Path | None = None, data_asked: bool = False) -> tuple[Task, bool]:
    """The task that ``function`` in ``path`` makes, and whether it was given ``data``.

    The function is called without arguments, or with ``data`` where it has a parameter of that name. While the file is
    loaded, its folder is on ``sys.path``, so that it can import its neighbours.

    Args:
        data: a folder of data, where one is named.
        data_asked: the folder was named for this very task, so that a function that takes none is an error.

    Raises:
        TaskError: the file or the function is not there; loading the file or calling the function raised; the function
            does not take the data, or cannot do without; or what came back is not a task.
    """
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
        given = _data_argument(maker, data, f"{function}() in {path.name}", data_asked)
        try:
            made: object = maker(**given)
        except (Exception, SystemExit) as error:
            raise TaskError(
                f"{function}() in {path.name} must return a task; it raised "
                f"{one_line(error)}{line_of(error, str(path))}"
            ) from error
    return _as_task(made, f"{function}() in {path.name}"), bool(given)


def _data_argument(maker: Callable[..., object], data: Path | None, name: str, asked: bool) -> dict[str, Path]:
    try:
        parameter = inspect.signature(maker).parameters.get("data")
    except (TypeError, ValueError):  # a callable that does not tell
        parameter = None
    if parameter is None:
        if asked:
            raise TaskError(
                f"--data must be for a task that takes data; {name} has no parameter data; leave --data out"
            )
        return {}
    if data is not None:
        return {"data": data}
    if parameter.default is inspect.Parameter.empty:
        raise TaskError(f"{name} must be given data; none is named; name a folder by --data or AUTOCOMP_DATA")
    return {}


def modules_of_user() -> list[ModuleType]:
    """Users' files that are loaded, and what they import from below their own folders: another process does not find these.
    What is installed there, Python itself or this package is none of that."""
    own = [module for name, module in sys.modules.items() if name.startswith(PREFIX)]
    folders = {Path(str(module.__file__)).parent for module in own}
    places = sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib"), Path(__file__).parents[1]
    installed = {Path(place).resolve() for place in places}

    def is_own(file: Path) -> bool:
        if file.parent in folders:
            return True
        above = {*file.parents, *file.resolve().parents}
        return (
            bool(folders & above) and not installed & above and not {"site-packages", "dist-packages"} & {*file.parts}
        )

    return [
        module
        for module in list(sys.modules.values())
        if isinstance(file := getattr(module, "__file__", None), str) and is_own(Path(file))
    ]


def _executed(path: Path) -> ModuleType:
    # The name is the file's own, so that no task shadows, or is shadowed by, a module of the same stem.
    name = f"{PREFIX}{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
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
            f"{path.name} must load as Python; it raised {one_line(error)}{line_of(error, str(path))}"
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
            f"{maker} must return a Task; got {described(made)}, which has no {', '.join(missing)}; "
            "build an autocomp Task from its parts"
        )
    metric = getattr(made, "metric", Metric("accuracy"))
    train = getattr(made, "train", None)
    loss = getattr(made, "loss", None)
    dynamic_dims = getattr(made, "dynamic_dims", ())
    dims_hold = isinstance(dynamic_dims, tuple) and all(isinstance(dims, tuple) for dims in dynamic_dims)
    rules = (
        ("name", "a string", made.name, isinstance(made.name, str)),
        ("model", "a torch.nn.Module", made.model, isinstance(made.model, torch.nn.Module)),
        ("example_inputs", "a tuple of tensors", made.example_inputs, _are_tensors(made.example_inputs)),
        ("calibration", "a list of tuples of tensors", made.calibration, _are_batches(made.calibration)),
        ("evaluate", "callable", made.evaluate, callable(made.evaluate)),
        ("metric", "a Metric", metric, isinstance(metric, Metric)),
        ("dynamic_dims", "a tuple of tuples of numbers", dynamic_dims, dims_hold),
        ("train", "a list of tuples of tensors, or None", train, train is None or _are_batches(train)),
        ("loss", "callable, or None", loss, loss is None or callable(loss)),
    )
    for field, rule, value, holds in rules:
        if not holds:
            raise TaskError(f"{maker} must return a Task whose {field} is {rule}; got {described(value)}")
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
        loss=loss,
        dynamic_dims=dynamic_dims,
    )


def _are_tensors(batch: object) -> bool:
    import torch

    return isinstance(batch, tuple) and all(isinstance(tensor, torch.Tensor) for tensor in batch)


def _are_batches(batches: object) -> bool:
    # Only the first is looked at: a sequence may make its batches as they are asked for.
    return isinstance(batches, Sequence) and (len(batches) == 0 or _are_tensors(batches[0]))


def described(value: object) -> str:
    """What a value is, in an error line."""
    return "None" if value is None else f"a {type(value).__name__}"


def one_line(error: BaseException) -> str:
    """An error of the user's code: its kind and its text, in one line."""
    # A syntax error's text repeats its place, which is told apart.
    text = " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def file_of(function: Callable[..., object]) -> str | None:
    """The file that a function, a bound method or a callable object was written in."""
    for candidate in (function, type(function).__call__):
        try:
            return inspect.getsourcefile(inspect.unwrap(candidate))
        except TypeError:
            continue
    return None


def line_of(error: BaseException, file: str | None) -> str:
    """``, line 7 of mytask.py``: the innermost line of ``file`` on the way to the error; empty where there is none."""
    if file is None:
        return ""
    if isinstance(error, SyntaxError) and error.filename == file:
        lines = [error.lineno]
    else:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f", line {lines[-1]} of {Path(file).name}" if lines else ""
