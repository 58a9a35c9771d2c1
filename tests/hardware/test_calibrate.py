"""A small real calibration: what it writes reads back, and an interrupted one goes on. Nothing is said of speed."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import onnx
import pytest

from autocomp.errors import MeasurementError
from autocomp.hardware import calibrate as module
from autocomp.hardware import fit as fitting
from autocomp.hardware import gains
from autocomp.hardware.calibrate import Calibration, calibrate
from autocomp.hardware.experiment import FAMILIES, FILES_PER_NETWORK, network_files
from autocomp.hardware.fingerprint import this_machine
from autocomp.hardware.fitted import KernelSample
from autocomp.hardware.latency import HeldOutError
from autocomp.hardware.measurements import Measurements, read_measurements
from autocomp.hardware.observed import kernel_of
from autocomp.hardware.runtimes.onnxruntime import load, profile
from autocomp.hardware.runtimes.runtime import Array, Files, LoadedFile, Runtime, batch_outputs, cpu_runtime
from autocomp.hardware.timing import TimingSettings

pytestmark = pytest.mark.slow

#: Whatever is measured counts as settled.
ANYTHING = TimingSettings(
    repeats=2, least_rounds=2, tolerance=1e9, reference_tolerance=1e9, max_rounds=2, patience_s=0, max_round_ms=5
)


@pytest.fixture(scope="module")
def patched() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SETTINGS", ANYTHING)
        patch.setattr(gains, "SETTINGS", ANYTHING)
        patch.setattr(module, "PROFILE_RUNS", 2)
        patch.setattr(fitting, "FEWEST_NETWORKS", FILES_PER_NETWORK)
        # On a busy machine two runs say little of how fast a file is; here nothing is asked of them.
        patch.setattr(fitting, "DISTURBED", 1e9)
        patch.setattr(fitting, "QUIET", 1e9)
        patch.setattr(module, "QUIET", 1e9)
        # One network is too few to hold some out; test_fit.py holds the error to account.
        patch.setattr(fitting, "_held_out", lambda networks, _, note: HeldOutError(0.1, 0.1, 1, 1, len(networks), note))
        yield patch


def run(patched: pytest.MonkeyPatch, folder: Path, networks: int) -> tuple[Calibration, list[str]]:
    """A calibration whose clock goes forward by a second a look, so that the budget is a number of networks."""
    notes: list[str] = []
    clock = itertools.count()
    with patched.context() as patch:
        patch.setattr(module, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
        found = calibrate(folder, networks + 0.5, 1, 1, this_machine(), progress=lambda share, note: notes.append(note))
    return found, notes


@pytest.fixture(scope="module")
def calibrated(patched: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Calibration]:
    folder = tmp_path_factory.mktemp("calibrated") / "cpu"
    found, notes = run(patched, folder, 1)
    assert notes[0].split(";")[0] == "4 files measured"
    assert notes[-1].startswith("fitting to 4 files")
    return folder, found


def test_the_measurements_read_back(calibrated: tuple[Path, Calibration]) -> None:
    folder, found = calibrated
    assert read_measurements(folder / "measurements.csv").networks == found.networks
    assert [network.name for network in found.networks] == [f"random-0-{n}" for n in range(FILES_PER_NETWORK)]
    assert found.dropped == 0
    for network in found.networks:
        assert network.latency_ms > 0
        assert network.kernels
        assert all(sample.time_us > 0 for sample in network.samples)


def test_kernels_of_other_files_are_profiled_alone(
    patched: pytest.MonkeyPatch, calibrated: tuple[Path, Calibration], tmp_path: Path
) -> None:
    folder, found = calibrated
    profiled = read_measurements(folder / "measurements.csv").profiled
    assert found.profiled == len(profiled) > 0
    assert all(sample.time_us > 0 for sample in profiled)
    assert any(sample.kernel.macs > 0 for sample in profiled)
    timed = {network.name for network in found.networks}
    assert not any(sample.kernel.sources[0] in timed for sample in profiled)
    shutil.copytree(folder, tmp_path / "cpu")
    run(patched, tmp_path / "cpu", 1)
    more = read_measurements(tmp_path / "cpu" / "measurements.csv").profiled
    assert more[: len(profiled)] == profiled
    first = {sample.kernel.sources for sample in profiled}
    assert all(sample.kernel.sources not in first for sample in more[len(profiled) :])  # other networks


@dataclass(frozen=True)
class WithoutAttention:
    """onnxruntime of a version that does not know the operator."""

    runtime: Runtime
    files: ClassVar[Files] = "onnx"

    def load(self, model: bytes | Path, threads: int) -> LoadedFile:
        self._check(model)
        return self.runtime.load(model, threads)

    def kernel_samples(
        self, model: bytes | Path, inputs: Sequence[Array], threads: int, runs: int
    ) -> tuple[KernelSample, ...]:
        self._check(model)
        return tuple(self.runtime.kernel_samples(model, inputs, threads, runs))

    @staticmethod
    def _check(model: bytes | Path) -> None:
        assert isinstance(model, bytes)
        if any(node.op_type == "Attention" for node in onnx.load_model_from_string(model).graph.node):
            raise MeasurementError("no kernel for Attention")


@pytest.mark.exhaustive
def test_networks_that_a_runtime_refuses_are_left_out(patched: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock, notes = itertools.count(), list[str]()
    with patched.context() as patch:
        patch.setattr(module, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
        found = calibrate(
            tmp_path / "old",
            6.5,
            1,
            1,
            this_machine(),
            progress=lambda share, note: notes.append(note),
            elsewhere=WithoutAttention(cpu_runtime("onnxruntime")),
        )
    assert found.networks
    assert "a network is left out, which the runtime refuses: no kernel for Attention" in notes


def test_the_model_predicts_what_it_was_fitted_to(calibrated: tuple[Path, Calibration]) -> None:
    _, found = calibrated
    for network in found.networks:  # of four files there are too few kernels of most kinds
        known = [kernel for kernel in network.kernels if found.model.covers(kernel)]
        assert known
        assert 0 < found.model.predict(known).latency_ms < 10 * network.latency_ms


def test_an_existing_one_is_continued_and_a_torn_network_left_out(
    patched: pytest.MonkeyPatch, calibrated: tuple[Path, Calibration], tmp_path: Path
) -> None:
    folder, whole = calibrated
    shutil.copytree(folder, tmp_path / "cpu")
    path = tmp_path / "cpu" / "measurements.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if ",profiled," not in line)[:-9])  # in the last network's last row
    kept = read_measurements(path).networks
    assert kept == whole.networks[:-1]
    again, _ = run(patched, tmp_path / "cpu", 1)
    names = [network.name for network in again.networks]
    assert again.networks[: len(kept)] == kept
    assert len(names) == len(set(names)) == len(kept) + FILES_PER_NETWORK
    assert read_measurements(path).networks == again.networks


@pytest.mark.parametrize("cut", [0, 1, 5, 40, 300, 2000])
def test_a_file_cut_anywhere_reads(calibrated: tuple[Path, Calibration], tmp_path: Path, cut: int) -> None:
    folder, whole = calibrated
    text = (folder / "measurements.csv").read_text()
    path = tmp_path / "measurements.csv"
    path.write_text(text[: len(text) - cut])
    found = read_measurements(path).networks
    places = {network.name: network for network in whole.networks}
    for network in found:
        assert set(network.samples) <= set(places[network.name].samples)


@pytest.mark.parametrize("length", [0, 4, 60])
def test_a_file_cut_in_its_heading_holds_nothing(
    calibrated: tuple[Path, Calibration], tmp_path: Path, length: int
) -> None:
    folder, _ = calibrated
    (tmp_path / "measurements.csv").write_text((folder / "measurements.csv").read_text()[:length])
    assert read_measurements(tmp_path / "measurements.csv") == Measurements()


def test_no_time_for_measuring_is_an_error(patched: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match="larger --budget"):
        run(patched, tmp_path / "cpu", 0)


def test_the_files_of_a_network_are_always_the_same(calibrated: tuple[Path, Calibration]) -> None:
    _, found = calibrated
    last = FILES_PER_NETWORK - 1
    one, other = network_files(0, 0)[last], network_files(0, 0)[last]
    assert one.name == other.name == found.networks[last].name
    assert one.model == other.model


@pytest.mark.exhaustive
def test_the_first_networks_have_every_kind_of_kernel_between_them() -> None:
    """So that a short calibration prices convolutional nets and transformers alike."""
    found = {
        kernel.op
        for network in range(2 * len(FAMILIES))
        for specimen in network_files(0, network)
        for node in profile(specimen.model, [specimen.example], 1, 1)
        if (kernel := kernel_of(node)) is not None
    }
    assert found >= {
        *("conv_nchwc", "conv", "qlinear_conv", "conv_transpose", "reorder_input", "reorder_output"),
        *("conv_nchwc_depthwise", "conv_depthwise", "qlinear_conv_depthwise"),
        *("conv_grouped", "qlinear_conv_grouped"),
        *("pool", "pool_nchwc", "pool_nhwc", "pool_integer", "global_pool", "global_pool_nhwc", "reduce"),
        *("cat", "cat_integer", "quantize", "dequantize", "add_broadcast", "elementwise_broadcast"),
        *("transpose", "transpose_integer", "add", "qlinear_add", "activation", "elementwise", "transcendental"),
        *("move", "slice", "pad", "gather", "reshape"),
        *("gemm", "qgemm", "matmul", "matmul_integer", "qlinear_matmul", "dynamic_matmul", "dynamic_quantize"),
        *("attention", "softmax", "layer_norm", "batch_norm", "gelu", "quick_gelu"),
    }


@pytest.mark.parametrize("number", range(len(FAMILIES)))
def test_files_of_a_network_differ_and_none_computes_nonsense(number: int) -> None:
    group = network_files(0, number)
    assert len({one.architecture for one in group}) == 1
    assert len({one.model for one in group}) == FILES_PER_NETWORK
    for one in group:
        (result,) = batch_outputs(load(one.model, 1), np.repeat(one.example, 3, axis=0))
        assert result.shape[0] == 3
        assert np.isfinite(result).all()
        assert np.abs(result).max() > 0
