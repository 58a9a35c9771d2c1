"""From a calibration's measurements to a :class:`autocomp.hardware.fitted.FittedModel`.

The profiler distorts: it costs some microseconds a kernel, more for some kinds than for others, rounds down to whole
ones, and may have looked at a disturbed moment. The file's own latency, timed without it, does not; so a file's kernels
are scaled until they sum up to it.
"""

from __future__ import annotations

import itertools
import math
import random
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

import numpy as np

from autocomp.errors import MeasurementError
from autocomp.hardware.fitted import (
    Distortion,
    FittedModel,
    Hyperparameters,
    KernelSample,
    OpModel,
    Vector,
    clock_variance,
    samples_by_kind,
    trend,
)
from autocomp.hardware.kernels import CURVED, FEATURES, broader
from autocomp.hardware.latency import HeldOutError
from autocomp.hardware.measurements import MeasuredNetwork

#: Architectures are held out in so many turns, each a part of them, when the error is determined.
FOLDS = 4
#: Fewer networks than this fit nothing.
FEWEST_NETWORKS = 8
#: Kinds of kernels with fewer samples stay unknown.
FEWEST_SAMPLES = 3
#: A kind of kernel is told apart from the broader one where there are as many of each.
FEWEST_OF_A_KIND = 30
#: Hyperparameters are searched on so many samples, several times; the model itself is conditioned on all.
SEARCH_SAMPLES, SEARCHES = 400, 4
#: A file counts where the reference was not slower than this times its low quantile.
QUIET, QUIET_QUANTILE = 1.08, 0.1
#: In a file of so many, one kernel at least does next to nothing.
MANY_KERNELS = 20
#: A profile that says so many times more than the file takes was disturbed.
DISTURBED = 1.15
#: What is not known of a profile beforehand, as standard deviations: microseconds that a call costs, the factor of what
#: the profiler says, microseconds that it takes for a kernel itself, and for those of one kind beyond that.
GUESS_STDS, KIND_STD_US = (500.0, 0.1, 2.0), 0.5
#: A profile's sum is off by so much, whatever the kernels.
PROFILE_STD = 0.03
#: Rounds in which large errors come to count less.
ROUNDS = 6


def fit(
    networks: Sequence[MeasuredNetwork], profiled: Sequence[KernelSample], repeatability: float, note: str
) -> FittedModel:
    """Fit to all networks; the held-out error is that of fits without a quarter of the architectures each.

    Args:
        networks: settled measurements.
        profiled: kernels of further files, of other networks, that were profiled alone.
        repeatability: relative spread of the rounds that agreed, kept with the model.
        note: what the held-out networks are, kept with their error.

    Raises:
        MeasurementError: too few networks, or too different ones.
    """
    networks = at_one_pace(undisturbed(networks))
    if len(networks) < FEWEST_NETWORKS:
        raise MeasurementError(
            f"a latency model needs at least {FEWEST_NETWORKS} measured networks; got {len(networks)}; "
            "give a larger --budget, or a quieter machine"
        )
    return replace(
        _fit(networks, profiled, repeatability),
        held_out=_held_out(networks, profiled, note),
        reference_us=networks[0].reference_us,
    )


def at_one_pace(networks: Sequence[MeasuredNetwork]) -> list[MeasuredNetwork]:
    """The files as they would take in the quiet moments: a machine is some percent slower in one hour than in the next, and
    the reference workload beside a file tells by how much."""
    if not networks:
        return []
    quiet_us = _quiet_us(networks)
    return [
        replace(network, latency_ms=network.latency_ms * quiet_us / network.reference_us, reference_us=quiet_us)
        for network in networks
    ]


def undisturbed(networks: Sequence[MeasuredNetwork]) -> list[MeasuredNetwork]:
    """The files beside which the reference workload was about as fast as in the quiet moments of the calibration. A slow
    minute is slow evenly, so that rounds in it agree."""
    if not networks:
        return []
    quiet_us = _quiet_us(networks)
    return [network for network in networks if network.reference_us <= QUIET * quiet_us]


def _quiet_us(networks: Sequence[MeasuredNetwork]) -> float:
    return float(np.quantile([network.reference_us for network in networks], QUIET_QUANTILE))


