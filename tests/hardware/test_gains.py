"""What 8 bits and the like are worth: chains that are what they say, and what is made of their timings. Nothing is said of
speed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from autocomp.formats import WORKS
from autocomp.hardware import gains as module
from autocomp.hardware.gains import CHAINS, LAYERS, WAYS, Gain, measure_gains, paying
from autocomp.hardware.runtimes import onnxruntime, openvino
from autocomp.hardware.runtimes.runtime import Runtime, cpu_runtime
from autocomp.hardware.timing import Timing

SPEEDUPS = {
    "None": 1.0,
    "a8": 2.0,
    "d8": 0.5,
    "a32": 0.98,
    "unstructured": 1.02,
    "2:4": 0.99,
    "channel": 3.0,
    "rank": 1.5,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "runtime",
    [
        pytest.param(onnxruntime, id="onnxruntime"),
        pytest.param(openvino, id="openvino", marks=pytest.mark.exhaustive),
    ],
)
def test_every_chain_runs_and_gains_are_ratios(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chains: list[int] = []

    def measured(
        files: Mapping[str, Callable[[], Callable[[], object]]], *_: object, **__: object
    ) -> dict[str, Timing]:
        for load in files.values():
            results = load()()
            assert isinstance(results, list)
            assert results[0].shape[0] == 2
        chains.append(len(files))
        return {how: Timing(3.0 / SPEEDUPS[how], 0.0, 0.0, True, 5, 0.05) for how in files}

    monkeypatch.setattr(module, "measure", measured)
    path = tmp_path / "gains.csv"
    found = measure_gains(path, runtime, 1, 2, narrow_products=True)
    assert {(gain.work, gain.way) for gain in found} == {(work, how) for work in WORKS for how in WAYS[work]}
    for gain in found:
        assert math.isclose(gain.speedup, SPEEDUPS[gain.way])
        assert gain.pays == (gain.way in {"a8", "a32", "channel", "rank"})
    # What was measured is kept; of an interrupted one the chain that was cut short is measured again.
    assert len(chains) == len(CHAINS)
    path.write_text(path.read_text()[:-3])
    again = measure_gains(path, runtime, 1, 2, narrow_products=True)
    assert len(chains) == len(CHAINS) + 1
    measure_gains(path, runtime, 1, 2, narrow_products=True)
    assert len(chains) == len(CHAINS) + 1
    for before, after in zip(found, again, strict=True):
        assert math.isclose(before.speedup, after.speedup, rel_tol=1e-4)


def test_what_never_settled_is_not_known_and_measured_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settled, measured = False, list[int]()

    def timings(files: Mapping[str, object], *_: object, **__: object) -> dict[str, Timing]:
        measured.append(len(files))
        return {how: Timing(3.0 if how == "None" else 4.5, 0.0, 0.0, settled, 5, 0.05) for how in files}

    monkeypatch.setattr(module, "measure", timings)
    path, runtime = tmp_path / "gains.csv", cpu_runtime("onnxruntime")
    assert measure_gains(path, runtime, 1, 2, narrow_products=True) == ()
    assert module.paying((), ("a8", "a32")) == dict.fromkeys(WORKS, ("a8", "a32"))
    settled = True
    found = measure_gains(path, runtime, 1, 2, narrow_products=True)
    assert {(gain.work, gain.way) for gain in found} == {(work, how) for work in WORKS for how in WAYS[work]}
    assert all(math.isclose(gain.speedup, 3.0 / 4.5, rel_tol=1e-4) for gain in found)
    assert len(measured) == 2 * len(CHAINS)


@pytest.mark.slow
@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_the_layers_of_a_chain_are_what_its_name_says(chain: module._Chain) -> None:
    weights: dict[str, int] = {}
    for how in (None, *(how for how in WAYS[chain.work] if how != "a32")):
        file = module._file(chain, how, narrow_products=True)
        samples = onnxruntime.kernel_samples(file, [module._input(chain, 1)], threads=1, runs=1)
        layers = [sample.kernel.op for sample in samples if sample.kernel.weight_elements]
        integers = [op.startswith("q") or op in {"matmul_integer", "dynamic_matmul"} for op in layers]
        assert len(layers) == (2 * LAYERS if chain.work == "depthwise" or how == "rank" else LAYERS)
        assert all(integers) if how in {"a8", "d8"} else not any(integers)
        weights[str(how)] = sum(sample.kernel.weight_elements for sample in samples)
    assert weights["channel"] < weights["None"]
    assert weights.get("rank", 0) < weights["None"]
    assert weights["unstructured"] == weights["2:4"] == weights["None"]  # no runtime leaves the zeros out


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_zeros_are_where_a_chain_says(chain: module._Chain) -> None:
    shares: dict[module.Way | None, float] = {"unstructured": 0.1, "2:4": 0.5, None: 1.0}
    for pattern, share in shares.items():
        file = onnx.load_model_from_string(module._file(chain, pattern, narrow_products=False))
        arrays = [numpy_helper.to_array(one) for one in file.graph.initializer]
        large = [array for array in arrays if array.ndim > 1 and array[0].size >= 4 and array.shape[1] > 1]
        assert len(large) == LAYERS
        for array in large:
            assert abs(np.mean(array != 0) - share) < 0.02
            if pattern == "2:4":
                rows = array.T if chain.work == "sequence" else array
                assert set((rows.reshape(-1, 4) != 0).sum(1).tolist()) == {2}


def test_a_file_of_an_earlier_version_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "gains.csv"
    path.write_text("chain,activations,log_ratio,settled\n0,a8,1.0,1\n")
    assert module._read(path) == {}
    assert not path.exists()


def test_what_does_not_pay_is_not_offered() -> None:
    gains = [Gain("conv", "a8", 1.9), Gain("sequence", "a8", 0.7), Gain("sequence", "a32", 0.98)]
    assert paying(gains, ("a8", "a32")) == {
        "conv": ("a8", "a32"),
        "depthwise": ("a8", "a32"),
        "linear": ("a8", "a32"),
        "sequence": ("a32",),
    }
    assert set(paying((), ("a8",)).values()) == {("a8",)}
