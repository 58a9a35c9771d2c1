"""Plans: JSON both ways, a stable hash, and errors that name the value."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocomp.errors import PlanError
from autocomp.plan import UNTOUCHED, WEIGHT_BITS, Format, LayerPlan, Plan, Rank, Sparsity

sparsities = st.builds(
    Sparsity,
    st.sampled_from(["unstructured", "channel", "head"]),
    st.floats(0, 1, exclude_min=True, exclude_max=True),
)
formats = st.sampled_from([Format(bits, *how) for bits in WEIGHT_BITS for how in ((8, False), (8, True), (32, False))])
layer_plans = st.builds(
    LayerPlan,
    st.none() | sparsities,
    st.none() | st.builds(Rank, st.just("svd"), st.integers(1, 10_000)),
    st.none() | formats,
)
plans = st.builds(
    Plan,
    st.dictionaries(st.text(min_size=1), layer_plans, max_size=6),
    st.lists(st.text(min_size=1), max_size=2).map(tuple),
)


@given(plans)
def test_json_brings_the_plan_back(plan: Plan) -> None:
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.to_json() == plan.to_json()
    assert again.hash == plan.hash
    assert hash(again) == hash(plan)


@given(plans)
def test_a_plan_can_be_sent_to_another_process(plan: Plan) -> None:
    assert pickle.loads(pickle.dumps(plan)) == plan


@given(plans, st.randoms())
def test_the_order_in_which_layers_are_named_does_not_matter(plan: Plan, chance: object) -> None:
    items = list(plan.layers.items())
    chance.shuffle(items)  # type: ignore[attr-defined]
    assert Plan(dict(items), plan.dropped_blocks[::-1]).hash == plan.hash


@given(plans, plans)
def test_the_hash_tells_plans_apart(one: Plan, other: Plan) -> None:
    assert (one.hash == other.hash) == (one == other)


def test_the_hash_holds_across_releases() -> None:
    plan = Plan({"conv": LayerPlan(Sparsity("channel", 0.5), Rank("svd", 4), Format(4))})
    assert plan.hash == "90b799182a99cbec"


def test_the_default_leaves_every_layer_untouched() -> None:
    assert LayerPlan().untouched
    assert Plan()["any"] is UNTOUCHED
    assert Plan({"any": LayerPlan()}) == Plan()
    assert Plan({"any": LayerPlan()}).hash == Plan().hash
    assert LayerPlan().describe() == "untouched"
    assert LayerPlan().channel_level() == LayerPlan().unstructured_level() == 0.0


def test_a_level_counts_for_its_own_pattern_only() -> None:
    channel, single = LayerPlan(Sparsity("channel", 0.5)), LayerPlan(Sparsity("unstructured", 0.5))
    assert (channel.channel_level(), channel.unstructured_level()) == (0.5, 0.0)
    assert (single.channel_level(), single.unstructured_level()) == (0.0, 0.5)
    head = LayerPlan(Sparsity("head", 0.5))
    assert (head.channel_level(), head.unstructured_level()) == (0.5, 0.0)


def test_a_layer_is_described_in_a_few_words() -> None:
    assert LayerPlan(Sparsity("channel", 0.5), Rank("svd", 16), Format(4)).describe() == "rank 16, channel 50%, w4a8"


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1, 1.5, float("nan"), float("inf")])
def test_a_level_outside_its_range_is_named(level: float) -> None:
    with pytest.raises(PlanError, match=str(level)) as raised:
        Sparsity("channel", level)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("r", [0, -3, 2.5, True, "4"])
def test_a_rank_outside_its_range_is_named(r: int) -> None:
    with pytest.raises(PlanError, match=repr(r)) as raised:
        Rank("svd", r)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("chosen", "name", "integers", "calibrated"),
    [
        (Format(8), "w8a8", True, True),
        (Format(8, dynamic=True), "w8d8", True, False),
        (Format(4, 32), "w4a32", False, False),
    ],
)
def test_a_format_says_how_it_computes(chosen: Format, name: str, integers: bool, calibrated: bool) -> None:
    assert str(chosen) == name
    assert (chosen.integer_activations, chosen.calibrated) == (integers, calibrated)


def test_floats_are_not_rounded_dynamically() -> None:
    with pytest.raises(PlanError, match="dynamic activations have 8 bits; got 32"):
        Format(8, 32, dynamic=True)


@pytest.mark.parametrize("bits", [0, 1, 3, 16, 32])
def test_bits_that_are_not_offered_are_named(bits: int) -> None:
    with pytest.raises(PlanError, match=str(bits)) as raised:
        Format(bits)
    assert "\n" not in str(raised.value)
    if bits != 32:  # activations in floats
        with pytest.raises(PlanError, match=str(bits)):
            Format(8, activation_bits=bits)


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(PlanError, match="'block'"):
        Sparsity("block", 0.5)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="'tucker'"):
        Rank("tucker", 4)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "[]",
        "{}",
        '{"layers": {"a": 3}}',
        '{"layers": {"a": {"sparsity": {"level": 0.5}}}}',
        '{"layers": {"a": {"rank": {"method": "svd", "r": 4, "s": 1}}}}',
        '{"layers": {"a": {"sparsity": {"pattern": "channel", "level": "half"}}}}',
    ],
)
def test_a_text_that_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(PlanError) as raised:
        Plan.from_json(text)
    assert "\n" not in str(raised.value)


def test_a_level_outside_its_range_is_refused_in_json_too() -> None:
    with pytest.raises(PlanError, match=r"1\.5"):
        Plan.from_json('{"layers": {"a": {"sparsity": {"pattern": "channel", "level": 1.5}}}}')
