"""Search spaces: files that read, mistakes that are named, and plans that always fit the model."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from autocomp.compress.levels import global_sparsity
from autocomp.compress.prepare import prepare
from autocomp.compress.solve import Solver
from autocomp.compress.structure import restructure
from autocomp.errors import PlanError, SpaceError
from autocomp.formats import WORKS, Activations, Work, format_for
from autocomp.inventory import Inventory
from autocomp.plan import Format, LayerPlan, Pattern, Plan, Rank, RankMethod, Sparsity
from autocomp.search.sampler import uniform_indices
from autocomp.space import Decision, SearchSpace
from autocomp.space_builder import RANK_STEP, build_space
from autocomp.space_file import SpaceFile, builtin_spaces, read_space
from tests.networks import NETWORKS, inputs, prepared

ALL: tuple[Pattern, ...] = ("channel", "head", "unstructured")


def space_of(
    network: str,
    text: str | None = None,
    weight_bits: Sequence[int] = (8, 4, 2),
    patterns: Sequence[Pattern] = ALL,
    ranks: bool = True,
    activations: Sequence[Activations] = ("a8", "d8", "a32"),
) -> SearchSpace:
    file = read_space("default") if text is None else parsed(text)
    return build_space(
        file,
        prepared(network).inventory,
        weight_bits,
        patterns,
        ranks,
        dict.fromkeys(WORKS, activations),
        partial(global_sparsity, prepared(network), Solver(prepared(network).model, ())),
    )


def test_what_is_only_for_speed_is_left_out_where_it_brings_none() -> None:
    rules = "[{layers: '*', sparsity: [{pattern: '2:4', level: 0.5, for_speed: true}], format: [w8]}]"
    every: tuple[Pattern, ...] = (*ALL, "2:4")

    def kinds(patterns: Sequence[Pattern], faster: Sequence[Pattern]) -> set[str]:
        ways: dict[Work, tuple[Activations, ...]] = dict.fromkeys(WORKS, ("a8",))
        space = build_space(parsed(rules), prepared("mlp").inventory, (8,), patterns, True, ways, unasked, faster)
        return {decision.kind for decision in space.decisions}

    assert kinds(every, ()) == {"format"}
    assert kinds(every, ("2:4",)) == {"unstructured", "format"}
    assert kinds(ALL, ("unstructured",)) == {"format"}


def unasked(together: Sparsity, layers: Collection[str]) -> dict[str, Sparsity]:
    raise AssertionError("no rule has one threshold")


def parsed(rules: str) -> SpaceFile:
    import yaml

    return SpaceFile.model_validate({"name": "own", "rules": yaml.safe_load(rules)})


def one_line(path: Path, text: str) -> str:
    path.write_text(text)
    with pytest.raises(SpaceError) as caught:
        read_space(str(path))
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_one_threshold_is_one_decision_and_a_layers_own_goes_before_it() -> None:
    rules = """
    - layers: "*"
      sparsity:
        - {pattern: unstructured, level: 0.5, scope: global}
        - {pattern: unstructured, level: 0.8, scope: global}
        - {pattern: channel, level: 0.3, scope: global}
    - layers: "0.0"
      sparsity: [{pattern: unstructured, level: 0.6}]
    """
    space = space_of("residual", rules)
    everywhere, channels = space.by_name["unstructured:*"], space.by_name["channel:*"]
    assert len(everywhere.options) == 3
    assert len(channels.options) == 2
    assert "0.0" not in everywhere.layers
    levels = [
        {name: layer.masked_level() for name, layer in space.plan({"unstructured:*": index}).layers.items()}
        for index in (1, 2)
    ]
    assert len(set(levels[0].values())) > 1
    assert all(levels[1].get(name, 0.0) >= level for name, level in levels[0].items())
    both = space.plan({"unstructured:*": 1, "unstructured:0.0": 1})
    assert both["0.0"].masked_level() == 0.6
    assert {name: both[name].masked_level() for name in levels[0]} == levels[0]
    inventory = prepared("residual").inventory
    cut = space.plan({"unstructured:*": 2, "channel:*": 1})
    inventory.check(cut)
    assert any(layer.channel_level() for layer in cut.layers.values())
    assert any(layer.masked_level() for layer in cut.layers.values())


@pytest.mark.parametrize("name", sorted(builtin_spaces()))
def test_every_space_that_ships_reads_and_leaves_something_to_decide(name: str) -> None:
    file = read_space(name)
    assert file.name == name
    net = prepared("residual")
    threshold = partial(global_sparsity, net, Solver(net.model, [inputs("residual", 8)]))
    ways: dict[Work, tuple[Activations, ...]] = dict.fromkeys(WORKS, ("a8",))
    assert build_space(file, net.inventory, (8, 4, 2), ALL, True, ways, threshold).decisions


def test_a_way_of_giving_activations_is_offered_to_the_layers_that_it_pays_for() -> None:
    """Calibrated grids in convolutions only, as openvino wants it on x86 without VNNI; stored weights everywhere."""
    activations: dict[Work, tuple[Activations, ...]] = {**dict.fromkeys(WORKS, ("a32",)), "conv": ("a8", "a32")}
    space = build_space(read_space("quantize"), prepared("separable").inventory, (8,), ALL, True, activations, unasked)
    layers = {layer.name: layer for layer in prepared("separable").inventory.layers}
    kinds = set()
    for decision in space.decisions:
        layer = layers[decision.layers[0]]
        dense = layer.kind == "conv2d" and layer.groups == 1
        assert decision.options[1:] == (Format(8, 8 if dense else 32),)
        kinds.add((layer.kind, dense))
    assert len(kinds) == 3


def test_the_default_is_among_those_that_ship() -> None:
    assert {"default", "quantize", "prune", "low-rank"} <= set(builtin_spaces())


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("name: x\nrulez: []", ["rulez", "did you mean rules?"]),
        ("name: x\nrules: [{layers: '*', formt: [w8a8]}]", ["rules.0.formt", "did you mean format?"]),
        ("name: x\nrules: [{layer: '*', format: [w8a8]}]", ["rules.0.layer", "did you mean layers?"]),
        (
            "name: x\nrules: [{layers: '*', sparsity: [{patern: channel, level: 0.5}]}]",
            ["rules.0.sparsity.0.patern", "did you mean pattern?"],
        ),
        ("name: x\nrules: [{layers: '*', sparsity: [{pattern: chanel, level: 0.5}]}]", ["pattern", "channel"]),
        ("name: x\nrules: [{layers: '*', sparsity: [{pattern: channel, level: 1.0}]}]", ["between 0 and 1", "1.0"]),
        ("name: x\nrules: [{layers: '*', sparsity: [{pattern: channel, level: 0}]}]", ["between 0 and 1", "got 0"]),
        ("name: x\nrules: [{layers: '*', sparsity: [{pattern: channel, level: -3}]}]", ["between 0 and 1", "-3"]),
        (
            "name: x\nrules: [{layers: '*', sparsity: [{pattern: '2:4', level: 0.5, scope: global}]}]",
            ["one threshold is for unstructured or channel", "2:4"],
        ),
        ("name: x\nrules: [{layers: '*', rank: [1.5]}]", ["(0, 1]", "1.5"]),
        ("name: x\nrules: [{layers: '*', format: [int8]}]", ["written like w8", "w8a8", "int8"]),
        ("name: x\nrules: [{layers: '*', format: [w7a8]}]", ["weight bits must be one of", "7"]),
        ("name: x\nrules: [{layers: '*', format: [w4a8+up]}]", ["a way to round or clip", "up"]),
        ("name: x\nrules: [{layers: '*', format: [w4a8/g32]}]", ["one step a channel", "w4a8/g32"]),
        ("name: x\nrules: [{layers: '*', sparsity: [{pattern: '2:4', level: 0.3}]}]", ["2:4 removes 0.5", "0.3"]),
        ("name: x\nrules: [{layers: '*', format: [w8a7]}]", ["activation bits", "7"]),
        ("name: x\nrules: {layers: '*'}", ["rules"]),
        ("name: x", ["rules", "required"]),
        ("- a\n- list", ["dictionary"]),
        ("", ["dictionary"]),
        ("name: [x", ["is not YAML"]),
        (
            "name: x\nrules: [{layers: '*', sparsity: [{pattern: 2:4, level: 0.5}]}]",
            ["got the number 124", "quotation marks"],
        ),
    ],
)
def test_a_mistake_in_a_file_is_one_line_that_names_it(tmp_path: Path, text: str, named: list[str]) -> None:
    message = one_line(tmp_path / "own.yaml", text)
    for word in named:
        assert word in message


def test_a_file_in_another_encoding_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_bytes("name: größer".encode("latin-1"))
    with pytest.raises(SpaceError, match="is not YAML in UTF-8"):
        read_space(str(path))


def test_an_unknown_space_names_the_near_ones() -> None:
    with pytest.raises(SpaceError, match="got 'quantise'; did you mean quantize"):
        read_space("quantise")


EVERY: tuple[Activations, ...] = ("a8", "d8", "a32")


@pytest.mark.parametrize("text", ["w8a8", "w4d8", "w2a32"])
def test_a_format_that_says_all_is_what_it_says(text: str) -> None:
    layer = prepared("encoder").inventory.by_name["layers.0.up"]
    given_format = format_for(text, layer, EVERY)
    assert given_format == Format(int(text[1]), int(text[3:]), text[2] == "d")
    assert format_for(text, layer, tuple(how for how in EVERY if how != text[2:])) is None  # the target has it not


@pytest.mark.parametrize("text", ["f8", "f8a8"])
def test_floats_of_eight_bits_are_for_linears_where_the_target_multiplies_them(text: str) -> None:
    linear, conv = prepared("encoder").inventory.by_name["layers.0.up"], prepared("residual").inventory.by_name["0.0"]
    assert format_for(text, linear, (*EVERY, "f8")) == Format(8, grid="float8")
    assert format_for(text, linear, EVERY) is None
    assert format_for(text, conv, (*EVERY, "f8")) is None
    with pytest.raises(PlanError, match=r"in linears only; .* was given f8a8; give it w8a8"):
        prepared("residual").inventory.check(Plan({"0.0": LayerPlan(format=Format(8, grid="float8"))}))


@pytest.mark.parametrize(
    ("network", "layer", "offered", "meant"),
    [
        ("residual", "0.0", EVERY, "w8a8"),
        ("residual", "0.0", ("d8", "a32"), "w8a32"),
        ("mlp", "0", EVERY, "w8a8"),
        ("encoder", "layers.0.up", EVERY, "w8d8"),
        ("encoder", "layers.0.up", ("a8", "a32"), "w8a8"),
        ("encoder", "pool", EVERY, "w8a8"),  # one vector an example
        ("encoder", "token", EVERY, "w8a32"),
        ("encoder", "token", ("a8",), None),
        ("decoder", "up", EVERY, "w8a32"),
        ("decoder", "up", ("a8", "d8"), None),
    ],
)
def test_activations_are_what_suits_the_layer_and_the_target(
    network: str, layer: str, offered: tuple[Activations, ...], meant: str | None
) -> None:
    chosen = format_for("w8", prepared(network).inventory.by_name[layer], offered)
    assert (None if chosen is None else str(chosen)) == meant


@pytest.mark.parametrize(
    ("network", "layer", "text"), [("residual", "0.0", "w8d8"), ("encoder", "token", "w8a8"), ("decoder", "up", "w4d8")]
)
def test_a_format_without_a_kernel_is_not_offered(network: str, layer: str, text: str) -> None:
    assert format_for(text, prepared(network).inventory.by_name[layer], EVERY) is None


def test_a_pattern_that_matches_no_layer_lists_the_layers() -> None:
    with pytest.raises(SpaceError) as caught:
        space_of("mlp", "[{layers: 'blocks.*', format: [w8a8]}]")
    message = str(caught.value)
    assert "\n" not in message
    assert "'blocks.*' matches none of: " in message
    assert all(layer.name in message for layer in prepared("mlp").inventory.layers)


@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_every_choice_of_options_is_a_plan_that_fits(network: str) -> None:
    space = space_of(network)
    inventory = prepared(network).inventory
    given_indices = st.fixed_dictionaries(
        {},
        optional={
            decision.name: st.integers(0, len(decision.options) - 1)
            for decision in space.decisions  # a decision left out is left alone
        },
    )

    @settings(max_examples=40, deadline=None)
    @given(given_indices)
    def check(indices: dict[str, int]) -> None:
        plan = space.plan(indices)
        structure = restructure(inventory, plan)  # checks the plan against the inventory first
        assert Plan.from_json(plan.to_json()) == plan
        for name, layer in plan.layers.items():
            if layer.rank is not None:
                first, second = structure.layers[f"{name}.0"].weight_shape, structure.layers[f"{name}.1"].weight_shape
                table = inventory.by_name[name].kind == "embedding"
                rows, columns = second[0], first[0] if table else math.prod(first[1:])
                assert layer.rank.r * (rows + columns) < rows * columns, f"the rank of {name} saves nothing"

    check()


def test_indices_of_nothing_are_the_untouched_plan() -> None:
    assert space_of("residual").plan({}) == Plan()


def test_every_decision_starts_with_leaving_it() -> None:
    for decision in space_of("residual").decisions:
        assert decision.options[0] is None
        assert len(decision.options) == len(set(decision.options)) > 1


def test_coupled_layers_are_decided_together() -> None:
    space = space_of("residual")
    producers = [group.producers for group in prepared("residual").inventory.groups if group.prunable]
    assert [decision.layers for decision in space.decisions if decision.kind == "channel"] == producers
    assert any(len(layers) > 1 for layers in producers)


def test_coupled_layers_lose_only_what_the_rules_of_all_of_them_allow() -> None:
    coupled = next(group for group in prepared("residual").inventory.groups if len(group.producers) > 1)
    every = "[{pattern: channel, level: 0.25}, {pattern: channel, level: 0.5}]"
    kept = "[{pattern: channel, level: 0.25}]"
    for name in coupled.producers:
        space = space_of("residual", f"[{{layers: '*', sparsity: {every}}}, {{layers: '{name}', sparsity: {kept}}}]")
        (decision,) = (d for d in space.decisions if d.layers == coupled.producers)
        assert decision.options == (None, Sparsity("channel", 0.25))


def test_what_the_target_does_not_offer_is_not_in_the_space() -> None:
    space = space_of("residual", weight_bits=(8,), patterns=("channel",), ranks=False)
    assert {decision.kind for decision in space.decisions} == {"block", "channel", "format"}
    formats = {option for decision in space.decisions if decision.kind == "format" for option in decision.options}
    assert formats == {None, Format(8)}
    without_channels = space_of("residual", patterns=("unstructured",))
    assert "channel" not in {decision.kind for decision in without_channels.decisions}


def test_a_space_of_which_the_target_offers_nothing_is_an_error() -> None:
    with pytest.raises(SpaceError, match="leaves nothing to decide"):
        space_of("residual", "[{layers: '*', rank: [0.5]}]", ranks=False)


def test_heads_and_blocks_are_decisions_of_their_own() -> None:
    space = space_of("encoder")
    heads = [decision for decision in space.decisions if decision.kind == "head"]
    assert [decision.layers[0] for decision in heads] == ["layers.0.attention.query", "layers.1.attention.query"]
    assert heads[0].options == (None, Sparsity("head", 0.25), Sparsity("head", 0.5))
    blocks = [decision.layers for decision in space.decisions if decision.kind == "block"]
    assert blocks == [("layers.0.attention",), ("layers.0",), ("layers.1.attention",), ("layers.1",)]
    assert "head" not in {decision.kind for decision in space_of("encoder", patterns=("channel",)).decisions}


def test_a_block_is_left_out_only_where_the_rules_of_all_its_layers_say_so() -> None:
    space = space_of("residual", "[{layers: '*', drop: true, format: [w8]}, {layers: '1.conv1', drop: false}]")
    assert "block" not in {decision.kind for decision in space.decisions}


def test_what_is_left_out_has_no_choices_of_its_own() -> None:
    """So that plans that give the same file are the same plan."""
    space = space_of("encoder")
    alone = {"block:layers.0": 1}
    assert space.plan(alone | {"format:layers.0.up": 1, "rank:layers.0.down": 1}) == space.plan(alone)
    assert space.plan(alone).dropped_blocks == ("layers.0",)


def test_later_rules_override_field_by_field() -> None:
    first = prepared("mlp").inventory.layers[0].name
    space = space_of("mlp", f"[{{layers: '*', format: [w8a8, w4a8], rank: [0.5]}}, {{layers: '{first}', format: []}}]")
    assert f"format:{first}" not in space.by_name
    assert f"rank:{first}" in space.by_name
    others = [layer.name for layer in prepared("mlp").inventory.layers[1:]]
    assert all(space.by_name[f"format:{name}"].options == (None, Format(8), Format(4)) for name in others)


def test_a_rank_that_saves_nothing_in_the_narrower_layer_is_left_out() -> None:
    """At 16 → 12 channels, 9/16 of the inputs' 144 columns: what a rank pays in the whole layer it no longer pays."""
    space = space_of("residual", "[{layers: '*', sparsity: [{pattern: channel, level: 0.75}], rank: [1.0]}]")
    ranked = {d.layers[0]: d.options[1] for d in space.decisions if d.kind == "rank"}
    pruned = {name for d in space.decisions if d.kind == "channel" for name in d.layers}
    both = space.plan({decision.name: 1 for decision in space.decisions})
    alone = space.plan({decision.name: 1 for decision in space.decisions if decision.kind == "rank"})
    left_out = [name for name in ranked if both[name].rank is None]
    assert left_out
    assert pruned & set(left_out)
    for name, rank in ranked.items():
        assert isinstance(rank, Rank)
        assert alone[name].rank == rank


