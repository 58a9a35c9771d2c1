"""The target's models corrected for the network at hand, before the first trial: some of the search's own plans are
exported, read as the runtime compiles them, and timed, and a few are run for the memory that they take. All of it is an
event of the run; a resumed run replays them, so that its predictions are those of the undisturbed one.

Half of the plans are those that the search would try first, since it is what the model thinks fast that is asked for: put right
by uniform plans and mixtures of them alone, it was off by 5 % on average for the files of a search of ResNet-20, nearly all of
them faster in its eyes; with likely ones by 1.2 %, but for a network of few blocks (25 %).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import cast

from autocomp.export.artifact import export
from autocomp.hardware.followed import CompiledPlan, followed
from autocomp.hardware.kernels import Kernel
from autocomp.hardware.memory import MeasuredMemory, MemoryModel, table_bytes
from autocomp.hardware.target import Target
from autocomp.hardware.warm import MeasuredFile, WarmModel
from autocomp.hardware.warm_memory import WarmMemory
from autocomp.plan import Plan
from autocomp.run import Json, RunFolder
from autocomp.search.evaluate import Workbench
from autocomp.search.points import verifications
from autocomp.search.sampler import uniform_indices
from autocomp.search.stored_plan import plan_of, plan_text
from autocomp.search.verify import compiled_kernels, footprints, time_files
from autocomp.space import SearchSpace
from autocomp.tasks.user_file import one_line

#: Events: of one timing, of the plans that are to be timed, of a plan that has no file, and of a timing of an earlier run.
WARMED, CHOSEN, LEFT_OUT, EARLIER = "warm-start", "warm-start-files", "warm-start-without", "warm-start earlier"
#: At most so many files are measured, and at most one for so many trials: warming up must not outweigh the search.
MOST_FILES, TRIALS_PER_FILE = 30, 3
#: Files whose memory is measured: the untouched network and its formats, each in a process of its own. More of them, pruned
#: and split, were tried and made it no better.
MEMORY_FILES = 3
#: Files that are timed together, each beside the reference; what was timed is kept when these are done.
SIDE_BY_SIDE = 10

#: Of a kernel, what is written down beside its kind.
NUMBERS = tuple(field.name for field in fields(Kernel) if field.name not in {"op", "sources"})

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class _Warmed:
    """What was measured of one file.

    ``compiled`` are the kernels that the runtime made of it, as :func:`_written` tells them, None where they are those that
    were foreseen; ``read`` tells whether they were looked at. ``memory_bytes`` is None where it was not measured. Runs of
    before tell neither.
    """

    plan_hash: str
    latency_ms: float
    latency_spread: float
    settled: bool
    compiled: list[str] | None = None
    memory_bytes: int | None = None
    read: bool = True


def file_count(trials: int) -> int:
    """The files that a search of so many trials is warmed up with."""
    return min(MOST_FILES, trials // TRIALS_PER_FILE)


def warm_plans(space: SearchSpace, count: int, seed: int, likely: Sequence[Plan] = ()) -> tuple[Plan, ...]:
    """Different plans that a search is likely to meet: the untouched one, uniform ones, ``likely`` ones, and mixtures of two
    uniform ones, as crossover makes them; fewer where the space has fewer."""
    chance = random.Random(f"{seed}/warm-start")
    uniform = list(itertools.islice(uniform_indices(space), max(2, count)))
    plans = [*map(space.plan, uniform[: (count - len(likely) + 1) // 2]), *likely]
    for _ in range(4 * count):
        one, other = chance.choice(uniform), chance.choice(uniform)
        plans.append(space.plan({name: chance.choice((one, other))[name] for name in one}))
    return tuple(itertools.islice(dict.fromkeys(plans), count))


def warmed_up(
    bench: Workbench,
    space: SearchSpace,
    trials: int,
    seed: int,
    folder: RunFolder,
    progress: Progress,
    likely: Callable[[int], Sequence[Plan]] | None = None,
) -> Workbench:
    """The workbench with its target's models corrected by what was measured before the first trial, wherever the target is
    within reach then; later, or where it is not, nothing is measured: all trials of a run are foreseen alike.

    Args:
        likely: gives so many plans that the search would try first; asked for at the first sitting only.

    Raises:
        ExportError: a file cannot be written.
        MeasurementError: the runtime refuses one.
    """
    measures = bench.target.reachable and not folder.journal.is_file()
    events = [*folder.events()]
    earlier = _timed_earlier(events)
    known, plans = {one.plan_hash: one for one in earlier.values()} | _measured(events), _chosen(events, space, seed)
    if plans is None and not measures:
        return bench  # whatever an earlier run timed was of another machine
    if plans is None:
        count = file_count(trials)
        plans = warm_plans(space, count, seed, likely(count // 2) if likely and count > 1 else ())
        folder.append_event({"event": CHOSEN, "plans": [plan_text(plan) for plan in plans]})
    done = {
        *(one.plan_hash for one in known.values() if one.read),
        *(event["plan_hash"] for event in events if event["event"] == LEFT_OUT),
    }
    missing = [plan for plan in plans if plan.hash not in done] if measures else []
    for one in _measure(bench, missing, plans[:MEMORY_FILES], folder, progress):
        folder.append_event({"event": WARMED, **asdict(one)})
        known[one.plan_hash] = one
    known_plans = [plan for plan in dict.fromkeys([*earlier, *plans]) if plan.hash in known]
    return replace(bench, target=_corrected(bench, [(plan, known[plan.hash]) for plan in known_plans]))


def timed_in(run: RunFolder, space: SearchSpace, plans: Iterable[Plan]) -> list[Json]:
    """What settled of what an earlier run timed, itself or in one that it began from, as events of a run that begins from it;
    its target is taken to be the same, on the same machine. Of the files of its points as well, which are nearest to what is
    asked of it, and so to what is asked next.

    Args:
        plans: of its trials.
    """
    events = [*run.events()]
    timings, chosen = _measured(events), _chosen(events, space, run.request().seed) or ()
    warmed = _timed_earlier(events) | {plan: timings[plan.hash] for plan in chosen if plan.hash in timings}
    files = (_verified(document, warmed.get(Plan())) for document in verifications(run).values())
    verified = {one.plan_hash: one for one in files if one is not None}
    found = {plan: verified[plan.hash] for plan in plans if plan.hash in verified} | warmed
    return [{"event": EARLIER, "plan": plan_text(plan), **asdict(one)} for plan, one in found.items() if one.settled]


def _corrected(bench: Workbench, measured: Sequence[tuple[Plan, _Warmed]]) -> Target:
    """The target with its lowering, latency model and model of memory put right."""
    target = bench.target
    structures = [bench.structure(plan) for plan, _ in measured]
    foreseen = [target.lower(structure) for structure in structures]
    compiled = [
        CompiledPlan(kernels, _read(one.compiled, kernels))
        for kernels, (_, one) in zip(foreseen, measured, strict=True)
        if one.read
    ]
    lower = followed(target.lower, compiled, target.model.covers)
    files, held = [], []
    for kernels, structure, (_, one) in zip(map(lower.put_right, foreseen), structures, measured, strict=True):
        # A kernel that the model does not know would leave it without any prediction.
        if one.settled and all(map(target.model.covers, kernels)):
            files.append(MeasuredFile(kernels, one.latency_ms))
        if one.memory_bytes is not None:
            held.append(MeasuredMemory(kernels, table_bytes(structure), one.memory_bytes))
    memory = target.memory
    if held and isinstance(memory, MemoryModel):
        memory = WarmMemory(memory, tuple(held))
    return replace(target, model=WarmModel(target.model, tuple(files)), memory=memory, lower=lower)


def _measure(
    bench: Workbench, plans: Sequence[Plan], of_memory: Sequence[Plan], folder: RunFolder, progress: Progress
) -> Iterator[_Warmed]:
    """Some files at a time, side by side. Where a warm start is interrupted, the plans not yet timed are timed by the run
    that resumes it. A plan that has no file is left out, and an event says so: as a trial it fails by itself."""
    for first in range(0, len(plans), SIDE_BY_SIDE):
        models = {}
        for place in range(first, min(first + SIDE_BY_SIDE, len(plans))):
            progress(place, len(plans), "exporting files to time")
            try:
                models[place] = export(bench.compress(plans[place]), bench.target.artifact)
            except Exception as error:
                if plans[place] == Plan():
                    raise
                folder.append_event({"event": LEFT_OUT, "plan_hash": plans[place].hash, "error": one_line(error)})
        if not models:
            continue
        compiled = compiled_kernels(bench, models)
        held = {}
        if bench.target.memory is not None:
            held = footprints(bench, {place: model for place, model in models.items() if plans[place] in of_memory})
        for place, timing in time_files(bench, models, progress).items():
            plan = plans[place]
            differs = CompiledPlan(bench.target.lower(bench.structure(plan)), compiled[place]).differs
            written = [*map(_written, compiled[place])] if differs else None
            yield _Warmed(plan.hash, timing.latency_ms, timing.error, timing.settled, written, held.get(place))


def _written(kernel: Kernel) -> str:
    """All but what it computes, which the runtime does not know by our names."""
    return ",".join((kernel.op, *(str(int(getattr(kernel, name))) for name in NUMBERS)))


def _read(written: Sequence[str] | None, foreseen: tuple[Kernel, ...]) -> tuple[Kernel, ...]:
    """The kernels that were written; those foreseen where none were."""
    if written is None:
        return foreseen
    kernels = []
    for line in written:
        op, *numbers = line.split(",")
        values = dict(zip(NUMBERS, map(int, numbers), strict=True))
        kernels.append(Kernel(op, (), fused_add=bool(values.pop("fused_add")), **values))
    return tuple(kernels)


def _chosen(events: Sequence[Json], space: SearchSpace, seed: int) -> tuple[Plan, ...] | None:
    """The plans of a run's first sitting, though a later one may ask for more trials; None before it."""
    for event in events:
        if event["event"] == CHOSEN:
            if "plans" not in event:  # a run of before, which had no likely ones
                return warm_plans(space, cast("int", event["files"]), seed)
            return tuple(map(plan_of, cast("list[str]", event["plans"])))
    return None


