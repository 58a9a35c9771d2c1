"""A latency model fitted to measurements of this machine's CPU: the sum of its kernels' times, and what a call costs.

Every kind of kernel has a trend, a non-negative sum of the work that it does (values moved, multiplications of whole
vector blocks, patches copied, …), so that it extrapolates as physics does; and a Gaussian process over what the trend
leaves, in logarithms. What they learn from are single kernels that the runtime's profiler timed in real files, their
times brought to what the whole file takes without the profiler (:mod:`autocomp.hardware.fit`).

The process is Rasmussen & Williams, "Gaussian Processes for Machine Learning" (2006), algorithm 2.1; the sum of kernels
is nn-Meter's (Zhang et al., MobiSys 2021).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property

import numpy as np
import numpy.typing as npt

from autocomp.changed import changed
from autocomp.errors import TargetError
from autocomp.hardware.kernels import FEATURES, Kernel, Shape, broader, in_company
from autocomp.hardware.latency import HeldOutError, KernelTime, Prediction, refuse
from autocomp.trial import Source

Vector = npt.NDArray[np.float64]

#: No kernel is quicker than this.
FASTEST_US = 0.2

#: A Gaussian process is cubic in its samples; more than this many say nothing new.
MAX_SAMPLES = 1200
#: An error bar is told by this many at most.
VARIANCE_SAMPLES = 300
#: Of a sample's kernel, what is written down.
SAMPLE_FIELDS = tuple(field.name for field in fields(Kernel) if field.name not in {"op", "sources"})
#: A linear over plain vectors, and the product of many rows that it is where tokens are flattened into these: beyond so many
#: times the rows that were seen of it. From few rows nothing tells what a multiplication takes, and what a weight.
WITH_MANY_ROWS, MORE_ROWS = {"gemm": "matmul", "qgemm": "matmul_integer"}, 4
#: The profiler counts in whole microseconds.
CLOCK_US = 0.4


@dataclass(frozen=True)
class KernelSample:
    """One kernel that was timed inside a file; ``count`` of the same shape were, and the time is their mean."""

    kernel: Kernel
    time_us: float
    count: int = 1


def timed_kernels(kernels: Iterable[Kernel], times_us: Iterable[float]) -> tuple[KernelSample, ...]:
    """The kernels of one profiled file, in company, with their times, the profiler's own cost included."""
    return tuple(
        KernelSample(kernel, max(FASTEST_US, time_us))
        for kernel, time_us in zip(in_company(kernels), times_us, strict=True)
    )


@dataclass(frozen=True)
class Distortion:
    """How a profile differs from what a file takes without it.

    A call costs ``per_call_us`` beside its kernels. The profiler adds ``own_us`` to every kernel of a kind: it writes
    down what the kernel read and wrote before it looks at the clock, so that this takes longer for kernels of many
    inputs. What is left is to be multiplied by ``usual``.
    """

    per_call_us: float
    usual: float
    own_us: Mapping[str, float]

    def in_context(self, samples: Sequence[KernelSample], latency_ms: float) -> list[KernelSample]:
        """A profiled file's kernels as they are without the profiler: in the proportions that it saw, with times that
        sum up to the file's."""
        clean = [self._without(sample) for sample in samples]
        left_us = max(latency_ms * 1e3 - self.per_call_us, 0.1 * latency_ms * 1e3)
        scale = left_us / math.fsum(sample.time_us for sample in clean)
        return [changed(sample, time_us=max(FASTEST_US, scale * sample.time_us)) for sample in clean]

    def alone(self, sample: KernelSample) -> KernelSample:
        """A kernel of a file whose latency is not known."""
        clean = self._without(sample)
        return changed(clean, time_us=max(FASTEST_US, self.usual * clean.time_us))

    def _without(self, sample: KernelSample) -> KernelSample:
        return changed(sample, time_us=max(FASTEST_US, sample.time_us - self.own_us.get(sample.kernel.op, 0.0)))


@dataclass(frozen=True)
class Hyperparameters:
    """Of one kind of kernel: microseconds per unit of each kind of work (see :data:`autocomp.hardware.kernels.WORK`);
    length scale per feature, signal and noise variance of what the trend leaves of the log time."""

    work_us: tuple[float, ...]
    length_scales: tuple[float, ...]
    signal: float
    noise: float


@dataclass(frozen=True)
class _Places:
    """Features in units of their length scales, a row a kernel, and the sum of every row's squares."""

    scaled: Vector
    squares: Vector