METHODS: tuple[RankMethod, ...] = get_args(RankMethod)
SHARES = (1.0, 0.97, 0.9, 0.75, 0.6, 0.5, 0.3, 0.1)


@cache
def varied() -> Inventory:
    """Convolutions that widen, narrow and keep the width, of square, flat and single kernels, and linears."""
    layers = (
        nn.Conv2d(4, 32, 1),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.Conv2d(32, 64, (2, 5), padding=(0, 2)),
        nn.Conv2d(64, 16, 3, padding=1),
        nn.Conv2d(16, 64, 3, padding=1),
        nn.Conv2d(64, 24, (1, 3), padding=(0, 1)),
        nn.Flatten(),
        nn.Linear(24 * 3 * 4, 40),
        nn.Linear(40, 20),
    )
    model = nn.Sequential(*(stage for layer in layers for stage in (layer, nn.ReLU())))
    return prepare(model.eval(), (torch.zeros(1, 4, 4, 4),)).inventory


def ranks_offered(inventory: Inventory, method: RankMethod) -> SearchSpace:
    levels = ", ".join(f"{{pattern: channel, level: {level}}}" for level in (0.25, 0.5, 0.75))
    rules = f"[{{layers: '*', sparsity: [{levels}], rank: {list(SHARES)}, rank_methods: [{method}]}}]"
    return build_space(parsed(rules), inventory, (8,), ("channel",), True, dict.fromkeys(WORKS, ("a8",)), unasked)


