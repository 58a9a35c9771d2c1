"""The exported file computes what the simulated model computes, packed as well as plain, at any batch size."""

from __future__ import annotations

import onnx
import pytest
import torch
from torch import nn

from autocomp.compress.apply import Compressed, apply
from autocomp.compress.prepare import prepare
from autocomp.compress.quantize import DEFAULT_NUMERICS
from autocomp.errors import ExportError
from autocomp.export.to_onnx import export_onnx
from autocomp.graph import ATTENTION
from autocomp.hardware.runtimes.onnxruntime import load, optimized_ops
from autocomp.hardware.runtimes.runtime import batch_outputs
from autocomp.plan import Format, LayerPlan, Plan, Rank, Sparsity
from autocomp.trace import Example, export_program, graph_module
from tests.networks import (
    NETWORKS,
    compressed,
    exported,
    inputs,
    numerics_here,
    prepared,
    random_plan,
    ready,
    run_file,
    run_module,
    thorough,
    uniform_plan,
)

pytestmark = pytest.mark.slow

#: Where rounding to an activation's levels meets a tie, the runtime may take the neighbour; this many levels of the
#: result's own range are allowed for what comes of it.
STEPS = 4


def joint(network: str, seed: int) -> Plan:
    return random_plan(prepared(network).inventory, seed)


def thin(network: str, level: float) -> Plan:
    return uniform_plan(network, sparsity=Sparsity("unstructured", level))


def sequences_at_run_time(bits: int) -> Plan:
    """Dynamic integers in all linears over sequences, weights alone in the embeddings, calibrated ones elsewhere."""
    return Plan(
        {
            layer.name: LayerPlan(
                format=Format(bits, 32)
                if layer.kind == "embedding"
                else Format(bits, dynamic=layer.kind == "linear" and len(layer.out_shape) > 1)
            )
            for layer in prepared("encoder").inventory.layers
        }
    )


CASES: dict[str, tuple[str, Plan]] = {
    "int8": ("residual", uniform_plan("residual", format=Format(8))),
    "2 bits": ("plain", uniform_plan("plain", format=Format(2))),
    "sparse": ("plain", thin("plain", 0.8)),
    "weights only": ("vit", uniform_plan("vit", format=Format(4, 32))),
    "at run time": ("encoder", sequences_at_run_time(8)),
    "at run time in 4 bits": ("encoder", sequences_at_run_time(4)),
    **{f"joint {network}": (network, joint(network, seed)) for seed, network in enumerate(NETWORKS)},
}

#: What `make test` tries.
USUAL = ({*CASES} - {f"joint {network}" for network in NETWORKS}) | {"joint residual"}


