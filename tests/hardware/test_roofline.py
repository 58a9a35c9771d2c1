"""The roofline model: its monotony, its refusals, and the committed model of the Jetson."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocomp.compress.structure import restructure
from autocomp.errors import TargetError, UncoveredKernelError
from autocomp.hardware.kernels import Kernel
from autocomp.hardware.latency import HeldOutError, LatencyModel
from autocomp.hardware.roofline import Join, RooflineModel
from autocomp.hardware.tensorrt import lower
from autocomp.plan import Format, LayerPlan, Plan, Sparsity
from tests.networks import prepared, uniform_plan

PROFILE = Path(__file__).parents[2] / "hardware_profiles" / "jetson-orin-nano"

MODEL = RooflineModel(
    join="max",
    overhead_us=10.0,
    bandwidth_gb_s=50.0,
    tensor_gmac_s=1000.0,
    depthwise_gmac_s=100.0,
    int8_speedup=2.0,
    relative_std=0.1,
    int8_relative_std=0.2,
    families=("conv", "depthwise", "elementwise", "gemm", "reformat"),
    held_out=HeldOutError(0.1, 0.08, 0.6, 0.9, 10, "invented"),
)
JOINS: list[Join] = ["max", "hypot", "sum"]

counts = st.integers(0, 10**9)
kernels = st.builds(
    Kernel,
    op=st.sampled_from([f"{family}_{precision}" for family in MODEL.families for precision in ("fp16", "int8")]),
    sources=st.just(("layer",)),
    macs=counts,
    in_elements=counts,
    out_elements=counts,
    weight_elements=counts,
)


def latency_ms(model: LatencyModel, *calls: Kernel) -> float:
    return model.predict(calls).latency_ms


def profile_model() -> RooflineModel:
    return RooflineModel.from_json((PROFILE / "latency_model.json").read_text(encoding="utf-8"))


@given(
    kernel=kernels,
    more=counts,
    what=st.sampled_from(["macs", "in_elements", "out_elements", "weight_elements"]),
    join=st.sampled_from(JOINS),
)
def test_more_work_never_takes_less_time(kernel: Kernel, more: int, what: str, join: Join) -> None:
    model = replace(MODEL, join=join)
    larger = replace(kernel, **{what: getattr(kernel, what) + more})
    assert latency_ms(model, larger) >= latency_ms(model, kernel)


@given(kernel=kernels, other=kernels, join=st.sampled_from(JOINS))
def test_a_network_takes_the_sum_of_its_kernels(kernel: Kernel, other: Kernel, join: Join) -> None:
    model = replace(MODEL, join=join)
    assert latency_ms(model, kernel, other) == pytest.approx(latency_ms(model, kernel) + latency_ms(model, other))
    assert latency_ms(model, kernel) >= MODEL.overhead_us / 1e3


@given(kernel=kernels.filter(lambda kernel: not kernel.op.startswith("reformat")), join=st.sampled_from(JOINS))
def test_int8_is_never_slower_than_fp16(kernel: Kernel, join: Join) -> None:
    family = kernel.op.rpartition("_")[0]
    model = replace(MODEL, join=join)
    in_int8, in_fp16 = replace(kernel, op=f"{family}_int8"), replace(kernel, op=f"{family}_fp16")
    assert latency_ms(model, in_int8) <= latency_ms(model, in_fp16)


def test_a_kernel_by_hand() -> None:
    """10⁹ MACs at 10¹² a second are 1 ms; 5·10⁷ values of 2 bytes at 50 GB/s are 2 ms."""
    computing = Kernel("conv_fp16", ("layer",), macs=10**9)
    moving = Kernel("elementwise_fp16", ("layer",), in_elements=4 * 10**7, out_elements=10**7)
    assert latency_ms(MODEL, computing) == pytest.approx(1.01)
    assert latency_ms(MODEL, replace(computing, op="depthwise_fp16")) == pytest.approx(10.01)
    assert latency_ms(MODEL, replace(computing, op="conv_int8")) == pytest.approx(0.51)
    assert latency_ms(MODEL, moving) == pytest.approx(2.01)


def test_a_prediction_with_int8_comes_from_the_datasheet_and_is_less_sure() -> None:
    conv = Kernel("conv_fp16", ("layer",), macs=10**9)
    fitted, datasheet = MODEL.predict([conv]), MODEL.predict([replace(conv, op="conv_int8"), conv])
    assert (fitted.source, datasheet.source) == ("fitted", "datasheet")
    assert fitted.std_ms == pytest.approx(0.1 * fitted.latency_ms)
    assert datasheet.std_ms > 0.1 * datasheet.latency_ms


@pytest.mark.parametrize("op", ["cumsum", "grouped_conv_fp16", "conv", "conv_fp8", "upsample_bilinear2d"])
def test_a_kernel_without_numbers_is_refused_by_its_layers(op: str) -> None:
    known = Kernel("conv_fp16", ("stem",), macs=10)
    with pytest.raises(UncoveredKernelError, match=rf"{op}.*block\.odd") as caught:
        MODEL.predict([known, Kernel(op, ("block.odd",)), Kernel(op, ("block.odder",))])
    assert caught.value.layers == ("block.odd", "block.odder")


@pytest.mark.parametrize("held_out", [MODEL.held_out, None])
def test_json_there_and_back(held_out: HeldOutError | None) -> None:
    model = replace(MODEL, held_out=held_out)
    assert RooflineModel.from_json(model.to_json()) == model


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"model": "fitted"}', MODEL.to_json().replace("50.0", "-1"), MODEL.to_json()[:-9]]
)
def test_text_that_is_no_model_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(TargetError) as caught:
        RooflineModel.from_json(text)
    assert "\n" not in str(caught.value)


def test_rates_outside_their_range_are_refused() -> None:
    with pytest.raises(TargetError, match="bandwidth_gb_s must be positive"):
        replace(MODEL, bandwidth_gb_s=0.0)
    with pytest.raises(TargetError, match="join must be one of"):
        RooflineModel.from_json(MODEL.to_json().replace('"max"', '"mean"'))


def test_the_committed_model_says_how_far_off_it_was() -> None:
    model = profile_model()
    assert model.source == "fitted"
    assert model.held_out is not None
    with (PROFILE / "measurements.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert model.held_out.networks == len(rows) == len({row["model"] for row in rows})
    assert all(float(row["latency_ms"]) > 0 and row["precision"] == "fp16" and "@" in row["source"] for row in rows)
    assert 0 < model.held_out.median <= 0.5
    assert 0 < model.relative_std <= 0.5
    assert json.loads(model.to_json())["held_out"]["note"]


def test_the_committed_model_rewards_pruning_and_int8_in_a_residual_network() -> None:
    model, inventory = profile_model(), prepared("residual").inventory
    cut = {name: LayerPlan(Sparsity("channel", 0.5)) for group in inventory.groups if group.prunable
           for name in group.producers}  # fmt: skip

    untouched, pruned = (model.predict(lower(restructure(inventory, plan), 64)) for plan in (Plan(), Plan(cut)))
    assert 0.01 < untouched.latency_ms < 100
    assert 0 < pruned.latency_ms < untouched.latency_ms
    assert pruned.source == untouched.source == "fitted"
    quantized = model.predict(lower(restructure(inventory, uniform_plan("residual", format=Format(8))), 64))
    assert quantized.source == "datasheet"
    assert quantized.std_ms / quantized.latency_ms > untouched.std_ms / untouched.latency_ms