def all_ranks_that_save(space: SearchSpace, method: RankMethod) -> SearchSpace:
    """The space with every rank that saves in the whole layer, not only those that its file asks for."""
    decisions = [decision for decision in space.decisions if decision.kind == "channel"]
    for layer in space.inventory.layers:
        # In an embedding, whitened gives way to svd; nmf has a rank for each sign.
        own: RankMethod = "svd" if method == "whitened" and not layer.sees_inputs else method
        ranks = [Rank(own, r) for r in range(2, layer.largest_rank(own) + 1)]
        decisions.append(Decision(f"rank:{layer.name}", "rank", (layer.name,), (None, *ranks)))
    return replace(space, decisions=tuple(decisions))


def cuts(space: SearchSpace) -> Iterator[dict[str, int]]:
    """Channels cut everywhere by each level, and by the strongest in every other group: outputs or inputs alone."""
    channels = [decision.name for decision in space.decisions if decision.kind == "channel"]
    for strength in range(1, space.strengths("channel")):
        yield space.uniform({"channel": strength})
    yield dict.fromkeys(channels[::2], space.strengths("channel") - 1)
    yield dict.fromkeys(channels[1::2], space.strengths("channel") - 1)


def layer_weights(inventory: Inventory, plan: Plan) -> Mapping[str, int]:
    """Layer → its weights, or those of its factors."""
    stored = restructure(inventory, plan).layers
    stages = {layer.name: (layer.name, *(f"{layer.name}.{n}" for n in range(3))) for layer in inventory.layers}
    return {
        name: sum(math.prod(stored[stage].weight_shape) for stage in own if stage in stored)
        for name, own in stages.items()
    }


