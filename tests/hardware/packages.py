"""Small torch packages, of what the tests of runtimes write as ONNX."""

from __future__ import annotations

import torch
from torch import nn

from autocomp.export.package import package
from tests.hardware.test_onnxruntime import weights


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(weights(6, 4)), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


class Difference(nn.Module):
    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return left - right


def written(module: nn.Module, *shapes: tuple[int, ...], free: tuple[int, ...] = (0,)) -> bytes:
    """A package of a module, some dimensions of its inputs free."""
    dims = tuple(dict.fromkeys(free, torch.export.Dim.DYNAMIC) for _ in shapes)
    example = tuple(torch.ones(shape) for shape in shapes)
    return package(torch.export.export(module.eval(), example, dynamic_shapes=dims, strict=False))


def linear_package(fixed: int | None = None) -> bytes:
    return written(Product(), (fixed or 2, 6), free=() if fixed else (0,))


def float_package() -> bytes:
    """Two convolutions with a shortcut."""
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.first(x).relu()
            summed: torch.Tensor = y + self.second(y)
            return summed

    return written(Net(), (2, 3, 12, 12))


def difference_package() -> bytes:
    return written(Difference(), (2, 3), (2, 3), free=())


def open_package() -> bytes:
    """Two dimensions free."""
    return written(nn.ReLU(), (2, 3), free=(0, 1))
