"""The choices a search may make for each layer: read from YAML, checked against the model, cut to what pays.

A space is a list of decisions with a finite number of options each, the first of which always is "leave it". What a
sampler proposes is one index per decision.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from autocomp.errors import PlanError, SpaceError, did_you_mean
from autocomp.inventory import Inventory, LayerInfo
from autocomp.places import shipped_folder
from autocomp.plan import (
    SEEING,
    UNIT_PATTERNS,
    Adjustment,
    Clip,
    Drop,
    Format,
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

Kind = Literal["block", "channel", "head", "unstructured", "rank", "format"]
KINDS: tuple[Kind, ...] = ("block", "channel", "head", "unstructured", "rank", "format")
Option = Sparsity | Rank | Format | Drop

#: How activations may be given to a layer: rounded on a calibrated grid, on that of the moment, or not at all.
Activations = Literal["a8", "d8", "a32"]

#: Kinds of layers that a runtime treats differently: dense and depthwise (or grouped) convolutions, linears over plain
#: vectors and over sequences. Of everything else only the weights are stored in few bits.
Work = Literal["conv", "depthwise", "linear", "sequence"]
WORKS: tuple[Work, ...] = ("conv", "depthwise", "linear", "sequence")

#: Ranks are rounded to a multiple of this, which kernels like better.
RANK_STEP = 4

_FORMAT = re.compile(
    r"^(?P<grid>[wtc])(?P<weight>\d+)(?:(?P<how>[ad])(?P<activation>\d+))?(?:/(?P<steps>tensor|g\d+))?(?P<ways>(?:\+\w+)*)$"
)
_GRIDS: dict[str, Grid] = {"w": "uniform", "t": "ternary", "c": "codebook"}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _SparsityRule(_Strict):
    pattern: Pattern
    level: float
    saliency: Saliency = "magnitude"

    @field_validator("level")
    @classmethod
    def _inside(cls, level: float) -> float:
        if not 0.0 < level < 1.0:
            raise ValueError(f"a sparsity level must lie between 0 and 1, both exclusive; got {level}")
        return level

    @model_validator(mode="after")
    def _possible(self) -> _SparsityRule:
        try:
            self.sparsity()
        except PlanError as error:
            raise ValueError(str(error)) from error
        return self

    def sparsity(self) -> Sparsity:
        return Sparsity(self.pattern, self.level, self.saliency)


class _Rule(_Strict):
    layers: str
    sparsity: tuple[_SparsityRule, ...] | None = None
    rank: tuple[float, ...] | None = None
    rank_methods: tuple[RankMethod, ...] = ("svd",)
    format: tuple[str, ...] | None = None
    drop: bool | None = None

    @field_validator("rank")
    @classmethod
    def _shares(cls, shares: tuple[float, ...] | None) -> tuple[float, ...] | None:
        for share in shares or ():
            if not 0.0 < share <= 1.0:
                raise ValueError(f"a rank is a share of the largest that saves, in (0, 1]; got {share}")
        return shares

    @field_validator("format")
    @classmethod
    def _formats(cls, formats: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for text in formats or ():
            check_format(text)
        return formats


class SpaceFile(_Strict):
    """A search-space file: later rules override earlier ones, field by field, for the layers that they match.
    ``adjustments`` are made to the whole network of every plan that compresses something."""

    name: str
    rules: tuple[_Rule, ...]
    adjustments: tuple[Adjustment, ...] = ()


def check_format(text: str) -> None:
    """Raises:
    ValueError: the text is no format, or has bits that are not offered.
    """
    match = _FORMAT.match(text)
    if match is None:
        raise ValueError(
            f"a format is written like w8 (activations as suits the layer), w8a8, w8d8, w4a32, t2 (ternary) or c4 (a "
            f"codebook), and then /tensor or /g32, +gptq, +adaround, +minmax or +percentile; got {text!r}"
        )
    # Without a word on activations, floats are what every format can have.
    _format(match, f"{match['how']}{match['activation']}" if match["how"] else "a32")


def _format(match: re.Match[str], activations: str) -> Format:
    """Raises:
    ValueError: these bits, or these ways together, are not offered.
    """
    steps, ways = match["steps"] or "", [way for way in match["ways"].split("+") if way]
    for way in ways:
        if way not in (*get_args(Rounding), *get_args(Clip)):
            raise ValueError(
                f"a way to round or clip is one of {', '.join((*get_args(Rounding), *get_args(Clip)))}; got {way}"
            )
    try:
        return Format(
            int(match["weight"]),
            int(activations[1:]),
            activations[0] == "d",
            _GRIDS[match["grid"]],
            "tensor" if steps == "tensor" else "group" if steps else "channel",
            int(steps[1:]) if steps.startswith("g") else 0,
            next((way for way in get_args(Clip) if way in ways), "mse"),
            next((way for way in get_args(Rounding) if way in ways), "nearest"),
        )
    except PlanError as error:
        raise ValueError(str(error)) from error


def work_of(layer: LayerInfo) -> Work | None:
    """The kind of layers that one is of; None where no runtime has integer kernels for it."""
    if layer.kind == "conv2d":
        return "conv" if layer.groups == 1 else "depthwise"
    if layer.kind == "linear":
        return "linear" if len(layer.out_shape) == 1 else "sequence"
    return None


def format_for(text: str, layer: LayerInfo, activations: Sequence[Activations]) -> Format | None:
    """What a format of a space file means for a layer; None where the layer cannot have it.

    ``w4`` leaves the activations to the layer: rounded on a calibrated grid in convolutions and in linears over plain
    vectors; rounded at run time in linears over sequences, whose activations have outliers that come and go; not at all
    where there is no integer kernel.

    Args:
        activations: what the target makes something of.
    """
    match = _FORMAT.match(text)
    if match is None:
        return None
    order: tuple[Activations, ...] = ("a8", "a32") if layer.computes_integers else ("a32",)
    if layer.kind == "linear":
        order = ("d8", "a8", "a32") if len(layer.out_shape) > 1 else ("a8", "d8", "a32")
    if match["how"] is not None:
        wanted = f"{match['how']}{match['activation']}"
        possible = wanted == "a32" or (layer.computes_integers and (wanted == "a8" or layer.kind == "linear"))
        return _rounded(_format(match, wanted), layer) if possible and wanted in activations else None
    if match["weight"] == "16" or (match["steps"] or "").startswith("g"):
        order = ("a32",)
    return next((_rounded(_format(match, how), layer) for how in order if how in activations), None)


def _rounded(chosen: Format, layer: LayerInfo) -> Format:
    """To the nearest levels where the rounding looks at inputs that cannot be seen."""
    return chosen if layer.sees_inputs else replace(chosen, rounding="nearest")


def builtin_spaces() -> dict[str, Path]:
    """Name → file of the spaces that ship with autocomp."""
    return {path.stem: path for path in sorted(shipped_folder("search_spaces").glob("*.yaml"))}


def read_space(name: str) -> SpaceFile:
    """A space by the name of one that ships, or by path.

    Raises:
        SpaceError: no such space, or a mistake in the file (says where).
    """
    known = builtin_spaces()
    path = known.get(name, Path(name))
    if not path.is_file():
        raise SpaceError(f"a search space must be a file or a known name; got {name!r}; {did_you_mean(name, known)}")
    try:
        return SpaceFile.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise SpaceError(f"{path} is not YAML: {' '.join(str(error).split())[:200]}") from error
    except ValidationError as error:
        raise SpaceError(f"{path}: {_first_mistake(error)}") from error


def _first_mistake(error: ValidationError) -> str:
    mistakes = error.errors()
    # A misspelt setting is also a missing one; its name says more.
    mistake = next((one for one in mistakes if one["type"] == "extra_forbidden"), mistakes[0])
    place = ".".join(str(part) for part in mistake["loc"])
    name = str(mistake["loc"][-1]) if mistake["loc"] else ""
    if mistake["type"] == "extra_forbidden":
        model = (
            _SparsityRule if "sparsity" in mistake["loc"][:-1] else _Rule if "rules" in mistake["loc"] else SpaceFile
        )
        fields = model.model_fields
        return f"{place}: no such setting {name!r}; {did_you_mean(name, fields)}"
    return f"{place}: {mistake['msg'].removeprefix('Value error, ')}"


@dataclass(frozen=True)
class Decision:
    """One thing to decide. ``layers`` share the answer (coupled channels); ``options`` has "leave it" (None) first,
    then ever stronger ones."""

    name: str
    kind: Kind
    layers: tuple[str, ...]
    options: tuple[Option | None, ...]


@dataclass(frozen=True)
class SearchSpace:
    """The decisions for one model on one target, and the adjustments of every plan that compresses something."""

    decisions: tuple[Decision, ...]
    inventory: Inventory
    adjustments: tuple[Adjustment, ...] = ()

    @cached_property
    def by_name(self) -> Mapping[str, Decision]:
        return {decision.name: decision for decision in self.decisions}

    def plan(self, indices: Mapping[str, int]) -> Plan:
        """The plan of one index per decision (missing ones count as "leave it").

        Coupled channels come first: a layer whose channels are pruned is not also pruned weight by weight, and a rank
        that no longer saves anything in the narrower layer is left out. So different indices may be one plan.
        """
        chosen: dict[Kind, dict[str, Option]] = {kind: {} for kind in KINDS}
        for decision in self.decisions:
            option = decision.options[indices.get(decision.name, 0)]
            if option is not None:
                chosen[decision.kind].update(dict.fromkeys(decision.layers, option))
        blocks = self.inventory.blocks_by_name
        gone = {layer for name in chosen["block"] for layer in blocks[name].layers}
        single = {name: one for name, one in chosen["unstructured"].items() if name not in gone}
        sparsity = {**single, **chosen["head"], **chosen["channel"]}
        narrow = Plan({name: LayerPlan(sparsity=s) for name, s in sparsity.items() if isinstance(s, Sparsity)})
        cut = _cut_channels(self.inventory, narrow)
        layers = {}
        for layer in self.inventory.layers:
            # What is left out has no rank and no format, but loses the channels that it is coupled by.
            rank = chosen["rank"].get(layer.name) if layer.name not in gone else None
            if isinstance(rank, Rank) and not layer.saves(rank, *cut.get(layer.name, (0, 0))):
                rank = None
            layers[layer.name] = LayerPlan(
                sparsity=narrow[layer.name].sparsity,
                rank=rank if isinstance(rank, Rank) else None,
                format=_as_format(chosen["format"].get(layer.name)) if layer.name not in gone else None,
            )
        plan = Plan(layers, tuple(chosen["block"]))
        return replace(plan, adjustments=self.adjustments) if plan != Plan() else plan

    def uniform(self, strengths: Mapping[Kind, int]) -> dict[str, int]:
        """The indices that give every decision of a kind the same strength (or its strongest, where it has fewer)."""
        return {
            decision.name: min(strengths.get(decision.kind, 0), len(decision.options) - 1)
            for decision in self.decisions
        }

    def strengths(self, kind: Kind) -> int:
        """The number of options of the decisions of a kind, "leave it" included."""
        return max((len(decision.options) for decision in self.decisions if decision.kind == kind), default=1)


def _as_format(option: Option | None) -> Format | None:
    return option if isinstance(option, Format) else None


def _cut_channels(inventory: Inventory, plan: Plan) -> dict[str, tuple[int, int]]:
    """Layer → (output channels cut, input channels cut)."""
    found: dict[str, tuple[int, int]] = {}
    for group, level in inventory.unit_levels(plan):
        gone = group.width - group.kept(level)
        for name in group.producers:
            out, into = found.get(name, (0, 0))
            found[name] = (out + gone * group.unit, into)
        for name, per_unit in group.consumers.items():
            out, into = found.get(name, (0, 0))
            found[name] = (out, into + gone * per_unit)
    return found


def build_space(
    file: SpaceFile,
    inventory: Inventory,
    weight_bits: Sequence[int],
    patterns: Sequence[Pattern],
    ranks: bool,
    activations: Mapping[Work, Sequence[Activations]],
) -> SearchSpace:
    """The decisions that ``file`` leaves open for a model, without what the target gains nothing from.

    Args:
        activations: how they may be given to every kind of layers; other layers' weights may be stored in few bits where
            those of any kind may.

    Raises:
        SpaceError: a rule matches no layer (lists the layers), or nothing is left to decide.
    """
    rules = _rules_by_layer(file, inventory)
    stored: tuple[Activations, ...] = ("a32",) if any("a32" in ways for ways in activations.values()) else ()
    decisions = [*_block_decisions(rules, inventory), *_unit_decisions(rules, inventory, patterns)]
    for layer in inventory.layers:
        rule = rules.get(layer.name)
        if rule is None:
            continue
        masks = [_weighed(one.sparsity(), layer) for one in rule.sparsity or () if one.pattern not in UNIT_PATTERNS]
        masks = [one for one in masks if one.pattern in patterns]
        masks.sort(key=lambda one: one.level)
        decisions.append(_decision("unstructured", (layer.name,), masks))
        if ranks:
            decisions.append(_decision("rank", (layer.name,), _rank_options(layer, rule.rank or (), rule.rank_methods)))
        work = work_of(layer)
        possible = stored if work is None else activations[work]
        formats = [format_for(text, layer, possible) for text in rule.format or ()]
        offered = [f for f in formats if f is not None and f.weight_bits in weight_bits]
        offered.sort(key=lambda f: -f.weight_bits)
        decisions.append(_decision("format", (layer.name,), offered))
    open_ones = tuple(decision for decision in decisions if len(decision.options) > 1)
    if not open_ones:
        raise SpaceError(f"search space {file.name!r} leaves nothing to decide for this model on this target")
    return SearchSpace(open_ones, inventory, file.adjustments)


def _decision(kind: Kind, layers: tuple[str, ...], options: Sequence[Option]) -> Decision:
    return Decision(f"{kind}:{layers[0]}", kind, layers, (None, *dict.fromkeys(options)))


def _rules_by_layer(file: SpaceFile, inventory: Inventory) -> dict[str, _Rule]:
    names = [layer.name for layer in inventory.layers]
    found: dict[str, _Rule] = {}
    for rule in file.rules:
        matched = [name for name in names if fnmatch.fnmatchcase(name, rule.layers)]
        if not matched:
            raise SpaceError(f"a pattern must match a layer; {rule.layers!r} matches none of: {', '.join(names)}")
        given = {name: getattr(rule, name) for name in rule.model_fields_set if name != "layers"}
        for name in matched:
            before = found.get(name, rule)
            found[name] = before.model_copy(update=given)
    return found


def _block_decisions(rules: Mapping[str, _Rule], inventory: Inventory) -> Iterator[Decision]:
    for block in inventory.blocks:
        if all(name in rules and rules[name].drop for name in block.layers):
            yield _decision("block", (block.name,), [Drop()])


def _unit_decisions(
    rules: Mapping[str, _Rule], inventory: Inventory, patterns: Sequence[Pattern]
) -> Iterator[Decision]:
    """Channels and attention heads."""
    for group in inventory.groups:
        if group.pattern not in patterns or not group.prunable or any(name not in rules for name in group.producers):
            continue
        # Coupled layers lose the same channels: only what the rules of all of them allow.
        allowed = [
            {one.sparsity() for one in rules[name].sparsity or () if one.pattern == group.pattern}
            for name in group.producers
        ]
        common = sorted(set.intersection(*allowed), key=lambda one: (one.level, one.saliency))
        # On few channels, two levels may cut the same number.
        distinct = {
            (group.kept(one.level), one.saliency): one
            for one in reversed(common)
            if group.kept(one.level) < group.width
        }
        options = sorted(distinct.values(), key=lambda one: (one.level, one.saliency))
        yield _decision(group.pattern, group.producers, options)


def _weighed(sparsity: Sparsity, layer: LayerInfo) -> Sparsity:
    """By magnitude where the saliency looks at inputs that cannot be seen."""
    looks = sparsity.saliency in SEEING
    return replace(sparsity, saliency="magnitude") if looks and not layer.sees_inputs else sparsity


def _rank_options(layer: LayerInfo, shares: Sequence[float], methods: Sequence[RankMethod]) -> list[Rank]:
    """Ranks from the weakest truncation to the strongest; none for layers where none saves."""
    found: list[tuple[float, Rank]] = []
    for asked in methods:
        method: RankMethod = "svd" if asked == "whitened" and not layer.sees_inputs else asked
        largest = layer.largest_rank(method)
        most = max(1, largest // RANK_STEP)
        ranks = {min(max(1, round(share * largest / RANK_STEP)), most) * RANK_STEP for share in shares}
        found += [(r / largest, Rank(method, r)) for r in ranks if r <= largest]
    return [rank for _, rank in sorted(found, key=lambda one: -one[0])]
