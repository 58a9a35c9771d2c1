"""Which networks a calibration measures next."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocomp.errors import MeasurementError
from autocomp.hardware import design
from autocomp.hardware.design import EVEN, LEAST_PART, next_network, parts_by_error
from autocomp.hardware.experiment import FAMILIES, FILES_PER_NETWORK, family_of, network_number
from autocomp.hardware.measurements import MeasuredNetwork, Measurements


def measured(count: int) -> list[MeasuredNetwork]:
    """The first files."""
    return [MeasuredNetwork(f"random-0-{n}", str(n // FILES_PER_NETWORK), 1.0, 0.01, 180.0, ()) for n in range(count)]


def chosen(parts: dict[str, float], count: int, taken: set[int] | None = None) -> Counter[str]:
    numbers = set(taken or ())
    for _ in range(count):
        numbers.add(next_network(numbers, parts))
    assert len(numbers) == count + len(taken or ())
    return Counter(map(family_of, numbers))


def test_before_anything_is_known_all_families_take_turns() -> None:
    assert next_network((), EVEN) == 0
    assert chosen(dict(EVEN), 3 * len(FAMILIES)) == Counter({f: 3 * FAMILIES.count(f) for f in FAMILIES})


@given(st.lists(st.floats(0.05, 1.0), min_size=len(EVEN), max_size=len(EVEN)), st.integers(20, 60))
def test_every_family_gets_its_part(weights: list[float], count: int) -> None:
    parts = {family: weight / sum(weights) for family, weight in zip(EVEN, weights, strict=True)}
    counts = chosen(parts, count)
    for family, part in parts.items():
        assert abs(counts[family] - part * count) <= len(parts)


def test_what_is_foreseen_worst_is_measured_most(monkeypatch: pytest.MonkeyPatch) -> None:
    networks = measured(FILES_PER_NETWORK * 2 * len(FAMILIES))
    errors = {one.name: -0.3 if family_of(network_number(one.name)) == "dense" else 0.03 for one in networks}
    monkeypatch.setattr(design, "held_out_errors", lambda *_: errors)
    parts = parts_by_error(Measurements(tuple(networks)))
    assert sum(parts.values()) == pytest.approx(1.0)
    assert max(parts, key=parts.__getitem__) == "dense"
    assert all(parts[family] >= LEAST_PART * EVEN[family] for family in EVEN)


def test_too_few_to_tell_are_no_reason_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> dict[str, float]:
        raise MeasurementError("too few")

    monkeypatch.setattr(design, "held_out_errors", refuse)
    assert parts_by_error(Measurements(tuple(measured(4)))) == EVEN
