"""Nets that are trained once and kept in the cache folder, found again by the hash of how they were made."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import pickle
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler

from autocomp.errors import TaskError
from autocomp.run import write_whole

Progress = Callable[[str], None]

#: After so many seconds in which nothing was told, the batch is.
SILENCE_S = 20.0

#: What torch raises on a file that is cut short, overwritten or not its own.
_UNREADABLE = (
    RuntimeError,
    pickle.UnpicklingError,
    EOFError,
    OSError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
)


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
        _save({"weights": weights}, path)
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


def tensors_hash(tensors: Mapping[Any, Any]) -> str:
    """SHA-256 over names, shapes and values of the tensors, also of those in mappings within; the rest is left out."""
    digest = hashlib.sha256()
    for name, tensor in _tensors(tensors):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _tensors(state: Mapping[Any, Any]) -> Iterator[tuple[Any, Tensor]]:
    for name, value in state.items():
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, Mapping):
            yield from _tensors(value)


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
        if (state := _load(checkpoint)) is None:
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
                _save(state, checkpoint)
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


def _save(state: dict[str, Any], path: Path) -> None:
    """With the tensors goes their digest: torch does not check the sums in its own files."""
    saved = io.BytesIO()
    torch.save(state | {"sha256": tensors_hash(state)}, saved)
    write_whole(path, saved.getvalue())


def _load(path: Path) -> dict[str, Any] | None:
    """What :func:`_save` wrote; None where the file is something else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a damaged file is told of once, by the caller
            state: dict[str, Any] = torch.load(path, weights_only=True)
        return state if tensors_hash(state) == state["sha256"] else None
    except _UNREADABLE:
        return None


def _restore(net: nn.Module, path: Path) -> bool:
    state = _load(path)
    if state is None:
        return False
    try:
        net.load_state_dict(state["weights"])
    except _UNREADABLE:
        return False
    return True
