"""A copy of a frozen dataclass with some fields changed, for where hundreds are made in a millisecond."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


def changed(value: T, **fields: object) -> T:
    """What :func:`dataclasses.replace` gives, in a tenth of the time. For dataclasses that check nothing when they are made,
    cache nothing, and have no slots."""
    copy = object.__new__(type(value))
    copy.__dict__.update(value.__dict__, **fields)
    return copy
