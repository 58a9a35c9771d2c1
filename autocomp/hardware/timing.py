"""Timing callables on a machine that is not quiet.

What moves a latency is mostly the neighbours: other work on the host comes and goes and makes a run slower, never
faster. So the instrument looks for the floor and asks to see it more than once:

1. All candidates are timed in interleaved rounds, so that a bad minute falls on all of them and not on one. A round
   of a candidate is ``repeats`` samples in a row (its weights stay in the caches, as they do for a user who runs it in
   a loop); the round's value is a low quantile of them.
2. A fixed reference workload is timed before and after every candidate. A round beside which the reference ran slower
   than its own low quantile over the whole measurement was disturbed and does not count.
3. A candidate is settled when its three lowest undisturbed rounds agree within the tolerance; it then drops out of
   later rounds. Its latency is the mean of those three. One round in ten may lie below them and is put aside as luck.
4. What never settles is given back all the same, marked as such: the caller decides to drop it, and says how much.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autocomp.errors import MeasurementError, RequestError

MAX_CALLS_PER_SAMPLE = 1000
MIN_SAMPLES_PER_ROUND = 5


@dataclass(frozen=True)
class TimingSettings:
    """How hard to look.

    ``repeats`` samples a round, of which the ``quantile`` is the round's value; ``agreeing`` rounds must lie within
    ``tolerance`` (relative) of each other; at most ``max_rounds`` rounds. A round does not count where the reference
    ran slower than its own ``quantile`` by more than ``reference_tolerance``. Every block of samples starts with
    ``warmup`` calls that are not timed. A sample is as many calls as fill ``min_sample_us``; a round of a slow
    candidate takes fewer samples (never fewer than 5) where ``repeats`` of them would take longer than
    ``max_round_ms``.

    Raises:
        RequestError: a setting is outside its range.
    """

    repeats: int = 40
    quantile: float = 0.10
    agreeing: int = 3
    tolerance: float = 0.02
    reference_tolerance: float = 0.05
    max_rounds: int = 20
    warmup: int = 3
    min_sample_us: float = 50.0
    max_round_ms: float = 1000.0

    def __post_init__(self) -> None:
        for name, low in (("repeats", 1), ("agreeing", 2), ("max_rounds", self.agreeing), ("warmup", 1)):
            if getattr(self, name) < low:
                raise RequestError(f"timing setting {name} must be at least {low}; got {getattr(self, name)}")
        for name in ("tolerance", "reference_tolerance", "min_sample_us", "max_round_ms"):
            if not getattr(self, name) > 0.0:
                raise RequestError(f"timing setting {name} must be positive; got {getattr(self, name)}")
        if not 0.0 <= self.quantile <= 0.5:
            raise RequestError(f"timing setting quantile must lie between 0 and 0.5; got {self.quantile}")


DEFAULT_SETTINGS = TimingSettings()


@dataclass(frozen=True)
class Timing:
    """What was found for one candidate.

    ``latency_ms`` is the mean of the agreeing rounds (where it never settled: of the lowest rounds), one call each;
    ``spread`` is (highest − lowest) / lowest of the same rounds; ``rounds`` counts all the rounds it was timed in;
    ``reference_ms`` is the median of the reference workload beside the agreeing rounds: how fast the machine was.
    """

    latency_ms: float
    spread: float
    settled: bool
    rounds: int
    reference_ms: float


@dataclass(frozen=True)
class _Round:
    latency_ms: float
    reference_ms: float


@dataclass(frozen=True)
class _Probe:
    """A callable together with how it is sampled: ``samples`` samples of ``calls`` calls each."""

    label: str
    call: Callable[[], object]
    calls: int
    samples: int


def reference_workload() -> Callable[[], object]:
    """A fixed computation of some 50 µs: a product of two 48×48 matrices of whole numbers.

    numpy has no BLAS for whole numbers, so it runs in one thread and is the same code whatever BLAS is installed.
    """
    matrix = (np.arange(48 * 48, dtype=np.int32) % 7).reshape(48, 48)
    product = np.empty_like(matrix)
    return lambda: np.matmul(matrix, matrix, out=product)


def measure(
    candidates: Mapping[str, Callable[[], object]],
    settings: TimingSettings = DEFAULT_SETTINGS,
    progress: Callable[[int, int], None] | None = None,
    *,
    reference: Callable[[], object] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """The latency of every candidate, in the candidates' order.

    ``progress`` is told, before each round and at the end, how many candidates are settled, of how many; the first
    number can fall when a quieter moment shows that earlier rounds were disturbed. ``reference`` (default:
    :func:`reference_workload`) and ``clock`` (seconds) can be replaced, together, by simulated ones.

    Three rounds of a 0.5 ms candidate take some 70 ms.

    Raises:
        MeasurementError: a candidate takes no time that the clock can see. Whatever a candidate raises goes through.
    """
    if not candidates:
        return {}
    beside = _probe("the reference", reference_workload() if reference is None else reference, settings, clock)
    probes = {name: _probe(repr(name), call, settings, clock) for name, call in candidates.items()}
    rounds: dict[str, list[_Round]] = {name: [] for name in candidates}
    for number in range(settings.max_rounds + 1):
        quiet_ms = _quiet_reference_ms(rounds, settings)
        active = [name for name in candidates if _agreeing(rounds[name], quiet_ms, settings) is None]
        if progress is not None:
            progress(len(candidates) - len(active), len(candidates))
        if not active or number == settings.max_rounds:
            break
        before_ms = _sample(beside, settings, clock)
        # there and back, so that no candidate always follows the same one or always comes late in a drift
        for name in active if number % 2 == 0 else reversed(active):
            latency_ms = _sample(probes[name], settings, clock)
            after_ms = _sample(beside, settings, clock)
            rounds[name].append(_Round(latency_ms, max(before_ms, after_ms)))
            before_ms = after_ms
    return {name: _timing(rounds[name], quiet_ms, settings) for name in candidates}


def settled_share(timings: Mapping[str, Timing]) -> float:
    """The share of candidates that settled, 0 to 1.

    Raises:
        MeasurementError: there are no timings.
    """
    if not timings:
        raise MeasurementError("the share that settled needs at least one timing; got none; measure something first")
    return sum(timing.settled for timing in timings.values()) / len(timings)


def repeatability(timings: Mapping[str, Timing]) -> float:
    """The median relative spread of the agreeing rounds, over the candidates that settled.

    Raises:
        MeasurementError: nothing settled.
    """
    spreads = [timing.spread for timing in timings.values() if timing.settled]
    if not spreads:
        raise MeasurementError(
            f"repeatability needs at least one candidate that settled; got none of {len(timings)}; "
            "measure on a quieter machine or allow more rounds"
        )
    return statistics.median(spreads)


def _probe(label: str, call: Callable[[], object], settings: TimingSettings, clock: Callable[[], float]) -> _Probe:
    """Finds how many calls fill a sample, from the quickest of a few."""
    once_ms = math.inf
    for _ in range(settings.warmup + 1):
        start = clock()
        call()
        once_ms = min(once_ms, (clock() - start) * 1e3)
    calls, affordable = MAX_CALLS_PER_SAMPLE, settings.repeats
    if once_ms > 0.0:
        calls = min(calls, math.ceil(settings.min_sample_us / (once_ms * 1e3)))
        affordable = int(settings.max_round_ms / (once_ms * calls))
    return _Probe(label, call, calls, samples=min(settings.repeats, max(MIN_SAMPLES_PER_ROUND, affordable)))


def _sample(probe: _Probe, settings: TimingSettings, clock: Callable[[], float]) -> float:
    """One block: the low quantile of the samples, in milliseconds a call."""
    call, calls = probe.call, probe.calls
    seconds = []
    collecting = gc.isenabled()
    gc.disable()  # a collection in the middle of a sample would be charged to the candidate
    try:
        for _ in range(settings.warmup):
            call()
        for _ in range(probe.samples):
            start = clock()
            for _ in range(calls):
                call()
            seconds.append(clock() - start)
    finally:
        if collecting:
            gc.enable()
    low_seconds = float(np.quantile(seconds, settings.quantile))
    if low_seconds <= 0.0:
        raise MeasurementError(
            f"a candidate must take a time that the clock can see; {probe.label} took none in {calls} calls; "
            "do more in one call"
        )
    return low_seconds * 1e3 / calls


def _quiet_reference_ms(rounds: Mapping[str, Sequence[_Round]], settings: TimingSettings) -> float:
    """The reference on the undisturbed machine, as far as is known: a low quantile, so that no lucky moment sets it."""
    values = [one.reference_ms for of_one in rounds.values() for one in of_one]
    return float(np.quantile(values, settings.quantile, method="lower")) if values else math.inf


def _undisturbed(rounds: Sequence[_Round], quiet_ms: float, settings: TimingSettings) -> list[_Round]:
    """The rounds that count, lowest first."""
    limit_ms = quiet_ms * (1.0 + settings.reference_tolerance)
    return sorted((one for one in rounds if one.reference_ms <= limit_ms), key=lambda one: one.latency_ms)


def _spread(lowest_first: Sequence[_Round]) -> float:
    return lowest_first[-1].latency_ms / lowest_first[0].latency_ms - 1.0


def _agreeing(rounds: Sequence[_Round], quiet_ms: float, settings: TimingSettings) -> list[_Round] | None:
    """The lowest undisturbed rounds that agree, lowest first; None while there are none.

    Any three rounds would not do: of twenty scattered ones, three agree by chance somewhere.
    """
    counted = _undisturbed(rounds, quiet_ms, settings)
    for luck in range(int(settings.quantile * len(counted)) + 1):
        window = counted[luck : luck + settings.agreeing]
        if len(window) == settings.agreeing and _spread(window) <= settings.tolerance:
            return window
    return None


def _timing(rounds: Sequence[_Round], quiet_ms: float, settings: TimingSettings) -> Timing:
    agreeing = _agreeing(rounds, quiet_ms, settings)
    chosen = agreeing
    if chosen is None:
        counted = _undisturbed(rounds, quiet_ms, settings)
        everything = sorted(rounds, key=lambda one: one.latency_ms)
        chosen = (counted if len(counted) >= settings.agreeing else everything)[: settings.agreeing]
    return Timing(
        latency_ms=statistics.fmean(one.latency_ms for one in chosen),
        spread=_spread(chosen),
        settled=agreeing is not None,
        rounds=len(rounds),
        reference_ms=statistics.median(one.reference_ms for one in chosen),
    )
