"""The exported file computes what the simulated model computes, packed as well as plain, at any batch size."""

from __future__ import annotations

import onnx
import pytest
import torch
from torch import nn

from autocomp.compress.apply import Compressed, apply, prepare
from autocomp.errors import ExportError
from autocomp.export.to_onnx import export_onnx
from autocomp.graph import export_program, graph_module
from autocomp.hardware.runtimes.onnxruntime import load, optimized_ops
from autocomp.plan import Format, LayerPlan, Plan, Rank, Sparsity
from tests.networks import compressed, exported, images, prepared, random_plan, ready, uniform_plan

pytestmark = pytest.mark.slow

#: Where rounding to an activation's levels meets a tie, the runtime may take the neighbour; this many levels of the
#: result's own range are allowed for what comes of it.
STEPS = 4


def joint(network: str, seed: int) -> Plan:
    return random_plan(prepared(network).inventory, seed)


def thin(network: str, level: float) -> Plan:
    return uniform_plan(network, sparsity=Sparsity("unstructured", level))


CASES: dict[str, tuple[str, Plan]] = {
    "int8": ("residual", uniform_plan("residual", format=Format(8))),
    "2 bits": ("plain", uniform_plan("plain", format=Format(2))),
    "sparse": ("plain", thin("plain", 0.8)),
    "joint residual": ("residual", joint("residual", 0)),
    "joint plain": ("plain", joint("plain", 1)),
    "joint option A": ("option_a", joint("option_a", 2)),
    "joint separable": ("separable", joint("separable", 3)),
    "joint linears": ("mlp", joint("mlp", 4)),
}


def outputs(case: str, packed: bool, batch: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """The simulated model's and the file's, for the same inputs."""
    network, plan = CASES[case]
    inputs = images(network, batch, seed)
    with torch.no_grad():
        simulated = compressed(network, plan).model(*inputs)
    return simulated, load(exported(network, plan, packed), threads=1).predict(*inputs)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("case", CASES)
def test_the_file_computes_what_the_simulated_model_does(case: str, packed: bool) -> None:
    simulated, actual = outputs(case, packed, batch=64)
    step = (simulated.max() - simulated.min()) / 255
    rounded = bool(compressed(*CASES[case]).weights)
    assert (actual - simulated).abs().max() <= (STEPS * step if rounded else 1e-4 * simulated.abs().max())
    assert (actual - simulated).abs().mean() <= 0.2 * step
    assert (actual.argmax(dim=1) == simulated.argmax(dim=1)).float().mean() >= 0.95


@pytest.mark.parametrize("case", CASES)
def test_packed_equals_plain_bit_for_bit(case: str) -> None:
    assert torch.equal(outputs(case, packed=True, batch=16)[1], outputs(case, packed=False, batch=16)[1])


@pytest.mark.parametrize("case", ["int8", "joint option A"])
def test_examples_do_not_depend_on_the_batch_they_come_in(case: str) -> None:
    network, plan = CASES[case]
    model = load(exported(network, plan, True), threads=1)
    assert model.input_shapes[0][0] is None
    (batch,) = images(network, 7, seed=2)
    whole = model.predict(batch)
    assert whole.shape[0] == 7
    single = torch.cat([model.predict(example[None]) for example in batch])
    torch.testing.assert_close(single, whole, rtol=1e-4, atol=float(STEPS * (whole.max() - whole.min()) / 255))


@pytest.mark.parametrize("case", ["2 bits", "sparse"])
def test_packing_makes_the_file_smaller(case: str) -> None:
    network, plan = CASES[case]
    assert len(exported(network, plan, True)) < len(exported(network, plan, False))


def test_every_file_passes_the_checker_and_says_who_wrote_it() -> None:
    for network, plan in CASES.values():
        for packed in (False, True):
            model = onnx.load_from_string(exported(network, plan, packed))
            onnx.checker.check_model(model, full_check=True)
            assert model.producer_name == "autocomp"


def test_fewer_bits_and_weights_make_smaller_files() -> None:
    sizes = [len(exported("residual", plan, True)) for plan in (Plan(), *(CASES[case][1] for case in ("int8",)))]
    assert sizes[1] < sizes[0] / 2


def test_an_int8_net_holds_no_float_convolution() -> None:
    ops = [node.op for node in optimized_ops(exported(*CASES["int8"], False))]
    convs = len([node for node in prepared("residual").inventory.graph.layers if node.op == "conv2d"])
    assert ops.count("QLinearConv") == convs
    assert ops.count("QGemm") == 1
    assert not {"Conv", "FusedConv", "Gemm", "MatMul"} & set(ops)
    assert [node.op for node in optimized_ops(exported(*CASES["int8"], True))] == ops


def test_the_same_model_gives_the_same_bytes_and_is_left_as_it_is() -> None:
    result = compressed(*CASES["joint residual"])
    before = {name: value.clone() for name, value in result.model.state_dict().items()}
    code = result.model.code
    assert export_onnx(result, packed=True) == exported(*CASES["joint residual"], True)
    after = result.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert result.model.code == code


def test_equal_parameters_are_kept_apart() -> None:
    """torch.onnx merges small initializers of equal value, which may be stored in different formats."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU()),
        *(nn.Conv2d(4, 4, 1), nn.Flatten()),
    )
    ready(model, seed=0)
    with torch.no_grad():
        for position in (0, 2, 4, 6):
            model.get_submodule(str(position)).get_parameter("bias").zero_()
        for position in (4, 6):
            weight = model.get_submodule("2").get_parameter("weight")
            model.get_submodule(str(position)).get_parameter("weight").copy_(weight)
    formats = {"2": LayerPlan(format=Format(2)), "4": LayerPlan(Sparsity("unstructured", 0.5))}
    batch = images("plain", 16, seed=1)
    result = apply(prepare(model, images("plain", 1)), Plan(formats), [batch])
    actual, simulated = load(export_onnx(result, packed=True), threads=1).predict(*batch), result.model(*batch)
    assert (actual - simulated).abs().max() <= STEPS * (simulated.max() - simulated.min()) / 255


def test_a_low_rank_pair_is_two_layers_of_the_file() -> None:
    plan = Plan({"10": LayerPlan(rank=Rank("svd", 4))})
    shapes = {tuple(one.dims) for one in onnx.load_from_string(exported("plain", plan, False)).graph.initializer}
    assert {(4, 256), (24, 4)} <= shapes


def test_an_operator_that_onnx_does_not_have_is_an_error_in_one_line() -> None:
    class Inverse(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = torch.linalg.eigvals(x).abs()
            return result

    program = export_program(Inverse().eval(), (torch.ones(1, 3, 3),))
    graph = prepared("mlp").inventory.graph
    model = Compressed(Plan(), graph_module(program), graph, (torch.ones(1, 3, 3),), {}, {}, {})
    with pytest.raises(ExportError) as raised:
        export_onnx(model, packed=False)
    assert "\n" not in str(raised.value)
