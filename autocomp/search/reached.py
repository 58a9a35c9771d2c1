"""What finished trials have reached within the limits: what others have to clear."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from autocomp.search.drop import CONFIDENCE_Z
from autocomp.search.limits import Goal, Limits
from autocomp.search.rungs import Hurdle
from autocomp.task import Metric
from autocomp.trial import Trial


@dataclass
class Reached:
    """``front``: drop, latency in ms and bytes of those that keep the limits and that no other one dominates. ``least_drop``:
    of what keeps the limits, the untouched network aside."""

    limits: Limits
    goal: Goal
    metric: Metric
    baseline_metric: float
    front: list[tuple[float, float, float]] = field(default_factory=list)
    least_drop: float = math.inf

    def note(self, trial: Trial) -> None:
        # What breaks a limit stops nothing that keeps it.
        if trial.metric is None or trial.cost is None or not self._kept(trial):
            return
        drop = self.metric.drop(self.baseline_metric, trial.metric)
        point = (drop, trial.cost.latency_ms, float(trial.cost.size_bytes))
        if trial.number > 0:
            self.least_drop = min(self.least_drop, drop)
        if Hurdle(tuple(self.front)).cleared(drop, trial.cost):
            self.front = [other for other in self.front if any(a > b for a, b in zip(point, other, strict=True))]
            self.front.append(point)

    @property
    def hurdle(self) -> Hurdle:
        return Hurdle(tuple(self.front), self._most_drop)

    @property
    def _most_drop(self) -> float | None:
        """The drop beyond which a plan is of no use: where only the most accurate one is wanted, that of the best so far."""
        drops = [] if self.limits.max_drop is None else [self.limits.max_drop]
        if self.goal == "most-accurate" and math.isfinite(self.least_drop):
            drops.append(self.least_drop)
        return min(drops, default=None)

    def clearing(self, stopped: Iterable[tuple[Trial, float, float]]) -> list[int]:
        """The numbers of those stopped trials, each with its drop and the standard error of that in the metric's units, that
        keep the limits and clear the hurdle at the favourable end of their intervals."""
        hurdle = self.hurdle
        return [
            trial.number
            for trial, drop, std in stopped
            if trial.cost is not None and self._kept(trial) and hurdle.cleared(drop - CONFIDENCE_Z * std, trial.cost)
        ]

    def _kept(self, trial: Trial) -> bool:
        return trial.cost is not None and all(excess <= 0.0 for excess in self.limits.broken_by_cost(trial.cost))