def held_out_errors(
    networks: Sequence[MeasuredNetwork],
    profiled: Sequence[KernelSample],
    folds: int = FOLDS,
    search_samples: int = SEARCH_SAMPLES,
) -> dict[str, float]:
    """The relative error on every file, by a fit that saw no file of the same architecture; files with kernels that the
    others lack are left out.

    Raises:
        MeasurementError: the profiles do not agree with the timings.
    """
    architectures = list(dict.fromkeys(network.architecture for network in networks))
    # Families come in turn: left out in their order, all of one would go at once.
    random.Random(0).shuffle(architectures)
    errors: dict[str, float] = {}
    for fold in range(folds):
        left_out = set(architectures[fold::folds])
        rest = [network for network in networks if network.architecture not in left_out]
        if len(rest) < len(networks) and rest:
            trial = _fit(rest, profiled, 0.0, search_samples)
            errors |= {
                network.name: trial.predict(network.kernels).latency_ms / network.latency_ms - 1
                for network in networks
                if network.architecture in left_out and all(map(trial.covers, network.kernels))
            }
    return errors


def _held_out(networks: Sequence[MeasuredNetwork], profiled: Sequence[KernelSample], note: str) -> HeldOutError:
    errors = held_out_errors(networks, profiled)
    if not errors:
        raise MeasurementError(
            "the error of a latency model is found on architectures that were left out; all of them have kernels that "
            "the others lack; give a larger --budget"
        )
    absolute = np.abs(list(errors.values()))
    measured = [network for network in networks if network.name in errors]
    skipped = len(networks) - len(errors)
    return HeldOutError(
        mean=float(absolute.mean()),
        median=float(np.median(absolute)),
        within_10=float((absolute <= 0.10).mean()),
        within_20=float((absolute <= 0.20).mean()),
        networks=len(errors),
        note=f"{note}; {skipped} files with kernels that the others lack left out" if skipped else note,
        pairs=tuple((round(one.latency_ms, 5), round(one.latency_ms * (1 + errors[one.name]), 5)) for one in measured),
    )


def _fit(
    networks: Sequence[MeasuredNetwork],
    profiled: Sequence[KernelSample],
    repeatability: float,
    search_samples: int = SEARCH_SAMPLES,
) -> FittedModel:
    found = distortion(networks, {one.kernel.op for one in profiled})
    samples = samples_in_context(networks, profiled, found)
    ops = {
        op: OpModel(_hyperparameters(samples, search_samples), tuple(samples))
        for op, samples in _kinds_by_name(samples).items()
        if len(samples) >= FEWEST_SAMPLES
    }
    return FittedModel(ops, found, None, repeatability)


def _kinds_by_name(samples: Iterable[KernelSample]) -> dict[str, list[KernelSample]]:
    """Kind of kernel → its samples. One of which there are too few is of the broader kind, and so is one beside which there
    are too few of that."""
    found = samples_by_kind(samples)
    for narrow in (CURVED, "/"):
        for kind in [name for name in found if narrow in name]:
            wide = broader(kind)
            if wide is not None and min(len(found[kind]), len(found.get(wide, ()))) < FEWEST_OF_A_KIND:
                found[wide] = [*found.get(wide, ()), *found.pop(kind)]
    return found


def samples_in_context(
    networks: Sequence[MeasuredNetwork], profiled: Sequence[KernelSample], found: Distortion
) -> list[KernelSample]:
    """The kernels with times that, together with what a call costs, sum up to the files' own; kernels of files that were
    profiled alone are scaled as the others are on average."""
    timed = [found.in_context(network.samples, network.latency_ms) for network in networks]
    return [*itertools.chain(*timed), *map(found.alone, profiled)]


def distortion(networks: Sequence[MeasuredNetwork], kinds: Collection[str] = ()) -> Distortion:
    """Least squares on the relative errors of the files whose profile was not disturbed, large errors counting less, around
    the guess that every kernel costs the profiler what the quickest one does, more or less.

    Args:
        kinds: further kinds of kernels, for which the guess is all there is.

    Raises:
        MeasurementError: no profile agrees with the timings.
    """
    guess_us = _quickest_us(networks)
    used = [
        one for one in networks if _profiled_us(one) - guess_us * len(one.samples) < DISTURBED * one.latency_ms * 1e3
    ]
    if not used:
        raise MeasurementError(
            f"a latency model needs profiles that agree with the timings; none of {len(networks)} does; "
            "calibrate on a quieter machine"
        )
    kinds = sorted({*kinds, *(sample.kernel.op for network in networks for sample in network.samples)})
    tallies = [Counter(sample.kernel.op for sample in network.samples) for network in used]
    counts = np.array([[tally[op] for op in kinds] for tally in tallies], float)
    columns = np.column_stack(
        [np.ones(len(used)), [_profiled_us(network) for network in used], -counts.sum(axis=1), -counts]
    )
    latency_us = np.array([network.latency_ms * 1e3 for network in used])
    expected = np.array([0.0, 1.0, guess_us, *[0.0] * len(kinds)])
    found = _around(expected, np.array([*GUESS_STDS, *[KIND_STD_US] * len(kinds)]), columns / latency_us[:, None])
    own_us = {op: float(found[2] + extra) for op, extra in zip(kinds, found[3:], strict=True)}
    return Distortion(max(0.0, float(found[0])), float(found[1]), own_us)


