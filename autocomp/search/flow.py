"""A search from request to verified front, in a run folder; and the same folder taken up again later."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import cast

from autocomp.compress import recovered
from autocomp.compress.apply import apply
from autocomp.compress.levels import global_sparsity
from autocomp.compress.prepare import prepare
from autocomp.compress.rebuild import Prepared
from autocomp.compress.solve import Solver
from autocomp.compress.structure import restructure
from autocomp.errors import RunError, WorkError
from autocomp.export.artifact import FILE_NAMES, Artifact, export, sizes_of
from autocomp.hardware.fingerprint import Fingerprint, this_machine
from autocomp.hardware.remote.target import ConnectedBoard
from autocomp.hardware.target import Target
from autocomp.hardware.timed_files import THIS_MACHINE, Place
from autocomp.hardware.timing import timing_words
from autocomp.hardware.trtexec import SCRIPT, trtexec_script
from autocomp.plan import Plan
from autocomp.run import Request, RunFolder, write_whole
from autocomp.search.evaluate import Workbench
from autocomp.search.landscape import Landscape
from autocomp.search.recovery import recover_points, recovered_trials, weights_path, worth_recovering
from autocomp.search.sensitivity import sensitivities
from autocomp.search.study import Ledger, Limits, open_study, read_study, read_trials, run_trials
from autocomp.search.tables import BASELINE, VERIFIED, front_trials, verifications, write_tables
from autocomp.search.verify import Exported, export_and_score, time_files, verification
from autocomp.search.warm_start import warmed_up
from autocomp.search.workers import Workers
from autocomp.space import SearchSpace, build_space, read_space
from autocomp.task import Direction, Metric, Score, Task
from autocomp.tasks.load import check_task
from autocomp.trial import Trial
from autocomp.watch import Watcher

PACKAGES = ("autocomp", "torch", "onnx", "onnxruntime", "optuna", "torch-pruning", "scikit-learn", "numpy")


@dataclass(frozen=True)
class Setup:
    """A request made ready: what plans are evaluated with, what may be decided, the untouched model's score, and the
    machine that files are timed on."""

    request: Request
    bench: Workbench
    space: SearchSpace
    baseline: Score
    machine: Fingerprint


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
    untouched = export(apply(prepared, Plan(), task.calibration, target.numerics), target.artifact)
    structure = restructure(prepared.inventory, Plan(), target.numerics)
    target.predict(structure)  # a kernel that the latency model does not know should not wait for the first trial
    sizes = sizes_of(structure, len(untouched), target.artifact, target.numerics)
    bench = Workbench(task, prepared, target, sizes, place)
    # Where files are measured on a GPU, that is the machine; else the CPU, whatever runtime is on it.
    on_gpu = target.reachable and target.runtime == "torch-cuda"
    here = machine or (this_machine(target.runtime) if on_gpu else this_machine())
    return Setup(request, bench, space, baseline, here)


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
        _begin(setup, folder)
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
        file = exported[point.number].model
        write_file(folder, folder.exports / str(point.number), point.plan, file, setup.bench.target.artifact)
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


def write_file(run: RunFolder, folder: Path, plan: Plan, model: bytes, artifact: Artifact) -> Path:
    """Write a plan's file, ``model.onnx`` or as its format has it, into a folder and, for TensorRT, the script that builds and
    times it on a board; returns the model's path."""
    path = folder / FILE_NAMES[artifact]
    write_whole(path, model)
    target = run.read()["target"]
    boards = isinstance(target, dict) and target["runtime"] == "tensorrt" and artifact != "torch"
    if boards and isinstance(target, dict) and "input_shapes" in target:
        shapes = [tuple(shape) for shape in cast("list[list[int]]", target["input_shapes"])]
        layers = plan.layers.values()
        two_in_four = any(layer.sparsity is not None and layer.sparsity.pattern == "2:4" for layer in layers)
        write_whole(folder / SCRIPT, trtexec_script(model, shapes, two_in_four, str(target["runtime_version"])))
    return path


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


