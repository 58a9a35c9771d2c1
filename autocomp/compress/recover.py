"""Recovery: a compressed network trained on, with its masks held and its rounding in the loop, to do as the uncompressed
one does."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from autocomp.compress.apply import Compressed
from autocomp.compress.captured import Batch
from autocomp.compress.rebuild import Prepared
from autocomp.compress.recipe import Recovery
from autocomp.compress.recovered import Recovered, weights_of, with_weights
from autocomp.compress.solve import Solver
from autocomp.compress.student import Student
from autocomp.compress.unfinished import Unfinished, keep, kept
from autocomp.errors import CompressionError

if TYPE_CHECKING:
    from autocomp.task import Loss

#: Is told (steps done, of so many, what the loss on the data kept apart last was; infinite before the first epoch's end).
Progress = Callable[[int, int, float], None]

CPU = torch.device("cpu")
#: The share of the data that is kept apart to stop by.
KEPT_APART = 0.1
#: Epochs without a better loss on it after which training ends: the larger of so many, and this share of all, since much
#: of what is gained is gained when the rate comes down at last.
PATIENCE, PATIENT_SHARE = 10, 0.5
#: Steps between two changes of what is cut, and two looks at the loss: to sort all weights takes longer than a step of a
#: small network, and so does waiting for a GPU.
STEPS_TO_LOOK = 16


def recover(
    prepared: Prepared,
    compressed: Compressed,
    batches: Sequence[Batch],
    recovery: Recovery,
    solver: Solver,
    labelled: bool = True,
    progress: Progress | None = None,
    device: torch.device = CPU,
    loss: Loss | None = None,
    unfinished: Path | None = None,
) -> Recovered:
    """Train a compressed network on; the best state by the data kept apart is what is returned, be it the network given.

    The loss is distillation from the uncompressed network: of softened logits beside the labels where the targets are
    classes, else of all outputs, beside the task's own loss where it has one.

    Args:
        prepared: the uncompressed network; left as it is.
        compressed: of it; left as it is.
        batches: (inputs…, target), or inputs alone where not ``labelled``; each is asked for anew in every epoch.
        solver: that made ``compressed``.
        progress: called after every step.
        loss: the task's own. Examples of a batch may belong together in it.
        device: where it is trained. On a GPU the same seed gives nearly the same: sums are in no fixed order there.
        unfinished: a file of this very training, which holds it after each of its epochs and is gone on from where it is
            there; the caller removes it. On a CPU an interrupted training so comes to what an undisturbed one does, with
            batches whose chance is torch's own generator.

    Raises:
        CompressionError: there is no data, or the loss is no number.
    """
    if not batches:
        raise CompressionError("recovery must have data to train on; the task has none; give it train batches")
    torch.manual_seed(recovery.seed)
    student = Student(prepared, compressed, solver, batches[0], recovery, labelled, device, loss)
    chance = random.Random(recovery.seed)
    order = list(range(len(batches)))
    chance.shuffle(order)
    apart = max(1, round(KEPT_APART * len(order))) if len(order) > 1 else 0
    # Of a single batch some examples are kept apart; of a single example, and of examples that belong together, none can be.
    skipped = 0 if apart or loss is not None else round(max(1.0, KEPT_APART * len(batches[0][0]))) % len(batches[0][0])
    kept_apart = [_rows(batches[place], slice(skipped or None)) for place in order[:apart] or order]
    trained_on = order[apart:] or order
    steps = recovery.epochs * len(trained_on)
    looks = max(1, min(STEPS_TO_LOOK, steps // 8))
    alone = student.layerwise_steps
    waited, step, shown = 0, 0, 0

    def told(held: float = math.inf) -> None:
        nonlocal shown
        shown += 1
        if progress is not None:
            progress(shown, alone + steps, held)

    def asked() -> Iterator[Batch]:
        """The batches of an epoch."""
        chance.shuffle(trained_on)
        yield from (_rows(batches[place], slice(skipped, None)) for place in trained_on)

    before = None if unfinished is None else kept(unfinished)
    if alone and before is None:
        student.reconstruct(itertools.chain.from_iterable(asked() for _ in itertools.count()), told)
    best = student.state()
    given_loss = student.loss_of(compressed.model, kept_apart)
    if not math.isfinite(given_loss):
        raise CompressionError(f"the loss of recovery must be a number; it is {given_loss} before any training")
    best_loss = held = student.held_loss(kept_apart) if student.final else math.inf
    if before is not None:
        student.resume(before.learned)
        best, best_loss, held, waited = before.best, before.best_loss, before.held, before.waited
        step, shown, trained_on = before.step, before.told, before.order
        chance.setstate(before.chance)
        torch.set_rng_state(before.torch_state)
    patience = max(PATIENCE, PATIENT_SHARE * recovery.epochs)
    while step < steps and waited < patience:
        for batch in asked():
            if step % looks == 0:
                student.set_progress(step / steps)
            student.set_rate(0.5 * (1 + math.cos(math.pi * step / steps)))
            now = student.step(batch)
            if step % looks == 0 and not math.isfinite(float(now)):
                raise CompressionError(f"the loss of recovery must be a number; got {float(now)}; lower its rate")
            step += 1
            told(held)
        held, state = student.better_state(kept_apart)
        if student.final:
            waited += 1
            if held < best_loss:
                best_loss, best, waited = held, state, 0
        if unfinished is not None:
            chances = chance.getstate(), torch.get_rng_state()
            keep(
                unfinished,
                Unfinished(student.learned(), best, best_loss, held, waited, step, shown, trained_on, *chances),
            )
    if student.final:
        student.load(best)
    else:
        student.set_progress(1.0)  # too few steps to get there
    weights = student.weights()
    trained = with_weights(compressed, weights)
    if not student.loss_of(trained.model, kept_apart) < given_loss:
        return Recovered(compressed, weights_of(compressed))
    return Recovered(trained, weights)


def _rows(batch: Batch, which: slice) -> Batch:
    return tuple(tensor[which] for tensor in batch)
