"""Inputs told apart by what is in them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def digest(inputs: Iterable[torch.Tensor]) -> bytes:
    """The same for inputs of the same shapes, types and values, bit by bit."""
    import torch

    found = hashlib.blake2b(digest_size=16)
    for tensor in inputs:
        found.update(repr((tensor.shape, tensor.dtype)).encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.digest()
