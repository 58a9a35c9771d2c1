"""A torch package computes what the simulated model computes, in stock torch, and its size is foreseen."""

from __future__ import annotations

import io
import json
import re
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree

from autocomp.compress.apply import Compressed, apply
from autocomp.compress.apply import compress as compress_model
from autocomp.compress.prepare import prepare
from autocomp.compress.quantize import Floats, Numerics
from autocomp.compress.recovered import weights_hash, weights_of, with_weights
from autocomp.compress.structure import restructure
from autocomp.errors import ExportError
from autocomp.export.artifact import export, sizes_of
from autocomp.export.to_torch import export_torch
from autocomp.plan import Format, LayerPlan, Plan, Rank, Sparsity
from tests.networks import NETWORKS, eight_bits, inputs, prepared, random_plan, thorough, uniform_plan

#: Rounding errors of floats of 11 and of 8 bits, summed up; one in a rounding may move a level.
TOLERANCES: dict[Floats, float] = {"fp32": 1e-4, "fp16": 0.06, "bf16": 0.12}


def numerics(floats: Floats = "fp32", sparse: bool = False) -> Numerics:
    """Those of the ``cuda`` target. ``sparse``: on a GPU that multiplies no zeros."""
    return Numerics(
        symmetric_activations=True,
        integer_bias=False,
        rounded_outputs=False,
        floats=floats,
        sparse_products=sparse,
    )


@cache
def written(network: str, plan: Plan, floats: Floats = "fp32", sparse: bool = False) -> tuple[Compressed, bytes]:
    calibration = [inputs(network, 8, seed=100)]
    compressed = apply(prepared(network), plan, calibration, numerics(floats, sparse))
    return compressed, export_torch(compressed)


def flat(output: object) -> torch.Tensor:
    tensors = [leaf for leaf in _pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]
    assert all(tensor.dtype == torch.float32 for tensor in tensors)
    return torch.cat([tensor.flatten(1) for tensor in tensors], dim=1)


