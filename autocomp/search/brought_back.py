"""What training brings back of each kind of choice, learned from short trainings, and the plans that are best by it.

Before training a plan loses what its choices do by themselves, more or less added up. Training brings back most of that, but
not the same share of every kind of choice: of which one more is a matter of the network, the limits and the epochs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from autocomp.search.surrogate import RESOLUTION

if TYPE_CHECKING:
    from autocomp.plan import Plan
    from autocomp.search.landscape import Landscape
    from autocomp.search.limits import Limits

Vector = npt.NDArray[np.float64]

#: Fewer trainings say nothing of kinds.
FEWEST = 3
#: How much it counts that a kind's share, by its logarithm, differs from that of the others, beside how much a drop differs
#: from what is foreseen of it.
ALIKE = 0.5
#: So many plans are solved for anew.
ANEW = 2


def shares_left(errors: Vector, drops: Sequence[float]) -> Vector:
    """Of every kind the share of its errors that is left after training: positive numbers, as like one another as they may be
    where nothing tells them apart. A drop is foreseen as the sum of what is left of each kind (least squares of logarithms).

    Args:
        errors: of plans before training, by kind: shape (plans, kinds).
        drops: of the same plans after training, as shares of the metric.
    """
    wanted, there = np.log(np.maximum(drops, RESOLUTION)), errors.sum(axis=0) > 0
    given = np.maximum(errors[:, there], 0.0)

    def missed(logarithms: Vector) -> Vector:
        foreseen = np.log(np.maximum(given @ np.exp(logarithms), RESOLUTION))
        return np.concatenate([foreseen - wanted, np.sqrt(ALIKE) * (logarithms - logarithms.mean())])

    alike = float(np.mean(wanted - np.log(np.maximum(given.sum(axis=1), RESOLUTION))))
    found = np.full(errors.shape[1], np.exp(alike))
    if there.any():
        found[there] = np.exp(least_squares(missed, np.full(int(there.sum()), alike)).x)
    return found


def solved_anew(
    landscape: Landscape, limits: Limits, trained: Sequence[tuple[Plan, float]], tried: frozenset[str]
) -> tuple[Plan, ...]:
    """Plans within the limits of which training is foreseen to leave the least drop, by what it left of others; none where too
    few of these say anything.

    Args:
        trained: plans and their drops after a training, as shares of the metric.
        tried: hashes of plans that need not be told again.
    """
    known = [
        (landscape.choice(indices), drop)
        for plan, drop in trained
        if (indices := landscape.space.indices(plan)) is not None
    ]
    if len(known) < FEWEST:
        return ()
    errors = landscape.errors_by_kind([choice for choice, _ in known])
    best = landscape.keeping_best(limits, shares_left(errors, [drop for _, drop in known]))
    plans = {plan.hash: plan for plan in map(landscape.plan, best) if plan.hash not in tried}
    # One threshold for many layers cannot be told from a plan, which is then no proposal either.
    return tuple(plan for plan in plans.values() if landscape.space.indices(plan) is not None)[:ANEW]