def inventory_named(network: str) -> Inventory:
    return varied() if network == "varied" else prepared(network).inventory


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("network", ["varied", "residual", "encoder"])
def test_every_rank_that_is_offered_is_kept_and_saves(network: str, method: RankMethod) -> None:
    inventory = inventory_named(network)
    space = ranks_offered(inventory, method)
    whole = layer_weights(inventory, Plan())
    offered = {d.layers[0]: d.options for d in space.decisions if d.kind == "rank"}
    assert len(offered) > 1 or (network == "encoder" and method in {"spatial", "tucker2"})
    for strength in range(1, space.strengths("rank")):
        indices = space.uniform({"rank": strength})
        plan = space.plan(indices)
        weights = layer_weights(inventory, plan)
        for name, options in offered.items():
            rank = options[indices[f"rank:{name}"]]
            assert plan[name].rank == rank, f"{rank} of {name} is left out"
            assert weights[name] < whole[name], f"{rank} of {name} saves nothing"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("network", ["varied", "residual", "encoder"])
def test_no_rank_that_saves_is_left_out_also_where_channels_are_cut(network: str, method: RankMethod) -> None:
    inventory = inventory_named(network)
    space = all_ranks_that_save(ranks_offered(inventory, method), method)
    offered = {d.layers[0]: d.options for d in space.decisions if d.kind == "rank" and len(d.options) > 1}
    seen = set()
    for cut in ({}, *cuts(space)):
        narrow = space.plan(cut)
        without = layer_weights(inventory, narrow)
        for strength in range(1, space.strengths("rank")):
            indices = space.uniform({"rank": strength}) | cut
            ranks = {name: options[indices[f"rank:{name}"]] for name, options in offered.items()}
            plan = space.plan(indices)
            every = {name: replace(narrow[name], rank=rank) for name, rank in ranks.items() if isinstance(rank, Rank)}
            weights = layer_weights(inventory, Plan({**narrow.layers, **every}))
            for name, rank in ranks.items():
                saves = weights[name] < without[name]
                assert plan[name].rank == (rank if saves else None), f"{rank} of {name} with {narrow[name].describe()}"
                assert saves or cut
                seen.add(saves)
    assert seen == {True, False} or not offered


