"""A target made by hand: its milliseconds are arithmetic, so that searches on it are quick and the same everywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

from autocomp.compress.quantize import DEFAULT_NUMERICS
from autocomp.errors import UncoveredKernelError
from autocomp.formats import WORKS
from autocomp.hardware import lowering
from autocomp.hardware.kernels import Kernel
from autocomp.hardware.latency import HeldOutError, KernelTime, Prediction
from autocomp.hardware.target import Offer, Target
from autocomp.run import Request
from autocomp.search import flow
from autocomp.search.begin import Setup
from autocomp.task import Task
from autocomp.trial import Source
from tests import small_task

#: All that lowering knows.
OPS = frozenset(
    {"conv_nchwc", "conv", "qlinear_conv", "gemm", "qgemm", "add", "qlinear_add", "activation", "quantize"}
    | {"dequantize", "transpose", "transpose_integer", "reorder_input", "reorder_output", "reshape"}
    | {"pool", "pool_nchwc", "pool_integer", "pool_nhwc", "global_pool", "global_pool_nhwc"}
)
HELD_OUT = HeldOutError(0.05, 0.04, 0.9, 1.0, 12, "made up")
REQUEST = Request(
    task="small",
    target="made-up",
    space="default",
    sampler="auto",
    artifact="onnx-packed",
    threads=1,
    batch=1,
    seed=3,
    trials=8,
)


@dataclass(frozen=True)
class ArithmeticLatency:
    """A microsecond a kernel, and the work at one rate, four times that in integers."""

    ops: frozenset[str] = OPS
    held_out: HeldOutError | None = HELD_OUT

    @property
    def source(self) -> Source:
        return "fitted"

    def covers(self, kernel: Kernel) -> bool:
        return kernel.op in self.ops

    def predict(self, kernels: Sequence[Kernel]) -> Prediction:
        unknown = [kernel for kernel in kernels if not self.covers(kernel)]
        if unknown:
            layers = tuple(source for kernel in unknown for source in kernel.sources)
            raise UncoveredKernelError(f"never calibrated on {unknown[0].op}", layers)
        times = [
            1 + kernel.macs / (4000 if kernel.op.startswith("q") else 1000) + kernel.in_elements / 4000
            for kernel in kernels
        ]
        total_ms = math.fsum(times) / 1e3
        shares = tuple(KernelTime(kernel, time / 1e3) for kernel, time in zip(kernels, times, strict=True))
        return Prediction(total_ms, 0.05 * total_ms, self.source, shares)


def made_target(ops: frozenset[str] = OPS) -> Target:
    return Target(
        name="made-up",
        device="a device made up for tests",
        runtime="onnxruntime",
        runtime_version="",
        artifact="onnx-packed",
        threads=1,
        batch=1,
        clocks="none",
        offer=Offer((8, 4, 2), ("channel", "unstructured"), ranks=True, activations=dict.fromkeys(WORKS, ("a8",))),
        numerics=DEFAULT_NUMERICS,
        model=ArithmeticLatency(ops),
        memory=None,
        lower=partial(lowering.lower, batch=1, block=16),
        reachable=False,
        note="made up",
        profile_hash="made-up",
    )


@cache
def small_setup(**changed: object) -> Setup:
    """The small task on the made-up target, with :data:`REQUEST` or changes of it."""
    return with_task(small_task.task(), **changed)


def with_task(task: Task, **changed: object) -> Setup:
    return flow.set_up(replace(REQUEST, **changed), task, made_target())  # type: ignore[arg-type]
