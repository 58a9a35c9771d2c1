"""Facts about a model, and which plans fit it."""

from __future__ import annotations

import io
import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from autocomp.compress.agreement import agree
from autocomp.compress.apply import apply
from autocomp.compress.factorize import factorize
from autocomp.compress.prepare import prepare
from autocomp.compress.quantize import Numerics
from autocomp.errors import PlanError, RequestError
from autocomp.export.to_torch import export_torch
from autocomp.inventory import ChannelGroup, LayerInfo
from autocomp.plan import Format, LayerPlan, Plan, Rank, RankMethod, Sparsity
from autocomp.search.begin import left_alone
from tests.compress.test_prune import moment
from tests.networks import NETWORKS, inputs, prepared, random_plan, ready

KINDS: dict[type[nn.Module], str] = {
    nn.Conv2d: "conv2d",
    nn.ConvTranspose2d: "conv_transpose2d",
    nn.Linear: "linear",
    nn.Embedding: "embedding",
}


#: Layers that have a rank.
RANKED = [
    nn.Conv2d(32, 32, 3),
    nn.Conv2d(64, 16, 3),
    nn.Conv2d(16, 64, 3),
    nn.Conv2d(12, 20, (2, 5)),
    nn.Conv2d(24, 40, 1),
    nn.Conv2d(16, 16, (1, 3)),
    nn.Linear(48, 20),
    nn.Linear(3, 3),
    nn.Embedding(30, 12),
]


def info(layer: nn.Module) -> LayerInfo:
    shape = tuple(layer.get_parameter("weight").shape)
    return LayerInfo("a", KINDS[type(layer)], shape, (), (), 0, math.prod(shape), None)


def weights_of(module: nn.Module) -> int:
    return sum(parameter.numel() for name, parameter in module.named_parameters() if name.endswith("weight"))


def linear_info(rows: int, columns: int) -> LayerInfo:
    return LayerInfo("a", "linear", (rows, columns), (columns,), (rows,), rows * columns, rows * columns, None)


def refused(network: str, plan: Plan) -> str:
    with pytest.raises(PlanError) as raised:
        prepared(network).inventory.check(plan)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("network", sorted({*NETWORKS} - {"tied"}))
def test_every_layer_is_found_with_its_shapes(network: str) -> None:
    model = prepared(network).model
    seen: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
    hooks = [
        module.register_forward_hook(
            lambda _, given, result, name=name: seen.append((name, given[0].shape[1:], result.shape[1:]))
        )
        for name, module in model.named_modules()
        if type(module) in KINDS
    ]
    model(*inputs(network, 1))
    for hook in hooks:
        hook.remove()
    layers = prepared(network).inventory.layers
    assert [(layer.name, layer.in_shape, layer.out_shape) for layer in layers] == seen
    for layer in layers:
        module = model.get_submodule(layer.name)
        assert layer.params == sum(parameter.numel() for parameter in module.parameters())
        assert layer.kind == KINDS[type(module)]


def test_macs_are_the_products_that_are_summed() -> None:
    layer = prepared("residual").inventory.by_name["2.shortcut.0"]
    assert layer.macs == 24 * 4 * 4 * 16


def test_a_layer_names_its_group_or_says_why_it_has_none() -> None:
    inventory = prepared("residual").inventory
    assert inventory.by_name["1.conv2"].group == "0.0"
    assert inventory.by_name["4.linear"].group is None
    assert "output" in (inventory.by_name["4.linear"].reason or "")


def test_what_has_no_method_is_listed_as_skipped() -> None:
    model = ready(nn.Sequential(nn.Conv2d(3, 8, 3), nn.PReLU(), nn.ConvTranspose2d(8, 4, 2)), seed=0)
    inventory = prepare(model, inputs("plain", 1)).inventory
    assert dict(inventory.skipped) == {"1": "PReLU has no compression method here"}
    assert [layer.name for layer in inventory.layers] == ["0", "2"]


