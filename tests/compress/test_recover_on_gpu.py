"""Recovery on a GPU: the same training, in less time."""

from __future__ import annotations

import pytest
import torch

from autocomp.compress.apply import apply
from autocomp.compress.prune import kept_count
from autocomp.compress.recipe import Recovery
from autocomp.compress.recover import recover
from autocomp.compress.solve import Solver
from autocomp.plan import Format, LayerPlan, Sparsity
from tests.compress.test_recover import CALIBRATION, CHOICES, batches, error, plan, two_bits
from tests.networks import inputs, prepared, run_module

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that torch can use")
CUDA = torch.device("cuda")


@pytest.mark.parametrize("choice", CHOICES)
def test_it_comes_as_near_as_on_the_cpu(choice: str) -> None:
    net = prepared("residual")
    solver = Solver(net.model, CALIBRATION)
    before = apply(net, plan(CHOICES[choice]), CALIBRATION, solver=solver)
    recovery = Recovery(6, rate=0.02)
    here, there = (
        recover(net, before, batches(), recovery, solver, labelled=False, device=device).compressed
        for device in (torch.device("cpu"), CUDA)
    )
    assert error(there) < 1.1 * error(here)
    for name, mask in there.masks.items():
        assert torch.equal(mask, before.masks[name])
    for name, stored in there.weights.items():
        assert torch.equal(there.model.get_parameter(name), stored.dequantized())


@pytest.mark.parametrize(
    "recovery", [Recovery(6, gradual=True, l1=1e-3), Recovery(6, features=1.0), Recovery(6, bfloat16=True)]
)
def test_every_recipe_goes_there(recovery: Recovery) -> None:
    net, choice = prepared("residual"), LayerPlan(Sparsity("unstructured", 0.8), None, Format(4))
    solver = Solver(net.model, CALIBRATION)
    before = apply(net, plan(choice), CALIBRATION, solver=solver)
    # Batches of two sizes: what is recorded for one is no good for the other.
    data = [*batches(11, classes=True), tuple(tensor[:5] for tensor in batches(1, classes=True)[0])]
    after = recover(net, before, data, recovery, solver, device=CUDA).compressed
    assert error(after) < error(before)
    for mask in after.masks.values():
        assert int(mask.sum()) == kept_count(tuple(mask.shape), Sparsity("unstructured", 0.8))


def test_attention_goes_there() -> None:
    net, data = prepared("encoder"), [inputs("encoder", 8, seed=seed) for seed in range(6)]
    solver = Solver(net.model, data[:2])
    before = apply(net, two_bits(net), data[:2], solver=solver)
    after = recover(net, before, data, Recovery(8, rate=0.02), solver, labelled=False, device=CUDA).compressed
    given = inputs("encoder", 32, seed=9)
    reference = run_module(net.model, given)
    errors = [float((run_module(one.model, given) - reference).norm()) for one in (before, after)]
    assert errors[1] < 0.9 * errors[0]
