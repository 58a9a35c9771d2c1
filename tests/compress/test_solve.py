"""A layer at a setting is solved once, and what a solution looks at is what its layer really reads."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from autocomp.compress import solve
from autocomp.compress.apply import apply
from autocomp.compress.channels import cut_channels
from autocomp.compress.prepare import prepare
from autocomp.compress.rounding import quantize_weight
from autocomp.compress.solve import Gone, Setting, Solver
from autocomp.compress.statistics import Statistics, input_columns
from autocomp.plan import Format, LayerPlan, Plan, Rank, Rounding, Sparsity
from tests.networks import inputs, prepared, run_module

CALIBRATION = [inputs("residual", 32, seed=1)]
GPTQ = LayerPlan(format=Format(4, rounding="gptq"))
CUT = LayerPlan(Sparsity("unstructured", 0.5, "hessian"), None, Format(8))


def test_no_layer_is_solved_twice_at_one_setting() -> None:
    net = prepared("residual")
    solver = Solver(net.model, CALIBRATION)
    names = [layer.name for layer in net.inventory.layers]
    apply(net, Plan(dict.fromkeys(names, GPTQ)), CALIBRATION, solver=solver)
    assert solver.solved == len(names)
    again = apply(net, Plan(dict.fromkeys(names, GPTQ)), CALIBRATION, solver=solver)
    assert solver.solved == len(names)
    apply(net, Plan(dict.fromkeys(names, GPTQ) | {names[1]: CUT}), CALIBRATION, solver=solver)
    assert solver.solved == len(names) + 1
    fresh = apply(net, Plan(dict.fromkeys(names, GPTQ)), CALIBRATION)
    for name, stored in fresh.weights.items():
        assert torch.equal(stored.levels, again.weights[name].levels)


def test_what_is_longest_unused_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    net = prepared("residual")
    solver = Solver(net.model, CALIBRATION)
    names = [layer.name for layer in net.inventory.layers]
    monkeypatch.setattr(solve, "KEPT_WEIGHTS", 1)  # room for one
    for _ in range(2):
        apply(net, Plan(dict.fromkeys(names, GPTQ)), CALIBRATION, solver=solver)
    assert solver.solved == 2 * len(names)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, 3, stride=2, padding=(0, 1), dilation=2),
        nn.Conv2d(4, 8, 3, groups=2),
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect"),
        nn.Conv2d(4, 6, (1, 3)),
    ],
    ids=str,
)
def test_input_columns_are_what_the_weights_are_multiplied_with(conv: nn.Conv2d) -> None:
    x = torch.randn(2, 4, 9, 9, generator=torch.Generator().manual_seed(0))
    columns = input_columns(conv, x, rows=10**6)
    rows = conv.weight.reshape(conv.groups, -1, columns.shape[2])
    products = (columns @ rows.mT).movedim(0, 1).flatten(1)  # (positions, outputs)
    bias = 0 if conv.bias is None else conv.bias
    expected = conv(x).movedim(1, -1).reshape(-1, conv.out_channels)
    torch.testing.assert_close(products + bias, expected, rtol=1e-4, atol=1e-4)


def test_moments_behind_stages_are_of_what_these_give() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)).eval()
    given = torch.randn(64, 6)
    stages = [nn.Linear(7, 3, bias=False), nn.Linear(3, 5)]
    found = Statistics(model, [(given,)]).moment_behind("2", stages, inputs_gone=[2])
    with torch.no_grad():
        read = stages[0](torch.relu(model[0](given))[:, [0, 1, 3, 4, 5, 6, 7]])
    torch.testing.assert_close(found.second[0], read.T @ read / 64, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.mean[0], read.mean(dim=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("gone", [Gone(), Gone(inputs=(1, 2))], ids=["whole", "without two inputs"])
def test_what_a_second_stage_reads_follows_from_what_the_layer_reads(kind: str, gone: Gone) -> None:
    """Rounded by it, the stage is what it is by what it is seen to read."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 7) if kind == "linear" else nn.Conv2d(6, 7, 3, stride=2, padding=1)
    model, given = nn.Sequential(layer).eval(), torch.randn((64, 6) if kind == "linear" else (8, 6, 9, 9))
    solver = Solver(model, [(given,)])
    setting = Setting("0", 1, gone, Rank("whitened", 3), None, Format(3, 32, rounding="gptq"))
    found = solver.solution(setting)
    stages = [copy.deepcopy(stage) for stage in solver.factors("0", Rank("whitened", 3))]
    if gone.inputs:
        cut_channels(stages[0], "in", {*gone.inputs})
    seen = Statistics(model, [(given,)]).moment_behind("0", stages, gone.inputs)
    expected = quantize_weight(
        stages[1].get_parameter("weight").detach(), Format(3, 32, rounding="gptq"), None, False, seen
    )
    assert found.quantized is not None
    assert torch.equal(found.quantized.levels, expected.levels)


