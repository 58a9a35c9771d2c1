"""Activations that no runtime has a kernel for: rounded alike in model and file, never counted as time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autocomp.compress.apply import apply
from autocomp.compress.latent import LearnedSimulated
from autocomp.compress.prepare import prepare
from autocomp.compress.recipe import Recovery
from autocomp.compress.recover import recover
from autocomp.compress.recovered import weights_of, with_weights
from autocomp.compress.simulate import SimulatedQuantizer, on_grid
from autocomp.compress.solve import Solver
from autocomp.compress.structure import restructure
from autocomp.errors import UncoveredKernelError
from autocomp.export.to_onnx import export_onnx
from autocomp.plan import Format, LayerPlan, Plan
from tests.networks import inputs, prepared, run_file, run_module, thorough
from tests.targets import made_target


def plan(network: str, chosen: Format) -> Plan:
    layers = [layer for layer in prepared(network).inventory.layers if layer.computes_integers]
    return Plan({layer.name: LayerPlan(format=chosen) for layer in layers})


@pytest.mark.parametrize(("bits", "count"), [(4, 16), (1, 2)])
def test_as_many_values_are_left_as_the_bits_tell(bits: int, count: int) -> None:
    x = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    rounded = (SimulatedQuantizer(1, 0.8) if bits == 1 else on_grid(bits, -3.0, 3.0))(x)
    assert len(torch.unique(rounded)) == count
    assert float((rounded - x).square().mean()) < float(x.square().mean())


def test_more_bits_are_closer() -> None:
    given = inputs("residual", 32)
    expected = run_module(prepared("residual").model, given)
    errors = []
    for bits in (1, 4, 16):
        result = apply(prepared("residual"), plan("residual", Format(8, bits)), [inputs("residual", 64, seed=3)])
        errors.append(float((run_module(result.model, given) - expected).norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "plain"])
@pytest.mark.parametrize("bits", [1, 4, 16])
@pytest.mark.parametrize("network", thorough(["plain", "encoder"], {"plain"}))
def test_the_file_rounds_as_the_model_does(network: str, bits: int, packed: bool) -> None:
    result = apply(prepared(network), plan(network, Format(4, bits)), [inputs(network, 32)])
    given = inputs(network, 16, seed=1)
    simulated, actual = run_module(result.model, given), run_file(export_onnx(result, packed), given)
    # A value on the border of two levels may fall either way.
    assert float((simulated - actual).abs().median()) <= 1e-4 * float(simulated.abs().max())


def test_behind_integers_they_are_rounded_as_well() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    images = torch.randn(16, 3, 8, 8)
    net = prepare(model, (images[:1],))
    layers = {"0": LayerPlan(format=Format(8)), "2": LayerPlan(format=Format(8, 4))}
    result = apply(net, Plan(layers), [(images,)])
    seen: list[torch.Tensor] = []
    (quantizer,) = (one for one in result.model.modules() if isinstance(one, SimulatedQuantizer))
    quantizer.register_forward_hook(lambda _module, _given, output: seen.append(output))
    run_module(result.model, (images,))
    assert 2 < len(torch.unique(torch.cat(seen))) <= 16


def test_no_time_is_promised_for_them() -> None:
    structure = restructure(prepared("plain").inventory, plan("plain", Format(4, 4)))
    with pytest.raises(UncoveredKernelError, match=r"no kernel for activations of w4a4 \(simulated\)"):
        made_target().predict(structure)


@pytest.mark.parametrize("bits", [1, 4])
def test_recovery_trains_through_them(bits: int) -> None:
    net, data = prepared("plain"), [inputs("plain", 16, seed=seed) for seed in range(10)]
    solver = Solver(net.model, data[:2])
    before = apply(net, plan("plain", Format(4, bits)), data[:2], solver=solver)
    after = recover(net, before, data, Recovery(10, rate=0.005), solver, labelled=False).compressed
    given = inputs("plain", 64, seed=99)
    reference = run_module(net.model, given)
    errors = [float((run_module(one.model, given) - reference).norm()) for one in (before, after)]
    assert errors[1] < 0.9 * errors[0]
    # Their steps are learned with it, and are among what is kept of a recovered network.
    steps = [
        [one.step for one in found.model.modules() if isinstance(one, SimulatedQuantizer)] for found in (before, after)
    ]
    assert all(one != other for one, other in zip(*steps, strict=True))
    again = with_weights(before, weights_of(after))
    assert torch.equal(run_module(again.model, given), run_module(after.model, given))


@pytest.mark.parametrize("bits", [1, 4])
def test_the_gradient_of_a_step_is_that_of_learned_steps(bits: int) -> None:
    """By LSQ's rule for steps, XNOR-Net's for magnitudes; of what lies outside nothing goes back to the values."""
    start = SimulatedQuantizer(1, 0.5) if bits == 1 else SimulatedQuantizer(4, 0.25, 8)
    learned = LearnedSimulated(start)
    x = torch.tensor([-9.0, -0.4, 0.1, 0.3, 9.0], requires_grad=True)
    rounded = learned(x)
    assert torch.equal(rounded.detach(), start(x.detach()))
    rounded.sum().backward()
    assert x.grad is not None
    assert learned.log_scale.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]
    within = (
        rounded.detach() if bits == 1 else torch.where(x.grad == 1, rounded.detach() - x.detach(), rounded.detach())
    )
    assert float(learned.log_scale.grad) == pytest.approx(float(within.sum()), rel=1e-5)
