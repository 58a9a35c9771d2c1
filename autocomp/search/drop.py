"""How much worse a score is than the untouched network's, and how certain that is."""

from __future__ import annotations

import numpy as np

from autocomp.task import Metric, Score

#: Standard errors either side of a 95 % interval.
CONFIDENCE_Z = 1.96


def drop_interval(metric: Metric, baseline: Score, score: Score) -> tuple[float, float, float]:
    """How much worse ``score`` is than ``baseline``, and the paired 95 % interval of that.

    Where both have per-example outcomes, the interval is that of the mean of their differences: for outcomes that are
    right or wrong, the adjusted Wald interval of Agresti & Min ("Simple improved confidence intervals for comparing
    matched proportions", 2005), which is not empty where both were right on the same examples; for others the normal
    approximation. Where not, nothing is known of it and it is infinite.
    """
    drop = metric.drop(baseline.value, score.value)
    before, after = baseline.outcomes, score.outcomes
    if before is None or after is None or len(before) != len(after) or len(before) < 2:
        return drop, -np.inf, np.inf
    worse = before - after if metric.direction == "maximize" else after - before
    scale = outcome_scale(baseline, score)
    if scale is None:
        scale = 1.0  # the drop is zero in any unit
    if np.isin(before, (0.0, 1.0)).all() and np.isin(after, (0.0, 1.0)).all():
        count = len(worse) + 2
        lost, won = float((worse > 0).sum()) + 0.5, float((worse < 0).sum()) + 0.5
        middle = (lost - won) / count
        error = np.sqrt(lost + won - (lost - won) ** 2 / count) / count
    else:
        middle, error = float(worse.mean()), float(worse.std(ddof=1)) / np.sqrt(len(worse))
    return drop, scale * (middle - CONFIDENCE_Z * error), scale * (middle + CONFIDENCE_Z * error)


def outcome_scale(*scores: Score) -> float | None:
    """Metric units per unit of outcome (outcomes of 0 and 1, a metric in percent: 100); None where all are zeros."""
    for score in scores:
        mean = float(score.outcomes.mean()) if score.outcomes is not None else 0.0
        if mean:
            return score.value / mean
    return None
