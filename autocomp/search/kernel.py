"""Kernels of some of the features alone, which none of scikit-learn's own are. Their arguments are their attributes, as
scikit-learn's ``get_params`` and ``clone`` want them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.gaussian_process.kernels import RBF, DotProduct

Vector = npt.NDArray[np.float64]


class PartialRBF(RBF):  # type: ignore[misc]  # scikit-learn has no types, so its classes are Any
    """The RBF kernel of the columns from ``start`` up to ``stop``."""

    def __init__(
        self, length_scale: float | Sequence[float], length_scale_bounds: tuple[float, float], start: int, stop: int
    ) -> None:
        super().__init__(length_scale, length_scale_bounds)
        self.start, self.stop = start, stop

    def __call__(self, x: Vector, y: Vector | None = None, /, eval_gradient: bool = False) -> Any:
        part = slice(self.start, self.stop)
        return super().__call__(x[:, part], None if y is None else y[:, part], eval_gradient)


class PartialLinear(DotProduct):  # type: ignore[misc]
    """The linear kernel, through zero, of the columns from ``start`` up to ``stop``."""

    def __init__(self, start: int, stop: int) -> None:
        super().__init__(0.0, "fixed")
        self.start, self.stop = start, stop

    def __call__(self, x: Vector, y: Vector | None = None, /, eval_gradient: bool = False) -> Any:
        part = slice(self.start, self.stop)
        return super().__call__(x[:, part], None if y is None else y[:, part], eval_gradient)

    def diag(self, x: Vector) -> Any:
        return super().diag(x[:, self.start : self.stop])
