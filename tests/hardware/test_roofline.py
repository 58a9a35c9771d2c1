"""The roofline model: its monotony, its refusals, and the committed models of the Jetsons."""

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
from autocomp.hardware.roofline import Habits, Rates, RooflineModel, work
from autocomp.hardware.tensorrt import lower
from autocomp.plan import Format, LayerPlan, Plan, Sparsity
from tests.networks import prepared, uniform_plan

PROFILES = Path(__file__).parents[2] / "hardware_profiles"
JETSONS = sorted(path.name for path in PROFILES.glob("jetson-*"))

RATES = Rates(
    overhead_us=10.0,
    bandwidth_gb_s=50.0,
    tensor_gmac_s=1000.0,
    depthwise_gmac_s=100.0,
    int8_speedup=2.0,
    multiprocessors=8,
    channels=8,
)
HABITS = Habits(
    half_outputs=1e-9,
    half_depth=1e-9,
    weight_bandwidth=1.0,
    elementwise_bandwidth=1.0,
    pool_overheads=3.0,
    copy_overheads=0.5,
    sharpness=400.0,
)
MODEL = RooflineModel(
    source="fitted",
    rates=RATES,
    habits=HABITS,
    relative_std=0.1,
    int8_relative_std=0.2,
    families=("conv", "copy", "depthwise", "elementwise", "gemm", "pool", "reformat"),
    held_out=HeldOutError(0.1, 0.08, 0.6, 0.9, 10, "invented"),
)

counts = st.integers(0, 10**9)
habits = st.builds(
    Habits,
    half_outputs=st.floats(1.0, 1e4),
    half_depth=st.floats(1.0, 500.0),
    weight_bandwidth=st.floats(0.2, 2.0),
    elementwise_bandwidth=st.floats(0.2, 2.0),
    pool_overheads=st.floats(0.3, 4.0),
    copy_overheads=st.floats(0.3, 4.0),
    sharpness=st.floats(1.0, 20.0),
)
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


def profile_model(target: str) -> RooflineModel:
    return RooflineModel.from_json((PROFILES / target / "latency_model.json").read_text(encoding="utf-8"))


@given(
    kernel=kernels,
    more=counts,
    what=st.sampled_from(["macs", "in_elements", "weight_elements"]),
    habits=habits,
)
def test_more_work_never_takes_less_time(kernel: Kernel, more: int, what: str, habits: Habits) -> None:
    # Without weights no channels are filled up to a multiple, which more of some numbers alone would undo.
    kernel = kernel if what == "weight_elements" else replace(kernel, weight_elements=0)
    model = replace(MODEL, habits=habits)
    larger = replace(kernel, **{what: getattr(kernel, what) + more})
    if what == "weight_elements":
        larger, kernel = (replace(one, macs=0) for one in (larger, kernel))
    if what == "macs":  # more of them per result are computed at a better rate, but never in less time
        kernel, larger = (replace(one, out_elements=1000) for one in (kernel, larger))
    assert latency_ms(model, larger) >= latency_ms(model, kernel) * (1 - 1e-9)


@given(kernel=kernels, other=kernels, habits=habits)
def test_a_network_takes_the_sum_of_its_kernels(kernel: Kernel, other: Kernel, habits: Habits) -> None:
    model = replace(MODEL, habits=habits)
    assert latency_ms(model, kernel, other) == pytest.approx(latency_ms(model, kernel) + latency_ms(model, other))
    least = min(1.0, habits.pool_overheads, habits.copy_overheads)
    assert latency_ms(model, kernel) >= least * RATES.overhead_us / 1e3


@given(channels=st.integers(1, 64), rows=st.integers(1, 4096), depth=st.integers(1, 512), habits=habits)
def test_int8_is_never_slower_than_fp16_where_its_channels_are_whole(
    channels: int, rows: int, depth: int, habits: Habits
) -> None:
    channels, depth = 32 * channels, 32 * depth
    kernel = Kernel(
        "gemm_fp16",
        ("layer",),
        macs=rows * channels * depth,
        in_elements=rows * depth,
        out_elements=rows * channels,
        weight_elements=channels * depth,
    )
    model = replace(MODEL, habits=habits)
    assert latency_ms(model, replace(kernel, op="gemm_int8")) <= latency_ms(model, kernel)