def test_adjustments_go_with_every_plan_that_compresses_something() -> None:
    rules = [{"layers": "*", "format": ["w8a8", "w4a8"]}]
    file = SpaceFile.model_validate({"name": "own", "rules": rules, "adjustments": ["equalize", "bias"]})
    space = build_space(file, prepared("residual").inventory, (8, 4), ALL, True, dict.fromkeys(WORKS, ("a8",)), unasked)
    assert space.plan({}) == Plan()
    assert space.plan({space.decisions[0].name: 1}).adjustments == ("bias", "equalize")
    with pytest.raises(ValidationError, match="equalize"):
        SpaceFile.model_validate({"name": "own", "rules": rules, "adjustments": ["equalise"]})


@pytest.mark.parametrize("share", [0.9, 1.0])
def test_a_share_of_all_ranks_is_one_that_saves(share: float) -> None:
    space = space_of("residual", f'[{{layers: "*", rank: [{share}], rank_methods: [spatial]}}]')
    assert any(decision.kind == "rank" for decision in space.decisions)
    plan = space.plan(space.uniform({"rank": 1}))
    for layer in prepared("residual").inventory.layers:
        rank, largest = plan[layer.name].rank, layer.largest_rank("spatial")
        assert (rank is None) == (largest < RANK_STEP)
        assert rank is None or largest - RANK_STEP < rank.r <= largest or share < 1.0


