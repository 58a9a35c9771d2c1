"""torch packages in a process of their own: what that process keeps and tells, its end with this one, and the kernels that are
foreseen of a package, held against what torch executes. On a GPU the same tests run where there is one."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from autocomp.compress.quantize import Floats
from autocomp.compress.structure import restructure
from autocomp.errors import MeasurementError
from autocomp.hardware.kernels import Kernel
from autocomp.hardware.lowering_torch import lower
from autocomp.hardware.runtimes import torch_package
from autocomp.hardware.runtimes.runtime import cpu_runtime, reference_run
from autocomp.hardware.runtimes.torch_package import TorchPackages
from autocomp.hardware.timing import TimesItself, TimingSettings, measure
from autocomp.plan import Format, LayerPlan, Plan
from tests.export.test_to_torch import in_float8, numerics, some, two_in_four, written
from tests.hardware.packages import difference_package, linear_package
from tests.hardware.test_onnxruntime import weights
from tests.networks import eight_bits, inputs, prepared, random_plan

ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")
CPU = TorchPackages("cpu")

#: Whatever is measured counts as settled.
ANYTHING = TimingSettings(
    repeats=2, least_rounds=2, tolerance=1e9, reference_tolerance=1e9, max_rounds=2, patience_s=0, max_round_ms=5
)


def test_a_file_times_itself_in_its_own_process() -> None:
    run = CPU.load(linear_package(), 1).bound(weights(3, 6))
    assert isinstance(run, TimesItself)
    seconds = run.block(warmup=1, calls=2, samples=4)
    assert len(seconds) == 4
    assert all(second > 0 for second in seconds)


def test_files_are_timed_beside_the_reference() -> None:
    files = {"one": linear_package(), "other": linear_package(3)}
    candidates = {name: lambda file=file: CPU.load(file, 1).bound(weights(3, 6)) for name, file in files.items()}
    timings = measure(candidates, ANYTHING, reference=reference_run(CPU, 1))
    assert all(timing.settled and timing.latency_ms > 0 and timing.reference_ms > 0 for timing in timings.values())


def test_what_nobody_holds_is_forgotten() -> None:
    kept, dropped = CPU.load(linear_package(), 1), CPU.load(linear_package(), 1)
    worker, number = dropped.worker, dropped.number
    del dropped
    gc.collect()
    assert number in worker.unheld
    kept.run(weights(1, 6))
    assert not worker.unheld
    with pytest.raises(MeasurementError, match=f"it says: {number}"):  # a number that it does not know
        torch_package.FileInWorker(worker, number, ("x",), ((None, 6),), ("float32",)).run(weights(1, 6))


@pytest.mark.slow
def test_a_process_that_was_killed_is_told_and_begun_anew() -> None:
    file = TorchPackages("cpu").load(difference_package(), 3)  # with three threads: a process that no other test has
    os.kill(file.worker._process.pid, signal.SIGKILL)
    with pytest.raises(MeasurementError, match="it ended with -9") as caught:
        file.run(weights(2, 3), weights(2, 3))
    assert "\n" not in str(caught.value)
    again = TorchPackages("cpu").load(difference_package(), 3)
    assert again.worker is not file.worker
    left, right = weights(2, 3, seed=0), weights(2, 3, seed=1)
    np.testing.assert_allclose(again.run(left, right)[0], left - right, rtol=1e-6)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_it_ends_with_the_process_that_began_it() -> None:
    code = """