def errors(compressed: Compressed, package: bytes, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The largest difference between package and simulated model of each example, as a share of the largest output."""
    loaded = torch.export.load(io.BytesIO(package)).module()
    with torch.no_grad():
        actual, simulated = flat(loaded(*batch)), flat(compressed.model(*batch))
    assert actual.shape == simulated.shape
    return (actual - simulated).abs().amax(dim=1) / simulated.abs().max()


def error(compressed: Compressed, package: bytes, batch: tuple[torch.Tensor, ...]) -> float:
    return float(errors(compressed, package, batch).max())


def error_but_one(compressed: Compressed, package: bytes, network: str) -> float:
    """That of eight examples but the worst: in one, a float on the edge of two levels may be rounded to the other."""
    return float(errors(compressed, package, inputs(network, 8, seed=3)).sort().values[-2])


#: Networks that `make test` tries beside the quick ones.
SLOW = ("residual", "vit")


def some(*quick: str) -> list[Any]:
    """All networks, of which these belong to the quick tests, and most are left to CI."""
    slow = [pytest.param(name, marks=pytest.mark.slow) for name in SLOW if name not in quick]
    return [*quick, *slow, *thorough((name for name in NETWORKS if name not in {*quick, *SLOW}), ())]


@pytest.mark.parametrize("network", some("plain"))
@pytest.mark.parametrize("floats", ["fp16", pytest.param("bf16", marks=pytest.mark.slow)])
def test_an_untouched_network_is_computed_in_the_floats_of_the_target(network: str, floats: Floats) -> None:
    compressed, package = written(network, Plan(), floats)
    found = error(compressed, package, inputs(network, 3, seed=3))
    assert 0 < found < TOLERANCES[floats]


@pytest.mark.parametrize("network", some("plain", "encoder"))
def test_eight_bits_compute_what_the_simulated_model_computes(network: str) -> None:
    compressed, package = written(network, eight_bits(network))
    assert error_but_one(compressed, package, network) < TOLERANCES["fp32"]


@pytest.mark.parametrize("network", some("mlp"))
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_any_plan_computes_what_its_simulated_model_computes(network: str, seed: int) -> None:
    compressed, package = written(network, random_plan(prepared(network).inventory, seed))
    assert error_but_one(compressed, package, network) < TOLERANCES["fp32"]


@pytest.mark.parametrize("floats", ["fp16", "bf16"])
def test_eight_bits_between_halves(floats: Floats) -> None:
    compressed, package = written("mlp", eight_bits("mlp"), floats)
    assert error(compressed, package, inputs("mlp", 3, seed=3)) < TOLERANCES[floats]


def operations(package: bytes) -> list[str]:
    return [
        node.target.__name__ for node in torch.export.load(io.BytesIO(package)).graph.nodes if callable(node.target)
    ]


def test_linears_multiply_integers_and_convolutions_read_stored_weights() -> None:
    plan = eight_bits("plain")
    compressed, package = written("plain", plan)
    ops = operations(package)
    linears = [node for node in compressed.graph.layers if node.op == "linear"]
    assert ops.count("_int_mm.default") == len(linears) > 0
    assert "linear.default" not in ops
    state = torch.export.load(io.BytesIO(package)).state_dict
    for node in compressed.graph.layers:
        shapes = [tensor.shape for tensor in state.values() if tensor.dtype == torch.int8]
        assert any(shape.numel() >= node.weights for shape in shapes)
    assert not any(tensor.is_floating_point() and tensor.dim() > 1 and tensor.numel() > 64 for tensor in state.values())


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("inputs_of", [8, 13])
def test_products_of_any_size_and_batch_are_exact(asymmetric: bool, inputs_of: int) -> None:
    """Also where the kernel's sizes are filled up, and where the grid does not begin at zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(inputs_of, 11), nn.ReLU(), nn.Linear(11, 16)).eval()
    calibration = [(torch.randn(64, inputs_of),)]
    plan = Plan(dict.fromkeys(("0", "2"), LayerPlan(format=Format(8))))
    used = Numerics(symmetric_activations=not asymmetric, integer_bias=False, rounded_outputs=False)
    compressed = compress_model(model, plan, (torch.zeros(1, inputs_of),), calibration, used)
    package = export_torch(compressed)
    for batch in (1, 2, 16, 17, 40):
        assert error(compressed, package, (torch.randn(batch, inputs_of),)) < 1e-5


def test_numbers_that_halves_have_no_room_for_become_their_largest() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.linear(x).masked_fill(x[:, :1] > 0, torch.finfo(torch.float32).min)
            return y.softmax(dim=1) + torch.zeros(6, dtype=torch.float32)

    used = numerics("fp16")
    compressed = compress_model(Masked().eval(), Plan(), (torch.zeros(1, 4),), [(torch.randn(4, 4),)], used)
    assert error(compressed, export_torch(compressed), (torch.randn(5, 4),)) < 0.01


def test_constants_that_halves_have_no_room_for_become_their_largest() -> None:
    class Masked(nn.Module):
        least: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 6)
            self.register_buffer("least", torch.tensor(-1e9))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mask = (x[:, :1] > 0).to(x.dtype) * torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 0.0])
            y: torch.Tensor = self.linear(x) + (1.0 - mask) * self.least
            return y.softmax(dim=1)

    used = numerics("fp16")
    compressed = compress_model(Masked().eval(), Plan(), (torch.zeros(1, 4),), [(torch.randn(4, 4),)], used)
    assert error(compressed, export_torch(compressed), (torch.randn(5, 4),)) < 0.01


def test_a_package_counts_on_no_device() -> None:
    """Neither on where tensors are made, nor on how a CPU lays out what attention writes: torch's device without memory lays
    it out otherwise, as a GPU may."""
    from torch.export.passes import move_to_device_pass

    _, package = written("encoder", eight_bits("encoder"))
    program = move_to_device_pass(torch.export.load(io.BytesIO(package)), torch.device("meta"))
    output = program.module()(*(tensor.to("meta") for tensor in inputs("encoder", 3)))
    assert {leaf.device.type for leaf in _pytree.tree_leaves(output)} == {"meta"}


def test_the_same_model_gives_the_same_bytes() -> None:
    compressed, package = written("mlp", eight_bits("mlp"))
    assert export_torch(compressed) == package


def test_what_only_a_debugger_misses_is_left_out() -> None:
    _, package = written("plain", Plan())
    with zipfile.ZipFile(io.BytesIO(package)) as file:
        document = json.loads(file.read("archive/models/model.json"))
        assert all(node["metadata"] == {} for node in document["graph_module"]["graph"]["nodes"])
        stored = {entry.filename for entry in file.infolist() if entry.compress_type == zipfile.ZIP_STORED}
    assert "stack_trace" not in json.dumps(document)
    assert all("/weights/weight_" in name for name in stored)


def in_float8(network: str) -> Plan:
    """f8a8 in every linear."""
    layers = prepared(network).inventory.layers
    return Plan({one.name: LayerPlan(format=Format(8, grid="float8")) for one in layers if one.kind == "linear"})


