"""The grids that weights are rounded to: which levels there are, how far apart, and the nearest of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from autocomp.plan import Format

#: Shares of the largest magnitude that are tried as clipping range.
CLIPS = torch.cat([torch.logspace(-2, -0.75, 11), torch.linspace(0.2, 1.0, 41)])

#: The share of a channel's weights that the percentile leaves outside the range.
OUTSIDE = 0.001

TINY = torch.finfo(torch.float32).tiny * 2**20


@dataclass(frozen=True)
class QuantizedWeight:
    """Integer levels and their step: the weight is ``levels * scale``.

    ``levels``: int8 (float8_e4m3fn where they are floats of 8 bits), the weight's shape; ``scale``: float32, (out,), () for one
    step, or (out, groups) where every ``group`` weights in a row have their own; ``kept``: a bool mask of the weight's shape,
    None where nothing was cut.
    """

    levels: torch.Tensor
    scale: torch.Tensor
    kept: torch.Tensor | None = None
    group: int = 0

    def steps(self) -> torch.Tensor:
        """The scale, in a shape that multiplies the levels as an (out, columns) matrix."""
        return spread_steps(self.scale, self.levels.shape[0], self.levels[0].numel(), self.group)

    def dequantized(self) -> torch.Tensor:
        rows = self.levels.flatten(1) if self.levels.dim() > 1 else self.levels[:, None]
        return (rows.float() * self.steps()).reshape(self.levels.shape)


def spread_steps(scale: torch.Tensor, rows: int, columns: int, group: int) -> torch.Tensor:
    """Steps of any granularity as (rows, 1) or (rows, columns)."""
    if scale.dim() == 0:
        return scale.expand(rows, 1)
    return scale[:, None] if scale.dim() == 1 else scale.repeat_interleave(group, dim=1)[:, :columns]


@dataclass(frozen=True)
class Levels:
    """The levels of a grid, sorted, as floats, and the type that holds them."""

    values: torch.Tensor
    dtype: torch.dtype = torch.int8

    @staticmethod
    def of(chosen: Format, narrow_products: bool = False) -> Levels:
        """Those of a format without a table. 8 bits leave out -128, so that the range is symmetric; the narrow formats
        cannot spare a level. Where products are added up in 16 bits, two of 255 and 64 still fit."""
        if chosen.in_float8:
            every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
            return Levels(torch.unique(every[every.isfinite()]), torch.float8_e4m3fn)
        if chosen.grid == "ternary":
            return Levels(torch.tensor([-1.0, 0.0, 1.0]))
        if chosen.weight_bits == 1:
            return Levels(torch.tensor([-1.0, 1.0]))
        if chosen.weight_bits == 8:
            largest = 64 if narrow_products else 127
            return Levels(torch.arange(-largest, largest + 1.0))
        half = 1 << (chosen.weight_bits - 1)
        return Levels(torch.arange(-half, half + 0.0))

    @property
    def highest(self) -> float:
        return float(self.values[-1])

    def nearest(self, x: torch.Tensor) -> torch.Tensor:
        """The nearest level of each value, which is in steps."""
        low, high = float(self.values[0]), self.highest
        if len(self.values) == high - low + 1:
            return x.round().clamp(low, high)
        return self.values[torch.bucketize(x, (self.values[1:] + self.values[:-1]) / 2, right=True)]

    def neighbours(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The levels below and above each value; both the outermost one where it lies outside."""
        above = torch.searchsorted(self.values, x.contiguous(), right=True).clamp(1, len(self.values) - 1)
        return self.values[above - 1], self.values[above]


def grid_of(
    weight: torch.Tensor, chosen: Format, kept: torch.Tensor | None = None, narrow_products: bool = False
) -> tuple[Levels, torch.Tensor]:
    """The levels and the steps for a weight.

    Ternary steps with the least squared error are those of Li et al. ("Ternary weight networks", 2016); one step for
    -1 and 1 is the mean magnitude (Rastegari et al., "XNOR-Net", 2016); tables are those of k-means (Han et al., "Deep
    compression", 2016) among 8-bit levels, so that integer kernels compute with them.

    Args:
        weight: (out, …).
        kept: of its shape; where it is False the weight is zero whatever the grid.
        narrow_products: see :class:`autocomp.compress.quantize.Numerics`.

    Returns:
        The levels, and the scale as :class:`QuantizedWeight` has it.
    """
    rows, stay = _rows(weight.detach(), kept, chosen)
    if chosen.grid == "codebook":
        fine = Format(8, chosen.activation_bits, granularity=chosen.granularity, group=chosen.group)
        whole = Levels.of(fine, narrow_products)
        scale = _largest(rows) / whole.highest
        levels = _table(rows / scale[:, None], stay, 1 << chosen.weight_bits)
    else:
        levels = Levels.of(chosen, narrow_products)
        scale = _steps(rows, stay, chosen, levels)
    shape = {"tensor": (), "channel": (weight.shape[0],), "group": (weight.shape[0], -1)}[chosen.granularity]
    return levels, scale.reshape(shape)


