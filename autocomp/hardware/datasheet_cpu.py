"""A latency model of a few physical numbers, for a CPU of which nothing was measured with its runtime.

The roofline of Williams, Waterman and Patterson (2009), kernel by kernel: a fixed overhead, and then the longer of computing
and moving bytes. What another runtime reaches on such a board is taken for what this one does, so that all of it is called
``datasheet``; a calibration on the board replaces it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from autocomp.errors import TargetError
from autocomp.hardware.kernels import CURVED, Kernel
from autocomp.hardware.latency import HeldOutError, KernelTime, Prediction, refuse
from autocomp.trial import Source


@dataclass(frozen=True)
class CpuRates:
    """What a CPU reaches on so many threads: ``overhead_us`` per kernel; ``bandwidth_gb_s`` in 10⁹ bytes a second, and in
    10⁹ multiply-accumulates a second products of floats, products of 8-bit numbers, and depthwise convolutions.

    Raises:
        TargetError: a rate is not positive.
    """

    overhead_us: float
    bandwidth_gb_s: float
    float_gmac_s: float
    int8_gmac_s: float
    depthwise_gmac_s: float

    def __post_init__(self) -> None:
        for one in fields(CpuRates):
            value = getattr(self, one.name)
            if not (math.isfinite(value) and value > 0.0):
                raise TargetError(f"a CPU's {one.name} must be positive and finite; got {value}")


def in_integers(kernel: Kernel) -> bool:
    """Whether it computes with 8-bit numbers."""
    if kernel.op == "quick_gelu":
        return False
    return kernel.op.startswith("q") or "integer" in kernel.op or kernel.op == "dynamic_matmul"


def time_us(kernel: Kernel, rates: CpuRates, float_bytes: int = 4) -> float:
    """What a kernel takes; ``float_bytes`` is the size of a float in memory."""
    integers = in_integers(kernel)
    size = 1 if integers else float_bytes
    rate = rates.int8_gmac_s if integers else rates.float_gmac_s
    if "depthwise" in kernel.op:
        rate = min(rate, rates.depthwise_gmac_s)
    moved = size * (kernel.in_elements + kernel.out_elements + kernel.weight_elements)
    return rates.overhead_us + max(kernel.macs / (rate * 1e3), moved / (rates.bandwidth_gb_s * 1e3))


@dataclass(frozen=True)
class DatasheetCpu:
    """A CPU as a few rates. ``kinds``: the kernels that the runtime's rules know; others are refused. ``relative_std`` is
    the error of a prediction (0.1 = 10 %)."""

    rates: CpuRates
    kinds: tuple[str, ...]
    relative_std: float
    held_out: HeldOutError | None

    @property
    def source(self) -> Source:
        """Where its milliseconds come from."""
        return "datasheet"

    def covers(self, kernel: Kernel) -> bool:
        return kernel.op.replace(CURVED, "") in self.kinds

    def predict(self, kernels: Sequence[Kernel]) -> Prediction:
        """The latency of a network; the errors of its kernels are taken to be alike.

        Raises:
            UncoveredKernelError: a kernel of a kind that the rules do not know; names the layers.
        """
        unknown = [kernel for kernel in kernels if not self.covers(kernel)]
        refuse(unknown, "the latency model has no numbers for", "replace these operations, or choose another target")
        times = tuple(KernelTime(kernel, time_us(kernel, self.rates) / 1e3) for kernel in kernels)
        latency_ms = math.fsum(time.latency_ms for time in times)
        return Prediction(latency_ms, self.relative_std * latency_ms, self.source, times)

    def to_json(self) -> str:
        """JSON that :meth:`from_json` reads back to an equal model."""
        return json.dumps({"model": "datasheet_cpu", **asdict(self)}, indent=2)

    @staticmethod
    def from_json(text: str) -> DatasheetCpu:
        """The model written by :meth:`to_json`.

        Raises:
            TargetError: the text is not such a model, or a number in it is outside its range.
        """
        try:
            document = json.loads(text)
            if document["model"] != "datasheet_cpu":
                raise ValueError("it is another model")
            return DatasheetCpu(
                CpuRates(**document["rates"]),
                tuple(document["kinds"]),
                float(document["relative_std"]),
                HeldOutError.of_json(document["held_out"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise TargetError(
                f"a CPU's datasheet must be the JSON that DatasheetCpu.to_json writes; got {text[:60]!r} ({error})"
            ) from error
