"""A latency model of a few physical numbers, for a GPU of which only whole networks' latencies are known.

A kernel takes a fixed overhead, and then about as long as the longer of computing and moving its bytes takes (the roofline
of Williams, Waterman and Patterson, 2009). What one GPU reaches are its :class:`Rates`; how kernels use a GPU, whichever it
is, are the :class:`Habits` of a runtime, which several boards' latencies tell together. It extrapolates sanely where a
table of measurements cannot, and says with its error bar that it knows no kernel closely.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
import numpy.typing as npt

from autocomp.errors import TargetError
from autocomp.hardware.kernels import Kernel
from autocomp.hardware.latency import HeldOutError, KernelTime, Prediction, refuse
from autocomp.trial import Source

Vector = npt.NDArray[np.float64]

BYTES = {"fp32": 4, "fp16": 2, "int8": 1}

#: Computes channel by channel, with the ordinary cores; the others that compute have the tensor cores, where there are.
DEPTHWISE_FAMILY = "depthwise"
#: Moves data, computes nothing.
COPIES = frozenset({"copy", "reformat", "softmax", "norm"})


def split_op(op: str) -> tuple[str, str]:
    """``conv_int8`` → (``conv``, ``int8``); the precision is empty where the name ends in none."""
    family, _, precision = op.rpartition("_")
    return (family, precision) if precision in BYTES else (op, "")


def _check_positive(what: str, one: object, names: Sequence[str]) -> None:
    for name in names:
        value = getattr(one, name)
        if not (math.isfinite(value) and value > 0.0):
            raise TargetError(f"{what} {name} must be positive and finite; got {value}")


@dataclass(frozen=True)
class Rates:
    """What one GPU reaches, not what is printed on its box.

    ``overhead_us`` per kernel; ``bandwidth_gb_s`` in 10⁹ bytes and ``tensor_gmac_s``, ``depthwise_gmac_s`` in 10⁹
    multiply-accumulates a second, in fp16. Convolutions count as they are written: one that is computed with fewer
    multiplications (Winograd) reaches more than the GPU has. ``int8_speedup``: how much faster products are in int8; None
    where the GPU has none. Channels are computed in multiples of ``channels``, four times as many in int8.

    Raises:
        TargetError: a rate is not positive.
    """

    overhead_us: float
    bandwidth_gb_s: float
    tensor_gmac_s: float
    depthwise_gmac_s: float
    int8_speedup: float | None
    multiprocessors: int
    channels: int

    def __post_init__(self) -> None:
        names = [one.name for one in fields(Rates) if one.name != "int8_speedup" or self.int8_speedup is not None]
        _check_positive("a GPU's", self, names)


@dataclass(frozen=True)
class Habits:
    """How a runtime's kernels use a GPU.

    ``half_outputs``: results per multiprocessor with which products reach half of their rate; ``half_depth``: products per
    result with which they do. ``weight_bandwidth`` and ``elementwise_bandwidth``: the share of the bandwidth at which
    weights are read, and pointwise kernels read and write. ``pool_overheads`` and ``copy_overheads``: what such a kernel
    takes at least, in overheads of a product. ``sharpness``: the exponent p of the p-norm in which the times of compute and
    memory join (1 their sum, ∞ the longer one).

    Raises:
        TargetError: a number is not positive.
    """

    half_outputs: float
    half_depth: float
    weight_bandwidth: float
    elementwise_bandwidth: float
    pool_overheads: float
    copy_overheads: float
    sharpness: float

    def __post_init__(self) -> None:
        _check_positive("kernels'", self, [one.name for one in fields(Habits)])


@dataclass(frozen=True)
class Work:
    """What some kernels do, one value each: MACs on whole multiples of channels, MACs of depthwise convolutions, bytes of
    activations and of weights, results, MACs per result; whether products are of integers, and what kind of kernel it is."""

    tensor_macs: Vector
    depthwise_macs: Vector
    activation_bytes: Vector
    weight_bytes: Vector
    results: Vector
    depth: Vector
    integers: Vector
    elementwise: Vector
    pools: Vector
    copies: Vector


def work(kernels: Sequence[Kernel], channels: int) -> Work:
    """The work of kernels named ``family_precision``, where channels are computed in multiples of ``channels``.

    Everything is moved once, in the kernel's precision; a reformat goes between its precision and fp16.
    """
    return Work(*np.array([_work_of_one(kernel, channels) for kernel in kernels], dtype=float).reshape(-1, 10).T)


def _work_of_one(kernel: Kernel, channels: int) -> tuple[float, ...]:
    family, precision = split_op(kernel.op)
    size = BYTES[precision]
    written = BYTES["fp16"] if family == "reformat" else size
    depthwise = family == DEPTHWISE_FAMILY
    multiple = 4 * channels if precision == "int8" else channels
    return (
        0.0 if depthwise else kernel.macs * _padding(kernel, multiple),
        float(kernel.macs) if depthwise else 0.0,
        float(kernel.in_elements * size + kernel.out_elements * written),
        float(kernel.weight_elements * size),
        float(max(kernel.out_elements, 1)),
        max(kernel.macs / max(kernel.out_elements, 1), 1.0),
        float(precision == "int8"),
        float(family == "elementwise"),
        float(family == "pool"),
        float(family in COPIES),
    )


def _padding(kernel: Kernel, multiple: int) -> float:
    """How many times as much a product computes for its channels are filled up. An image's few colours are not."""
    if kernel.weight_elements == 0 or kernel.macs == 0:
        return 1.0
    _, columns, depth = kernel.gemm_shape
    read = depth / kernel.kernel_area
    return _filled(columns, multiple) * (_filled(read, multiple) if read > 4 else 1.0)


