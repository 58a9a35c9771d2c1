"""A training of a recovery as it is after one of its epochs, in a file that it goes on from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from autocomp.saved import load, save


@dataclass(frozen=True)
class Learned:
    """What a :class:`autocomp.compress.student.Student` has come to.

    ``tensors``: what is learned, in the student's order; ``kept``: weight → the mask of what is not cut; ``rounding``: the
    weights that are rounded by now; ``sharpness`` of signs; ``growing``: whether sparsity still grows; ``optimizer``: its
    state by parameter; ``average``: the average of ``tensors`` over the last of ``averaged`` steps, if there is one yet.
    """

    tensors: list[torch.Tensor]
    kept: dict[str, torch.Tensor]
    rounding: list[str]
    sharpness: float
    growing: bool
    optimizer: Mapping[int, object]
    average: list[torch.Tensor]
    averaged: int


@dataclass(frozen=True)
class Unfinished:
    """A training after ``step`` steps, of which ``told`` were told of. ``best`` is the best state so far, of loss
    ``best_loss``; ``held`` the last loss, ``waited`` the epochs since the best. ``order`` is that of the batches, ``chance``
    the state of what shuffles them, and ``torch_state`` of torch's own generator."""

    learned: Learned
    best: list[torch.Tensor]
    best_loss: float
    held: float
    waited: int
    step: int
    told: int
    order: list[int]
    chance: tuple[object, ...]
    torch_state: torch.Tensor


def keep(path: Path, state: Unfinished) -> None:
    """Put a state in the place of what is at ``path``."""
    save({**_fields(state), "learned": _fields(state.learned)}, path)


def kept(path: Path) -> Unfinished | None:
    """What :func:`keep` put there; None where there is nothing, or something else."""
    document = load(path)
    try:
        return None if document is None else Unfinished(**{**document, "learned": Learned(**document["learned"])})
    except (TypeError, KeyError):
        return None


def _fields(state: Unfinished | Learned) -> dict[str, object]:
    return {field.name: getattr(state, field.name) for field in fields(state)}
