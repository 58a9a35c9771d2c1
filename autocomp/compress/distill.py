"""How far a compressed network's outputs are from those of the uncompressed one."""

from __future__ import annotations

import torch
from torch.nn import functional

from autocomp.compress.agreement import flat_output, output_tensors

#: Softening of the logits that are distilled (G. Hinton et al., "Distilling the knowledge in a neural network", 2015).
TEMPERATURE = 4.0


def distillation(output: object, wanted: object, target: torch.Tensor | None, labels: float) -> torch.Tensor:
    """How far outputs are from the uncompressed network's and, where targets are classes, from these.

    Args:
        output: of the compressed network, nested as the model nests it.
        wanted: of the uncompressed one.
        target: (examples,) classes; others are not looked at.
        labels: their weight beside the outputs'.
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
    if not classes or target is None:
        flat, reference = flat_output(output), flat_output(wanted)
        return functional.mse_loss(flat, reference) / reference.square().mean().clamp_min(1e-12)
    soft = functional.kl_div(
        functional.log_softmax(given[0] / TEMPERATURE, dim=1),
        functional.log_softmax(expected[0] / TEMPERATURE, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return (1 - labels) * TEMPERATURE**2 * soft + labels * functional.cross_entropy(given[0], target)
