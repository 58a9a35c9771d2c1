"""Adjustments of the whole network: the same function before compression, the old means and spreads after it."""

from __future__ import annotations

import copy
from typing import get_args

import pytest
import torch
from torch import nn

from autocomp.compress.adjust import equalized, output_moments, smoothed
from autocomp.compress.apply import apply
from autocomp.compress.prepare import prepare
from autocomp.errors import PlanError
from autocomp.graph import Graph
from autocomp.plan import Adjustment, Format, LayerPlan, Plan, Rank, Sparsity
from tests.networks import NETWORKS, inputs, prepared, random_plan, ready, run_module, seeds


def error(plan: Plan, network: str) -> float:
    net, given = prepared(network), inputs(network, 64, seed=3)
    result = apply(net, plan, [inputs(network, 64, seed=4)])
    reference = run_module(net.model, given)
    return float((run_module(result.model, given) - reference).norm() / reference.norm())


def uneven() -> nn.Sequential:
    """A perceptron with channels of very different sizes, which the next layer takes back."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 5)).eval()
    sizes = torch.logspace(-1, 1, 32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("0."):
                parameter.mul_(sizes.reshape(-1, *[1] * (parameter.dim() - 1)))
            elif name == "2.weight":
                parameter.div_(sizes)
    return model


def layer_outputs(
    module: torch.fx.GraphModule, graph: Graph, given: tuple[torch.Tensor, ...]
) -> dict[str, torch.Tensor]:
    """Layer → mean and spread of its output's channels in a compressed network."""
    layers = {node.name: node.layer for node in graph.layers}
    found: dict[str, torch.Tensor] = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            result: object = super().run_node(n)
            if n.name in layers and isinstance(result, torch.Tensor):
                channels = result.movedim(1, 0).flatten(1)
                found[layers[n.name] or ""] = torch.stack([channels.mean(dim=1), channels.std(dim=1, correction=0)])
            return result

    with torch.no_grad():
        Recorder(module).run(*given)
    return found


