"""Plans worth a look, of which the sampler proposes the one that promises most: what is near the best so far, what is between
two of them, and what would be on the predicted front if errors weighed otherwise.

Each comes with a known plan that it is near to, from whose cost its own is nearly foreseen.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from autocomp.search.landscape import Changes, Choice, Landscape
from autocomp.space import KINDS

Vector = npt.NDArray[np.float64]
#: A plan, and the known one that it is near to.
Near = tuple[Choice, Choice]

#: How many choices a neighbour differs in.
CHANGES = (1, 2, 3, 5)
#: Where each change is at a price of its own, the share of those that are at none: close to a limit few of the best at a price
#: keep it.
AT_NO_PRICE = 0.5
#: Logarithms of prices, to the base of ten.
LOWEST, HIGHEST = -3.5, 0.5
#: The standard deviation of the logarithm of what an error really weighs, once of its kind and once of its layer.
WEIGHT_STD = 0.5
#: Halvings of a price until a plan just keeps the limits.
HALVINGS = 8


def neighbours(
    land: Landscape, parents: Sequence[Choice], count: int, chance: random.Random, one_price: bool = True
) -> Iterator[Near]:
    """Parents of which some choices are the best at a price, all at one or each at its own or none (levels moved between
    layers, as EvoPress (Sieberling et al., 2024) moves them, at a price drawn by chance)."""
    for _ in range(count):
        parent, changes = chance.choice(parents), chance.choice(land.changes)
        choice = list(parent)
        price, share = _price(chance), chance.random()
        for place in chance.sample(range(len(land.groups)), min(chance.choice(CHANGES), len(land.groups))):
            if not one_price:
                price = _price(chance)
                if chance.random() < AT_NO_PRICE:
                    choice[place] = chance.randrange(len(land.groups[place].errors))
                    continue
            order = land.by_worth(changes, place, price * share, price * (1.0 - share))
            choice[place] = int(order[1] if len(order) > 1 and order[0] == choice[place] else order[0])
        yield tuple(choice), parent


def between(parents: Sequence[Choice], count: int, chance: random.Random) -> Iterator[Near]:
    """Every choice as in one of two parents."""
    for _ in range(count if len(parents) > 1 else 0):
        one, other = chance.sample(parents, 2)
        share = chance.random()
        yield tuple(mine if chance.random() < share else its for mine, its in zip(one, other, strict=True)), one


def foreseen_anew(
    land: Landscape, parents: Sequence[Choice], most: Vector, count: int, chance: random.Random
) -> Iterator[Near]:
    """The best at a price if errors weigh more or less than they seem to, each kind's and each layer's by chance: what a change
    of weights makes better is far from all that is known, in many layers at once.

    Args:
        most: latency and size that are allowed, as shares of the untouched network's; infinite without a limit. Within limits
            the price is the least that keeps them.
    """
    known, draws = np.array(parents), np.random.default_rng(chance.getrandbits(64))
    for _ in range(count):
        of_kinds, of_groups = (np.exp(WEIGHT_STD * draws.standard_normal(len(of))) for of in (KINDS, land.groups))
        errors = land.weighed(of_kinds, of_groups)
        changes, share = chance.choice(land.changes), chance.random()
        if np.isfinite(most).any():
            choice = _just_within(land, changes, share, errors, most)
        else:
            price = _price(chance)
            choice = land.best(changes, price * share, price * (1.0 - share), errors)
        yield choice, parents[int((known != choice).sum(axis=1).argmin())]


def _just_within(land: Landscape, changes: Changes, share: float, errors: Vector, most: Vector) -> Choice:
    """The best at the least price at which it nearly keeps the limits; at the highest one where none does."""
    low, high = LOWEST - 1.0, HIGHEST + 1.0
    found: Choice | None = None
    for _ in range(HALVINGS):
        price = 10.0 ** ((low + high) / 2.0)
        choice = land.best(changes, price * share, price * (1.0 - share), errors)
        if (np.array(land.shares_nearly(choice, changes.reference, changes)) <= most).all():
            high, found = math.log10(price), choice
        else:
            low = math.log10(price)
    return found or land.best(changes, 10.0**high * share, 10.0**high * (1.0 - share), errors)


def _price(chance: random.Random) -> float:
    return float(10.0 ** chance.uniform(LOWEST, HIGHEST))