@pytest.mark.parametrize("network", ["mlp", pytest.param("encoder", marks=pytest.mark.slow)])
def test_floats_of_eight_bits_compute_what_the_simulated_model_computes(network: str) -> None:
    compressed, package = written(network, in_float8(network))
    assert error(compressed, package, inputs(network, 3, seed=3)) < 1e-5
    ops = operations(package)
    assert ops.count("_scaled_mm.default") == len(compressed.formats) > 0
    assert "linear.default" not in ops or network != "mlp"
    stored = torch.export.load(io.BytesIO(package)).state_dict.values()
    assert sum(tensor.dtype == torch.float8_e4m3fn for tensor in stored) == len(compressed.formats)


def test_floats_of_eight_bits_are_near_the_floats_that_they_round() -> None:
    """Three bits behind the point: a weight or activation is off by a sixteenth at most."""
    _, package = written("mlp", in_float8("mlp"), "fp16")
    untouched, _ = written("mlp", Plan())
    batch = inputs("mlp", 16, seed=3)
    found, exact = flat(torch.export.load(io.BytesIO(package)).module()(*batch)), flat(untouched.model(*batch))
    assert 0 < float((found - exact).abs().mean() / exact.abs().mean()) < 0.1


def test_cut_weights_stay_zero_in_floats_of_eight_bits() -> None:
    layers = [one.name for one in prepared("mlp").inventory.layers]
    plan = Plan({name: LayerPlan(Sparsity("2:4", 0.5), None, Format(8, grid="float8")) for name in layers})
    compressed, package = written("mlp", plan)
    assert error(compressed, package, inputs("mlp", 3, seed=3)) < 1e-5
    for name, mask in compressed.masks.items():
        assert not compressed.model.get_parameter(name)[~mask].any()


def test_a_package_in_floats_of_eight_bits_has_its_size_foreseen() -> None:
    size = len(written("mlp", in_float8("mlp"), "fp16")[1])
    assert abs(predicted("mlp", in_float8("mlp"), "fp16") - size) < 250


def two_in_four(network: str) -> Plan:
    """2:4 in every linear."""
    layers = prepared(network).inventory.layers
    return Plan({one.name: LayerPlan(Sparsity("2:4", 0.5)) for one in layers if one.kind == "linear"})


@pytest.mark.parametrize("network", some("mlp", "encoder"))
@pytest.mark.parametrize("floats", ["fp16", pytest.param("bf16", marks=pytest.mark.slow)])
def test_products_without_zeros_compute_what_the_simulated_model_computes(network: str, floats: Floats) -> None:
    plan = two_in_four(network)
    compressed, package = written(network, plan, floats, sparse=True)
    multiplied = operations(package).count("_sparse_semi_structured_addmm.default")
    whole = [one for one in compressed.graph.layers if one.layer in plan.layers and one.weight_shape[1] % 4 == 0]
    assert multiplied == len(whole)
    for batch in (1, 3, 8):
        assert error(compressed, package, inputs(network, batch, seed=3)) < TOLERANCES[floats]
    assert "_sparse_semi_structured_addmm.default" not in operations(written(network, plan, floats)[1])


def test_a_package_holds_half_the_weights_and_where_they_belong() -> None:
    model = nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 64))
    calibration = [(torch.randn(8, 256, generator=torch.Generator().manual_seed(0)),)]
    plan = Plan({name: LayerPlan(Sparsity("2:4", 0.5)) for name in ("0", "2")})
    size = {
        sparse: len(
            export_torch(compress_model(model, plan, (torch.zeros(1, 256),), calibration, numerics("fp16", sparse)))
        )
        for sparse in (False, True)
    }
    weights = 256 * 128 + 128 * 64
    assert size[False] - size[True] == pytest.approx(2 * weights - weights * 9 / 8, abs=1500)  # of operations


@pytest.mark.parametrize("network", some("mlp", "encoder"))
def test_a_package_with_products_without_zeros_has_its_size_foreseen(network: str) -> None:
    plan = two_in_four(network)
    size = len(written(network, plan, "fp16", sparse=True)[1])
    assert abs(predicted(network, plan, "fp16", sparse=True) - size) < 250


@pytest.mark.parametrize(
    "layer", [LayerPlan(Sparsity("2:4", 0.5), format=Format(8)), LayerPlan(Sparsity("4:8", 0.5)), LayerPlan()]
)
def test_products_of_other_kinds_stay_what_they_are(layer: LayerPlan) -> None:
    plan = Plan({one.name: layer for one in prepared("mlp").inventory.layers if not layer.untouched})
    assert written("mlp", plan, "fp16", sparse=True)[1] == written("mlp", plan, "fp16")[1]


