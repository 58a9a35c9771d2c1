"""A search that is finished, or was interrupted, in its folder: what people do with it.

Importing this is cheap: torch and the rest are loaded by the methods that need them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast, get_args

from autocomp.errors import RunError
from autocomp.run import Json, Request, RunFolder, seen_from, write_whole
from autocomp.task import Task
from autocomp.trial import Trial
from autocomp.watch import SILENT, Watcher, calibrating

if TYPE_CHECKING:
    import pandas as pd

    from autocomp.compress.rebuild import Prepared
    from autocomp.export.artifact import Artifact
    from autocomp.hardware.target import Target
    from autocomp.report.card import Shipped
    from autocomp.report.shown import Marked
    from autocomp.search.begin import Setup
    from autocomp.search.own_study import OwnStudy


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
        """``front.csv``: a row per front point, the untouched plan first; ``docs/tables.md`` tells the columns."""
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

    def pick(self, which: str | int | None = None, max_latency_ms: float | None = None) -> Trial:
        """A front point.

        Args:
            which: ``knee``, ``most-accurate``, ``fastest``, ``smallest`` or a trial number; default is the knee, or with a
                limit the most accurate point that keeps it.
            max_latency_ms: measured where the point was, else predicted; instead of ``which``.

        Raises:
            RunError: no such front point, none that keeps the limit, or only the untouched model, which is picked by number.
            RequestError: ``which`` is none of these, or given beside a limit.
        """
        from autocomp.search.pick import picked

        return picked(self.folder, which, max_latency_ms)

    def setup(self, task: Task | None = None, target: Target | None = None, watcher: Watcher = SILENT) -> Setup:
        """What the run's plans are evaluated with. ``task``, ``target``: where they were not ones that have a name.

        Raises:
            TaskError, TargetError: the run's task or target is not to be had here.
            RunError: the model, or the machine to be measured, is not the one that the run was begun with.
        """
        from autocomp.hardware.profiles import find_profile
        from autocomp.hardware.resolve import resolve_target
        from autocomp.places import names_profile_folder
        from autocomp.search import flow
        from autocomp.space_file import builtin_spaces

        request = self.folder.request()
        if request.space not in builtin_spaces():
            request = replace(request, space=seen_from(self.folder.begun_in(), request.space))
        measured_here = (
            target is None and not names_profile_folder(request.target) and find_profile(request.target).measurable
        )
        if measured_here:
            if not cast("Json", self.folder.read()["target"]).get("reachable", True):  # runs of before did not say
                raise RunError(
                    f"{self.folder.path} is of {request.target} on another machine than this; pass it as target="
                )
            self._check_machine(request.threads)  # before it is calibrated for nothing
        found = target or resolve_target(
            request.target,
            request.threads,
            request.batch,
            _artifact(request.artifact),
            watcher.say,
            calibrating(watcher),
        )
        if found.reachable and not measured_here:
            self._check_machine(found.threads)
        setup = flow.set_up(request, task or self._task(), found)
        self._check_model(setup.bench.prepared)
        return setup

    def _check_machine(self, threads: int) -> None:
        """Raises:
        RunError: files that are timed here, with so many threads, would not stand beside those of the run.
        """
        from autocomp.hardware.fingerprint import Fingerprint, mismatch, this_machine

        begun_on = Fingerprint.from_json(json.dumps(self.folder.read()["fingerprint"]))
        reasons = mismatch(begun_on, this_machine(begun_on.runtime), threads)
        if reasons:
            raise RunError(
                f"files of a run are timed on the kind of machine that it was begun on; here is {'; '.join(reasons)}; verify "
                "it there, or search anew; export and report work here as well"
            )

    def _task(self) -> Task:
        """The run's task, loaded anew by its name, with the data that it was begun with, or moved to AUTOCOMP_DATA."""
        from autocomp.tasks.load import load_task, names_task, task_seen_from

        request = self.folder.request()
        if not names_task(request.task):
            raise RunError(
                f"the task of {self.folder.path}, {request.task!r}, was made in Python and has no name to load it by; "
                f"pass it: Run.open({str(self.folder.path)!r}) has the same methods with task=…"
            )
        return load_task(task_seen_from(self.folder.begun_in(), request.task), data=data_of(request, request.task))

    def _prepared(self, task: Task | None) -> Prepared:
        from autocomp.compress.prepare import prepare

        loaded = task or self._task()
        prepared = prepare(loaded.model, loaded.example_inputs, loaded.dynamic_dims)
        self._check_model(prepared)
        return prepared

    def _check_model(self, prepared: Prepared) -> None:
        from autocomp.search.begin import weights_hash

        if self.folder.read()["weights_hash"] != weights_hash(prepared):
            task = self.folder.request().task
            raise RunError(f"the model of task {task} is not the one that {self.folder.path} was searched with")

    def own_study(self, seed: int = 0, task: Task | None = None, target: Target | None = None) -> OwnStudy:
        """The guided sampler and an objective, for a study of one's own (``docs/own-study.md``).

        Args:
            task, target: where they were not ones that have a name.

        Raises:
            RunError: the run was searched without sensitivities, or its model is another one now.
        """
        from autocomp.search.own_study import own_study

        return own_study(self.setup(task, target), self.folder, seed)

    def verify(
        self,
        pick: str | int = "front",
        task: Task | None = None,
        target: Target | None = None,
        watcher: Watcher = SILENT,
        host: str | None = None,
    ) -> list[Json]:
        """Export points again and measure their three numbers on the files.

        Args:
            pick: ``front`` (and what timings that never settled keep from it), what :meth:`pick` takes, or the number of any
                trial that was evaluated.
            task, target: where they were not ones that have a name.
            host: the run's target, as ssh reaches it (``user@board``): files are timed there. Their metric is that of this
                machine.

        Returns:
            A document per point, as in ``verification.json``, the untouched one first.

        Raises:
            BoardError: the host cannot be reached, is not the run's target, or lacks its runtime.
        """
        from autocomp.explain import write_explanation
        from autocomp.hardware.remote.connection import Board
        from autocomp.hardware.remote.target import board_of
        from autocomp.search import flow
        from autocomp.search.pick import is_number
        from autocomp.search.points import shippable, verifications

        if pick == "front":
            points = [*flow.front_of(self.folder), *flow.doubted_of(self.folder)]
        else:
            points = [self._evaluated(int(pick)) if is_number(pick) else self.pick(pick)]
        with ExitStack() as connected:
            board = None
            if host is not None:
                request = self.folder.request()
                there = connected.enter_context(Board(host, tell=watcher.say))
                board = board_of(request.target, request.threads, request.batch, there)
            setup = self.setup(task, target, watcher)
            with self.folder.working():
                flow.verify(setup, self.folder, points, watcher, again=True, board=board)
                write_explanation(setup, self.folder, flow.rebuild(self.folder))
        verified = verifications(self.folder)
        return [verified[point.key] for point in shippable(self.folder.events(), points) if point.key in verified]

    def _evaluated(self, number: int) -> Trial:
        from autocomp.search import flow

        trials = {trial.number: trial for trial in flow.load_trials(self.folder) if trial.state == "complete"}
        if number not in trials:
            raise RunError(
                f"a trial that is verified must be one that was evaluated; {number} is none of {self.folder.path}, whose "
                f"{len(trials)} are in trials.csv"
            )
        return trials[number]

    def export(
        self,
        pick: str | int | None = None,
        max_latency_ms: float | None = None,
        artifact: Artifact | None = None,
        out: str | Path | None = None,
        task: Task | None = None,
    ) -> Path:
        """Write a point's ``model.onnx`` (``model.pt2`` where the format is ``torch``), ``plan.json`` and model card to a
        folder, for TensorRT also ``trtexec.sh``; returns the model's path.

        Args:
            artifact: ``onnx``, ``onnx-packed`` or ``torch``; default is what the run was searched for.
            out: default ``exports/<trial>`` in the run folder, or a folder of its own in there for another format.

        Raises:
            RequestError: the run's target cannot read a file that unpacks itself.
            RunError: no such point, or the task's model is not the one that the run was begun with.
        """
        from autocomp.hardware.target import check_unpacks
        from autocomp.report.card import Shipped
        from autocomp.search import flow

        point = self.pick(pick, max_latency_ms)
        searched = self.folder.request().artifact
        wanted = artifact or _artifact(searched)
        target = self.folder.read()["target"]
        if isinstance(target, dict):
            check_unpacks(wanted, str(target["runtime"]), f"{self.folder.path} is of a search for")
        own = self.folder.exports / str(point.number)
        # Beside the verified file, never over it.
        folder = Path(out) if out is not None else own if wanted == searched else own / wanted
        if folder.exists() and not folder.is_dir():
            raise RunError(f"a point is written into a folder; {folder} is a file; name another by --out")
        verified = self._verified_file(point) if wanted == searched else None
        model = verified or self._built(point, wanted, task)
        write_whole(folder / "plan.json", (point.plan.to_json() + "\n").encode())
        path = flow.write_file(self.folder, folder, point.plan, model, wanted)
        self._write_card(folder, point, Shipped(path.name, wanted, len(model), verified is not None), task)
        return path

    def _write_card(self, folder: Path, point: Trial, shipped: Shipped, task: Task | None) -> None:
        from autocomp.report import card
        from autocomp.report.load import load

        self._rebuilt(task)
        data = load(self.folder.path)
        found = next(each for each in data.points if each.trial == point.number)
        write_whole(folder / card.FILE, card.card(data, found, shipped).encode())

    def _verified_file(self, point: Trial) -> bytes | None:
        """The file that was verified, where it is still there."""
        from autocomp.export.artifact import FILE_NAMES
        from autocomp.search.points import verifications

        path = self.folder.exports / str(point.number) / FILE_NAMES[_artifact(self.folder.request().artifact)]
        document = verifications(self.folder).get(point.key, {})
        measured = document.get("measured")
        if not path.is_file() or not isinstance(measured, dict):
            return None
        model = path.read_bytes()
        # Runs of before tell no hash.
        same = document.get("file_sha256") in {None, hashlib.sha256(model).hexdigest()}
        return model if same and len(model) == measured["size_bytes"] else None

    def _built(self, point: Trial, artifact: Artifact, task: Task | None) -> bytes:
        """The file of a point, compressed anew in the numerics that the run was searched in."""
        from autocomp.compress.apply import apply
        from autocomp.compress.quantize import Numerics
        from autocomp.compress.recovered import read_weights, with_weights
        from autocomp.export.artifact import export
        from autocomp.search.recovery import weights_path

        target = self.folder.read()["target"]
        numerics = target.get("numerics") if isinstance(target, dict) else None
        if not isinstance(numerics, dict):
            raise RunError(f"run.json of {self.folder.path} is from another version of autocomp; start anew")
        loaded = task or self._task()
        prepared = self._prepared(loaded)
        told = Numerics(**numerics)  # type: ignore[arg-type]
        compressed = apply(prepared, point.plan, loaded.calibration, told)
        if point.weights is not None:
            compressed = with_weights(compressed, read_weights(weights_path(self.folder, point.weights)))
        return export(compressed, artifact)

    def report(self, task: Task | None = None) -> Path:
        """Rebuild tables, figures and ``report.html`` from the run's truth; returns the page's path.

        Args:
            task: where it was not one that has a name, and ``layers.json`` is gone.

        Raises:
            RunError: no trial is finished, or the task's model is not the one that the run was begun with.
        """
        from autocomp.report.page import write

        return write(self.folder.path, self._rebuilt(task))

    def _rebuilt(self, task: Task | None = None) -> Marked:
        """Rebuild what a report is read from; returns what is marked in it."""
        from autocomp.report.shown import Marked
        from autocomp.search import flow
        from autocomp.search.begin import layers_document
        from autocomp.search.limits import Goal
        from autocomp.search.points import goal_trial, knee_trial, verifications

        points = flow.rebuild(self.folder)
        if not points:
            raise RunError(f"{self.folder.path} has no finished trial to report; resume it with search --resume")
        if not (self.folder.path / "layers.json").is_file():
            prepared = self._prepared(task)
            self.folder.write_json("layers.json", layers_document(prepared))
        request, metric, verified = self.folder.request(), flow.metric_of(self.folder), verifications(self.folder)
        goal, wanted = cast("Goal", request.goal), None
        if goal != "front":
            with suppress(RunError):  # nothing is near enough
                wanted = goal_trial(points, goal, metric, verified, request.max_drop).number
        return Marked(knee_trial(points, metric).number, wanted)


