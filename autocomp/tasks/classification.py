"""A classifier and its data as a task, without writing a class: from loaders, datasets, tensors or image folders."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from autocomp.errors import TaskError, first_line
from autocomp.task import Metric, Predict, Score, Split, Task
from autocomp.tasks.examples import Examples, Indices, nested_part, stratified_order
from autocomp.tasks.image_folder import Transform
from autocomp.tasks.splits import Data, ReadBatches, check_apart, check_classes, folder_of, kept, open_split

Progress = Callable[[str], None]

CALIBRATION_EXAMPLES = 256
#: Where the search split is held out of train: this share of it, and at most so many examples.
HELD_OUT_SHARE = 0.2
HELD_OUT_EXAMPLES = 5000


def classification(
    model: nn.Module,
    *,
    train: Data | None = None,
    search: Data | None = None,
    test: Data,
    calibration: Data | None = None,
    name: str = "classification",
    example_inputs: tuple[Tensor, ...] | None = None,
    dynamic_dims: tuple[tuple[int, ...], ...] = (),
    transform: Transform | None = None,
    batch: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> Task:
    """A task that scores ``model`` by accuracy in percent, with an outcome per example.

    Each split is a DataLoader, a list of (inputs, labels) batches, a torch Dataset of (input, label) pairs, a pair of
    tensors, or the path of an image folder with a subfolder per class or of a zip of one. Labels are class numbers,
    those of an image folder in alphabetical order. Examples are scored in a fixed order whatever a loader shuffles; a
    loader of an IterableDataset, or with a sampler of its own, is read once into memory. Images are decoded on use.

    Where ``search`` is left out, a fifth of ``train`` (5,000 examples at most) is held out for it, drawn by ``seed`` in
    the classes' proportions. These examples are in neither calibration nor recovery; but the model has seen them if it
    was trained on all of ``train``, so a split of its own is better.

    Args:
        model: returns logits (batch, classes), or an object or a dictionary that holds them as ``logits``. Left as it is.
        train: for calibration and recovery.
        calibration: examples whose labels are not used. Default: 256 of train.
        example_inputs: the model's inputs at batch 1, whose latency is meant. Default: the first example of search.
        dynamic_dims: see :class:`autocomp.Task`.
        transform: for image folders, from an RGB image to a tensor. Default: values in 0 to 1, size as it is.
        batch: examples per batch, in evaluation and recovery.
        progress: is told what was held out or read into memory.

    Raises:
        TaskError: a split is of another form or empty; two splits are the same; neither ``train`` nor ``calibration``
            is given, or neither ``train`` nor ``search``; or the model does not give logits for the example.
    """
    check_apart(train=train, search=search, test=test)
    tell = progress or _silent
    tested = open_split(test, "test", transform, tell)
    trained = None if train is None else open_split(train, "train", transform, tell, keep=False)
    train_part = np.arange(0 if trained is None else len(trained))
    if search is not None:
        searched = open_split(search, "search", transform, tell)
        search_part = np.arange(len(searched))
    elif trained is not None:
        searched = kept(trained)
        search_part, train_part = _held_out(trained.labels(), seed)
        tell(f"{name}: no search split given; {len(search_part)} of {len(trained)} training examples held out")
    else:
        raise TaskError("a task needs a search split, or train to hold one out of; neither is given; give search=")
    check_classes(train=trained, search=searched, test=tested)
    example = example_inputs or tuple(tensor[:1].clone() for tensor in searched.read(search_part[:1]).inputs)
    classes = _classes_of(model, example, name)
    _check_head(classes, tested)
    if calibration is not None:
        calibrated = open_split(calibration, "calibration", transform, tell)
        calibration_part = np.arange(len(calibrated))
    elif trained is not None:
        calibrated = kept(trained)  # read anew for every plan
        calibration_part = np.sort(np.random.default_rng(seed).permutation(train_part)[:CALIBRATION_EXAMPLES])
    else:
        raise TaskError("a task needs examples to calibrate on; neither train nor calibration is given; give train=")
    return Task(
        name=name,
        model=model,
        example_inputs=example,
        calibration=ReadBatches(calibrated, tuple(calibrated.groups(calibration_part, batch)), with_labels=False),
        train=None if trained is None else ReadBatches.shuffled(trained, train_part, batch, seed),
        evaluate=Accuracy(searched, search_part, tested, np.arange(len(tested)), batch, seed),
        metric=Metric("accuracy", "maximize", "%"),
        dynamic_dims=dynamic_dims,
    )


@dataclass(frozen=True)
class Accuracy:
    """The share of examples whose largest logit is their label, in percent of the split."""

    search: Examples
    search_part: Indices
    test: Examples
    test_part: Indices
    batch: int
    seed: int

    def __call__(self, predict: Predict, split: Split, fraction: float = 1.0) -> Score:
        """Scores ``predict``. The outcomes are 1 where an example was right and 0 where not, in the split's order.

        Raises:
            TaskError: the split is unknown, the fraction is outside (0, 1], or a label is no class of the model's.
        """
        if split not in ("search", "test"):
            raise TaskError(f"a split must be search or test; got {split!r}")
        examples, part = (self.search, self.search_part) if split == "search" else (self.test, self.test_part)
        chosen = part[nested_part(len(part), fraction, self.seed)]
        right = np.zeros(len(examples))
        with torch.no_grad():
            for group in examples.groups(chosen, self.batch):
                read = examples.read(group)
                logits = logits_of(predict(*read.inputs)).cpu()
                _check_labels(read.labels, logits)
                right[group] = (logits.argmax(dim=1) == read.labels).numpy()
        outcomes = right[chosen]
        return Score(100.0 * float(outcomes.mean()), outcomes)


def logits_of(output: object) -> Tensor:
    """The logits (batch, classes) in what a model returned.

    Raises:
        TaskError: there are none of this shape.
    """
    found: object = output["logits"] if isinstance(output, Mapping) and "logits" in output else output
    found = getattr(found, "logits", found)
    if isinstance(found, (tuple, list)) and found:
        found = found[0]
    if not isinstance(found, Tensor) or found.dim() != 2:
        got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(output).__name__}"
        raise TaskError(f"a classifier must return logits (batch, classes), or hold them as logits; it returned {got}")
    return found


def _held_out(labels: Indices, seed: int) -> tuple[Indices, Indices]:
    """Which examples of train become the search split, and which stay; both ascending."""
    order = stratified_order(labels, seed)
    count = min(HELD_OUT_EXAMPLES, math.ceil(HELD_OUT_SHARE * len(labels)))
    if count == len(labels):
        raise TaskError(f"train must hold examples to hold some out of; it has {len(labels)}; give search=")
    return np.sort(order[:count]), np.sort(order[count:])


def _classes_of(model: nn.Module, example: tuple[Tensor, ...], name: str) -> int:
    try:
        with torch.no_grad():
            output = copy.deepcopy(model).eval()(*example)
    except Exception as error:  # a model's own code raises anything
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in example)
        raise TaskError(
            f"task {name!r}: the model must take the example inputs, of shape {shapes}; it raised {first_line(error)}"
        ) from error
    return logits_of(output).shape[1]


def _check_head(classes: int, test: Examples) -> None:
    folder = folder_of(test)
    if folder is not None and len(folder.classes) != classes:
        raise TaskError(
            f"the model must have an output per class; it has {classes} and {folder.root} has {len(folder.classes)} "
            "class subfolders; give the folder that it was trained for, or weights trained for this one"
        )


def _check_labels(labels: Tensor, logits: Tensor) -> None:
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        raise TaskError(
            f"labels must be class numbers from 0 to {logits.shape[1] - 1}, for the model's {logits.shape[1]} outputs; "
            f"got {int(labels.min())} to {int(labels.max())}"
        )


def _silent(_: str) -> None:
    """Progress that nobody follows."""