def _filled(channels: float, multiple: int) -> float:
    return math.ceil(round(channels, 6) / multiple) * multiple / channels


def times_us(done: Work, rates: Rates, habits: Habits) -> Vector:
    """What each kernel takes."""
    few = 1.0 + habits.half_outputs * rates.multiprocessors / done.results
    shallow = 1.0 + habits.half_depth / done.depth
    faster = np.where(done.integers > 0, rates.int8_speedup or 1.0, 1.0)
    compute = done.tensor_macs * few * shallow / (rates.tensor_gmac_s * 1e3 * faster)
    compute += done.depthwise_macs / (rates.depthwise_gmac_s * 1e3)
    share = np.where(done.elementwise > 0, habits.elementwise_bandwidth, 1.0)
    memory = (done.activation_bytes / share + done.weight_bytes / habits.weight_bandwidth) / (
        rates.bandwidth_gb_s * 1e3
    )
    overheads = np.where(done.pools > 0, habits.pool_overheads, np.where(done.copies > 0, habits.copy_overheads, 1.0))
    longer, shorter = np.maximum(compute, memory), np.minimum(compute, memory)
    # The p-norm, the longer taken out so that nothing overflows.
    ratio = np.divide(shorter, longer, out=np.zeros_like(longer), where=longer > 0)
    joined: Vector = longer * (1.0 + ratio**habits.sharpness) ** (1.0 / habits.sharpness)
    return rates.overhead_us * overheads + joined


@dataclass(frozen=True)
class RooflineModel:
    """A GPU as a few rates. ``families``: the kinds of kernels in the networks that it was fitted to; others are refused.

    ``relative_std`` is the error of a prediction in fp16 (0.1 = 10 %); ``int8_relative_std`` comes on top for the time spent
    in int8 kernels, whose gain is the datasheet's. ``source`` says where its milliseconds come from; a prediction with an
    int8 kernel says ``datasheet`` all the same.

    Raises:
        TargetError: an error is negative.
    """

    source: Source
    rates: Rates
    habits: Habits
    relative_std: float
    int8_relative_std: float
    families: tuple[str, ...]
    held_out: HeldOutError | None

    def __post_init__(self) -> None:
        for name in ("relative_std", "int8_relative_std"):
            if not getattr(self, name) >= 0.0:
                raise TargetError(f"a roofline's {name} must not be negative; got {getattr(self, name)}")

    def covers(self, kernel: Kernel) -> bool:
        family, precision = split_op(kernel.op)
        computed = precision != "int8" or self.rates.int8_speedup is not None
        return bool(precision) and family in self.families and computed

    def kernel_times_ms(self, kernels: Sequence[Kernel]) -> Vector:
        """The time of each of some kernels, all of which the model covers."""
        return times_us(work(kernels, self.rates.channels), self.rates, self.habits) / 1e3

    def predict(self, kernels: Sequence[Kernel]) -> Prediction:
        """The latency of a network.

        The errors of one network's kernels are taken to be alike, so that ``std_ms`` is a share of the latency.

        Raises:
            UncoveredKernelError: a kernel of a kind that the model has no numbers for; names the layers.
        """
        unknown = [kernel for kernel in kernels if not self.covers(kernel)]
        integers = "" if self.rates.int8_speedup is not None else ", none of them in int8,"
        knows = f"the latency model knows {', '.join(self.families)}{integers} and was given"
        refuse(unknown, knows, "replace these operations, or choose another target")
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
                **{
                    **document,
                    "families": tuple(document["families"]),
                    "rates": Rates(**document["rates"]),
                    "habits": Habits(**document["habits"]),
                },
                held_out=HeldOutError.of_json(held_out),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            names = ", ".join(field.name for field in fields(RooflineModel))
            raise TargetError(
                f"a roofline must be the JSON that RooflineModel.to_json writes ({names}); got {text[:60]!r} ({error})"
            ) from error