def test_a_kernel_by_hand() -> None:
    """10⁹ MACs at 10¹² a second are 1 ms; 5·10⁷ values of 2 bytes at 50 GB/s are 2 ms; a pool takes three overheads, a copy
    half of one."""
    computing = Kernel("conv_fp16", ("layer",), macs=10**9)
    moving = Kernel("elementwise_fp16", ("layer",), in_elements=4 * 10**7, out_elements=10**7)
    assert latency_ms(MODEL, computing) == pytest.approx(1.01)
    assert latency_ms(MODEL, replace(computing, op="depthwise_fp16")) == pytest.approx(10.01)
    assert latency_ms(MODEL, replace(computing, op="conv_int8")) == pytest.approx(0.51)
    assert latency_ms(MODEL, moving) == pytest.approx(2.01)
    assert latency_ms(MODEL, replace(moving, op="pool_fp16")) == pytest.approx(2.03)
    assert latency_ms(MODEL, replace(moving, op="copy_fp16")) == pytest.approx(2.005)


def product(outputs: int, inputs: int, op: str = "conv_fp16") -> Kernel:
    """A convolution of 1×1 over 10⁵ positions, whose time is that of its products."""
    return Kernel(
        op, ("layer",), macs=10**5 * outputs * inputs, out_elements=10**5 * outputs, weight_elements=outputs * inputs
    )


def test_channels_are_filled_up_to_a_multiple() -> None:
    full = latency_ms(MODEL, product(64, 64))
    assert latency_ms(MODEL, product(57, 57)) == pytest.approx(full, rel=1e-3)
    assert latency_ms(MODEL, product(56, 64)) == pytest.approx(0.01 + (full - 0.01) * 56 / 64, rel=1e-3)
    assert latency_ms(MODEL, product(33, 64, "conv_int8")) == pytest.approx(
        latency_ms(MODEL, product(64, 64, "conv_int8")), rel=1e-3
    )
    for colours in (1, 3):  # an image's few are not
        assert work([product(64, colours)], 8).tensor_macs == [product(64, colours).macs]


def test_a_gpu_without_int8_is_given_none() -> None:
    model = replace(MODEL, rates=replace(RATES, int8_speedup=None))
    assert latency_ms(model, product(8, 8)) > 0
    with pytest.raises(UncoveredKernelError, match="none of them in int8"):
        model.predict([product(8, 8, "conv_int8")])


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
        replace(RATES, bandwidth_gb_s=0.0)
    with pytest.raises(TargetError, match="sharpness must be positive"):
        replace(HABITS, sharpness=-1.0)


@pytest.mark.parametrize("target", JETSONS)
def test_the_committed_models_say_how_far_off_they_were(target: str) -> None:
    model = profile_model(target)
    assert model.source == "fitted"
    assert model.held_out is not None
    with (PROFILES / target / "measurements.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert model.held_out.networks == sum(row["precision"] == "fp16" for row in rows)
    assert all(float(row["latency_ms"]) > 0 and "@" in row["source"] for row in rows)
    assert 0 < model.held_out.median <= (0.10 if model.held_out.networks >= 20 else 0.15)
    assert 0 < model.relative_std <= 0.5
    assert json.loads(model.to_json())["held_out"]["note"]


@pytest.mark.parametrize("target", JETSONS)
def test_the_committed_models_reward_pruning_and_int8_in_a_residual_network(target: str) -> None:
    model, inventory = profile_model(target), prepared("residual").inventory
    cut = {name: LayerPlan(Sparsity("channel", 0.5)) for group in inventory.groups if group.prunable
           for name in group.producers}  # fmt: skip

    untouched, pruned = (model.predict(lower(restructure(inventory, plan), 64)) for plan in (Plan(), Plan(cut)))
    assert 0.01 < untouched.latency_ms < 100
    assert 0 < pruned.latency_ms < untouched.latency_ms
    assert pruned.source == untouched.source == "fitted"
    kernels = lower(restructure(inventory, uniform_plan("residual", format=Format(8))), 64)
    if model.rates.int8_speedup is None:
        with pytest.raises(UncoveredKernelError):
            model.predict(kernels)
        return
    quantized = model.predict(kernels)
    assert quantized.source == "datasheet"
    assert quantized.std_ms / quantized.latency_ms > untouched.std_ms / untouched.latency_ms
