"""The Python API: what the command line does, without strings.

Importing this is cheap: torch and the rest are loaded by the functions that need them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autocomp.errors import RequestError, RunError
from autocomp.plan import Plan
from autocomp.run import Json, Request, RunFolder, write_whole
from autocomp.task import Task
from autocomp.trial import Trial
from autocomp.watch import SILENT, Watcher, calibrating

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from autocomp.compress.apply import Compressed
    from autocomp.compress.quantize import Numerics
    from autocomp.compress.rebuild import Prepared
    from autocomp.hardware.latency import Forecast
    from autocomp.hardware.target import Artifact, Target
    from autocomp.search import flow
    from autocomp.search.sampler import SamplerName


@dataclass(frozen=True)
class Run:
    """A finished (or interrupted) search in its folder."""

    folder: RunFolder

    @staticmethod
    def open(path: str | Path) -> Run:
        """The run in a folder.

        Raises:
            RunError: the folder holds no run.
        """
        run = Run(RunFolder(Path(path)))
        run.folder.request()
        return run

    @property
    def front(self) -> pd.DataFrame:
        """``front.csv``: a row per front point, the untouched plan first; see DESIGN for the columns and their units."""
        return self._table("front.csv")

    @property
    def trials(self) -> pd.DataFrame:
        """``trials.csv``: a row per trial, with its state."""
        return self._table("trials.csv")

    def _table(self, name: str) -> pd.DataFrame:
        import pandas as pd

        from autocomp.search import flow

        if not (self.folder.path / name).is_file():
            flow.rebuild(self.folder)
        return pd.read_csv(self.folder.path / name)

    def pick(self, which: str | int = "knee", max_latency_ms: float | None = None) -> Trial:
        """A front point.

        Args:
            which: ``knee`` or a trial number; with a limit, ``knee`` gives the most accurate point that keeps it.
            max_latency_ms: measured where the point was, else predicted.

        Raises:
            RunError: no such front point, or none that keeps the limit.
        """
        from autocomp.search import flow
        from autocomp.search.tables import knee_trial, verifications

        points = flow.front_of(self.folder)
        if not points:
            raise RunError(f"{self.folder.path} has no finished trial to pick from; resume it with search --resume")
        metric = flow.metric_of(self.folder)
        if isinstance(which, int) or which != "knee":
            if max_latency_ms is not None:
                raise RequestError(f"a latency limit picks the point itself; got trial {which} as well; leave one out")
            if not str(which).isdigit():
                raise RequestError(f"--pick takes knee or a trial number; got {which!r}")
            found = [point for point in points if point.number == int(which)]
            if not found:
                numbers = ", ".join(str(point.number) for point in points)
                raise RunError(f"trial {which} is not on the front of {self.folder.path}; the front has {numbers}")
            return found[0]
        if max_latency_ms is None:
            if len(points) == 1:
                raise RunError(
                    f"the front of {self.folder.path} holds the uncompressed model only, no other plan kept the limits; "
                    "pick it with 0, or search on with --resume and more --trials"
                )
            return knee_trial(points, metric)
        verified = verifications(self.folder)
        fast = [point for point in points if _latency_ms(point, verified) <= max_latency_ms]
        if not fast:
            best = min(_latency_ms(point, verified) for point in points)
            raise RunError(
                f"no front point keeps {max_latency_ms} ms; the fastest takes {best:.3f} ms; ask for that or more"
            )
        return min(fast, key=lambda point: (metric.drop(0.0, point.metric or 0.0), point.number))

    def setup(self, task: Task | None = None, target: Target | None = None, watcher: Watcher = SILENT) -> flow.Setup:
        """What the run's plans are evaluated with. ``task``, ``target``: where they were not ones that have a name.

        Raises:
            TaskError, TargetError: the run's task or target is not to be had here.
            RunError: the model, or the machine to be measured, is not the one that the run was begun with.
        """
        from autocomp.hardware.fingerprint import Fingerprint, mismatch, this_machine
        from autocomp.hardware.resolve import resolve_target
        from autocomp.search import flow

        request = self.folder.request()
        found = target or resolve_target(
            request.target,
            request.threads,
            request.batch,
            _artifact(request.artifact),
            watcher.say,
            calibrating(watcher),
        )
        begun_on = Fingerprint.from_json(json.dumps(self.folder.read()["fingerprint"]))
        reasons = mismatch(begun_on, this_machine(), found.threads) if found.reachable else []
        if reasons:
            raise RunError(
                f"a run is measured on the kind of machine that it was begun on; here is {'; '.join(reasons)}; search anew"
            )
        setup = flow.set_up(request, task or self._task(), found)
        self._check_model(setup.bench.prepared)
        return setup

    def _task(self) -> Task:
        """The run's task, loaded anew by its name, with the data that it was begun with, or moved to AUTOCOMP_DATA."""
        from autocomp.tasks.load import load_task

        request = self.folder.request()
        return load_task(request.task, data=_data_of(request, request.task))

    def _prepared(self, task: Task | None) -> Prepared:
        from autocomp.compress.prepare import prepare

        loaded = task or self._task()
        prepared = prepare(loaded.model, loaded.example_inputs, loaded.dynamic_dims)
        self._check_model(prepared)
        return prepared

    def _check_model(self, prepared: Prepared) -> None:
        from autocomp.search import flow

        if self.folder.read()["weights_hash"] != flow.weights_hash(prepared):
            task = self.folder.request().task
            raise RunError(f"the model of task {task} is not the one that {self.folder.path} was searched with")

    def verify(
        self,
        pick: str | int = "front",
        task: Task | None = None,
        target: Target | None = None,
        watcher: Watcher = SILENT,
    ) -> list[Json]:
        """Export points again and measure their three numbers on the files.

        Args:
            pick: ``front``, ``knee`` or a trial number.
            task, target: where they were not ones that have a name.

        Returns:
            A document per point, as in ``verification.json``, the untouched one first.
        """
        from autocomp.search import flow
        from autocomp.search.tables import verifications

        points = flow.front_of(self.folder) if pick == "front" else [self.pick(pick)]
        setup = self.setup(task, target, watcher)
        with self.folder.working():
            flow.verify(setup, self.folder, points, watcher, again=True)
            flow.rebuild(self.folder)
        verified = verifications(self.folder)
        return [verified[point.plan.hash] for point in points]

    def export(
        self,
        pick: str | int = "knee",
        max_latency_ms: float | None = None,
        artifact: Artifact | None = None,
        out: str | Path | None = None,
        task: Task | None = None,
    ) -> Path:
        """Write a point's ``model.onnx`` and ``plan.json`` to a folder; returns the model's path.

        Args:
            artifact: ``onnx`` or ``onnx-packed``; default is what the run was searched for.
            out: default ``exports/<trial>`` in the run folder, or a folder of its own in there for another format.

        Raises:
            RunError: no such point, or the task's model is not the one that the run was begun with.
        """
        point = self.pick(pick, max_latency_ms)
        searched = self.folder.request().artifact
        wanted = artifact or _artifact(searched)
        own = self.folder.exports / str(point.number)
        # Beside the verified file, never over it.
        folder = Path(out) if out is not None else own if wanted == searched else own / wanted
        model = self._verified_file(point) if wanted == searched else None
        write_whole(folder / "model.onnx", model or self._built(point, wanted, task))
        write_whole(folder / "plan.json", (point.plan.to_json() + "\n").encode())
        return folder / "model.onnx"

    def _verified_file(self, point: Trial) -> bytes | None:
        """The file that was verified, where it is still there."""
        from autocomp.search.tables import verifications

        path = self.folder.exports / str(point.number) / "model.onnx"
        measured = verifications(self.folder).get(point.key, {}).get("measured")
        if not path.is_file() or not isinstance(measured, dict):
            return None
        model = path.read_bytes()
        return model if len(model) == measured["size_bytes"] else None

    def _built(self, point: Trial, artifact: Artifact, task: Task | None) -> bytes:
        """The file of a point, compressed anew in the numerics that the run was searched in."""
        from autocomp.compress.apply import apply
        from autocomp.compress.quantize import Numerics
        from autocomp.compress.recovered import read_weights, with_weights
        from autocomp.export.to_onnx import export_onnx
        from autocomp.search.recovery import weights_path

        target = self.folder.read()["target"]
        numerics = target.get("numerics") if isinstance(target, dict) else None
        if not isinstance(numerics, dict):
            raise RunError(f"run.json of {self.folder.path} is from another version of autocomp; start anew")
        loaded = task or self._task()
        prepared = self._prepared(loaded)
        told = Numerics(**{name: bool(value) for name, value in numerics.items()})
        compressed = apply(prepared, point.plan, loaded.calibration, told)
        if point.weights is not None:
            compressed = with_weights(compressed, read_weights(weights_path(self.folder, point.weights)))
        return export_onnx(compressed, packed=artifact == "onnx-packed")

    def report(self, task: Task | None = None) -> Path:
        """Rebuild tables, figures and ``report.html`` from the run's truth; returns the page's path.

        Args:
            task: where it was not one that has a name, and ``layers.json`` is gone.

        Raises:
            RunError: no trial is finished, or the task's model is not the one that the run was begun with.
        """
        from autocomp.report.page import write
        from autocomp.search import flow
        from autocomp.search.tables import knee_trial

        points = flow.rebuild(self.folder)
        if not points:
            raise RunError(f"{self.folder.path} has no finished trial to report; resume it with search --resume")
        if not (self.folder.path / "layers.json").is_file():
            prepared = self._prepared(task)
            self.folder.write_json("layers.json", flow.layers_document(prepared))
        return write(self.folder.path, knee_trial(points, flow.metric_of(self.folder)).number)


