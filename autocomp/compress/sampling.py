"""Some of many values, for statistics that do not need all of them."""

from __future__ import annotations

import torch


def spread_places(count: int, most: int) -> torch.Tensor | slice:
    """Places of at most ``most`` of ``count`` things: all, or one in each of so many equal parts, somewhere in it. Places at
    a fixed distance would, of images and sequences, be the same column or the same few channels again and again.

    The same numbers give the same places.
    """
    if count <= most:
        return slice(None)
    borders = torch.arange(most + 1) * count // most
    inside = torch.rand(most, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return borders[:-1] + (inside * borders.diff()).long()
