"""The embedded task: handwritten digits and a residual conv net, trained on first use and kept in the cache folder.

The images come with scikit-learn (1,797 of 8×8 pixels; E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten
Digits", UCI Machine Learning Repository, 1998), so nothing is downloaded. They are enlarged to 24×24 because a net on
8×8 images runs in a few microseconds, too short to time. The blocks are the basic ones of K. He et al., "Deep Residual
Learning for Image Recognition", 2015, with a 1×1 conv on the shortcut where the shape changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocomp.places import cache_folder
from autocomp.task import Metric, Task
from autocomp.tasks.accuracy import Accuracy
from autocomp.tasks.examples import stratified_order
from autocomp.tasks.trained import Training, structure, trained_net

Progress = Callable[[str], None]
Part = Literal["train", "calibration", "search", "test"]

#: The images in each part; none is in two. Search and test want 500 or more, so that one image is 0.2 points.
PART_SIZES: Mapping[Part, int] = {"train": 657, "calibration": 120, "search": 510, "test": 510}

CLASSES = 10
CALIBRATION_BATCH = 60


@dataclass(frozen=True)
class Recipe:
    """What the net is and how it is trained; a cached net is found by the hash of this.

    ``weight_decay`` is strong on purpose: it costs no accuracy here and leaves channels so uneven that pruning has
    something to find. ``shift_px`` is how far a training image is moved, at most, each way. The first
    ``half_size_epochs`` see the images at half their size, which makes them four times quicker.
    """

    widths: tuple[int, ...] = (32, 64, 128)
    blocks_per_stage: int = 2
    side_px: int = 24
    epochs: int = 16
    half_size_epochs: int = 10
    batch: int = 32
    peak_learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 3e-2
    shift_px: float = 2.0
    seed: int = 0


RECIPE = Recipe()


class Block(nn.Module):
    """A basic residual block: (batch, inputs, h, w) → (batch, outputs, h/stride, w/stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, images: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(images)))))
        out: Tensor = self.relu2(inner + self.shortcut(images))
        return out


class DigitsNet(nn.Module):
    """Stem, stages of residual blocks (the first of each later stage halves the image), mean over pixels, linear head.

    (batch, 1, side, side) grey values in 0..1 → (batch, 10) logits.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width = recipe.widths[0]
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        stages = []
        for stage, outputs in enumerate(recipe.widths):
            blocks = []
            for block in range(recipe.blocks_per_stage):
                blocks.append(Block(width, outputs, stride=2 if stage > 0 and block == 0 else 1))
                width = outputs
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.pool(self.stages(self.stem(images))).flatten(1))
        return logits


def part_indices(labels: npt.NDArray[np.int64], seed: int) -> dict[Part, npt.NDArray[np.int64]]:
    """Which examples each part holds: disjoint, stratified, in a fixed random order that is stratified as well."""
    order = stratified_order(labels, seed)
    ends = np.cumsum(list(PART_SIZES.values()))
    return dict(zip(PART_SIZES, np.split(order, ends), strict=False))


def load_parts(recipe: Recipe = RECIPE) -> dict[Part, tuple[Tensor, Tensor]]:
    """Images (n, 1, side, side), float32 in 0..1, and labels (n,), int64, of each part."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    small = torch.from_numpy(bunch.images / 16.0).float().unsqueeze(1)
    images = F.interpolate(small, size=(recipe.side_px, recipe.side_px), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(bunch.target).long()
    parts = {}
    for part, indices in part_indices(bunch.target, recipe.seed).items():
        index = torch.from_numpy(indices)
        parts[part] = (images[index], labels[index])
    return parts


def digits(cache_dir: Path | None = None, progress: Progress | None = None, recipe: Recipe = RECIPE) -> Task:
    """The embedded task: accuracy in percent on 10 digits; inputs (batch, 1, 24, 24), float32 in 0..1.

    The first call trains the net (some ten seconds on two free cores) and keeps it; later calls load it. The global
    random state is left alone.

    Args:
        cache_dir: where the trained net is kept. Default: the folder in the environment variable AUTOCOMP_CACHE, else
            the user's cache folder.
        progress: is told, line by line, what takes the time.
        recipe: another net or another training, each kept under its own name.

    Raises:
        TaskError: the cache folder cannot be written.
    """
    parts = load_parts(recipe)
    folder, tell = cache_dir or cache_folder(), progress or _silent
    net = trained_net("digits", _training(recipe, parts["train"]), _facts(recipe), folder, tell)
    unlabelled = parts["calibration"][0]
    return Task(
        name="digits",
        model=net,
        example_inputs=(unlabelled[:1].clone(),),
        calibration=[(images,) for images in torch.split(unlabelled, CALIBRATION_BATCH)],
        train=list(zip(*(torch.split(tensor, recipe.batch) for tensor in parts["train"]), strict=True)),
        evaluate=Accuracy(search=parts["search"], test=parts["test"]),
        metric=Metric("accuracy", "maximize", "%"),
    )


def _silent(_: str) -> None:
    """Progress that nobody follows."""


def _training(recipe: Recipe, train: tuple[Tensor, Tensor]) -> Training:
    """SGD with one cycle of the learning rate (L. Smith, "Super-Convergence", 2017) on randomly shifted images."""
    images, labels = train
    steps = len(images) // recipe.batch

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
            of, recipe.peak_learning_rate, total_steps=recipe.epochs * steps, pct_start=0.25
        )

    def batches(epoch: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(images), generator=generator)
        for chosen in torch.split(order[: steps * recipe.batch], recipe.batch):
            batch = _shifted(images[chosen], recipe.shift_px, generator)
            yield F.avg_pool2d(batch, 2) if epoch <= recipe.half_size_epochs else batch, labels[chosen]

    duration = "some ten seconds on two free cores"
    return Training(
        partial(DigitsNet, recipe), optimizer, schedule, batches, steps, recipe.epochs, recipe.seed, duration
    )


def _facts(recipe: Recipe) -> tuple[object, ...]:
    version = ".".join(torch.__version__.split(".")[:2])
    return asdict(recipe), dict(PART_SIZES), structure(partial(DigitsNet, recipe)), version


def _shifted(images: Tensor, shift_px: float, generator: torch.Generator) -> Tensor:
    """Each of (n, 1, side, side) images moved by its own random distance, at most ``shift_px`` each way."""
    theta = torch.eye(2, 3).repeat(len(images), 1, 1)
    # affine_grid measures in half sides
    theta[:, :, 2] = (2 * torch.rand(len(images), 2, generator=generator) - 1) * shift_px * 2 / images.shape[-1]
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
