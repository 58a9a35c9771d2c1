"""How far plans fall short of the untouched network: foreseen from output errors, and learned from trials."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from autocomp.search.landscape import Choice, Landscape
from autocomp.space import KINDS

if TYPE_CHECKING:
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import Kernel

Vector = npt.NDArray[np.float64]

#: Drops are not told apart, nor foreseen, any better than by this share of the metric.
RESOLUTION = 0.001
#: Before anything is known, the logarithm of a drop is foreseen this well by the output error.
PRIOR_STD = 0.7
#: However well the logarithm of a drop seems to be known, it is known no better than this.
LEAST_STD = 0.05
#: Between what the variances of its parts lie: none is ever thought to be nothing, so that what is unlike all that was tried is
#: not foreseen too surely.
OF_A_PART = (0.03, 4.0)
#: Trials that are learnt from: those on the front, then the latest.
MOST_LEARNT = 200
#: Scales are learned anew when there are so many times as many trials as when they were learned last.
RELEARN = 1.15


@dataclass(frozen=True)
class Seen:
    """What is known of a plan: its drop as a share of the metric, and the standard error of that (zero where all examples were
    looked at)."""

    number: int
    choice: Choice
    drop: float
    drop_std: float = 0.0


class Surrogate:
    """Drops from foreseen output errors: in the logarithm a straight line of slope 1, and what a Gaussian process learns of
    the rest from how large the error is, which kinds of choices and which layers it comes from. So it knows that errors do not
    add up (which layers lose much together), and that those of one kind or layer weigh more than those of another."""

    def __init__(self, landscape: Landscape) -> None:
        self._landscape = landscape
        self._scales: dict[int, Kernel] = {}
        self._process: GaussianProcessRegressor | None = None

    def learn(self, seen: Sequence[Seen], number: int, foremost: Callable[[Sequence[Seen]], Sequence[Seen]]) -> None:
        """From what is known when trial ``number`` is proposed. How smooth the process is, which takes longest to learn, is
        learned from the trials before a milestone, so that it is a function of these.

        Args:
            foremost: the most important of some first.
        """
        if not seen:
            self._process = None
            return
        milestone = _milestone(number)
        if milestone not in self._scales:
            before = [one for one in seen if one.number < milestone]
            self._scales[milestone] = self._smoothness(foremost(before)[:MOST_LEARNT])
        self._process = self._fitted(self._scales[milestone], foremost(seen)[:MOST_LEARNT], None)

    def drops(self, choices: Sequence[Choice]) -> tuple[Vector, Vector]:
        """Drops, as shares of the metric and with :data:`RESOLUTION` added: their medians, and the standard deviations of their
        logarithms."""
        if self._process is None:
            return self._prior(choices), np.full(len(choices), PRIOR_STD)
        mean, std = self._process.predict(self._features(choices), return_std=True)
        medians = self._prior(choices) * np.exp(mean)
        return medians, np.maximum(np.hypot(std, RESOLUTION / medians), LEAST_STD)

    def _smoothness(self, seen: Sequence[Seen]) -> Kernel:
        from sklearn.gaussian_process.kernels import ConstantKernel, WhiteKernel

        from autocomp.search.kernel import PartialLinear, PartialRBF

        scales, layers = [1.0, *[0.5] * len(KINDS)], len(self._landscape.groups)
        first, second, end = np.cumsum([len(scales), layers, layers]).tolist()
        # What is begun with, and kept until there are a few trials: together not far from the prior's variance, most of it told
        # by kinds. The features of layers share one scale: of hundreds none could be learned by itself.
        kernel = (
            ConstantKernel(0.3, OF_A_PART) * PartialRBF(scales, (0.2, 10.0), 0, first)
            + ConstantKernel(0.1, OF_A_PART) * PartialLinear(first, second)
            + ConstantKernel(0.1, OF_A_PART) * PartialRBF(0.5, (0.1, 10.0), second, end)
            + WhiteKernel(0.02, (0.003, 0.3))
        )
        return kernel if len(seen) <= len(scales) else self._fitted(kernel, seen, "fmin_l_bfgs_b").kernel_

    def _fitted(self, kernel: Kernel, seen: Sequence[Seen], optimizer: str | None) -> GaussianProcessRegressor:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor

        drops = np.maximum([one.drop for one in seen], 0.0) + RESOLUTION
        choices = [one.choice for one in seen]
        # The error of a logarithm. Which examples a plan gets wrong is luck: even a drop known from all of them tells no more
        # than the resolution of the drop of plans like it.
        variance = (np.hypot([one.drop_std for one in seen], RESOLUTION) / drops) ** 2
        learner = GaussianProcessRegressor(kernel, alpha=variance, optimizer=optimizer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a scale at its bound is as good as any beyond it
            return learner.fit(self._features(choices), np.log(drops / self._prior(choices)))

    def _prior(self, choices: Sequence[Choice]) -> Vector:
        errors: Vector = np.minimum(self._landscape.errors_by_kind(choices).sum(axis=1), 1.0) + RESOLUTION
        return errors

    def _features(self, choices: Sequence[Choice]) -> Vector:
        by_kind, by_group = self._landscape.errors_by_kind(choices), self._landscape.errors_by_group(choices)
        total = by_kind.sum(axis=1, keepdims=True) + RESOLUTION / 10
        return np.hstack([np.log(total) / 2, by_kind / total, by_group / total, np.sqrt(by_group)])


def _milestone(number: int) -> int:
    """The last one at or before a trial."""
    found, following = 0, 1
    while following <= number:
        found, following = following, max(following + 1, int(following * RELEARN))
    return found