def nearest(weight: torch.Tensor, levels: Levels, scale: torch.Tensor, group: int) -> torch.Tensor:
    """Every weight's nearest level, of its shape."""
    rows = weight.detach().reshape(weight.shape[0], -1)
    steps = spread_steps(scale, len(rows), rows.shape[1], group)
    return levels.nearest(rows / steps).to(levels.dtype).reshape(weight.shape)


def with_larger_steps(stored: QuantizedWeight, smallest: torch.Tensor, chosen: Format) -> QuantizedWeight:
    """``stored`` with no step below ``smallest`` (one per output channel); channels above it stay as they are."""
    scale = torch.maximum(stored.scale, smallest if stored.scale.dim() else smallest.amax())
    if torch.equal(scale, stored.scale):
        return stored
    there = stored.levels if stored.kept is None else stored.levels[stored.kept]
    fixed = chosen.grid == "codebook" or chosen.weight_bits == 1  # zero may be none of their levels
    levels = Levels(torch.unique(there).float()) if fixed and there.numel() else Levels.of(Format(8))
    ratio = (stored.scale / scale).expand(len(stored.levels)).reshape(-1, *[1] * (stored.levels.dim() - 1))
    found = torch.where(ratio < 1, levels.nearest(stored.levels * ratio).to(torch.int8), stored.levels)
    if stored.kept is not None:
        found = torch.where(stored.kept, found, torch.zeros_like(found))
    return replace(stored, levels=found, scale=scale)


def _rows(weight: torch.Tensor, kept: torch.Tensor | None, chosen: Format) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights that share a step in a row each, and which of them stay; a last group is filled up."""
    matrix = weight.reshape(weight.shape[0], -1)
    stay = torch.ones_like(matrix, dtype=torch.bool) if kept is None else kept.reshape(matrix.shape)
    if chosen.granularity == "tensor":
        matrix, stay = matrix.reshape(1, -1), stay.reshape(1, -1)
    elif chosen.granularity == "group":
        missing = -matrix.shape[1] % chosen.group
        matrix = torch.nn.functional.pad(matrix, (0, missing)).reshape(-1, chosen.group)
        stay = torch.nn.functional.pad(stay, (0, missing)).reshape(-1, chosen.group)
    return torch.where(stay, matrix, torch.zeros(())), stay


def _largest(rows: torch.Tensor) -> torch.Tensor:
    """Any step will do for a channel of zeros."""
    largest = rows.abs().amax(dim=1).clamp_min(TINY)
    return torch.where(rows.any(dim=1), largest, torch.ones(()))


def _steps(rows: torch.Tensor, stay: torch.Tensor, chosen: Format, levels: Levels) -> torch.Tensor:
    if chosen.weight_bits == 1:
        mean = rows.abs().sum(dim=1) / stay.sum(dim=1).clamp_min(1)
        return torch.where(rows.any(dim=1), mean.clamp_min(TINY), torch.ones(()))
    largest = _largest(rows)
    if chosen.clip == "percentile":
        rank = (stay.sum(dim=1) * OUTSIDE).long()
        inside = rows.abs().sort(dim=1, descending=True).values.gather(1, rank[:, None])[:, 0]
        return torch.where(inside > 0, inside, largest) / levels.highest
    best = largest / levels.highest
    if chosen.clip == "minmax" or chosen.weight_bits == 8:
        return best
    best_error = torch.full_like(largest, torch.inf)
    for clip in CLIPS:
        candidate = largest * clip / levels.highest
        error = (levels.nearest(rows / candidate[:, None]) * candidate[:, None] - rows).square().sum(dim=1)
        best = torch.where(error < best_error, candidate, best)
        best_error = torch.minimum(error, best_error)
    return best


def _table(rows: torch.Tensor, stay: torch.Tensor, count: int) -> Levels:
    """The ``count`` whole numbers with the least squared error for values of up to 127 in magnitude.

    Exact: values are first put in bins one step wide, and where the bins are parted is found by dynamic programming
    (W. Fisher, "On grouping for maximum homogeneity", 1958), where Lloyd's algorithm would stop at the nearest optimum.
    """
    values = rows[stay].double()
    if not values.numel():
        return Levels(torch.zeros(1))
    bins = values.round().long()
    lowest = int(bins.min())
    length = int(bins.max()) - lowest + 1
    powers = torch.stack([torch.ones_like(values), values, values.square()])
    sums = torch.zeros(3, length + 1, dtype=torch.float64)
    sums[:, 1:] = torch.zeros(3, length, dtype=torch.float64).index_add(1, bins - lowest, powers).cumsum(1)
    number, total, squares = sums[:, None, :] - sums[:, :, None]  # of bins from a row's number up to before a column's
    centre = (total / number.clamp_min(1)).round()
    costs = squares - 2 * centre * total + centre.square() * number
    costs = costs.masked_fill(torch.ones_like(costs, dtype=torch.bool).tril(), torch.inf)
    best, starts = costs[0], []
    for _ in range(min(count, length) - 1):
        best, start = (best[:, None] + costs).min(dim=0)
        starts.append(start)
    end, levels = length, []
    for start in (*reversed(starts), None):
        begin = 0 if start is None else int(start[end])
        levels.append(float(centre[begin, end]))
        end = begin
    return Levels(torch.unique(torch.tensor(levels)))
