"""A plan applied: pure, a no-op by default, the same twice, and every method where the plan has it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from autocomp.compress.apply import apply, compress
from autocomp.compress.distill import distillation
from autocomp.compress.prepare import prepare
from autocomp.compress.prune import kept_count
from autocomp.compress.quantize import Numerics
from autocomp.errors import PlanError
from autocomp.plan import Format, LayerPlan, Plan, Rank, Sparsity
from tests.networks import (
    NETWORKS,
    compressed,
    eight_bits,
    inputs,
    prepared,
    random_plan,
    ready,
    residual,
    run_module,
    seeds,
    uniform_plan,
)

CALIBRATION = [inputs("residual", 16, seed=100)]


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same_state(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_nothing_given_is_changed() -> None:
    model = residual().train()
    before, example, calibration = state(model), inputs("residual", 1), copy.deepcopy(CALIBRATION)
    ready_net = prepare(model, example)
    folded = state(ready_net.model)
    plan = random_plan(ready_net.inventory, seed=3)
    apply(ready_net, plan, calibration)
    assert same_state(state(model), before)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert same_state(state(ready_net.model), folded)
    assert torch.equal(calibration[0][0], CALIBRATION[0][0])
    assert torch.equal(example[0], inputs("residual", 1)[0])


@pytest.mark.parametrize("network", NETWORKS)
def test_the_default_plan_computes_what_the_model_does(network: str) -> None:
    batch = inputs(network, 6, seed=7)
    result = compressed(network, Plan())
    expected = run_module(NETWORKS[network](), batch)
    torch.testing.assert_close(run_module(result.model, batch), expected, rtol=1e-4, atol=1e-5)
    assert not result.weights
    assert not result.masks
    assert not result.biases


@pytest.mark.parametrize("network", ["residual", "separable", "encoder", "vit"])
def test_the_same_call_twice_gives_the_same(network: str) -> None:
    plan, calibration = random_plan(prepared(network).inventory, seed=11), [inputs(network, 16)]
    one, other = (apply(prepared(network), plan, calibration) for _ in range(2))
    assert same_state(state(one.model), state(other.model))
    batch = inputs(network, 4, seed=1)
    assert torch.equal(run_module(one.model, batch), run_module(other.model, batch))


def test_preparing_twice_gives_the_same() -> None:
    one, other = (prepare(residual(), inputs("residual", 1)) for _ in range(2))
    assert one.inventory.groups == other.inventory.groups
    assert same_state(state(one.model), state(other.model))


@pytest.mark.parametrize("seed", seeds(3))
@pytest.mark.parametrize("network", NETWORKS)
def test_random_joint_plans_run_at_any_batch(network: str, seed: int) -> None:
    result = compressed(network, random_plan(prepared(network).inventory, seed))
    for batch in (1, 7):
        output = run_module(result.model, inputs(network, batch))
        assert output.shape[0] == batch
        assert output.isfinite().all()


@pytest.mark.parametrize("network", NETWORKS)
def test_gentle_plans_stay_close(network: str) -> None:
    batch = inputs(network, 32, seed=5)
    exact, rounded = (run_module(compressed(network, plan).model, batch) for plan in (Plan(), eight_bits(network)))
    assert 0 < float((exact - rounded).norm() / exact.norm()) < 0.1


def test_single_weights_are_cut_by_count_and_stay_zero_when_rounded() -> None:
    plan = Plan({"2.conv1": LayerPlan(Sparsity("unstructured", 0.6), None, Format(4))})
    result = compressed("residual", plan)
    weight, mask = result.model.get_parameter("2.conv1.weight"), result.masks["2.conv1.weight"]
    assert int(mask.sum()) == kept_count(tuple(weight.shape), Sparsity("unstructured", 0.6))
    assert not weight[~mask].any()
    whole = prepared("residual").model.get_parameter("2.conv1.weight")
    assert whole[mask].abs().min() >= whole[~mask].abs().max()


def test_rank_comes_before_sparsity_and_format() -> None:
    plan = Plan({"3.conv2": LayerPlan(Sparsity("unstructured", 0.5), Rank("svd", 6), Format(4))})
    result = compressed("residual", plan)
    assert set(result.masks) == {"3.conv2.0.weight", "3.conv2.1.weight"}
    assert set(result.masks) <= set(result.weights)
    assert result.model.get_parameter("3.conv2.0.weight").shape == (6, 32, 3, 3)
    assert result.model.get_parameter("3.conv2.1.weight").shape == (32, 6, 1, 1)


def test_channels_are_cut_behind_a_truncated_rank() -> None:
    cut = Sparsity("channel", 0.5)
    result = compressed(
        "residual", Plan({"1.conv1": LayerPlan(cut, Rank("svd", 4)), "1.conv2": LayerPlan(rank=Rank("svd", 3))})
    )
    assert result.model.get_parameter("1.conv1.1.weight").shape == (6, 4, 1, 1)
    assert result.model.get_parameter("1.conv2.0.weight").shape == (3, 6, 3, 3)


@pytest.mark.parametrize("network", ["plain", "residual"])
def test_stored_weights_are_those_of_the_model(network: str) -> None:
    result = compressed(network, random_plan(prepared(network).inventory, seed=1))
    assert result.weights
    for name, stored in result.weights.items():
        assert torch.equal(result.model.get_parameter(name), stored.dequantized())


def test_biases_are_whole_numbers_of_accumulator_steps() -> None:
    result = compressed("residual", uniform_plan("residual", format=Format(4)))
    assert len(result.biases) == len(prepared("residual").inventory.layers)
    for name, bias in result.biases.items():
        levels = result.model.get_parameter(name).double() / bias.steps.double()
        torch.testing.assert_close(levels, levels.round(), rtol=1e-6, atol=1e-3)
        assert levels.abs().max() < 2**31


@pytest.mark.parametrize("switched_off", [0.0, 1e-9, 1e-30])
def test_a_channel_without_weights_keeps_its_bias(switched_off: float) -> None:
    """Its step would be next to nothing, and the bias too many of them for an int32."""
    model = residual()
    norm = model.get_submodule("1.norm1")
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        norm.weight[:4] = switched_off
        norm.bias[:4] = 1.0
    batch = inputs("residual", 32, seed=5)
    plan = Plan({"1.conv1": LayerPlan(format=Format(8))})
    exact, rounded = (compress(model, one, inputs("residual", 1), CALIBRATION).model for one in (Plan(), plan))
    torch.testing.assert_close(rounded.get_parameter("1.conv1.bias")[:4], torch.ones(4), rtol=1e-3, atol=0.0)
    assert float((exact(*batch) - rounded(*batch)).norm() / exact(*batch).norm()) < 0.05


def test_float_biases_stay_as_they_are() -> None:
    plan = uniform_plan("residual", format=Format(8))
    result = apply(prepared("residual"), plan, CALIBRATION, Numerics(symmetric_activations=True, integer_bias=False))
    assert not result.biases
    for layer in prepared("residual").inventory.layers:
        bias = f"{layer.name}.bias"
        assert torch.equal(result.model.get_parameter(bias), prepared("residual").model.get_parameter(bias))


@pytest.mark.parametrize("network", ["encoder", "tied"])
def test_a_sequence_may_have_any_length(network: str) -> None:
    result = compressed(network, random_plan(prepared(network).inventory, seed=5))
    for tokens in (2, 3, 11):
        batch = tuple(torch.cat([x, x], dim=1)[:, :tokens] for x in inputs(network, 3))
        assert run_module(result.model, batch).isfinite().all()


def test_an_output_keeps_its_form() -> None:
    """What a file gives as a plain list comes back nested as the model gives it."""
    model, batch = NETWORKS["decoder"](), inputs("decoder", 3)
    with torch.no_grad():
        expected = model(*batch)
    form = prepared("decoder").outputs
    again = form.filled([expected["mask"], expected["rest"][1][0]])
    assert isinstance(again, dict)
    assert torch.equal(again["mask"], expected["mask"])
    nothing, (score,) = again["rest"]
    assert nothing is None
    assert torch.equal(score, expected["rest"][1][0])


def test_a_plan_for_another_model_is_refused() -> None:
    with pytest.raises(PlanError, match="'features'"):
        apply(prepared("mlp"), Plan({"features": LayerPlan(format=Format(8))}), [inputs("mlp", 4)])


def test_gradients_need_not_be_on() -> None:
    plan = random_plan(prepared("residual").inventory, seed=2)
    with torch.no_grad():
        ready_net = prepare(residual(), inputs("residual", 1))
        result = apply(ready_net, plan, CALIBRATION)
    assert ready_net.inventory.groups == prepared("residual").inventory.groups
    assert same_state(state(result.model), state(apply(ready_net, plan, CALIBRATION).model))


class Score(nn.Module):
    """One number an example, alone or beside one for the whole batch."""

    def __init__(self, both: bool) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(20, 8), nn.Linear(8, 8), nn.Linear(8, 1)
        self.both = both

    def forward(self, x: torch.Tensor) -> Any:
        score = self.last(self.second(self.first(x).relu()).relu()).squeeze(-1)
        return (score, score.square().mean()) if self.both else score


@pytest.mark.parametrize("both", [False, True])
def test_an_output_need_have_no_second_dimension(both: bool) -> None:
    net, batch = prepare(ready(Score(both), seed=0), inputs("mlp", 1)), inputs("mlp", 16, seed=1)
    assert {group.name for group in net.inventory.groups if group.prunable} == {"first", "second"}
    plan = Plan(
        {
            "first": LayerPlan(Sparsity("channel", 0.25, "taylor")),
            "second": LayerPlan(rank=Rank("svd", 2)),
            "last": LayerPlan(Sparsity("unstructured", 0.5, "taylor")),
        },
        adjustments=("equalize",),
    )
    result = apply(net, plan, [batch])
    assert run_module(result.model, batch).shape == ((1, 17) if both else (16, 1))
    given, wanted = result.model(*batch), net.model(*batch)
    assert 0 < float(distillation(given, wanted, None, 0.0)) < 1


class Twice(nn.Module):
    """A conv or a batch norm that is used a second time."""

    def __init__(self, shared: str) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.norm, self.other = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        if shared == "conv":
            self.second = self.first
        else:
            self.other = self.norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.other(self.second(self.norm(self.first(x)).relu()))
        return result


class Behind(nn.Module):
    """A batch norm behind a linear, over its outputs or over something else."""

    def __init__(self, norm: nn.BatchNorm1d) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(6, 5), norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.norm(self.linear(x))
        return result


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm1d(5), (6,)),
        (nn.BatchNorm1d(5, affine=False), (6,)),
        (nn.BatchNorm1d(5), (5, 6)),
        (nn.BatchNorm1d(7), (7, 6)),
    ],
    ids=["outputs", "without weights", "positions as many as outputs", "positions"],
)
def test_a_norm_behind_a_linear_is_folded_only_where_it_is_over_its_outputs(
    norm: nn.BatchNorm1d, shape: tuple[int, ...]
) -> None:
    model, batch = ready(Behind(norm), seed=0), torch.randn(4, *shape)
    torch.testing.assert_close(prepare(model, (batch[:1],)).model(batch), model(batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shared", ["conv", "norm"])
def test_what_is_used_twice_is_not_folded(shared: str) -> None:
    model, batch = ready(Twice(shared), seed=0), inputs("residual", 4)
    torch.testing.assert_close(prepare(model, inputs("residual", 1)).model(*batch), model(*batch), rtol=1e-4, atol=1e-5)


class Activated(nn.BatchNorm2d):
    """timm's: a batch norm by inheritance, with an activation in it."""

    def __init__(self, channels: int, shifts: bool) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)
        self.shifts = shifts

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.act(self.drop(super().forward(x)))
        return result + 1 if self.shifts else result


@pytest.mark.parametrize("odd", [False, True])
def test_what_a_norm_computes_besides_is_kept(odd: bool) -> None:
    model = ready(nn.Sequential(nn.Conv2d(3, 4, 3), Activated(4, odd), nn.Conv2d(4, 2, 3)), seed=0)
    batch = inputs("residual", 4)
    prepared = prepare(model, (batch[0][:1],))
    torch.testing.assert_close(prepared.model(*batch), model(*batch), rtol=1e-4, atol=1e-5)
    ops = [node.op for node in prepared.inventory.graph.nodes]
    assert ("batch_norm" in ops) == odd
    assert "relu_" in ops


def test_a_model_that_reaches_into_its_norm_is_not_folded() -> None:
    class Reaching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.norm(self.conv(x)) * self.norm.weight.mean()
            return result

    model, batch = ready(Reaching(), seed=0), inputs("residual", 4)
    torch.testing.assert_close(prepare(model, (batch[0][:1],)).model(*batch), model(*batch), rtol=1e-4, atol=1e-5)
