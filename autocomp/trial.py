"""What was found about a plan: its predicted cost, its score, and how the trial went."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from autocomp.errors import PlanError
from autocomp.plan import Plan

Source = Literal["measured", "fitted", "datasheet"]
TrialState = Literal["complete", "failed", "running", "stopped"]

#: Recovered trials are numbered from here on, in the order in which they were recovered.
RECOVERED = 1_000_000


@dataclass(frozen=True)
class Cost:
    """What a plan costs on a target. ``latency_std_ms`` is one standard deviation of the prediction's error.

    ``latency_source`` says where the milliseconds come from; bytes and MACs are computed from the plan itself.
    """

    latency_ms: float
    latency_std_ms: float
    size_bytes: int
    peak_memory_bytes: int
    macs: int
    latency_source: Source

    def __post_init__(self) -> None:
        if not (math.isfinite(self.latency_ms) and self.latency_ms > 0):
            raise PlanError(f"a latency must be positive and finite; got {self.latency_ms} ms")
        if self.latency_source not in get_args(Source):
            raise PlanError(
                f"a cost's source must be one of {', '.join(get_args(Source))}; got {self.latency_source!r}"
            )


@dataclass(frozen=True)
class Rung:
    """The metric on a part of the search split, ``share`` of it."""

    share: float
    metric: float


@dataclass(frozen=True)
class Trial:
    """One evaluated plan. ``metric`` is the score on the search split; None where the trial failed, or was stopped before it
    had seen the whole split, since it could not join the front any more. ``rungs`` are the parts that it was scored on, and
    ``stopped_drop`` what a stopped one lost on the last of them, as a share of the untouched network's metric. ``why`` is what
    the sampler expected of it, where it says so.

    A recovered one has a ``parent``, whose plan and cost it shares, and ``weights`` of its own (their hash).
    """

    number: int
    plan: Plan
    state: TrialState
    metric: float | None
    cost: Cost | None
    seconds: float | None
    seed: int
    error: str | None = None
    parent: int | None = None
    recovery_seed: int | None = None
    weights: str | None = None
    rungs: tuple[Rung, ...] = ()
    stopped_drop: float | None = None
    why: str | None = None

    @property
    def key(self) -> str:
        """Tells what is computed: the plan's hash, with that of the weights where they were recovered."""
        return self.plan.hash if self.weights is None else f"{self.plan.hash}-{self.weights}"