def outputs(case: str, packed: bool, batch: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """The simulated model's and the file's, for the same inputs."""
    network, plan = CASES[case]
    given = inputs(network, batch, seed)
    return run_module(compressed(network, plan).model, given), run_file(exported(network, plan, packed), given)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("case", thorough(CASES, USUAL))
def test_the_file_computes_what_the_simulated_model_does(case: str, packed: bool) -> None:
    simulated, actual = outputs(case, packed, batch=64)
    step = (simulated.max() - simulated.min()) / 255
    rounded = bool(compressed(*CASES[case]).weights)
    assert (actual - simulated).abs().max() <= (STEPS * step if rounded else 1e-4 * simulated.abs().max())
    assert (actual - simulated).abs().mean() <= 0.2 * step


@pytest.mark.parametrize("case", thorough(CASES, USUAL))
def test_packed_equals_plain_bit_for_bit(case: str) -> None:
    network, plan = CASES[case]
    packed, plain = (outputs(case, form, batch=16)[1] for form in (True, False))
    written_out = any(chosen.needs_two_bit_type for chosen in compressed(network, plan).formats.values())
    if written_out and any(node.op == ATTENTION for node in compressed(network, plan).graph.nodes):
        torch.testing.assert_close(packed, plain)  # attention is one operator in the plain file alone
    else:
        assert torch.equal(packed, plain)


@pytest.mark.parametrize("case", ["int8", "joint option_a", "weights only"])
def test_examples_do_not_depend_on_the_batch_they_come_in(case: str) -> None:
    network, plan = CASES[case]
    file = exported(network, plan, True)
    assert load(file, threads=1).input_shapes[0][0] is None
    (batch,) = inputs(network, 7, seed=2)
    whole = run_file(file, (batch,))
    assert whole.shape[0] == 7
    single = torch.cat([run_file(file, (example[None],)) for example in batch])
    torch.testing.assert_close(single, whole, rtol=1e-4, atol=float(STEPS * (whole.max() - whole.min()) / 255))


@pytest.mark.parametrize("network", ["encoder", "tied"])
def test_a_file_takes_sequences_of_any_length(network: str) -> None:
    plan = CASES[f"joint {network}"][1]
    file = exported(network, plan, True)
    assert all(shape == (None, None) for shape in load(file, threads=1).input_shapes)
    for tokens in (2, 5, 11):
        batch = tuple(torch.cat([x, x], dim=1)[:, :tokens] for x in inputs(network, 9, seed=3))
        simulated = run_module(compressed(network, plan).model, batch)
        step = (simulated.max() - simulated.min()) / 255
        assert (run_file(file, batch) - simulated).abs().max() <= STEPS * step


def test_what_a_model_returns_beside_its_tensors_is_given_back_with_them() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> dict[str, object]:
            return {"steps": 3, "logits": self.layer(x), "loss": None, "name": "net"}

    given = torch.randn(3, 8)
    net = prepare(Net().eval(), (given[:1],))
    compressed = apply(net, Plan({"layer": LayerPlan(format=Format(8))}), [(given,)])
    found = load(export_onnx(compressed, packed=True), threads=1).run(given.numpy())
    told = net.outputs.filled([torch.from_numpy(one) for one in found])
    assert isinstance(told, dict)
    assert (told["steps"], told["loss"], told["name"]) == (3, None, "net")
    torch.testing.assert_close(told["logits"], compressed.model(given)["logits"])


def test_branches_are_written_with_all_that_they_read() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.cond(x.sum() > 0, lambda x: x * 2.0, lambda x: x - 1.0, (self.first(x),))
            result: torch.Tensor = self.last(x)
            return result

    given = torch.randn(3, 8)
    net = prepare(Net().eval(), (given[:1],))
    compressed = apply(net, Plan({"last": LayerPlan(format=Format(8, 32))}), [(given,)])
    run = load(export_onnx(compressed, packed=True), threads=1).run
    for sign in (1.0, -1.0):
        one = sign * given.abs()
        (found,) = run(one.numpy())
        torch.testing.assert_close(torch.from_numpy(found), run_module(compressed.model, (one,)))


def test_a_nested_output_is_a_list_in_the_file_and_nested_again() -> None:
    network, plan = CASES["joint decoder"]
    given = inputs(network, 3)
    file = load(exported(network, plan, True), threads=1)
    tensors = [torch.from_numpy(array) for array in batch_outputs(file, *(x.numpy() for x in given))]
    again, expected = prepared(network).outputs.filled(tensors), compressed(network, plan).model(*given)
    assert isinstance(again, dict)
    assert again["mask"].shape == expected["mask"].shape
    assert again["rest"][0] is None
    assert again["rest"][1][0].shape == expected["rest"][1][0].shape


@pytest.mark.parametrize("case", ["2 bits", "sparse"])
def test_packing_makes_the_file_smaller(case: str) -> None:
    network, plan = CASES[case]
    assert len(exported(network, plan, True)) < len(exported(network, plan, False))


@pytest.mark.parametrize("case", thorough(CASES, USUAL))
def test_every_file_passes_the_checker_and_says_who_wrote_it(case: str) -> None:
    for packed in (False, True):
        model = onnx.load_from_string(exported(*CASES[case], packed))
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
    batch = inputs("plain", 16, seed=1)
    result = apply(prepare(model, inputs("plain", 1)), Plan(formats), [batch], numerics_here())
    actual, simulated = run_file(export_onnx(result, packed=True), batch), run_module(result.model, batch)
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

    example = Example((torch.ones(1, 3, 3),))
    program = export_program(Inverse().eval(), example)
    graph = prepared("mlp").inventory.graph
    model = Compressed(Plan(), graph_module(program), graph, example, {}, {}, {}, {}, DEFAULT_NUMERICS)
    with pytest.raises(ExportError) as raised:
        export_onnx(model, packed=False)
    assert "\n" not in str(raised.value)


class Again(nn.Module):
    """A convolution that is used twice, each time between two others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = (nn.Conv2d(a, b, 3, padding=1) for a, b in ((3, 8), (8, 8), (8, 4)))
        self.again = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.again(self.first(x).relu()).relu()
        x = self.again(self.middle(x).relu()).relu()
        result: torch.Tensor = self.last(x)
        return result


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "plain"])
def test_a_convolution_used_twice_between_integer_ones_is_left_as_it_is(packed: bool) -> None:
    batch = (torch.randn(8, 3, 10, 10, generator=torch.Generator().manual_seed(0)),)
    net = prepare(ready(Again(), seed=0), (batch[0][:1],))
    plan = Plan({layer.name: LayerPlan(format=Format(8)) for layer in net.inventory.layers})
    assert "again" not in plan.layers
    result = apply(net, plan, [batch], numerics_here())
    assert "again" not in result.formats
    given = (torch.randn(8, 3, 10, 10, generator=torch.Generator().manual_seed(1)),)
    simulated, actual = run_module(result.model, given), run_file(export_onnx(result, packed), given)
    assert float((simulated - actual).norm()) < 0.02 * float(simulated.norm())


class Shifted(nn.BatchNorm1d):
    """A batch norm that computes something besides, and so is not folded."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(8, affine=False), Shifted(8)], ids=["without weights", "of its own"])
@pytest.mark.parametrize(
    "chosen", [LayerPlan(format=Format(8)), LayerPlan(Sparsity("unstructured", 0.5))], ids=["int8", "sparse"]
)
def test_a_norm_behind_a_stored_layer_is_written(norm: nn.BatchNorm1d, chosen: LayerPlan) -> None:
    model = ready(nn.Sequential(nn.Linear(20, 8), norm, nn.ReLU(), nn.Linear(8, 3)), seed=0)
    batch = inputs("mlp", 32, seed=1)
    net = prepare(model, inputs("mlp", 1))
    result = apply(net, Plan({layer.name: chosen for layer in net.inventory.layers}), [batch], numerics_here())
    actual, simulated = run_file(export_onnx(result, packed=True), batch), run_module(result.model, batch)
    assert (actual - simulated).abs().max() <= STEPS * (simulated.max() - simulated.min()) / 255
