"""Recovery as the last stage of a search: the points worth it are trained on, and each result is a trial of its own, with
the point it came from as its parent. Every one is an event of the run, and its weights are a file in the run folder."""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Iterable, Sequence
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
from autocomp.run import Json, Request, RunFolder, write_whole
from autocomp.tasks.trained import facts_hash
from autocomp.tasks.user_file import one_line
from autocomp.trial import RECOVERED, Trial
from autocomp.watch import Watcher

if TYPE_CHECKING:
    from autocomp.search.evaluate import Workbench

#: The event of one recovered point.
EVENT = "recovered"


@dataclass(frozen=True)
class Done:
    """What came of one recovery: ``metric`` on the search split, ``weights`` by hash."""

    parent: int
    plan_hash: str
    seed: int
    epochs: int
    metric: float
    seconds: float
    weights: str
    recipe: str = "{}"
    #: Whether it was but to see what a training of all epochs would bring back.
    short: bool = False

    def is_of(self, point: Trial, request: Request) -> bool:
        """Whether a run asks for this very recovery of a point, but for the seed."""
        return (self.plan_hash, self.epochs, self.recipe) == (point.plan.hash, request.recover_epochs, request.recipe)


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


def training(event: Json) -> tuple[object, ...]:
    """Which training an event of one is of: what is the same of two of them was done once."""
    return event["plan_hash"], event["seed"], event["epochs"], event.get("recipe", "{}")


def recover_points(
    bench: Workbench,
    folder: RunFolder,
    points: Iterable[Trial],
    most: int,
    request: Request,
    watcher: Watcher,
    short_epochs: int = 0,
) -> None:
    """Recover points, those left out that were recovered before; each is on disk when the next is asked for, and one that was
    interrupted goes on after its last whole epoch. A task without train batches is distilled on its calibration inputs. What
    cannot be recovered is told, and left as it is.

    Args:
        most: so many points at most.
        short_epochs: where they are only to be tried, once each, the epochs of that.
    """
    labelled, epochs = bench.task.train is not None, short_epochs or request.recover_epochs
    recipe = replace(recipe_of(request), epochs=epochs)
    seeds = range(request.seed, request.seed + (1 if short_epochs else request.recover_seeds))
    batches = bench.task.calibration if bench.task.train is None else bench.task.train
    # What a machine that went down had written of, but not written, is trained again.
    known = {
        training(event)
        for event in folder.events()
        if event["event"] == EVENT and weights_path(folder, str(event["weights"])).is_file()
    }
    if not labelled:
        watcher.say(
            f"the task has no train batches: what is recovered learns from its {len(batches)} calibration batches"
        )
    for place, (point, seed) in enumerate((point, seed) for point in points for seed in seeds):
        if (point.plan.hash, seed, epochs, request.recipe) in known:
            continue
        doing = "trying a short recovery of" if short_epochs else "recovering"
        what = f"{doing} trial {point.number} ({place + 1} of {most * len(seeds)})"
        watcher.step(what, 0, 1)
        began, unfinished = time.monotonic(), _unfinished_path(folder, point, seed, epochs, request)
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
        written = io.BytesIO()
        torch.save(dict(found.weights), written)
        write_whole(weights_path(folder, name), written.getvalue())
        seconds, short = time.monotonic() - began, short_epochs > 0
        came = Done(point.number, point.plan.hash, seed, epochs, metric, seconds, name, request.recipe, short)
        folder.append_event({"event": EVENT, **asdict(came)})
        unfinished.unlink(missing_ok=True)
        watcher.step(what, 1, 1)
        words = bench.task.metric.words
        before = "not known" if point.metric is None else words(point.metric)
        watcher.say(f"{what}: {bench.task.metric.name} was {before} and is {words(metric)}")


def _unfinished_path(folder: RunFolder, point: Trial, seed: int, epochs: int, request: Request) -> Path:
    """Where a training that is interrupted is gone on from."""
    recipe = facts_hash((epochs, request.recover_on, request.recipe))
    return folder.path / "weights" / f"{point.plan.hash}-{seed}-{recipe}.unfinished"


def _tell(watcher: Watcher, what: str, step: int, steps: int, held: float) -> None:
    watcher.step(what, step, steps, f"loss {held:.3g}" if math.isfinite(held) else "")


def recovered_trials(folder: RunFolder, trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """The trials that recovery added to those of the study."""
    by_number = {trial.number: trial for trial in trials}
    found = []
    for count, one in enumerate(done(folder)):
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


def done(folder: RunFolder) -> list[Done]:
    # What was trained again, since its weights were lost, takes the place of what it was.
    events = {training(event): event for event in folder.events() if event["event"] == EVENT}.values()
    names = [field.name for field in fields(Done)]
    # Runs of before had no recipes. What JSON holds has the types that were written.
    return [Done(**{name: event[name] for name in names if name in event}) for event in events]  # type: ignore[arg-type]