def _latency_ms(point: Trial, verified: dict[str, Json]) -> float:
    measured = verified.get(point.key, {}).get("measured")
    found = measured.get("latency_ms") if isinstance(measured, dict) and measured.get("settled") else None
    if isinstance(found, (int, float)):
        return float(found)
    return point.cost.latency_ms if point.cost is not None else float("inf")


def _artifact(name: str) -> Artifact:
    return "onnx" if name == "onnx" else "onnx-packed"


def search(
    task: Task | str | None = None,
    *,
    target: Target | str,
    out: str | Path,
    threads: int | None = None,
    batch: int | None = None,
    artifact: Artifact | None = None,
    trials: int = 60,
    timeout_s: float | None = None,
    space: str | Path = "default",
    sampler: SamplerName = "auto",
    max_latency_ms: float | None = None,
    max_size_kb: float | None = None,
    max_drop: float | None = None,
    recover_epochs: int = 0,
    seed: int = 0,
    resume: bool = False,
    data: str | Path | None = None,
    watcher: Watcher = SILENT,
) -> Run:
    """Search for the Pareto front of a task on a target; every point of it is exported and measured.

    Args:
        task: a :class:`Task`, a built-in task's name, ``torchvision:NAME``, ``timm:NAME``, ``hf:FOLDER``,
            ``FILE.py[:function]``; None is the embedded ``digits``.
        target: a :class:`Target` or a target's name.
        out: the run folder; new, or the one to resume.
        threads, batch, artifact: of the target, where it is given by name; default is what its profile says.
        trials: plans to evaluate, the untouched one included.
        timeout_s: stop proposing after so many seconds; what was found is kept, verified and reported.
        space: name or file of a search space.
        max_latency_ms, max_size_kb: limits of the predicted cost (1 kB = 1000 bytes).
        max_drop: the largest loss of the search metric against the untouched model, in the metric's units.
        recover_epochs: how long the points worth it are trained on for, at the end; each gives a trial of its own.
        resume: go on with the run in ``out``.
        data: the folder of the task's data. Default: the environment variable AUTOCOMP_DATA, for tasks that take data.

    Raises:
        RequestError: the request does not hold together; nothing was begun.
        WorkError: the work failed.
    """
    from autocomp.hardware.profiles import find_profile
    from autocomp.hardware.resolve import resolve_target
    from autocomp.search import flow
    from autocomp.search.sampler import check_sampler
    from autocomp.space import read_space

    check_sampler(sampler)
    read_space(str(space))  # a typo should not wait for training or calibration
    if isinstance(target, str):
        find_profile(target)
    folder = RunFolder(Path(out))
    folder.check_free(resume)
    if data is None and resume and isinstance(task, str):
        data = _data_of(folder.request(), task)
    loaded, used = _loaded(task, data, watcher)
    if isinstance(target, str):
        found = resolve_target(target, threads, batch, artifact, watcher.say, calibrating(watcher))
    else:
        found = target
    request = Request(
        task=loaded.name if isinstance(task, Task) else (task or loaded.name),
        target=found.name,
        space=str(space),
        sampler=sampler,
        artifact=found.artifact,
        threads=found.threads,
        batch=found.batch,
        seed=seed,
        trials=trials,
        timeout_s=timeout_s,
        max_latency_ms=max_latency_ms,
        max_size_kb=max_size_kb,
        max_drop=max_drop,
        data=used,
        recover_epochs=recover_epochs,
    )
    flow.search(flow.set_up(request, loaded, found), folder, resume, watcher)
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


