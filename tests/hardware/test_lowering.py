"""The kernels that lowering foresees are those of the graph that onnxruntime compiles."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import cast

import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional

from autocomp.compress import apply
from autocomp.compress.prepare import prepare
from autocomp.compress.quantize import DEFAULT_NUMERICS
from autocomp.compress.structure import restructure
from autocomp.export.to_onnx import export_onnx
from autocomp.hardware import lowering_torch
from autocomp.hardware.calibrate import measured_block, nchwc_block
from autocomp.hardware.fingerprint import this_machine
from autocomp.hardware.kernels import Kernel
from autocomp.hardware.lowering import lower
from autocomp.hardware.runtimes import onnxruntime as runtime
from autocomp.hardware.runtimes.onnxruntime import kernel_samples
from autocomp.plan import Format, LayerPlan, Plan
from tests.compress.test_structure import OfParameters
from tests.networks import NETWORKS, exported, inputs, prepared, random_plan, ready, thorough, uniform_plan

pytestmark = pytest.mark.slow

CONVOLUTIONS = tuple(
    f"{op}{kind}"
    for op in ("conv_nchwc", "conv", "qlinear_conv", "conv_transpose")
    for kind in ("", "_depthwise", "_grouped")
)
PRODUCTS = ("gemm", "qgemm", "matmul", "matmul_integer", "qlinear_matmul", "dynamic_matmul")
WEIGHTED = (*CONVOLUTIONS, *PRODUCTS)


@pytest.fixture(scope="module")
def block() -> int:
    features = this_machine().features
    if "avx512f" in features:
        return 16
    if "avx2" in features:
        return 8
    pytest.skip("onnxruntime's blocked layout is foreseen for x86 with AVX2 or AVX-512; this machine has neither")


@pytest.fixture
def unblocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime as it is on most Arm CPUs: without the optimizer that brings tensors into blocks."""

    def session(model: bytes | Path, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
        file, providers = model if isinstance(model, bytes) else str(model), ["CPUExecutionProvider"]
        return onnxruntime.InferenceSession(file, options, providers, disabled_optimizers=["NchwcTransformer"])

    monkeypatch.setattr(runtime, "_session", session)


def foreseen(network: str, plan: Plan, block: int) -> tuple[Kernel, ...]:
    return lower(restructure(prepared(network).inventory, plan), batch=1, block=block)


def compiled(network: str, plan: Plan) -> tuple[Kernel, ...]:
    """The kernels of the graph that onnxruntime makes of the plan's file."""
    arrays = [tensor.numpy() for tensor in inputs(network, 1)]
    samples = kernel_samples(exported(network, plan, False), arrays, threads=1, runs=1)
    return tuple(sample.kernel for sample in samples)


def facts(kernels: tuple[Kernel, ...]) -> Counter[Kernel]:
    """Kernels but for what they are called after."""
    return Counter(replace(kernel, sources=()) for kernel in kernels)


def weighted(kernels: tuple[Kernel, ...]) -> Counter[Kernel]:
    return facts(tuple(kernel for kernel in kernels if kernel.op in WEIGHTED))


@pytest.mark.parametrize("plan", ["untouched", "int8"])
@pytest.mark.parametrize("network", ["residual", "plain", "separable", "mlp"])
def test_uniform_plans_are_foreseen_exactly(network: str, plan: str, block: int) -> None:
    given = Plan() if plan == "untouched" else uniform_plan(network, format=Format(8))
    assert facts(foreseen(network, given, block)) == facts(compiled(network, given))


@pytest.mark.parametrize(
    ("network", "seed"),
    thorough(
        [
            *(("residual", 0), ("residual", 10), ("residual", 11)),
            *(("plain", 1), ("plain", 12), ("plain", 21), ("plain", 23)),
            *(("separable", 21), ("mlp", 22)),
        ],
        {("residual", 0), ("plain", 1), ("separable", 21)},
    ),
)
def test_mixed_plans_are_foreseen_but_for_a_little_glue(network: str, seed: int, block: int) -> None:
    plan = random_plan(prepared(network).inventory, seed)
    expected, actual = compiled(network, plan), foreseen(network, plan, block)
    assert weighted(actual) == weighted(expected)
    glue = facts(expected) - weighted(expected)
    apart = (facts(actual) - facts(expected)) + (facts(expected) - facts(actual))
    assert apart.total() <= glue.total() / 4 + 3


@pytest.mark.parametrize(
    ("network", "plan"),
    [
        *((network, plan) for network in ("residual", "plain", "separable", "mlp") for plan in ("untouched", "int8")),
        ("squeeze", "untouched"),
    ],
)
@pytest.mark.usefixtures("unblocked")
def test_without_the_blocked_layout_uniform_plans_are_foreseen_exactly(network: str, plan: str) -> None:
    given = Plan() if plan == "untouched" else uniform_plan(network, format=Format(8))
    assert facts(foreseen(network, given, 1)) == facts(compiled(network, given))


@pytest.mark.usefixtures("unblocked")
def test_a_runtime_without_the_blocked_layout_shows_it() -> None:
    assert measured_block(runtime) == 1


def test_the_block_is_the_one_that_the_cpu_has(block: int) -> None:
    assert measured_block(runtime) == block == nchwc_block(this_machine())


def sequences_at_run_time(network: str) -> Plan:
    """w8d8 in all linears."""
    layers = prepared(network).inventory.layers
    return Plan({one.name: LayerPlan(format=Format(8, dynamic=True)) for one in layers if one.kind == "linear"})


@pytest.mark.parametrize("plan", ["untouched", "at run time", "weights alone"])
@pytest.mark.parametrize(
    "network",
    thorough(["encoder", "vit", "packed", "tied", "two_inputs", "decoder", "grouped", "dense"], {"encoder", "grouped"}),
)
def test_products_attention_and_tables_are_foreseen(network: str, plan: str, block: int) -> None:
    given = {
        "untouched": Plan(),
        "at run time": sequences_at_run_time(network),
        "weights alone": uniform_plan(network, format=Format(4, 32)),
    }[plan]
    expected, actual = compiled(network, given), foreseen(network, given, block)
    told = (*WEIGHTED, "attention", "dynamic_quantize", "layer_norm")
    assert weighted(actual) == weighted(expected)
    assert {op: sum(k.op == op for k in actual) for op in told} == {
        op: sum(k.op == op for k in expected) for op in told
    }


class Attending(nn.Module):
    """Attention and a linear. ``mask``: of which kind it has one."""

    bias: torch.Tensor
    allowed: torch.Tensor

    def __init__(self, mask: str) -> None:
        super().__init__()
        self.queries, self.keys, self.values, self.after = (nn.Linear(64, 64) for _ in range(4))
        self.mask = mask
        self.register_buffer("bias", torch.randn(1, 1, 32, 32))
        self.register_buffer("allowed", torch.ones(1, 1, 48, 32).bool())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = (self.queries, self.keys, self.values)
        q, k, v = (part(x).view(-1, 32, 4, 16).transpose(1, 2) for part in parts)
        kept = x.sum(2)[:, None, None, :] > 0.0
        mask = {
            "none": None,
            "constant": self.bias,
            "constant, yes or no": self.allowed[:, :, : q.shape[2]],
            "yes or no": kept,
        }[self.mask]
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        mixed = x + mixed.transpose(1, 2).reshape(-1, 32, 64)
        return cast("torch.Tensor", mixed + self.after(mixed))


@pytest.mark.parametrize("mask", ["none", "constant", "constant, yes or no", "yes or no"])
def test_attention_beside_weights_of_two_bits_is_foreseen(mask: str, block: int) -> None:
    """The packed file has it operator by operator, with the shapes that these work out."""
    torch.manual_seed(0)
    x, plan = torch.randn(8, 32, 64), Plan({"after": LayerPlan(format=Format(2))})
    found = apply.compress(Attending(mask).eval(), plan, (x[:1],), [(x,)], DEFAULT_NUMERICS, ())
    model = export_onnx(found, packed=True)
    expected = facts(tuple(one.kernel for one in kernel_samples(model, [x[:1].numpy()], threads=1, runs=1)))
    graph = prepare(Attending(mask).eval(), (x[:1],)).inventory
    actual = facts(lower(restructure(graph, plan), batch=1, block=block))
    if mask == "yes or no":  # what makes the mask is foreseen by and large
        expected, actual = (Counter({k: n for k, n in of.items() if k.out_elements != 32}) for of in (expected, actual))
    assert actual == expected


def test_every_layer_has_one_kernel_and_all_its_work(block: int) -> None:
    for seed in range(10):
        structure = restructure(prepared("residual").inventory, random_plan(prepared("residual").inventory, seed))
        kernels = [kernel for kernel in lower(structure, 1, block) if kernel.op in WEIGHTED]
        assert sorted(kernel.sources[0] for kernel in kernels) == sorted(structure.layers)
        assert sum(kernel.macs for kernel in kernels) >= structure.macs  # a blocked kernel computes whole blocks


def test_a_batch_multiplies_the_work_and_not_the_weights(block: int) -> None:
    structure = restructure(prepared("residual").inventory, random_plan(prepared("residual").inventory, 0))
    for one, seven in zip(lower(structure, 1, block), lower(structure, 7, block), strict=True):
        assert (seven.op, seven.sources, seven.weight_elements) == (one.op, one.sources, one.weight_elements)
        assert (seven.macs, seven.in_elements, seven.out_elements) == (
            *(7 * one.macs, 7 * one.in_elements, 7 * one.out_elements),
        )


@pytest.mark.parametrize("width", [8, 16])
def test_every_network_can_be_lowered_for_either_block(width: int) -> None:
    for network in NETWORKS:
        inventory = prepared(network).inventory
        for seed in range(10):
            kernels = lower(restructure(inventory, random_plan(inventory, seed)), 1, width)
            assert all(kernel.out_elements > 0 for kernel in kernels)


def test_a_linear_over_parameters_is_folded_by_onnxruntime_and_computed_by_torch() -> None:
    structure = restructure(prepare(ready(OfParameters(), seed=0), inputs("mlp", 1)).inventory, Plan())
    assert sum(kernel.op == "gemm" for kernel in lower(structure, 1, 8)) == 2
    in_torch = lowering_torch.lower(structure, 1, "fp32", symmetric_activations=True)
    assert sum(kernel.op == "gemm_fp32" for kernel in in_torch) == 3