def test_onnx_has_no_floats_of_eight_bits() -> None:
    compressed, _ = written("mlp", in_float8("mlp"))
    with pytest.raises(ExportError, match=r"are for torch packages; layer .* has f8a8; write it with --format torch"):
        export(compressed, "onnx")


def test_recovered_weights_in_floats_of_eight_bits_come_back() -> None:
    compressed, package = written("mlp", in_float8("mlp"))
    weights = weights_of(compressed)
    assert len(weights_hash(weights)) == 16
    assert export(with_weights(compressed, weights), "torch") == package


def predicted(network: str, plan: Plan, floats: Floats, sparse: bool = False) -> int:
    inventory, used = prepared(network).inventory, numerics(floats, sparse)
    untouched = len(written(network, Plan(), floats, sparse)[1])
    return sizes_of(restructure(inventory, Plan(), used), untouched, "torch", used).predict(
        restructure(inventory, plan, used)
    )


@pytest.mark.parametrize("floats", ["fp32", "fp16"])
def test_the_untouched_packages_size_is_known(floats: Floats) -> None:
    assert predicted("plain", Plan(), floats) == len(written("plain", Plan(), floats)[1])


@pytest.mark.parametrize("floats", ["fp32", pytest.param("fp16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("network", thorough(NETWORKS, {"plain"}))
def test_a_packages_size_is_foreseen(network: str, floats: Floats) -> None:
    """Of the few thousand bytes of a test's network, the deflated words are a good part."""
    for plan in (eight_bits(network), random_plan(prepared(network).inventory, 4)):
        size = len(written(network, plan, floats)[1])
        assert abs(predicted(network, plan, floats) - size) < max(500, 0.01 * size)


def test_a_length_that_is_not_fixed_may_be_a_single_row() -> None:
    """A sentence of one word at batch one: CUDA's product takes no fewer than seventeen rows, and gets them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).eval()
    net = prepare(model, (torch.randn(1, 40, 64),), ((1,),))
    plan = Plan({"0": LayerPlan(format=Format(8)), "2": LayerPlan(rank=Rank("svd", 16), format=Format(8))})
    compressed, untouched = (apply(net, one, [(torch.randn(8, 40, 64),)], numerics()) for one in (plan, Plan()))
    package = export_torch(compressed)
    assert len([one for one in operations(package) if one.startswith("pad")]) == 3
    assert all(node.free == (1,) for node in restructure(net.inventory, plan, numerics()).graph.nodes if node.layer)
    for length in (1, 40, 57):
        assert error(compressed, package, (torch.randn(1, length, 64),)) < 0.02
    sizes = sizes_of(restructure(net.inventory, Plan(), numerics()), len(export_torch(untouched)), "torch", numerics())
    assert abs(sizes.predict(restructure(net.inventory, plan, numerics())) - len(package)) < 500


def test_eight_bits_of_a_larger_network_are_foreseen_within_a_hundredth() -> None:
    model = nn.Sequential(*(nn.Sequential(nn.Linear(256, 256), nn.ReLU()) for _ in range(6))).eval()
    example, calibration = (torch.zeros(1, 256),), [(torch.randn(8, 256),)]
    used = numerics("fp16")

    def size_of(plan: Plan) -> int:
        return len(export_torch(compress_model(model, plan, example, calibration, used)))

    inventory = prepare(model, example).inventory
    plan = Plan({layer.name: LayerPlan(format=Format(8)) for layer in inventory.layers})
    sizes = sizes_of(restructure(inventory, Plan(), used), size_of(Plan()), "torch", used)
    assert sizes.predict(restructure(inventory, plan, used)) == pytest.approx(size_of(plan), rel=0.01)


def test_fewer_bits_are_stored_in_bytes() -> None:
    """A package has no narrower type: four bits take what eight do, but for the grids of the moment that none has."""
    eight, four = (len(written("plain", uniform_plan("plain", format=Format(bits)))[1]) for bits in (8, 4))
    assert four == pytest.approx(eight, rel=0.01)


def test_the_three_lines_of_the_documentation_load_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user types them, in a folder with the file: a network of 3×16×16 images."""
    text = (Path(__file__).parents[2] / "docs" / "cuda.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 14 * 14, 5)).eval()
    example = (torch.zeros(1, 3, 16, 16),)
    compressed = compress_model(model, Plan(), example, [(torch.randn(2, 3, 16, 16),)], numerics("fp16"))
    (tmp_path / "model.pt2").write_bytes(export_torch(compressed))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code, names)
    torch.testing.assert_close(names["output"], model(*example), rtol=1e-2, atol=1e-2)
