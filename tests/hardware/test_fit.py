"""Fitting is held against kernels whose law is known."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import pytest

from autocomp.errors import MeasurementError, TargetError, UncoveredKernelError
from autocomp.hardware.fit import FEWEST_NETWORKS, distortion, fit, undisturbed
from autocomp.hardware.fitted import FittedModel, KernelSample
from autocomp.hardware.kernels import CURVED, Kernel, in_company
from autocomp.hardware.measurements import MeasuredNetwork
from autocomp.hardware.profiles import find_profile

#: Kind of kernel → its overhead in µs and the MACs (or elements, where it has none) that it does in a µs.
LAW = {"conv_nchwc": (4.0, 60_000.0), "qlinear_conv": (3.0, 200_000.0), "gemm": (2.0, 9_000.0), "add": (1.0, 4_000.0)}
CALL_US = 7.0


def time_us(kernel: Kernel) -> float:
    overhead, rate = LAW[kernel.op]
    return overhead + (kernel.macs or kernel.in_elements) / rate


def test_a_product_of_many_rows_is_one_of_the_kind_that_has_many() -> None:
    """Tokens that are flattened into plain vectors; by single rows nothing is known of what a multiplication takes."""
    model = find_profile("cpu").model()

    def product(op: str, rows: int) -> Kernel:
        return Kernel(op, (op,), rows * 496 * 192, rows * 496, rows * 192, 496 * 192)

    def took_ms(op: str, rows: int) -> float:
        return model.predict(in_company([product(op, rows)])).kernels[0].latency_ms

    for op, many in (("gemm", "matmul"), ("qgemm", "matmul_integer")):
        assert took_ms(op, 197) == took_ms(many, 197)
        assert took_ms(op, 1) != took_ms(many, 1)


def conv(chance: random.Random, op: str, name: str) -> Kernel:
    inputs, outputs, side = (chance.randrange(8, 96), chance.randrange(8, 96), chance.choice((8, 16, 32)))
    pixels = side * side
    return Kernel(
        op,
        (name,),
        macs=9 * inputs * outputs * pixels,
        in_elements=inputs * pixels,
        out_elements=outputs * pixels,
        weight_elements=9 * inputs * outputs,
        kernel_area=9,
    )


def network(seed: int) -> MeasuredNetwork:
    chance = random.Random(seed)
    kernels = [conv(chance, chance.choice(("conv_nchwc", "qlinear_conv")), f"layer{n}") for n in range(6)]
    elements = chance.randrange(500, 60_000)
    kernels.append(Kernel("add", ("add",), in_elements=2 * elements, out_elements=elements))
    inputs, outputs = chance.randrange(16, 512), chance.randrange(10, 256)
    kernels.append(
        Kernel(
            "gemm",
            ("head",),
            macs=inputs * outputs,
            in_elements=inputs,
            out_elements=outputs,
            weight_elements=inputs * outputs,
        )
    )
    total_us = CALL_US + sum(map(time_us, kernels))
    samples = tuple(KernelSample(kernel, time_us(kernel) * chance.uniform(0.99, 1.01)) for kernel in kernels)
    return MeasuredNetwork(f"made-up-{seed}", f"architecture-{seed}", total_us / 1e3, 0.01, 75.0, samples)


@pytest.fixture(scope="module")
def networks() -> list[MeasuredNetwork]:
    return [network(seed) for seed in range(40)]


@pytest.fixture(scope="module")
def model(networks: list[MeasuredNetwork]) -> FittedModel:
    return fit(networks, (), repeatability=0.01, note="made up")


def test_networks_that_it_was_not_fitted_to_are_predicted(model: FittedModel) -> None:
    unseen = [network(seed) for seed in range(1000, 1020)]
    errors = [abs(model.predict(n.kernels).latency_ms / n.latency_ms - 1) for n in unseen]
    assert sum(errors) / len(errors) < 0.03
    assert max(errors) < 0.10


def test_the_held_out_error_says_as_much(model: FittedModel, networks: list[MeasuredNetwork]) -> None:
    held_out = model.held_out
    assert held_out is not None
    assert held_out.networks == len(networks)
    assert held_out.note == "made up"
    assert held_out.median <= 0.05
    assert held_out.mean < 0.05
    assert held_out.within_20 == 1.0
    assert 0.0 <= held_out.within_10 <= held_out.within_20
    assert model.repeatability == 0.01
    assert model.source == "fitted"


def test_a_prediction_is_the_sum_of_its_kernels_and_a_call(model: FittedModel) -> None:
    prediction = model.predict(network(5).kernels)
    kernels_ms = math.fsum(share.latency_ms for share in prediction.kernels)
    assert prediction.latency_ms == pytest.approx(kernels_ms + model.distortion.per_call_us / 1e3)
    assert [share.kernel for share in prediction.kernels] == list(network(5).kernels)
    assert prediction.std_ms > 0


def test_the_error_bar_grows_away_from_what_was_measured(model: FittedModel) -> None:
    near = network(5).kernels[0]
    far = Kernel(near.op, ("far",), 10**12, 10**8, 10**8, 10**9, kernel_area=9)
    bar = [prediction.std_ms / prediction.latency_ms for prediction in (model.predict([near]), model.predict([far]))]
    assert bar[1] > bar[0]


def test_json_gives_the_same_predictions(model: FittedModel) -> None:
    text = model.to_json()
    again = FittedModel.from_json(text)
    assert again.held_out == model.held_out
    assert again.to_json() == text
    assert set(json.loads(text)["hyperparameters"]) == set(LAW)
    for seed in (3, 1001):
        mine, theirs = model.predict(network(seed).kernels), again.predict(network(seed).kernels)
        assert theirs.latency_ms == pytest.approx(mine.latency_ms, rel=1e-9)
        assert theirs.std_ms == pytest.approx(mine.std_ms, rel=1e-6)


def test_the_same_measurements_give_the_same_model(model: FittedModel, networks: list[MeasuredNetwork]) -> None:
    assert fit(networks, (), 0.01, "made up").to_json() == model.to_json()


def test_a_kernel_that_was_never_measured_is_an_error_that_names_its_layers(model: FittedModel) -> None:
    known = network(5).kernels
    strange = [Kernel("einsum", ("attention.0", "attention.1")), Kernel("lstm", ("memory",))]
    with pytest.raises(UncoveredKernelError, match=r"einsum, lstm .*attention\.0, attention\.1, memory") as caught:
        model.predict([*known, *strange])
    assert caught.value.layers == ("attention.0", "attention.1", "memory")
    assert "\n" not in str(caught.value)


def test_too_few_networks_fit_nothing(networks: list[MeasuredNetwork]) -> None:
    with pytest.raises(MeasurementError, match=rf"at least {FEWEST_NETWORKS}.*got 7; give a larger --budget"):
        fit(networks[:7], (), 0.01, "")


def test_held_out_networks_of_other_kernels_are_no_error_of_nothing(networks: list[MeasuredNetwork]) -> None:
    """Their error cannot be found, and a model that does not know its error is none."""
    mixed = [
        replace(network, samples=(*network.samples, KernelSample(Kernel(f"einsum{place}", ("attention",)), 1.0)))
        for place, network in enumerate(networks[:8])
    ]
    with pytest.raises(MeasurementError, match="larger --budget"):
        fit(mixed, (), 0.01, "")


def test_what_the_profiler_costs_is_found_by_kind_and_taken_off() -> None:
    own_us = {"conv_nchwc": 3.0, "qlinear_conv": 4.0, "add": 3.0}

    def small(seed: int) -> MeasuredNetwork:
        chance = random.Random(seed)
        samples = []
        for op in chance.choices(("conv_nchwc", "qlinear_conv"), weights=(chance.random(), chance.random()), k=30):
            elements = chance.randrange(500, 4000)
            kernel = Kernel(op, ("layer",), 16 * elements, elements, elements, 256)
            samples += [kernel, Kernel("add", ("add",), in_elements=elements, out_elements=elements)]
        idle = KernelSample(Kernel("reshape", ("view",), in_elements=1, out_elements=1), 3.0)
        seen = tuple(KernelSample(kernel, time_us(kernel) + own_us[kernel.op]) for kernel in samples)
        latency_us = CALL_US + sum(map(time_us, samples))
        return MeasuredNetwork(f"small-{seed}", f"small-{seed}", latency_us / 1e3, 0.01, 75.0, (idle, *seen))

    found = distortion([small(seed) for seed in range(60)], {"einsum"})
    assert found.own_us["qlinear_conv"] - found.own_us["conv_nchwc"] == pytest.approx(1.0, abs=0.2)
    assert found.own_us["einsum"] == pytest.approx(3.2, abs=0.4)
    assert found.usual == pytest.approx(1.0, abs=0.05)
    unseen = small(100)
    found_us = [sample.time_us for sample in found.in_context(unseen.samples, unseen.latency_ms)]
    true_us = [time_us(sample.kernel) for sample in unseen.samples[1:]]
    assert found_us[1:] == pytest.approx(true_us, rel=0.15)


def test_a_model_of_another_version_says_so(model: FittedModel) -> None:
    document = json.loads(model.to_json())
    document["hyperparameters"]["add"]["length_scales"].pop()
    with pytest.raises(TargetError, match=r"another version; calibrate again"):
        FittedModel.from_json(json.dumps(document))


def test_no_plan_of_a_held_out_architecture_is_learned_from(networks: list[MeasuredNetwork]) -> None:
    """Files of one architecture have a secret in common: seen in one, it would be known in the others."""
    secret = [
        replace(n, architecture=f"a{place // 4}", latency_ms=n.latency_ms * 3) for place, n in enumerate(networks[:4])
    ]
    rest = [replace(n, architecture=f"b{place // 4}") for place, n in enumerate(networks[4:])]
    held_out = fit([*secret, *rest], (), 0.01, "").held_out
    assert held_out is not None
    assert held_out.within_20 <= 1 - len(secret) / len(networks)


def test_what_was_measured_in_a_slow_minute_is_left_out(networks: list[MeasuredNetwork]) -> None:
    slow = [replace(n, latency_ms=2 * n.latency_ms, reference_us=90.0) for n in networks[:6]]
    assert undisturbed([*slow, *networks[6:]]) == networks[6:]
    assert fit([*slow, *networks[6:]], (), 0.01, "").to_json() == fit(networks[6:], (), 0.01, "").to_json()


def test_what_a_slow_hour_did_is_taken_back(model: FittedModel, networks: list[MeasuredNetwork]) -> None:
    def slowed(made: MeasuredNetwork, by: float) -> MeasuredNetwork:
        return replace(made, latency_ms=by * made.latency_ms, reference_us=by * made.reference_us)

    drifting = [slowed(made, 1 + 0.06 * (place % 3) / 2) for place, made in enumerate(networks)]
    found = fit(drifting, (), 0.01, "made up")
    assert found.reference_us == model.reference_us == 75.0
    for made in networks:
        assert found.predict(made.kernels).latency_ms == pytest.approx(model.predict(made.kernels).latency_ms, rel=1e-3)
    assert FittedModel.from_json(found.to_json()).reference_us == 75.0


def with_pointwise(made: MeasuredNetwork, seed: int, slower: float = 4.0, curved: str = "") -> MeasuredNetwork:
    """And with a 1×1 convolution, which takes so many times as long as another kernel's law has it."""
    one = conv(random.Random(seed), "conv_nchwc", "pointwise")
    pointwise = replace(one, macs=one.macs // 9, weight_elements=one.weight_elements // 9, kernel_area=1)
    us = slower * time_us(pointwise)
    sample = KernelSample(replace(pointwise, op=pointwise.op + curved), us)
    return replace(made, latency_ms=made.latency_ms + us / 1e3, samples=(*made.samples, sample))


def test_pointwise_convolutions_are_of_a_kind_where_there_are_enough() -> None:
    networks = [with_pointwise(network(seed), seed) for seed in range(40)]
    model = fit(networks, (), 0.01, "made up")
    assert {"conv_nchwc", "conv_nchwc/pointwise"} <= set(model.ops)
    again = FittedModel.from_json(model.to_json())
    kernel = networks[0].kernels[-1]
    share = again.predict([kernel]).kernels[0].latency_ms
    assert share == model.predict([kernel]).kernels[0].latency_ms
    assert abs(share * 1e3 / (4 * time_us(kernel)) - 1) < 0.15
    few = fit([*map(network, range(40)), *networks[:5]], (), 0.01, "made up")
    assert "conv_nchwc/pointwise" not in few.ops
    assert few.covers(kernel)


@pytest.mark.exhaustive
def test_kernels_with_a_curve_behind_are_of_a_kind_where_there_are_enough() -> None:
    networks = [with_pointwise(with_pointwise(network(seed), seed), seed + 100, 6.0, CURVED) for seed in range(40)]
    model = fit(networks, (), 0.01, "made up")
    assert {"conv_nchwc", "conv_nchwc/pointwise", "conv_nchwc_curved/pointwise"} <= set(model.ops)
    curved, straight = networks[3].kernels[-1], replace(networks[3].kernels[-1], op="conv_nchwc")
    for kernel, slower in ((curved, 6.0), (straight, 4.0)):
        assert model.predict([kernel]).kernels[0].latency_ms == pytest.approx(slower * time_us(straight) / 1e3, rel=0.1)
    # Of few nothing is told that does not hold for the others as well, nor by a model of an earlier version.
    few = fit([*networks[:20], *(with_pointwise(network(seed), seed) for seed in range(20, 60))], (), 0.01, "made up")
    assert {"conv_nchwc", "conv_nchwc/pointwise"} <= set(few.ops)
    assert "conv_nchwc_curved/pointwise" not in few.ops
    assert few.covers(curved)
    assert few.predict([curved]).latency_ms == few.predict([straight]).latency_ms
    assert not few.covers(replace(curved, op="conv_transpose_curved"))
