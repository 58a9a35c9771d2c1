"""A search from request to verified front, in a run folder; and the same folder taken up again later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import cast

from autocomp.compress.apply import apply
from autocomp.compress.levels import global_sparsity
from autocomp.compress.prepare import prepare
from autocomp.compress.solve import Solver
from autocomp.compress.structure import restructure
from autocomp.errors import AutocompError, BoardError, BoardLostError, RunError, WorkError
from autocomp.export.artifact import FILE_NAMES, Artifact, export, sizes_of
from autocomp.hardware.fingerprint import Fingerprint, this_machine
from autocomp.hardware.remote.target import ConnectedBoard
from autocomp.hardware.target import Target
from autocomp.hardware.timed_files import THIS_MACHINE, Place, slower_words
from autocomp.hardware.timing import timing_words
from autocomp.hardware.trtexec import SCRIPT, trtexec_script
from autocomp.plan import Plan
from autocomp.run import Json, Request, RunFolder, write_whole
from autocomp.search.begin import Setup, begin, left_alone
from autocomp.search.earlier import check_same_network, take_over, taken_over
from autocomp.search.evaluate import Workbench
from autocomp.search.last_rung import LastRung
from autocomp.search.limits import Goal, Limits
from autocomp.search.points import (
    ANOTHER_TRY,
    BASELINE,
    UNSHIPPABLE,
    VERIFIED,
    doubted,
    front_in,
    goal_trial,
    trained_points,
    verifications,
)
from autocomp.search.possible import check_possible
from autocomp.search.recovery import recovered_trials, weights_path
from autocomp.search.rounds import Rounds, with_parts
from autocomp.search.study import read_study, read_trials
from autocomp.search.tables import write_tables
from autocomp.search.verify import Exported, export_and_score, footprints, run_once, time_files, verification
from autocomp.search.workers import Workers
from autocomp.space_builder import build_space
from autocomp.space_file import read_space
from autocomp.task import Direction, Metric, Task
from autocomp.tasks.check import check_task, check_test_split
from autocomp.tasks.user_file import one_line
from autocomp.trial import Trial
from autocomp.watch import Watcher

#: Files that are exported and timed before what was found of them is written down.
SIDE_BY_SIDE = 12


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
    structure = restructure(prepared.inventory, Plan(), target.numerics)
    target.predict(structure)  # a kernel that the latency model does not know should not wait for all that follows
    offer, solver = target.offer, Solver(prepared.model, task.calibration)
    space = build_space(
        read_space(request.space),
        prepared.inventory,
        offer.weight_bits,
        offer.patterns,
        offer.ranks,
        offer.activations,
        partial(global_sparsity, prepared, solver),
        offer.faster,
    )
    untouched = export(apply(prepared, Plan(), task.calibration, target.numerics), target.artifact)
    sizes = sizes_of(structure, len(untouched), target.artifact, target.numerics)
    bench = Workbench(task, prepared, target, sizes, solver, place)
    return Setup(request, bench, space, baseline, machine or machine_of(target)())


def machine_of(target: Target) -> Callable[[], Fingerprint]:
    """Tells, where it is called, which machine that is: of files that are measured on a GPU the GPU; else the CPU, whatever
    runtime is on it."""
    on_gpu = target.reachable and target.runtime == "torch-cuda"
    return partial(this_machine, target.runtime) if on_gpu else this_machine


def search(
    setup: Setup, folder: RunFolder, resume: bool, watcher: Watcher, workers: Workers | None = None
) -> list[Trial]:
    """Run or resume a search, verify its front, write tables.

    Args:
        workers: what evaluations run on, of a Ray cluster; None for this process, one after the other.

    Returns:
        The rows of ``front.csv``, baseline first.

    Raises:
        RequestError: nothing that is offered is foreseen to keep the limits.
        RunError: the folder holds another run, or none to resume, or the request changed.
        WorkError: not even the untouched model could be evaluated.
    """
    folder.check_free(resume)
    if not resume:
        check_possible(Limits.of(setup.request), setup.space, setup.bench.cost, watcher.say)
        check_test_split(setup.bench.task, setup.bench.prepared.model)
    request = setup.request
    earlier = None if request.begun_from is None or taken_over(folder) else RunFolder(Path(request.begun_from))
    if earlier is not None:
        check_same_network(setup, earlier)
    with folder.working():
        begin(setup, folder)
        if not resume and (left := left_alone(setup.bench.prepared)) is not None:
            watcher.say(left)
        if earlier is not None:
            take_over(setup, folder, earlier)
        if resume and any(event.get("event") == UNSHIPPABLE for event in folder.events()):
            folder.append_event({"event": ANOTHER_TRY})  # what went wrong may have been passing
        check = partial(verify, setup, folder, watcher=watcher, again=False)
        load = partial(load_trials, folder)
        searched = Rounds(setup, with_parts(setup), folder, watcher, workers, load, check).run()
        trials = load()
        points = write_tables(folder, setup.bench.task.metric, trials)
        if not points:
            errors = [trial.error for trial in trials if trial.error]
            raise WorkError(
                f"the untouched model could not be evaluated: {errors[0] if errors else 'no trial was run'}; mend that and "
                f"begin anew with another --out; --from {folder.path} keeps what was measured of its layers"
            )
        if request.recover_epochs:
            LastRung(setup, folder, searched, watcher, load, check).run()
        points = _verify_all(setup, folder, watcher)
        if len(points) == 1:
            watcher.say("no trial kept the limits asked for; the front holds the uncompressed model only")
        elif (goal := cast("Goal", request.goal)) != "front":
            try:
                wanted = goal_trial(points, goal, setup.bench.task.metric, verifications(folder), request.max_drop)
                watcher.say(f"the {goal} within the limits is trial {wanted.number}; export it with --pick {goal}")
            except RunError as error:
                watcher.say(str(error))
        _tell_of_the_unsettled(folder, points, watcher)
        return write_tables(folder, setup.bench.task.metric, load())


def _verify_all(setup: Setup, folder: RunFolder, watcher: Watcher) -> list[Trial]:
    """Verify the front; again and again, where a file breaks a limit and others take its place, and once more what broke one
    in timings that never settled. What was trained is verified wherever it ended: it took long to get. Returns the front."""
    metric, looked_twice = setup.bench.task.metric, False
    while True:
        trials = load_trials(folder)
        points = front_in(folder, trials, metric)
        verified, wanted = verifications(folder), {t.key: t for t in (*points, *trained_points(folder, trials))}
        if not all(key in verified for key in wanted):
            verify(setup, folder, [*wanted.values()], watcher, again=False)
            continue
        again = doubted(folder, trials, metric)
        if not again:
            return points
        if looked_twice:
            numbers = ", ".join(str(trial.number) for trial in again)
            watcher.say(
                f"trials {numbers} are left out: over --max-latency-ms in timings that never settled; "
                f"autocomp verify {folder.path} times them again"
            )
            return points
        looked_twice = True
        verify(setup, folder, again, watcher, again=True)


def _tell_of_the_unsettled(folder: RunFolder, points: Sequence[Trial], watcher: Watcher) -> None:
    verified = verifications(folder)
    for point in points:
        measured = verified.get(point.key, {}).get("measured")
        if isinstance(measured, dict) and measured["settled"] is False:
            watcher.say(
                f"trial {point.number}: its timings never settled; {measured['latency_ms']:.3f} ms is the lowest seen"
            )


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
        again: also those that were verified before. A file that cannot be made takes its point off the front; where one point
            alone is asked for again, what went wrong is raised.
        board: what files are timed on, where that is not this machine.
    """
    done = set() if again else set(verifications(folder))
    wanted = [point for point in points if point.key not in done]
    if not wanted:
        return
    baseline = next(trial for trial in load_trials(folder) if trial.number == BASELINE)
    others = [point for point in wanted if point.number != BASELINE]
    watcher.step("exporting and scoring", 0, len(others) + 1)
    try:
        untouched = _shipped(setup, folder, baseline)
    except AutocompError:
        raise
    except Exception as error:  # the task's own code raises what it likes
        raise WorkError(
            f"the untouched network's file must be scored on the test split; it raised {one_line(error)}; mend that, and go on "
            "with --resume: nothing is lost"
        ) from error
    for first in range(0, max(len(others), 1), SIDE_BY_SIDE):
        together = [(baseline, untouched)]
        for place, point in enumerate(others[first : first + SIDE_BY_SIDE], first + 1):
            watcher.step("exporting and scoring", place, len(others) + 1)
            try:
                together.append((point, _shipped(setup, folder, point)))
            except Exception as error:
                if again and len(points) == 1:
                    raise
                # As that of a trial: what else was found is not lost for it.
                said = one_line(error)
                watcher.say(f"trial {point.number} leaves the front, its file cannot be made and scored: {said}")
                folder.append_event({"event": UNSHIPPABLE, "key": point.key, "error": said})
        if board is not None:
            together = _taken(setup, together, watcher, board, alone=again and len(points) == 1)
        _measure(setup, folder, together, watcher, board)
    watcher.step("exporting and scoring", len(others) + 1, len(others) + 1)


