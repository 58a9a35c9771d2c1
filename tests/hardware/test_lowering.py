"""The kernels that lowering foresees are those of the graph that onnxruntime compiles."""

from __future__ import annotations

from collections import Counter

import pytest

from autocomp.compress.structure import restructure
from autocomp.hardware.fingerprint import this_machine
from autocomp.hardware.kernels import Kernel
from autocomp.hardware.lowering import lower
from autocomp.hardware.observed import kind_of
from autocomp.hardware.runtimes.onnxruntime import optimized_ops
from autocomp.plan import Format, LayerPlan, Plan
from tests.networks import NETWORKS, exported, prepared, random_plan, uniform_plan

pytestmark = pytest.mark.slow

#: onnxruntime's operators → kernels. Constants are folded before, so that no other operator may be left.
KERNELS = {
    ("com.microsoft.nchwc", "Conv"): "conv_nchwc",
    ("com.microsoft.nchwc", "MaxPool"): "pool",
    ("com.microsoft", "NhwcMaxPool"): "pool",
    ("com.microsoft.nchwc", "ReorderInput"): "reorder_input",
    ("com.microsoft.nchwc", "ReorderOutput"): "reorder_output",
    ("", "Conv"): "conv",
    ("com.microsoft", "FusedConv"): "conv",
    ("", "QLinearConv"): "qlinear_conv",
    ("com.microsoft", "QLinearConv"): "qlinear_conv",
    ("com.microsoft", "QLinearAdd"): "qlinear_add",
    ("", "Add"): "add",
    ("", "QuantizeLinear"): "quantize",
    ("", "DequantizeLinear"): "dequantize",
    ("", "Transpose"): "transpose",
    ("", "Gemm"): "gemm",
    ("com.microsoft", "FusedGemm"): "gemm",
    ("com.microsoft", "QGemm"): "qgemm",
    ("com.microsoft", "DynamicQuantizeMatMul"): "dynamic_matmul",
    ("com.microsoft", "MatMulIntegerToFloat"): "matmul_integer",
    ("", "DynamicQuantizeLinear"): "dynamic_quantize",
    ("", "MatMul"): "matmul",
    ("", "Relu"): "activation",
    ("", "Clip"): "activation",
    ("", "ReduceMean"): "global_pool",
    ("", "GlobalAveragePool"): "global_pool",
    ("", "Reshape"): "reshape",
    ("", "Flatten"): "reshape",
    ("", "MaxPool"): "pool",
}

CONVOLUTIONS = ("conv_nchwc", "conv", "qlinear_conv", "conv_transpose")
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


def foreseen(network: str, plan: Plan, block: int) -> tuple[Kernel, ...]:
    return lower(restructure(prepared(network).inventory, plan), batch=1, block=block)


def compiled(network: str, plan: Plan) -> Counter[str]:
    return Counter(KERNELS[node.domain, node.op] for node in optimized_ops(exported(network, plan, False)))


def kinds(kernels: tuple[Kernel, ...]) -> Counter[str]:
    """Pooling and transposing as the one operator that the compiled graph calls them, whatever they do it to."""
    return Counter(
        kernel.op.partition("_")[0] if kernel.op.startswith(("pool", "transpose")) else kernel.op for kernel in kernels
    )


@pytest.mark.parametrize("plan", ["untouched", "int8"])
@pytest.mark.parametrize("network", ["residual", "plain", "separable", "mlp"])
def test_uniform_plans_are_foreseen_exactly(network: str, plan: str, block: int) -> None:
    given = Plan() if plan == "untouched" else uniform_plan(network, format=Format(8))
    assert kinds(foreseen(network, given, block)) == compiled(network, given)


@pytest.mark.parametrize(
    ("network", "seed"),
    [
        *(("residual", 0), ("residual", 10), ("residual", 11)),
        *(("plain", 1), ("plain", 12), ("plain", 21), ("plain", 23)),
        *(("separable", 21), ("mlp", 22)),
    ],
)
def test_mixed_plans_are_foreseen_but_for_a_little_glue(network: str, seed: int, block: int) -> None:
    plan = random_plan(prepared(network).inventory, seed)
    expected, actual = compiled(network, plan), kinds(foreseen(network, plan, block))
    assert {op: actual[op] for op in WEIGHTED} == {op: expected[op] for op in WEIGHTED}
    glue = [op for op in expected | actual if op not in WEIGHTED]
    apart = sum(abs(expected[op] - actual[op]) for op in glue)
    assert apart <= sum(expected[op] for op in glue) / 4 + 3


def sequences_at_run_time(network: str) -> Plan:
    """w8d8 in all linears."""
    layers = prepared(network).inventory.layers
    return Plan({one.name: LayerPlan(format=Format(8, dynamic=True)) for one in layers if one.kind == "linear"})


@pytest.mark.parametrize("plan", ["untouched", "at run time", "weights alone"])
@pytest.mark.parametrize("network", ["encoder", "vit", "packed", "tied", "two_inputs", "decoder", "grouped", "dense"])
def test_products_attention_and_tables_are_foreseen(network: str, plan: str, block: int) -> None:
    given = {
        "untouched": Plan(),
        "at run time": sequences_at_run_time(network),
        "weights alone": uniform_plan(network, format=Format(4, 32)),
    }[plan]
    kinds = [kind_of(node.op, node.domain) or node.op for node in optimized_ops(exported(network, given, False))]
    expected = Counter("conv_nchwc" if kind == "BatchNormalization" else kind for kind in kinds)
    actual = Counter(kernel.op for kernel in foreseen(network, given, block))
    told = (*WEIGHTED, "attention", "dynamic_quantize", "layer_norm")
    assert {op: actual[op] for op in told} == {op: expected[op] for op in told}


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
