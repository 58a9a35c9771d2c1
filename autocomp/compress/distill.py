"""How far a compressed network's outputs are from those of the uncompressed one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from autocomp.compress.agreement import flat_output, output_tensors
from autocomp.errors import CompressionError

if TYPE_CHECKING:
    from autocomp.task import Loss

#: Softening of the logits that are distilled (G. Hinton et al., "Distilling the knowledge in a neural network", 2015).
TEMPERATURE = 4.0


def distillation(
    output: object, wanted: object, target: torch.Tensor | None, labels: float, loss: Loss | None = None
) -> torch.Tensor:
    """How far outputs are from the uncompressed network's and, where targets are classes or the task has a loss for them,
    from these.

    Args:
        output: of the compressed network, nested as the model nests it.
        wanted: of the uncompressed one.
        target: as the task's loss takes it; without one (examples,) classes, and others are not looked at.
        labels: their weight beside the outputs'.
        loss: the task's own.

    Raises:
        CompressionError: the task's loss gives no scalar.
    """
    given, expected = ([one.float() for one in output_tensors(outputs)] for outputs in (output, wanted))
    classes = (
        target is not None
        and target.dtype == torch.int64
        and target.dim() == 1
        and len(given) == 1
        and given[0].dim() == 2
        and given[0].shape[1] > 1
    )
    if classes:
        soft = TEMPERATURE**2 * functional.kl_div(
            functional.log_softmax(given[0] / TEMPERATURE, dim=1),
            functional.log_softmax(expected[0] / TEMPERATURE, dim=1),
            reduction="batchmean",
            log_target=True,
        )
    else:
        flat, reference = flat_output(output), flat_output(wanted)
        soft = functional.mse_loss(flat, reference) / reference.square().mean().clamp_min(1e-12)
    if target is None or (loss is None and not classes):
        return soft
    hard = functional.cross_entropy(given[0], target) if loss is None else loss(output, target)
    if not isinstance(hard, torch.Tensor) or hard.numel() != 1:
        raise CompressionError(f"a task's loss must be a scalar tensor; got {getattr(hard, 'shape', type(hard))}")
    return (1 - labels) * soft + labels * hard.reshape(())
