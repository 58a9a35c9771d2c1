"""Whether anything can keep the limits asked for, said before the work begins; and what is nearest to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from autocomp.errors import RequestError
from autocomp.search.landscape import UNFORESEEN, CostOf, Landscape, without_errors
from autocomp.search.limits import Limits
from autocomp.space import SearchSpace
from autocomp.trial import Cost

#: Standard deviations that a prediction may be too high by before it is taken to rule a limit out.
DOUBT = 2.0


def check_possible(limits: Limits, space: SearchSpace, cost: CostOf, say: Callable[[str], None]) -> None:
    """Look at the plans of least latency, of least size and between.

    Args:
        say: is told of a limit of memory that none of these keeps; others may, since memory, the most that is held at a time,
            is no sum over layers, and the least of it is not known.

    Raises:
        RequestError: none of them keeps a limit of latency or of size, or none keeps both at once; names the nearest possible
            one.
    """
    if not limits.of_costs:
        return
    landscape = Landscape(space, without_errors(space), cost)
    costs = [cost for cost in _least(landscape) if cost is not None]
    fastest = min(costs, key=lambda cost: cost.latency_ms)
    if limits.latency_ms is not None and fastest.latency_ms - DOUBT * fastest.latency_std_ms > limits.latency_ms:
        raise RequestError(
            f"no plan of this space is foreseen to take less than {fastest.latency_ms:.4g} ± {fastest.latency_std_ms:.2g} ms "
            f"there; got --max-latency-ms {limits.latency_ms:g}; ask for that or more, or offer more in another --space"
        )
    smallest = min(cost.size_bytes for cost in costs)
    if limits.size_bytes is not None and smallest > limits.size_bytes:
        raise RequestError(
            f"no plan of this space is smaller than {smallest / 1000:.4g} kB; got --max-size-kb {limits.size_bytes / 1000:g}; "
            "ask for that or more, or offer more in another --space"
        )
    if not all(max(_broken(limits, cost)) > 0.0 for cost in costs):
        return
    nearest = min(costs, key=lambda cost: max(_broken(limits, cost)))
    size_kb, memory_kb = nearest.size_bytes / 1000, nearest.peak_memory_bytes / 1000
    takes = f"{nearest.latency_ms:.4g} ms, {size_kb:.4g} kB and {memory_kb:.4g} kB of memory"
    others = replace(limits, memory_bytes=None)
    if limits.memory_bytes is None or all(max(_broken(others, cost), default=0.0) > 0.0 for cost in costs):
        raise RequestError(
            f"no plan of this space is foreseen to keep all limits at once; the nearest takes {takes}; ask for that or more"
        )
    say(
        f"of the fastest and the smallest plans none is foreseen to keep --max-memory-kb {limits.memory_bytes / 1000:g} with "
        f"all other limits; the nearest takes {takes}: it may be that no plan does"
    )


def _broken(limits: Limits, cost: Cost) -> list[float]:
    """As :meth:`Limits.broken_by_cost`, with every doubt in the plan's favour."""
    return limits.broken_by_file(
        cost.size_bytes, cost.latency_ms - DOUBT * cost.latency_std_ms, float(cost.peak_memory_bytes)
    )


def _least(landscape: Landscape) -> Iterable[Cost | None]:
    for changes in landscape.changes:
        for share in (0.0, 0.25, 0.5, 0.75, 1.0):
            price = UNFORESEEN
            yield landscape.cost(landscape.best(changes, price * share, price * (1.0 - share)))
    yield landscape.untouched
