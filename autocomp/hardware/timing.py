"""Timing what a runtime loads, on a machine that is not quiet.

Two things move a latency that are not the file's own. Neighbours on the host come and go and make a run slower, never
faster. And every time a file is loaded it comes to lie elsewhere in memory, which for some files (8-bit convolutions
above all) makes one load up to a tenth slower than the next, for as long as it lives. So the instrument looks for the
floor of a load, and at several loads:

1. All candidates are timed in interleaved rounds, so that a bad minute falls on all of them and not on one. For every
   round the candidate is loaded afresh. A round is ``repeats`` samples in a row (its weights stay in the caches, as
   they do for a user who runs it in a loop); the round's value is a low quantile of them.
2. A fixed reference workload is timed before and after every round. A round beside which the reference ran slower than
   its own low quantile over the whole measurement was disturbed and does not count; while it does, nothing is timed,
   as long as patience lasts.
3. A candidate's latency is the lower quartile of its undisturbed rounds: the neighbours that the reference did not feel
   only ever added to it. It is settled, and drops out of later rounds, when there are enough of them for its standard
   error to be within the tolerance.
4. What never settles is given back all the same, marked as such: the caller decides to drop it, and says how much.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from autocomp.errors import MeasurementError, RequestError

#: Loads a candidate afresh and gives back what runs it once.
Load = Callable[[], Callable[[], object]]


@runtime_checkable
class TimesItself(Protocol):
    """What is run elsewhere, and timed by the clock that is there."""

    def __call__(self) -> object: ...

    def block(self, warmup: int, calls: int, samples: int) -> Sequence[float]:
        """The seconds of so many samples of so many calls each, in a row, after calls that are not timed."""
        ...


MAX_CALLS_PER_SAMPLE = 1000
MIN_SAMPLES_PER_ROUND = 5


@dataclass(frozen=True)
class TimingSettings:
    """How hard to look.

    ``repeats`` samples a round, of which the ``quantile`` is the round's value. A candidate settles once
    ``least_rounds`` undisturbed rounds give its latency a standard error within ``tolerance`` (relative); it gets at
    most ``max_rounds``. A round does not count where the reference ran slower than its own ``quantile`` by more than
    ``reference_tolerance``; at most ``patience_s`` seconds in all are waited for it to become quicker. Every block of
    samples starts with ``warmup`` calls that are not timed. A sample is as many calls as fill ``min_sample_us``; a round
    of a slow candidate takes fewer samples (never fewer than 5) where ``repeats`` of them would take longer than
    ``max_round_ms``.

    Raises:
        RequestError: a setting is outside its range.
    """

    repeats: int = 30
    quantile: float = 0.10
    least_rounds: int = 5
    tolerance: float = 0.015
    reference_tolerance: float = 0.05
    max_rounds: int = 20
    patience_s: float = 30.0
    warmup: int = 3
    min_sample_us: float = 50.0
    max_round_ms: float = 1000.0

    def __post_init__(self) -> None:
        for name, low in (("repeats", 1), ("least_rounds", 2), ("max_rounds", self.least_rounds), ("warmup", 1)):
            if getattr(self, name) < low:
                raise RequestError(f"timing setting {name} must be at least {low}; got {getattr(self, name)}")
        for name in ("tolerance", "reference_tolerance", "min_sample_us", "max_round_ms"):
            if not getattr(self, name) > 0.0:
                raise RequestError(f"timing setting {name} must be positive; got {getattr(self, name)}")
        if not 0.0 <= self.quantile <= 0.5:
            raise RequestError(f"timing setting quantile must lie between 0 and 0.5; got {self.quantile}")
        if self.patience_s < 0.0:
            raise RequestError(f"timing setting patience_s must not be negative; got {self.patience_s}")


DEFAULT_SETTINGS = TimingSettings()


@dataclass(frozen=True)
class Timing:
    """What was found for one candidate.

    ``latency_ms`` is the lower quartile of the undisturbed rounds (where these are too few, of the ``least_rounds``
    lowest ones), one call each. ``spread`` is how much one load of it differs from another: the distance between the
    quartiles of the same rounds; ``error`` the standard error of ``latency_ms``; both relative to it. ``rounds`` counts
    all the rounds it was timed in; ``reference_ms`` is the median of the reference workload beside those that count: how
    fast the machine was.
    """

    latency_ms: float
    spread: float
    error: float
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
    candidates: Mapping[str, Load],
    settings: TimingSettings = DEFAULT_SETTINGS,
    progress: Callable[[int, int], None] | None = None,
    *,
    reference: Callable[[], object] | None = None,
    quiet_ms: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """The latency of every candidate, in the candidates' order.

    Args:
        candidates: each loads what is to be timed, and gives back what runs it once.
        progress: told, before each round and at the end, how many candidates are settled, of how many; the first
            number can fall when a quieter moment shows that earlier rounds were disturbed.
        reference: runs a fixed workload; default: :func:`reference_workload`.
        quiet_ms: what the reference took on the undisturbed machine earlier: slower than that is waited out as well.
        clock: seconds; it can be replaced, together with the reference, by a simulated one.

    Five rounds of a 0.5 ms candidate take some 120 ms, and its loading.

    Raises:
        MeasurementError: a candidate takes no time that the clock can see. Whatever a candidate raises goes through.
    """
    if not candidates:
        return {}
    beside = _Reference(
        _probe("the reference", reference_workload() if reference is None else reference, settings, clock),
        settings,
        clock,
        quiet_ms,
    )
    rounds: dict[str, list[_Round]] = {name: [] for name in candidates}
    for number in range(settings.max_rounds + 1):
        limit_ms = beside.limit_ms()
        active = [name for name in candidates if not _timing(rounds[name], limit_ms, settings).settled]
        if progress is not None:
            progress(len(candidates) - len(active), len(candidates))
        if not active or number == settings.max_rounds:
            break
        # there and back, so that no candidate always follows the same one or always comes late in a drift
        for name in active if number % 2 == 0 else reversed(active):
            probe = _probe(repr(name), candidates[name](), settings, clock)
            before_ms = beside.quiet_moment_ms()
            latency_ms = _sample(probe, settings, clock)
            rounds[name].append(_Round(latency_ms, max(before_ms, beside.sample_ms())))
            del probe  # or the next candidate is loaded while this one still lies in memory
    return {name: _timing(rounds[name], limit_ms, settings) for name in candidates}


class _Reference:
    """The reference workload in one measurement: every sample of it is remembered."""

    def __init__(self, probe: _Probe, settings: TimingSettings, clock: Callable[[], float], quiet_ms: float) -> None:
        self._probe, self._settings, self._clock, self._quiet_ms = probe, settings, clock, quiet_ms
        self._samples_ms: list[float] = []
        self._patience_s = settings.patience_s

    def sample_ms(self) -> float:
        self._samples_ms.append(_sample(self._probe, self._settings, self._clock))
        return self._samples_ms[-1]

    def limit_ms(self) -> float:
        """What it takes at most on the undisturbed machine, as far as is known: by a low quantile, so that no lucky
        moment sets it."""
        if not self._samples_ms:
            return math.inf
        low_ms = float(np.quantile(self._samples_ms, self._settings.quantile, method="lower"))
        return low_ms * (1.0 + self._settings.reference_tolerance)

    def quiet_moment_ms(self) -> float:
        """A sample, once the machine is quiet, or patience is at an end."""
        began = self._clock()
        known_ms = self._quiet_ms * (1.0 + self._settings.reference_tolerance)
        while (sample_ms := self.sample_ms()) > min(self.limit_ms(), known_ms):
            if self._clock() - began >= self._patience_s:
                break
            # and again at once: waiting busily keeps the processor at its speed
        self._patience_s = max(0.0, self._patience_s - (self._clock() - began))
        return sample_ms


def sample_ms(call: Callable[[], object], settings: TimingSettings = DEFAULT_SETTINGS) -> float:
    """One block of samples of something that is loaded already: its low quantile, in milliseconds a call.

    Raises:
        MeasurementError: it takes no time that the clock can see.
    """
    return _sample(_probe("the call", call, settings, time.perf_counter), settings, time.perf_counter)


def timing_words(timings: Mapping[int, Timing] | Mapping[str, Timing]) -> str:
    """How many there are, how many of them settled, and how well they repeat.

    Raises:
        MeasurementError: there are no timings.
    """
    share = settled_share(timings)
    repeats = f", repeatable within {repeatability(timings):.1%}" if share else "; measure on a quieter machine"
    return f"{len(timings)} files timed: {share:.0%} settled{repeats}"


def settled_share(timings: Mapping[int, Timing] | Mapping[str, Timing]) -> float:
    """The share of candidates that settled, 0 to 1.

    Raises:
        MeasurementError: there are no timings.
    """
    if not timings:
        raise MeasurementError("the share that settled needs at least one timing; got none; measure something first")
    return sum(timing.settled for timing in timings.values()) / len(timings)


def repeatability(timings: Mapping[int, Timing] | Mapping[str, Timing]) -> float:
    """The median relative standard error, over the candidates that settled.

    Raises:
        MeasurementError: nothing settled.
    """
    errors = [timing.error for timing in timings.values() if timing.settled]
    if not errors:
        raise MeasurementError(
            f"repeatability needs at least one candidate that settled; got none of {len(timings)}; "
            "measure on a quieter machine or allow more rounds"
        )
    return statistics.median(errors)


def _probe(label: str, call: Callable[[], object], settings: TimingSettings, clock: Callable[[], float]) -> _Probe:
    """Finds how many calls fill a sample, from the quickest of a few."""
    once_ms = min(_block(call, 0, 1, settings.warmup + 1, clock)) * 1e3
    calls, affordable = MAX_CALLS_PER_SAMPLE, settings.repeats
    if once_ms > 0.0:
        calls = min(calls, math.ceil(settings.min_sample_us / (once_ms * 1e3)))
        affordable = int(settings.max_round_ms / (once_ms * calls))
    return _Probe(label, call, calls, samples=min(settings.repeats, max(MIN_SAMPLES_PER_ROUND, affordable)))


def _block(
    call: Callable[[], object], warmup: int, calls: int, samples: int, clock: Callable[[], float]
) -> Sequence[float]:
    """See :meth:`TimesItself.block`."""
    if isinstance(call, TimesItself):
        return call.block(warmup, calls, samples)
    seconds = []
    collecting = gc.isenabled()
    gc.disable()  # a collection in the middle of a sample would be charged to the candidate
    try:
        for _ in range(warmup):
            call()
        for _ in range(samples):
            start = clock()
            for _ in range(calls):
                call()
            seconds.append(clock() - start)
    finally:
        if collecting:
            gc.enable()
    return seconds


def _sample(probe: _Probe, settings: TimingSettings, clock: Callable[[], float]) -> float:
    """One block: the low quantile of the samples, in milliseconds a call."""
    calls = probe.calls
    seconds = _block(probe.call, settings.warmup, calls, probe.samples, clock)
    low_seconds = float(np.quantile(seconds, settings.quantile))
    if low_seconds <= 0.0:
        raise MeasurementError(
            f"a candidate must take a time that the clock can see; {probe.label} took none in {calls} calls; "
            "do more in one call"
        )
    return low_seconds * 1e3 / calls


def _timing(rounds: Sequence[_Round], limit_ms: float, settings: TimingSettings) -> Timing:
    """What the rounds say; those count beside which the reference kept to its limit."""
    counted = [one for one in rounds if one.reference_ms <= limit_ms]
    enough = len(counted) >= settings.least_rounds
    if not enough:
        counted = sorted(rounds, key=lambda one: one.latency_ms)[: settings.least_rounds]
    if not counted:
        return Timing(math.inf, math.inf, math.inf, settled=False, rounds=0, reference_ms=math.inf)
    lowest_ms, low_ms, middle_ms, high_ms = np.quantile([one.latency_ms for one in counted], (0.0, 0.25, 0.5, 0.75))
    spread = float(high_ms / low_ms - 1.0)
    # The standard error of a normal sample's quartile is 1.36 standard deviations over √n; its quartiles lie 1.35
    # standard deviations apart, and of five values the lowest and the middle one 1.16: of so few, the quartiles can lie
    # together by luck.
    few = float((middle_ms - lowest_ms) / low_ms) if len(counted) < 2 * settings.least_rounds else 0.0
    error = max(spread, few) / math.sqrt(len(counted))
    return Timing(
        latency_ms=float(low_ms),
        spread=spread,
        error=error,
        settled=enough and error <= settings.tolerance,
        rounds=len(rounds),
        reference_ms=statistics.median(one.reference_ms for one in counted),
    )