import os, sys
from autocomp.hardware.runtimes.torch_package import TorchPackages
from tests.hardware.packages import linear_package
file = TorchPackages("cpu").load(linear_package(), 1)
print(file.worker._process.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    child = int(ran.stdout)
    for _ in range(300):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        with open(f"/proc/{child}/stat") as file:  # ended, and its new parent does not ask how
            if file.read().rpartition(")")[2].split()[0] == "Z":
                return
        time.sleep(0.1)
    pytest.fail(f"process {child} goes on")


Numbers = tuple[Any, ...]


def numbers(kernel: Kernel) -> Numbers:
    """All that the time of a kernel is told by, but its company."""
    return (
        *(kernel.op, kernel.macs, kernel.in_elements, kernel.out_elements, kernel.weight_elements),
        *(kernel.kernel_area, kernel.stride, kernel.groups, kernel.inner),
    )


def kernels(
    network: str, plan: Plan, floats: Floats, batch: int, sparse: bool = False
) -> tuple[Counter[Numbers], Counter[Numbers]]:
    """Those that are foreseen of a package, and those that torch executes."""
    used = numerics(floats, sparse)
    structure = restructure(prepared(network).inventory, plan, used)
    foreseen = lower(structure, batch, floats, used.symmetric_activations)
    arrays = [tensor.numpy() for tensor in inputs(network, batch)]
    executed = CPU.kernel_samples(written(network, plan, floats, sparse)[1], arrays, threads=1, runs=1)
    return Counter(map(numbers, foreseen)), Counter(numbers(sample.kernel) for sample in executed)


@pytest.mark.parametrize("network", some("plain"))
@pytest.mark.parametrize("floats", ["fp16", pytest.param("fp32", marks=pytest.mark.slow)])
def test_an_untouched_networks_kernels_are_foreseen(network: str, floats: Floats) -> None:
    foreseen, executed = kernels(network, Plan(), floats, batch=3)
    assert foreseen == executed


@pytest.mark.parametrize("network", some("plain", "mlp"))
@pytest.mark.parametrize("batch", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_the_kernels_of_eight_bits_are_foreseen(network: str, batch: int) -> None:
    foreseen, executed = kernels(network, eight_bits(network), "fp16", batch)
    if network == "packed":  # its attention's results are put in order a step earlier than the rules say
        foreseen = Counter({key: count for key, count in foreseen.items() if key[0] != "copy_int8"})
        executed = Counter({key: count for key, count in executed.items() if key[0] != "copy_int8"})
    assert foreseen == executed


@pytest.mark.parametrize("network", some("plain"))
def test_the_kernels_of_any_plan_that_is_offered_are_foreseen(network: str) -> None:
    plan = random_plan(prepared(network).inventory, 1)
    # Grids of the moment are never offered for torch, and computed by the way.
    static = Plan(
        {
            name: LayerPlan(one.sparsity, one.rank, None if one.format and one.format.dynamic else one.format)
            for name, one in plan.layers.items()
        },
        plan.dropped_blocks,
    )
    foreseen, executed = kernels(network, static, "fp32", batch=2)
    if network == "packed":
        foreseen = Counter({key: count for key, count in foreseen.items() if key[0] != "copy_int8"})
        executed = Counter({key: count for key, count in executed.items() if key[0] != "copy_int8"})
    assert foreseen == executed


@pytest.mark.parametrize("network", ["mlp", pytest.param("encoder", marks=pytest.mark.slow)])
def test_the_kernels_of_floats_of_eight_bits_are_foreseen(network: str) -> None:
    foreseen, executed = kernels(network, in_float8(network), "fp16", batch=3)
    assert foreseen == executed
    assert any(key[0] == "gemm_fp8" for key in foreseen)


@pytest.mark.parametrize("network", some("mlp", "encoder"))
@pytest.mark.parametrize("batch", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_the_kernels_of_products_without_zeros_are_foreseen(network: str, batch: int) -> None:
    foreseen, executed = kernels(network, two_in_four(network), "fp16", batch, sparse=True)
    if network == "packed":
        foreseen = Counter({key: count for key, count in foreseen.items() if key[0] != "copy_fp16"})
        executed = Counter({key: count for key, count in executed.items() if key[0] != "copy_fp16"})
    assert foreseen == executed
    if network != "inception":  # whose linear has a row that is no multiple of four
        assert any(key[0] == "sparse_gemm_fp16" for key in foreseen)


def test_an_operation_that_no_rule_knows_keeps_its_name() -> None:
    class Odd(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.erfinv(x) + 1

    from tests.hardware.packages import written as package_of

    found = CPU.kernel_samples(package_of(Odd(), (2, 3)), [np.zeros((2, 3), np.float32)], threads=1, runs=1)
    assert [sample.kernel.op for sample in found] == ["erfinv_fp32", "elementwise_fp32"]


def test_products_of_integers_are_counted_as_they_are_filled_up() -> None:
    """Rows, depth and columns are those of the filled-up product."""
    plan = Plan({layer.name: LayerPlan(format=Format(8)) for layer in prepared("mlp").inventory.layers})
    structure = restructure(prepared("mlp").inventory, plan, numerics())
    products = [kernel for kernel in lower(structure, 1, "fp16", True) if kernel.op == "gemm_int8"]
    assert all(kernel.weight_elements % 64 == 0 for kernel in products)
    assert all(kernel.gemm_shape[0] == 17 for kernel in products)


@ON_GPU
@pytest.mark.parametrize("floats", ["fp16", "bf16"])
@pytest.mark.parametrize("batch", [1, 8, 64])
def test_a_gpu_computes_what_the_cpu_computes(floats: Floats, batch: int) -> None:
    sparse = torch.cuda.get_device_capability()[0] == 8
    for plan in (Plan(), eight_bits("plain"), two_in_four("plain")):
        _, package = written("plain", plan, floats, sparse)
        arrays = [tensor.numpy() for tensor in inputs("plain", batch)]
        ours, theirs = (cpu_runtime(name).load(package, 1).run(*arrays)[0] for name in ("torch-cpu", "torch-cuda"))
        assert np.abs(ours - theirs).max() / np.abs(ours).max() < 0.1


@ON_GPU
def test_a_gpu_replays_a_captured_graph_and_tells_its_kernels() -> None:
    _, package = written("plain", eight_bits("plain"), "fp16")
    arrays = [tensor.numpy() for tensor in inputs("plain", 8)]
    runtime = TorchPackages("cuda")
    assert min(runtime.load(package, 1).bound(*arrays).block(3, 10, 5)) > 0
    on_gpu = runtime.kernel_samples(package, arrays, 1, 3)
    on_cpu = CPU.kernel_samples(package, arrays, 1, 1)
    assert [numbers(sample.kernel) for sample in on_gpu] == [numbers(sample.kernel) for sample in on_cpu]
    assert sum(sample.time_us for sample in on_gpu) > 0
