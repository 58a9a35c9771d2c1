"""Every composition of two methods: its file computes what the simulated model does."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from functools import cache
from typing import get_args

import pytest
import torch

from autocomp.compress.apply import Compressed, apply
from autocomp.compress.solve import Solver
from autocomp.errors import PlanError
from autocomp.export.to_onnx import export_onnx
from autocomp.inventory import LayerInfo
from autocomp.plan import (
    ACTIVATION_BITS,
    N_OF_M,
    UNIT_PATTERNS,
    WEIGHT_BITS,
    Adjustment,
    Clip,
    Format,
    Granularity,
    Grid,
    LayerPlan,
    Pattern,
    Plan,
    Rank,
    RankMethod,
    Rounding,
    Saliency,
    Sparsity,
)
from tests.networks import inputs, numerics_here, prepared, run_file, run_module, seeds, thorough

RANKS = tuple(LayerPlan(rank=Rank(method, 4)) for method in get_args(RankMethod))
MASKS = (
    *(LayerPlan(Sparsity("unstructured", 0.6, saliency)) for saliency in get_args(Saliency)),
    LayerPlan(Sparsity("block", 0.5)),
    *(LayerPlan(Sparsity(pattern, 1 - n / m, "hessian")) for pattern, (n, m) in N_OF_M.items()),  # type: ignore[arg-type]
)
UNITS = tuple(LayerPlan(Sparsity("channel", 0.5, saliency)) for saliency in get_args(Saliency))
FORMATS = tuple(
    LayerPlan(format=chosen)
    for chosen in (
        *(Format(bits, 32 if bits == 16 else 8) for bits in WEIGHT_BITS),
        *(Format(3, rounding=rounding) for rounding in get_args(Rounding)),
        Format(2, grid="ternary"),
        Format(3, grid="codebook"),
        Format(4, granularity="tensor", clip="percentile"),
        Format(4, 32, granularity="group", group=8, clip="minmax"),
    )
)


def together(one: LayerPlan, other: LayerPlan) -> LayerPlan:
    given = {name: value for part in (one, other) for name, value in vars(part).items() if value is not None}
    return LayerPlan(**given)


def pairs() -> list[LayerPlan]:
    families: Sequence[Sequence[LayerPlan]] = (RANKS, (*MASKS, *UNITS), FORMATS)
    return [
        together(one, other)
        for first, second in itertools.combinations(families, 2)
        for one, other in itertools.product(first, second)
    ]


def plans() -> list[Plan]:
    """The pairs, as many in a plan as the network has layers that can have them."""
    inventory = prepared("residual").inventory
    free = {group.name: group for group in inventory.groups if group.prunable and len(group.producers) == 1}
    waiting, found = pairs(), []
    while waiting:
        layers: dict[str, LayerPlan] = {}
        for layer in inventory.layers:
            place = next((n for n, one in enumerate(waiting) if fits(layer.name, one, free.keys())), None)
            if place is not None:
                layers[layer.name] = waiting.pop(place)
        if not layers:
            raise AssertionError(f"no layer of the network can have {waiting[0].describe()}")
        found.append(Plan(layers))
    return found


def fits(name: str, wanted: LayerPlan, free: object) -> bool:
    layer = prepared("residual").inventory.by_name[name]
    if wanted.rank is not None and layer.largest_rank(wanted.rank.method) < wanted.rank.r:
        return False
    return wanted.sparsity is None or wanted.sparsity.pattern != "channel" or name in free  # type: ignore[operator]


@cache
def solver(network: str) -> Solver:
    """Of one network for all of the plans, which have many layers in common."""
    return Solver(prepared(network).model, [inputs(network, 32, seed=1)])


def compressed(network: str, plan: Plan) -> Compressed:
    calibration = solver(network).calibration
    return apply(prepared(network), plan, calibration, numerics_here(), solver(network))


def check(network: str, result: Compressed, packed: bool) -> None:
    """The file computes what the simulated model does, and the model holds what its plan allows."""
    given = inputs(network, 24, seed=2)
    simulated, actual = run_module(result.model, given), run_file(export_onnx(result, packed), given)
    step = (simulated.max() - simulated.min()) / 255
    assert (actual - simulated).abs().mean() <= 0.2 * step
    for name, mask in result.masks.items():
        assert not result.model.get_parameter(name)[~mask].any()
    for name, chosen in result.formats.items():
        if chosen.weight_bits < 16:
            stored = result.weights[f"{name}.weight"]
            assert len(torch.unique(stored.levels)) <= (1 << chosen.weight_bits) + (stored.kept is not None)


def test_every_pair_of_methods_is_tried() -> None:
    tried = [one for plan in plans() for one in plan.layers.values()]
    assert len(tried) == len(pairs()) > 200
    assert set(tried) == set(pairs())


@pytest.mark.parametrize("number", thorough(range(len(plans())), range(0, len(plans()), 12)))
def test_the_file_computes_what_the_simulated_model_does(number: int) -> None:
    check("residual", compressed("residual", plans()[number]), packed=True)


#: The networks that plans of everything are made for, and the adjustments that change something there: smoothing wants
#: linears alone behind a norm, equalizing two layers with nothing but a relu in between.
ADJUSTED: dict[str, tuple[Adjustment, ...]] = {
    "residual": ("equalize", "bias", "norms"),
    "packed": ("equalize", "smooth", "bias", "norms"),
    "vit": ("smooth", "bias", "norms"),
    "encoder": ("bias", "norms"),
}
#: Whose turn it is to get a plan, until every two words have met; each takes seconds, the encoder's the most.
TURNS = (
    *("residual", "packed", "vit", "residual", "packed", "residual"),
    *("vit", "residual", "packed", "vit", "residual", "encoder"),
)
#: Plans that are drawn for one that is kept, and what is drawn for each of their layers: those that bring the most words
#: together are taken.
DRAWN, TRIED = 6, 40

STEPS = tuple(f"a step a {one}" for one in get_args(Granularity))
#: The words for what is done to a layer, by what only one word can be said of.
WORDS: tuple[tuple[str, ...], ...] = (
    get_args(RankMethod),
    get_args(Pattern),
    tuple(f"by {one}" for one in get_args(Saliency)),
    ("behind fewer heads", "behind fewer channels"),
    (*(f"w{bits}" for bits in WEIGHT_BITS), "ternary", "codebook"),
    (*(f"a{bits}" for bits in ACTIVATION_BITS), "d8"),
    STEPS,
    get_args(Clip),
    get_args(Rounding),
    ("beside a dropped block",),
    *((one,) for one in get_args(Adjustment)),
)
#: Word → those that no plan can put beside it: floats have no grid, integer kernels take no groups, heads are made and
#: read by linears, and nothing that makes heads reads what may be cut.
APART: dict[str, tuple[str, ...]] = {
    "w16": ("a8", "d8", "a4", "a1", *STEPS, *get_args(Clip), *get_args(Rounding)),
    "a step a group": ("a8", "d8"),
    "head": ("spatial", "tucker2", "behind fewer heads", "behind fewer channels"),
    "behind fewer heads": ("spatial", "tucker2"),
    "d8": ("spatial", "tucker2"),
}
#: What few layers can have said of them.
SCARCE = frozenset({"spatial", "tucker2", "behind fewer heads", "smooth"})


def words(network: str, plan: Plan, name: str) -> set[str]:
    """All that a plan says of a layer and of what is around it; nothing where the layer is left out."""
    inventory = prepared(network).inventory
    if any(name in block.layers for block in inventory.dropped(plan)):
        return set()
    cut = {group.pattern for group, _ in inventory.unit_levels(plan) if name in group.consumers}
    found = {f"behind fewer {pattern}s" for pattern in cut} | {*plan.adjustments, *described(plan[name])}
    return found | ({"beside a dropped block"} if plan.dropped_blocks else set())


def described(one: LayerPlan) -> Iterator[str]:
    if one.rank is not None:
        yield one.rank.method
    if one.sparsity is not None:
        yield from (one.sparsity.pattern, f"by {one.sparsity.saliency}")
    if one.format is not None:
        chosen = one.format
        yield f"{'d' if chosen.dynamic else 'a'}{chosen.activation_bits}"
        yield f"w{chosen.weight_bits}" if chosen.grid == "uniform" else chosen.grid
        if chosen.weight_bits < 16:
            yield from (f"a step a {chosen.granularity}", chosen.clip, chosen.rounding)


def met(network: str, plan: Plan, name: str) -> set[frozenset[str]]:
    return {frozenset(two) for two in itertools.combinations(words(network, plan, name), 2)}


def every_two() -> set[frozenset[str]]:
    """The pairs of words that a plan can say of one layer."""
    apart = {frozenset((word, other)) for word, others in APART.items() for other in others}
    pairs = (itertools.product(one, other) for one, other in itertools.combinations(WORDS, 2))
    return {frozenset(two) for two in itertools.chain.from_iterable(pairs)} - apart


def met_in(network: str, plan: Plan) -> set[frozenset[str]]:
    return set().union(*(met(network, plan, name) for name in plan.layers))


def worth(pairs: set[frozenset[str]]) -> int:
    """What is scarce counts threefold: later plans hold it less often."""
    return sum(3 if pair & SCARCE else 1 for pair in pairs)


@cache
def mixed() -> tuple[Plan, ...]:
    """Seeded plans of everything at once, one a turn, until every two words have met."""
    waiting, found = every_two(), []
    for number, network in enumerate(TURNS):
        drawn = [drawn_plan(network, waiting, random.Random(DRAWN * number + one)) for one in range(DRAWN)]
        plan = max(drawn, key=lambda one: worth(met_in(network, one) & waiting))
        waiting -= met_in(network, plan)
        found.append(plan)
    return tuple(found)


def drawn_plan(network: str, waiting: set[frozenset[str]], chance: random.Random) -> Plan:
    """Something for each layer, as it brings together most of what waits for it."""
    plan, left = drawn_cuts(network, chance), set(waiting)
    for layer in prepared(network).inventory.layers:
        tried = [with_layer(plan, layer, chance) for _ in range(TRIED)]
        plan = max(tried, key=lambda one: worth(met(network, one, layer.name) & left))
        left -= met(network, plan, layer.name)
    return plan


def drawn_cuts(network: str, chance: random.Random) -> Plan:
    """What concerns more than one layer: heads and channels, a block left out, adjustments."""
    inventory = prepared(network).inventory
    cuts: dict[str, LayerPlan] = {}
    for group in inventory.groups:
        if group.prunable and chance.random() < 0.7 and not cuts.keys() & {*group.producers}:
            cut = Sparsity(group.pattern, 0.5, chance.choice(get_args(Saliency)))
            cuts |= dict.fromkeys(group.producers, LayerPlan(cut))
    dropped = chance.sample(inventory.blocks, chance.randint(0, 1))
    adjustments = tuple(one for one in ADJUSTED[network] if chance.random() < 0.7)
    return Plan(cuts, tuple(block.name for block in dropped), adjustments)


def with_layer(plan: Plan, layer: LayerInfo, chance: random.Random) -> Plan:
    """The plan with something drawn for one more layer, beside the units that it loses."""
    cut, chosen = plan[layer.name].sparsity or drawn_mask(layer, chance), drawn_format(layer, chance)
    rank = drawn_rank(layer, chance)
    drawn = LayerPlan(cut, rank, chosen)
    return Plan({**plan.layers, layer.name: drawn}, plan.dropped_blocks, plan.adjustments)


def drawn_mask(layer: LayerInfo, chance: random.Random) -> Sparsity | None:
    pattern = chance.choice([None, *(one for one in get_args(Pattern) if one not in UNIT_PATTERNS)])
    if pattern is None:
        return None
    n, m = N_OF_M.get(pattern, (1, 2))
    saliencies = get_args(Saliency) if layer.sees_inputs else ("magnitude", "taylor")
    return Sparsity(pattern, 1 - n / m, chance.choice(saliencies))


def drawn_rank(layer: LayerInfo, chance: random.Random) -> Rank | None:
    methods = [one for one in get_args(RankMethod) if layer.largest_rank(one) >= 4]
    possible = [one for one in methods if one != "whitened" or layer.sees_inputs]
    return Rank(chance.choice(possible), 4) if possible and chance.random() < 0.6 else None


def drawn_format(layer: LayerInfo, chance: random.Random) -> Format:
    grids: list[Grid] = ["uniform", "ternary", "codebook"]
    grid = chance.choice([*grids, "uniform", "uniform", "uniform"])
    bits = chance.choice({"uniform": WEIGHT_BITS, "ternary": (2,), "codebook": (2, 3, 4, 5, 6)}[grid])
    activations = [one for one in ACTIVATION_BITS if layer.computes_integers or one == 32]
    if bits == 16:
        return Format(16, chance.choice([one for one in activations if one in (16, 32)]))
    dynamic = layer.kind == "linear" and chance.random() < 0.2
    activation_bits = 8 if dynamic else chance.choice(activations)
    granularity = chance.choice([one for one in get_args(Granularity) if one != "group" or activation_bits != 8])
    ranged = (grid != "codebook" and bits > 1) or (activation_bits == 8 and not dynamic)
    clip: Clip = chance.choice(get_args(Clip)) if ranged else "mse"
    rounding: Rounding = chance.choice(get_args(Rounding)) if layer.sees_inputs else "nearest"
    return Format(bits, activation_bits, dynamic, grid, granularity, 8 * (granularity == "group"), clip, rounding)


def test_in_the_mixed_plans_every_two_kinds_of_methods_meet() -> None:
    tried = (met_in(network, plan) for network, plan in zip(TURNS, mixed(), strict=True))
    assert not every_two() - set().union(*tried)


@pytest.mark.parametrize("number", seeds(len(TURNS)))
def test_both_files_compute_what_the_simulated_model_of_a_mixed_plan_does(number: int) -> None:
    network, plan = TURNS[number], mixed()[number]
    result = compressed(network, plan)
    for packed in (True, False):
        check(network, result, packed)


def test_signs_behind_the_first_stage_of_a_low_rank() -> None:
    """What signs and few levels add up to is often zero, but for the order in which they are added."""
    plan = Plan({"patch": LayerPlan(rank=Rank("svd", 4), format=Format(1, 1))})
    check("vit", compressed("vit", plan), packed=True)


def test_an_embedding_has_no_activations_to_round() -> None:
    with pytest.raises(PlanError, match="give it w8a32"):
        compressed("encoder", Plan({"token": LayerPlan(format=Format(8, 16))}))
