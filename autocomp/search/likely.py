"""The plans that a search would try first, had it begun: what its latency model will be asked about."""

from __future__ import annotations

from autocomp.plan import Plan
from autocomp.search.books import distributions
from autocomp.search.guided import GuidedSampler
from autocomp.search.landscape import Landscape
from autocomp.search.study import study_in_memory
from autocomp.search.worth import Wish
from autocomp.task import Direction


def likely_plans(
    landscape: Landscape, direction: Direction, baseline: float, seed: int, wish: Wish, count: int
) -> tuple[Plan, ...]:
    """What the guided sampler proposes while nothing but the untouched network is evaluated, each taken to turn out as it is
    foreseen: ``count`` different plans along the front, or towards the end of it that is wished for.

    Args:
        direction, baseline: of the metric, and what the untouched network scores.

    Raises:
        UncoveredKernelError: the untouched network has no prediction.
    """
    study = study_in_memory(direction)
    study.sampler = GuidedSampler(landscape, seed, wish)
    decided, untouched = distributions(landscape.space), landscape.untouched
    study.tell(study.ask(decided), [baseline, untouched.latency_ms, float(untouched.size_bytes)])
    return tuple(landscape.space.plan(study.ask(decided).params) for _ in range(count))
