"""Files timed on a machine whose pace at its calibration is known."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
import pytest
from onnx import helper

from autocomp.hardware import timed_files
from autocomp.hardware.footprint import tells_memory
from autocomp.hardware.target import RuntimeName
from autocomp.hardware.timed_files import footprints, slower_words, time_files
from autocomp.hardware.timing import Timing, TimingSettings


def small_file() -> bytes:
    """y = x + x."""
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 4]) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "small", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    content: bytes = model.SerializeToString()
    return content


def test_what_a_slow_machine_takes_is_not_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """However evenly slow it is: here by any pace that it could have had."""
    monkeypatch.setattr(timed_files, "SETTINGS", TimingSettings(least_rounds=2, tolerance=1e3, patience_s=0.0))
    timed = partial(time_files, "onnxruntime", 1, [np.ones((1, 4), np.float32)], {7: small_file()})
    assert timed()[7].settled
    found = timed(pace_us=0.001)
    assert not found[7].settled
    assert found[7].latency_ms > 0
    words = slower_words(found, 0.001)
    assert words is not None
    assert "times slower than when it was calibrated" in words


@pytest.mark.parametrize("runtime", ["torch-cpu", "torch-cuda"])
def test_memory_of_packages_is_not_measured(runtime: RuntimeName) -> None:
    """They run in a process of their own, beside the one that is looked at: what that holds is next to nothing."""
    assert footprints(runtime, 1, [np.ones((1, 4), np.float32)], {7: b"a package"}) == {}


def test_memory_of_files_is_measured() -> None:
    found = footprints("onnxruntime", 1, [np.ones((1, 4), np.float32)], {7: small_file()})
    assert not tells_memory() or found[7] > 0


def test_at_the_pace_of_the_calibration_there_is_nothing_to_tell() -> None:
    timings = {
        number: Timing(1.0, 0.01, 0.01, True, 5, reference_ms) for number, reference_ms in enumerate((0.4, 0.42))
    }
    assert slower_words(timings, 400.0) is None
    assert slower_words(timings, None) is None
    assert slower_words({}, 400.0) is None
    assert "1.4 times slower" in str(slower_words(timings, 300.0))
