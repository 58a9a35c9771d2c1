"""The labelled examples of a split in a fixed order, read a batch at a time: from a dataset, or from batches.

An index stands for one example. Which examples can be read together is the split's own affair (batches that were padded
to different lengths cannot be mixed), so reading is asked for in groups that :meth:`Examples.groups` made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import default_collate

from autocomp.errors import TaskError, first_line

Indices = npt.NDArray[np.int64]

#: So many bytes of a dataset's examples are kept once they were read; what goes beyond is read again each time.
KEPT_BYTES = 1 << 30


@dataclass(frozen=True)
class Batch:
    """Inputs, each (batch, …), and labels (batch,) int64."""

    inputs: tuple[Tensor, ...]
    labels: Tensor

    def __post_init__(self) -> None:
        if self.labels.dim() != 1 or self.labels.is_floating_point():
            raise TaskError(
                f"labels must be whole numbers of shape (batch,); got {self.labels.dtype} of shape "
                f"{tuple(self.labels.shape)}; hand over class numbers"
            )
        if any(tensor.shape[:1] != self.labels.shape for tensor in self.inputs):
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in self.inputs)
            raise TaskError(f"inputs must have an example per label; got {shapes} beside {len(self.labels)} labels")


class Examples(Protocol):
    """What a split gives of itself."""

    def __len__(self) -> int: ...

    def labels(self) -> Indices:
        """The label of each example, shape (examples,)."""

    def groups(self, chosen: Indices, size: int) -> list[Indices]:
        """``chosen`` cut into groups of at most ``size`` that :meth:`read` takes."""

    def read(self, group: Indices) -> Batch:
        """The examples of one group, in its order."""


@dataclass(frozen=True)
class BatchExamples:
    """Batches that lie in memory; a pair of tensors is a single one."""

    batches: tuple[Batch, ...]

    @cached_property
    def _ends(self) -> Indices:
        return np.cumsum([len(batch.labels) for batch in self.batches], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def labels(self) -> Indices:
        return torch.cat([batch.labels for batch in self.batches]).numpy().astype(np.int64)

    def groups(self, chosen: Indices, size: int) -> list[Indices]:
        owners = np.searchsorted(self._ends, chosen, side="right")
        return [part for owner in np.unique(owners) for part in cut(chosen[owners == owner], size)]

    def read(self, group: Indices) -> Batch:
        owner = int(np.searchsorted(self._ends, group[0], side="right"))
        batch = self.batches[owner]
        rows = torch.from_numpy(group - (int(self._ends[owner]) - len(batch.labels)))
        return Batch(tuple(tensor[rows] for tensor in batch.inputs), batch.labels[rows])


@dataclass(frozen=True)
class DatasetExamples:
    """A dataset of (input…, label) examples that can be indexed; each is read when it is needed.

    ``keep`` says whether examples stay in memory once read, up to :data:`KEPT_BYTES`; ``threads`` how many read at once
    (only where the dataset allows it).
    """

    dataset: Any
    indices: Indices = field(repr=False)
    collate: Callable[[list[Any]], Any] = default_collate
    keep: bool = True
    threads: int = 1
    _kept: dict[int, Any] = field(default_factory=dict, repr=False, compare=False)
    _bytes: list[int] = field(default_factory=lambda: [0], repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.indices)

    def labels(self) -> Indices:
        known = _known_labels(self.dataset)
        if known is not None:
            return known[self.indices]
        return np.array([int(_parts(self.dataset[int(index)])[-1]) for index in self.indices], dtype=np.int64)

    def groups(self, chosen: Indices, size: int) -> list[Indices]:
        return list(cut(chosen, size))

    def read(self, group: Indices) -> Batch:
        wanted = [int(self.indices[index]) for index in group]
        found = {index: self._kept[index] for index in wanted if index in self._kept}
        missing = [index for index in wanted if index not in found]
        for index, item in zip(missing, self._items(missing), strict=True):
            found[index] = item
            if self.keep and self._bytes[0] < KEPT_BYTES:
                self._kept[index] = item
                self._bytes[0] += _bytes_of(item)
        try:
            together = self.collate([found[index] for index in wanted])
        except (RuntimeError, TypeError, ValueError) as error:
            raise TaskError(
                f"examples must have one size, to go into a batch; {first_line(error)}; hand over a transform or batches"
            ) from error
        return as_batch(together)

    def _items(self, indices: list[int]) -> list[Any]:
        if self.threads == 1:  # a dataset of the user's may only work in the thread that made it
            return [self.dataset[index] for index in indices]
        with ThreadPoolExecutor(self.threads) as pool:
            return list(pool.map(self.dataset.__getitem__, indices))


def as_batch(batch: object) -> Batch:
    """(input…, labels), as loaders give it, with labels last and inputs possibly in a tuple of their own.

    Raises:
        TaskError: it is of another form.
    """
    parts = _parts(batch)
    inputs = [tensor for part in parts[:-1] for tensor in (part if isinstance(part, (tuple, list)) else (part,))]
    labels = parts[-1]
    if isinstance(labels, (list, tuple, np.ndarray)):
        labels = torch.as_tensor(labels)
    if not all(isinstance(tensor, Tensor) for tensor in (*inputs, labels)):
        kinds = ", ".join(type(part).__name__ for part in parts)
        raise TaskError(f"a batch must be (inputs, labels) of tensors; got ({kinds}); convert it in the loader")
    return Batch(tuple(inputs), labels if labels.is_floating_point() else labels.long())


def cut(indices: Indices, size: int) -> Iterator[Indices]:
    """Stretches of at most ``size``."""
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


def stratified_order(labels: Indices, seed: int) -> Indices:
    """All examples in a seeded random order, any stretch of which holds the classes in their right proportions."""
    rng = np.random.default_rng(seed)
    position = np.empty(len(labels))
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        position[members] = (np.arange(len(members)) + rng.random(len(members))) / len(members)
    return np.argsort(position, kind="stable")


def nested_part(examples: int, fraction: float, seed: int) -> Indices:
    """A seeded random part of ``range(examples)``, ascending; a smaller one lies within every larger one.

    Raises:
        TaskError: the fraction is outside (0, 1].
    """
    if not 0.0 < fraction <= 1.0:
        raise TaskError(f"a split's fraction must lie above 0 and at most at 1; got {fraction}")
    order = np.random.default_rng(seed).permutation(examples)
    return np.sort(order[: int(np.ceil(fraction * examples))])


def _parts(item: object) -> Sequence[Any]:
    if isinstance(item, (tuple, list)) and len(item) >= 2:
        return item
    keys = f" with {', '.join(map(str, item))}" if isinstance(item, Mapping) else ""
    raise TaskError(f"an example or batch must be (inputs, labels); got a {type(item).__name__}{keys}; make it a pair")


def _known_labels(dataset: Any) -> Indices | None:
    """Labels that a dataset tells without reading its examples."""
    if isinstance(dataset, torch.utils.data.Subset):
        inner = _known_labels(dataset.dataset)
        return None if inner is None else inner[np.asarray(dataset.indices)]
    if isinstance(dataset, torch.utils.data.TensorDataset):
        return dataset.tensors[-1].numpy().astype(np.int64)
    told = getattr(dataset, "targets", None)
    return None if told is None or len(told) != len(dataset) else np.asarray(told).astype(np.int64)


def _bytes_of(item: object) -> int:
    if isinstance(item, (tuple, list)):
        return sum(_bytes_of(part) for part in item)
    if isinstance(item, Tensor):
        return item.numel() * item.element_size()
    return int(getattr(item, "nbytes", 64))
