"""``nn.Conv1d`` as a convolution of height 1, between two changes of shape that move nothing: so whatever can be done to
convolutions over images can be done to those over sequences. The convolution has a path of its own, ``PATH.conv``.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from autocomp.compress.agreement import computes_the_same

#: Where the height of 1 stands: before the length, with a batch or without one.
HEIGHT = -2


class LineConvolution(nn.Module):
    """What an ``nn.Conv1d`` computes, called as it is called."""

    def __init__(self, given: nn.Conv1d) -> None:
        super().__init__()
        for name in nn.Conv1d.__constants__:  # which a network may ask it for
            setattr(self, name, getattr(given, name))
        padding = given.padding if isinstance(given.padding, str) else (0, given.padding[0])
        self.conv = nn.Conv2d(
            given.in_channels,
            given.out_channels,
            (1, given.kernel_size[0]),
            (1, given.stride[0]),
            padding,
            (1, given.dilation[0]),
            given.groups,
            given.bias is not None,
            given.padding_mode,
        )
        with torch.no_grad():
            self.conv.weight.copy_(given.weight.unsqueeze(HEIGHT))
            if given.bias is not None:
                self.conv.bias.copy_(given.bias)  # type: ignore[union-attr]

    @property
    def weight(self) -> torch.Tensor:
        """(out, in / groups, length)."""
        return self.conv.weight.squeeze(HEIGHT)

    @property
    def bias(self) -> torch.Tensor | None:
        """(out,); None where there is none."""
        return self.conv.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv(x.unsqueeze(HEIGHT))
        return y.squeeze(HEIGHT)


def over_images(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> nn.Module:
    """``model``, in evaluation, or a copy of it whose convolutions over sequences are ones over images of height 1.

    Those that have hooks, or do more than torch's do, stay; so do all of them where the copy does not compute what the model
    computes on ``inputs``.
    """
    changed = copy.deepcopy(model)
    made: dict[nn.Module, LineConvolution] = {}
    for parent in [*changed.modules()]:
        for name, child in [*parent._modules.items()]:
            if isinstance(child, nn.Conv1d) and type(child).forward is nn.Conv1d.forward and not _has_hooks(child):
                # One that stands at several places stays one.
                made.setdefault(child, LineConvolution(child).eval().requires_grad_(False))
                setattr(parent, name, made[child])
    return changed if made and computes_the_same(model, changed, inputs) else model


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
