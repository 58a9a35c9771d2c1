"""What an earlier run found, for a search of the same network within other limits or for another target: what each choice does
to its outputs, what its plans scored, what training made of them, and how long its files took."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import cast

from autocomp.errors import RunError
from autocomp.plan import Plan
from autocomp.run import Json, RunFolder
from autocomp.search.begin import METRIC, Setup, check_same_data, task_document, weights_hash
from autocomp.search.recovery import EVENT, training, weights_path
from autocomp.search.sensitivity import MEASURED, adjusted, told
from autocomp.search.stored_plan import plan_of, plan_text
from autocomp.search.study import read_study, read_trials
from autocomp.search.warm_start import timed_in
from autocomp.search.worth import Earlier
from autocomp.trial import Trial

#: Events of a run that began from another: a plan that was scored there, one that was trained, and that all of that was taken
#: over.
SCORED, TRAINED, TAKEN_OVER = "scored earlier", "trained earlier", "taken over"


@dataclass(frozen=True)
class Findings:
    """What was taken over: indices of plans that this space has and their drops as shares of the metric; the metrics, by hash,
    of the plans whose metric holds here; and indices of plans that were trained, with the drops that they ended with."""

    scored: Earlier = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    trained: Earlier = ()


NOTHING = Findings()


def taken_over(folder: RunFolder) -> bool:
    """Whether a run has all that it takes over: what it began from is not needed any more."""
    return any(event.get("event") == TAKEN_OVER for event in folder.events())


def take_over(setup: Setup, folder: RunFolder, earlier: RunFolder) -> None:
    """Write what ``earlier`` found that holds here as well into the events of a run; nothing where that was done before.

    Sensitivities hold wherever the same option is offered for the same decision: on another target they differ by the
    arithmetic of its integers, no more. A plan's metric holds where that arithmetic and the search split are the same, and so
    does what it was trained to; elsewhere it is a hint, to the sampler only. Timings hold for the same target on the same
    machine. All of it is one piece: a kill leaves none of it or, torn, some that the next sitting reads once.
    """
    if taken_over(folder):
        return
    same = _numerics(earlier.read()) == asdict(setup.bench.target.numerics)
    # Without a journal it was stopped before its first trial.
    trials = read_trials(read_study(earlier.journal), 0) if earlier.journal.is_file() else ()
    scored: list[Json] = [
        {**event, "holds_here": bool(event["holds_here"]) and same}
        for event in earlier.events()
        if event["event"] == SCORED
    ]
    scored += [
        {"event": SCORED, "plan": plan_text(trial.plan), "metric": trial.metric, "holds_here": same}
        for trial in trials
        if trial.metric is not None and trial.plan != Plan()
    ]
    trained = _trained(setup, folder, earlier, trials) if same else []
    alike = _measuring(earlier.read()) == _measuring(folder.read())
    timed = timed_in(earlier, setup.space, [trial.plan for trial in trials]) if alike else []
    taken: Json = {"event": TAKEN_OVER, "from": str(earlier.path)}
    folder.append_event(*_sensitivities(setup, earlier), *scored, *trained, *timed, taken)


def check_same_network(setup: Setup, earlier: RunFolder) -> None:
    """Raises:
    RunError: ``earlier`` is of another network, task or data, or is no run.
    """
    before, task = earlier.read(), task_document(setup)
    known = cast("Json", before["task"])
    said = {name: value for name, value in known.items() if name != METRIC}
    if before["weights_hash"] != weights_hash(setup.bench.prepared) or said != {name: task[name] for name in said}:
        raise RunError(
            f"--from must name a run of the same network and task; {earlier.path} is of another; leave --from out"
        )
    check_same_data(setup, earlier, "leave --from out")


def _sensitivities(setup: Setup, earlier: RunFolder) -> list[Json]:
    known: dict[str, dict[str, float]] = {}
    for event in earlier.events():
        # What was measured of otherwise adjusted layers tells nothing of these.
        if event.get("event") == MEASURED and "options" in event and adjusted(event) == setup.space.adjustments:
            options, errors = cast("Sequence[str]", event["options"]), cast("Sequence[float]", event["errors"])
            known[str(event["decision"])] = dict(zip(options, errors, strict=True))
    return [
        told(decision, [known[decision.name][name] for name in decision.option_names], setup.space.adjustments)
        for decision in setup.space.decisions
        if all(name in known.get(decision.name, {}) for name in decision.option_names)
    ]


def _trained(setup: Setup, folder: RunFolder, earlier: RunFolder, trials: Sequence[Trial]) -> list[Json]:
    """The recoveries of a run, or of one that it began from, whose plans this space has and whose weights are there, which are
    copied; each with its plan."""
    plans, found = {trial.number: trial.plan for trial in trials}, dict[tuple[object, ...], Json]()
    for event in earlier.events():
        if event["event"] not in {EVENT, TRAINED}:
            continue
        plan = plan_of(str(event["plan"])) if event["event"] == TRAINED else plans.get(int(str(event["parent"])))
        source, copy = (weights_path(run, str(event["weights"])) for run in (earlier, folder))
        known = plan is not None and plan.hash == event["plan_hash"] and source.is_file()
        if plan is not None and known and setup.space.indices(plan) is not None:
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)
            found[training(event)] = {**event, "event": TRAINED, "plan": plan_text(plan)}
    return [*found.values()]


def adopt(folder: RunFolder, trials: Sequence[Trial]) -> bool:
    """Make recovered points of what an earlier run trained of plans that are trials here; whether there are new ones."""
    events = [*folder.events()]
    taken_over = {training(event): event for event in events if event["event"] == TRAINED}
    parents = {trial.plan.hash: trial for trial in trials if trial.parent is None and trial.cost is not None}
    done = {training(event) for event in events if event["event"] == EVENT}
    new = [event for which, event in taken_over.items() if which not in done and event["plan_hash"] in parents]
    for event in new:
        facts = {name: value for name, value in event.items() if name != "plan"}
        folder.append_event({**facts, "event": EVENT, "parent": parents[str(event["plan_hash"])].number})
    return bool(new)


def _measuring(run: Json) -> tuple[object, ...]:
    """What timings of a run hold for."""
    return tuple(run.get(name) for name in ("target", "profile_hash", "fingerprint", "versions"))


def _numerics(run: Json) -> Mapping[str, object]:
    return cast("Mapping[str, object]", cast("Json", run["target"])["numerics"])


def earlier_findings(setup: Setup, folder: RunFolder) -> Findings:
    """What a run took over, for its search."""
    events, metrics, metric = [*folder.events()], {}, setup.bench.task.metric
    scored = {str(event["plan"]): event for event in events if event["event"] == SCORED}
    trained = dict[str, Json]()
    for event in events:
        if event["event"] != TRAINED:
            continue
        best = trained.setdefault(str(event["plan"]), event)  # of several seeds
        if metric.drop(_metric(best), _metric(event)) < 0:
            trained[str(event["plan"])] = event
    for text, event in scored.items():
        if event["holds_here"]:
            metrics[plan_of(text).hash] = _metric(event)
    return Findings(_drops(setup, scored), metrics, _drops(setup, trained))


def _drops(setup: Setup, events: Mapping[str, Json]) -> Earlier:
    """Of events by their plans: the indices of those that this space has, and the drops as shares of the metric."""
    metric, baseline = setup.bench.task.metric, setup.baseline.value
    found = []
    for text, event in events.items():
        indices = setup.space.indices(plan_of(text))
        if indices is not None:
            found.append((indices, metric.drop(baseline, _metric(event)) / (abs(baseline) or 1.0)))
    return tuple(found)


def _metric(event: Json) -> float:
    return float(cast("float", event["metric"]))
