"""What of a weight tensor is to be stored in an ONNX file, checked: its shape and code, its levels and steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from autocomp.errors import ExportError
from autocomp.export.codes import Code
from autocomp.export.unpacking import Scaling, Use
from autocomp.plan import Format

Array: TypeAlias = npt.NDArray[np.int8] | npt.NDArray[np.float32]


@dataclass(frozen=True)
class WeightSpec:
    """All that the bytes of a stored weight depend on.

    ``kept_count``: how many weights are not pruned; None where there is no mask. ``axis``: the dimension of its
    channels. ``scaling``: how many steps there are, groups being of ``group`` weights in a row of a channel.

    Raises:
        ExportError: the axis is not one of the shape's, or more are kept than there are.
    """

    shape: tuple[int, ...]
    code: Code
    kept_count: int | None = None
    axis: int = 0
    use: Use = "dequantized"
    scaling: Scaling = "channel"
    group: int = 0

    def __post_init__(self) -> None:
        if not self.shape or min(self.shape) < 1:
            raise ExportError(f"a stored weight needs at least one dimension, none of them 0; got {self.shape}")
        if not 0 <= self.axis < len(self.shape):
            raise ExportError(f"the channel axis must lie in [0, {len(self.shape) - 1}]; got {self.axis}")
        if self.kept_count is not None and not 0 <= self.kept_count <= self.count:
            raise ExportError(f"the weights kept must lie in [0, {self.count}]; got {self.kept_count}")
        if self.scaling == "group" and (self.use == "dequantized" or self.group < 1 or self.axis > 1):
            raise ExportError(f"groups of at least one weight are for weights used as floats; got {self}")

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def along(self) -> int:
        """The length of a channel's row of weights, along which groups lie."""
        return self.shape[0] if self.axis else self.count // self.shape[0]

    @property
    def scale_shape(self) -> tuple[int, ...] | None:
        """The shape of the scale; None where none is stored with the weight."""
        if self.code.is_float or self.use == "levels":
            return None
        if self.scaling == "tensor":
            return ()
        channels = self.shape[self.axis]
        if self.scaling == "channel":
            return (channels,)
        groups = math.ceil(self.count // channels / self.group)
        return (channels, groups) if self.axis == 0 else (groups, channels)


def weight_spec(
    shape: tuple[int, ...], chosen: Format | None, kept_count: int | None, axis: int, stays_integers: bool
) -> WeightSpec:
    """How a layer's weight is stored.

    Args:
        chosen: its format; None for floats of 32 bits.
        stays_integers: for ``MatMulInteger`` or ``Gather``, which read the levels themselves.
    """
    if chosen is None or chosen.weight_bits == 16:
        return WeightSpec(shape, Code(32 if chosen is None else 16), kept_count, axis, "floats")
    code = Code(chosen.weight_bits, chosen.grid)
    if stays_integers:
        return WeightSpec(shape, code, kept_count, axis, "levels")
    use: Use = "dequantized" if chosen.calibrated else "floats"
    return WeightSpec(shape, code, kept_count, axis, use, chosen.granularity, chosen.group)


@dataclass(frozen=True, eq=False)
class StoredWeight:
    """One weight tensor as it is to be stored.

    ``values``: int8 levels, or float32 where the code is one of floats; the shape of ``spec``. ``scale``: float32 of
    ``spec.scale_shape``, the step between two levels. ``kept``: bool, the shape of ``values``; where it is False the
    weight is pruned and its value 0; None = not pruned.

    Raises:
        ExportError: the arrays do not fit each other, or a level does not fit the code.
    """

    spec: WeightSpec
    values: Array
    scale: npt.NDArray[np.float32] | None = None
    kept: npt.NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        spec = self.spec
        if self.values.shape != spec.shape:
            raise ExportError(f"the weights must have the shape {spec.shape}; got {self.values.shape}")
        given = None if self.scale is None else (self.scale.dtype.name, self.scale.shape)
        asked = None if spec.scale_shape is None else ("float32", spec.scale_shape)
        if given != asked:
            raise ExportError(f"the scale of these {spec.code.bits}-bit weights must be {asked}; got {given}")
        if self.kept is not None and (self.kept.dtype != np.bool_ or self.kept.shape != self.values.shape):
            raise ExportError(f"kept must be bool {self.values.shape}; got {self.kept.dtype} {self.kept.shape}")
        if (None if self.kept is None else int(np.count_nonzero(self.kept))) != spec.kept_count:
            raise ExportError(f"the mask must keep {spec.kept_count} weights; it does not")
        if self.kept is not None and np.any(self.values[~self.kept]):
            raise ExportError("a pruned weight must be 0; got another value where kept is False; apply the mask")
        spec.code.check(self.values if self.kept is None else self.values[self.kept])
