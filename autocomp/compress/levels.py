"""How much each layer loses where one threshold holds for many: levels by layer, from one level for all together."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import torch

from autocomp.compress.channels import unit_scores
from autocomp.compress.rebuild import Prepared
from autocomp.compress.solve import Solver
from autocomp.errors import PlanError
from autocomp.plan import ONE_THRESHOLD_PATTERNS, SEEING, Sparsity

#: No layer loses more than this share, so that none is cut off.
MOST = 0.98


def global_sparsity(
    prepared: Prepared, solver: Solver, together: Sparsity, layers: Collection[str] | None = None
) -> dict[str, Sparsity]:
    """Layer → what it loses where the weights, or channels, of least saliency go of many layers together (S. Han et al.,
    "Learning both weights and connections", 2015; of channels P. Molchanov et al., "Importance estimation", 2019).

    Args:
        together: ``unstructured`` or ``channel``; its level is the share of all weights, or channels, and its saliency
            that whose scores are compared across layers. Those of ``magnitude`` are first brought to a mean of 1 in each
            layer, since layers have weights of different sizes.
        layers: over which the threshold holds, all of them where None; of coupled channels, where it holds for all of
            their layers.

    Raises:
        PlanError: the pattern has no threshold.
    """
    pattern, saliency = together.pattern, together.saliency
    if pattern not in ONE_THRESHOLD_PATTERNS:
        raise PlanError(f"one threshold is for unstructured weights or channels; got {pattern}; give levels by layer")
    if pattern == "unstructured":
        # Of what a layer reads nothing is known where it is looked up in, transposed or not called.
        looks = saliency in SEEING
        names = [one.name for one in prepared.inventory.layers if one.sees_inputs or not looks]
        names = [name for name in names if layers is None or name in layers]
        scores = {name: solver.scores(name, saliency).flatten() for name in names}
        members: dict[str, tuple[str, ...]] = {name: (name,) for name in scores}
    else:
        open_ones = [
            one
            for one in prepared.couplings
            if one.group.prunable and (layers is None or set(one.group.producers) <= set(layers))
        ]
        scores = {
            one.group.name: unit_scores(prepared.model, one, lambda path: solver.scores(path, saliency))
            for one in open_ones
        }
        members = {one.group.name: one.group.producers for one in open_ones}
    if saliency == "magnitude":
        scores = {name: own / own.mean().clamp_min(1e-30) for name, own in scores.items()}
    return {
        member: replace(together, level=share)
        for name, share in global_levels(scores, together.level).items()
        if share > 0
        for member in members[name]
    }


def global_levels(scores: Mapping[str, torch.Tensor], level: float) -> dict[str, float]:
    """Layer → the share of its scores that are below the threshold which cuts ``level`` of all scores together; of those
    that would lose more than :data:`MOST`, the others lose what is left to lose.

    Raises:
        PlanError: the level is outside (0, 1).
    """
    if not 0.0 < level < 1.0:
        raise PlanError(f"a level lies between 0 and 1 (exclusive); got {level}")
    total = sum(own.numel() for own in scores.values())
    kept_at_least = {name: own.sort().values[: int(MOST * own.numel())] for name, own in scores.items()}
    candidates = torch.cat(list(kept_at_least.values())).sort().values
    count = min(round(level * total), candidates.numel())
    if count == 0:
        return dict.fromkeys(scores, 0.0)
    threshold = candidates[count - 1]
    return {name: float((kept_at_least[name] <= threshold).sum()) / own.numel() for name, own in scores.items()}
