"""A search from request to verified front, in a run folder; and the same folder taken up again later."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import cast

from autocomp.compress.apply import apply
from autocomp.compress.levels import global_sparsity
from autocomp.compress.prepare import prepare
from autocomp.compress.solve import Solver
from autocomp.compress.structure import restructure
from autocomp.errors import RunError, WorkError
from autocomp.export.size import SizeModel
from autocomp.export.to_onnx import export_onnx
from autocomp.hardware.fingerprint import Fingerprint, this_machine
from autocomp.hardware.remote.target import ConnectedBoard
from autocomp.hardware.target import Target
from autocomp.hardware.timed_files import THIS_MACHINE, Place
from autocomp.hardware.timing import timing_words
from autocomp.hardware.trtexec import SCRIPT, trtexec_script
from autocomp.plan import Plan
from autocomp.run import Request, RunFolder, write_whole
from autocomp.search.begin import Setup, begin
from autocomp.search.evaluate import Workbench
from autocomp.search.landscape import Landscape
from autocomp.search.recovery import recover_points, recovered_trials, weights_path, worth_recovering
from autocomp.search.sensitivity import sensitivities
from autocomp.search.study import Ledger, Limits, open_study, read_study, read_trials, run_trials
from autocomp.search.tables import BASELINE, VERIFIED, front_trials, verifications, write_tables
from autocomp.search.verify import Exported, export_and_score, time_files, verification
from autocomp.search.warm_start import warmed_up
from autocomp.search.workers import Workers
from autocomp.space import build_space, read_space
from autocomp.task import Direction, Metric, Task
from autocomp.tasks.load import check_task
from autocomp.trial import Trial
from autocomp.watch import Watcher


def set_up(
    request: Request,
    task: Task,
    target: Target,
    place: Place = THIS_MACHINE,
    machine: Fingerprint | None = None,
) -> Setup:
    """Check the task, prepare its model, resolve the space.

    Args:
        place: where files of the target are measured.
        machine: that this is; None for this one.

    Raises:
        TaskError, TraceError, SpaceError: the request does not hold together.
    """
    baseline = check_task(task)
    prepared = prepare(task.model, task.example_inputs, task.dynamic_dims)
    offer = target.offer
    space = build_space(
        read_space(request.space),
        prepared.inventory,
        offer.weight_bits,
        offer.patterns,
        offer.ranks,
        offer.activations,
        partial(global_sparsity, prepared, Solver(prepared.model, task.calibration)),
    )
    packed = target.artifact == "onnx-packed"
    untouched = export_onnx(apply(prepared, Plan(), task.calibration, target.numerics), packed)
    structure = restructure(prepared.inventory, Plan(), target.numerics)
    target.predict(structure)  # a kernel that the latency model does not know should not wait for the first trial
    numerics = target.numerics
    sizes = SizeModel.from_export(structure, len(untouched), packed, numerics.integer_bias, numerics.attention_operator)
    bench = Workbench(task, prepared, target, sizes, place)
    return Setup(request, bench, space, baseline, machine or this_machine())


def search(
    setup: Setup, folder: RunFolder, resume: bool, watcher: Watcher, workers: Workers | None = None
) -> list[Trial]:
    """Run or resume a search, verify its front, write tables.

    Args:
        workers: what evaluations run on, of a Ray cluster; None for this process, one after the other.

    Returns:
        The rows of ``front.csv``, baseline first.

    Raises:
        RunError: the folder holds another run, or none to resume, or the request changed.
        WorkError: not even the untouched model could be evaluated.
    """
    folder.check_free(resume)
    with folder.working():
        begin(setup, folder)
        request = setup.request
        bench = warmed_up(
            setup.bench,
            setup.space,
            request.trials,
            request.seed,
            folder,
            lambda done, of, what: watcher.step(what, done, of),
        )
        opened = open_study(folder.journal, bench.task.metric.direction)
        landscape, spent_s = None, 0.0
        if request.sampler == "auto":
            # Half of the time that there is at most: the other half is for trials.
            half_s = None if request.timeout_s is None else request.timeout_s / 2
            began = time.monotonic()
            table = sensitivities(
                bench, setup.space, folder, half_s, lambda done, of, what: watcher.step(what, done, of)
            )
            landscape = Landscape(setup.space, table, bench.cost)
            watcher.step("foreseeing what each choice costs", 0, 1)
            landscape.foresee()
            watcher.step("foreseeing what each choice costs", 1, 1)
            spent_s = time.monotonic() - began
        ledger = Ledger(opened, setup.space, request, bench.task.metric, setup.baseline.value, landscape)
        left_s = None if request.timeout_s is None else request.timeout_s - spent_s
        _run_trials(ledger, bench, request, left_s, workers, watcher)
        trials = load_trials(folder)
        points = write_tables(folder, request, bench.task.metric, trials)
        if not points:
            errors = [trial.error for trial in trials if trial.error]
            raise WorkError(
                f"the untouched model could not be evaluated: {errors[0] if errors else 'no trial was run'}"
            )
        if request.recover_epochs:
            # The same ones at every sitting: what was recovered has no say.
            searched = [trial for trial in trials if trial.parent is None]
            worth = worth_recovering(searched, front_trials(searched, bench.task.metric, Limits.of(request)))
            recover_points(bench, folder, worth, request, watcher)
            trials = load_trials(folder)
            points = write_tables(folder, request, bench.task.metric, trials)
        if len(points) == 1:
            watcher.say("no trial kept the limits asked for; the front holds the uncompressed model only")
        verify(setup, folder, points, watcher, again=False)
        _tell_of_misses(folder, points, request, watcher)
        return write_tables(folder, request, bench.task.metric, trials)


def _run_trials(
    ledger: Ledger, bench: Workbench, request: Request, left_s: float | None, workers: Workers | None, watcher: Watcher
) -> None:
    def told(trial: Trial, trials: Sequence[Trial]) -> None:
        watcher.trial(trial, trials, request.trials, bench.task.metric)

    if workers is None:
        run_trials(ledger, bench, left_s, told)
    else:
        from autocomp.search import ray_tune

        ray_tune.run_trials(ledger, bench, workers, left_s, told)


def _tell_of_misses(folder: RunFolder, points: Sequence[Trial], request: Request, watcher: Watcher) -> None:
    """Limits are kept by prediction; say where the measured file breaks one, or where its timing never settled."""
    verified = verifications(folder)
    for point in points:
        measured = verified.get(point.key, {}).get("measured")
        if not isinstance(measured, dict):
            continue
        limit_kb, size_bytes = request.max_size_kb, measured["size_bytes"]
        limited = point.number != BASELINE
        if limited and limit_kb is not None and isinstance(size_bytes, int) and size_bytes > 1000 * limit_kb:
            watcher.say(
                f"trial {point.number} was predicted within {limit_kb} kB and its file has {size_bytes:,} bytes"
            )
        if not isinstance(latency_ms := measured["latency_ms"], float):
            continue
        limit = request.max_latency_ms
        if limited and limit is not None and latency_ms > limit:
            watcher.say(f"trial {point.number} was predicted within {limit} ms and measured at {latency_ms:.3f} ms")
        if not measured["settled"]:
            watcher.say(f"trial {point.number}: its timings never settled; {latency_ms:.3f} ms is the lowest seen")


def verify(
    setup: Setup,
    folder: RunFolder,
    points: Sequence[Trial],
    watcher: Watcher,
    again: bool,
    board: ConnectedBoard | None = None,
) -> None:
    """Export, score and time front points, and record it as events.

    Args:
        points: trials to verify; the untouched one is measured with them, drops are counted from its file.
        again: also those that were verified before.
        board: what files are timed on, where that is not this machine.
    """
    done = set() if again else set(verifications(folder))
    wanted = [point for point in points if point.key not in done]
    if not wanted:
        return
    baseline = next(trial for trial in load_trials(folder) if trial.number == BASELINE)
    everything = [baseline, *(point for point in wanted if point.number != BASELINE)]
    exported: dict[int, Exported] = {}
    for place, point in enumerate(everything):
        watcher.step("exporting and scoring", place, len(everything))
        weights = None if point.weights is None else weights_path(folder, point.weights)
        exported[point.number] = export_and_score(setup.bench, point.plan, weights)
        write_file(folder, folder.exports / str(point.number), point.plan, exported[point.number].model)
    watcher.step("exporting and scoring", len(everything), len(everything))
    timings = time_files(
        setup.bench,
        {number: one.model for number, one in exported.items()},
        lambda done, of, what: watcher.step(what, done, of),
        None if board is None else board.runtime,
    )
    if timings:
        watcher.say(timing_words(timings))
    reference = exported[BASELINE].measured
    for point in everything:
        if point.cost is not None:
            found = verification(
                setup.bench,
                point,
                point.cost,
                exported[point.number],
                reference,
                timings.get(point.number),
                None if board is None else board.about,
            )
            folder.append_event({"event": VERIFIED, "verification": found})


def write_file(run: RunFolder, folder: Path, plan: Plan, model: bytes) -> Path:
    """Write a plan's ``model.onnx`` into a folder and, for TensorRT, the script that builds and times it on a board; returns
    the model's path."""
    write_whole(folder / "model.onnx", model)
    target = run.read()["target"]
    if isinstance(target, dict) and target["runtime"] == "tensorrt" and "input_shapes" in target:
        shapes = [tuple(shape) for shape in cast("list[list[int]]", target["input_shapes"])]
        layers = plan.layers.values()
        two_in_four = any(layer.sparsity is not None and layer.sparsity.pattern == "2:4" for layer in layers)
        write_whole(folder / SCRIPT, trtexec_script(model, shapes, two_in_four, str(target["runtime_version"])))
    return folder / "model.onnx"


def load_trials(folder: RunFolder) -> tuple[Trial, ...]:
    """All trials of a run, those that were recovered last.

    Raises:
        RunError: the folder holds no run.
    """
    request = folder.request()
    trials = read_trials(read_study(folder.journal), request.seed)
    return (*trials, *recovered_trials(folder, trials))


def metric_of(folder: RunFolder) -> Metric:
    task = folder.read()["task"]
    if not isinstance(task, dict):
        raise RunError(f"run.json of {folder.path} is from another version of autocomp; start anew")
    direction: Direction = "minimize" if task["direction"] == "minimize" else "maximize"
    return Metric(str(task["metric"]), direction, str(task["unit"]))


def front_of(folder: RunFolder) -> list[Trial]:
    """The front of a run, baseline first, from its truth."""
    return front_trials(load_trials(folder), metric_of(folder), Limits.of(folder.request()))


def rebuild(folder: RunFolder) -> list[Trial]:
    """Write the tables anew from the run's truth."""
    return write_tables(folder, folder.request(), metric_of(folder), load_trials(folder))
