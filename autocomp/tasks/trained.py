"""Nets that are trained once and kept in the cache folder, found again by the hash of how they were made."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler

from autocomp.errors import TaskError
from autocomp.saved import UNREADABLE, load, save

Progress = Callable[[str], None]

#: After so many seconds in which nothing was told, the batch is.
SILENCE_S = 20.0


@dataclass(frozen=True)
class Training:
    """How a net is made, one epoch at a time, so that an interrupted training can go on.

    ``fresh`` gives the net to start from; it may draw from torch's global generator, which is seeded for it and put back.
    ``batches`` gives an epoch's (inputs, labels), already augmented; epochs count from 1, and every random choice is drawn
    from the generator that it is given."""

    fresh: Callable[[], nn.Module]
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    schedule: Callable[[torch.optim.Optimizer], LRScheduler]
    batches: Callable[[int, torch.Generator], Iterator[tuple[Tensor, Tensor]]]
    steps: int
    epochs: int
    seed: int
    duration: str


def trained_net(name: str, training: Training, facts: tuple[object, ...], folder: Path, tell: Progress) -> nn.Module:
    """The net in evaluation mode, from ``folder`` or else trained and put there.

    The file is ``<name>-<hash>.pt``; the hash is that of ``facts``. While training, the state after each epoch lies
    beside it, and a training that was interrupted goes on from there to the very weights of an undisturbed one (on the
    same machine, with as many threads). The global random state is left alone.

    Args:
        name: the task's; it begins the file's name and every line that is told.
        training: how it is made.
        facts: everything that the result depends on, as JSON knows it: recipe, structure, data.
        folder: the cache folder; it is made where it is missing.
        tell: is told what takes the time, line by line.

    Raises:
        TaskError: the folder cannot be written, which is asked before the training, or does not keep what is written.
    """
    net = _fresh(training).eval()
    path = folder / f"{name}-{facts_hash(facts)}.pt"
    if path.exists():
        if _restore(net, path):
            return net
        tell(f"{name}: the cached net {path} is damaged; training it again")
    with _writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    tell(f"{name}: training the net once, {training.duration}; kept in {folder}")
    checkpoint = path.with_suffix(".unfinished")
    weights = _train(name, training, checkpoint, tell)
    with _writable(folder):
        save({"weights": weights}, path)
        checkpoint.unlink(missing_ok=True)
    # Read back, so that the first run uses exactly what every later one will.
    if not _restore(net, path):
        raise TaskError(f"the cache folder must keep what is written; {path} came back damaged; try AUTOCOMP_CACHE")
    return net


def structure(make: Callable[[], nn.Module]) -> str:
    """The layers of the net that ``make`` gives, as a fact; no weights are drawn."""
    with torch.device("meta"):
        return repr(make())


def facts_hash(facts: tuple[object, ...]) -> str:
    """Twelve hexadecimal digits over the facts' JSON."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise TaskError(
            f"the cache folder must be writable; {folder} is not ({reason}); name another in AUTOCOMP_CACHE"
        ) from error


def _fresh(training: Training) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(training.seed)
        return training.fresh()


def _train(name: str, training: Training, checkpoint: Path, tell: Progress) -> dict[str, Tensor]:
    """The weights after the last epoch, by cross entropy."""
    layout = _layout()
    net = _fresh(training).train()
    net.to(memory_format=layout)  # type: ignore[call-overload]
    optimizer = training.optimizer(net)
    schedule = training.schedule(optimizer)
    generator = torch.Generator().manual_seed(training.seed)
    done = 0
    if checkpoint.exists():
        if (state := load(checkpoint)) is None:
            tell(f"{name}: the unfinished training {checkpoint} is damaged; starting anew")
        else:
            net.load_state_dict(state["weights"])
            optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
            generator.set_state(state["generator"])
            done = state["epoch"]
            tell(f"{name}: going on after epoch {done} of {training.epochs}")
    for epoch in range(done + 1, training.epochs + 1):
        where = f"{name}: epoch {epoch} of {training.epochs}"
        told, losses = time.monotonic(), []
        for inputs, labels in training.batches(epoch, generator):
            losses.append(_step(net, optimizer, inputs.contiguous(memory_format=layout), labels))
            schedule.step()
            if time.monotonic() - told > SILENCE_S:
                tell(f"{where}, batch {len(losses)} of {training.steps}")
                told = time.monotonic()
        if epoch < training.epochs:
            state = {
                "weights": _weights(net),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "generator": generator.get_state(),
                "epoch": epoch,
            }
            with _writable(checkpoint.parent):
                save(state, checkpoint)
        tell(f"{where}, loss {sum(losses) / len(losses):.3f}")
    return _weights(net)


def _layout() -> torch.memory_format:
    # Channels last halves the time of a step with AVX-512. Without it nothing is won, and the gradient of a 1×1 conv of
    # fewer than 8 channels writes past its end (oneDNN 3.12, jit_1x1:avx2).
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return torch.channels_last if wide else torch.contiguous_format


def _step(net: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, labels: Tensor) -> float:
    """One step of the optimizer; the loss before it."""
    with torch.enable_grad():
        loss = F.cross_entropy(net(inputs), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return loss.item()


def _weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in net.state_dict().items()}


def _restore(net: nn.Module, path: Path) -> bool:
    state = load(path)
    if state is None:
        return False
    try:
        net.load_state_dict(state["weights"])
    except UNREADABLE:
        return False
    return True
