"""Fits the two stages of :mod:`autocomp.hardware.fitted` to a calibration's measurements."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from autocomp.errors import MeasurementError
from autocomp.hardware.fitted import (
    GROUP_NAMES,
    FittedModel,
    Hyperparameters,
    KernelSample,
    OpModel,
    group_of,
    samples_by_op,
    trend,
)
from autocomp.hardware.kernels import FEATURES, Kernel
from autocomp.hardware.latency import HeldOutError

#: Architectures are held out in so many turns, each a part of them, when the error is determined.
FOLDS = 4
#: Fewer networks than this fit nothing.
FEWEST_NETWORKS = 8
#: Samples that hyperparameters are searched on; the model itself is conditioned on all.
SEARCH_SAMPLES = 200


@dataclass(frozen=True)
class MeasuredNetwork:
    """A file that was measured: its kernels as lowering says, its latency, and what the profiler said of its nodes.

    Files of one ``architecture`` differ by their plan only.
    """

    name: str
    architecture: str
    kernels: tuple[Kernel, ...]
    latency_ms: float
    spread: float
    samples: tuple[KernelSample, ...]


def fit(networks: Sequence[MeasuredNetwork], repeatability: float, note: str) -> FittedModel:
    """Fit to all networks; the held-out error is that of fits without a quarter of the architectures each.

    Args:
        networks: settled measurements.
        repeatability: relative spread of the rounds that agreed, kept with the model.
        note: what the held-out networks are, kept with their error.

    Raises:
        MeasurementError: too few networks, or too different ones.
    """
    if len(networks) < FEWEST_NETWORKS:
        raise MeasurementError(
            f"a latency model needs at least {FEWEST_NETWORKS} measured networks; got {len(networks)}; "
            "give a larger --budget, or a quieter machine"
        )
    return replace(_fit(networks, repeatability), held_out=_held_out(networks, repeatability, note))


def _held_out(networks: Sequence[MeasuredNetwork], repeatability: float, note: str) -> HeldOutError:
    """The error on every file, by a fit that saw no file of the same architecture."""
    architectures = list(dict.fromkeys(network.architecture for network in networks))
    errors: list[float] = []
    for fold in range(FOLDS):
        left_out = set(architectures[fold::FOLDS])
        rest = [network for network in networks if network.architecture not in left_out]
        if len(rest) < len(networks) and rest:
            trial = _fit(rest, repeatability)
            errors.extend(
                trial.predict(network.kernels).latency_ms / network.latency_ms - 1
                for network in networks
                if network.architecture in left_out and all(kernel.op in trial.ops for kernel in network.kernels)
            )
    if not errors:
        raise MeasurementError(
            "the error of a latency model is found on architectures that were left out; all of them have kernels that "
            "the others lack; give a larger --budget"
        )
    absolute = np.abs(errors)
    skipped = len(networks) - len(errors)
    return HeldOutError(
        mean=float(absolute.mean()),
        median=float(np.median(absolute)),
        within_10=float((absolute <= 0.10).mean()),
        within_20=float((absolute <= 0.20).mean()),
        networks=len(errors),
        note=f"{note}; {skipped} files with kernels that the others lack left out" if skipped else note,
    )


def _fit(networks: Sequence[MeasuredNetwork], repeatability: float) -> FittedModel:
    by_op = samples_by_op([sample for network in networks for sample in network.samples])
    ops = {op: OpModel(_hyperparameters(samples), tuple(samples)) for op, samples in by_op.items() if len(samples) >= 3}
    plain = FittedModel(ops, dict.fromkeys(GROUP_NAMES, 1.0), 0.0, 0.0, None, repeatability)
    factors, per_kernel_us, per_call_us = _factors(plain, networks)
    return replace(plain, factors=factors, per_kernel_us=per_kernel_us, per_call_us=per_call_us)


def _hyperparameters(samples: Sequence[KernelSample]) -> Hyperparameters:
    """The trend, then maximum marginal likelihood of what it leaves, with one length scale per feature that varies
    (automatic relevance)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    work_us = _work_us(samples)
    chosen = samples[:: max(1, math.ceil(len(samples) / SEARCH_SAMPLES))]
    x = np.array([sample.kernel.features() for sample in chosen])
    rest = np.log([sample.time_us for sample in chosen]) - trend([sample.kernel for sample in chosen], work_us)
    spread = x.std(axis=0)
    varying = spread > 1e-9
    signal, noise = max(float(rest.var()), 1e-4), 1e-3
    if not varying.any():
        return Hyperparameters(work_us, (1.0,) * len(FEATURES), signal, noise)
    kernel = ConstantKernel(signal, (1e-4, 10.0)) * RBF(2.0 * spread[varying], (0.05, 100.0)) + WhiteKernel(
        noise, (1e-4, 1.0)
    )
    process = GaussianProcessRegressor(kernel, random_state=0, n_restarts_optimizer=0)
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


def _factors(model: FittedModel, networks: Sequence[MeasuredNetwork]) -> tuple[dict[str, float], float, float]:
    """Non-negative least squares on relative errors: group factors, microseconds a kernel, microseconds a call."""
    from scipy.optimize import nnls

    rows, targets = [], []
    for network in networks:
        if any(kernel.op not in model.ops for kernel in network.kernels):
            continue
        latency_us = network.latency_ms * 1e3
        sums = dict.fromkeys(GROUP_NAMES, 0.0)
        for share in model.predict(network.kernels).kernels:
            sums[group_of(share.kernel.op)] += share.latency_ms * 1e3
        rows.append(
            [*(sums[name] / latency_us for name in GROUP_NAMES), len(network.kernels) / latency_us, 1.0 / latency_us]
        )
        targets.append(1.0)
    if not rows:
        raise MeasurementError(
            "no measured network has only kernels that occur often enough to fit; give a larger --budget"
        )
    # A light pull towards factor 1 decides what the data leave open (a group that hardly occurs).
    pull = 0.05 * np.eye(len(GROUP_NAMES), len(GROUP_NAMES) + 2)
    a = np.vstack([np.array(rows), pull])
    b = np.concatenate([np.array(targets), 0.05 * np.ones(len(GROUP_NAMES))])
    solution, _ = nnls(a, b)
    per_kernel_us, per_call_us = solution[-2:].tolist()
    return dict(zip(GROUP_NAMES, solution[:-2].tolist(), strict=True)), per_kernel_us, per_call_us
