"""The kernels that lowering foresees are those of the graph that openvino compiles."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial

import pytest

from autocomp.compress.structure import restructure
from autocomp.hardware.calibrated import BFLOAT16
from autocomp.hardware.fingerprint import this_machine
from autocomp.hardware.followed import CompiledPlan, followed
from autocomp.hardware.kernels import CURVED, Kernel
from autocomp.hardware.lowering_openvino import lower
from autocomp.hardware.runtimes.openvino import kernel_samples
from autocomp.plan import Format, LayerPlan, Plan
from tests.networks import NETWORKS, exported, inputs, prepared, random_plan, seeds, thorough, uniform_plan

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def x86() -> None:
    if "avx2" not in this_machine().features:
        pytest.skip("openvino's kernels are foreseen for x86 with AVX2 or AVX-512; this machine has neither")


def calibrated(plan: Plan) -> Plan:
    """Without grids of the moment, which openvino has no kernels for."""
    layers = {
        name: replace(one, format=one.format and replace(one.format, dynamic=False))
        for name, one in plan.layers.items()
    }
    return replace(plan, layers=layers)


def foreseen(network: str, plan: Plan) -> Counter[Kernel]:
    return facts(lower(restructure(prepared(network).inventory, plan), batch=1))


def compiled(network: str, plan: Plan) -> Counter[Kernel]:
    """The kernels of the graph that openvino makes of the plan's file."""
    arrays = [tensor.numpy() for tensor in inputs(network, 1)]
    samples = kernel_samples(exported(network, plan, False), arrays, threads=1, runs=30)
    return facts(tuple(sample.kernel for sample in samples))


def facts(kernels: tuple[Kernel, ...]) -> Counter[Kernel]:
    """Kernels but for what they are called after, and for the footprint, which all weights of the network make."""
    return Counter(replace(kernel, sources=(), footprint_bytes=0) for kernel in kernels)


def weighted(kernels: Counter[Kernel]) -> Counter[Kernel]:
    return Counter({kernel: count for kernel, count in kernels.items() if kernel.weight_elements})


@pytest.mark.parametrize("plan", ["untouched", "int8"])
@pytest.mark.parametrize("network", ["residual", "separable", "squeeze"])
def test_uniform_plans_are_foreseen(network: str, plan: str) -> None:
    given = Plan() if plan == "untouched" else uniform_plan(network, format=Format(8))
    expected, actual = compiled(network, given), foreseen(network, given)
    assert weighted(actual) == weighted(expected)
    assert ((actual - expected) + (expected - actual)).total() <= 4


def test_a_curve_is_part_of_a_kernel_or_one_of_its_own_behind_a_rounding() -> None:
    """In floats convolutions take SiLU in, in 8 bits a kernel behind them computes it."""
    for given, op in ((Plan(), "conv_curved"), (uniform_plan("squeeze", format=Format(8)), "elementwise_curved")):
        expected, actual = (
            Counter(kernel.op for kernel, count in kernels("squeeze", given).items() for _ in range(count))
            for kernels in (compiled, foreseen)
        )
        curved = {kind: count for kind, count in expected.items() if kind.endswith(CURVED)}
        assert op in curved
        assert {kind: actual[kind] for kind in curved} == curved


@pytest.mark.parametrize("seed", seeds(4))
@pytest.mark.parametrize("network", ["residual", "plain", "separable", "squeeze"])
def test_mixed_plans_are_foreseen_but_for_a_little_glue(network: str, seed: int) -> None:
    plan = calibrated(random_plan(prepared(network).inventory, seed))
    expected, actual = compiled(network, plan), foreseen(network, plan)
    wrong = (weighted(expected) - weighted(actual)).total()
    assert wrong <= 1 + weighted(expected).total() / 10
    assert ((actual - expected) + (expected - actual)).total() <= 5 + expected.total() / 3


@pytest.mark.skipif(
    "avx512f" in this_machine("openvino").features,
    reason="where it has AVX-512, openvino joins layer norms and attention into kernels of its own, which are not foreseen",
)
@pytest.mark.parametrize("plan", ["untouched", "int8"])
@pytest.mark.parametrize("network", thorough(["encoder", "vit", "decoder"], {"vit"}))
def test_products_and_attention_are_foreseen(network: str, plan: str) -> None:
    layers = prepared(network).inventory.layers
    given = Plan()
    if plan == "int8":
        given = Plan({one.name: LayerPlan(format=Format(8)) for one in layers if one.computes_integers})
    expected, actual = compiled(network, given), foreseen(network, given)
    for kind in ("linear_int8", "attention", "layer_norm"):
        ours, theirs = (sum(n for k, n in found.items() if k.op.startswith(kind)) for found in (actual, expected))
        assert ours == theirs, kind


@pytest.mark.exhaustive
@pytest.mark.parametrize("network", ["residual", "separable", "vit"])
def test_what_is_compiled_of_some_plans_puts_the_rules_right_for_others(network: str) -> None:
    """Whatever the runtime makes on this machine of what the rules do not foresee."""
    inventory, arrays = prepared(network).inventory, [tensor.numpy() for tensor in inputs(network, 1)]
    plans = [calibrated(random_plan(inventory, seed)) for seed in range(7)]
    known = [
        CompiledPlan(
            lower(restructure(inventory, plan), 1),
            tuple(sample.kernel for sample in kernel_samples(exported(network, plan, False), arrays, 1, 30)),
        )
        for plan in (Plan(), *plans[:5])
    ]
    made = followed(partial(lower, batch=1), known, lambda _: True)
    wrong = {"rules": 0, "put right": 0}
    for plan in plans[5:]:
        expected = compiled(network, plan)
        for name, actual in (
            ("rules", foreseen(network, plan)),
            ("put right", facts(made(restructure(inventory, plan)))),
        ):
            wrong[name] += ((actual - expected) + (expected - actual)).total()
    assert wrong["put right"] <= wrong["rules"]


@pytest.mark.skipif(not BFLOAT16.intersection(this_machine("openvino").features), reason="this CPU has no bfloat16")
@pytest.mark.parametrize("network", ["residual", "separable"])
def test_layers_in_bfloat16_are_foreseen(network: str) -> None:
    arrays = [tensor.numpy() for tensor in inputs(network, 1)]
    for given in (Plan(), uniform_plan(network, format=Format(8))):
        samples = kernel_samples(exported(network, given, False), arrays, 1, 30, "bf16")
        expected = weighted(facts(tuple(sample.kernel for sample in samples)))
        actual = weighted(facts(lower(restructure(prepared(network).inventory, given), 1, bfloat16=True)))
        assert actual == expected


def test_every_network_can_be_lowered() -> None:
    for network in NETWORKS:
        inventory = prepared(network).inventory
        for seed in range(10):
            structure = restructure(inventory, calibrated(random_plan(inventory, seed)))
            kernels = lower(structure, 1)
            assert all(kernel.out_elements > 0 for kernel in kernels)
            layers = {kernel.sources[0] for kernel in kernels if kernel.weight_elements}
            assert layers <= set(structure.layers)
