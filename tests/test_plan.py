"""Plans: JSON both ways, a stable hash, and errors that name the value."""

from __future__ import annotations

import pickle
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocomp.errors import PlanError
from autocomp.plan import (
    N_OF_M,
    SIMULATED_BITS,
    UNTOUCHED,
    WEIGHT_BITS,
    Clip,
    Format,
    Granularity,
    Grid,
    LayerPlan,
    Plan,
    Rank,
    RankMethod,
    Rounding,
    Saliency,
    Sparsity,
)

levels = st.floats(0, 1, exclude_min=True, exclude_max=True)
saliencies = st.sampled_from(get_args(Saliency))
sparsities = st.one_of(
    st.builds(Sparsity, st.sampled_from(["unstructured", "block", "channel", "head"]), levels, saliencies),
    st.builds(
        lambda pattern, saliency: Sparsity(pattern, 1 - N_OF_M[pattern][0] / N_OF_M[pattern][1], saliency),
        st.sampled_from(sorted(N_OF_M)),
        saliencies,
    ),
)


@st.composite
def formats(draw: st.DrawFn) -> Format:
    grid = draw(st.sampled_from(get_args(Grid)))
    if grid == "float8":
        return Format(8, grid=grid, granularity=draw(st.sampled_from(("channel", "tensor"))))
    bits = {"uniform": WEIGHT_BITS, "ternary": (2,), "codebook": (2, 3, 4, 5, 6)}[grid]
    weight_bits = draw(st.sampled_from(bits))
    if weight_bits == 16:
        return Format(16, draw(st.sampled_from((16, 32))))
    how = [(8, False), (8, True), *((bits, False) for bits in (32, *SIMULATED_BITS))]
    activation_bits, dynamic = draw(st.sampled_from(how))
    granularity = draw(st.sampled_from(get_args(Granularity) if activation_bits != 8 else ("channel", "tensor")))
    return Format(
        weight_bits,
        activation_bits,
        dynamic,
        grid,
        granularity,
        draw(st.integers(1, 256)) if granularity == "group" else 0,
        draw(st.sampled_from(get_args(Clip))),
        draw(st.sampled_from(get_args(Rounding))),
    )


layer_plans = st.builds(
    LayerPlan,
    st.none() | sparsities,
    st.none() | st.builds(Rank, st.sampled_from(get_args(RankMethod)), st.integers(1, 10_000)),
    st.none() | formats(),
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
    assert LayerPlan().channel_level() == LayerPlan().masked_level() == 0.0


def test_a_level_counts_for_its_own_pattern_only() -> None:
    channel, single = LayerPlan(Sparsity("channel", 0.5)), LayerPlan(Sparsity("unstructured", 0.5))
    assert (channel.channel_level(), channel.masked_level()) == (0.5, 0.0)
    assert (single.channel_level(), single.masked_level()) == (0.0, 0.5)
    head = LayerPlan(Sparsity("head", 0.5))
    assert (head.channel_level(), head.masked_level()) == (0.5, 0.0)


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
        (Format(16, 32), "w16a32", False, False),
        (Format(1), "w1a8", True, True),
        (Format(1, 1), "w1a1 (simulated)", False, False),
        (Format(4, 4), "w4a4 (simulated)", False, False),
        (Format(2, grid="ternary", rounding="gptq"), "t2a8+gptq", True, True),
        (Format(4, 32, grid="codebook", granularity="tensor"), "c4a32/tensor", False, False),
        (Format(4, 32, granularity="group", group=32, clip="minmax"), "w4a32/g32+minmax", False, False),
        (Format(8, grid="float8"), "f8a8", False, False),
    ],
)
def test_a_format_says_how_it_computes(chosen: Format, name: str, integers: bool, calibrated: bool) -> None:
    assert str(chosen) == name
    assert (chosen.integer_activations, chosen.calibrated) == (integers, calibrated)


def test_floats_are_not_rounded_dynamically() -> None:
    with pytest.raises(PlanError, match="dynamic activations have 8 bits; got 32"):
        Format(8, 32, dynamic=True)


@pytest.mark.parametrize("bits", [0, 7, 12, 32])
def test_bits_that_are_not_offered_are_named(bits: int) -> None:
    with pytest.raises(PlanError, match=str(bits)) as raised:
        Format(bits)
    assert "\n" not in str(raised.value)
    if bits != 32:  # activations in floats
        with pytest.raises(PlanError, match=str(bits)):
            Format(8, activation_bits=bits)


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(PlanError, match="'grid'"):
        Sparsity("grid", 0.5)  # type: ignore[arg-type]
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


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weight_bits": 7}, "must be one of"),
        ({"weight_bits": 16}, "w16a32 or w16a16 and nothing else"),
        ({"weight_bits": 16, "activation_bits": 32, "rounding": "gptq"}, "w16a32 or w16a16 and nothing else"),
        ({"weight_bits": 3, "grid": "ternary"}, "ternary weights have 2 bits; got 3"),
        ({"weight_bits": 8, "grid": "codebook"}, "codebooks have 2 to 6 bits; got 8"),
        ({"weight_bits": 4, "granularity": "group"}, "have a size"),
        ({"weight_bits": 4, "group": 8}, "have a size"),
        ({"weight_bits": 4, "granularity": "group", "group": 8}, "one step a channel"),
        ({"weight_bits": 4, "rounding": "up"}, "must be one of nearest, gptq, adaround; got 'up'"),
        ({"weight_bits": 4, "activation_bits": 32, "dynamic": True}, "dynamic activations have 8 bits"),
        ({"weight_bits": 4, "grid": "float8"}, "f8a8 or f8a8/tensor and nothing else; got f4a8"),
        ({"weight_bits": 8, "activation_bits": 32, "grid": "float8"}, "and nothing else; got f8a32"),
        ({"weight_bits": 8, "grid": "float8", "rounding": "gptq"}, "and nothing else; got f8a8"),
    ],
)
def test_a_format_that_does_not_hold_together_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message) as raised:
        Format(**given)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_a_pattern_of_n_in_m_has_its_own_level() -> None:
    assert str(Sparsity("2:4", 0.5, "wanda")) == "2:4 by wanda"
    with pytest.raises(PlanError, match=r"2:4 removes 0.5 of the weights; got a level of 0.25"):
        Sparsity("2:4", 0.25)
    with pytest.raises(PlanError, match="saliency must be one of magnitude, taylor, wanda, hessian; got 'luck'"):
        Sparsity("unstructured", 0.25, "luck")  # type: ignore[arg-type]