@pytest.mark.parametrize("network", NETWORKS)
def test_equalizing_changes_no_output(network: str) -> None:
    net = prepared(network)
    even = equalized(net.model, net.inventory.graph, net.example.inputs)
    given = inputs(network, 8, seed=1)
    expected = run_module(net.model, given)
    torch.testing.assert_close(run_module(even, given), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_equalizing_brings_ranges_together_and_helps_few_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    given, other = (torch.randn(64, 20, generator=generator) for _ in range(2))
    net = prepare(uneven(), (given[:1],))
    even = equalized(net.model, net.inventory.graph, net.example.inputs)

    def spread(model: nn.Module) -> float:
        largest = model.get_submodule("0").get_parameter("weight").abs().amax(dim=1)
        return float(largest.max() / largest.median())

    assert spread(even) < 0.5 * spread(net.model)
    reference = run_module(net.model, (given,))
    choice = LayerPlan(format=Format(4, 32, granularity="tensor"))
    errors = []
    adjustments: tuple[Adjustment, ...]
    for adjustments in ((), ("equalize",)):
        plan = Plan({layer.name: choice for layer in net.inventory.layers}, adjustments=adjustments)
        result = apply(net, plan, [(other,)])
        errors.append(float((run_module(result.model, (given,)) - reference).norm()))
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("network", ["vit"])
def test_smoothing_changes_no_output_and_takes_outliers_out(network: str) -> None:
    net = prepared(network)
    calibration = [inputs(network, 16, seed=2)]
    smooth = smoothed(net.model, calibration, net.example.inputs)
    given = inputs(network, 8, seed=1)
    expected = run_module(net.model, given)
    torch.testing.assert_close(run_module(smooth, given), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    norms = [name for name, one in net.model.named_modules() if type(one) is nn.LayerNorm]
    changed = [
        name
        for name in norms
        if not torch.equal(
            smooth.get_submodule(name).get_parameter("weight"), net.model.get_submodule(name).get_parameter("weight")
        )
    ]
    assert changed


def test_smoothing_takes_an_outlier_out() -> None:
    net, calibration = prepared("vit"), [inputs("vit", 16, seed=2)]
    model = copy.deepcopy(net.model)
    norm = "layers.0.norm2"
    with torch.no_grad():
        model.get_submodule(norm).get_parameter("weight")[3] *= 30
    smooth = smoothed(model, calibration, net.example.inputs)
    before, after = (spread_of_channels(one, norm, calibration[0]) for one in (model, smooth))
    assert before > 20
    assert after < 0.5 * before


def spread_of_channels(model: nn.Module, norm: str, given: tuple[torch.Tensor, ...]) -> float:
    """The largest magnitude of a norm's outputs over the median of its channels' largest."""
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(norm).register_forward_hook(lambda _, __, output: seen.append(output.detach()))
    run_module(model, given)
    handle.remove()
    largest = seen[0].abs().flatten(0, -2).amax(dim=0)
    return float(largest.amax() / largest.median())


class Twins(nn.Module):
    """One layer for two inputs of different means, and for what it makes of them."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.shared(x) - self.shared(x.abs() + 3))
        return result


@pytest.mark.parametrize("adjustment", ["bias", "norms"])
def test_a_layer_that_is_used_twice_keeps_its_bias(adjustment: Adjustment) -> None:
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(64, 8, generator=generator)
    net = prepare(ready(Twins(), seed=0), (given[:1],))
    reference = run_module(net.model, (given,))
    plan = Plan({"head": LayerPlan(format=Format(8, 32))}, adjustments=(adjustment,))
    result = apply(net, plan, [(given,)])
    assert float((run_module(result.model, (given,)) - reference).norm() / reference.norm()) < 0.02


def test_means_and_spreads_are_put_back() -> None:
    net, given = prepared("plain"), inputs("plain", 64, seed=4)
    names = [layer.name for layer in net.inventory.layers]
    choice = LayerPlan(Sparsity("unstructured", 0.6), None, Format(3, 32))
    wanted = output_moments(net.model, names, given)
    off = {}
    adjustments: tuple[Adjustment, ...]
    for adjustments in ((), ("bias",), ("norms",)):
        result = apply(net, Plan(dict.fromkeys(names, choice), adjustments=adjustments), [given])
        seen = layer_outputs(result.model, result.graph, given)
        off[adjustments] = [
            sum(float((seen[name][row] - wanted[name][row]).abs().mean()) for name in names) for row in (0, 1)
        ]
    assert off["bias",][0] < 0.01 * off[()][0]
    assert off["norms",][0] < 0.01 * off[()][0]
    assert off["norms",][1] < 0.2 * off[()][1]


def test_norms_that_are_not_folded_are_reestimated() -> None:
    """Those in front of a convolution, as in pre-activation networks."""
    layers = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten()]
    torch.manual_seed(0)
    model = nn.Sequential(*layers, nn.Linear(16 * 16, 5))
    given = (torch.randn(256, 3, 8, 8, generator=torch.Generator().manual_seed(1)),)
    for _ in range(40):
        model(*given)  # its norm learns what it sees
    net = prepare(model.eval(), (given[0][:1],))
    first = net.inventory.layers[0].name
    plan = {first: LayerPlan(Sparsity("unstructured", 0.8))}
    before = copy.deepcopy(net.model.state_dict())
    found = {}
    for adjustments in ((), ("norms",)):
        module = apply(net, Plan(plan, adjustments=adjustments), [given]).model
        weight, bias = (module.get_parameter(f"{first}.{name}") for name in ("weight", "bias"))
        seen = torch.relu(nn.functional.conv2d(*given, weight, bias)).mean(dim=(0, 2, 3))
        kept = next(value for name, value in module.named_buffers() if name.endswith("running_mean"))
        found[adjustments] = float((kept - seen).abs().max())
    assert found[()] > 0.05
    assert found["norms",] < 1e-5
    assert all(torch.equal(value, before[name]) for name, value in net.model.state_dict().items())


def test_norms_over_sequences_are_reestimated_by_channel_and_those_without_statistics_are_left() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 12)
            self.norm, self.free = nn.BatchNorm1d(6), nn.BatchNorm1d(6, track_running_stats=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.second(self.free(self.norm(torch.relu(self.first(x)))))
            return result

    torch.manual_seed(0)
    given = (torch.randn(64, 6, 12, generator=torch.Generator().manual_seed(1)),)
    net = prepare(Net().eval(), (given[0][:1],))
    plan = Plan({"first": LayerPlan(Sparsity("unstructured", 0.8))}, adjustments=("norms",))
    module = apply(net, plan, [given]).model
    kept = next(value for name, value in module.named_buffers() if name.endswith("running_mean"))
    seen = torch.relu(
        nn.functional.linear(*given, *(module.get_parameter(f"first.{name}") for name in ("weight", "bias")))
    )
    assert torch.allclose(kept, seen.mean(dim=(0, 2)), atol=1e-4)


@pytest.mark.parametrize("after", ["bias", "norms"])
def test_what_was_equalized_is_corrected_to_what_it_was_then(after: Adjustment) -> None:
    model, given = uneven(), (torch.randn(256, 20, generator=torch.Generator().manual_seed(1)),)
    net = prepare(model, (given[0][:1],))
    result = apply(net, Plan(adjustments=("equalize", after)), [given])
    torch.testing.assert_close(run_module(result.model, given), run_module(model, given), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("seed", seeds(2))
@pytest.mark.parametrize("network", ["residual", "separable", "encoder", "vit"])
def test_adjustments_go_with_any_plan(network: str, seed: int) -> None:
    plan = random_plan(prepared(network).inventory, seed)
    adjusted = Plan(plan.layers, plan.dropped_blocks, get_args(Adjustment))
    given = inputs(network, 16)
    result = apply(prepared(network), adjusted, [given])
    assert run_module(result.model, given).isfinite().all()
    again = Plan.from_json(adjusted.to_json())
    assert (again, again.hash) == (adjusted, adjusted.hash)
    assert adjusted.hash != plan.hash


def test_a_low_rank_layer_is_corrected_behind_its_last_stage() -> None:
    net = prepared("residual")
    layers = {
        layer.name: LayerPlan(rank=Rank("svd", 3)) for layer in net.inventory.layers if layer.largest_paying_rank >= 3
    }
    assert error(Plan(layers, adjustments=("norms",)), "residual") < error(Plan(layers), "residual")


def test_an_adjustment_that_does_not_exist_is_named() -> None:
    with pytest.raises(PlanError, match="one of equalize, smooth, bias, norms; got 'polish'"):
        Plan(adjustments=("polish",))  # type: ignore[arg-type]
