"""Recovery as the last stage of a search: the points worth it are trained on, and each result is a trial of its own, with
the point it came from as its parent. Every one is an event of the run, and its weights are a file in the run folder."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import yaml

from autocomp.compress.recipe import Recovery
from autocomp.compress.recover import recover
from autocomp.compress.recovered import weights_hash
from autocomp.errors import CompressionError, RequestError, did_you_mean
from autocomp.pareto import front
from autocomp.run import Json, Request, RunFolder
from autocomp.search.limits import ENDS
from autocomp.search.points import BASELINE
from autocomp.tasks.trained import facts_hash
from autocomp.tasks.user_file import one_line
from autocomp.trial import RECOVERED, Trial
from autocomp.watch import Watcher

if TYPE_CHECKING:
    from autocomp.search.evaluate import Workbench
    from autocomp.search.limits import Goal
    from autocomp.task import Metric

#: The event of one recovered point.
EVENT = "recovered"
#: At most so many points are recovered; and so many where only the most accurate one is wanted.
MOST_POINTS, MOST_ACCURATE = 8, 3


@dataclass(frozen=True)
class _Done:
    """What came of one recovery: ``metric`` on the search split, ``weights`` by hash."""

    parent: int
    plan_hash: str
    seed: int
    epochs: int
    metric: float
    seconds: float
    weights: str
    recipe: str = "{}"


def recipe_of(request: Request) -> Recovery:
    """How a run's points are trained on, but for the seed."""
    return Recovery(request.recover_epochs, **json.loads(request.recipe))


def read_recipe(path: Path, epochs: int) -> str:
    """A recipe file, as :attr:`autocomp.run.Request.recipe` has it.

    Args:
        path: YAML; fields of :class:`autocomp.compress.recipe.Recovery`, all of them optional.

    Raises:
        RequestError: there is no such file, or it says something that a recovery does not know.
    """
    known = {field.name: field.type for field in fields(Recovery) if field.name not in {"epochs", "seed"}}
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        for name in found:
            if name not in known:
                raise RequestError(
                    f"a recipe knows {', '.join(known)}; {path} says {name!r}; {did_you_mean(name, known)}"
                )
        recipe = Recovery(epochs, **found)
    except (OSError, yaml.YAMLError, TypeError, AttributeError) as error:
        raise RequestError(f"--recipe must be a YAML file of a recovery's fields; {path}: {one_line(error)}") from error
    except CompressionError as error:
        raise RequestError(f"{path}: {error}") from error
    said = {name: getattr(recipe, name) for name in known if getattr(recipe, name) != getattr(Recovery(epochs), name)}
    return json.dumps(said, sort_keys=True)