def test_gradients_tell_what_a_weight_is_worth() -> None:
    """The expected squared change of the outputs, which small changes of single weights bring about."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).eval()
    given = torch.randn(400, 5)
    batches = [(part,) for part in torch.split(given, 4)]
    gradient = Statistics(model, batches).gradient("0")
    before = run_module(model, (given,))
    for row, column in ((0, 0), (3, 2), (6, 4)):
        changed = copy.deepcopy(model)
        with torch.no_grad():
            changed.get_submodule("0").get_parameter("weight")[row, column] += 1e-3
        moved = (run_module(changed, (given,)) - before).square().sum(dim=1).mean() / 1e-6
        assert float(gradient[row, column]) == pytest.approx(float(moved), rel=0.35)


def test_the_stages_of_a_layer_are_solved_each_by_what_they_read() -> None:
    net = prepared("residual")
    # Not the first, whose inputs are noise: what an SVD makes of that is uncorrelated, and nearest is best.
    wide = [layer.name for layer in net.inventory.layers if layer.largest_paying_rank >= 6][-1]
    errors = []
    given = CALIBRATION[0]
    reference = run_module(apply(net, Plan({wide: LayerPlan(rank=Rank("svd", 6))}), CALIBRATION).model, given)
    roundings: tuple[Rounding, ...] = ("nearest", "gptq")
    for rounding in roundings:
        chosen = LayerPlan(rank=Rank("svd", 6), format=Format(3, 32, rounding=rounding))
        result = apply(net, Plan({wide: chosen}), CALIBRATION)
        errors.append(float((run_module(result.model, given) - reference).norm()))
    assert errors[1] < errors[0]


class Same(nn.Linear):
    """A linear by another name."""


class Named(nn.Module):
    """Layers that are called by the name of their input, as others by its place."""

    def __init__(self, kind: type[nn.Linear], named: bool) -> None:
        super().__init__()
        self.named = named
        self.norm, self.first, self.last = nn.LayerNorm(12), kind(12, 16), kind(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.first, self.last):
            x = self.norm(x) if layer is self.first else x.relu()
            x = layer(input=x) if self.named else layer(x)
        return x


@pytest.mark.parametrize(("kind", "named"), [(Same, False), (nn.Linear, True)])
def test_a_layer_is_solved_by_what_it_computes_whatever_it_is_called_and_how(
    kind: type[nn.Linear], named: bool
) -> None:
    batches = [(torch.randn(32, 12, generator=torch.Generator().manual_seed(5)),)]
    chosen = LayerPlan(Sparsity("unstructured", 0.5, "wanda"), Rank("whitened", 3), Format(4, rounding="gptq"))
    plan = Plan({"first": chosen, "last": CUT}, adjustments=("smooth", "bias"))
    outputs = []
    for model in (Named(nn.Linear, False), Named(kind, named)):
        torch.manual_seed(0)
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        net = prepare(model, (batches[0][0][:1],))
        outputs.append(run_module(apply(net, plan, batches).model, batches[0]))
    torch.testing.assert_close(*outputs)


def test_a_layer_that_cannot_be_watched_is_not_asked_about() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x, self.inner.weight, self.inner.bias)

    net = prepare(Own().eval(), (torch.randn(1, 6),))
    (layer,) = net.inventory.layers
    assert not layer.sees_inputs
