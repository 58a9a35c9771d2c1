"""The choices a search may make for a network: read from YAML, checked against the model, cut to what pays.

A space is a list of decisions with a finite number of options each, the first of which always is "leave it". What a
sampler proposes is one index per decision.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from autocomp.errors import PlanError, SpaceError, did_you_mean
from autocomp.formats import Activations, Work, check_format, format_for, work_of
from autocomp.inventory import Inventory, LayerInfo
from autocomp.places import shipped_folder
from autocomp.plan import (
    ONE_THRESHOLD_PATTERNS,
    SEEING,
    UNIT_PATTERNS,
    Adjustment,
    Drop,
    Format,
    LayerPlan,
    Pattern,
    Plan,
    Rank,
    RankMethod,
    Saliency,
    Sparsity,
)

Kind = Literal["block", "channel", "head", "unstructured", "rank", "format"]
KINDS: tuple[Kind, ...] = ("block", "channel", "head", "unstructured", "rank", "format")


@dataclass(frozen=True)
class Spread:
    """A level of sparsity for many layers together: what each of them loses where one threshold holds for all."""

    by_layer: tuple[tuple[str, Sparsity], ...]


Option = Sparsity | Rank | Format | Drop | Spread
#: From a sparsity whose level is that of some layers together to the sparsity of each.
OneThreshold = Callable[[Sparsity, Collection[str]], Mapping[str, Sparsity]]

#: Ranks are rounded to a multiple of this, which kernels like better.
RANK_STEP = 4


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _SparsityRule(_Strict):
    """``scope`` is ``layer`` for a level of every layer by itself, ``global`` for one threshold over all that the rule is
    for."""

    pattern: Pattern
    level: float
    saliency: Saliency = "magnitude"
    scope: Literal["layer", "global"] = "layer"

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
        if self.scope == "global" and self.pattern not in ONE_THRESHOLD_PATTERNS:
            raise ValueError(
                f"one threshold is for {' or '.join(ONE_THRESHOLD_PATTERNS)}; got {self.pattern} with scope global"
            )
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

    @property
    def option_names(self) -> tuple[str, ...]:
        """What each option is, in words that tell it from all others."""
        return tuple("" if option is None else repr(option) for option in self.options)


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

        What is decided for one layer goes before what is decided for all. Coupled channels come first: a layer whose
        channels are pruned is not also pruned weight by weight, and a rank that no longer saves anything in the narrower
        layer is left out. So different indices may be one plan.
        """
        chosen: dict[Kind, dict[str, Option]] = {kind: {} for kind in KINDS}
        for decision in self.decisions:
            option = decision.options[indices.get(decision.name, 0)]
            if isinstance(option, Spread):
                chosen[decision.kind].update(option.by_layer)
            elif option is not None:
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

    def indices(self, plan: Plan) -> dict[str, int] | None:
        """The other way round; None where the space does not have the plan, or only by one threshold for many layers."""
        found: dict[str, int] = {}
        for decision in self.decisions:
            first = decision.layers[0]
            layer = plan[first]
            wanted: Option | None = layer.format if decision.kind == "format" else layer.rank
            if decision.kind == "block":
                wanted = Drop() if first in plan.dropped_blocks else None
            elif decision.kind in (*UNIT_PATTERNS, "unstructured"):
                # Channels are pruned as one, so any of the layers says it; what they are coupled to it need not.
                units = decision.kind in UNIT_PATTERNS
                wanted = layer.sparsity if units == (layer.mask is None) else None
            if wanted in decision.options:
                found[decision.name] = decision.options.index(wanted)
        return found if self.plan(found) == plan else None

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
    one_threshold: OneThreshold,
) -> SearchSpace:
    """The decisions that ``file`` leaves open for a model, without what the target gains nothing from.

    Args:
        activations: how they may be given to every kind of layers; other layers' weights may be stored in few bits where
            those of any kind may.
        one_threshold: asked where a rule has a level for many layers together.

    Raises:
        SpaceError: a rule matches no layer (lists the layers), or nothing is left to decide.
    """
    rules = _rules_by_layer(file, inventory)
    stored: tuple[Activations, ...] = ("a32",) if any("a32" in ways for ways in activations.values()) else ()
    decisions = [
        *_block_decisions(rules, inventory),
        *_global_decisions(rules, patterns, one_threshold),
        *_unit_decisions(rules, inventory, patterns),
    ]
    for layer in inventory.layers:
        rule = rules.get(layer.name)
        if rule is None:
            continue
        masks = [_weighed(one, layer) for one in _of_layers(rule) if one.pattern not in UNIT_PATTERNS]
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


def _global_decisions(
    rules: Mapping[str, _Rule], patterns: Sequence[Pattern], one_threshold: OneThreshold
) -> Iterator[Decision]:
    """One for every pattern, of the layers that a rule gives a level together."""
    members: dict[Sparsity, list[str]] = {}
    for name, rule in rules.items():
        for one in rule.sparsity or ():
            if one.scope == "global" and one.pattern in patterns:
                members.setdefault(one.sparsity(), []).append(name)
    for kind in ONE_THRESHOLD_PATTERNS:
        levels = sorted((one for one in members if one.pattern == kind), key=lambda one: (one.level, one.saliency))
        if levels:
            options = [Spread(tuple(one_threshold(one, members[one]).items())) for one in levels]
            layers = tuple(dict.fromkeys(name for one in levels for name in members[one]))
            yield replace(_decision(kind, layers, options), name=f"{kind}:*")


def _of_layers(rule: _Rule) -> list[Sparsity]:
    """What a rule offers every layer by itself."""
    return [one.sparsity() for one in rule.sparsity or () if one.scope == "layer"]


def _unit_decisions(
    rules: Mapping[str, _Rule], inventory: Inventory, patterns: Sequence[Pattern]
) -> Iterator[Decision]:
    """Channels and attention heads."""
    for group in inventory.groups:
        if group.pattern not in patterns or not group.prunable or any(name not in rules for name in group.producers):
            continue
        # Coupled layers lose the same channels: only what the rules of all of them allow.
        allowed = [{one for one in _of_layers(rules[name]) if one.pattern == group.pattern} for name in group.producers]
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