def report_together(runs: Sequence[Run], page: Path) -> Path:
    """Rebuild the report of every run, and write one page of them all; returns its path.

    Raises:
        RunError: a run has no finished trial.
        RequestError: their metrics are not one.
    """
    from autocomp.report.page import write_together

    return write_together([run.folder.path for run in runs], [run._rebuilt() for run in runs], page)


def _artifact(name: str) -> Artifact:
    from autocomp.export.artifact import Artifact

    return next((one for one in get_args(Artifact) if one == name), "onnx-packed")


def data_of(begun: Request, task: str) -> Path | None:
    """The folder that a run's data came from, where it is still there and the run is one of this task."""
    data = None if begun.data is None or begun.task != task else Path(begun.data)
    return data if data is not None and data.is_dir() else None


T = TypeVar("T")
U = TypeVar("U")


def completed(
    begun: Request, task: T | None, target: U | None, space: str | Path | None, data: str | Path | None
) -> tuple[T | str, U | str, str | Path, str | Path | None]:
    """A request that begins from a run, with what that one says of the task, the target, the space and the data where itself it
    says nothing."""
    from autocomp.tasks.load import names_task

    if task is None and not names_task(begun.task):
        raise RunError(
            f"the task of the run to begin from, {begun.task!r}, was made in Python and has no name to load it by; name its "
            "FILE.py by --task, or pass it as task"
        )
    wanted = task or begun.task
    found = data or (data_of(begun, wanted) if isinstance(wanted, str) else None)
    return wanted, target or begun.target, space or begun.space, found
