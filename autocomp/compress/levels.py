"""How much each layer loses where one threshold holds for all: a plan's levels, by layer, from one level for the network."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from autocomp.compress.channels import unit_scores
from autocomp.compress.rebuild import Prepared
from autocomp.compress.solve import Solver
from autocomp.errors import PlanError
from autocomp.plan import SEEING, LayerPlan, Pattern, Plan, Saliency, Sparsity

#: No layer loses more than this share, so that none is cut off.
MOST = 0.98


def global_plan(
    prepared: Prepared,
    solver: Solver,
    level: float,
    pattern: Pattern = "unstructured",
    saliency: Saliency = "magnitude",
) -> Plan:
    """The plan that cuts the weights, or channels, of least saliency of a whole network (S. Han et al., "Learning both
    weights and connections", 2015; of channels P. Molchanov et al., "Importance estimation", 2019).

    Args:
        level: the share of all weights, or channels, to cut.
        pattern: ``unstructured`` or ``channel``.
        saliency: whose scores are compared across layers; of ``magnitude`` those of each layer are first brought to a mean
            of 1, since layers have weights of different sizes.

    Raises:
        PlanError: the pattern has no threshold, or the level is outside (0, 1).
    """
    if pattern == "unstructured":
        # Of what a layer reads nothing is known where it is looked up in, transposed or not called.
        looks = saliency in SEEING
        names = [layer.name for layer in prepared.inventory.layers if layer.sees_inputs or not looks]
        scores = {name: solver.scores(name, saliency).flatten() for name in names}
        members: dict[str, tuple[str, ...]] = {name: (name,) for name in scores}
    elif pattern == "channel":
        open_ones = [one for one in prepared.couplings if one.group.prunable]
        scores = {
            one.group.name: unit_scores(prepared.model, one, lambda path: solver.scores(path, saliency))
            for one in open_ones
        }
        members = {one.group.name: one.group.producers for one in open_ones}
    else:
        raise PlanError(f"one threshold is for unstructured weights or channels; got {pattern}; give levels by layer")
    if saliency == "magnitude":
        scores = {name: own / own.mean().clamp_min(1e-30) for name, own in scores.items()}
    layers = {
        member: LayerPlan(Sparsity(pattern, share, saliency))
        for name, share in global_levels(scores, level).items()
        if share > 0
        for member in members[name]
    }
    return Plan(layers)


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
