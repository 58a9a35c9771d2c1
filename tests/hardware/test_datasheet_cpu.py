"""The datasheet's model of a CPU: its monotony, its refusals, and the committed models of the Raspberry Pis."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocomp.compress.structure import restructure
from autocomp.errors import TargetError, UncoveredKernelError
from autocomp.hardware.datasheet_cpu import CpuRates, DatasheetCpu, time_us
from autocomp.hardware.kernels import Kernel
from autocomp.hardware.resolve import resolve_target
from autocomp.plan import Format, Plan
from tests.networks import prepared, uniform_plan

RATES = CpuRates(
    overhead_us=10.0, bandwidth_gb_s=4.0, float_gmac_s=10.0, int8_gmac_s=20.0, depthwise_gmac_s=1.0
)  # fmt: skip
MODEL = DatasheetCpu(RATES, ("conv", "conv_depthwise", "qlinear_conv", "activation"), 0.4, None)
counts = st.integers(0, 10**9)


@given(
    op=st.sampled_from(MODEL.kinds),
    macs=counts,
    moved=counts,
    more=counts,
    what=st.sampled_from(["macs", "in_elements", "out_elements", "weight_elements"]),
)
def test_more_work_never_takes_less_time(op: str, macs: int, moved: int, more: int, what: str) -> None:
    kernel = Kernel(op, ("layer",), macs=macs, in_elements=moved)
    larger = replace(kernel, **{what: getattr(kernel, what) + more})
    assert time_us(larger, RATES) >= time_us(kernel, RATES) >= RATES.overhead_us


def test_a_kernel_by_hand() -> None:
    """10⁷ MACs at 10¹⁰ a second are 1 ms; 10⁶ floats at 4 GB/s are 1 ms as well."""
    conv = Kernel("conv", ("layer",), macs=10**7)
    assert time_us(conv, RATES) == pytest.approx(1010)
    assert time_us(replace(conv, op="qlinear_conv"), RATES) == pytest.approx(510)
    assert time_us(replace(conv, op="conv_depthwise"), RATES) == pytest.approx(10010)
    assert time_us(Kernel("activation", ("relu",), in_elements=10**6), RATES) == pytest.approx(1010)


def test_every_prediction_is_the_datasheets() -> None:
    found = MODEL.predict([Kernel("conv", ("layer",), macs=10**7), Kernel("conv_curved", ("gate",), macs=10**7)])
    assert found.source == "datasheet"
    assert found.latency_ms == pytest.approx(2.02)
    assert found.std_ms == pytest.approx(0.4 * 2.02)


def test_a_kernel_without_numbers_is_refused_by_its_layers() -> None:
    with pytest.raises(UncoveredKernelError, match=r"no numbers for cumsum.*block\.odd") as caught:
        MODEL.predict([Kernel("conv", ("stem",)), Kernel("cumsum", ("block.odd",))])
    assert caught.value.layers == ("block.odd",)


def test_json_there_and_back() -> None:
    assert DatasheetCpu.from_json(MODEL.to_json()) == MODEL


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": "roofline"}', MODEL.to_json().replace("10.0", "-1.0", 1)])
def test_text_that_is_no_model_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(TargetError) as caught:
        DatasheetCpu.from_json(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["raspberry-pi-4", "raspberry-pi-5"])
def test_a_raspberry_pi_is_out_of_reach_and_foreseen(name: str) -> None:
    target = resolve_target(name)
    assert not target.reachable
    assert (target.runtime, target.threads) == ("onnxruntime", 4)
    assert not target.numerics.narrow_products
    inventory = prepared("residual").inventory
    floats, integers = (
        target.predict(restructure(inventory, plan, target.numerics))
        for plan in (Plan(), uniform_plan("residual", format=Format(8)))
    )
    assert floats.source == integers.source == "datasheet"
    assert 0 < floats.latency_ms < 100
    assert floats.std_ms > 0.3 * floats.latency_ms
    assert "conv" in {time.kernel.op for time in floats.kernels}  # nothing lies in blocks there