def check_device(name: str) -> None:
    """Raises:
    RequestError: torch has no such device here.
    """
    if name not in {"cpu", "cuda"}:
        raise RequestError(f"recovery is done on cpu or cuda; got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise RequestError("--recover-on cuda must have a GPU, and torch built for it; torch sees none; leave it out")


def worth_recovering(trials: Sequence[Trial], points: Sequence[Trial]) -> list[Trial]:
    """The points of the front, and those that would be on it if they lost nothing: of what is fast and small, training may
    bring back what compression took. Of many, some evenly from the slowest to the fastest. The fastest comes first, then each
    as far from those before as can be, so that what is interrupted has seen of the whole range.

    Args:
        trials: all of a run.
        points: its front.
    """
    done = [t for t in trials if t.cost is not None and t.number != BASELINE and t.parent is None]
    plans = {trial.plan.hash: trial for trial in reversed(done)}
    unique = sorted(plans.values(), key=lambda trial: trial.number)
    rows = [(t.cost.latency_ms, t.cost.size_bytes) for t in unique if t.cost is not None]
    cheap = [unique[place] for place in front(rows)] if rows else []
    on_front = {point.number for point in points if point.parent is None}
    chosen = {t.number: t for t in (*cheap, *(t for t in unique if t.number in on_front))}
    ordered = sorted(chosen.values(), key=lambda t: (t.cost.latency_ms if t.cost is not None else 0.0, t.number))
    if len(ordered) > MOST_POINTS:
        ordered = [ordered[round(step * (len(ordered) - 1) / (MOST_POINTS - 1))] for step in range(MOST_POINTS)]
    return [ordered[place] for place in _spread(len(ordered))]


def most_accurate(points: Sequence[Trial], metric: Metric) -> list[Trial]:
    """Of a front before any recovery, the untouched plan first, the few points that lose least, where nothing but the most
    accurate one is wanted: the best first."""
    untouched = points[0].metric or 0.0
    scored = [t for t in points[1:] if t.metric is not None]
    return sorted(scored, key=lambda t: (metric.drop(untouched, t.metric or 0.0), t.number))[:MOST_ACCURATE]


def wanted_first(points: Sequence[Trial], metric: Metric, goal: Goal) -> list[Trial]:
    """Of a front before any recovery, the untouched plan first, the points that lose least for what they take: the fastest
    first where that is wanted, else the smallest."""
    untouched = points[0].metric or 0.0
    others = [t for t in points[1:] if t.metric is not None and t.cost is not None]
    rows = [(metric.drop(untouched, t.metric or 0.0), _taken(t, goal)) for t in others]
    line = [others[place] for place in front(rows)] if rows else []
    return sorted(line, key=lambda t: (_taken(t, goal), t.number))


def _taken(point: Trial, goal: Goal) -> float:
    assert point.cost is not None
    return (point.cost.latency_ms, point.cost.size_bytes)[ENDS[goal]]


def sought(
    line: Sequence[Trial], folder: RunFolder, untouched: float, metric: Metric, request: Request
) -> Iterator[Trial]:
    """The first of some points that ends within the drop that is allowed, sought by halving: the middle one is recovered,
    then that before it if it ended within the drop, or behind it if it did not, and so on. So ``len(line).bit_length()``
    trainings at most find what training all of them would.

    Args:
        line: as :func:`wanted_first` gives it; each is recovered before the next is asked for.
        untouched: the untouched network's metric.
    """
    outside, within = -1, len(line)
    while within - outside > 1:
        middle = (outside + within) // 2
        yield line[middle]
        drops = [metric.drop(untouched, one.metric) for one in _done(folder) if _is_of(one, line[middle], request)]
        if drops and sum(drops) / len(drops) <= (request.max_drop or 0.0):
            within = middle
        else:
            outside = middle


def _is_of(done: _Done, point: Trial, request: Request) -> bool:
    return (done.plan_hash, done.epochs, done.recipe) == (point.plan.hash, request.recover_epochs, request.recipe)


def _spread(count: int) -> list[int]:
    """The numbers below ``count``: the first, then ever the one that is furthest from those before."""
    found: list[int] = []
    while len(found) < count:
        left = sorted({*range(count)} - {*found})
        found.append(max(left, key=lambda one: min((abs(one - other) for other in found), default=-one)))
    return found


def training(event: Json) -> tuple[object, ...]:
    """Which training an event of one is of: what is the same of two of them was done once."""
    return event["plan_hash"], event["seed"], event["epochs"], event.get("recipe", "{}")


def recover_points(
    bench: Workbench, folder: RunFolder, points: Iterable[Trial], most: int, request: Request, watcher: Watcher
) -> None:
    """Recover points, those left out that were recovered before; each is on disk when the next is asked for, and one that was
    interrupted goes on after its last whole epoch. A task without train batches is distilled on its calibration inputs. What
    cannot be recovered is told, and left as it is.

    Args:
        most: so many points at most.
    """
    labelled, epochs = bench.task.train is not None, request.recover_epochs
    recipe = recipe_of(request)
    seeds = range(request.seed, request.seed + request.recover_seeds)
    batches = bench.task.calibration if bench.task.train is None else bench.task.train
    known = {training(event) for event in folder.events() if event["event"] == EVENT}
    for place, (point, seed) in enumerate((point, seed) for point in points for seed in seeds):
        if (point.plan.hash, seed, epochs, request.recipe) in known:
            continue
        what = f"recovering trial {point.number} ({place + 1} of {most * len(seeds)})"
        watcher.step(what, 0, 1)
        began, unfinished = time.monotonic(), _unfinished_path(folder, point, seed, request)
        try:
            found = recover(
                bench.prepared,
                bench.compress(point.plan),
                batches,
                replace(recipe, seed=seed),
                bench.solver,
                labelled,
                progress=partial(_tell, watcher, what),
                device=torch.device(request.recover_on),
                loss=bench.task.loss,
                unfinished=unfinished,
            )
            with torch.no_grad():
                metric = bench.task.evaluate(found.compressed.model, "search").value
            if not math.isfinite(metric):
                raise CompressionError(f"the metric of the recovered network must be a number; got {metric}")
        except Exception as error:  # noqa: BLE001
            # As that of a trial: what else was found is not lost for it.
            watcher.say(f"{what} failed: {type(error).__name__}: {error}")
            unfinished.unlink(missing_ok=True)
            continue
        name = weights_hash(found.weights)
        path = weights_path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(dict(found.weights), path)
        done = _Done(
            point.number, point.plan.hash, seed, epochs, metric, time.monotonic() - began, name, request.recipe
        )
        folder.append_event({"event": EVENT, **asdict(done)})
        unfinished.unlink(missing_ok=True)
        watcher.step(what, 1, 1)
        before = "not known" if point.metric is None else f"{point.metric:.6g}"
        watcher.say(f"{what}: {bench.task.metric.name} was {before} and is {metric:.6g}")


def _unfinished_path(folder: RunFolder, point: Trial, seed: int, request: Request) -> Path:
    """Where a training that is interrupted is gone on from."""
    recipe = facts_hash((request.recover_epochs, request.recover_on, request.recipe))
    return folder.path / "weights" / f"{point.plan.hash}-{seed}-{recipe}.unfinished"


def _tell(watcher: Watcher, what: str, step: int, steps: int, held: float) -> None:
    watcher.step(what, step, steps, f"loss {held:.3g}" if math.isfinite(held) else "")


def recovered_trials(folder: RunFolder, trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """The trials that recovery added to those of the study."""
    by_number = {trial.number: trial for trial in trials}
    found = []
    for count, one in enumerate(_done(folder)):
        parent = by_number.get(one.parent)
        if parent is None or parent.plan.hash != one.plan_hash:
            continue
        trial = replace(
            parent,
            number=RECOVERED + count,
            state="complete",  # also where its parent was stopped on a part of the split: this one was scored on all of it
            metric=one.metric,
            seconds=one.seconds,
            parent=parent.number,
            recovery_seed=one.seed,
            weights=one.weights,
            rungs=(),
            why=None,
        )
        found.append(trial)
    return tuple(found)


def weights_path(folder: RunFolder, name: str) -> Path:
    return folder.path / "weights" / f"{name}.pt"


def _done(folder: RunFolder) -> list[_Done]:
    events = (event for event in folder.events() if event["event"] == EVENT)
    names = [field.name for field in fields(_Done)]
    # Runs of before had no recipes.
    return [_Done(**{name: event[name] for name in names if name in event}) for event in events]  # type: ignore[arg-type]
