"""Weights rounded to a grid: each to its nearest level, or with an eye on the layer's outputs."""

from __future__ import annotations

import torch

from autocomp.compress.grids import Levels, QuantizedWeight, grid_of, nearest, spread_steps
from autocomp.compress.prune import Moment
from autocomp.compress.surgeon import DAMPING, inverse_factor, sweep
from autocomp.errors import CompressionError
from autocomp.plan import Format

#: AdaRound: steps of gradient descent, its rate, the weight of the pull towards 0 or 1, how sharp that pull is at first
#: and at last, and the share of the steps before it sets in.
STEPS, RATE, PULL, SHARPNESS, FREE = 300, 0.05, 0.1, (20.0, 2.0), 0.2
#: Rounds over all columns in which weights change sides where that still helps.
FLIPS = 3
#: The stretched sigmoid's ends.
ZETA, GAMMA = 1.1, -0.1


def quantize_weight(
    weight: torch.Tensor,
    chosen: Format,
    kept: torch.Tensor | None = None,
    narrow_products: bool = False,
    moment: Moment | None = None,
) -> QuantizedWeight:
    """Round a weight as its format says; see :class:`autocomp.plan.Format` for the ways.

    Args:
        weight: (out, …) float.
        chosen: of at most 8 bits.
        kept: mask of the weights that were not cut; the others stay exactly zero.
        narrow_products: see :class:`autocomp.compress.quantize.Numerics`.
        moment: of the layer's inputs; asked for by ``gptq`` and ``adaround``.

    Raises:
        CompressionError: the rounding asks for a moment and there is none.
    """
    levels, scale = grid_of(weight, chosen, kept, narrow_products)
    if chosen.rounding == "nearest":
        found = nearest(weight, levels, scale, chosen.group)
    elif moment is None:
        raise CompressionError(f"{chosen.rounding} must know what the layer reads; give calibration data")
    else:
        method = _gptq if chosen.rounding == "gptq" else _adaround
        found = method(weight.detach(), levels, scale, chosen.group, kept, moment)
    if kept is not None and not chosen.in_float8:  # where a float is zero already
        found = torch.where(kept, found, torch.zeros_like(found))
    return QuantizedWeight(found, scale, kept, chosen.group)


def _gptq(
    weight: torch.Tensor,
    levels: Levels,
    scale: torch.Tensor,
    group: int,
    kept: torch.Tensor | None,
    moment: Moment,
) -> torch.Tensor:
    """Columns in order of what the inputs do with them, largest first (``act-order``)."""
    matrix = weight.reshape(len(weight), -1)
    steps = spread_steps(scale, len(matrix), matrix.shape[1], group).expand(matrix.shape).double()
    stay = None if kept is None else kept.reshape(matrix.shape)
    rows, results = len(matrix) // len(moment.second), []
    for number, second in enumerate(moment.second):
        part = slice(number * rows, (number + 1) * rows)
        order = second.diagonal().argsort(descending=True, stable=True)
        own = steps[part][:, order]

        def rounded(values: torch.Tensor, column: int, own: torch.Tensor = own) -> torch.Tensor:
            return levels.nearest((values / own[:, column]).float()).double() * own[:, column]

        mask = None if stay is None else stay[part][:, order]
        new, _ = sweep(matrix[part][:, order].double(), inverse_factor(second[order][:, order]), mask, rounded=rounded)
        results.append((new / own).round()[:, order.argsort()])
    return torch.cat(results).to(torch.int8).reshape(weight.shape)


def _adaround(
    weight: torch.Tensor,
    levels: Levels,
    scale: torch.Tensor,
    group: int,
    kept: torch.Tensor | None,
    moment: Moment,
) -> torch.Tensor:
    """Whether each weight goes to the level above or below it, by gradient descent on the error of the layer's outputs,
    which the second moment of its inputs tells; a growing pull decides what is undecided."""
    matrix = weight.reshape(len(weight), -1).float()
    steps = spread_steps(scale, len(matrix), matrix.shape[1], group).expand(matrix.shape)
    below, above = levels.neighbours(matrix / steps)
    below, above = below * steps, above * steps
    stay = torch.ones_like(matrix) if kept is None else kept.reshape(matrix.shape).float()
    share = ((matrix - below) / (above - below)).clamp(0.01, 0.99)
    hidden = torch.logit((share - GAMMA) / (ZETA - GAMMA)).requires_grad_()
    second = torch.stack([_scaled(one) for one in moment.second]).float()
    size = (matrix * stay).square().mean().clamp_min(1e-20)
    optimizer = torch.optim.Adam([hidden], lr=RATE)
    with torch.enable_grad():
        for step in range(STEPS):
            up = (torch.sigmoid(hidden) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)
            error = ((below + up * (above - below) - matrix) * stay).reshape(len(second), -1, matrix.shape[1])
            loss = ((error @ second) * error).sum() / (size * matrix.numel())
            progress = step / STEPS
            if progress > FREE:
                high, low = SHARPNESS
                sharpness = low + (high - low) * (1 - (progress - FREE) / (1 - FREE))
                loss = loss + PULL * (1 - (2 * up - 1).abs().pow(sharpness)).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    chosen = _flipped(hidden.detach() >= 0, below, above, matrix, second, stay.bool())
    return (chosen / steps).round().to(torch.int8).reshape(weight.shape)


def _flipped(
    up: torch.Tensor,
    below: torch.Tensor,
    above: torch.Tensor,
    matrix: torch.Tensor,
    second: torch.Tensor,
    stay: torch.Tensor,
) -> torch.Tensor:
    """The weights after those have changed sides, column by column, that make the outputs better by it."""
    groups = len(second)
    chosen = torch.where(up, above, below)
    other = torch.where(up, below, above)
    error = torch.where(stay, chosen - matrix, torch.zeros(())).reshape(groups, -1, matrix.shape[1])
    slope = error @ second  # half the derivative of the error by each weight
    for _ in range(FLIPS):
        for column in range(matrix.shape[1]):
            change = (other[:, column] - chosen[:, column]) * stay[:, column]
            curvature = second[:, column, column].repeat_interleave(error.shape[1])
            better = change * (2 * slope.reshape(matrix.shape)[:, column] + change * curvature) < 0
            step = torch.where(better, change, torch.zeros(()))
            slope += step.reshape(groups, -1, 1) * second[:, None, column]
            moved = torch.where(better, other[:, column], chosen[:, column])
            other[:, column] = torch.where(better, chosen[:, column], other[:, column])
            chosen[:, column] = moved
    return chosen


def _scaled(second: torch.Tensor) -> torch.Tensor:
    """With a mean diagonal of 1, and damped."""
    mean = second.diagonal().mean().clamp_min(1e-20)
    return second / mean + DAMPING * torch.eye(len(second), dtype=second.dtype)