def _measured(events: Sequence[Json]) -> dict[str, _Warmed]:
    """Plan → its timing."""
    timings = map(_timing, (event for event in events if event["event"] == WARMED))
    return {one.plan_hash: one for one in timings}


def _timed_earlier(events: Sequence[Json]) -> dict[Plan, _Warmed]:
    return {plan_of(str(event["plan"])): _timing(event) for event in events if event["event"] == EARLIER}


def _verified(document: Json, untouched: _Warmed | None) -> _Warmed | None:
    """Of a point's file, as it would have been beside the other timings, by the untouched network's file, which each sitting
    times as well; None where it was not timed, or on a board by itself.

    Args:
        untouched: of that file among the other timings.
    """
    measured = cast("Mapping[str, float | None]", document["measured"])
    latency_ms, spread = measured["latency_ms"], measured.get("latency_spread") or 0.0
    if latency_ms is None or document.get("timed_on") is not None:
        return None
    beside_ms = measured.get("baseline_latency_ms")
    if untouched is not None and untouched.settled and beside_ms is not None:
        latency_ms *= untouched.latency_ms / beside_ms
    return _Warmed(str(document["plan_hash"]), latency_ms, spread, bool(measured.get("settled", True)), read=False)


def _timing(event: Json) -> _Warmed:
    # JSON has no types for mypy to check; runs of before lack the fields that have a default.
    return _Warmed(**{field.name: event[field.name] for field in fields(_Warmed) if field.name in event})  # type: ignore[arg-type]
