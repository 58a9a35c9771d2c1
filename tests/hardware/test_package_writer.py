"""The networks of a calibration as torch packages: the same families as in ONNX, in the form of exported ones; and a small real
calibration of torch on the CPU. Nothing is said of speed."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from autocomp.hardware import calibrate as module
from autocomp.hardware import fit as fitting
from autocomp.hardware import gains
from autocomp.hardware.calibrate import calibrate
from autocomp.hardware.experiment import FAMILIES, FILES_PER_NETWORK, Packages, family_of, network_files
from autocomp.hardware.fingerprint import this_machine
from autocomp.hardware.gains import CHAINS, ways_of
from autocomp.hardware.latency import HeldOutError
from autocomp.hardware.measurements import read_measurements
from autocomp.hardware.runtimes.torch_package import TorchPackages
from autocomp.hardware.timing import TimingSettings
from autocomp.hardware.torch_kernels import FAMILIES as KERNEL_FAMILIES
from tests.networks import thorough

CPU = TorchPackages("cpu")
PACKAGES = Packages("fp32", float8=True)
IN_HALVES = Packages("fp16", sparse=True)
PERCEPTRON = FAMILIES.index("perceptron")
KNOWN = {*KERNEL_FAMILIES.values(), "depthwise", "grouped_conv"}


def family_of_kernel(op: str) -> str:
    return op if op in KNOWN else op.rpartition("_")[0]


@pytest.mark.exhaustive
def test_files_of_a_network_differ_and_are_always_the_same() -> None:
    group = network_files(0, PERCEPTRON, rounds_at_run_time=False, packages=PACKAGES)
    assert len({one.architecture for one in group}) == 1
    assert len({one.model for one in group}) == FILES_PER_NETWORK
    again = network_files(0, PERCEPTRON, rounds_at_run_time=False, packages=PACKAGES)
    assert [one.model for one in again] == [one.model for one in group]
    for one in group:
        (result,) = CPU.load(one.model, 1).run(one.batch_of(3))
        assert result.shape[0] == 3
        assert np.isfinite(result).all()
        assert np.abs(result).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", thorough([FAMILIES.index(family) for family in dict.fromkeys(FAMILIES)], {PERCEPTRON}), ids=family_of
)
def test_every_family_runs_in_kernels_that_lowering_knows(number: int) -> None:
    for one in network_files(0, number, rounds_at_run_time=False, packages=PACKAGES)[::3]:
        (result,) = CPU.load(one.model, 1).run(one.batch_of(2))
        assert np.isfinite(result).all()
        for sample in CPU.kernel_samples(one.model, [one.example], 1, 1):
            assert family_of_kernel(sample.kernel.op) in KNOWN


@pytest.mark.parametrize("how", ["a8", "a32", "f8", "2:4", "rank"])
def test_a_chain_runs_in_every_way(how: gains.Way) -> None:
    chain = next(one for one in CHAINS if one.work == "linear")
    file = gains._file(chain, how, narrow_products=False, packages=PACKAGES)
    (result,) = CPU.load(file, 1).run(gains._input(chain, 2))
    assert result.shape == (2, 512)
    assert np.isfinite(result).all()


@pytest.mark.parametrize("work", ["linear", "sequence"])
def test_a_chain_with_two_zeros_in_four_does_not_multiply_them(work: str) -> None:
    chain = next(one for one in CHAINS if one.work == work)
    files = {how: gains._file(chain, how, narrow_products=False, packages=IN_HALVES) for how in (None, "2:4")}
    arrays = [gains._input(chain, 2)]
    macs = {
        how: [one.kernel.macs for one in CPU.kernel_samples(file, arrays, 1, 1) if "gemm" in one.kernel.op]
        for how, file in files.items()
    }
    assert len(macs["2:4"]) == len(macs[None]) == gains.LAYERS
    fullest = 8 / 2 if work == "linear" else 1  # rows are filled up to whole multiples of eight
    assert [2 * one for one in macs["2:4"]] == [fullest * one for one in macs[None]]
    (result,) = CPU.load(files["2:4"], 1).run(*arrays)
    assert np.isfinite(result).all()


def test_networks_of_a_calibration_have_products_with_zeros_where_these_are_not_multiplied() -> None:
    def ops(packages: Packages) -> set[str]:
        files = network_files(0, FAMILIES.index("encoder"), rounds_at_run_time=False, packages=packages)
        return {sample.kernel.op for one in files for sample in CPU.kernel_samples(one.model, [one.example], 1, 1)}

    assert "sparse_gemm_fp16" in ops(IN_HALVES)
    assert "sparse_gemm_fp16" not in ops(Packages("fp16"))


def test_torch_rounds_on_no_grid_of_the_moment() -> None:
    assert "d8" not in {how for ways in ways_of(PACKAGES).values() for how in ways}
    assert "d8" in ways_of(None)["sequence"]


@pytest.mark.exhaustive
def test_a_small_calibration_reads_back_and_predicts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By the very code that calibrates a GPU: what differs there is the device."""
    anything = TimingSettings(
        repeats=2, least_rounds=2, tolerance=1e9, reference_tolerance=1e9, max_rounds=2, patience_s=0, max_round_ms=5
    )
    for where in (module, gains):
        monkeypatch.setattr(where, "SETTINGS", anything)
    monkeypatch.setattr(gains, "CHAINS", [one for one in CHAINS if one.work == "linear"][:1])
    monkeypatch.setattr(module, "PROFILE_RUNS", 2)
    monkeypatch.setattr(fitting, "FEWEST_NETWORKS", FILES_PER_NETWORK)
    monkeypatch.setattr(fitting, "DISTURBED", 1e9)
    monkeypatch.setattr(fitting, "QUIET", 1e9)
    monkeypatch.setattr(module, "QUIET", 1e9)
    monkeypatch.setattr(
        fitting, "_held_out", lambda networks, _, note: HeldOutError(0.1, 0.1, 1, 1, len(networks), note)
    )
    clock = itertools.count()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    found = calibrate(tmp_path / "mine", 1.5, 1, 1, this_machine("torch-cpu"), packages=PACKAGES)
    assert found.memory is None
    assert [network.name for network in found.networks] == [f"random-0-{n}" for n in range(FILES_PER_NETWORK)]
    assert read_measurements(tmp_path / "mine" / "measurements.csv").networks == found.networks
    assert {(gain.work, gain.way) for gain in found.gains} == {("linear", how) for how in ways_of(PACKAGES)["linear"]}
    for network in found.networks:
        if all(map(found.model.covers, network.kernels)):
            assert found.model.predict(network.kernels).latency_ms > 0
