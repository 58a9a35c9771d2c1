"""The samplers that benchmarks/search.py holds against each other, as a study's user would set them up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler

from autocomp.search.guided import GuidedSampler
from autocomp.search.landscape import Landscape
from autocomp.search.sampler import uniform_indices
from autocomp.space import SearchSpace

Rival = Literal["auto", "additive", "uniform", "random", "nsga2", "seeded", "tpe", "gp"]

#: Evaluations that each is given; the uniform and the additive plans are as many as there are.
BUDGETS: Mapping[Rival, int] = {
    "auto": 200,
    "additive": 400,
    "uniform": 200,
    "random": 1000,
    "nsga2": 1000,
    "seeded": 500,
    "tpe": 1000,
    "gp": 150,
}

#: Optuna's own default.
POPULATION = 50
#: Uniform plans that the seeded NSGA-II starts with, beside the additive front.
UNIFORM_SEEDS = 12


@dataclass(frozen=True)
class Entry:
    """A sampler, and the proposals that are made before it is asked."""

    sampler: BaseSampler | None
    first: tuple[Mapping[str, int], ...] = ()


def entry(name: Rival, seed: int, space: SearchSpace, landscape: Landscape) -> Entry:
    """A sampler as it enters; ``seed`` is all that differs between its runs."""
    if name == "auto":
        return Entry(GuidedSampler(landscape, seed))
    if name == "additive":
        return Entry(None, tuple(additive(landscape)))
    if name == "uniform":
        return Entry(None, tuple(uniform_indices(space)))
    if name == "random":
        return Entry(RandomSampler(seed))
    if name == "tpe":
        return Entry(TPESampler(seed=seed))
    if name == "gp":
        return Entry(GPSampler(seed=seed))
    if name == "nsga2":
        return Entry(NSGAIISampler(population_size=POPULATION, seed=seed))
    plans = [*islice(uniform_indices(space), UNIFORM_SEEDS), *additive(landscape)]
    return Entry(NSGAIISampler(population_size=POPULATION, seed=seed), tuple(plans))


def additive(landscape: Landscape) -> Iterator[dict[str, int]]:
    """The front by the sum of errors, from plan to plan the one that is farthest from those before, by the logarithms of what
    is foreseen: after any number of them, they are spread over it."""
    choices = list(landscape.front)
    foreseen = np.log([(landscape.error(choice) + 1e-4, *landscape.shares(choice)) for choice in choices])
    foreseen = (foreseen - foreseen.min(axis=0)) / np.ptp(foreseen, axis=0)
    nearest = np.linalg.norm(foreseen - foreseen.mean(axis=0), axis=1)
    for _ in choices:
        place = int(nearest.argmax())
        yield landscape.indices(choices[place])
        nearest = np.minimum(nearest, np.linalg.norm(foreseen - foreseen[place], axis=1))
        nearest[place] = -1.0
