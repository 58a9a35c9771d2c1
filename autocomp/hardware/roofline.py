"""A latency model of a few physical numbers, for a board of which only whole networks' latencies are known.

A kernel takes a fixed overhead and then, whichever is longer, the time to compute or the time to move its bytes (the
roofline of Williams, Waterman and Patterson, 2009); how the two join is chosen by what fits. It extrapolates sanely
where a table of measurements cannot, and says with its error bar that it knows no kernel closely.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from autocomp.errors import TargetError, UncoveredKernelError
from autocomp.hardware.kernels import Kernel
from autocomp.hardware.latency import HeldOutError, KernelTime, Prediction
from autocomp.trial import Source

Vector = npt.NDArray[np.float64]

#: How the times of compute and of memory join: the longer one; the root of their squares' sum; their sum.
Join = Literal["max", "hypot", "sum"]

BYTES = {"fp32": 4, "fp16": 2, "int8": 1}

#: What an operation computes with: the tensor cores or, channel by channel, the ordinary ones.
TENSOR_FAMILIES = frozenset({"conv", "gemm", "matmul"})
DEPTHWISE_FAMILY = "depthwise"


@dataclass(frozen=True)
class Work:
    """What one kernel does: MACs on the tensor cores, MACs of depthwise convolutions, bytes moved."""

    tensor_macs: float
    depthwise_macs: float
    moved_bytes: float


def split_op(op: str) -> tuple[str, str]:
    """``conv_int8`` → (``conv``, ``int8``); the precision is empty where the name ends in none."""
    family, _, precision = op.rpartition("_")
    return (family, precision) if precision in BYTES else (op, "")


def work(kernel: Kernel) -> Work:
    """The work of a kernel named ``family_precision``.

    Everything is moved once, in the kernel's precision; a reformat goes between its precision and fp16.
    """
    family, precision = split_op(kernel.op)
    size = BYTES[precision]
    if family == "reformat":
        return Work(0.0, 0.0, float(kernel.in_elements * (size + BYTES["fp16"])))
    moved = float(size * (kernel.in_elements + kernel.out_elements + kernel.weight_elements))
    if family == DEPTHWISE_FAMILY:
        return Work(0.0, float(kernel.macs), moved)
    return Work(float(kernel.macs), 0.0, moved)


def join_times(join: Join, compute: Vector, memory: Vector) -> Vector:
    """Kernels' times without the overhead, from their times of compute and of memory (shapes alike)."""
    if join == "sum":
        return compute + memory
    return np.hypot(compute, memory) if join == "hypot" else np.maximum(compute, memory)


@dataclass(frozen=True)
class RooflineModel:
    """A GPU as a few rates.

    ``overhead_us`` per kernel; ``bandwidth_gb_s`` in 10⁹ bytes and ``tensor_gmac_s``, ``depthwise_gmac_s`` in
    10⁹ multiply-accumulates a second, as reached and not as printed on the box, for fp16. ``int8_speedup``: how much
    faster the tensor cores are in int8, from the datasheet; depthwise convolutions gain nothing but the smaller
    bytes. ``families``: the kinds of kernels in the networks that it was fitted to; others are refused.

    ``relative_std`` is the error of a prediction in fp16 (0.1 = 10 %); ``int8_relative_std`` comes on top for the time
    spent in int8 kernels, since none was measured.

    Raises:
        TargetError: a rate is not positive, or an error negative.
    """

    join: Join
    overhead_us: float
    bandwidth_gb_s: float
    tensor_gmac_s: float
    depthwise_gmac_s: float
    int8_speedup: float
    relative_std: float
    int8_relative_std: float
    families: tuple[str, ...]
    held_out: HeldOutError | None

    def __post_init__(self) -> None:
        if self.join not in get_args(Join):
            raise TargetError(f"a roofline's join must be one of {', '.join(get_args(Join))}; got {self.join!r}")
        for name in ("overhead_us", "bandwidth_gb_s", "tensor_gmac_s", "depthwise_gmac_s", "int8_speedup"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0.0):
                raise TargetError(f"a roofline's {name} must be positive and finite; got {value}")
        for name in ("relative_std", "int8_relative_std"):
            if not getattr(self, name) >= 0.0:
                raise TargetError(f"a roofline's {name} must not be negative; got {getattr(self, name)}")

    @property
    def source(self) -> Source:
        """Where its milliseconds come from. A prediction with an int8 kernel says ``datasheet`` instead."""
        return "fitted"

    def covers(self, kernel: Kernel) -> bool:
        family, precision = split_op(kernel.op)
        return bool(precision) and family in self.families

    def kernel_times_ms(self, kernels: Sequence[Kernel]) -> Vector:
        """The time of each of some kernels, all of which the model covers."""
        done = [work(kernel) for kernel in kernels]
        speedup = np.array([self.int8_speedup if split_op(kernel.op)[1] == "int8" else 1.0 for kernel in kernels])
        compute_us = np.array([one.tensor_macs for one in done]) / (self.tensor_gmac_s * speedup * 1e3)
        compute_us += np.array([one.depthwise_macs for one in done]) / (self.depthwise_gmac_s * 1e3)
        memory_us = np.array([one.moved_bytes for one in done]) / (self.bandwidth_gb_s * 1e3)
        return (self.overhead_us + join_times(self.join, compute_us, memory_us)) / 1e3

    def predict(self, kernels: Sequence[Kernel]) -> Prediction:
        """The latency of a network.

        The errors of one network's kernels are taken to be alike, so that ``std_ms`` is a share of the latency.

        Raises:
            UncoveredKernelError: a kernel of a kind that the model has no numbers for; names the layers.
        """
        unknown = [kernel for kernel in kernels if not self.covers(kernel)]
        if unknown:
            layers = tuple(dict.fromkeys(source for kernel in unknown for source in kernel.sources))
            raise UncoveredKernelError(
                f"the latency model knows {', '.join(self.families)} and was given "
                f"{', '.join(sorted({kernel.op for kernel in unknown}))} (needed by {', '.join(layers)}); "
                "replace these operations, or choose another target",
                layers,
            )
        times = tuple(map(KernelTime, kernels, self.kernel_times_ms(kernels).tolist()))
        latency_ms = math.fsum(time.latency_ms for time in times)
        int8_ms = math.fsum(time.latency_ms for time in times if split_op(time.kernel.op)[1] == "int8")
        std_ms = math.hypot(latency_ms * self.relative_std, int8_ms * self.int8_relative_std)
        return Prediction(latency_ms, std_ms, "datasheet" if int8_ms > 0.0 else self.source, times)

    def to_json(self) -> str:
        """JSON that :meth:`from_json` reads back to an equal model."""
        return json.dumps({"model": "roofline", **asdict(self)}, indent=2)

    @staticmethod
    def from_json(text: str) -> RooflineModel:
        """The model written by :meth:`to_json`.

        Raises:
            TargetError: the text is not such a model, or a number in it is outside its range.
        """
        try:
            document = json.loads(text)
            if document.pop("model") != "roofline":
                raise ValueError("it is another model")
            held_out = document.pop("held_out")
            return RooflineModel(
                **{**document, "families": tuple(document["families"])},
                held_out=None if held_out is None else HeldOutError(**held_out),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            names = ", ".join(field.name for field in fields(RooflineModel))
            raise TargetError(
                f"a roofline must be the JSON that RooflineModel.to_json writes ({names}); got {text[:60]!r} ({error})"
            ) from error
