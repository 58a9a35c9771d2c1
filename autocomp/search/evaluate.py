"""One plan → its score on the search split and its predicted cost."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from autocomp.compress.apply import Compressed, apply
from autocomp.compress.rebuild import Prepared
from autocomp.compress.recovered import read_weights, with_weights
from autocomp.compress.solve import Solver
from autocomp.compress.structure import Structure, restructure
from autocomp.errors import WorkError
from autocomp.export.artifact import Sizes
from autocomp.hardware.target import Target
from autocomp.hardware.timed_files import THIS_MACHINE, Place
from autocomp.inventory import Inventory
from autocomp.plan import Plan
from autocomp.search.rungs import Climb, Hurdle, climb
from autocomp.task import Score, Task
from autocomp.trial import Cost, Rung


@dataclass(frozen=True)
class Forecast:
    """What plans of a network cost on a target, without touching a weight."""

    inventory: Inventory
    target: Target
    sizes: Sizes

    def structure(self, plan: Plan) -> Structure:
        return restructure(self.inventory, plan, self.target.numerics)

    def cost(self, plan: Plan) -> Cost:
        """Raises:
        PlanError: the plan does not fit the model.
        UncoveredKernelError: the latency model does not know a kernel.
        """
        structure = self.structure(plan)
        prediction = self.target.predict(structure)
        return Cost(
            latency_ms=prediction.latency_ms,
            latency_std_ms=prediction.std_ms,
            size_bytes=self.sizes.predict(structure),
            peak_memory_bytes=self.target.peak_memory_bytes(structure, [one.kernel for one in prediction.kernels]),
            macs=structure.macs * self.target.batch,
            latency_source=prediction.source,
        )


@dataclass(frozen=True)
class Workbench:
    """All that evaluating a plan needs: the task, its prepared model, the target, what a file's bytes are made of, what knows
    the layers that were solved before, where files are measured if the target is in reach, and the parts of the search split
    that evaluations begin with (see :func:`autocomp.search.rungs.parts_of`)."""

    task: Task
    prepared: Prepared
    target: Target
    sizes: Sizes
    solver: Solver
    place: Place = THIS_MACHINE
    parts: tuple[tuple[float, Score], ...] = ()

    def __getstate__(self) -> dict[str, object]:
        """Without what the solver knows: in another process it learns that anew."""
        return {name: value for name, value in self.__dict__.items() if name != "solver"}

    def __setstate__(self, state: Mapping[str, object]) -> None:
        self.__dict__.update(state)
        self.__dict__["solver"] = Solver(self.prepared.model, self.task.calibration)

    @property
    def forecast(self) -> Forecast:
        return Forecast(self.prepared.inventory, self.target, self.sizes)

    def structure(self, plan: Plan) -> Structure:
        return self.forecast.structure(plan)

    def compress(self, plan: Plan, weights: Path | None = None) -> Compressed:
        """The compressed model; with the weights that recovery gave it, where these are named."""
        compressed = apply(self.prepared, plan, self.task.calibration, self.target.numerics, self.solver)
        return compressed if weights is None else with_weights(compressed, read_weights(weights))

    def cost(self, plan: Plan) -> Cost:
        """See :meth:`Forecast.cost`."""
        return self.forecast.cost(plan)

    def climb(self, plan: Plan, cost: Cost, hurdle: Hurdle | None) -> Climb:
        """The simulated model's score on the search split, part by part, as long as the plan clears the hurdle.

        Raises:
            WorkError: a score is not a finite number.
        """
        compressed = self.compress(plan)
        with torch.no_grad():
            found = climb(self.task, compressed.model, cost, self.parts, hurdle)
        for rung in found.rungs:
            self._check_finite(rung.metric)
        if found.score is not None:
            self._check_finite(found.score.value)
        return found

    def _check_finite(self, value: float) -> None:
        if not math.isfinite(value):
            raise WorkError(f"a trial's {self.task.metric.name} must be a finite number; got {value}")


@dataclass(frozen=True)
class Outcome:
    """What came of a plan's evaluation: its score and cost, or the error that it failed with. One that was ``stopped`` has no
    metric, but the drop on the part of the split that it came to, and the standard error of that."""

    metric: float | None
    cost: Cost | None
    seconds: float
    error: str | None = None
    rungs: tuple[Rung, ...] = ()
    stopped: tuple[float, float] | None = None


def evaluate(bench: Workbench, plan: Plan, hurdle: Hurdle | None = None) -> Outcome:
    """Whatever a model, a solver or a user's evaluate raises is this plan's failure; the search goes on.

    Args:
        hurdle: what it has to clear on the first parts of the split to be scored on all of it; None for nothing.
    """
    began = time.monotonic()
    try:
        cost = bench.cost(plan)
        found = bench.climb(plan, cost, hurdle)
    except Exception as error:  # noqa: BLE001
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        return Outcome(None, None, time.monotonic() - began, said)
    seconds = time.monotonic() - began
    if found.score is None:
        return Outcome(None, cost, seconds, None, found.rungs, (found.drop, found.drop_std))
    return Outcome(found.score.value, cost, seconds, None, found.rungs)
