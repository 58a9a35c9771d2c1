"""The timing instrument, held to a simulated machine whose true latencies are known."""

from __future__ import annotations

import gc
import math
import random
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autocomp.errors import MeasurementError, RequestError
from autocomp.hardware.timing import Load, Timing, TimingSettings, measure, repeatability, settled_share

REFERENCE_MS = 0.05


class Machine:
    """A clock, and workloads that move it: the true latency × the machine's slowness then × a little jitter."""

    def __init__(self, slowness: Callable[[float], float] = lambda _seconds: 1.0, seed: int = 0) -> None:
        self.seconds = 0.0
        self.calls = 0
        self.slowness = slowness
        self.random = random.Random(seed)

    def clock(self) -> float:
        return self.seconds

    def workload(self, latency_ms: float, own: Callable[[], float] = lambda: 1.0) -> Callable[[], None]:
        def call() -> None:
            jitter = 1.0 + abs(self.random.gauss(0.0, 0.01))
            self.calls += 1
            self.seconds += latency_ms * 1e-3 * self.slowness(self.seconds) * jitter * own()

        return call

    def measure(
        self, candidates: dict[str, Callable[[], object]], timing: TimingSettings | None = None
    ) -> dict[str, Timing]:
        return measure(
            loads(candidates),
            timing or TimingSettings(),
            reference=self.workload(REFERENCE_MS),
            clock=self.clock,
        )


def loads(calls: Mapping[str, Callable[[], object]]) -> dict[str, Load]:
    """Candidates that are the same however often they are loaded."""
    return {name: lambda call=call: call for name, call in calls.items()}  # type: ignore[misc]


def bursts(seed: int, busy: float, length_seconds: float, factor: float) -> Callable[[float], float]:
    """Neighbours: in a share ``busy`` of the stretches of time, everything takes up to ``factor`` times as long."""

    def slowness(seconds: float) -> float:
        stretch = random.Random(f"{seed} {int(seconds / length_seconds)}")
        return stretch.uniform(1.05, factor) if stretch.random() < busy else 1.0

    return slowness


def test_a_quiet_machine_needs_five_rounds_and_little_time() -> None:
    machine = Machine()
    timings = machine.measure({"one": machine.workload(0.5)})
    assert timings["one"].latency_ms == pytest.approx(0.5, rel=0.02)
    assert timings["one"].settled
    assert timings["one"].rounds == 5
    assert timings["one"].reference_ms == pytest.approx(REFERENCE_MS, rel=0.02)
    assert machine.seconds < 0.2


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("busy", "factor"), [(0.3, 1.4), (0.5, 1.4), (0.5, 3.0)])
def test_bursts_of_the_neighbours_do_not_show(seed: int, busy: float, factor: float) -> None:
    machine = Machine(bursts(seed, busy, length_seconds=0.15, factor=factor), seed)
    truth = {f"c{index}": 0.3 * 1.4**index for index in range(6)}
    timings = machine.measure({name: machine.workload(ms) for name, ms in truth.items()})
    for name, timing in timings.items():
        if timing.settled:
            assert timing.latency_ms == pytest.approx(truth[name], rel=0.02)
    assert settled_share(timings) >= 0.8


@pytest.mark.parametrize("seed", range(5))
def test_a_neighbour_that_the_reference_does_not_feel_does_not_show(seed: int) -> None:
    """Caches and memory are shared too: the small reference is at full speed while the candidates are not."""
    machine = Machine(seed=seed)
    contention = bursts(seed, busy=0.4, length_seconds=0.05, factor=1.3)
    own = lambda: contention(machine.seconds)  # noqa: E731
    timings = machine.measure({name: machine.workload(0.5, own) for name in "abcd"}, TimingSettings(max_rounds=100))
    for timing in timings.values():
        assert timing.latency_ms == pytest.approx(0.5, rel=0.02)
    assert settled_share(timings) == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_bursts_within_a_round_do_not_show(seed: int) -> None:
    machine = Machine(bursts(seed, busy=0.6, length_seconds=0.003, factor=2.0), seed)
    timings = machine.measure({"a": machine.workload(0.4), "b": machine.workload(0.7)})
    assert timings["a"].latency_ms == pytest.approx(0.4, rel=0.02)
    assert timings["b"].latency_ms == pytest.approx(0.7, rel=0.02)


