"""Unstructured sparsity: single weights set to zero."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def kept_count(weights: int, level: float) -> int:
    """How many of ``weights`` stay at a sparsity ``level``."""
    return weights - round(weights * level)


def magnitude_mask(weight: torch.Tensor, level: float) -> torch.Tensor:
    """Which weights stay when the smallest are cut (Han et al., "Learning both weights and connections", 2015).

    Args:
        weight: any shape.
        level: the share to cut, in (0, 1).

    Returns:
        A bool mask of ``weight``'s shape with exactly :func:`kept_count` True; ties are broken by position.
    """
    import torch

    kept = kept_count(weight.numel(), level)
    order = weight.detach().abs().flatten().argsort(descending=True, stable=True)
    mask = torch.zeros(weight.numel(), dtype=torch.bool)
    mask[order[:kept]] = True
    return mask.reshape(weight.shape)
