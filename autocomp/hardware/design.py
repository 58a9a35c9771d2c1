"""Which random networks a calibration measures next: those of the families whose latency is foreseen worst so far."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Mapping

from autocomp.errors import MeasurementError
from autocomp.hardware.experiment import FAMILIES, family_of, network_number
from autocomp.hardware.fit import held_out_errors
from autocomp.hardware.measurements import Measurements

#: Families' parts of the networks before anything is known of their errors.
EVEN: Mapping[str, float] = {family: FAMILIES.count(family) / len(FAMILIES) for family in FAMILIES}
#: A family gets at least this much of its even part.
LEAST_PART = 0.5
#: Samples that a passing fit is searched on: it only has to tell good families from bad ones.
SEARCH_SAMPLES = 100
#: Folds of a passing fit.
FOLDS = 2


def next_network(taken: Collection[int], parts: Mapping[str, float]) -> int:
    """The number of the next network: of the family that is furthest behind its part, the first that is not taken."""
    counts = Counter(family_of(number) for number in taken)
    behind = {family: part * len(taken) - counts[family] for family, part in parts.items()}
    most = max(behind.values())
    late = {family for family, by in behind.items() if by >= most - 1e-9}
    return next(number for number in itertools.count() if family_of(number) in late and number not in taken)


def parts_by_error(done: Measurements) -> Mapping[str, float]:
    """Families' parts of the networks to come, in proportion to the mean held-out error on those that there are; even
    ones where these are too few to tell."""
    try:
        errors = held_out_errors(done.networks, done.profiled, FOLDS, SEARCH_SAMPLES)
    except MeasurementError:
        return EVEN
    found: dict[str, list[float]] = {}
    for name, error in errors.items():
        found.setdefault(family_of(network_number(name)), []).append(abs(error))
    usual = sum(map(sum, found.values())) / max(1, sum(map(len, found.values())))
    weights = {
        family: part * (sum(found[family]) / len(found[family]) if family in found else usual)
        for family, part in EVEN.items()
    }
    total = sum(weights.values())
    return {
        family: LEAST_PART * part + (1 - LEAST_PART) * weights[family] / total if total > 0 else part
        for family, part in EVEN.items()
    }