def test_a_slow_start_is_forgotten_once_the_reference_shows_it() -> None:
    """Half as fast for the first rounds of all, long enough for them to agree with each other."""
    machine = Machine(lambda seconds: 1.5 if seconds < 0.2 else 1.0)
    late = {"late": machine.workload(0.5, own=lambda: machine.random.uniform(1.0, 1.2) if machine.seconds < 1 else 1)}
    timings = machine.measure({"early": machine.workload(0.5), **late})
    assert timings["early"].settled
    assert timings["early"].latency_ms == pytest.approx(0.5, rel=0.02)


def test_a_slow_drift_is_seen_beside_the_reference() -> None:
    """The clock speed swings by a fifth over seconds, as it does on a warm chip: candidates keep their proportions."""
    machine = Machine(lambda seconds: 1.0 + 0.1 * (1.0 - math.cos(seconds)))
    truth = {f"c{index}": 0.4 + 0.05 * index for index in range(12)}
    timings = machine.measure({name: machine.workload(ms) for name, ms in truth.items()})
    for name, timing in timings.items():
        relative = timing.latency_ms / timing.reference_ms
        assert relative == pytest.approx(truth[name] / REFERENCE_MS, rel=0.04)


@pytest.mark.parametrize("seed", range(5))
def test_what_never_settles_is_marked_and_does_not_hold_up_the_rest(seed: int) -> None:
    machine = Machine(seed=seed)
    level = [1.0]

    def wanders() -> float:  # the candidate's own latency creeps up for ever: there is no floor to find
        level[0] *= 1.002
        return level[0]

    timings = machine.measure({"wanders": machine.workload(0.5, own=wanders), "steady": machine.workload(0.5)})
    assert not timings["wanders"].settled
    assert timings["wanders"].rounds == TimingSettings().max_rounds
    assert timings["wanders"].spread > 0.02
    assert timings["steady"].settled
    assert timings["steady"].rounds == 5
    assert settled_share(timings) == 0.5
    assert repeatability(timings) == timings["steady"].error


def test_every_round_loads_afresh_and_the_lower_quartile_of_loads_counts() -> None:
    """A load lies somewhere in memory, and is quick or slow for as long as it lives."""
    machine, loaded = Machine(), []

    def load() -> Callable[[], None]:
        loaded.append(1.0 + 0.12 * machine.random.random())
        return machine.workload(0.5, own=lambda factor=loaded[-1]: factor)  # type: ignore[misc]

    timing = measure({"one": load}, reference=machine.workload(REFERENCE_MS), clock=machine.clock)["one"]
    assert timing.rounds == len(loaded) > 5
    assert timing.settled
    assert timing.latency_ms == pytest.approx(0.5 * 1.03, rel=0.02)
    assert timing.spread > 0.02 > timing.error


def test_a_slow_minute_is_waited_out_where_the_reference_is_known() -> None:
    slow = lambda seconds: 1.3 if seconds < 20 else 1.0  # noqa: E731
    for quiet_ms, expected_ms in ((math.inf, 0.65), (REFERENCE_MS, 0.5)):
        machine = Machine(slow)
        found = measure(
            loads({"one": machine.workload(0.5)}),
            reference=machine.workload(REFERENCE_MS),
            quiet_ms=quiet_ms,
            clock=machine.clock,
        )
        assert found["one"].latency_ms == pytest.approx(expected_ms, rel=0.02)


def test_one_lucky_round_does_not_set_the_latency() -> None:
    machine = Machine()
    lucky = {"in": lambda: 0.9 if machine.seconds < 0.015 else 1.0}
    timings = machine.measure({"one": machine.workload(0.5, own=lucky["in"])}, TimingSettings(repeats=20))
    assert timings["one"].settled
    assert timings["one"].latency_ms == pytest.approx(0.5, rel=0.02)