def test_a_layer_that_is_not_used_says_so() -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = nn.Linear(20, 4), nn.Linear(20, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.used(x)
            return result

    skipped = prepare(Spare(), inputs("mlp", 1)).inventory.skipped
    assert skipped == (("spare", "the model does not use it in evaluation"),)


@pytest.mark.parametrize("wrong", [torch.bfloat16, torch.float16, torch.float64, torch.device("meta")], ids=str)
def test_a_model_must_be_of_32_bit_floats_on_the_cpu(wrong: torch.dtype | torch.device) -> None:
    with pytest.raises(
        RequestError, match=rf"float32 on the CPU; '0.weight' is .*{wrong}.*; give it .float\(\).cpu\(\)"
    ):
        prepare(nn.Sequential(nn.Linear(20, 4)).to(wrong), inputs("mlp", 1))


def test_weights_that_are_computed_of_others_are_computed_once_and_the_model_stays_as_it_is() -> None:
    norms = torch.nn.utils.parametrizations
    model = nn.Sequential(norms.weight_norm(nn.Linear(8, 6)), nn.ReLU(), norms.spectral_norm(nn.Linear(6, 4))).eval()
    some = torch.randn(5, 8)
    before = model(some)
    net = prepare(model, (some[:1],))
    assert [layer.name for layer in net.inventory.layers] == ["0", "2"]
    torch.testing.assert_close(net.model(some), before)
    assert torch.equal(model(some), before)
    assert parametrize.is_parametrized(model[0])


def test_a_model_that_writes_into_its_inputs_is_run_on_copies() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 3)
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.norm(self.layer(x.sub_(0.5).mul_(4.0))).mean(dim=(2, 3))
            return result

    model, batch = ready(Scaled(), seed=2), torch.rand(8, 3, 6, 6)
    kept = batch.clone()
    net = prepare(model, (torch.full_like(batch[:1], 2 / 3),))  # which stays as it is
    plan = Plan({"layer": LayerPlan(format=Format(8))})
    steps = [apply(net, plan, [(batch,)]).model(batch) for _ in range(2)]
    assert torch.equal(*steps)
    assert torch.equal(batch, kept)
    assert not net.inventory.skipped  # the norm is folded


def test_a_model_that_is_one_layer_can_be_replaced_by_two() -> None:
    net = prepare(nn.Linear(16, 12), (torch.randn(1, 16),))
    (layer,) = net.inventory.layers
    found = apply(net, Plan({layer.name: LayerPlan(rank=Rank("svd", 3))}), [(torch.randn(4, 16),)])
    assert [node.weight_shape for node in found.graph.layers] == [(3, 16), (12, 3)]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_model_that_cannot_be_copied_is_told_the_way_out() -> None:
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(20, 4)))
    with pytest.raises(RequestError, match="call remove_weight_norm on its layers") as raised:
        prepare(model, inputs("mlp", 1))
    assert "\n" not in str(raised.value)
    nn.utils.remove_weight_norm(model[0])
    assert prepare(model, inputs("mlp", 1)).inventory.layers


def test_a_weight_that_is_used_twice_is_left_alone() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 8, 3, padding=1)
            self.twice = nn.Conv2d(8, 8, 3, padding=1)
            self.head = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.twice(self.twice(self.first(x).relu()).relu())
            result: torch.Tensor = self.head(y.mean(dim=(2, 3)))
            return result

    inventory = prepare(ready(Shared(), seed=0), inputs("plain", 1)).inventory
    assert inventory.skipped == (("twice", "its weight is used more than once"),)
    assert "twice" not in inventory.by_name
    coupled = next(group for group in inventory.groups if "twice" in group.producers)
    assert coupled.reason == "its weight is used more than once"


