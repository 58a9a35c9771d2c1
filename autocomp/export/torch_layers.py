"""What the layers of a torch package are made of, where they are not torch's own: weights that are stored in bytes, and
products of 8-bit numbers. Every module here becomes plain aten operations when it is exported, so that whoever loads the
package needs torch and nothing else.

Products are ``torch._int_mm``, whose CUDA kernel takes more than 16 rows, and depths and columns in multiples of 8: what is
missing is filled with zeros, which adds nothing to a sum. Convolutions have no integer kernel in torch on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

#: ``torch._int_mm`` on CUDA: fewer rows than this are filled up, and depths and columns to whole multiples.
INTEGER_ROWS, INTEGER_MULTIPLE = 17, 8
#: ``torch._scaled_mm`` on CUDA: depths and columns are filled up to whole multiples.
FLOAT8_MULTIPLE = 16
FLOAT8_LARGEST = torch.finfo(torch.float8_e4m3fn).max


class Levels(nn.Module):
    """A tensor of floats → int8 levels of a calibrated grid of 8 bits, ``x / step + zero_point``, rounded and clamped.

    Grids of 0 to 255 are moved down by 128, so that one kernel takes both kinds.
    """

    inverse: torch.Tensor

    def __init__(self, step: float, zero_point: int) -> None:
        super().__init__()
        # A tensor of one dimension: what is divided is divided in float32, however few bits it has.
        self.register_buffer("inverse", torch.tensor([1.0 / step]))
        self.zero_point = zero_point

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        levels = torch.round(x * self.inverse)
        if self.zero_point:
            levels = levels + self.zero_point
        return levels.clamp(-128, 127).to(torch.int8)


class FromLevels(nn.Module):
    """int8 levels → floats."""

    def __init__(self, step: float, zero_point: int, floats: torch.dtype) -> None:
        super().__init__()
        self.step, self.zero_point, self.floats = step, zero_point, floats

    def forward(self, levels: torch.Tensor) -> torch.Tensor:
        x = levels.to(self.floats)
        if self.zero_point:
            x = x - self.zero_point
        return x * self.step


class IntegerLinear(nn.Module):
    """A linear that reads int8 levels and multiplies them with int8 weights; the sum is put right by one multiplication and
    addition in float32.

    Args:
        levels: int8, (out, in).
        scale: float32, (out,) or (): the step of the weight times that of the input.
        bias: float32, (out,); None where there is none.
        zero_point: of the input's levels.
        rows: of a product at least, whatever the batch: examples of a sequence have many each.
    """

    levels: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor

    def __init__(
        self,
        levels: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None,
        zero_point: int,
        rows: int,
        floats: torch.dtype,
    ) -> None:
        super().__init__()
        self.outputs, self.inputs = levels.shape
        self.floats = floats
        self.more_rows = max(0, INTEGER_ROWS - rows)
        self.more_inputs = missing(self.inputs)
        scale = scale.float().expand(self.outputs).clone()
        shift = torch.zeros(self.outputs) if bias is None else bias.detach().float()
        self.register_buffer("levels", functional.pad(levels, (0, self.more_inputs, 0, missing(self.outputs))))
        self.register_buffer("scale", scale)
        # What a zero point adds to every sum is the same for all inputs.
        self.register_buffer("bias", shift - scale * zero_point * levels.sum(1, dtype=torch.int32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.inputs) if x.dim() > 2 else x
        filled = rows
        if self.more_rows or self.more_inputs:
            filled = functional.pad(rows, (0, self.more_inputs, 0, self.more_rows))
        sums = torch._int_mm(filled, self.levels.t())
        if self.more_rows:
            sums = sums[: rows.shape[0]]
        return put_right(sums, x.shape, self.scale, self.bias, self.floats)


def put_right(
    sums: torch.Tensor, given: torch.Size, scale: torch.Tensor, bias: torch.Tensor, floats: torch.dtype
) -> torch.Tensor:
    """From the sums of a product of 8-bit numbers to a linear's output: what was filled up is cut off, and one multiplication
    and addition in float32 make floats of it.

    Args:
        sums: (rows, columns or more).
        given: the shape of the linear's input.
        scale, bias: float32, (columns,).
    """
    (columns,) = scale.shape
    if sums.shape[1] > columns:
        sums = sums[:, :columns]
    y = torch.addcmul(bias, sums, scale)
    if floats != torch.float32:
        y = y.to(floats)
    return y.reshape(*given[:-1], columns) if len(given) > 2 else y


def missing(size: int, multiple: int = INTEGER_MULTIPLE) -> int:
    """What a size lacks to a whole multiple."""
    return -size % multiple


class Float8Levels(nn.Module):
    """A tensor of floats → floats of 8 bits, ``x / step``, filled up to whole multiples of :data:`FLOAT8_MULTIPLE` columns."""

    inverse: torch.Tensor

    def __init__(self, step: float, columns: int) -> None:
        super().__init__()
        self.step, self.more = step, missing(columns, FLOAT8_MULTIPLE)
        self.register_buffer("inverse", torch.tensor([1.0 / step]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        filled = functional.pad(x, (0, self.more)) if self.more else x
        return (filled * self.inverse).clamp(-FLOAT8_LARGEST, FLOAT8_LARGEST).to(torch.float8_e4m3fn)


class Float8Linear(nn.Module):
    """A linear that reads floats of 8 bits and multiplies them with such weights (``torch._scaled_mm``, whose CUDA kernel wants
    compute capability 8.9); as :class:`IntegerLinear` for the rest.

    Args:
        levels: float8_e4m3fn, (out, in).
        scale: float32, (out,) or (): the step of the weight times that of the input.
    """

    levels: torch.Tensor
    one: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor

    def __init__(
        self, levels: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, floats: torch.dtype
    ) -> None:
        super().__init__()
        self.outputs, inputs = levels.shape
        self.floats = floats
        more = (0, missing(inputs, FLOAT8_MULTIPLE), 0, missing(self.outputs, FLOAT8_MULTIPLE))
        self.register_buffer("levels", functional.pad(levels.float(), more).to(torch.float8_e4m3fn))
        self.register_buffer("one", torch.ones(()))
        self.register_buffer("scale", scale.float().expand(self.outputs).clone())
        self.register_buffer("bias", torch.zeros(self.outputs) if bias is None else bias.detach().float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Its first factor must lie row by row on a GPU; where it does, nothing is written.
        rows = (x.reshape(-1, x.shape[-1]) if x.dim() > 2 else x).contiguous()
        sums = torch._scaled_mm(rows, self.levels.t(), self.one, self.one, out_dtype=torch.float32)
        return put_right(sums, x.shape, self.scale, self.bias, self.floats)


class StoredWeight(nn.Module):
    """A weight that is stored in int8 levels and computed with in floats: a layer's at every run, as there is no kernel that
    takes it so.

    Args:
        levels: int8, of the weight's shape.
        scale: as :class:`autocomp.compress.grids.QuantizedWeight` has it.
        group: how many weights in a row have one step; 0 where the granularity is another.
    """

    levels: torch.Tensor
    scale: torch.Tensor

    def __init__(self, levels: torch.Tensor, scale: torch.Tensor, group: int, floats: torch.dtype) -> None:
        super().__init__()
        self.shape, self.group, self.floats = levels.shape, group, floats
        if group:
            rows = levels.flatten(1)
            rows = functional.pad(rows, (0, -rows.shape[1] % group))
            levels, scale = rows.reshape(len(rows), -1, group), scale[:, :, None]
        elif scale.dim():
            scale = scale.reshape(-1, *[1] * (levels.dim() - 1))
        self.register_buffer("levels", levels.contiguous())
        self.register_buffer("scale", scale.float().clone())

    def forward(self) -> torch.Tensor:
        weight = self.levels * self.scale
        if self.group:
            weight = weight.flatten(1)[:, : self.shape[1:].numel()].reshape(self.shape)
        return weight if self.floats == torch.float32 else weight.to(self.floats)


class HalfWeight(nn.Module):
    """A weight that is stored in half precision and computed with in float32."""

    halves: torch.Tensor

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("halves", weight.detach().half())

    def forward(self) -> torch.Tensor:
        return self.halves.float()


class IntegerTable(nn.Module):
    """An embedding whose table stays int8: only the rows that are read become floats."""

    levels: torch.Tensor
    scale: torch.Tensor

    def __init__(self, levels: torch.Tensor, scale: torch.Tensor, floats: torch.dtype) -> None:
        super().__init__()
        self.floats = floats
        self.register_buffer("levels", levels)
        self.register_buffer("scale", scale.float().expand(len(levels))[:, None].clone())

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = functional.embedding(ids, self.levels) * functional.embedding(ids, self.scale)
        return rows if self.floats == torch.float32 else rows.to(self.floats)


class InFloat32(nn.Module):
    """What is computed in float32, between floats of another precision."""

    def __init__(self, compute: Callable[[torch.Tensor], torch.Tensor], floats: torch.dtype) -> None:
        super().__init__()
        self.compute, self.floats = compute, floats

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.compute(x.float()).to(self.floats)
