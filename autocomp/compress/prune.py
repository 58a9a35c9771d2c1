"""Sparsity that leaves a layer's shape: which weights are set to zero, and how the others make up for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autocomp.errors import CompressionError
from autocomp.plan import N_OF_M, Saliency, Sparsity

if TYPE_CHECKING:
    import torch

#: Weights in a block: as many 8-bit products as one instruction adds up on most devices.
BLOCK_SIZE = 4


@dataclass(frozen=True)
class Moment:
    """What a layer reads, over calibration data: ``second`` (groups, columns, columns) and ``mean`` (groups, columns) of
    its input columns, of which a plain layer has one group."""

    second: torch.Tensor
    mean: torch.Tensor


def kept_count(shape: tuple[int, ...], sparsity: Sparsity) -> int:
    """How many weights of a tensor stay."""
    weights = math.prod(shape)
    if sparsity.pattern == "unstructured":
        return weights - round(weights * sparsity.level)
    size, whole = _groups(shape, sparsity)
    if sparsity.pattern in N_OF_M:
        n, m = N_OF_M[sparsity.pattern]
        return weights - whole * (m - n)
    return weights - size * round(whole * sparsity.level)


def _groups(shape: tuple[int, ...], sparsity: Sparsity) -> tuple[int, int]:
    """The size of a pattern's groups of weights in a row over the input channels, and how many whole ones there are. What
    is left over at the end of a row stays."""
    size = N_OF_M[sparsity.pattern][1] if sparsity.pattern in N_OF_M else BLOCK_SIZE
    return size, (shape[1] // size) * (math.prod(shape) // shape[1])


def cut_weights(
    weight: torch.Tensor,
    sparsity: Sparsity,
    moment: Moment | None = None,
    gradient: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Set weights to zero. For the saliencies see :class:`autocomp.plan.Sparsity`.

    Args:
        weight: (out, in, …); left as it is.
        sparsity: of a pattern that leaves the shape.
        moment: of the layer's inputs; asked for by ``wanda`` and ``hessian``.
        gradient: the mean square of the output's derivative by each weight; asked for by ``taylor``.

    Returns:
        The new weights, and a bool mask with exactly :func:`kept_count` True. Ties are broken by position.

    Raises:
        CompressionError: what the saliency asks for is missing.
    """
    import torch

    needed = {"taylor": gradient, "wanda": moment, "hessian": moment}
    if sparsity.saliency in needed and needed[sparsity.saliency] is None:
        raise CompressionError(f"{sparsity.saliency} must know what the layer reads; give calibration data")
    if sparsity.saliency == "hessian" and moment is not None:
        return _by_surgeon(weight, sparsity, moment)
    mask = _mask(weight_scores(weight, sparsity.saliency, moment, gradient), sparsity)
    return torch.where(mask, weight.detach(), torch.zeros((), dtype=weight.dtype)), mask


def weight_scores(
    weight: torch.Tensor, saliency: Saliency, moment: Moment | None, gradient: torch.Tensor | None
) -> torch.Tensor:
    """What each weight is worth by a saliency, of the weight's shape; by magnitude where what it asks for is missing."""
    import torch

    from autocomp.compress.surgeon import inverse_factor

    squares = weight.detach().double().square()
    if saliency == "taylor" and gradient is not None:
        return squares * gradient.double()
    if saliency in {"magnitude", "taylor"} or moment is None:
        return squares
    if saliency == "wanda":
        worth = moment.second.diagonal(dim1=1, dim2=2)
    else:  # what cutting one weight costs when all others make up for it
        worth = torch.stack([1 / inverse_factor(one).square().sum(dim=0) for one in moment.second])
    return squares * worth.repeat_interleave(len(weight) // len(worth), dim=0).reshape(weight.shape)


def _mask(scores: torch.Tensor, sparsity: Sparsity) -> torch.Tensor:
    """Keep what has the highest scores; in every row as much, where these are of Wanda."""
    import torch

    by_row = sparsity.saliency == "wanda"
    if sparsity.pattern == "unstructured":
        kept = kept_count(tuple(scores.shape), sparsity)
        return _highest(scores.reshape(len(scores) if by_row else 1, -1), kept).reshape(scores.shape)
    size, whole = _groups(tuple(scores.shape), sparsity)
    order, end = arranged(tuple(scores.shape), size)
    matrix = scores.reshape(len(scores), -1)[:, order]
    grouped = matrix[:, :end].reshape(len(scores), -1, size)
    if sparsity.pattern in N_OF_M:
        n, _ = N_OF_M[sparsity.pattern]
        inside = _highest(grouped.reshape(-1, size), n * whole).reshape(len(scores), -1)
    else:
        blocks = grouped.sum(dim=2)
        kept = whole - round(whole * sparsity.level)
        stay = _highest(blocks if by_row else blocks.reshape(1, -1), kept).reshape(blocks.shape)
        inside = stay.repeat_interleave(size, dim=1)
    mask = torch.ones(matrix.shape, dtype=torch.bool)
    mask[:, :end] = inside
    return mask[:, order.argsort()].reshape(scores.shape)


def _highest(rows: torch.Tensor, kept: int) -> torch.Tensor:
    """A mask of the highest values, as many in every row; the first rows have one more where it does not come out even."""
    import torch

    share, more = divmod(kept, max(1, len(rows)))
    order = rows.argsort(dim=1, descending=True, stable=True)
    mask = torch.zeros(rows.shape, dtype=torch.bool).scatter(1, order[:, :share], True)
    if more:
        mask[:more].scatter_(1, order[:more, share : share + 1], True)
    return mask


def arranged(shape: tuple[int, ...], size: int) -> tuple[torch.Tensor, int]:
    """An order of a weight's columns in which every ``size`` neighbours are of one kernel position and of input channels
    in a row; behind the ``end`` are those that fill no group."""
    import torch

    columns = torch.arange(math.prod(shape[1:])).reshape(shape[1], -1)
    full = shape[1] // size * size
    order = torch.cat([columns[:full].T.flatten(), columns[full:].T.flatten()])
    return order, full * columns.shape[1]


def _by_surgeon(weight: torch.Tensor, sparsity: Sparsity, moment: Moment) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    from autocomp.compress.surgeon import Cut, inverse_factor, sweep

    size = 1 if sparsity.pattern == "unstructured" else _groups(tuple(weight.shape), sparsity)[0]
    order, end = (
        arranged(tuple(weight.shape), size) if size > 1 else (torch.arange(weight[0].numel()), weight[0].numel())
    )
    matrix = weight.detach().reshape(weight.shape[0], -1)[:, order]
    parts = matrix.chunk(len(moment.second))
    total = (weight.numel() - kept_count(tuple(weight.shape), sparsity)) // size
    results, done = [], 0
    for number, (part, second) in enumerate(zip(parts, moment.second, strict=True), start=1):
        if sparsity.pattern in N_OF_M:
            cut = Cut(0, size, N_OF_M[sparsity.pattern][0], end)
        else:
            count = round(total * number / len(parts)) - done
            done += count
            cut = Cut(count, size, end=end)
        results.append(sweep(part, inverse_factor(second[order][:, order]), cut=cut))
    back = order.argsort()
    new, stay = (torch.cat(parts)[:, back].reshape(weight.shape) for parts in zip(*results, strict=True))
    return new, stay
