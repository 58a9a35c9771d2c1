"""The command line: the only place where strings become objects."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from autocomp.errors import AutocompError, RequestError, WorkError

if TYPE_CHECKING:
    from autocomp.jobs.request import Asked

app = typer.Typer(
    name="autocomp",
    help="Compress a trained network for a device: search sparsity, rank and bits per layer against measured latency.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

SamplerChoice = Literal["auto", "nsga2", "tpe", "random", "uniform"]
DeviceChoice = Literal["cpu", "cuda"]
ExecutorChoice = Literal["local", "ray"]
GoalChoice = Literal["front", "most-accurate", "fastest", "smallest"]
ArtifactChoice = Literal["onnx", "onnx-packed", "torch"]

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
TaskOption = Annotated[
    str | None,
    typer.Option(
        "--task",
        help="A built-in task, torchvision:NAME, timm:NAME, hf:FOLDER or FILE.py[:function]; see `autocomp tasks`. "
        "Default: the embedded digits.",
    ),
]
DataOption = Annotated[
    Path | None, typer.Option("--data", help="The folder of the task's data. Default: AUTOCOMP_DATA names it.")
]
FormatOption = Annotated[
    ArtifactChoice | None, typer.Option("--format", help="The file's format. Default: what the target takes.")
]

#: The exit code of what was stopped from the keyboard, as shells have it.
INTERRUPTED = 130

#: What an interrupted command leaves behind to go on with.
KEPT = {
    "search": "a search that had begun is kept, and the same command with --resume goes on with it",
    "calibrate": "what was measured is kept, and the same command goes on with it",
    "submit": "a job that was submitted goes on",
}


def main() -> None:
    """The console script. Wrong requests end with exit code 2, failed work with 1, each in one line."""
    debug = "--debug" in sys.argv[1:]
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    sys.argv[1:] = arguments
    try:
        code = app(standalone_mode=False)  # typer gives back the code of an Exit, and makes one of an interrupt
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except (AutocompError, typer.TyperException) as error:
        if debug:
            raise
        _fail(*_words(error))
    except Exception as error:
        if debug:
            raise
        words = " ".join(str(error).split())
        _fail(f"unforeseen {type(error).__name__}: {words[:300]}; --debug shows where", 1)
    if code == INTERRUPTED:
        _fail("; ".join(["stopped", *(KEPT[word] for word in arguments[:1] if word in KEPT)]), INTERRUPTED)
    if code:
        raise SystemExit(code)


def _words(error: Exception) -> tuple[str, int]:
    if isinstance(error, AutocompError):
        return str(error), 2 if isinstance(error, RequestError) else 1
    words = " ".join(str(getattr(error, "format_message", lambda: error)()).split())
    return words.replace("Value error, ", ""), 2


def _fail(line: str, code: int) -> None:
    sys.stderr.write(f"autocomp: {line}\n")
    raise SystemExit(code)


def _print_json(document: object) -> None:
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


def _seconds(text: str | None) -> float | None:
    """``90``, ``90s``, ``10m`` or ``1.5h`` → seconds."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if match is None or float(match[1]) <= 0:
        raise RequestError(f"a duration is written like 90s, 10m or 2h; got {text!r}")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def _shape(text: str) -> tuple[int, ...]:
    """``3x224x224`` → (3, 224, 224)."""
    if re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", text) is None:
        raise RequestError(f"a shape is written like 3x224x224, the batch left out; got {text!r}")
    return tuple(int(size) for size in text.split("x"))