@dataclass(frozen=True)
class OpModel:
    """The Gaussian process of one kind of kernel, conditioned on its samples."""

    hyperparameters: Hyperparameters
    samples: tuple[KernelSample, ...]

    @cached_property
    def _mean(self) -> tuple[_Places, Vector]:
        """Where the samples lie, and the weights of the process."""
        places, covariance = self._conditioned(self.samples)
        kernels = [sample.kernel for sample in self.samples]
        rest = np.log([sample.time_us for sample in self.samples]) - trend(kernels, self.hyperparameters.work_us)
        return places, np.asarray(np.linalg.solve(covariance, rest), dtype=np.float64)

    @cached_property
    def _spread(self) -> tuple[_Places, Vector]:
        """Where some of the samples lie, and their inverse covariance. An error bar of fewer samples is the wider one, and
        had in a tenth of the time."""
        some = self.samples[:: math.ceil(len(self.samples) / VARIANCE_SAMPLES)]
        places, covariance = self._conditioned(some)
        return places, np.asarray(np.linalg.inv(covariance), dtype=np.float64)

    def _conditioned(self, samples: Sequence[KernelSample]) -> tuple[_Places, Vector]:
        """Where samples lie, and their covariance with its noise."""
        places = self._places([sample.kernel for sample in samples])
        counts = np.array([sample.count for sample in samples])
        noise = self.hyperparameters.noise / counts + clock_variance(samples, self.hyperparameters.work_us)
        return places, self._covariance(places, places) + np.diag(noise)

    def _places(self, kernels: Sequence[Kernel]) -> _Places:
        scaled = np.array([kernel.features() for kernel in kernels]) / np.array(self.hyperparameters.length_scales)
        return _Places(scaled, (scaled**2).sum(1))

    def _covariance(self, a: _Places, b: _Places) -> Vector:
        """Matérn's, with ν = 5/2: as smooth as physics is, but not smoother (ibid., equation 4.17)."""
        squares = a.squares[:, None] + b.squares[None] - 2 * a.scaled @ b.scaled.T
        distances = np.sqrt(5.0 * np.maximum(squares, 0.0))
        result: Vector = self.hyperparameters.signal * (1 + distances + distances**2 / 3) * np.exp(-distances)
        return result

    def predict(self, kernels: Sequence[Kernel]) -> tuple[Vector, Vector]:
        """Mean and standard deviation of the log time (µs) of kernels of this kind."""
        here, (places, weights), (some, inverse) = self._places(kernels), self._mean, self._spread
        mean: Vector = trend(kernels, self.hyperparameters.work_us) + self._covariance(here, places) @ weights
        near = self._covariance(here, some)
        variance = self.hyperparameters.signal - ((near @ inverse) * near).sum(axis=1)
        return mean, np.sqrt(np.maximum(variance, 0.0))


def trend(kernels: Sequence[Kernel], work_us: Sequence[float]) -> Vector:
    """The logarithm of the time (µs) that kernels' work accounts for."""
    times = np.array([kernel.work() for kernel in kernels]) @ np.array(work_us)
    logs: Vector = np.log(np.maximum(times, FASTEST_US))
    return logs


def clock_variance(samples: Sequence[KernelSample], work_us: Sequence[float]) -> Vector:
    """Of the samples' log times, from the coarseness of the profiler's clock: by what their work should take, since to trust
    the longer one of two that are off would be to be off as well."""
    expected_us = np.exp(trend([sample.kernel for sample in samples], work_us))
    variance: Vector = np.square(CLOCK_US / expected_us) / np.array([sample.count for sample in samples])
    return variance


