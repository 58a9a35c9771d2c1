"""One plan → its score on the search split and its predicted cost."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import cached_property
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
from autocomp.plan import Plan
from autocomp.task import Score, Task
from autocomp.trial import Cost


@dataclass(frozen=True)
class Workbench:
    """All that evaluating a plan needs: the task, its prepared model, the target, what a file's bytes are made of, and
    where files are measured if the target is in reach."""

    task: Task
    prepared: Prepared
    target: Target
    sizes: Sizes
    place: Place = THIS_MACHINE

    @cached_property
    def solver(self) -> Solver:
        """Knows the layers that were solved before."""
        return Solver(self.prepared.model, self.task.calibration)

    def structure(self, plan: Plan) -> Structure:
        return restructure(self.prepared.inventory, plan, self.target.numerics)

    def compress(self, plan: Plan, weights: Path | None = None) -> Compressed:
        """The compressed model; with the weights that recovery gave it, where these are named."""
        compressed = apply(self.prepared, plan, self.task.calibration, self.target.numerics, self.solver)
        return compressed if weights is None else with_weights(compressed, read_weights(weights))

    def cost(self, plan: Plan) -> Cost:
        """Predicted, without touching a weight.

        Raises:
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

    def score(self, plan: Plan) -> Score:
        """The simulated model's score on the search split.

        Raises:
            WorkError: the score is not a finite number.
        """
        compressed = self.compress(plan)
        with torch.no_grad():
            score = self.task.evaluate(compressed.model, "search")
        if not math.isfinite(score.value):
            raise WorkError(f"a trial's {self.task.metric.name} must be a finite number; got {score.value}")
        return score


@dataclass(frozen=True)
class Outcome:
    """What came of a plan's evaluation: its score and cost, or the error that it failed with."""

    metric: float | None
    cost: Cost | None
    seconds: float
    error: str | None = None


def evaluate(bench: Workbench, plan: Plan) -> Outcome:
    """Whatever a model, a solver or a user's evaluate raises is this plan's failure; the search goes on."""
    began = time.monotonic()
    try:
        cost = bench.cost(plan)
        score = bench.score(plan).value
    except Exception as error:  # noqa: BLE001
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        return Outcome(None, None, time.monotonic() - began, said)
    return Outcome(score, cost, time.monotonic() - began)