def weights_hash(prepared: Prepared) -> str:
    """Of the weights that the plans of a run are applied to."""
    return recovered.weights_hash(prepared.model.state_dict())


def space_hash(space: SearchSpace) -> str:
    """Of the decisions: a proposal in the journal is a number of an option each, which must stay what it was."""
    said = repr(space.decisions) + (repr(space.adjustments) if space.adjustments else "")
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _begin(setup: Setup, folder: RunFolder) -> None:
    if folder.exists():
        _check_same(setup, folder)
    folder.write_json("run.json", _document(setup, folder))
    folder.write_json("layers.json", layers_document(setup.bench.prepared))


def layers_document(prepared: Prepared) -> list[dict[str, object]]:
    """``layers.json``: the compressible layers in execution order."""
    inventory = prepared.inventory
    block_of = {name: block.name for block in inventory.blocks for name in block.layers}
    widths = {name: group.width for group in inventory.groups for name in group.producers}
    return [
        {
            **asdict(layer),
            "prunable": layer.group is not None,
            "block": block_of.get(layer.name, ""),
            "channel_units": widths.get(layer.name),
        }
        for layer in inventory.layers
    ]


def _check_same(setup: Setup, folder: RunFolder) -> None:
    changes = folder.request().changes(setup.request)
    if changes:
        raise RunError(f"--resume must ask for the same search; {'; '.join(changes)}; name another --out for a new one")
    before = folder.read()
    if before["weights_hash"] != weights_hash(setup.bench.prepared):
        raise RunError(f"the model is not the one that {folder.path} was begun with; name another --out")
    if before.get("space_hash") != space_hash(setup.space):
        raise RunError(
            f"the choices of space {setup.request.space} are not those that {folder.path} was begun with; "
            "name another --out"
        )
    if before["profile_hash"] != setup.bench.target.profile_hash:
        raise RunError(
            f"the profile of {setup.request.target} is not the one that {folder.path} was begun with; name another --out"
        )


def _document(setup: Setup, folder: RunFolder) -> dict[str, object]:
    """``run.json``. On resume, when the run was begun stays."""
    bench, target = setup.bench, setup.bench.target
    held_out = target.model.held_out
    created = (
        folder.read()["created"] if folder.exists() else datetime.datetime.now(datetime.UTC).isoformat("T", "seconds")
    )
    outcomes = setup.baseline.outcomes
    return {
        "request": asdict(setup.request),
        "task": {
            "name": bench.task.name,
            "metric": bench.task.metric.name,
            "direction": bench.task.metric.direction,
            "unit": bench.task.metric.unit,
            "search_examples": None if outcomes is None else len(outcomes),
        },
        "target": {
            "name": target.name,
            "device": target.device,
            "runtime": target.runtime,
            "runtime_version": target.runtime_version,
            "input_shapes": [list(array.shape) for array in bench.prepared.example.arrays(target.batch)],
            "format": target.artifact,
            "threads": target.threads,
            "batch": target.batch,
            "clocks": target.clocks,
            "numerics": asdict(target.numerics),
            "latency_source": target.model.source,
            "held_out_error": None if held_out is None else held_out.mean,
            "held_out_note": "" if held_out is None else held_out.note,
            "note": target.note,
        },
        "weights_hash": weights_hash(bench.prepared),
        "space_hash": space_hash(setup.space),
        "profile_hash": target.profile_hash,
        "skipped": [list(pair) for pair in bench.prepared.inventory.skipped],
        "versions": {name: _version(name) for name in PACKAGES},
        "git_commit": _git_commit(),
        "fingerprint": json.loads(setup.machine.to_json()),
        "created": created,
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed: it came with a job"


def _git_commit() -> str | None:
    """The commit of the checkout that autocomp runs from; None where it is installed."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
