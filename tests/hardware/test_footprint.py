"""The memory of a file in a process of its own, measured, and the model that is fitted to such measurements."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autocomp.errors import MeasurementError
from autocomp.hardware import footprint, measured_memory
from autocomp.hardware.fingerprint import this_machine
from autocomp.hardware.footprint import footprint_bytes
from autocomp.hardware.kernels import Kernel
from autocomp.hardware.measurements import read_measurements
from autocomp.hardware.memory import PARTS, MeasuredMemory, fit_memory
from autocomp.places import shipped_folder
from tests.hardware.test_onnxruntime import build, linear_file, weights

LAYER = Kernel("gemm", ("a",), macs=1000, in_elements=100, out_elements=10, weight_elements=1000)


def files(count: int) -> list[MeasuredMemory]:
    """Networks of one to five layers and kernels without weights, of random sizes, that take what a rule says."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(count):
        kernels = []
        for _ in range(random.integers(1, 6)):
            size = int(random.integers(100, 100_000))
            kernels.append(replace(LAYER, weight_elements=size, op=str(random.choice(["gemm", "conv", "qgemm"]))))
            kernels.append(Kernel("add", ("b",), in_elements=size, out_elements=size))
        table = int(random.integers(0, 10**6))
        held = 10**6 + 5000 * len(kernels) + sum(k.weight_bytes for k in kernels) + table
        held += 4 * max(k.in_elements + k.out_elements for k in kernels)
        found.append(MeasuredMemory(tuple(kernels), table, held))
    return found


def test_a_rule_is_found_again() -> None:
    model = fit_memory(files(80), [str(number // 4) for number in range(80)])
    assert len(model.bytes_for) == len(PARTS)
    assert model.files == 80
    assert model.held_out_mean < 0.01
    assert model.held_out_within_10 == 1.0
    for one in files(100)[80:]:
        assert model.predict(one.kernels, one.table_bytes) == pytest.approx(one.measured_bytes, rel=0.02)


@settings(max_examples=20)
@given(st.integers(0, 10**7))
def test_more_takes_no_less(more: int) -> None:
    model = fit_memory(files(40), [str(number // 4) for number in range(40)])
    layer = replace(LAYER, weight_elements=LAYER.weight_elements + more)
    assert model.predict([layer], 0) >= model.predict([LAYER], 0)
    assert model.predict([LAYER], more) >= model.predict([LAYER], 0)


@pytest.mark.slow
@pytest.mark.skipif(not footprint.tells_memory(), reason="this system does not tell what a process holds")
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_process_holds_the_weights_of_its_file(runtime: str) -> None:
    from onnx import helper

    def held(width: int) -> int:
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
        return footprint_bytes(
            runtime, build(nodes, {"x": [1, width]}, {"w": weights(width, width)}), [weights(1, width)], 1
        )

    more = held(2000) - held(100)
    assert 0.9 * 4 * 2000**2 < more < 2.5 * 4 * 2000**2


@pytest.mark.slow
@pytest.mark.skipif(not footprint.tells_memory(), reason="this system does not tell what a process holds")
def test_a_refused_file_is_one_line() -> None:
    with pytest.raises(MeasurementError, match="must run in a process") as caught:
        footprint_bytes("onnxruntime", linear_file(), [weights(1, 5)], 1)
    assert "\n" not in str(caught.value)


def test_a_system_that_does_not_tell_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(footprint, "_STATUS", tmp_path / "none")
    with pytest.raises(MeasurementError, match="measure it on Linux"):
        footprint_bytes("onnxruntime", linear_file(), [weights(1, 6)], 1)
    networks = read_measurements(shipped_folder("hardware_profiles") / "cpu" / "measurements.csv").networks
    path = tmp_path / "memory.csv"
    assert measured_memory.measured_memory(path, networks, this_machine(), 1, 1, True) is None
    assert not path.exists()


def test_what_was_measured_is_not_measured_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    networks = read_measurements(shipped_folder("hardware_profiles") / "cpu" / "measurements.csv").networks
    asked = []

    def measure(name: str, *_: object) -> tuple[int, int]:
        asked.append(name)
        return 0, 10**6 * (1 + len(asked) % 7)

    monkeypatch.setattr(measured_memory, "_measure", measure)
    monkeypatch.setattr(measured_memory, "tells_memory", lambda: True)
    path = tmp_path / "memory.csv"
    first = measured_memory.measured_memory(path, networks, this_machine(), 1, 1, True)
    assert first is not None
    assert measured_memory.FEWEST_FILES <= len(asked) <= measured_memory.FILES
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-5]))
    assert measured_memory.measured_memory(path, networks, this_machine(), 1, 1, True) is not None
    assert len(asked) == first.files + 5
    assert measured_memory.measured_memory(path, networks[:20], this_machine(), 1, 1, True) is None


def test_a_row_that_was_cut_in_the_middle_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "memory.csv"
    path.write_text("network,table_bytes,measured_bytes\nrandom-0-1,5,1000\nrandom-0-2,0,22")
    assert measured_memory._read(path) == {"random-0-1": (5, 1000)}
    measured_memory._append(path, "random-0-2", 0, 2200)
    assert measured_memory._read(path) == {"random-0-1": (5, 1000), "random-0-2": (0, 2200)}