def test_channels_win_over_single_weights() -> None:
    space = space_of("plain")
    plan = space.plan(
        {decision.name: 1 for decision in space.decisions if decision.kind in {"channel", "unstructured"}}
    )
    patterns = {lp.sparsity.pattern for lp in plan.layers.values() if lp.sparsity is not None}
    assert patterns == {"channel", "unstructured"}  # the last layer's channels are the classes
    for decision in space.decisions:
        if decision.kind == "channel":
            assert all(plan[name].channel_level() > 0 for name in decision.layers)


@pytest.mark.parametrize("network", ["plain", "residual"])
def test_uniform_plans_are_distinct_and_the_first_is_untouched(network: str) -> None:
    space = space_of(network)
    plans = [space.plan(indices) for indices in uniform_indices(space)]
    assert plans[0] == Plan()
    assert len({plan.hash for plan in plans}) == len(plans)
    assert len(plans) > 16


def test_uniform_means_the_same_strength_everywhere() -> None:
    space = space_of("residual")
    indices = space.uniform({"format": 2})
    plan = space.plan(indices)
    assert {layer.format for layer in plan.layers.values()} == {Format(4, rounding="gptq")}
    assert len(plan.layers) == len(prepared("residual").inventory.layers)
    assert space.plan(space.uniform({"format": 99})) == space.plan(space.uniform({"format": 3}))


def test_a_network_without_layers_is_refused_in_one_line() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x * self.scale)

    inventory = prepare(Scaled().eval(), (torch.zeros(1, 3),)).inventory
    ways: dict[Work, tuple[Activations, ...]] = dict.fromkeys(WORKS, ("a8",))
    with pytest.raises(SpaceError, match=r"must have layers that can be compressed .*; this one has none"):
        build_space(read_space("default"), inventory, (8,), ALL, True, ways, unasked)
