"""The decisions that a space's rules leave open for a model, cut to what pays on its target."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from autocomp.errors import SpaceError
from autocomp.formats import Activations, Work, format_for, work_of
from autocomp.inventory import Inventory, LayerInfo
from autocomp.plan import ONE_THRESHOLD_PATTERNS, SEEING, UNIT_PATTERNS, Drop, Pattern, Rank, RankMethod, Sparsity
from autocomp.space import Decision, Kind, Option, SearchSpace, Spread
from autocomp.space_file import Rule, SpaceFile

#: From a sparsity whose level is that of some layers together to the sparsity of each.
OneThreshold = Callable[[Sparsity, Collection[str]], Mapping[str, Sparsity]]

#: Ranks are rounded to a multiple of this, which kernels like better.
RANK_STEP = 4


def build_space(
    file: SpaceFile,
    inventory: Inventory,
    weight_bits: Sequence[int],
    patterns: Sequence[Pattern],
    ranks: bool,
    activations: Mapping[Work, Sequence[Activations]],
    one_threshold: OneThreshold,
    faster: Sequence[Pattern] = (),
) -> SearchSpace:
    """The decisions that ``file`` leaves open for a model, without what the target gains nothing from.

    Args:
        activations: how they may be given to every kind of layers; other layers' weights may be stored in few bits where
            those of any kind may.
        one_threshold: asked where a rule has a level for many layers together.
        faster: of the patterns those that make the target faster.

    Raises:
        SpaceError: a rule matches no layer (lists the layers), or nothing is left to decide.
    """
    rules = {name: _for_target(rule, patterns, faster) for name, rule in _rules_by_layer(file, inventory).items()}
    stored: tuple[Activations, ...] = ("a32",) if any("a32" in ways for ways in activations.values()) else ()
    decisions = [
        *_block_decisions(rules, inventory),
        *_global_decisions(rules, one_threshold),
        *_unit_decisions(rules, inventory),
    ]
    for layer in inventory.layers:
        rule = rules.get(layer.name)
        if rule is None:
            continue
        masks = [_weighed(one, layer) for one in _of_layers(rule) if one.pattern not in UNIT_PATTERNS]
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
        of_bits, of_masks = (", ".join(map(str, offered)) or "none" for offered in (weight_bits, patterns))
        raise SpaceError(
            f"search space {file.name!r} leaves nothing to decide for this model on this target, which gains from weights of "
            f"these bits: {of_bits}; from these masks: {of_masks}; from low ranks: {'yes' if ranks else 'no'}; name another "
            "--space"
        )
    return SearchSpace(open_ones, inventory, file.adjustments)


def _decision(kind: Kind, layers: tuple[str, ...], options: Sequence[Option]) -> Decision:
    return Decision(f"{kind}:{layers[0]}", kind, layers, (None, *dict.fromkeys(options)))


def _rules_by_layer(file: SpaceFile, inventory: Inventory) -> dict[str, Rule]:
    names = [layer.name for layer in inventory.layers]
    if not names:
        kinds = ", ".join(sorted({reason for _, reason in inventory.skipped}))
        raise SpaceError(
            "a model must have layers that can be compressed (linears, convolutions, embeddings); this one has none"
            + (f" ({kinds})" if kinds else "")
        )
    found: dict[str, Rule] = {}
    for rule in file.rules:
        matched = [name for name in names if fnmatch.fnmatchcase(name, rule.layers)]
        if not matched:
            raise SpaceError(f"a pattern must match a layer; {rule.layers!r} matches none of: {', '.join(names)}")
        given = {name: getattr(rule, name) for name in rule.model_fields_set if name != "layers"}
        for name in matched:
            before = found.get(name, rule)
            found[name] = before.model_copy(update=given)
    return found


def _block_decisions(rules: Mapping[str, Rule], inventory: Inventory) -> Iterator[Decision]:
    for block in inventory.blocks:
        if all(name in rules and rules[name].drop for name in block.layers):
            yield _decision("block", (block.name,), [Drop()])


def _for_target(rule: Rule, patterns: Sequence[Pattern], faster: Sequence[Pattern]) -> Rule:
    """Without the sparsity that it gains nothing from."""
    kept = tuple(one for one in rule.sparsity or () if one.pattern in (faster if one.for_speed else patterns))
    return rule.model_copy(update={"sparsity": kept})


def _global_decisions(rules: Mapping[str, Rule], one_threshold: OneThreshold) -> Iterator[Decision]:
    """One for every pattern, of the layers that a rule gives a level together."""
    members: dict[Sparsity, list[str]] = {}
    for name, rule in rules.items():
        for one in rule.sparsity or ():
            if one.scope == "global":
                members.setdefault(one.sparsity(), []).append(name)
    for kind in ONE_THRESHOLD_PATTERNS:
        levels = sorted((one for one in members if one.pattern == kind), key=lambda one: (one.level, one.saliency))
        if levels:
            options = [Spread(tuple(one_threshold(one, members[one]).items())) for one in levels]
            layers = tuple(dict.fromkeys(name for one in levels for name in members[one]))
            yield replace(_decision(kind, layers, options), name=f"{kind}:*")


def _of_layers(rule: Rule) -> list[Sparsity]:
    """What a rule offers every layer by itself."""
    return [one.sparsity() for one in rule.sparsity or () if one.scope == "layer"]


def _unit_decisions(rules: Mapping[str, Rule], inventory: Inventory) -> Iterator[Decision]:
    """Channels and attention heads."""
    for group in inventory.groups:
        if not group.prunable or any(name not in rules for name in group.producers):
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
