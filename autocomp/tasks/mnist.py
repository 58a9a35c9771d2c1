"""MNIST and the two LeNets of the pruning literature, trained once and kept in the cache folder.

MNIST: Y. LeCun et al., "Gradient-Based Learning Applied to Document Recognition", 1998. LeNet-300-100 is the perceptron
of that paper; LeNet-5 here is Caffe's (431,080 weights), which pruning papers since S. Han et al., "Learning both
Weights and Connections for Efficient Neural Networks", 2015, mean by the name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from autocomp.errors import TaskError
from autocomp.places import cache_folder
from autocomp.saved import tensors_hash
from autocomp.task import Task
from autocomp.tasks.data import data_folder, find, read_idx
from autocomp.tasks.images import Labelled, Norm, Recipe, held_out, image_task, training
from autocomp.tasks.trained import structure, trained_net

Progress = Callable[[str], None]

NORM = Norm(mean=(0.1307,), std=(0.3081,))
CLASSES = 10
SIDE_PX = 28
TEST_EXAMPLES = 3_000
FOLDERS = ("mnist", "MNIST/raw")
FILES = "MNIST, four idx files, plain or .gz (yann.lecun.com/exdb/mnist)"

LENET300 = Recipe(epochs=16, batch=64, peak_learning_rate=0.05, weight_decay=5e-4, shift_px=1, mirror=False)
LENET5 = Recipe(epochs=6, batch=128, peak_learning_rate=0.05, weight_decay=5e-4, shift_px=1, mirror=False)


class LeNet300(nn.Module):
    """784-300-100-10: (batch, 1, 28, 28) normalised images → (batch, 10) logits."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(SIDE_PX**2, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc3(F.relu(self.fc2(F.relu(self.fc1(images.flatten(1))))))
        return logits


class LeNet5(nn.Module):
    """Caffe's, with no activation between conv and pool: (batch, 1, 28, 28) normalised images → (batch, 10) logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.pool2 = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(50 * 4 * 4, 500)
        self.fc2 = nn.Linear(500, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        features = self.pool2(self.conv2(self.pool1(self.conv1(images))))
        logits: Tensor = self.fc2(F.relu(self.fc1(features.flatten(1))))
        return logits


def mnist_lenet300(progress: Progress | None = None, data: Path | None = None, cache_dir: Path | None = None) -> Task:
    """LeNet-300-100 (0.27 M weights) on MNIST; see :func:`lenet_task`."""
    return lenet_task("mnist-lenet300", LeNet300, LENET300, progress, data, cache_dir)


def mnist_lenet5(progress: Progress | None = None, data: Path | None = None, cache_dir: Path | None = None) -> Task:
    """LeNet-5 (0.43 M weights) on MNIST; see :func:`lenet_task`."""
    return lenet_task("mnist-lenet5", LeNet5, LENET5, progress, data, cache_dir)


def lenet_task(
    name: str,
    make: Callable[[], nn.Module],
    recipe: Recipe,
    progress: Progress | None = None,
    data: Path | None = None,
    cache_dir: Path | None = None,
) -> Task:
    """Accuracy in percent on MNIST; inputs (batch, 1, 28, 28), normalised.

    ``test`` is the first 3,000 test images, whether the file holds more or not. ``search`` is 5,000 of the training
    images, stratified and fixed; ``train`` and the training have the other 55,000. The first call trains the net and
    keeps it; later calls load it.

    Args:
        make: gives the untrained net.
        recipe: how it is trained; each recipe's net is kept under its own name.
        progress: is told, line by line, what takes the time.
        data: the folder with the four idx files under their usual names, or its parent. Default: the folder in the
            environment variable AUTOCOMP_DATA.
        cache_dir: where the net is kept. Default: the folder in the environment variable AUTOCOMP_CACHE, else the
            user's cache folder.

    Raises:
        TaskError: data are missing or malformed, or the cache folder cannot be written.
    """
    cache, folder = cache_dir or cache_folder(), data_folder(data)
    parts = held_out(read_part(folder, "train"))
    test = read_part(folder, "t10k")[:TEST_EXAMPLES]
    facts = (
        recipe.facts(),
        structure(make),
        tensors_hash({"pixels": parts.train.pixels, "labels": parts.train.labels}),
    )
    duration = f"{recipe.epochs} epochs, a minute or two"
    net = trained_net(name, training(recipe, parts.train, make, duration), facts, cache, progress or _silent)
    return image_task(name, net, parts, test, recipe, "accuracy")


def read_part(folder: Path | None, part: str) -> Labelled:
    """The images (n, 1, 28, 28) and labels of ``train`` or ``t10k``, in the files' order.

    Raises:
        TaskError: a file is missing or malformed, or the two do not belong together.
    """
    names = (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte")
    places = [find(folder, FOLDERS, (name, f"{name}.gz"), FILES) for name in names]
    pixels, labels = (read_idx(place) for place in places)
    if pixels.shape != (len(labels), SIDE_PX, SIDE_PX) or labels.dim() != 1 or not len(labels):
        raise TaskError(
            f"MNIST's files must hold n images of 28×28 and n labels; {places[0].name} and {places[1].name} in "
            f"{places[0].parent} have shapes {tuple(pixels.shape)} and {tuple(labels.shape)}; get them again"
        )
    return Labelled(pixels.unsqueeze(1), labels.long(), NORM)


def _silent(_: str) -> None:
    """Progress that nobody follows."""
