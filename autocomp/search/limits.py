"""What a user asks of the result: limits that it must stay within, and which of the plans that do is wanted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from autocomp.run import Json, Request
from autocomp.trial import Cost

#: The whole front, or one end of it.
Goal = Literal["front", "most-accurate", "fastest", "smallest"]
#: Those that a drop is allowed for, with what they are least in: latency (0) or size (1).
ENDS: Mapping[Goal, int] = {"fastest": 0, "smallest": 1}

#: The event that says by how much files broke a limit that their predictions kept.
CORRECTED = "corrected"
#: A drop of exactly what is allowed may seem larger by a rounding error of the difference, in the metric's units.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Limits:
    """What a result must stay within; None where nothing was asked for. ``max_drop`` is in the metric's units.

    ``latency_factor``, ``size_factor`` and ``memory_factor``: what files were found to take, as multiples of what was
    predicted, once one of them broke that limit though its prediction kept it, or all were much faster than that.
    """

    latency_ms: float | None = None
    size_bytes: float | None = None
    memory_bytes: float | None = None
    max_drop: float | None = None
    latency_factor: float = 1.0
    size_factor: float = 1.0
    memory_factor: float = 1.0

    def __bool__(self) -> bool:
        return self.of_costs or self.max_drop is not None

    @property
    def of_costs(self) -> bool:
        """Whether any is of what is predicted."""
        return any(one is not None for one in (self.latency_ms, self.size_bytes, self.memory_bytes))

    @property
    def foreseen_latency_ms(self) -> float:
        """What may be predicted of a plan; infinite without a limit."""
        return math.inf if self.latency_ms is None else self.latency_ms / self.latency_factor

    @property
    def foreseen_size_bytes(self) -> float:
        """What may be predicted of a plan; infinite without a limit."""
        return math.inf if self.size_bytes is None else self.size_bytes / self.size_factor

    def broken_by_cost(self, cost: Cost) -> list[float]:
        """By how much each limit of what is predicted is broken, as a share of it; zero or less where it is kept. A latency
        keeps its limit where it does so with one standard deviation of the prediction to spare."""
        found = []
        if self.latency_ms is not None:
            found.append((self.latency_factor * cost.latency_ms + cost.latency_std_ms) / self.latency_ms - 1)
        if self.size_bytes is not None:
            found.append(self.size_factor * cost.size_bytes / self.size_bytes - 1)
        if self.memory_bytes is not None:
            found.append(self.memory_factor * cost.peak_memory_bytes / self.memory_bytes - 1)
        return found

    def broken(self, drop: float, cost: Cost) -> list[float]:
        """The same with the drop, whose excess is in the metric's units.

        Args:
            drop: how much worse the search metric is than that of the untouched plan.
        """
        over = [] if self.max_drop is None else [0.0 if self.allows(drop) else drop - self.max_drop]
        return [*self.broken_by_cost(cost), *over]

    def allows(self, drop: float) -> bool:
        """Whether a drop, in the metric's units, keeps the largest one that is allowed."""
        return self.max_drop is None or drop <= self.max_drop + ROUNDING * max(1.0, abs(self.max_drop))

    def broken_by_file(self, size_bytes: float, latency_ms: float | None, memory_bytes: float | None) -> list[float]:
        """The same of a file; what was not measured of it breaks nothing."""
        pairs = (
            (self.latency_ms, latency_ms),
            (self.size_bytes, size_bytes),
            (self.memory_bytes, memory_bytes),
        )
        return [found / limit - 1 for limit, found in pairs if limit is not None and found is not None]

    @staticmethod
    def of(request: Request, events: Iterable[Json] = ()) -> Limits:
        """Those of a request, with what the run's events say was corrected last."""
        factors = (1.0, 1.0, 1.0)
        for event in events:
            if event.get("event") == CORRECTED:  # which said nothing of memory once
                latency, size, memory = (float(str(event.get(name, 1.0))) for name in ("latency", "size", "memory"))
                factors = latency, size, memory
        return Limits(
            request.max_latency_ms,
            None if request.max_size_kb is None else request.max_size_kb * 1000,
            None if request.max_memory_kb is None else request.max_memory_kb * 1000,
            request.max_drop,
            *factors,
        )

    @staticmethod
    def of_trials(request: Request, events: Iterable[Json] = ()) -> Limits:
        """What trials are to stay within. Where recovery follows, the drop is asked of what it gives: training brings back
        much of what compression takes, so that what is within the drop already is far from the fastest that ends there."""
        limits = Limits.of(request, events)
        return replace(limits, max_drop=None) if request.recover_epochs else limits
