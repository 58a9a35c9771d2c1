"""What is learned of drops from trials."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.gaussian_process.kernels import RBF

from autocomp.search.kernel import PartialRBF
from autocomp.search.landscape import Choice, Landscape
from autocomp.search.surrogate import RESOLUTION, Seen, Surrogate
from tests.search.synthetic import landscape_of, synthetic_space


def first(seen: Sequence[Seen]) -> Sequence[Seen]:
    return seen


@pytest.fixture(scope="module")
def landscape() -> Landscape:
    return landscape_of(synthetic_space())


@pytest.fixture(scope="module")
def choices(landscape: Landscape) -> list[Choice]:
    """Plans that change about half of the layers."""
    chance = random.Random(0)
    return [
        tuple(chance.randrange(len(group.errors)) if chance.random() < 0.5 else 0 for group in landscape.groups)
        for _ in range(120)
    ]


def test_a_layer_that_weighs_more_than_its_error_tells_is_found_out(
    landscape: Landscape, choices: list[Choice]
) -> None:
    by_group = landscape.errors_by_group(choices)
    weights = np.full(by_group.shape[1], 0.5)
    weights[by_group.sum(axis=0).argmax()] = 4.0
    drops = by_group @ weights / by_group.sum(axis=1).max() / 10
    learned = Surrogate(landscape)
    learned.learn([Seen(place, choices[place], float(drops[place])) for place in range(90)], 90, first)
    medians, _ = learned.drops(choices[90:])
    off = np.log(medians / (drops[90:] + RESOLUTION))
    assert np.sqrt(np.mean(off**2)) < 0.15


def test_drops_below_the_resolution_are_not_told_apart(landscape: Landscape, choices: list[Choice]) -> None:
    small = min(choices, key=landscape.error)
    seen = [Seen(place, choices[place], landscape.error(choices[place])) for place in range(60)]
    learned = Surrogate(landscape)
    learned.learn([*seen, Seen(60, small, 0.0), Seen(61, small, RESOLUTION)], 62, first)
    (median,), (spread,) = learned.drops([small])
    assert RESOLUTION < median < 2 * RESOLUTION
    assert spread >= RESOLUTION / median


def test_a_partial_kernel_is_that_of_its_columns() -> None:
    features, others = np.random.default_rng(0).normal(size=(2, 8, 5))
    partial, whole = PartialRBF([0.5, 2.0], (0.1, 10.0), 1, 3), RBF([0.5, 2.0], (0.1, 10.0))
    for one in (partial, clone(partial), partial.clone_with_theta(partial.theta)):
        np.testing.assert_array_equal(one(features, others), whole(features[:, 1:3], others[:, 1:3]))
        for mine, wanted in zip(
            one(features, eval_gradient=True), whole(features[:, 1:3], eval_gradient=True), strict=True
        ):
            np.testing.assert_array_equal(mine, wanted)
