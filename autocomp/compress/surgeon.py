"""Optimal brain surgeon, a layer at a time: weights are cut or rounded one column after the other, and those to the
right make up for it.

The error that counts is that of the layer's outputs, which is quadratic in the weights, with the second moment of the
layer's inputs as its Hessian (B. Hassibi & D. Stork, "Second order derivatives for network pruning", 1993). With the
order of columns fixed, all rows share one Cholesky factor of its inverse (E. Frantar & D. Alistarh, "SparseGPT", 2023;
E. Frantar et al., "GPTQ", 2022).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

#: Share of the mean diagonal that is added to the Hessian: what was not seen in calibration may yet come.
DAMPING = 0.01

#: Columns that are worked through before what they cost is passed on to all others.
BLOCK = 128

#: (a column of weights (rows,), its number) → what is stored instead.
Round = Callable[[torch.Tensor, int], torch.Tensor]


@dataclass(frozen=True)
class Cut:
    """Weights to cut by what cutting them costs: ``count`` of the matrix, in groups of ``size`` columns that go together;
    or, with ``keep``, all but so many of every group. Columns from ``end`` on stay."""

    count: int
    size: int = 1
    keep: int | None = None
    end: int | None = None


def inverse_factor(moment: torch.Tensor) -> torch.Tensor:
    """The upper Cholesky factor of the inverse of a damped second moment.

    Args:
        moment: (columns, columns), symmetric and positive semidefinite.
    """
    damped = moment.double().clone()
    diagonal = damped.diagonal()
    mean = float(diagonal.mean())
    diagonal += DAMPING * mean if mean > 0 else 1.0
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: torch.Tensor = torch.linalg.cholesky((inverse + inverse.T) / 2, upper=True)
    return factor


def sweep(
    weight: torch.Tensor,
    factor: torch.Tensor,
    kept: torch.Tensor | None = None,
    cut: Cut | None = None,
    rounded: Round | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut and round a matrix column by column.

    Args:
        weight: (rows, columns), left as it is.
        factor: of :func:`inverse_factor`.
        kept: a mask that is given; None where everything stays or ``cut`` says what goes.
        cut: what is to be cut.
        rounded: how what stays is rounded; None leaves it.

    Returns:
        The new weights, zero where they were cut, and the mask of what stays.
    """
    rows, columns = weight.shape
    work = weight.double().clone()
    stay = torch.ones(rows, columns, dtype=torch.bool) if kept is None else kept.clone()
    end = columns if cut is None or cut.end is None else cut.end
    quotas = [0] * -(-columns // BLOCK) if cut is None else _quotas(work, factor, cut, end)
    for start, quota in zip(range(0, columns, BLOCK), quotas, strict=True):
        stop = min(start + BLOCK, columns)
        if cut is not None and cut.keep is None and start < end:
            until = min(stop, end)
            stay[:, start:until] = _staying(work, factor, start, until, cut.size, quota)
        errors = torch.zeros(rows, stop - start, dtype=torch.float64)
        for column in range(start, stop):
            if cut is not None and cut.keep is not None and column < end and column % cut.size == 0:
                stay[:, column : column + cut.size] = _best_of(work, factor, column, cut.size, cut.keep)
            values = work[:, column]
            stored = values if rounded is None else rounded(values, column)
            stored = torch.where(stay[:, column], stored, torch.zeros((), dtype=torch.float64))
            error = (values - stored) / factor[column, column]
            work[:, column:stop] -= error[:, None] * factor[column, column:stop]
            work[:, column] = stored
            errors[:, column - start] = error
        work[:, stop:] -= errors @ factor[start:stop, stop:]
    return work.to(weight.dtype), stay


def _costs(work: torch.Tensor, factor: torch.Tensor, start: int, stop: int, size: int) -> torch.Tensor:
    """What cutting groups of columns costs, (rows, groups)."""
    costs = (work[:, start:stop] / factor.diagonal()[start:stop]).square()
    return costs.reshape(len(work), -1, size).sum(dim=2)


def _quotas(work: torch.Tensor, factor: torch.Tensor, cut: Cut, end: int) -> list[int]:
    """How many groups are cut in each block of columns: as many as are among the cheapest of all as long as none is cut."""
    if end == 0:
        return [0] * -(-work.shape[1] // BLOCK)
    costs = _costs(work, factor, 0, end, cut.size)
    chosen = costs.flatten().argsort(stable=True)[: cut.count] % costs.shape[1] * cut.size // BLOCK
    return torch.bincount(chosen, minlength=-(-work.shape[1] // BLOCK)).tolist()


def _staying(work: torch.Tensor, factor: torch.Tensor, start: int, stop: int, size: int, quota: int) -> torch.Tensor:
    """A mask of some columns that cuts the ``quota`` cheapest groups."""
    costs = _costs(work, factor, start, stop, size)
    stay = torch.ones(costs.numel(), dtype=torch.bool)
    stay[costs.flatten().argsort(stable=True)[:quota]] = False
    return stay.reshape(costs.shape).repeat_interleave(size, dim=1)


def _best_of(work: torch.Tensor, factor: torch.Tensor, column: int, size: int, keep: int) -> torch.Tensor:
    """A mask of one group of columns that keeps the ``keep`` dearest of every row."""
    costs = _costs(work, factor, column, column + size, 1)
    order = costs.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(costs, dtype=torch.bool).scatter(1, order[:, :keep], True)
