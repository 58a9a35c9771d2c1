"""Evaluations that begin on a small part of the search split and go on only while the plan may still join the front.

Successive halving for several objectives, asynchronously (Schmucker et al., "Multi-objective asynchronous successive halving",
2021), with intervals in the place of ranks: a plan is stopped when even the favourable end of the paired interval of its
drop, on the examples looked at, is dominated by a finished trial, or breaks the limit of the drop. Latency and size are
predicted, and so known from the start.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from autocomp.search.drop import CONFIDENCE_Z, drop_interval
from autocomp.task import Predict, Score, Task
from autocomp.tasks.inputs import digest
from autocomp.trial import Cost, Rung

#: The parts of the split that are looked at before all of it, and how many examples these must have to say anything.
PARTS, FEWEST = (1 / 9, 1 / 3), 200


@dataclass(frozen=True)
class Hurdle:
    """What finished trials have reached: (drop, latency in ms, bytes) of each on the front; and the largest drop allowed."""

    front: tuple[tuple[float, float, float], ...] = ()
    max_drop: float | None = None

    def cleared(self, drop: float, cost: Cost) -> bool:
        """Whether a plan of this drop would join the front."""
        if self.max_drop is not None and drop > self.max_drop:
            return False
        return not any(
            other <= drop and latency_ms <= cost.latency_ms and size_bytes <= cost.size_bytes
            for other, latency_ms, size_bytes in self.front
        )


@dataclass(frozen=True)
class Climb:
    """How far an evaluation came: the metric of every part looked at; where all were, the ``score`` of the whole split, and
    where not, the drop on the last part and its standard error."""

    rungs: tuple[Rung, ...]
    score: Score | None
    drop: float = 0.0
    drop_std: float = 0.0


def parts_of(task: Task, whole: Score) -> tuple[tuple[float, Score], ...]:
    """The shares of the search split that evaluations begin with, each with the untouched model's score there; none where the
    task takes no parts, tells no outcomes, or has too few examples.

    Args:
        whole: the untouched model's score on the whole split.
    """
    if whole.outcomes is None or not task.takes_parts:
        return ()
    found = []
    predict = Remembering(copy.deepcopy(task.model).eval())  # as it is scored whole; it may be in training mode
    for share in PARTS:
        if share * len(whole.outcomes) < FEWEST:
            continue
        with torch.no_grad():
            score = task.evaluate(predict, "search", share)
        if score.outcomes is not None and len(score.outcomes) < len(whole.outcomes):
            found.append((share, score))
    return tuple(found)


def climb(
    task: Task, predict: Predict, cost: Cost, parts: Sequence[tuple[float, Score]], hurdle: Hurdle | None
) -> Climb:
    """Score a model on ever more of the search split, as long as it clears the hurdle.

    Args:
        parts: as :func:`parts_of` gives them.
        hurdle: None to look at the whole split at once.
    """
    remembering = Remembering(predict)
    rungs: list[Rung] = []
    for share, untouched in parts if hurdle is not None else ():
        score = task.evaluate(remembering, "search", share)
        rungs.append(Rung(share, score.value))
        drop, low, _ = drop_interval(task.metric, untouched, score)
        if hurdle is not None and not hurdle.cleared(low, cost):
            return Climb(tuple(rungs), None, drop, (drop - low) / CONFIDENCE_Z)
    remembering.last_look = True
    score = task.evaluate(remembering if rungs else predict, "search")
    return Climb((*rungs, Rung(1.0, score.value)) if rungs else (), score)


@dataclass
class Remembering:
    """Predicts no batch twice: parts of a split lie within one another.

    ``last_look``: nothing is asked for again, and so nothing more is kept: all outputs of a whole split may be gigabytes.
    """

    predict: Predict
    known: dict[bytes, object] = field(default_factory=dict)
    last_look: bool = False

    def __call__(self, *inputs: torch.Tensor) -> object:
        key = digest(inputs)
        if self.last_look:
            return self.known.pop(key) if key in self.known else self.predict(*inputs)
        if key not in self.known:
            self.known[key] = self.predict(*inputs)
        return copy.deepcopy(self.known[key])  # an evaluation may write into what it is given