class ComputedBias(nn.Module):
    """A linear whose bias is made of other parameters at every run, between two others."""

    def __init__(self, joined: bool) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(20, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.part = nn.Parameter(torch.ones(4)) if joined else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = self.middle.bias * 0.5 if self.part is None else torch.cat([self.part, torch.zeros_like(self.part)])
        y = nn.functional.linear(self.first(x).relu(), self.middle.weight, bias)
        result: torch.Tensor = self.last(y.relu())
        return result


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize(
    "numerics", [Numerics(), Numerics(integer_bias=False, rounded_outputs=False)], ids=["onnx", "torch"]
)
def test_a_layer_whose_bias_is_computed_is_left_alone(joined: bool, numerics: Numerics) -> None:
    model, batch = ready(ComputedBias(joined), seed=0), inputs("mlp", 16, seed=1)
    net = prepare(model, inputs("mlp", 1))
    assert dict(net.inventory.skipped)["middle"] == "its bias is computed anew at every run"
    assert all("middle" not in group.producers or not group.prunable for group in net.inventory.groups)
    result = apply(
        net, Plan({layer.name: LayerPlan(format=Format(8)) for layer in net.inventory.layers}), [batch], numerics
    )
    assert "middle" not in result.formats
    with torch.no_grad():
        expected, simulated = model(*batch), result.model(*batch)
    assert float((simulated - expected).norm()) < 0.05 * float(expected.norm())
    loaded = torch.export.load(io.BytesIO(export_torch(result))).module()
    torch.testing.assert_close(loaded(*batch), simulated, rtol=1e-3, atol=1e-3)


@given(st.integers(2, 2000), st.integers(2, 2000))
def test_a_rank_pays_as_long_as_the_factors_are_smaller(rows: int, columns: int) -> None:
    rank = linear_info(rows, columns).largest_paying_rank
    assert rank * (rows + columns) < rows * columns
    assert (rank + 1) * (rows + columns) >= rows * columns


@pytest.mark.parametrize("method", get_args(RankMethod))
@pytest.mark.parametrize("layer", RANKED, ids=str)
def test_a_rank_saves_where_the_factors_that_are_made_hold_fewer_weights(layer: nn.Module, method: RankMethod) -> None:
    facts = info(layer)
    largest, full = facts.largest_rank(method), facts.full_rank(method)
    by_kernel = method in {"spatial", "tucker2"}
    assert (full > 0) == (not by_kernel or (isinstance(layer, nn.Conv2d) and min(layer.kernel_size) > 1))
    seen = moment(facts.matrix_shape[1])
    smallest = 2 if method == "nmf" else 1  # a part each for what is positive and what is negative
    for r in sorted({smallest, largest - 1, largest, largest + 1, full - 1} & {*range(smallest, full)}):
        saves = weights_of(factorize(layer, Rank(method, r), seen)) < weights_of(layer)
        assert saves == facts.saves(Rank(method, r)) == (r <= largest), f"rank {r}"
    assert not facts.saves(Rank(method, max(1, full)))


@pytest.mark.parametrize(
    ("shape", "method", "largest"),
    [
        ((32, 32, 3, 3), "spatial", 47),
        ((32, 32, 3, 3), "svd", 28),
        ((16, 64, 3, 3), "spatial", 38),
        ((64, 16, 3, 3), "tucker2", 50),
    ],
)
def test_every_method_has_a_largest_rank_of_its_own(shape: tuple[int, ...], method: RankMethod, largest: int) -> None:
    assert LayerInfo("a", "conv2d", shape, (), (), 0, math.prod(shape), None).largest_rank(method) == largest


def test_a_depthwise_conv_has_no_rank() -> None:
    layer = prepared("separable").inventory.by_name["3"]
    assert layer.largest_paying_rank == 0
    assert "'3'" in refused("separable", Plan({"3": LayerPlan(rank=Rank("svd", 1))}))


@given(st.integers(1, 512), st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_a_group_keeps_at_least_one_channel(width: int, level: float) -> None:
    kept = ChannelGroup("a", width, ("a",), {}).kept(level)
    assert 1 <= kept <= width
    assert abs(kept - max(1.0, width * (1 - level))) <= 0.5 + 1e-9


def test_an_unknown_layer_is_refused_with_the_near_matches() -> None:
    message = refused("residual", Plan({"1.conv3": LayerPlan(rank=Rank("svd", 2))}))
    assert "'1.conv3'" in message
    assert "1.conv1" in message


def test_a_rank_that_is_no_truncation_is_refused() -> None:
    message = refused("residual", Plan({"1.conv1": LayerPlan(rank=Rank("svd", 12))}))
    assert "'1.conv1'" in message
    assert "12" in message


def test_a_group_that_cannot_be_pruned_is_refused_by_name() -> None:
    outer = Plan({"2.conv2": LayerPlan(Sparsity("channel", 0.5))})
    assert "'2.conv2'" in refused("option_a", outer)
    output = refused("plain", Plan({"12": LayerPlan(Sparsity("channel", 0.5))}))
    assert "'12'" in output
    assert "output" in output


def test_coupled_layers_must_have_one_level() -> None:
    half, quarter = LayerPlan(Sparsity("channel", 0.5)), LayerPlan(Sparsity("channel", 0.25))
    for plan in (Plan({"0.0": half}), Plan({"1.conv2": half}), Plan({"0.0": half, "1.conv2": quarter})):
        message = refused("residual", plan)
        assert "'0.0'" in message
        assert "'1.conv2'" in message


def test_only_a_block_that_there_is_may_be_left_out() -> None:
    assert [block.name for block in prepared("residual").inventory.blocks] == ["1"]
    assert "'3'" in refused("residual", Plan(dropped_blocks=("3",)))
    assert "this model has none" in refused("plain", Plan(dropped_blocks=("3",)))


@pytest.mark.parametrize(
    ("network", "layer", "chosen", "way_out"),
    [
        ("encoder", "token", Format(4), "w4a32"),
        ("decoder", "up", Format(8), "w8a32"),
        ("residual", "0.0", Format(8, dynamic=True), "w8a8"),
        ("encoder", "token", Format(2, dynamic=True), "w2a32"),
    ],
)
def test_a_format_without_a_kernel_is_refused_with_the_way_out(
    network: str, layer: str, chosen: Format, way_out: str
) -> None:
    message = refused(network, Plan({layer: LayerPlan(format=chosen)}))
    assert repr(layer) in message
    assert str(chosen) in message
    assert f"give it {way_out}" in message


def test_heads_are_cut_from_all_that_make_them() -> None:
    half = LayerPlan(Sparsity("head", 0.5))
    message = refused("encoder", Plan({"layers.0.attention.query": half}))
    assert "the same heads" in message
    assert "'layers.0.attention.key'" in message
    assert "they belong to no group of heads" in refused("encoder", Plan({"layers.0.up": half}))
    channels = Plan({"layers.0.attention.query": LayerPlan(Sparsity("channel", 0.5))})
    assert "they make attention heads, which go as a whole" in refused("encoder", channels)


@pytest.mark.parametrize("network", NETWORKS)
def test_plans_that_fit_are_let_through(network: str) -> None:
    inventory = prepared(network).inventory
    for seed in range(20):
        inventory.check(random_plan(inventory, seed))


class Functional(nn.Module):
    """Computes with a linear's weight without calling it, as torchvision's Swin does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(nn.functional.linear(x, self.inner.weight, self.inner.bias)))  # type: ignore[no-any-return]


def test_no_rank_is_offered_where_the_model_computes_with_a_weight_by_itself() -> None:
    inventory = prepare(Functional().eval(), (torch.zeros(1, 16),)).inventory
    assert {layer.name: layer.largest_paying_rank for layer in inventory.layers} == {"inner": 0, "last": 7}
    with pytest.raises(PlanError, match="not called as a module"):
        inventory.check(Plan({"inner": LayerPlan(rank=Rank("svd", 4))}))


class Biased(nn.Module):
    """Computes a bias from a table of its own, as Swin V2 does with relative positions."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(8.0))
        self.bias, self.last = nn.Linear(8, 16), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(x + self.bias(self.get_buffer("table")))  # type: ignore[no-any-return]


def test_a_layer_that_the_input_does_not_reach_is_left_with_a_reason() -> None:
    inventory = prepare(Biased().eval(), (torch.zeros(1, 16),)).inventory
    assert [layer.name for layer in inventory.layers] == ["last"]
    assert "constants alone" in dict(inventory.skipped)["bias"]


class Mirrored(nn.Module):
    """A language model that reads its embedding's transpose for the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.own = nn.Embedding(40, 16), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.relu(self.own(self.words(x))) @ self.words.weight.t()
        return result


def test_a_weight_that_is_a_tensor_as_well_is_left_alone() -> None:
    inventory = prepare(Mirrored().eval(), (torch.zeros(1, 6, dtype=torch.long),)).inventory
    assert [layer.name for layer in inventory.layers] == ["own"]
    assert dict(inventory.skipped)["words"] == "its weight is read by other operators as well"


class Logarithmic(nn.Module):
    """Reads powers, which are positive, and marks in its output what is not to be seen."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 24), nn.Linear(24, 24), nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.head(torch.relu(self.second(torch.relu(self.first(torch.log(x))))))
        result: torch.Tensor = torch.cat([y, torch.full_like(y[:, :1], -math.inf)], dim=1)
        return result


def test_channels_are_tried_on_what_the_model_can_read() -> None:
    inventory = prepare(Logarithmic().eval(), (torch.rand(1, 12) + 0.1,)).inventory
    assert {group.producers: group.reason for group in inventory.groups if group.prunable} == {
        ("first",): None,
        ("second",): None,
    }


@pytest.mark.parametrize("mask", [-math.inf, -1e9])
def test_what_a_mask_writes_hides_no_difference(mask: float) -> None:
    output = (torch.tensor([[0.5, -0.25, mask]]), torch.tensor([[1e4]]))
    for place, off in (((0, 0, 0), 0.01), ((1, 0, 0), 100.0)):
        other = [one.clone() for one in output]
        assert agree(output, other)
        other[place[0]][place[1], place[2]] += off
        assert not agree(output, other)


def test_what_takes_units_goes_by_magnitude_where_a_layer_cannot_be_watched() -> None:
    net = prepared("decoder")
    groups = [group for group in net.inventory.groups if group.prunable]
    for group in groups:
        plan = Plan({name: LayerPlan(Sparsity("channel", 0.5, saliency="hessian")) for name in group.producers})
        net.inventory.check(plan)


def test_what_holds_much_of_the_weights_and_is_left_alone_is_told() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.norm, self.own = nn.Embedding(200, 16), nn.LayerNorm(16), nn.Linear(16, 16)
            self.scores = nn.Linear(16, 200, bias=False)
            self.scores.weight = self.words.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.scores(self.norm(self.own(self.words(x))))
            return result

    tied = prepare(Tied().eval(), (torch.zeros(1, 6, dtype=torch.long),))
    assert "norm" in dict(tied.inventory.skipped)
    assert left_alone(tied) == (
        "left as they are, with 91% of the parameters: words, scores (its weight is used more than once)"
    )
    assert left_alone(prepared("plain")) is None