@settings(max_examples=30, deadline=None)
@given(latency_us=st.floats(0.2, 20_000.0), seed=st.integers(0, 1000))
def test_any_latency_comes_out_right_on_a_quiet_machine(latency_us: float, seed: int) -> None:
    machine = Machine(seed=seed)
    quick = TimingSettings(repeats=10, max_round_ms=50.0)
    timing = machine.measure({"one": machine.workload(latency_us / 1e3)}, quick)["one"]
    assert timing.settled
    assert timing.latency_ms == pytest.approx(latency_us / 1e3, rel=0.02)


def test_short_candidates_are_called_several_times_a_sample() -> None:
    """A clock that ticks once a microsecond cannot tell 1.0 from 1.4 µs in one call."""
    machine = Machine()
    coarse = lambda: math.floor(machine.seconds * 1e6) / 1e6  # noqa: E731
    calls = {"a": machine.workload(0.0010), "b": machine.workload(0.0014)}
    timings = measure(loads(calls), reference=machine.workload(REFERENCE_MS), clock=coarse)
    assert timings["a"].latency_ms == pytest.approx(0.0010, rel=0.03)
    assert timings["b"].latency_ms == pytest.approx(0.0014, rel=0.03)


def test_slow_candidates_get_fewer_samples() -> None:
    machine = Machine()
    timings = machine.measure({"slow": machine.workload(200.0)})
    assert timings["slow"].settled
    assert machine.seconds < 14.0  # five rounds of 30 would be 30 seconds


def test_progress_is_told_and_ends_with_all_settled() -> None:
    machine = Machine()
    told: list[tuple[int, int]] = []
    candidates = {"a": machine.workload(0.2), "b": machine.workload(0.3)}
    measure(
        loads(candidates),
        progress=lambda done, total: told.append((done, total)),
        reference=machine.workload(REFERENCE_MS),
        clock=machine.clock,
    )
    assert told[0] == (0, 2)
    assert told[-1] == (2, 2)


def test_the_real_clock_and_reference() -> None:
    timings = measure(
        {"sum": lambda: lambda: sum(range(5000))}, TimingSettings(repeats=5, max_rounds=5, patience_s=0.1)
    )
    assert timings["sum"].latency_ms > 0.0
    assert timings["sum"].reference_ms > 0.0
    assert list(measure({})) == []


def test_the_order_of_the_candidates_is_kept() -> None:
    machine = Machine()
    assert list(machine.measure({name: machine.workload(0.1) for name in "zay"})) == ["z", "a", "y"]


def test_garbage_collection_is_off_while_timing_and_on_again_even_after_an_error() -> None:
    collecting: list[bool] = []

    def fails_in_the_end() -> None:
        collecting.append(gc.isenabled())
        if len(collecting) == 30:
            raise MeasurementError("the runtime refused")

    with pytest.raises(MeasurementError, match="the runtime refused"):
        measure({"fails": lambda: fails_in_the_end}, reference=lambda: sum(range(3000)))
    assert not collecting[-1]
    assert gc.isenabled()


def test_errors_state_the_rule_and_the_value() -> None:
    machine = Machine()
    with pytest.raises(MeasurementError, match="'nothing' took none"):
        machine.measure({"nothing": lambda: None})
    with pytest.raises(RequestError, match="repeats must be at least 1; got 0"):
        TimingSettings(repeats=0)
    with pytest.raises(RequestError, match="max_rounds must be at least 5; got 4"):
        TimingSettings(max_rounds=4)
    with pytest.raises(RequestError, match="tolerance must be positive"):
        TimingSettings(tolerance=0.0)
    with pytest.raises(RequestError, match="quantile must lie between"):
        TimingSettings(quantile=0.9)
    with pytest.raises(MeasurementError, match="got none"):
        settled_share({})
    unsettled = {"a": Timing(1.0, 0.2, 0.1, False, 20, 0.05)}
    with pytest.raises(MeasurementError, match="none of 1"):
        repeatability(unsettled)
    assert settled_share(unsettled) == 0.0