@app.command()
def search(
    target: Annotated[
        str | None,
        typer.Option(
            "--target", help="A device; see `autocomp targets`. Or a calibrated profile's path, like ./my-board."
        ),
    ] = None,
    task: TaskOption = None,
    data: DataOption = None,
    trials: Annotated[int, typer.Option(min=1, help="Plans to evaluate, the untouched one included.")] = 60,
    timeout: Annotated[
        str | None, typer.Option(help="Stop proposing after so long, e.g. 10m; what is found is kept.")
    ] = None,
    space: Annotated[
        str | None, typer.Option(help="A search space: a name or a YAML file.", show_default="default")
    ] = None,
    begin_from: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="RUN",
            help="Begin with what a run of the same network found. Its task, target, space and data are the default.",
        ),
    ] = None,
    goal: Annotated[GoalChoice, typer.Option(help="All of the front, or the end of it that is wanted.")] = "front",
    max_latency_ms: Annotated[float | None, typer.Option(help="Limit of the latency.")] = None,
    max_size_kb: Annotated[float | None, typer.Option(help="Limit of the file's size (1 kB = 1000 bytes).")] = None,
    max_memory_kb: Annotated[float | None, typer.Option(help="Limit of the memory that it takes to run.")] = None,
    max_drop: Annotated[float | None, typer.Option(help="Largest loss of the metric, in its own units.")] = None,
    sampler: Annotated[SamplerChoice, typer.Option(help="What proposes plans.")] = "auto",
    recover: Annotated[
        int, typer.Option(min=0, help="Epochs that the points worth it are trained on for, at the end.")
    ] = 0,
    recover_on: Annotated[DeviceChoice, typer.Option(help="Where they are trained.")] = "cpu",
    recover_seeds: Annotated[int, typer.Option(min=1, help="Trainings of each, by seeds from --seed on.")] = 1,
    recipe: Annotated[Path | None, typer.Option(help="How they are trained: a YAML file; see the README.")] = None,
    executor: Annotated[
        ExecutorChoice, typer.Option(help="Where plans are evaluated: in this process, or on a Ray cluster.")
    ] = "local",
    max_concurrent: Annotated[
        int | None, typer.Option(min=1, help="ray: trials at a time. Default: as many as there is room for.")
    ] = None,
    trial_cpus: Annotated[float, typer.Option(help="ray: CPUs of a trial.")] = 1.0,
    trial_gpus: Annotated[float, typer.Option(help="ray: GPUs of a trial.")] = 0.0,
    trial_timeout: Annotated[str | None, typer.Option(help="ray: a trial that takes longer fails, e.g. 10m.")] = None,
    trial_memory_gb: Annotated[float | None, typer.Option(help="ray: a trial whose worker grows larger fails.")] = None,
    artifact: FormatOption = None,
    threads: Annotated[int | None, typer.Option(help="Threads per inference.")] = None,
    batch: Annotated[int | None, typer.Option(help="Examples per inference.")] = None,
    seed: Annotated[
        int, typer.Option(help="Same seed, same plans; where this machine is timed, as far as that repeats.")
    ] = 0,
    out: Annotated[Path | None, typer.Option(help="The run folder. Default: results/<task>-<target>.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
) -> None:
    """Search the Pareto front of accuracy, size and latency; export and measure every point of it."""
    from autocomp.api import search as search_run
    from autocomp.progress import Progress
    from autocomp.search.workers import Workers

    timeout_s = _seconds(timeout)
    workers = Workers(max_concurrent, trial_cpus, trial_gpus, _seconds(trial_timeout), trial_memory_gb)
    if executor == "local" and workers != Workers():
        raise RequestError("--max-concurrent and --trial-… must go with --executor ray; this search is local")
    with Progress() as progress:
        run = search_run(
            task,
            target=target,
            out=out or _out(task, target, begin_from, resume),
            begin_from=begin_from,
            threads=threads,
            batch=batch,
            artifact=artifact,
            trials=trials,
            timeout_s=timeout_s,
            space=space,
            sampler=sampler,
            max_latency_ms=max_latency_ms,
            max_size_kb=max_size_kb,
            max_memory_kb=max_memory_kb,
            goal=goal,
            max_drop=max_drop,
            recover_epochs=recover,
            recover_on=recover_on,
            recover_seeds=recover_seeds,
            recipe=recipe,
            seed=seed,
            resume=resume,
            data=data,
            workers=None if executor == "local" else workers,
            watcher=progress,
        )
        progress.say("writing the report")
        page = run.report()
        progress.front(run)
    sys.stdout.write(f"{page}\n")


def _out(task: str | None, target: str | None, begin_from: Path | None, resume: bool) -> Path:
    """The run folder where none is named; of a search that begins from another a new one beside it, by its target, and where
    that goes on the last one there."""
    from autocomp.run import RunFolder
    from autocomp.tasks.load import short_name

    if begin_from is not None:
        if resume and target is None and not begin_from.exists():
            raise RequestError(f"the run {begin_from} is gone; say by --out which run goes on that began from it")
        name = Path(target or RunFolder(begin_from).request().target).name
        taken = [
            begin_from.parent / f"{begin_from.name}-{name}{more}" for more in ("", *(f"-{n}" for n in range(2, 1000)))
        ]
        if resume:
            return next((path for path in reversed(taken) if path.exists()), taken[0])
        return next(path for path in taken if not path.exists())
    return Path("results") / f"{short_name(task)}-{Path(target or '').name}"


@app.command(context_settings={"allow_extra_args": True})
def submit(
    context: typer.Context,
    address: Annotated[str, typer.Option(help="The cluster's dashboard, like http://head:8265.")],
    storage: Annotated[
        str | None, typer.Option(help="A URI that cluster and client both reach; run folders are kept below it.")
    ] = None,
    on_cluster: Annotated[
        list[Path] | None, typer.Option(help="A folder that the cluster's machines have at this path: not sent.")
    ] = None,
    requirements: Annotated[
        Path | None, typer.Option(help="What pip installs there first. Default: the project's requirements.txt.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait: print the job's name.")] = False,
    status: Annotated[str | None, typer.Option(metavar="JOB", help="How a job is doing.")] = None,
    stop: Annotated[str | None, typer.Option(metavar="JOB", help="Stop a job; its run folder stays.")] = None,
    fetch: Annotated[str | None, typer.Option(metavar="JOB", help="Bring the run folder of a job back.")] = None,
    out: Annotated[Path | None, typer.Option(help="fetch: where to. Default: results/<job>.")] = None,
) -> None:
    """Send a search to a Ray cluster, written `-- search …`: follow its log, and bring the run folder back."""
    from autocomp.run import RunFolder
    from autocomp.search.workers import check_ray

    check_ray()
    about = [name for name in (status, stop, fetch) if name is not None]
    if len(about) + bool(context.args) != 1:
        raise RequestError("submit takes one of these: -- search …, --status JOB, --stop JOB, --fetch JOB")
    if out is not None and fetch is None:
        raise RequestError(
            f"--out of submit goes with --fetch; got {out}; that of a search is written behind -- search"
        )
    # What is wrong with the search, or with where it is to go, is told before the cluster is asked.
    asked = _asked_for(context.args, storage) if context.args else None
    folder = asked.out if asked is not None else out or Path("results") / about[0]
    if fetch is not None:
        RunFolder(folder).check_free(resume=False)
    from autocomp.jobs import client

    cluster = client.connect(address)
    if asked is None:
        found = client.stop(cluster, about[0]) if stop is not None else client.job(cluster, about[0])
    else:
        name = client.submit(cluster, asked, on_cluster or (), requirements)
        ways = f"autocomp submit --address {address} --status {name}, --stop {name} or --fetch {name}"
        sys.stderr.write(f"job {name}; {ways}\n")
        if detach:
            sys.stdout.write(f"{name}\n")
            return
        try:
            found = client.follow(cluster, name, _heard)
        except KeyboardInterrupt:
            sys.stderr.write(f"\nno longer followed; job {name} goes on; {ways}\n")
            raise
        if not found.succeeded:
            raise WorkError(f"a search must end well on the cluster; {found.line}; --fetch {name} brings what there is")
    if asked is None and fetch is None:
        sys.stdout.write(f"{found.line}\n")
    else:
        client.fetch(cluster, found, folder)
        sys.stdout.write(f"{folder}\n")


def _heard(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _asked_for(arguments: Sequence[str], storage: str | None) -> Asked:
    """A search on a cluster, from its command line."""
    from autocomp.api import NO_TARGET
    from autocomp.finished import completed
    from autocomp.jobs.request import asked_for
    from autocomp.run import RunFolder

    name, *rest = arguments
    if name != "search":
        raise RequestError(f"what is submitted must be a search, written -- search …; got {name!r}")
    group = cast("typer.core.TyperGroup", typer.main.get_command(app))
    said = group.commands["search"].make_context("search", rest).params
    task, target, space, data = (said[name] for name in ("task", "target", "space", "data"))
    begun_from = said["begin_from"]
    if begun_from is not None and (begun_from.exists() or not said["resume"]):
        task, target, space, data = completed(RunFolder(begun_from).request(), task, target, space, data)
    elif begun_from is not None and (task is None or target is None):
        raise RequestError(f"the run {begun_from} is gone, which said what is searched; say it by --task and --target")
    if target is None:
        raise RequestError(NO_TARGET)
    out = said["out"] or _out(task, target, begun_from, said["resume"])
    places = task, data, str(space or "default"), target, out
    return asked_for(arguments, *places, said["resume"], storage, said["recipe"], begun_from)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="A run folder, or several.")],
    out: Annotated[
        Path | None, typer.Option(help="Several runs: the page. Default: together.html in the first one's folder.")
    ] = None,
) -> None:
    """Rebuild front.csv, the figures and report.html from what the run folder holds as truth; of several runs, also one page
    of them all."""
    from autocomp.finished import Run, report_together
    from autocomp.progress import Progress

    if len(runs) == 1 and out is not None:
        raise RequestError(f"--out is for a page of several runs; got {out} and one run, whose page lies in its folder")
    opened = [Run.open(run) for run in runs]
    with Progress():
        page = opened[0].report() if len(runs) == 1 else report_together(opened, out or runs[0] / "together.html")
    sys.stdout.write(f"{page}\n")


