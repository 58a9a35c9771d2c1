"""The embedded task: handwritten digits and a residual conv net, trained on first use and kept in the cache folder.

The images come with scikit-learn (1,797 of 8×8 pixels; E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten
Digits", UCI Machine Learning Repository, 1998), so nothing is downloaded. They are enlarged to 24×24 because a net on
8×8 images runs in a few microseconds, too short to time. The blocks are the basic ones of K. He et al., "Deep Residual
Learning for Image Recognition", 2015, with a 1×1 conv on the shortcut where the shape changes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import pickle
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocomp.errors import TaskError
from autocomp.places import cache_folder
from autocomp.task import Metric, Predict, Score, Split, Task

Progress = Callable[[str], None]
Part = Literal["train", "calibration", "search", "test"]

#: The images in each part; none is in two. Search and test want 500 or more, so that one image is 0.2 points.
PART_SIZES: Mapping[Part, int] = {"train": 657, "calibration": 120, "search": 510, "test": 510}

CLASSES = 10
EVALUATION_BATCH = 250
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


@dataclass(frozen=True)
class Accuracy:
    """The share of images whose largest logit is their label, in percent of the split.

    ``search`` and ``test`` are (images, labels) of shapes (n, 1, side, side) and (n,).
    """

    search: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    def __call__(self, predict: Predict, split: Split, fraction: float = 1.0) -> Score:
        """Scores ``predict``: (batch, 1, side, side) → (batch, 10) logits, in batches of 250 at most.

        ``fraction`` takes the first images of the split; their order is random and stratified, so a smaller part lies
        within every larger one. The outcomes are 1 where an image was right and 0 where not.

        Raises:
            TaskError: the split is unknown, or the fraction is outside (0, 1].
        """
        if split not in ("search", "test"):
            raise TaskError(f"a split must be search or test; got {split!r}")
        if not 0.0 < fraction <= 1.0:
            raise TaskError(f"a split's fraction must lie above 0 and at most at 1; got {fraction}")
        images, labels = self.search if split == "search" else self.test
        count = math.ceil(fraction * len(images))
        with torch.no_grad():
            guesses = [
                predict(images[start : min(start + EVALUATION_BATCH, count)]).argmax(dim=1).cpu()
                for start in range(0, count, EVALUATION_BATCH)
            ]
        outcomes = (torch.cat(guesses) == labels[:count]).numpy().astype(np.float64)
        return Score(value=100.0 * float(outcomes.mean()), outcomes=outcomes)


def part_indices(labels: npt.NDArray[np.int64], seed: int) -> dict[Part, npt.NDArray[np.int64]]:
    """Which examples each part holds: disjoint, stratified, in a fixed random order that is stratified as well.

    Every class is spread evenly over [0, 1) at random; sorted by that position, any stretch of the order holds the
    classes in their right proportions, so the parts can simply be cut one after another.
    """
    rng = np.random.default_rng(seed)
    position = np.empty(len(labels))
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        position[members] = (np.arange(len(members)) + rng.random(len(members))) / len(members)
    order = np.argsort(position, kind="stable")
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
    net = _trained_net(recipe, parts["train"], cache_dir or cache_folder(), progress or _silent)
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


def _trained_net(recipe: Recipe, train: tuple[Tensor, Tensor], folder: Path, tell: Progress) -> DigitsNet:
    """The recipe's net in evaluation mode, from ``folder`` or else trained and put there."""
    net = _fresh_net(recipe).eval()
    path = folder / f"digits-{_recipe_hash(recipe, net)}.pt"
    if path.exists():
        if _restore(net, path):
            return net
        tell(f"digits: the cached net {path} is damaged; training it again")
    with _writable(folder):  # asked before the training, which would be lost
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    tell(f"digits: training the net once, some ten seconds on two free cores; kept in {folder}")
    trained = _train(recipe, train, tell)
    with _writable(folder):
        _save(trained, path)
    # Read back, so that the first run uses exactly what every later one will.
    if not _restore(net, path):
        raise TaskError(f"the cache folder must keep what is written; {path} came back damaged; try AUTOCOMP_CACHE")
    return net


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise TaskError(
            f"the cache folder must be writable; {folder} is not ({reason}); name another in AUTOCOMP_CACHE"
        ) from error


def _fresh_net(recipe: Recipe) -> DigitsNet:
    """The untrained net, its weights drawn from the recipe's seed and not from the caller's random state."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)
        return DigitsNet(recipe)


def _recipe_hash(recipe: Recipe, net: DigitsNet) -> str:
    version = ".".join(torch.__version__.split(".")[:2])
    facts = json.dumps([asdict(recipe), dict(PART_SIZES), repr(net), version], sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()[:12]


def _train(recipe: Recipe, train: tuple[Tensor, Tensor], tell: Progress) -> DigitsNet:
    """SGD with one cycle of the learning rate (L. Smith, "Super-Convergence", 2017) on randomly shifted images."""
    images, labels = train
    generator = torch.Generator().manual_seed(recipe.seed)
    # Channels last halves the time of a step on the CPU.
    net = _fresh_net(recipe).train()
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = len(images) // recipe.batch
    optimizer = torch.optim.SGD(
        net.parameters(),
        lr=recipe.peak_learning_rate,
        momentum=recipe.momentum,
        nesterov=True,
        weight_decay=recipe.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.peak_learning_rate, total_steps=recipe.epochs * steps, pct_start=0.25
    )
    with torch.enable_grad():
        for epoch in range(1, recipe.epochs + 1):
            total = 0.0
            order = torch.randperm(len(images), generator=generator)
            for chosen in torch.split(order[: steps * recipe.batch], recipe.batch):
                batch = _shifted(images[chosen], recipe.shift_px, generator)
                if epoch <= recipe.half_size_epochs:
                    batch = F.avg_pool2d(batch, 2)
                loss = F.cross_entropy(net(batch.contiguous(memory_format=torch.channels_last)), labels[chosen])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                total += loss.item()
            tell(f"digits: epoch {epoch} of {recipe.epochs}, loss {total / steps:.3f}")
    return net


def _shifted(images: Tensor, shift_px: float, generator: torch.Generator) -> Tensor:
    """Each of (n, 1, side, side) images moved by its own random distance, at most ``shift_px`` each way."""
    theta = torch.eye(2, 3).repeat(len(images), 1, 1)
    # affine_grid measures in half sides
    theta[:, :, 2] = (2 * torch.rand(len(images), 2, generator=generator) - 1) * shift_px * 2 / images.shape[-1]
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def _digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and values: torch does not check the sums in its own files."""
    digest = hashlib.sha256()
    for name, tensor in weights.items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _save(net: DigitsNet, path: Path) -> None:
    """Writes beside ``path`` and renames, so that a killed run leaves no half a file under the real name."""
    weights = {name: tensor.detach().contiguous() for name, tensor in net.state_dict().items()}
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.stem, suffix=".tmp", delete=False) as file:
        try:
            torch.save({"weights": weights, "sha256": _digest(weights)}, file)
            file.close()
            os.replace(file.name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(file.name)
            raise


def _restore(net: DigitsNet, path: Path) -> bool:
    """Loads ``path`` into ``net``; False where the file is not what :func:`_save` wrote."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a damaged file is told of once, by the caller
            kept = torch.load(path, weights_only=True)
        if _digest(kept["weights"]) != kept["sha256"]:
            return False
        net.load_state_dict(kept["weights"])
    except _UNREADABLE:
        return False
    return True