def _data_of(begun: Request, task: str) -> Path | None:
    """The folder that a run's data came from, where it is still there and the run is one of this task."""
    data = None if begun.data is None or begun.task != task else Path(begun.data)
    return data if data is not None and data.is_dir() else None


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
) -> Forecast:
    """The latency of a task's model under a plan (default: untouched), or of an ONNX file, kernel by kernel; and the memory
    that it takes to run, which of a file is measured.

    A file's kernels are those of the graph that the target's runtime compiles of it on this machine.

    Args:
        task: a task, or the path of an ``.onnx`` file.
        data: the folder of the task's data, see :func:`search`.
        input_shapes: of one example of each of a file's inputs, where the file leaves dimensions open.

    Raises:
        UncoveredKernelError: the latency model does not know a kernel; names the layers.
        RequestError: a file for a target that is not this machine, or with a plan.
        MeasurementError: the runtime cannot load the file.
    """
    from autocomp.compress.prepare import prepare
    from autocomp.compress.structure import restructure
    from autocomp.hardware.latency import Forecast
    from autocomp.hardware.resolve import resolve_target

    found = resolve_target(target) if isinstance(target, str) else target
    if isinstance(task, (str, Path)) and str(task).endswith(".onnx"):
        if plan is not None:
            raise RequestError(f"a plan is for a model, and {task} is a file already; leave the plan out")
        return _predict_file(Path(task), found, input_shapes)
    loaded, _ = _loaded(None if task is None else task if isinstance(task, Task) else str(task), data)
    prepared = prepare(loaded.model, loaded.example_inputs, loaded.dynamic_dims)
    structure = restructure(prepared.inventory, plan or Plan(), found.numerics)
    latency = found.predict(structure)
    memory = found.peak_memory_bytes(structure, [share.kernel for share in latency.kernels])
    return Forecast(latency, memory, "counted" if found.memory is None else "fitted")


