"""A latency model corrected for one network by a few of its own files, measured.

What a fitted model gets wrong about a network it gets wrong in most of its files: a layer of a shape that calibration
has not met, a kind of kernel that is slower in this context. So the true latency is taken to be Σ θ·t over the predicted
times t of the kernels, θ = 1 + what all kernels, those of a kind, and those of a kind in one layer have in common. This
is Bayesian linear regression (Rasmussen & Williams, "Gaussian Processes for Machine Learning", 2006, section 2.1) with
a prior around "the model is right", so that one measurement does little and far from all measurements the uncertainty
is that of the prior.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from autocomp.changed import changed
from autocomp.hardware.kernels import Kernel
from autocomp.hardware.latency import HeldOutError, LatencyModel, Prediction
from autocomp.trial import Source

Vector = npt.NDArray[np.float64]
Key = tuple[str, ...]

#: How far the factors may be from 1: all kernels', those of a kind, those of a kind in one layer.
PRIOR_STDS = (0.10, 0.10, 0.10)
#: What a measured file may be off by, whatever the factors.
MEASUREMENT_STD = 0.01


@dataclass(frozen=True)
class MeasuredFile:
    """One of the network's files: its kernels as lowered, and what was measured."""

    kernels: tuple[Kernel, ...]
    latency_ms: float


@dataclass(frozen=True)
class WarmModel:
    """``base`` corrected by what was ``measured`` of one network, in the order of measuring."""

    base: LatencyModel
    measured: tuple[MeasuredFile, ...]

    @property
    def source(self) -> Source:
        return self.base.source

    @property
    def held_out(self) -> HeldOutError | None:
        """The base model's: of networks it had not seen."""
        return self.base.held_out

    def covers(self, kernel: Kernel) -> bool:
        """As the base model."""
        return self.base.covers(kernel)

    def predict(self, kernels: Sequence[Kernel]) -> Prediction:
        """The latency of a network of the same architecture.

        Raises:
            UncoveredKernelError: the base model was not calibrated on one of the kernels.
        """
        prediction = self.base.predict(kernels)
        if not self.measured:
            return prediction
        keys, seen, inverse, mean = self._posterior
        row = _row(prediction, keys)
        known, alike = row[: len(keys)], seen @ row[: len(keys)]
        correction = float(known @ mean)
        variance = max(0.0, float(row @ row) - float(alike @ inverse @ alike))
        latency_ms = max(prediction.latency_ms + correction, 0.1 * prediction.latency_ms)
        std_ms = math.sqrt(variance + (MEASUREMENT_STD * latency_ms) ** 2)
        factor = latency_ms / prediction.latency_ms
        shares = tuple(changed(share, latency_ms=share.latency_ms * factor) for share in prediction.kernels)
        return Prediction(latency_ms, std_ms, prediction.source, shares)

    @cached_property
    def _posterior(self) -> tuple[dict[Key, int], Vector, Vector, Vector]:
        """Place of every factor; what it multiplied in every file, and the inverse covariance of what was measured of the
        files; the factors' mean. All in units of their prior. There are fewer files than factors, so that this, equation
        2.12 of the book, is quicker than the covariance of the factors."""
        predictions = [self.base.predict(one.kernels) for one in self.measured]
        keys: dict[Key, int] = {}
        for prediction in predictions:
            for key in _sums(prediction):
                keys.setdefault(key, len(keys))
        a = np.array([_row(prediction, keys)[: len(keys)] for prediction in predictions])
        left = np.array([one.latency_ms - p.latency_ms for one, p in zip(self.measured, predictions, strict=True)])
        noise = (MEASUREMENT_STD * np.array([one.latency_ms for one in self.measured])) ** 2
        inverse: Vector = np.asarray(np.linalg.inv(a @ a.T + np.diag(noise)), dtype=np.float64)
        return keys, a, inverse, a.T @ (inverse @ left)


def _sums(prediction: Prediction) -> dict[Key, float]:
    """What every factor multiplies (ms), times the factor's prior standard deviation."""
    everything, of_kind, in_layer = PRIOR_STDS
    sums: dict[Key, float] = {(): everything * prediction.latency_ms}
    for share in prediction.kernels:
        kind, layer = (share.kernel.op,), (share.kernel.op, *share.kernel.sources)
        sums[kind] = sums.get(kind, 0.0) + of_kind * share.latency_ms
        sums[layer] = sums.get(layer, 0.0) + in_layer * share.latency_ms
    return sums


def _row(prediction: Prediction, keys: dict[Key, int]) -> Vector:
    """The sums by place; those without one, which no measurement has told of, behind them."""
    sums = _sums(prediction)
    row = np.zeros(len(keys))
    for key, value in sums.items():
        if key in keys:
            row[keys[key]] = value
    unknown = [value for key, value in sums.items() if key not in keys]
    return np.concatenate([row, unknown])
