"""The predicted size is that of the file."""

from __future__ import annotations

import pytest

from autocomp.compress.structure import restructure
from autocomp.export.size import SizeModel
from autocomp.plan import Format, LayerPlan, Plan, Rank, Sparsity
from tests.networks import NETWORKS, exported, prepared, random_plan, thorough, uniform_plan

pytestmark = pytest.mark.slow


def predicted(network: str, plan: Plan, packed: bool) -> int:
    inventory = prepared(network).inventory
    untouched = len(exported(network, Plan(), packed))
    model = SizeModel.from_export(restructure(inventory, Plan()), untouched, packed, integer_bias=True)
    return model.predict(restructure(inventory, plan))


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "plain"])
def test_the_untouched_file_is_predicted_exactly(packed: bool) -> None:
    assert predicted("residual", Plan(), packed) == len(exported("residual", Plan(), packed))


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "plain"])
@pytest.mark.parametrize(
    ("network", "seed"),
    thorough([("residual", 0), ("residual", 1), ("residual", 2), ("plain", 3)], {("residual", 0), ("plain", 3)}),
)
def test_a_random_plans_file_is_predicted_within_a_hundredth(network: str, seed: int, packed: bool) -> None:
    plan = random_plan(prepared(network).inventory, seed)
    # A byte for each of the shorter names that a small file has is not foretold.
    assert predicted(network, plan, packed) == pytest.approx(len(exported(network, plan, packed)), rel=0.01, abs=90)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "plain"])
@pytest.mark.parametrize("network", thorough(NETWORKS, {"plain", "residual"}))
def test_a_file_of_a_few_thousand_bytes_is_off_by_a_few(network: str, packed: bool) -> None:
    """Values that happen to be equal (the steps behind clipped rectifiers) are stored once, which no plan tells; and what
    operators without weights take that go with a left-out block is not known to the byte."""
    plan = random_plan(prepared(network).inventory, 4)
    size = len(exported(network, plan, packed))
    assert abs(predicted(network, plan, packed) - size) < max(300, 0.01 * size)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_fewer_bits_are_a_smaller_file(bits: int) -> None:
    plan = uniform_plan("residual", format=Format(bits))
    size = len(exported("residual", plan, True))
    assert predicted("residual", plan, True) == pytest.approx(size, rel=0.01)
    assert size < len(exported("residual", Plan(), True)) * (bits / 32 + 0.25)


@pytest.mark.parametrize("network", ["plain", "residual"])
def test_predictions_fall_with_every_choice(network: str) -> None:
    untouched = predicted(network, Plan(), True)
    largest = {
        layer.name: layer.largest_paying_rank
        for layer in prepared(network).inventory.layers
        if layer.largest_paying_rank >= 8
    }
    for plan in (
        uniform_plan(network, sparsity=Sparsity("unstructured", 0.75)),
        uniform_plan(network, format=Format(8)),
        Plan({name: LayerPlan(rank=Rank("svd", largest[name] // 4)) for name in largest}),
    ):
        assert predicted(network, plan, True) < untouched
