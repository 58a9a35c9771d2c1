"""Plans worth a look, of which the sampler proposes the one that promises most: what is near the best so far, what is between
two of them, and what would be on the predicted front if errors weighed otherwise.

Each comes with a known plan that it is near to, from whose cost its own is nearly foreseen.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

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
#: Halvings of a price's logarithm until a plan just keeps a bound.
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


@dataclass(frozen=True)
class Anew:
    """The front that would be foreseen if errors weighed otherwise, between latency and size where ``share`` puts it."""

    changes: Changes
    share: float
    errors: Vector

    def at(self, price: float, land: Landscape) -> Choice:
        return land.best(self.changes, price * self.share, price * (1.0 - self.share), self.errors)


@dataclass(frozen=True)
class Bound:
    """How far down a front a plan may be.

    Args:
        keeps: of plans, each with the changes that its cost is nearly foreseen by, which keep it.
        by_cost: whether it is of costs, so that plans at high prices keep it; else it is of drops, and those at low ones do.
    """

    keeps: Callable[[Sequence[tuple[Choice, Changes]]], npt.NDArray[np.bool_]]
    by_cost: bool


def foreseen_anew(
    land: Landscape, parents: Sequence[Choice], bound: Bound | None, count: int, chance: random.Random
) -> Iterator[Near]:
    """The best at a price if errors weigh more or less than they seem to, each kind's and each layer's by chance: what a change
    of weights makes better is far from all that is known, in many layers at once.

    Args:
        bound: the price is where plans just keep it; None for prices by chance.
    """
    known, drawn = np.array(parents), np.random.default_rng(chance.getrandbits(64))
    fronts, prices = [], []
    for _ in range(count):
        of_kinds, of_groups = (np.exp(WEIGHT_STD * drawn.standard_normal(len(of))) for of in (KINDS, land.groups))
        fronts.append(Anew(chance.choice(land.changes), chance.random(), land.weighed(of_kinds, of_groups)))
        prices.append(_price(chance))
    for front, price in zip(fronts, prices if bound is None else _just_kept(land, fronts, bound), strict=True):
        choice = front.at(price, land)
        yield choice, parents[int((known != choice).sum(axis=1).argmin())]


def _just_kept(land: Landscape, fronts: Sequence[Anew], bound: Bound) -> list[float]:
    """Of each front the price, of all that keep a bound, that is the nearest to one that does not."""
    kept = np.full(len(fronts), (HIGHEST if bound.by_cost else LOWEST))
    broken = np.full(len(fronts), (LOWEST if bound.by_cost else HIGHEST))
    for _ in range(HALVINGS):
        middle = (kept + broken) / 2.0
        found = bound.keeps([(one.at(10.0**at, land), one.changes) for one, at in zip(fronts, middle, strict=True)])
        kept, broken = np.where(found, middle, kept), np.where(found, broken, middle)
    return [10.0**at for at in kept.tolist()]


def _price(chance: random.Random) -> float:
    return float(10.0 ** chance.uniform(LOWEST, HIGHEST))