def _shipped(setup: Setup, folder: RunFolder, point: Trial) -> Exported:
    """The file of a point, written and scored."""
    weights = None if point.weights is None else weights_path(folder, point.weights)
    found = export_and_score(setup.bench, point.plan, weights)
    write_file(folder, folder.exports / str(point.number), point.plan, found.model, setup.bench.target.artifact)
    return found


def _taken(
    setup: Setup,
    shipped: Sequence[tuple[Trial, Exported]],
    watcher: Watcher,
    board: ConnectedBoard,
    alone: bool,
) -> list[tuple[Trial, Exported]]:
    """Those that a board can run, each of which is run once; of others it is told why not, and they stay as they are.

    Args:
        alone: whether one point is all that was asked for.
    """
    taken = []
    for place, (point, exported) in enumerate(shipped):
        watcher.step("trying files on the board", place, len(shipped))
        try:
            run_once(setup.bench, exported.model, board.runtime)
        except BoardLostError:
            raise
        except BoardError as error:
            if alone or point.number == BASELINE:
                raise
            watcher.say(f"trial {point.number} is not measured: {error}")
        else:
            taken.append((point, exported))
    watcher.step("trying files on the board", len(shipped), len(shipped))
    return taken


def _measure(
    setup: Setup,
    folder: RunFolder,
    shipped: Sequence[tuple[Trial, Exported]],
    watcher: Watcher,
    board: ConnectedBoard | None,
) -> None:
    """Time files side by side, the untouched one first, and record it."""
    models = {point.number: exported.model for point, exported in shipped}
    timings = time_files(
        setup.bench,
        models,
        lambda done, of, what: watcher.step(what, done, of),
        None if board is None else board.runtime,
    )
    if timings:
        watcher.say(slower_words(timings, setup.bench.target.pace_us) or timing_words(timings))
    asks_for_memory = setup.request.max_memory_kb is not None and setup.bench.target.reachable and board is None
    memory = footprints(setup.bench, models) if asks_for_memory else {}
    reference, before = shipped[0][1].measured, verifications(folder)
    for point, exported in shipped:
        if point.cost is not None:
            found = verification(
                setup.bench,
                point,
                point.cost,
                exported,
                reference,
                timings.get(point.number),
                timings.get(shipped[0][0].number),
                memory.get(point.number),
                None if board is None else board.about,
            )
            # What was timed for sure is not made less sure by a later sitting, nor is what was timed, on a board say, taken
            # back by one that times nothing.
            earlier = before.get(point.key)
            less_sure = board is None and _settled(earlier) and not _settled(found)
            untimed = _timed(earlier) and not _timed(found)
            if not untimed and not less_sure:
                folder.append_event({"event": VERIFIED, "verification": found})


def _timed(document: Json | None) -> bool:
    return document is not None and cast("Json", document["measured"]).get("latency_ms") is not None


def _settled(document: Json | None) -> bool:
    measured = {} if document is None else cast("Json", document["measured"])
    return bool(measured.get("settled", False))


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
    return front_in(folder, load_trials(folder), metric_of(folder))


def doubted_of(folder: RunFolder) -> list[Trial]:
    """What nothing but timings that never settled keeps from the front."""
    return doubted(folder, load_trials(folder), metric_of(folder))


def rebuild(folder: RunFolder) -> list[Trial]:
    """Write the tables anew from the run's truth."""
    return write_tables(folder, metric_of(folder), load_trials(folder))
