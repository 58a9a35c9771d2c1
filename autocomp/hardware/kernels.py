"""The unit of the latency model: one kernel call of a runtime, described by what its time depends on."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from operator import attrgetter

from autocomp.changed import changed

#: A kernel without its sources.
Shape = tuple[object, ...]


@dataclass(frozen=True)
class Kernel:
    """One kernel call for a whole batch.

    ``op`` is the runtime's kind of kernel (``conv_nchwc``, ``qlinear_conv``, ``quantize``, …), ``sources`` the layers
    (or graph nodes, where no layer is behind it) that it computes. Elements count values, not bytes. ``inner`` is the
    length of the runs that it works on, where its time depends on that: a row that is normalized, the channels of what
    is transposed, the columns of a product of two tensors, the width of an attention head; or how many products it
    computes one after the other. ``footprint_bytes`` of a
    kernel with weights are those of all weights of the network: what does not fit in a cache is read from further away
    in every inference (see :func:`in_company`).
    """

    op: str
    sources: tuple[str, ...]
    macs: int = 0
    in_elements: int = 0
    out_elements: int = 0
    weight_elements: int = 0
    kernel_area: int = 1
    stride: int = 1
    groups: int = 1
    fused_add: bool = False
    inner: int = 1
    footprint_bytes: int = 0

    @property
    def weight_bytes(self) -> int:
        """Of what its weights take in memory."""
        integers = self.op.startswith("q") or "_int8" in self.op or self.op in {"matmul_integer", "dynamic_matmul"}
        return self.weight_elements * (1 if integers else 4)

    @property
    def kind(self) -> str:
        """What a latency model learns by itself, see :func:`broader`. A convolution of 1×1 is a product, with other code
        behind it than one that looks at neighbours has."""
        pointwise = self.kernel_area == 1 and self.groups == 1 and "conv" in self.op and self.macs > 0
        return f"{self.op}/pointwise" if pointwise else self.op

    @property
    def shape(self) -> Shape:
        """All of it but what it computes: kernels of one shape take the same time."""
        return _SHAPE(self)

    def batched(self, batch: int) -> Kernel:
        """The same kernel for ``batch`` times the examples; weights do not multiply."""
        if batch == 1:
            return self
        return changed(
            self,
            macs=self.macs * batch,
            in_elements=self.in_elements * batch,
            out_elements=self.out_elements * batch,
        )

    @property
    def gemm_shape(self) -> tuple[float, float, float]:
        """Rows, columns and depth of the matrix product that the kernel is: output positions, output channels, and
        weights per output. (values, 1, 1) for a kernel without weights."""
        if self.macs == 0 or self.out_elements == 0:
            return float(self.out_elements), 1.0, 1.0
        depth = self.macs / self.out_elements
        if self.weight_elements == 0:  # a product of two tensors that both are computed
            return float(self.out_elements), 1.0, depth
        columns = self.weight_elements / depth
        return self.out_elements / columns, columns, depth

    def work(self) -> tuple[float, ...]:
        """What a kernel does, in counts that its time should be a non-negative sum of; see :data:`WORK`."""
        moved = float(self.in_elements + self.out_elements)
        if self.macs == 0:
            return (1.0, moved, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, float(self.out_elements * self.kernel_area))
        rows, columns, depth = self.gemm_shape
        per_position = depth / self.kernel_area
        return (
            1.0,
            moved,
            rows * _up(columns, WIDE) * _up(depth, NARROW),
            float(self.weight_elements),
            rows * depth if self.kernel_area > 1 else 0.0,
            rows * (round(columns) % NARROW),
            rows * (round(columns) % WIDE // NARROW),
            rows * depth if _waste(per_position, NARROW) > 0 else 0.0,
            0.0,
        )

    def features(self) -> tuple[float, ...]:
        """What the rest of a kernel's time is learned from; see :data:`FEATURES`."""
        rows, columns, depth = self.gemm_shape
        waste, unaligned = _waste(columns, WIDE), _waste(depth / self.kernel_area, NARROW)
        return (
            math.log(max(rows, 1.0)),
            math.log(max(columns, 1.0)),
            math.log(max(depth, 1.0)),
            math.log1p(self.in_elements),
            math.log(self.kernel_area),
            math.log(self.stride),
            math.log(self.groups),
            math.log(max(self.inner, 1)),
            float(self.fused_add),
            math.log(max(self.footprint_bytes, SMALLEST_CACHE)),
            waste,
            float(waste > 0.0),
            _waste(columns, NARROW),
            unaligned,
            float(unaligned > 0.0),
        )


_SHAPE = attrgetter(*(field.name for field in fields(Kernel) if field.name != "sources"))


def convolution(op: str, groups: int, inputs_per_group: int) -> str:
    """The kind of a convolution: depthwise and grouped ones are other kernels than ``op``."""
    if groups == 1:
        return op
    return f"{op}_depthwise" if inputs_per_group == 1 else f"{op}_grouped"


#: Ends the name of a kernel that takes every value through a curve before it writes it, an exponential or the like: which
#: may take half as long again as its products.
CURVED = "_curved"


def broader(kind: str) -> str | None:
    """The kind that one of :attr:`Kernel.kind` is taken to be of where too little was measured of itself, or by an earlier
    version; None where there is none."""
    if CURVED in kind:
        return kind.replace(CURVED, "")
    op, slash, _ = kind.partition("/")
    return op if slash else None


#: Weights of fewer bytes in all are at hand whatever they are.
SMALLEST_CACHE = 2**16


def in_company(kernels: Iterable[Kernel]) -> tuple[Kernel, ...]:
    """The kernels of one network, each with the footprint of all, to the nearest quarter of an octave."""
    found = tuple(kernels)
    total = sum(kernel.weight_bytes for kernel in found)
    total = round(2 ** (round(4 * math.log2(total)) / 4)) if total else 0
    return tuple(changed(kernel, footprint_bytes=total) if kernel.weight_elements else kernel for kernel in found)


def spread(op: str, in_elements: int, out_elements: int) -> str:
    """The kind of an operation on two tensors: one that gives each value of a small tensor to many of a large one is
    another kernel than ``op``."""
    small = op in {"add", "elementwise"} and out_elements < in_elements < 2 * out_elements
    return f"{op}_broadcast" if small else op


#: Kinds of kernels that only move values: they read no more than they write.
MOVES = frozenset({"move", "slice", "pad", "gather"})

#: Kinds of kernels whose time depends on how long the rows are.
ROW_BY_ROW = frozenset({"transpose", "softmax", "layer_norm", "reduce"})

#: Vector kernels compute whole groups of this many output channels, and pack this many inputs together.
WIDE, NARROW = 16, 4


def _up(value: float, multiple: int) -> float:
    """``value`` rounded up to a whole multiple."""
    return math.ceil(round(value, 6) / multiple) * multiple


def _waste(value: float, multiple: int) -> float:
    """The logarithm of how much more is computed because of the rounding up."""
    return math.log(_up(value, multiple) / value)


WORK = (
    "calls",
    "values_moved",
    "macs_padded",
    "weights",
    "patches_copied",
    "single_columns",
    "narrow_columns",
    "copied_unaligned",
    "windows_read",
)
FEATURES = (
    "log_rows",
    "log_columns",
    "log_depth",
    "log_in_elements",
    "log_kernel_area",
    "log_stride",
    "log_groups",
    "log_inner",
    "fused_add",
    "log_footprint",
    "columns_waste_wide",
    "columns_left_wide",
    "columns_waste_narrow",
    "channels_waste_narrow",
    "channels_left_narrow",
)
