"""What a user calls a split (a loader, batches, a dataset, tensors, an image folder) → its examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler

from autocomp.errors import TaskError
from autocomp.tasks.examples import BatchExamples, DatasetExamples, Examples, Indices, as_batch
from autocomp.tasks.image_folder import ImageFolder, Transform, open_image_folder

Progress = Callable[[str], None]
Data = DataLoader[Any] | Dataset[Any] | Sequence[Any] | str | Path

DECODING_THREADS = 4


def open_split(data: Any, what: str, transform: Transform | None, tell: Progress, keep: bool = True) -> Examples:
    """The examples of a split called ``what``, in any of the forms of :data:`Data`.

    Args:
        transform: for image folders, see :func:`autocomp.tasks.image_folder.open_image_folder`.
        tell: is told where a loader is read into memory.
        keep: whether examples of a dataset stay in memory once they were read.

    Raises:
        TaskError: it is of another form, or empty.
    """
    found = _opened(data, what, transform, tell, keep)
    if len(found) == 0:
        raise TaskError(f"a split must hold examples; {what} is empty")
    return found


def _opened(data: Any, what: str, transform: Transform | None, tell: Progress, keep: bool) -> Examples:
    if isinstance(data, (str, Path)):
        folder = open_image_folder(Path(data), transform)
        return DatasetExamples(folder, np.arange(len(folder)), keep=keep, threads=DECODING_THREADS)
    if isinstance(data, DataLoader):
        if _in_order(data):
            size = len(data.dataset)  # type: ignore[arg-type]
            return DatasetExamples(data.dataset, np.arange(size), data.collate_fn, keep)
        tell(f"{what}: the loader's order is its own, so its batches are read once into memory")
        return BatchExamples(tuple(as_batch(one) for one in data))
    if isinstance(data, (tuple, list)):
        pair = len(data) == 2 and all(isinstance(part, Tensor) for part in data)
        return BatchExamples(tuple(as_batch(one) for one in ([data] if pair else data)))
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return DatasetExamples(data, np.arange(len(data)), keep=keep)
    raise TaskError(
        "a split must be a DataLoader, a list of batches, a Dataset, a pair of tensors or an image folder; "
        f"{what} is a {type(data).__name__}"
    )


def kept(examples: Examples) -> Examples:
    """The same examples, which stay in memory once they were read."""
    return replace(examples, keep=True, _kept={}, _bytes=[0]) if isinstance(examples, DatasetExamples) else examples


def folder_of(examples: Examples | None) -> ImageFolder | None:
    """The image folder behind a split, where there is one."""
    dataset = examples.dataset if isinstance(examples, DatasetExamples) else None
    return dataset if isinstance(dataset, ImageFolder) else None


def check_apart(**splits: object) -> None:
    """That no two splits are the same data, as far as can be seen without reading what is not in memory.

    Raises:
        TaskError: two are.
    """
    names = [name for name, data in splits.items() if data is not None]
    for name, other in combinations(names, 2):
        if _same(splits[name], splits[other]):
            raise TaskError(f"splits must be apart; {name} and {other} are the same data; give each its own")


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, (str, Path)) and isinstance(other, (str, Path)):
        return Path(one).resolve() == Path(other).resolve()
    if isinstance(one, DataLoader) and isinstance(other, DataLoader) and _in_order(one) and _in_order(other):
        return one.dataset is other.dataset
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)) and len(one) == len(other) > 0:
        return all(_same(mine, theirs) for mine, theirs in zip(one, other, strict=True))
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and one.dtype == other.dtype and bool(torch.equal(one, other))
    return one is other


def check_classes(**splits: Examples | None) -> None:
    """That image folders have the same classes: numbers are places in the alphabet, so a missing one shifts the rest.

    Raises:
        TaskError: they differ.
    """
    folders = {name: folder for name, examples in splits.items() if (folder := folder_of(examples)) is not None}
    for (name, folder), (other, theirs) in combinations(folders.items(), 2):
        if folder.classes != theirs.classes:
            differing = ", ".join(sorted(set(folder.classes) ^ set(theirs.classes))[:5])
            raise TaskError(
                f"image folders must have the same class subfolders; those of {name} and {other} differ in {differing}"
            )


@dataclass(frozen=True)
class ReadBatches(Sequence[tuple[Tensor, ...]]):
    """(inputs…, labels) batches, read when they are asked for."""

    examples: Examples
    groups: tuple[Indices, ...]
    with_labels: bool = True

    @staticmethod
    def shuffled(examples: Examples, part: Indices, batch: int, seed: int, with_labels: bool = True) -> ReadBatches:
        """``part`` of the examples in a seeded random order."""
        rng = np.random.default_rng(seed)
        groups = examples.groups(rng.permutation(part), batch)
        return ReadBatches(examples, tuple(groups[place] for place in rng.permutation(len(groups))), with_labels)

    def __len__(self) -> int:
        return len(self.groups)

    @overload
    def __getitem__(self, index: int) -> tuple[Tensor, ...]: ...
    @overload
    def __getitem__(self, index: slice) -> ReadBatches: ...
    def __getitem__(self, index: int | slice) -> tuple[Tensor, ...] | ReadBatches:
        if isinstance(index, slice):
            return ReadBatches(self.examples, self.groups[index], self.with_labels)
        read = self.examples.read(self.groups[index])
        return (*read.inputs, read.labels) if self.with_labels else read.inputs


def _in_order(loader: DataLoader[Any]) -> bool:
    """Whether the loader's dataset, gone through in its own order, is the split."""
    plain = type(loader.sampler) is SequentialSampler or (
        type(loader.sampler) is RandomSampler and not loader.sampler.replacement
    )
    return not isinstance(loader.dataset, IterableDataset) and loader.batch_size is not None and plain