def _predict_file(path: Path, target: Target, input_shapes: Sequence[tuple[int, ...]]) -> Forecast:
    from autocomp.hardware.footprint import footprint_bytes
    from autocomp.hardware.latency import Forecast
    from autocomp.hardware.runtimes.runtime import cpu_runtime, example_arrays

    if not target.reachable:
        raise RequestError(
            f"a file's kernels are read off the graph that the runtime compiles of it on this machine; {target.name} runs "
            f"{target.runtime}, elsewhere; give a task, or --target cpu"
        )
    if not path.is_file():
        raise RequestError(f"an ONNX file must exist; got {path}")
    runtime = cpu_runtime(target.runtime)
    inputs = example_arrays(runtime.load(path, target.threads), target.batch, shapes=input_shapes)
    samples = runtime.kernel_samples(path, inputs, target.threads, runs=1)
    latency = target.model.predict([sample.kernel for sample in samples])
    return Forecast(latency, footprint_bytes(target.runtime, path, inputs, target.threads), "measured")


def export(task: Task, plan: Plan, path: str | Path, *, target: Target | str) -> Path:
    """Compress a task's model by a plan and write the ONNX file, in the format and numerics of a target.

    Raises:
        PlanError: the plan does not fit the model.
        ExportError: the file cannot be written.
    """
    from autocomp.compress import apply
    from autocomp.export.to_onnx import export_onnx
    from autocomp.hardware.resolve import resolve_target

    found = resolve_target(target) if isinstance(target, str) else target
    compressed = apply.compress(
        task.model, plan, task.example_inputs, task.calibration, found.numerics, task.dynamic_dims
    )
    write_whole(Path(path), export_onnx(compressed, packed=found.artifact == "onnx-packed"))
    return Path(path)
