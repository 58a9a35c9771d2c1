"""Limits: kept with a margin, corrected by files, and what is impossible said at once."""

from __future__ import annotations

import pytest

from autocomp.errors import RequestError, RunError
from autocomp.plan import Plan
from autocomp.run import Json
from autocomp.search.limits import CORRECTED, Goal, Limits
from autocomp.search.points import broken, goal_trial
from autocomp.search.possible import check_possible
from autocomp.task import Metric
from autocomp.trial import Cost, Trial
from tests.search.synthetic import PaperBench, request, synthetic_space

COST = Cost(2.0, 0.1, 1000, 5000, 1, "fitted")
METRIC = Metric("accuracy")


def test_a_latency_keeps_its_limit_with_the_predictions_error_to_spare() -> None:
    assert Limits(latency_ms=2.2).broken_by_cost(COST)[0] < 0.0 < Limits(latency_ms=2.05).broken_by_cost(COST)[0]
    assert Limits(latency_ms=2.2, latency_factor=1.1).broken_by_cost(COST)[0] > 0.0
    assert Limits(memory_bytes=4000).broken(0.0, COST) == [pytest.approx(0.25)]


def test_the_last_correction_holds() -> None:
    events: list[Json] = [
        {"event": CORRECTED, "latency": 1.1, "size": 1.0},
        {"event": "else"},
        {"event": CORRECTED, "latency": 1.2, "size": 1.01},
    ]
    limits = Limits.of(request(max_latency_ms=3.0, max_memory_kb=7.0), events)
    assert (limits.latency_ms, limits.memory_bytes) == (3.0, 7000.0)
    assert (limits.latency_factor, limits.size_factor, limits.memory_factor) == (1.2, 1.01, 1.0)  # a run of before
    assert limits.foreseen_latency_ms == 3.0 / 1.2
    assert limits.foreseen_size_bytes == float("inf")
    limits = Limits.of(request(max_memory_kb=7.0), [{"event": CORRECTED, "latency": 1.0, "size": 1.0, "memory": 1.5}])
    assert limits.broken_by_cost(COST)[0] == pytest.approx(1.5 * 5000 / 7000 - 1)


def verified(latency_ms: float | None, size_bytes: int = 1000) -> Json:
    return {"measured": {"latency_ms": latency_ms, "size_bytes": size_bytes}}


def test_a_file_that_was_measured_is_judged_by_that() -> None:
    trial, limits = Trial(1, Plan(), "complete", 88.0, COST, 1.0, 0), Limits(latency_ms=2.05, size_bytes=1000)
    assert broken(trial, limits, 0.0, None)  # it may take 2.1 ms
    assert not broken(trial, limits, 0.0, verified(2.04))
    assert broken(trial, limits, 0.0, verified(2.06))
    noisy: Json = {"measured": {"latency_ms": 2.04, "latency_spread": 0.01, "size_bytes": 1000}}
    assert broken(trial, limits, 0.0, noisy)  # timed again it may take 2.06
    assert broken(trial, limits, 0.0, verified(None))  # its latency is out of reach: as predicted
    assert broken(trial, limits, 0.0, verified(2.04, size_bytes=1001))
    assert broken(trial, Limits(max_drop=1.0), 2.0, verified(1.0))


def test_the_end_of_the_front_that_is_wanted() -> None:
    def point(number: int, metric: float, latency_ms: float, size_bytes: int) -> Trial:
        return Trial(number, Plan(), "complete", metric, Cost(latency_ms, 0.1, size_bytes, 1, 1, "fitted"), 1.0, 0)

    def wanted(max_drop: float | None) -> list[int]:
        goals: tuple[Goal, ...] = ("most-accurate", "fastest", "smallest")
        return [goal_trial(points, goal, METRIC, {}, max_drop).number for goal in goals]

    points = [point(0, 90.0, 9.0, 9000), point(1, 89.0, 2.0, 2000), point(2, 80.0, 3.0, 500), point(3, 86.0, 1.9, 3000)]
    assert wanted(max_drop=20.0) == [1, 3, 2]
    assert wanted(max_drop=None) == [1, 3, 1]  # who asked for no drop wants no ruined network
    # All are of one plan here, which was measured: then the more accurate one is taken.
    assert goal_trial(points, "fastest", METRIC, {Plan().hash: verified(1.8)}, None).number == 1
    assert goal_trial(points[:1], "fastest", METRIC, {}, None).number == 0
    with pytest.raises(RunError, match="within 5% of the uncompressed model; no other is that near"):
        goal_trial([points[0], points[2]], "smallest", METRIC, {}, None)
    slower = [points[0], point(4, 89.0, 9.5, 100)]
    for max_drop, sought in ((None, "within 5% of the uncompressed model"), (2.0, "that lose at most 2")):
        with pytest.raises(
            RunError, match=f"{sought}, .*; none of them is faster than the uncompressed model; pick one"
        ):
            goal_trial(slower, "fastest", METRIC, {}, max_drop)
        assert goal_trial(slower, "smallest", METRIC, {}, max_drop).number == 4


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (Limits(latency_ms=0.01), r"less than [\d.]+ ± [\d.]+ ms there; got --max-latency-ms 0.01"),
        (Limits(size_bytes=50.0), r"smaller than [\d.]+ kB; got --max-size-kb 0.05"),
    ],
)
def test_the_impossible_is_refused_with_what_is_nearest(limits: Limits, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        check_possible(limits, synthetic_space(), PaperBench().cost, pytest.fail)


def test_where_memory_may_be_too_little_it_is_said_since_no_plan_is_known_to_take_least_of_it() -> None:
    told: list[str] = []
    check_possible(Limits(memory_bytes=0.5), synthetic_space(), PaperBench().cost, told.append)
    (said,) = told
    assert "--max-memory-kb 0.0005" in said
    assert "kB of memory: it may be that no plan does" in said


def test_the_possible_passes() -> None:
    least = 0.1 + 4 * 0.25 * 0.4  # ranks of a quarter, in integers
    check_possible(Limits(latency_ms=1.05 * least, size_bytes=9000), synthetic_space(), PaperBench().cost, pytest.fail)
    check_possible(Limits(max_drop=0.0), synthetic_space(), PaperBench().cost, pytest.fail)


@pytest.mark.parametrize(
    ("goal", "limits"), [("fastest", {}), ("smallest", {"max_size_kb": 3.0}), ("most-accurate", {"max_drop": 1.0})]
)
def test_a_goal_wants_a_limit(goal: str, limits: dict[str, float]) -> None:
    with pytest.raises(RequestError, match="got none; say which by --max"):
        request(goal=goal, **limits)  # type: ignore[arg-type]
