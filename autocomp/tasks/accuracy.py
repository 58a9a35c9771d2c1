"""Accuracy on labelled examples that lie in memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autocomp.errors import TaskError
from autocomp.task import Predict, Score, Split

EVALUATION_BATCH = 250


@dataclass(frozen=True, eq=False)
class Accuracy:
    """The share of examples whose largest logit is their label, in percent of the split.

    ``search`` and ``test`` are (inputs, labels) of shapes (n, …) and (n,).
    """

    search: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    def __call__(self, predict: Predict, split: Split, fraction: float = 1.0) -> Score:
        """Scores ``predict``: (batch, …) → (batch, classes) logits, in batches of 250 at most.

        ``fraction`` takes the first examples of the split: a smaller part lies within every larger one, and stands for
        the whole where the order is stratified (:func:`autocomp.tasks.examples.stratified_order`). The outcomes are 1
        where an example was right and 0 where not.

        Raises:
            TaskError: the split is unknown, or the fraction is outside (0, 1].
        """
        if split not in ("search", "test"):
            raise TaskError(f"a split must be search or test; got {split!r}")
        if not 0.0 < fraction <= 1.0:
            raise TaskError(f"a split's fraction must lie above 0 and at most at 1; got {fraction}")
        inputs, labels = self.search if split == "search" else self.test
        count = math.ceil(fraction * len(inputs))
        with torch.no_grad():
            guesses = [
                predict(inputs[start : min(start + EVALUATION_BATCH, count)]).argmax(dim=1).cpu()
                for start in range(0, count, EVALUATION_BATCH)
            ]
        outcomes = (torch.cat(guesses) == labels[:count]).numpy().astype(np.float64)
        return Score(value=100.0 * float(outcomes.mean()), outcomes=outcomes)
