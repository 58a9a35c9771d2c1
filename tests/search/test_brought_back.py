"""What short trainings teach of kinds of choice, and the plans that are solved for by it."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from autocomp.plan import Plan
from autocomp.search.brought_back import ANEW, FEWEST, shares_left, solved_anew
from autocomp.search.landscape import Landscape
from autocomp.search.limits import Limits
from autocomp.space import KINDS
from tests.search.synthetic import landscape_of, synthetic_space

LIMITS = Limits(size_bytes=14_000)
MASKS, FORMATS = KINDS.index("unstructured"), KINDS.index("format")


# Shares farther apart than that are drawn together by more than is told here.
@given(st.integers(0, 10_000), st.floats(0.02, 0.5), st.floats(0.02, 0.5))
@settings(max_examples=30, deadline=None)
def test_shares_are_found_where_plans_differ_in_kind(seed: int, of_masks: float, of_formats: float) -> None:
    errors = np.zeros((8, len(KINDS)))
    errors[:, [MASKS, FORMATS]] = np.random.default_rng(seed).uniform(0.2, 1.0, (8, 2))
    errors[:4, MASKS] *= 0.05
    errors[4:, FORMATS] *= 0.05
    shares = np.zeros(len(KINDS))
    shares[[MASKS, FORMATS]] = of_masks, of_formats
    found = shares_left(errors, [float(drop) for drop in errors @ shares])
    for place, share in ((MASKS, of_masks), (FORMATS, of_formats)):
        assert share / 3 < found[place] < 3 * share  # drawn together, as of few trainings
    assert (found[MASKS] > found[FORMATS]) == (of_masks > of_formats) or abs(of_masks / of_formats - 1) < 0.1
    assert (found > 0).all()


def test_where_nothing_tells_kinds_apart_they_are_alike() -> None:
    errors = np.zeros((4, len(KINDS)))
    errors[:, [MASKS, FORMATS]] = 0.3
    found = shares_left(errors, [0.06] * 4)
    np.testing.assert_allclose(found, 0.1, rtol=1e-3)
    assert np.isfinite(shares_left(np.zeros((3, len(KINDS))), [0.0, 0.1, 0.2])).all()


def trained(landscape: Landscape, of_masks: float, of_formats: float) -> list[tuple[Plan, float]]:
    """The plans that a search tries shortly, and what training leaves of their drops."""
    choices = [*landscape.sparing(LIMITS), *landscape.keeping(LIMITS)]
    shares = np.ones(len(KINDS))
    shares[[MASKS, FORMATS]] = of_masks, of_formats
    drops = landscape.errors_by_kind(choices) @ shares
    return [(landscape.plan(choice), float(drop)) for choice, drop in zip(choices, drops, strict=True)]


def masked(plans: tuple[Plan, ...]) -> float:
    """How far they go in masks."""
    return float(np.mean([synthetic_space().extent(plan)[MASKS] for plan in plans]))


def test_plans_do_more_of_what_training_brings_back() -> None:
    landscape = landscape_of(synthetic_space())
    if_masks = solved_anew(landscape, LIMITS, trained(landscape, 0.01, 1.0), frozenset())
    if_formats = solved_anew(landscape, LIMITS, trained(landscape, 1.0, 0.01), frozenset())
    assert 0 < len(if_masks) <= ANEW
    assert masked(if_masks) > masked(if_formats)
    for plan in (*if_masks, *if_formats):
        assert landscape.predicted(plan).size_bytes <= 14_000
    again = solved_anew(landscape, LIMITS, trained(landscape, 0.01, 1.0), frozenset(plan.hash for plan in if_masks))
    assert not {plan.hash for plan in again} & {plan.hash for plan in if_masks}


def test_too_few_trainings_say_nothing() -> None:
    landscape = landscape_of(synthetic_space())
    few = trained(landscape, 0.1, 0.1)[: FEWEST - 1]
    assert solved_anew(landscape, LIMITS, few, frozenset()) == ()