@app.command()
def export(
    run: RunArgument,
    pick: Annotated[
        str | None, typer.Option(help="knee (the default), most-accurate, fastest, smallest, or a trial's number.")
    ] = None,
    max_latency_ms: Annotated[float | None, typer.Option(help="The most accurate point within this.")] = None,
    artifact: FormatOption = None,
    out: Annotated[Path | None, typer.Option(help="Where to. Default: exports/<trial> in the run folder.")] = None,
) -> None:
    """Write a front point's model.onnx, or model.pt2 for --format torch, its plan.json and model card."""
    from autocomp.finished import Run
    from autocomp.progress import Progress

    with Progress():
        path = Run.open(run).export(pick, max_latency_ms, artifact, out)
    sys.stdout.write(f"{path}\n")


@app.command()
def verify(
    run: RunArgument,
    pick: Annotated[
        str, typer.Option(help="front, knee, most-accurate, fastest, smallest, or a trial's number.")
    ] = "front",
    host: Annotated[
        str | None, typer.Option(metavar="USER@BOARD", help="Time the files on the run's target, over ssh.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Export points again and measure accuracy, bytes and milliseconds on the files, beside what was predicted."""
    from autocomp.finished import Run
    from autocomp.progress import Progress, verification_table
    from autocomp.search.flow import metric_of

    opened = Run.open(run)
    with Progress() as progress:
        documents = opened.verify(pick, watcher=progress, host=host)
        progress.say(f"the report is written anew: {opened.report()}")
    if as_json:
        _print_json(documents)
    else:
        verification_table(documents, metric_of(opened.folder))


@app.command()
def calibrate(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A target that runs on the machine.")],
    host: Annotated[
        str | None, typer.Option(metavar="USER@BOARD", help="The machine, over ssh. Default: this one.")
    ] = None,
    budget: Annotated[str, typer.Option(help="How long to measure, e.g. 5m.")] = "5m",
    threads: Annotated[int | None, typer.Option(help="Threads per inference.")] = None,
    batch: Annotated[int | None, typer.Option(help="Examples per inference.")] = None,
    out: Annotated[Path | None, typer.Option(help="The profile's folder. Default: the user's cache.")] = None,
) -> None:
    """Measure a machine with random compressed networks and fit its latency model."""
    from autocomp.hardware.calibrated import calibrate_profile
    from autocomp.hardware.fingerprint import this_machine
    from autocomp.hardware.profiles import calibrated_folder, find_profile
    from autocomp.hardware.remote.connection import Board
    from autocomp.hardware.remote.onnxruntime import OnnxruntimeOnBoard
    from autocomp.hardware.resolve import threads_and_batch
    from autocomp.progress import Progress
    from autocomp.watch import calibrating

    like = find_profile(target)
    budget_s = _seconds(budget)
    if not like.measurable or budget_s is None:
        raise RequestError(f"only a target on this machine can be calibrated here; got {target}; use cpu")
    if host is not None and like.file.runtime != "onnxruntime":
        raise RequestError(f"over ssh onnxruntime is calibrated, not {like.file.runtime}; got {target}; use cpu")
    threads, batch = threads_and_batch(like, threads, batch)
    with Progress() as progress, ExitStack() as connected:
        board = None if host is None else OnnxruntimeOnBoard(connected.enter_context(Board(host, tell=progress.say)))
        here = this_machine(like.file.runtime) if board is None else board.fingerprint
        folder = out or calibrated_folder(like.file.name, here, threads, batch)
        profile = calibrate_profile(like, folder, budget_s, threads, batch, calibrating(progress), board)
        held_out = profile.model().held_out
        if held_out is not None:
            progress.say(
                f"held-out error {held_out.mean:.1%} on {held_out.networks} networks; "
                f"{held_out.within_10:.0%} within ±10 %, {held_out.within_20:.0%} within ±20 %"
            )
    path = str(folder)
    sys.stdout.write(f"{path if os.sep in path else f'.{os.sep}{path}'}\n")  # as --target takes it


@app.command()
def predict(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL.onnx|TASK", help="An ONNX file, or a task. Default: the embedded digits."),
    ] = None,
    target: Annotated[str, typer.Option("--target", help="A device; see `autocomp targets`.")] = "cpu",
    data: DataOption = None,
    threads: Annotated[int | None, typer.Option(help="Threads per inference.")] = None,
    batch: Annotated[int | None, typer.Option(help="Examples per inference.")] = None,
    input_shape: Annotated[
        list[str] | None,
        typer.Option(help="One example's shape, like 3x224x224; for each input of a file with open dimensions."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Predict the latency of an ONNX file, or of a task's untouched model, kernel by kernel, and the memory it takes."""
    from autocomp.api import predict as predict_latency
    from autocomp.hardware.resolve import resolve_target
    from autocomp.progress import Progress, prediction_table
    from autocomp.watch import calibrating

    shapes = [_shape(text) for text in input_shape or ()]
    with Progress() as progress:
        found = resolve_target(target, threads, batch, tell=progress.say, progress=calibrating(progress))
        forecast = predict_latency(model, target=found, data=data, input_shapes=shapes, in_part=True)
    if as_json:
        _print_json(
            {
                "target": found.name,
                "threads": found.threads,
                "batch": found.batch,
                "latency_ms": forecast.latency_ms,
                "latency_std_ms": forecast.latency.std_ms,
                "latency_source": forecast.latency.source,
                "peak_memory_bytes": forecast.peak_memory_bytes,
                "memory_source": forecast.memory_source,
                "not_covered": list(forecast.uncovered.layers) if forecast.uncovered else [],
                "kernels": [
                    {"op": share.kernel.op, "sources": list(share.kernel.sources), "latency_ms": share.latency_ms}
                    for share in forecast.kernels
                ],
            }
        )
    else:
        prediction_table(forecast)
    if forecast.uncovered:
        raise forecast.uncovered


@app.command()
def targets(as_json: JsonOption = False) -> None:
    """The targets, with each latency model's source and held-out error."""
    from autocomp.progress import targets_document, targets_list

    document = targets_document()
    if as_json:
        _print_json(document)
    else:
        targets_list(document)


@app.command()
def tasks(data: DataOption = None, as_json: JsonOption = False) -> None:
    """The tasks that have a name, and whether their data are there."""
    from autocomp.tasks.listing import listed_tasks

    found = listed_tasks(data)
    if as_json:
        _print_json([asdict(task) for task in found])
    else:
        width = max(len(task.name) for task in found)
        sys.stdout.write("".join(f"{task.name:{width}}  {task.description}; {task.data_words}\n" for task in found))
