"""Weights while they are trained: floats behind, what the file will hold in front, and a gradient that goes straight
through the rounding (Y. Bengio et al., "Estimating or propagating gradients through stochastic neurons", 2013)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from autocomp.compress.grids import Levels, QuantizedWeight, grid_of, spread_steps
from autocomp.compress.quantize import ActivationQuantizer, DynamicQuantizer
from autocomp.compress.simulate import NOISE, SimulatedQuantizer
from autocomp.plan import Format

#: How sharply the gradient of a sign falls off around zero, at first and at last (H. Qin et al., "Forward and backward
#: information retention for accurate binary neural networks", 2020).
SIGN_SHARPNESS = (1.0, 10.0)


class Latent(nn.Module):
    """One weight. Its steps are learned with it (S. Esser et al., "Learned step size quantization", 2020), as logarithms,
    so that a step of the optimizer is a share of them; so are the levels of a table (S. Han et al., "Deep compression",
    2016) and the magnitude of signs (M. Rastegari et al., "XNOR-Net", 2016).

    Args:
        weight: the floats to start from.
        chosen: its format; None for floats.
        stored: what the format made of it; None for floats.
        kept: the mask of what is not cut; None where nothing is.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        chosen: Format | None,
        stored: QuantizedWeight | None,
        kept: torch.Tensor | None,
        narrow_products: bool = False,
    ) -> None:
        super().__init__()
        self.chosen = chosen
        self.group = 0 if stored is None else stored.group
        self.latent = nn.Parameter(weight.detach().clone())
        self.log_scale = None if stored is None else nn.Parameter(stored.scale.log())
        self.kept: torch.Tensor | None
        self.register_buffer("kept", kept)
        self.table: nn.Parameter | None = None
        self._levels: Levels | None = None
        self.sharpness = SIGN_SHARPNESS[0]
        self._narrow_products = narrow_products
        #: Of a table, whose levels are some of those of 8 bits.
        self._largest = Levels.of(Format(8), narrow_products).highest
        #: Whether it is rounded; not yet, while what is cut still grows.
        self.rounds = True
        if chosen is not None and stored is not None:
            if chosen.grid == "codebook":
                there = stored.levels if kept is None else stored.levels[kept]
                self.table = nn.Parameter(torch.unique(there).float())
            else:
                self._levels = Levels.of(chosen, narrow_products)

    def forward(self) -> torch.Tensor:
        """The weight as the file computes with it."""
        levels, steps = self._rounded()
        return levels if steps is None else (levels * steps).reshape(self.latent.shape)

    def stored(self) -> QuantizedWeight | None:
        """What the file holds; None for floats."""
        with torch.no_grad():
            levels, steps = self._rounded()
            if steps is None or self.log_scale is None:
                return None
            floats = self.chosen is not None and self.chosen.in_float8
            whole = levels.to(torch.float8_e4m3fn) if floats else levels.round().to(torch.int8)
            whole = whole.reshape(self.latent.shape)
            return QuantizedWeight(whole, self.log_scale.exp(), self.kept, self.group)

    def _rounded(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        weight = self.latent if self.kept is None else self.latent * self.kept
        if self.chosen is not None and self.chosen.weight_bits == 16:
            return _through(weight, weight.half().float()), None
        if self.log_scale is None or self.chosen is None or not self.rounds:
            return weight, None
        rows = weight.reshape(len(weight), -1)
        steps = spread_steps(self.log_scale.exp(), len(rows), rows.shape[1], self.group)
        if self.chosen.weight_bits == 1:
            levels = self._signs(rows)
        elif self.table is not None:
            # The step is a factor of the table, whatever weights fall to which level: it learns by the levels alone.
            levels = self._from_table(rows / steps.detach(), self.table)
        else:
            assert self._levels is not None
            x = (rows / steps).clamp(float(self._levels.values[0]), self._levels.highest)
            levels = _through(x, self._levels.nearest(x.detach()))
        return (levels if self.kept is None else levels * self.kept.reshape(rows.shape)), steps

    def _signs(self, rows: torch.Tensor) -> torch.Tensor:
        """Of weights around their mean, of which signs tell most."""
        stay = torch.ones_like(rows) if self.kept is None else self.kept.reshape(rows.shape).float()
        count = stay.sum(dim=1, keepdim=True).clamp_min(1)
        middle = (rows * stay).sum(dim=1, keepdim=True) / count
        spread = (((rows - middle) * stay).square().sum(dim=1, keepdim=True) / count).sqrt().clamp_min(1e-12)
        x = (rows - middle) / spread
        smooth = torch.tanh(self.sharpness * x) * max(1.0, 1.0 / self.sharpness)
        return _through(smooth, torch.where(x >= 0, 1.0, -1.0))

    def _from_table(self, x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        whole = _through(table, table.detach().round()).clamp(-self._largest, self._largest)
        order = whole.detach().argsort(stable=True)
        sorted_levels = whole.detach()[order]
        places = torch.bucketize(x.detach(), (sorted_levels[1:] + sorted_levels[:-1]) / 2)
        # As a choice of rows: its gradient adds up what fell to a level at once, that of an index one after the other.
        chosen = whole.index_select(0, order[places].flatten()).reshape(x.shape)
        return chosen + (x - x.detach())

    def cut_to(self, kept: torch.Tensor) -> None:
        """From now on only these stay."""
        self.kept = kept

    def begin_rounding(self) -> None:
        """Round from now on, on the grid that suits the weights as they are."""
        self.rounds = True
        if self.log_scale is None or self.chosen is None:
            return
        kept = None if self.kept is None else self.kept.cpu()
        levels, scale = grid_of(self.latent.detach().cpu(), self.chosen, kept, self._narrow_products)
        self.log_scale.data = scale.log().to(self.latent.device)
        if self.table is not None:
            self.table.data = levels.values.to(self.latent.device, copy=True)


def _through(smooth: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """``value``, with the gradient of ``smooth``."""
    return smooth + (value - smooth).detach()


class LearnedQuantizer(nn.Module):
    """An :class:`ActivationQuantizer` whose step is learned; those of one grid share the parameter."""

    def __init__(self, start: ActivationQuantizer, log_scale: nn.Parameter) -> None:
        super().__init__()
        self.log_scale = log_scale
        self.zero_point, self.low, self.high = start.zero_point, start.low, start.high

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rounded: torch.Tensor = _OnSteps.apply(  # type: ignore[no-untyped-call]
            x, self.log_scale, self.zero_point, self.low, self.high
        )
        return rounded


class _OnSteps(torch.autograd.Function):
    """Activations rounded to a step that is learned, in one operation: as a chain of plain ones it takes longer than the
    convolution that reads them.

    With r = round(x / s) clipped to the range, y = r·s: dy/dx is 1 inside the range and 0 outside, dy/d(log s) is y - x
    inside and y outside. No number is read back, which a GPU would have to be waited for.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, log_scale: torch.Tensor, zero_point: int, low: int, high: int
    ) -> torch.Tensor:
        scale = log_scale.exp()
        steps = x / scale
        rounded = steps.round().clamp_(low - zero_point, high - zero_point).mul_(scale)
        ctx.save_for_backward(steps, rounded, scale)
        ctx.range = (low - zero_point - 0.5, high - zero_point + 0.5)
        return rounded

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        steps, rounded, scale = ctx.saved_tensors
        # In one pass over memory instead of four.
        inner = torch.ops.aten.hardtanh_backward(grad, steps, *ctx.range)
        to_scale = (grad * rounded).sum() - (inner * steps).sum() * scale
        return inner, to_scale, None, None, None


class StraightDynamicQuantizer(DynamicQuantizer):
    """A :class:`DynamicQuantizer` whose gradient goes straight through."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _through(x, super().forward(x.detach()))


class LearnedSimulated(nn.Module):
    """A :class:`SimulatedQuantizer` of 4 bits or of signs whose step, or magnitude, is learned."""

    def __init__(self, start: SimulatedQuantizer) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(start.step).log())
        self.zero_point, self.levels = start.zero_point, start.levels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rounded: torch.Tensor
        if self.levels == 1:
            rounded = _Signs.apply(x, self.log_scale)  # type: ignore[no-untyped-call]
        else:
            rounded = _OnSteps.apply(  # type: ignore[no-untyped-call]
                x, self.log_scale, self.zero_point, 0, self.levels
            )
        return rounded


class _Signs(torch.autograd.Function):
    """Activations as their signs times a magnitude m that is learned (M. Rastegari et al., "XNOR-Net", 2016): for y = ±m,
    dy/dx is taken for 1 where x is between -m and m, and 0 outside; dy/d(log m) is y."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
        magnitude = log_scale.exp()
        signs = torch.where(x >= -NOISE * magnitude, magnitude, -magnitude)
        ctx.save_for_backward(x.abs() <= magnitude, signs)
        return signs

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inside, signs = ctx.saved_tensors
        return grad * inside, (grad * signs).sum()


def learned_quantizers(module: nn.Module) -> list[nn.Parameter]:
    """Put learned quantizers in the place of the calibrated ones, in place; their parameters, one for each grid."""
    shared: dict[tuple[float, int], nn.Parameter] = {}
    simulated: list[nn.Parameter] = []
    for name, quantizer in list(module.named_modules()):
        if isinstance(quantizer, ActivationQuantizer):
            key = (quantizer.scale, quantizer.zero_point)
            parameter = shared.setdefault(key, nn.Parameter(torch.tensor(quantizer.scale).log()))
            module.set_submodule(name, LearnedQuantizer(quantizer, parameter))
        elif isinstance(quantizer, SimulatedQuantizer) and quantizer.bits != 16:
            learned = LearnedSimulated(quantizer)
            module.set_submodule(name, learned)
            simulated.append(learned.log_scale)
    return [*shared.values(), *simulated]
