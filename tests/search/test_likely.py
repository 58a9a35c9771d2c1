"""What a search is foreseen to try first."""

from __future__ import annotations

from autocomp.plan import Plan
from autocomp.search.likely import likely_plans
from autocomp.search.limits import Limits
from autocomp.search.worth import Wish
from tests.search.synthetic import BASELINE, PaperBench, landscape_of, request, search, synthetic_space
from tests.search.test_sampler import new_study


def foreseen(count: int, wish: Wish | None = None) -> tuple[Plan, ...]:
    return likely_plans(landscape_of(synthetic_space()), "maximize", BASELINE, 0, wish or Wish(), count)


def test_they_begin_with_what_the_search_does_try_and_are_different() -> None:
    plans = foreseen(8)
    tried = search(new_study(), request("auto", trials=2))
    assert plans[0] == tried[1].plan
    assert len({Plan(), *plans}) == 9
    assert plans == foreseen(8)


def test_they_are_along_the_front() -> None:
    bench = PaperBench()
    costs = [bench.cost(plan) for plan in foreseen(8)]
    latencies = sorted(cost.latency_ms for cost in costs)
    assert latencies[-1] > 1.5 * latencies[0]


def test_they_keep_the_limits_that_the_search_is_to_keep() -> None:
    limits = Limits(latency_ms=2.0, size_bytes=60_000)
    for plan in foreseen(6, wish=Wish(limits, "most-accurate")):
        cost = PaperBench().cost(plan)
        assert cost.latency_ms <= 2.0
        assert cost.size_bytes <= 60_000
