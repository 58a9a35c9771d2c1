"""What an earlier run found, for a search of the same network within other limits or for another target: what each choice does
to its outputs, and what its plans scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import cast

from autocomp.errors import RunError
from autocomp.plan import Plan
from autocomp.run import Json, RunFolder
from autocomp.search.begin import Setup, task_document, weights_hash
from autocomp.search.guided import Earlier
from autocomp.search.sensitivity import MEASURED, told
from autocomp.search.stored_plan import plan_of, plan_text
from autocomp.search.study import read_study, read_trials

#: Events of a run that began from another: a plan that was scored there, and that all of that was taken over.
SCORED, TAKEN_OVER = "scored earlier", "taken over"


def take_over(setup: Setup, folder: RunFolder, earlier: RunFolder) -> None:
    """Write what ``earlier`` found that holds here as well into the events of a run; nothing where that was done before.

    Sensitivities hold wherever the same option is offered for the same decision: on another target they differ by the
    arithmetic of its integers, no more. A plan's metric holds where that arithmetic and the search split are the same;
    elsewhere it is a hint, to the sampler only. All of it is one piece: a kill leaves none of it or, torn, some that the next
    sitting reads once.
    """
    if any(event.get("event") == TAKEN_OVER for event in folder.events()):
        return
    same = _numerics(earlier.read()) == asdict(setup.bench.target.numerics)
    scored: list[Json] = [
        {"event": SCORED, "plan": plan_text(trial.plan), "metric": trial.metric, "holds_here": same}
        for trial in read_trials(read_study(earlier.journal), 0)
        if trial.metric is not None and trial.plan != Plan()
    ]
    taken: Json = {"event": TAKEN_OVER, "from": str(earlier.path)}
    folder.append_event(*_sensitivities(setup, earlier), *scored, taken)


def check_same_network(setup: Setup, earlier: RunFolder) -> None:
    """Raises:
    RunError: ``earlier`` is of another network or task, or is no run.
    """
    before = earlier.read()
    if before["weights_hash"] != weights_hash(setup.bench.prepared) or before["task"] != task_document(setup):
        raise RunError(
            f"--from must name a run of the same network and task; {earlier.path} is of another; leave --from out"
        )


def _sensitivities(setup: Setup, earlier: RunFolder) -> list[Json]:
    known: dict[str, dict[str, float]] = {}
    for event in earlier.events():
        if event.get("event") == MEASURED and "options" in event:
            options, errors = cast("Sequence[str]", event["options"]), cast("Sequence[float]", event["errors"])
            known[str(event["decision"])] = dict(zip(options, errors, strict=True))
    return [
        told(decision, [known[decision.name][name] for name in decision.option_names])
        for decision in setup.space.decisions
        if all(name in known.get(decision.name, {}) for name in decision.option_names)
    ]


def _numerics(run: Json) -> Mapping[str, object]:
    return cast("Mapping[str, object]", cast("Json", run["target"])["numerics"])


def earlier_findings(setup: Setup, folder: RunFolder) -> tuple[Earlier, dict[str, float]]:
    """What was taken over: indices of plans that this space has and their drops as shares of the metric; and the metrics, by
    hash, of the plans whose metric holds here."""
    metric, baseline = setup.bench.task.metric, setup.baseline.value
    hints, metrics = [], {}
    for event in {str(event["plan"]): event for event in folder.events() if event.get("event") == SCORED}.values():
        plan, value = plan_of(str(event["plan"])), float(cast("float", event["metric"]))
        if event["holds_here"]:
            metrics[plan.hash] = value
        indices = setup.space.indices(plan)
        if indices is not None:
            hints.append((indices, metric.drop(baseline, value) / (abs(baseline) or 1.0)))
    return tuple(hints), metrics
