"""What every choice does to the network's output by itself, on calibration data: the table that the guided sampler starts
from. It is measured once a run, decision by decision; each is an event, so that an interrupted pass goes on."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import torch
from torch.utils._pytree import tree_leaves

from autocomp.errors import WorkError
from autocomp.plan import Plan
from autocomp.run import Json, JsonValue, RunFolder
from autocomp.search.evaluate import Workbench
from autocomp.space import Decision, SearchSpace
from autocomp.task import Predict, Score, Split

#: The event of one decision.
MEASURED = "sensitivity"
#: The output error of a choice that breaks the network; more is not told apart.
BROKEN = 10.0
#: Examples that errors are measured on: as many as these multiply-accumulates suffice for, within bounds.
MACS, FEWEST, MOST = 1e10, 32, 512

Progress = Callable[[int, int, str], None]
Outputs = list[list[torch.Tensor]]
Errors = tuple[float, ...]
#: Gives what each of some decisions' options do, in any order.
Measures = Callable[["Measurer", Sequence[Decision]], Iterator[tuple[Decision, Errors]]]


@dataclass(frozen=True)
class Measurer:
    """Tells what the options of a decision do to the network's output by themselves; wherever it is sent, the same. No data
    goes with it but what is calibrated on."""

    bench: Workbench
    space: SearchSpace

    def __getstate__(self) -> dict[str, object]:
        task = replace(self.bench.task, train=None, evaluate=_not_asked)
        return {"bench": replace(self.bench, task=task), "space": self.space}

    def work_macs(self, decisions: Sequence[Decision]) -> int:
        """The multiply-accumulates of so many decisions, at least."""
        options = sum(len(decision.options) - 1 for decision in decisions)
        return options * _examples(self.bench) * self.bench.structure(Plan()).macs

    def errors(self, decision: Decision) -> Errors:
        """The output error of each option, 0 for "leave it"; :data:`BROKEN` where it fails, or is no number."""
        return (0.0, *(self._error(decision, index) for index in range(1, len(decision.options))))

    def _error(self, decision: Decision, index: int) -> float:
        plan = self.space.plan({decision.name: index})
        if plan == Plan():  # it takes effect beside other choices only
            return 0.0
        untouched = self._untouched
        try:
            found = distance(untouched, _outputs(self.bench, plan, self._batches))
        except Exception:  # noqa: BLE001  whatever a solver or a model raises: the trial of such a plan says what
            found = math.inf
        return min(found, BROKEN) if math.isfinite(found) else BROKEN

    @cached_property
    def _batches(self) -> list[tuple[torch.Tensor, ...]]:
        return list(_few(self.bench.task.calibration, _examples(self.bench)))

    @cached_property
    def _untouched(self) -> Outputs:
        return _outputs(self.bench, Plan(), self._batches)


def _not_asked(predict: Predict, split: Split, fraction: float = 1.0) -> Score:  # noqa: ARG001
    raise WorkError("a plan must be scored where the data is; a measurer has none")


def one_by_one(measurer: Measurer, decisions: Sequence[Decision]) -> Iterator[tuple[Decision, Errors]]:
    """In this process."""
    for decision in decisions:
        yield decision, measurer.errors(decision)


def sensitivities(
    bench: Workbench,
    space: SearchSpace,
    folder: RunFolder,
    limit_s: float | None,
    progress: Progress,
    measures: Measures = one_by_one,
) -> dict[str, Errors]:
    """Decision → the output error of each of its options by itself (0 for "leave it"): the squared distance from the
    untouched network's outputs, as a share of their variance, averaged over the outputs.

    Args:
        limit_s: after so long what is not measured yet is taken to be like the rest of its kind.
        measures: what measures them, here or elsewhere.
    """
    began = time.monotonic()
    known = _measured(folder, space)
    missing = [decision for decision in space.decisions if decision.name not in known]
    if not missing:
        return known
    progress(len(known), len(space.decisions), "measuring what each choice does")
    if limit_s is None or limit_s > 0:
        for decision, found in measures(Measurer(bench, space), missing):
            folder.append_event(told(decision, found, space.adjustments))
            known[decision.name] = found
            progress(len(known), len(space.decisions), "measuring what each choice does")
            if limit_s is not None and time.monotonic() - began > limit_s:
                break
    return {one.name: known.get(one.name) or _like_others(one, space, known) for one in space.decisions}


def told(decision: Decision, errors: Sequence[float], adjustments: Sequence[str]) -> Json:
    """The event of one decision.

    Args:
        adjustments: that plans had beside it.
    """
    options: list[JsonValue] = list(decision.option_names)
    beside: Json = {"adjustments": list(adjustments)} if adjustments else {}
    return {"event": MEASURED, "decision": decision.name, "options": options, "errors": list(errors), **beside}


def adjusted(event: Json, untold: Sequence[str] = ()) -> tuple[str, ...]:
    """The adjustments that plans had when a decision was measured.

    Args:
        untold: where it does not say: in a run of before the space's own.
    """
    return tuple(cast("Sequence[str]", event.get("adjustments", untold)))


def _like_others(decision: Decision, space: SearchSpace, known: Mapping[str, Errors]) -> Errors:
    """For every option the median of what decisions of the same kind have there; where there is none, ever more."""
    found = [0.0]
    for index in range(1, len(decision.options)):
        there = [
            known[other.name][index]
            for other in space.decisions
            if other.kind == decision.kind and other.name in known and index < len(other.options)
        ]
        found.append(statistics.median(there) if there else 0.01 * index)
    return tuple(found)


def _measured(folder: RunFolder, space: SearchSpace) -> dict[str, Errors]:
    """Of what this space offers: errors of other options of the same decision are not these."""
    options = {decision.name: [*decision.option_names] for decision in space.decisions}
    return {
        str(event["decision"]): tuple(cast("Sequence[float]", event["errors"]))
        for event in folder.events()
        if event.get("event") == MEASURED
        and event.get("options") == options.get(str(event["decision"]))
        and adjusted(event, space.adjustments) == space.adjustments
    }


def _examples(bench: Workbench) -> int:
    macs = bench.structure(Plan()).macs
    return round(min(max(MACS / max(macs, 1), FEWEST), MOST))


def _few(batches: Sequence[Sequence[torch.Tensor]], examples: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """The first so many examples."""
    for batch in batches:
        if examples <= 0:
            return
        yield tuple(tensor[:examples] for tensor in batch)
        examples -= len(batch[0])


def _outputs(bench: Workbench, plan: Plan, batches: Sequence[tuple[torch.Tensor, ...]]) -> Outputs:
    model = bench.compress(plan).model
    with torch.no_grad():
        return [
            [leaf for leaf in tree_leaves(model(*batch)) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]
            for batch in batches
        ]


def distance(before: Outputs, after: Outputs) -> float:
    """The mean over outputs of: squared distance, as a share of the variance.

    Args:
        before, after: for every batch, the tensors that the network gives.
    """
    shares = []
    for place in range(len(before[0])):
        one = torch.cat([batch[place].reshape(-1).double() for batch in before])
        other = torch.cat([batch[place].reshape(-1).double() for batch in after])
        variance = float(((one - one.mean()) ** 2).sum())
        shares.append(float(((other - one) ** 2).sum()) / (variance or 1.0))
    return sum(shares) / len(shares) if shares else 0.0
