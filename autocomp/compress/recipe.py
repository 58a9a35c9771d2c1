"""How a compressed network is trained on."""

from __future__ import annotations

from dataclasses import dataclass

from autocomp.errors import CompressionError


@dataclass(frozen=True)
class Recovery:
    """How a network is trained on.

    ``labels``: the weight of the labels beside the uncompressed network's outputs, where there are any; ``features``:
    that of the results of its residual additions, or of its layers where it has none (A. Romero et al., "FitNets",
    2015). ``gradual``: sparsity, but for n:m masks, grows over the first half (M. Zhu & S. Gupta, "To prune, or not to
    prune", 2017) by the magnitudes as they then are; else masks are those of the plan from the start. ``l1``: the weight of
    the sum of the layers' mean magnitudes until masks are final (S. Han et al., "Learning both weights and connections",
    2015): it goes with ``gradual``.
    ``rate``: a step in shares of a weight's root mean square; None for what suits the kind of network and the epochs.
    ``bfloat16``: products in 16 bits while it trains, in two thirds of the time where the CPU has instructions for them
    (AVX512-BF16, AMX) and in more where it has none; what is kept of the training is judged in 32 bits. ``layerwise``:
    steps that each layer is trained for by itself at first, see :meth:`autocomp.compress.student.Student.reconstruct`.
    """

    epochs: int
    seed: int = 0
    labels: float = 0.3
    features: float = 0.0
    gradual: bool = False
    l1: float = 0.0
    rate: float | None = None
    bfloat16: bool = False
    layerwise: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise CompressionError(f"recovery takes at least one epoch; got {self.epochs}")
        if not 0.0 <= self.labels <= 1.0:
            raise CompressionError(f"the weight of labels lies between 0 and 1; got {self.labels}")
        for name in ("features", "l1", "layerwise"):
            if getattr(self, name) < 0:
                raise CompressionError(f"{name} of a recovery is 0 (none) or more; got {getattr(self, name)}")
        if self.rate is not None and not self.rate > 0:
            raise CompressionError(f"the rate of a recovery is positive; got {self.rate}")
        if self.l1 and not self.gradual:
            raise CompressionError(f"l1 shrinks weights that are about to be cut; got {self.l1} without gradual")