@dataclass(frozen=True)
class FittedModel:
    """Kernel models, and how profiles differ from what files take. Where the reference workload takes other than
    ``reference_us``, files do so in proportion; None in a model of an earlier version."""

    ops: Mapping[str, OpModel]
    distortion: Distortion
    held_out: HeldOutError | None
    repeatability: float
    reference_us: float | None = None

    @property
    def source(self) -> Source:
        return "fitted"

    def covers(self, kernel: Kernel) -> bool:
        """Whether one of its kind was measured."""
        return self._kind(kernel) in self.ops

    def _kind(self, kernel: Kernel) -> str:
        """As it was calibrated; its own where nothing like it was. A product of many more rows than were seen of its kind is
        one of the kind that has many."""
        many = WITH_MANY_ROWS.get(kernel.op, "")
        if many in self.ops and kernel.op in self.ops and kernel.gemm_shape[0] > MORE_ROWS * self._most_rows[kernel.op]:
            return many
        kind: str | None = kernel.kind
        while kind is not None and kind not in self.ops:
            kind = broader(kind)
        return kind or kernel.kind

    def predict(self, kernels: Sequence[Kernel]) -> Prediction:
        """The latency of a network.

        ``std_ms`` joins the held-out error of whole networks with the kernel models' own uncertainty, which grows away
        from what was measured and is taken to be independent from kernel to kernel: what they have in common is in the
        held-out error already.

        Raises:
            UncoveredKernelError: a kind of kernel was never measured; names the layers.
        """
        times, stds = self._kernel_times(kernels)
        total_us = self.distortion.per_call_us + float(times.sum())
        relative = self.held_out.mean * math.sqrt(math.pi / 2) if self.held_out is not None else 0.0
        std_us = math.hypot(total_us * relative, float(np.sqrt(np.square(times * stds).sum())))
        shares = tuple(KernelTime(kernel, time / 1e3) for kernel, time in zip(kernels, times.tolist(), strict=True))
        return Prediction(total_us / 1e3, std_us / 1e3, self.source, shares)

    def _kernel_times(self, kernels: Sequence[Kernel]) -> tuple[Vector, Vector]:
        """Microseconds, and the standard deviation of their logarithm. Plans of one network have most kernels in
        common, so what was predicted once is remembered.

        Raises:
            UncoveredKernelError: a kind of kernel was never measured; names the layers.
        """
        known = self._known
        shapes = [kernel.shape for kernel in kernels]
        unknown = [
            kernel
            for shape, kernel in zip(shapes, kernels, strict=True)
            if shape not in known and not self.covers(kernel)
        ]
        remedy = "no calibration measures that: search the part of the network without it, or for another target"
        refuse(unknown, "the latency model was never calibrated on", remedy)
        new: dict[str, dict[Shape, Kernel]] = {}
        for shape, kernel in zip(shapes, kernels, strict=True):
            if shape not in known:
                new.setdefault(self._kind(kernel), {})[shape] = kernel
        for op, some in new.items():
            mean, std = self.ops[op].predict(tuple(some.values()))
            known.update(zip(some, zip(np.exp(mean).tolist(), std.tolist(), strict=True), strict=True))
        times, stds = np.array([known[shape] for shape in shapes]).reshape(-1, 2).T
        return times, stds

    @cached_property
    def _most_rows(self) -> dict[str, float]:
        """Of what was seen of each kind that has another with many rows."""
        return {
            op: max(sample.kernel.gemm_shape[0] for sample in self.ops[op].samples)
            for op in WITH_MANY_ROWS
            if op in self.ops
        }

    @cached_property
    def _known(self) -> dict[Shape, tuple[float, float]]:
        return {}

    def to_json(self) -> str:
        """JSON that :meth:`from_json` reads back to a model of the same predictions. It holds the samples, one a line,
        which a calibration has reduced its measurements to: to do so again at every start would take seconds."""
        return json.dumps(
            {
                "model": "fitted",
                "distortion": asdict(self.distortion),
                "held_out": None if self.held_out is None else asdict(self.held_out),
                "repeatability": self.repeatability,
                "reference_us": self.reference_us,
                "hyperparameters": {op: asdict(model.hyperparameters) for op, model in sorted(self.ops.items())},
                "sample": ",".join((*SAMPLE_FIELDS, "time_us", "count")),
                "samples": {
                    op: [_written(sample) for sample in model.samples] for op, model in sorted(self.ops.items())
                },
            },
            indent=1,
        )

    @staticmethod
    def from_json(text: str) -> FittedModel:
        """The model written by :meth:`to_json`.

        Raises:
            TargetError: it is of another version.
        """
        document = json.loads(text)
        if document.get("sample") != ",".join((*SAMPLE_FIELDS, "time_us", "count")) or any(
            len(entry["length_scales"]) != len(FEATURES) for entry in document["hyperparameters"].values()
        ):
            raise TargetError(
                f"a fitted latency model must hold samples of {len(SAMPLE_FIELDS)} numbers and a length for each of "
                f"{len(FEATURES)} features; this one is of another version; calibrate again"
            )
        ops = {
            op: OpModel(
                Hyperparameters(
                    tuple(entry["work_us"]), tuple(entry["length_scales"]), entry["signal"], entry["noise"]
                ),
                tuple(_read(op, line) for line in document["samples"][op]),
            )
            for op, entry in document["hyperparameters"].items()
        }
        return FittedModel(
            ops,
            Distortion(**document["distortion"]),
            HeldOutError.of_json(document["held_out"]),
            document["repeatability"],
            document.get("reference_us"),
        )


def _written(sample: KernelSample) -> str:
    cells = [int(getattr(sample.kernel, name)) for name in SAMPLE_FIELDS]
    return ",".join(map(str, (*cells, sample.time_us, sample.count)))


def _read(op: str, line: str) -> KernelSample:
    *cells, time_us, count = line.split(",")
    numbers = dict(zip(SAMPLE_FIELDS, map(int, cells), strict=True))
    kernel = Kernel(op.partition("/")[0], (), fused_add=bool(numbers.pop("fused_add")), **numbers)
    return KernelSample(kernel, float(time_us), int(count))


def samples_by_kind(samples: Iterable[KernelSample]) -> dict[str, list[KernelSample]]:
    """Kind of kernel → its samples, those of one shape as one; at most :data:`MAX_SAMPLES` of them, evenly taken."""
    twins: dict[Shape, list[KernelSample]] = {}
    for sample in samples:
        twins.setdefault(sample.kernel.shape, []).append(sample)
    # Only now by what the model sees of a kernel, which takes longer to tell.
    shapes: dict[tuple[object, ...], list[KernelSample]] = {}
    for same in twins.values():
        kernel = same[0].kernel
        shapes.setdefault((kernel.kind, *kernel.work(), *kernel.features()), []).extend(same)
    found: dict[str, list[KernelSample]] = {}
    for same in shapes.values():
        mean = math.exp(math.fsum(math.log(one.time_us) for one in same) / len(same))
        kernel = changed(same[0].kernel, sources=())
        found.setdefault(kernel.kind, []).append(KernelSample(kernel, mean, len(same)))
    return {op: many[:: max(1, math.ceil(len(many) / MAX_SAMPLES))] for op, many in found.items()}
