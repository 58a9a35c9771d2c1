"""A model of memory corrected for one network by a few of its own files, as :mod:`autocomp.hardware.warm` corrects latency.

What a calibration says of a network's memory is off by what is peculiar to its layers: how a runtime lays out weights of
its shapes, what it keeps of its graph. So every part of the sum has a factor, 1 but for what the measured files say
(Rasmussen & Williams, "Gaussian Processes for Machine Learning", 2006, section 2.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from autocomp.hardware.kernels import Kernel
from autocomp.hardware.memory import CHANCE_BYTES, MeasuredMemory, MemoryModel

#: How far the factors may be from 1, and what a measured file may be off by beside what the allocator leaves to chance.
PRIOR_STD, MEASUREMENT_STD = 0.25, 0.02


@dataclass(frozen=True)
class WarmMemory:
    """``base`` corrected by what was ``measured`` of one network."""

    base: MemoryModel
    measured: tuple[MeasuredMemory, ...]

    def predict(self, kernels: Sequence[Kernel], table_bytes: int) -> int:
        """Bytes that a process holds more for running a network of these kernels."""
        return max(0, round(float(self.base.shares(kernels, table_bytes) @ self._factors)))

    @cached_property
    def _factors(self) -> npt.NDArray[np.float64]:
        shares = np.array([self.base.shares(one.kernels, one.table_bytes) for one in self.measured])
        true = np.array([float(one.measured_bytes) for one in self.measured])
        weights = 1.0 / ((MEASUREMENT_STD * true) ** 2 + (CHANCE_BYTES / 2) ** 2)
        precision = np.eye(shares.shape[1]) / PRIOR_STD**2 + (shares.T * weights) @ shares
        left = true - shares.sum(axis=1)
        found: npt.NDArray[np.float64] = 1.0 + np.linalg.solve(precision, shares.T @ (weights * left))
        return found
