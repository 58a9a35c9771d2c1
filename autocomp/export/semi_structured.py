"""Linears whose weights have two zeros in every four, multiplied as such by the sparse tensor cores of a GPU.

The weight is stored as CUTLASS packs it: the kept half, and where each of it belongs (Mishra et al., "Accelerating sparse deep
neural networks", 2021). torch has the kernel for compute capability 8.x, and none for CPUs: one that unpacks the weight is
registered here, for files that are scored or tested where no GPU is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from autocomp.export.torch_layers import missing

#: What the kernel takes whole multiples of: a weight's outputs and inputs, and the rows that it is multiplied with.
SPARSE_OUTPUTS, SPARSE_INPUTS, SPARSE_ROWS = 32, 64, 8


class SparseLinear(nn.Module):
    """A linear in half precision that multiplies the kept half of its weight. What is missing to whole multiples is filled up
    with zeros, and cut off again.

    Args:
        weight: (out, in), at most two of every four in a row not zero.
        bias: (out,); None where there is none.
        rows: of one example.
        floats: float16 or bfloat16.
    """

    kept: torch.Tensor
    places: torch.Tensor
    bias: torch.Tensor

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, rows: int, floats: torch.dtype) -> None:
        super().__init__()
        self.outputs, self.inputs = weight.shape
        self.more_inputs, more_outputs = missing(self.inputs, SPARSE_INPUTS), missing(self.outputs, SPARSE_OUTPUTS)
        self.ragged = rows % SPARSE_ROWS != 0
        filled = functional.pad(weight.detach().to(floats), (0, self.more_inputs, 0, more_outputs))
        packed: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]] = sparse_semi_structured_from_dense_cutlass
        kept, places = packed(filled)
        shift = torch.zeros(self.outputs) if bias is None else bias.detach()
        self.register_buffer("kept", kept)
        self.register_buffer("places", places)
        self.register_buffer("bias", functional.pad(shift.to(floats), (0, more_outputs)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.inputs) if x.dim() > 2 else x
        filled = rows
        if self.more_inputs or self.ragged:
            filled = functional.pad(rows, (0, self.more_inputs, 0, -rows.shape[0] % SPARSE_ROWS))
        # The kernel's first factor is the sparse one: it writes the result the other way round. What it reads must lie row by
        # row, at whole multiples; where it does, nothing is written.
        y = torch._sparse_semi_structured_addmm(self.bias, self.kept, self.places, filled.contiguous().t())
        y = y.t()[: rows.shape[0], : self.outputs].contiguous()
        return y.reshape(*x.shape[:-1], self.outputs) if x.dim() > 2 else y


def _on_cpu(bias: torch.Tensor, kept: torch.Tensor, places: torch.Tensor, x: torch.Tensor, **_: Any) -> torch.Tensor:
    weight: torch.Tensor = sparse_semi_structured_to_dense_cutlass(kept, places)  # type: ignore[no-untyped-call]
    return torch.addmm(bias.float()[:, None], weight.float(), x.float()).to(x.dtype)


#: Registered for as long as it is held.
CPU_KERNEL = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
CPU_KERNEL.impl("_sparse_semi_structured_addmm", _on_cpu, "CPU")  # type: ignore[no-untyped-call]
