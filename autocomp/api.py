"""The Python API: what the command line does, without strings.

Importing this is cheap: torch and the rest are loaded by the functions that need them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from autocomp.errors import RequestError, check_known
from autocomp.finished import Run, completed, data_of
from autocomp.places import names_profile_folder
from autocomp.plan import Plan
from autocomp.run import Request, RunFolder, write_whole
from autocomp.task import Task
from autocomp.watch import SILENT, Watcher, calibrating

if TYPE_CHECKING:
    import torch

    from autocomp.compress.apply import Compressed
    from autocomp.compress.quantize import Numerics
    from autocomp.export.artifact import Artifact
    from autocomp.hardware.latency import Forecast
    from autocomp.hardware.target import Target
    from autocomp.search.limits import Goal
    from autocomp.search.sampler import SamplerName
    from autocomp.search.workers import Workers


NO_TARGET = "a search is for a target; got none; name one by --target, see `autocomp targets`"


def search(
    task: Task | str | None = None,
    *,
    target: Target | str | None = None,
    out: str | Path,
    threads: int | None = None,
    batch: int | None = None,
    artifact: Artifact | None = None,
    trials: int = 60,
    timeout_s: float | None = None,
    space: str | Path | None = None,
    begin_from: str | Path | None = None,
    goal: Goal = "front",
    sampler: SamplerName = "auto",
    max_latency_ms: float | None = None,
    max_size_kb: float | None = None,
    max_memory_kb: float | None = None,
    max_drop: float | None = None,
    recover_epochs: int = 0,
    recover_on: str = "cpu",
    recover_seeds: int = 1,
    recipe: str | Path | None = None,
    seed: int = 0,
    resume: bool = False,
    data: str | Path | None = None,
    workers: Workers | None = None,
    watcher: Watcher = SILENT,
) -> Run:
    """Search for the Pareto front of a task on a target; every point of it is exported and measured.

    Args:
        task: a :class:`Task`, a built-in task's name, ``torchvision:NAME``, ``timm:NAME``, ``hf:FOLDER``,
            ``FILE.py[:function]``; None is the embedded ``digits``.
        target: a :class:`Target`, a target's name, or the folder of a profile that ``autocomp calibrate`` wrote.
        out: the run folder; new, or the one to resume.
        threads, batch, artifact: of the target, where it is given by name; default is what its profile says.
        trials: plans to evaluate, the untouched one included.
        timeout_s: stop proposing after so many seconds; what was found is kept, verified and reported.
        space: name or file of a search space; default is ``default``.
        begin_from: a run of the same network: its sensitivities, and what its plans scored, are not worked out anew. Its
            task, target, space and data are the default of these.
        goal: all of the front, or the end of it that is wanted within the limits: ``most-accurate``, ``fastest``,
            ``smallest``.
        max_latency_ms, max_size_kb, max_memory_kb: limits (1 kB = 1000 bytes). Latencies keep theirs with the prediction's
            error to spare; where a file breaks one all the same, what is predicted is corrected and the search goes on.
        max_drop: the largest loss of the search metric against the untouched model, in the metric's units.
        recover_epochs: how long the points worth it are trained on for, at the end; each gives a trial of its own.
        recover_on: ``cpu`` or ``cuda``: where they are trained.
        recover_seeds: trainings of each, from ``seed`` on; each gives a trial of its own.
        recipe: a YAML file of fields of :class:`autocomp.compress.recipe.Recovery`: how they are trained.
        resume: go on with the run in ``out``.
        data: the folder of the task's data. Default: the environment variable AUTOCOMP_DATA, for tasks that take data.
        workers: what plans are evaluated on, of a Ray cluster; None for this process, one after the other.

    Raises:
        RequestError: the request does not hold together; nothing was begun.
        WorkError: the work failed.
    """
    from autocomp.explain import write_explanation
    from autocomp.hardware.profiles import find_profile
    from autocomp.hardware.resolve import check_measurable, resolve_target
    from autocomp.hardware.timed_files import THIS_MACHINE, Place
    from autocomp.search import flow
    from autocomp.search.limits import Goal
    from autocomp.search.recovery import check_device, read_recipe
    from autocomp.search.sampler import SamplerName
    from autocomp.search.workers import check_ray
    from autocomp.space_file import read_space

    if workers is not None:
        check_ray()
    if recover_epochs:
        check_device(recover_on)
    elif recipe is not None or recover_seeds != 1 or recover_on != "cpu":
        raise RequestError(
            "a recipe, seeds and a device to train on are for points that are recovered; say for how many epochs by --recover"
        )
    said = "{}" if recipe is None else read_recipe(Path(recipe), recover_epochs)
    check_known("sampler", sampler, get_args(SamplerName))
    check_known("goal", goal, get_args(Goal))
    folder = RunFolder(Path(out))
    folder.check_free(resume)
    if begin_from is not None:
        # The run that it began from may be gone when a search is taken up again.
        begun = folder if resume else RunFolder(Path(begin_from))
        task, target, space, data = completed(begun.request(), task, target, space, data)
    if target is None:
        raise RequestError(NO_TARGET)
    space = space or "default"
    read_space(str(space))  # a typo should not wait for training or calibration
    if isinstance(target, str):
        asked = find_profile(target)
        asked.check_artifact(artifact)
        if workers is None and not names_profile_folder(target):
            check_measurable(asked)
    # Options that contradict each other should not wait for training or calibration either.
    asked_for = Request(
        task="",
        target="",
        space=str(space),
        sampler=sampler,
        artifact=artifact or "",
        threads=1,
        batch=1,
        seed=seed,
        trials=trials,
        timeout_s=timeout_s,
        max_latency_ms=max_latency_ms,
        max_size_kb=max_size_kb,
        max_memory_kb=max_memory_kb,
        max_drop=max_drop,
        recover_epochs=recover_epochs,
        recover_on=recover_on,
        recover_seeds=recover_seeds,
        recipe=said,
        goal=goal,
        begun_from=None if begin_from is None else str(Path(begin_from).resolve()),
    )
    if data is None and resume and isinstance(task, str):
        data = data_of(folder.request(), task)
    with ExitStack() as held:
        if workers is not None:
            from autocomp.search.ray_cluster import TargetNode, connected

            held.enter_context(connected())
        loaded, used = _loaded(task, data, watcher)
        place: Place = THIS_MACHINE
        machine = None
        if not isinstance(target, str):
            found = target
        elif workers is None or names_profile_folder(target) or not find_profile(target).measurable:
            found = resolve_target(target, threads, batch, artifact, watcher.say, calibrating(watcher))
        else:
            node = TargetNode(find_profile(target).file.name)
            node = replace(node, labelled=node.is_labelled())
            watcher.say(f"latency is measured on {node.name}; where no profile holds there, it is calibrated first")
            found, place = node.resolve(threads, batch, artifact), node
            machine = node.there(flow.machine_of(found))
        request = replace(
            asked_for,
            task=loaded.name if isinstance(task, Task) else (task or loaded.name),
            target=str(Path(target).resolve())
            if isinstance(target, str) and names_profile_folder(target)
            else found.name,
            artifact=found.artifact,
            threads=found.threads,
            batch=found.batch,
            data=used,
        )
        setup = flow.set_up(request, loaded, found, place, machine)
        write_explanation(setup, folder, flow.search(setup, folder, resume, watcher, workers))
    return Run(folder)


def compress(
    model: torch.nn.Module,
    plan: Plan,
    example_inputs: tuple[torch.Tensor, ...],
    calibration: Sequence[tuple[torch.Tensor, ...]],
    numerics: Numerics | None = None,
    dynamic_dims: tuple[tuple[int, ...], ...] = (),
) -> Compressed:
    """Apply ``plan`` to ``model``, which is left as it is; ``.model`` of the result computes what the file computes.

    Args:
        example_inputs: the model's positional inputs at batch 1.
        calibration: batches of positional inputs, for the ranges of quantized activations.
        numerics: the integer arithmetic of a runtime (a target has it as ``numerics``); default is onnxruntime's.
        dynamic_dims: for each input, the dimensions besides the batch that may vary (see :class:`autocomp.Task`).

    Raises:
        TraceError: torch.export cannot follow the model.
        PlanError: the plan does not fit the model.
    """
    from autocomp.compress import apply
    from autocomp.compress.quantize import DEFAULT_NUMERICS

    return apply.compress(model, plan, example_inputs, calibration, numerics or DEFAULT_NUMERICS, dynamic_dims)


def _loaded(task: Task | str | None, data: str | Path | None, watcher: Watcher = SILENT) -> tuple[Task, str | None]:
    """The task, and the absolute path of the data that it was made with."""
    from autocomp.tasks.load import load

    if isinstance(task, Task):
        if data is not None:
            raise RequestError(
                f"data is for a task that is loaded by its name; got a Task and {str(data)!r}; leave data out"
            )
        return task, None
    loaded = load(task, watcher.say, None if data is None else Path(data))
    return loaded.task, None if loaded.data is None else str(loaded.data)


def predict(
    task: Task | str | Path | None = None,
    plan: Plan | None = None,
    *,
    target: Target | str,
    data: str | Path | None = None,
    input_shapes: Sequence[tuple[int, ...]] = (),
    in_part: bool = False,
) -> Forecast:
    """The latency of a task's model under a plan (default: untouched), or of an ONNX file, kernel by kernel; and the memory
    that it takes to run, which of a file is measured.

    Where the target's runtime is on this machine, the kernels are those of the graph that it compiles of the file.

    Args:
        task: a task, or the path of an ``.onnx`` file.
        data: the folder of the task's data, see :func:`search`.
        input_shapes: of one example of each of a file's inputs, where the file leaves dimensions open.
        in_part: where the latency model does not know all kernels, predict the others; ``uncovered`` says what is missing.

    Raises:
        UncoveredKernelError: the latency model does not know a kernel; names the layers. Not where ``in_part``.
        RequestError: a file for a target that is not this machine, or with a plan or data; a task with input shapes.
        MeasurementError: the runtime cannot load the file.
    """
    from autocomp.forecast import forecast_file, forecast_plan
    from autocomp.hardware.resolve import resolve_target

    found = resolve_target(target) if isinstance(target, str) else target
    if isinstance(task, (str, Path)) and str(task).endswith(".onnx"):
        if plan is not None:
            raise RequestError(f"a plan is for a model, and {task} is a file already; leave the plan out")
        if data is not None:
            raise RequestError(f"a folder of data is for a task, and {task} is a file; leave --data out")
        return forecast_file(Path(task), found, input_shapes, in_part)
    if input_shapes:
        raise RequestError("input shapes are for an ONNX file; those of a task are its example inputs'; leave them out")
    loaded, _ = _loaded(None if task is None else task if isinstance(task, Task) else str(task), data)
    return forecast_plan(loaded, plan or Plan(), found, in_part)


def export(task: Task, plan: Plan, path: str | Path, *, target: Target | str) -> Path:
    """Compress a task's model by a plan and write the file, in the format and numerics of a target.

    Raises:
        PlanError: the plan does not fit the model.
        ExportError: the file cannot be written.
    """
    from autocomp.compress import apply
    from autocomp.export import artifact
    from autocomp.hardware.resolve import resolve_target

    found = resolve_target(target) if isinstance(target, str) else target
    compressed = apply.compress(
        task.model, plan, task.example_inputs, task.calibration, found.numerics, task.dynamic_dims
    )
    write_whole(Path(path), artifact.export(compressed, found.artifact))
    return Path(path)
