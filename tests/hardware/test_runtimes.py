"""What every runtime promises, held for each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from autocomp.errors import MeasurementError, RequestError
from autocomp.hardware.calibrated import BFLOAT16
from autocomp.hardware.fingerprint import this_machine
from autocomp.hardware.runtimes import onnxruntime, openvino
from autocomp.hardware.runtimes.runtime import (
    Runtime,
    batch_outputs,
    cpu_runtime,
    example_arrays,
    loaded_run,
    reference_run,
)
from tests.hardware.packages import difference_package, float_package, linear_package, open_package
from tests.hardware.test_onnxruntime import build, float_file, linear_file, weights


@pytest.fixture(
    params=[
        "onnxruntime",
        "openvino",
        pytest.param(
            "openvino-bf16",
            marks=pytest.mark.skipif(
                not BFLOAT16.intersection(this_machine("openvino").features), reason="this CPU has no bfloat16"
            ),
        ),
        "torch-cpu",
        pytest.param(
            "torch-cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")
        ),
    ]
)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def runtime(name: str) -> Runtime:
    return cpu_runtime(name)


@pytest.fixture
def tolerance(name: str) -> float:
    """Of bfloat16, which has eight bits of precision, on sums of a few."""
    return 0.03 if name == "openvino-bf16" else 1e-5


@dataclass(frozen=True)
class Files:
    """The files that the contract is held with, as a runtime takes them."""

    linear: Callable[..., bytes]
    floats: Callable[[], bytes]
    difference: Callable[[], bytes]
    two_open: Callable[[], bytes]


ONNX = Files(
    linear_file,
    float_file,
    lambda: build([helper.make_node("Sub", ["left", "right"], ["y"])], {"left": [2, 3], "right": [2, 3]}, {}),
    lambda: build([helper.make_node("Relu", ["x"], ["y"])], {"x": ["batch", "tokens"]}, {}),
)
TORCH = Files(*map(cache, (linear_package, float_package, difference_package, open_package)))


@pytest.fixture
def files(runtime: Runtime) -> Files:
    return TORCH if runtime.files == "torch" else ONNX


class TestRuntime:
    def test_a_loaded_file_computes_what_it_says(
        self, runtime: Runtime, files: Files, tolerance: float, tmp_path: Path
    ) -> None:
        path = tmp_path / "linear.file"
        path.write_bytes(files.linear())
        for model in (runtime.load(path, threads=1), runtime.load(files.linear(), threads=2)):
            assert model.input_names == ("x",)
            assert model.input_shapes == ((None, 6),)
            assert model.input_dtypes == ("float32",)
            for count in (5, 2):
                x = weights(count, 6, seed=1)
                (y,) = model.run(x)
                np.testing.assert_allclose(y, x @ weights(6, 4), rtol=tolerance, atol=tolerance)

    @settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(fixed=st.integers(1, 5), count=st.integers(1, 11))
    def test_a_fixed_batch_is_fed_in_pieces(
        self, runtime: Runtime, files: Files, tolerance: float, fixed: int, count: int
    ) -> None:
        x = weights(count, 6, seed=count)
        (pieces,) = batch_outputs(runtime.load(files.linear(fixed), threads=1), x)
        np.testing.assert_allclose(pieces, x @ weights(6, 4), tolerance, tolerance)

    def test_several_inputs_go_by_the_files_order(self, runtime: Runtime, files: Files, tolerance: float) -> None:
        model = runtime.load(files.difference(), threads=1)
        left, right = example_arrays(model)
        assert not np.array_equal(left, right)
        np.testing.assert_allclose(model.run(left, right)[0], left - right, tolerance, tolerance)

    def test_example_arrays_are_seeded_and_take_the_batch(self, runtime: Runtime, files: Files) -> None:
        model = runtime.load(files.floats(), threads=1)
        (x,) = example_arrays(model, batch=3, seed=5)
        assert x.shape == (3, 3, 12, 12)
        np.testing.assert_array_equal(x, example_arrays(model, batch=3, seed=5)[0])
        with pytest.raises(MeasurementError, match="has \\(None, None\\)"):
            example_arrays(runtime.load(files.two_open(), threads=1))

    def test_the_reference_runs_and_is_the_same_every_time(self, runtime: Runtime) -> None:
        first, again = reference_run(runtime, 1)(), reference_run(runtime, 1)()
        if runtime.files == "torch":  # it times itself, on its device
            assert isinstance(first, list)
            assert first[0] > 0
            return
        assert isinstance(first, list)
        assert isinstance(again, list)
        np.testing.assert_array_equal(first[0], again[0])
        assert np.isfinite(first[0]).all()

    def test_kernels_are_told_with_their_times(self, runtime: Runtime, files: Files) -> None:
        inputs = example_arrays(runtime.load(files.floats(), 1))
        samples = runtime.kernel_samples(files.floats(), inputs, threads=1, runs=3)
        convolutions = [sample.kernel for sample in samples if sample.kernel.op.startswith("conv")]
        assert convolutions
        assert all(kernel.macs > 0 and kernel.weight_elements > 0 for kernel in convolutions)
        assert all(sample.time_us > 0 for sample in samples)

    def test_errors_are_one_line(self, runtime: Runtime, files: Files) -> None:
        with pytest.raises(RequestError, match="threads must be at least 1; got 0"):
            runtime.load(files.linear(), threads=0)
        with pytest.raises(RequestError, match="at least 1 run; got 0"):
            runtime.kernel_samples(files.linear(), [weights(1, 6)], threads=1, runs=0)
        file = runtime.load(files.linear(), threads=1)
        for refused in (
            lambda: runtime.load(b"no model", threads=1),
            lambda: file.run(weights(1, 5)),
            lambda: file.run(weights(1, 6), weights(1, 6)),
            lambda: runtime.kernel_samples(files.linear(), [weights(1, 5)], threads=1, runs=1),
        ):
            with pytest.raises(MeasurementError) as caught:
                refused()
            assert "\n" not in str(caught.value)

    def test_it_goes_by_its_name(self, runtime: Runtime, files: Files, name: str) -> None:
        assert cpu_runtime(name) == runtime
        run = loaded_run(runtime, files.linear(), 1, [weights(1, 6)])
        assert isinstance(run(), list)


def test_runtimes_are_told_apart() -> None:
    assert cpu_runtime("onnxruntime") is onnxruntime
    assert cpu_runtime("openvino") is openvino


@pytest.mark.skipif(not BFLOAT16.intersection(this_machine("openvino").features), reason="this CPU has no bfloat16")
def test_floats_are_floats_unless_bfloat16_is_asked_for() -> None:
    x = weights(64, 6, seed=1)
    exact = x.astype(np.float64) @ weights(6, 4)
    errors = {
        name: float(np.abs(cpu_runtime(name).load(linear_file(), 1).run(x)[0] - exact).max())
        for name in ("openvino", "openvino-bf16")
    }
    assert errors["openvino"] < 1e-5 < 1e-4 < errors["openvino-bf16"]
