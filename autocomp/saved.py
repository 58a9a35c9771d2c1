"""Tensors and what goes with them in one file, which is whole or told to be none."""

from __future__ import annotations

import hashlib
import io
import pickle
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autocomp.run import write_whole

#: What torch raises on a file that is cut short, overwritten or not its own.
UNREADABLE = (
    RuntimeError,
    pickle.UnpicklingError,
    EOFError,
    OSError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
)


def save(state: dict[str, Any], path: Path) -> None:
    """With the tensors goes their digest: torch does not check the sums in its own files."""
    saved = io.BytesIO()
    torch.save(state | {"sha256": tensors_hash(state)}, saved)
    write_whole(path, saved.getvalue())


def load(path: Path) -> dict[str, Any] | None:
    """What :func:`save` wrote; None where the file is something else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a damaged file is told of once, by the caller
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return state if state.pop("sha256") == tensors_hash(state) else None
    except UNREADABLE:
        return None


def tensors_hash(tensors: Mapping[Any, Any]) -> str:
    """SHA-256 over names, shapes and values of the tensors, also of those in mappings and lists within; the rest is
    left out."""
    digest = hashlib.sha256()
    for name, tensor in _tensors(tensors):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _tensors(state: Mapping[Any, Any]) -> Iterator[tuple[Any, Tensor]]:
    for name, value in state.items():
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, Mapping):
            yield from _tensors(value)
        elif isinstance(value, list):
            yield from _tensors(dict(enumerate(value)))