def _around(expected: Vector, stds: Vector, rows: Vector) -> Vector:
    """The factors that bring every row to one, near what is expected of them."""
    scaled, left = rows * stds, 1.0 - rows @ expected
    weights: Vector = np.ones(len(rows))
    step: Vector = np.zeros(len(stds))
    for _ in range(ROUNDS):
        heavy = scaled * (weights / PROFILE_STD**2)[:, None]
        step = np.asarray(np.linalg.solve(heavy.T @ scaled + np.eye(len(stds)), heavy.T @ left), dtype=np.float64)
        weights = 1.0 / np.maximum(1.0, np.abs(left - scaled @ step) / PROFILE_STD)
    found: Vector = expected + stds * step
    return found


def _quickest_us(networks: Sequence[MeasuredNetwork]) -> float:
    """The quickest node of a file of many did next to nothing itself: what it reads is the profiler's."""
    quickest = [min(s.time_us for s in one.samples) for one in networks if len(one.samples) >= MANY_KERNELS]
    return float(np.median(quickest)) if quickest else 0.0


def _profiled_us(network: MeasuredNetwork) -> float:
    return math.fsum(sample.time_us for sample in network.samples)


def _hyperparameters(samples: Sequence[KernelSample], search_samples: int) -> Hyperparameters:
    """The trend of all samples, and the geometric mean of what several parts of them say of the rest: what one part says is
    to a good deal chance."""
    work_us = _work_us(samples)
    parts = min(SEARCHES, max(1, len(samples) // search_samples))
    step = max(parts, math.ceil(len(samples) / search_samples))
    found = [_of_the_rest(samples[step * part // parts :: step], work_us) for part in range(parts)]
    scales = [one.length_scales for one in found]
    return Hyperparameters(
        work_us,
        tuple(_geometric_mean(of_feature) for of_feature in zip(*scales, strict=True)),
        _geometric_mean([one.signal for one in found]),
        _geometric_mean([one.noise for one in found]),
    )


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def _of_the_rest(samples: Sequence[KernelSample], work_us: tuple[float, ...]) -> Hyperparameters:
    """Maximum marginal likelihood of what the trend leaves, with one length scale per feature that varies (automatic
    relevance)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    x = np.array([sample.kernel.features() for sample in samples])
    rest = np.log([sample.time_us for sample in samples]) - trend([sample.kernel for sample in samples], work_us)
    spread = x.std(axis=0)
    varying = spread > 1e-9
    signal, noise = max(float(rest.var()), 1e-4), 1e-2
    if not varying.any():
        return Hyperparameters(work_us, (1.0,) * len(FEATURES), signal, noise)
    kernel = ConstantKernel(signal, (1e-4, 10.0)) * Matern(spread[varying], (0.05, 100.0), nu=2.5) + WhiteKernel(
        noise, (1e-4, 1.0)
    )
    process = GaussianProcessRegressor(kernel, alpha=clock_variance(samples, work_us), random_state=0)
    with warnings.catch_warnings():
        # A length scale at its bound says that a feature does not matter, which is an answer.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = process.fit(x[:, varying], rest).kernel_
    scales = np.full(len(FEATURES), 1e6)
    scales[varying] = found.k1.k2.length_scale
    signal, noise = float(found.k1.k1.constant_value), float(found.k2.noise_level)
    return Hyperparameters(work_us, tuple(scales.tolist()), signal, noise)


def _work_us(samples: Sequence[KernelSample]) -> tuple[float, ...]:
    """Microseconds per unit of work: non-negative least squares, errors counted between absolute and relative, so
    that neither the longest nor the many shortest kernels decide alone."""
    from scipy.optimize import nnls

    work = np.array([sample.kernel.work() for sample in samples])
    times = np.array([sample.time_us for sample in samples])
    scale = np.maximum(work.max(axis=0), 1e-12)
    weights = times**-0.75
    solution, _ = nnls(work / scale * weights[:, None], times * weights)
    return tuple((solution / scale).tolist())
