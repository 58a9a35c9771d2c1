"""Labelled images as the built-in tasks need them: parts, normalised batches, and a training on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocomp.task import Metric, Task
from autocomp.tasks.accuracy import Accuracy
from autocomp.tasks.examples import stratified_order
from autocomp.tasks.trained import Training

SEARCH_EXAMPLES = 5_000
CALIBRATION_EXAMPLES = 512
CALIBRATION_BATCH = 64


@dataclass(frozen=True)
class Norm:
    """Mean and standard deviation per channel, of pixel values in 0 to 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: Tensor) -> Tensor:
        """(n, channels, h, w) uint8 → the same shape, float32."""
        mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (self.mean, self.std))
        return (pixels.float() / 255 - mean) / std


@dataclass(frozen=True)
class Recipe:
    """SGD with one cycle of the learning rate (L. Smith, "Super-Convergence", 2017) on shifted, maybe mirrored images.

    ``warm_up`` is the share of the steps in which the learning rate rises to its peak; ``shift_px`` is how far a
    training image is moved, at most, each way.
    """

    epochs: int
    batch: int
    peak_learning_rate: float
    weight_decay: float
    shift_px: int
    mirror: bool
    warm_up: float = 0.2
    momentum: float = 0.9
    seed: int = 0

    def facts(self) -> dict[str, object]:
        """As JSON knows it."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Labelled:
    """``pixels`` (n, channels, h, w) uint8, ``labels`` (n,) int64, and how the pixels become a net's inputs."""

    pixels: Tensor
    labels: Tensor
    norm: Norm

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: slice | Tensor) -> Labelled:
        return Labelled(self.pixels[index], self.labels[index], self.norm)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Normalised inputs (n, channels, h, w) float32, and labels."""
        return self.norm(self.pixels), self.labels


@dataclass(frozen=True, eq=False)
class Batches(Sequence[tuple[Tensor, ...]]):
    """(inputs, labels) batches of at most ``size``, normalised when they are asked for: in bytes they take a quarter.

    Images are moved by at most ``shift_px`` each way and, where asked, mirrored: anew at every access, by torch's own
    generator.
    """

    images: Labelled
    size: int
    shift_px: int = 0
    mirror: bool = False

    def __len__(self) -> int:
        return -(-len(self.images) // self.size)

    @overload
    def __getitem__(self, index: int) -> tuple[Tensor, ...]: ...
    @overload
    def __getitem__(self, index: slice) -> Batches: ...
    def __getitem__(self, index: int | slice) -> tuple[Tensor, ...] | Batches:
        if isinstance(index, slice):
            first, last, step = index.indices(len(self))
            if step != 1:
                raise ValueError(f"a slice of batches takes one after the other; got every {step}")
            return replace(self, images=self.images[first * self.size : last * self.size])
        start = range(len(self))[index] * self.size  # an index out of range is refused here
        inputs, labels = self.images[start : start + self.size].tensors()
        return augmented(inputs, self.shift_px, self.mirror), labels


@dataclass(frozen=True, eq=False)
class Parts:
    """``search`` was held out of a training set, ``train`` is all the rest, ``calibration`` some of ``train``."""

    train: Labelled
    search: Labelled
    calibration: Labelled


def mixed(images: Labelled, seed: int = 0) -> Labelled:
    """The same images in a seeded, stratified order, so that the first of them stand for all."""
    return images[torch.from_numpy(stratified_order(images.labels.numpy(), seed))]


def held_out(images: Labelled, search: int = SEARCH_EXAMPLES, seed: int = 0) -> Parts:
    """Cuts a training set in a seeded, stratified order; at most half of it goes to ``search``."""
    ordered = mixed(images, seed)
    search = min(search, len(images) // 2)
    train = ordered[search:]
    return Parts(train=train, search=ordered[:search], calibration=train[:CALIBRATION_EXAMPLES])


def image_task(name: str, net: nn.Module, parts: Parts, test: Labelled, recipe: Recipe, metric: str) -> Task:
    """A trained net and its images as a task, scored in percent; ``test`` in a stratified order of its own."""
    calibration, _ = parts.calibration.tensors()
    return Task(
        name=name,
        model=net,
        example_inputs=(calibration[:1].clone(),),
        calibration=[(inputs,) for inputs in torch.split(calibration, CALIBRATION_BATCH)],
        train=Batches(parts.train, recipe.batch, recipe.shift_px, recipe.mirror),
        evaluate=Accuracy(search=parts.search.tensors(), test=mixed(test).tensors()),
        metric=Metric(metric, "maximize", "%"),
    )


def training(recipe: Recipe, images: Labelled, fresh: Callable[[], nn.Module], duration: str) -> Training:
    """The recipe on ``images``, from the net that ``fresh`` gives; the rest of an epoch that fills no batch is left out."""
    steps = max(1, len(images) // recipe.batch)

    def optimizer(net: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            net.parameters(),
            lr=recipe.peak_learning_rate,
            momentum=recipe.momentum,
            nesterov=True,
            weight_decay=recipe.weight_decay,
        )

    def schedule(of: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.OneCycleLR(
            of,
            recipe.peak_learning_rate,
            total_steps=recipe.epochs * steps,
            pct_start=recipe.warm_up,
            cycle_momentum=False,
        )

    def batches(_: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(images), generator=generator)
        for chosen in torch.split(order[: steps * recipe.batch], recipe.batch):
            inputs, labels = images[chosen].tensors()
            yield augmented(inputs, recipe.shift_px, recipe.mirror, generator), labels

    return Training(fresh, optimizer, schedule, batches, steps, recipe.epochs, recipe.seed, duration)


def augmented(inputs: Tensor, shift_px: int, mirror: bool, generator: torch.Generator | None = None) -> Tensor:
    """Each of (n, channels, h, w) inputs moved by its own random distance, zeros coming in, and half of them mirrored.
    ``generator``: default: torch's own."""
    count, _, height, width = inputs.shape
    top, left = torch.randint(2 * shift_px + 1, (2, count, 1), generator=generator)
    rows = top + torch.arange(height)
    columns = left + torch.arange(width)
    if mirror:
        turned = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(turned, columns.flip(1), columns)
    padded = F.pad(inputs, (shift_px,) * 4).permute(0, 2, 3, 1)
    each = torch.arange(count).reshape(-1, 1, 1)
    return padded[each, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)
