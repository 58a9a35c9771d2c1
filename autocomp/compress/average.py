"""The average of parameters over the last steps of a training."""

from __future__ import annotations

from collections.abc import Sequence

import torch

#: Steps that an average goes back, more or less.
STEPS = 500


class Average:
    """An exponential moving average (B. Polyak & A. Juditsky, "Acceleration of stochastic approximation by averaging", 1992;
    P. Izmailov et al., "Averaging weights leads to wider optima", 2018): weights that are rounded jump to and fro between
    two levels while they are trained, and their average does not. It goes back over half of the steps so far, and over
    :data:`STEPS` at most.
    """

    def __init__(self, device: torch.device) -> None:
        self.values: list[torch.Tensor] = []
        self.steps = 0
        self._share = torch.ones((), device=device)

    def begin_step(self, tensors: Sequence[torch.Tensor]) -> None:
        """Say how much the next step counts, which the step itself reads off a tensor: it may be recorded and replayed."""
        if not self.values:
            self.values = [tensor.detach().clone() for tensor in tensors]
        self.steps += 1
        self._share.fill_(max(2 / (self.steps + 1), 1 / STEPS))

    def add(self, tensors: Sequence[torch.Tensor]) -> None:
        """Count them, as they are after a step."""
        with torch.no_grad():
            difference = torch._foreach_sub([tensor.detach() for tensor in tensors], self.values)
            torch._foreach_mul_(difference, self._share)
            torch._foreach_add_(self.values, difference)
