"""A corrected model, held against networks whose true latency is known to differ from the model's in known ways."""

from __future__ import annotations

import random

import pytest

from autocomp.hardware.kernels import Kernel
from autocomp.hardware.warm import MeasuredFile, WarmModel
from tests.targets import ArithmeticLatency

BASE = ArithmeticLatency()
#: What the base model gets wrong: integers everywhere, and one layer in floats.
SLOWER = {"qlinear_conv": 1.25}
ODD_LAYER, ODD = "layer3", 1.4


def plan(seed: int) -> tuple[Kernel, ...]:
    chance = random.Random(seed)
    kernels = []
    for place in range(8):
        op = chance.choice(("qlinear_conv", "conv_nchwc"))
        width = chance.randrange(8, 64)
        kernels.append(
            Kernel(op, (f"layer{place}",), macs=9000 * width, in_elements=100 * width, out_elements=100 * width)
        )
    return tuple(kernels)


def true_ms(kernels: tuple[Kernel, ...]) -> float:
    total = 0.0
    for share in BASE.predict(kernels).kernels:
        odd = ODD if share.kernel.op == "conv_nchwc" and share.kernel.sources == (ODD_LAYER,) else 1.0
        total += share.latency_ms * SLOWER.get(share.kernel.op, 1.0) * odd
    return total


def warm(count: int) -> WarmModel:
    return WarmModel(BASE, tuple(MeasuredFile(plan(seed), true_ms(plan(seed))) for seed in range(count)))


def mean_error(model: WarmModel | ArithmeticLatency) -> float:
    plans = [plan(seed) for seed in range(1000, 1040)]
    return sum(abs(model.predict(each).latency_ms / true_ms(each) - 1) for each in plans) / len(plans)


def test_the_more_is_measured_the_smaller_the_error() -> None:
    errors = [mean_error(BASE), *(mean_error(warm(count)) for count in (2, 8, 24))]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.08
    assert errors[-1] < 0.02


def test_a_measured_file_is_predicted_as_measured() -> None:
    model = warm(12)
    for one in model.measured:
        assert model.predict(one.kernels).latency_ms == pytest.approx(one.latency_ms, rel=0.02)


def test_the_uncertainty_widens_away_from_what_was_measured() -> None:
    model = warm(12)
    near = model.predict(model.measured[0].kernels)
    strange = tuple(Kernel("gemm", (f"other{n}",), macs=10**6, in_elements=1000, out_elements=1000) for n in range(8))
    far = model.predict(strange)
    assert far.std_ms / far.latency_ms > 2 * near.std_ms / near.latency_ms


def test_it_holds_with_what_it_says_of_its_own_error() -> None:
    model = warm(12)
    plans = [plan(seed) for seed in range(2000, 2100)]
    predictions = [model.predict(each) for each in plans]
    within = sum(abs(p.latency_ms - true_ms(each)) <= 2 * p.std_ms for p, each in zip(predictions, plans, strict=True))
    assert within >= 90


def test_nothing_measured_changes_nothing() -> None:
    assert WarmModel(BASE, ()).predict(plan(1)) == BASE.predict(plan(1))
    assert WarmModel(BASE, ()).held_out == BASE.held_out
    assert WarmModel(BASE, ()).source == BASE.source


def test_the_shares_sum_up_to_the_prediction() -> None:
    base, prediction = BASE.predict(plan(3)), warm(6).predict(plan(3))
    shares = sum(share.latency_ms for share in prediction.kernels)
    assert shares / prediction.latency_ms == pytest.approx(sum(s.latency_ms for s in base.kernels) / base.latency_ms)
    assert [share.kernel for share in prediction.kernels] == list(plan(3))
