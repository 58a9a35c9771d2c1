"""What the user brings: a trained model, data to calibrate on, and a way to score it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from autocomp.errors import TaskError

if TYPE_CHECKING:  # the nouns stay importable without torch
    import torch

Split = Literal["search", "test"]
Direction = Literal["maximize", "minimize"]

#: A batch of model inputs (torch tensors, batch first) → what the model returns: a tensor, or tensors in a tuple, a
#: dictionary or an output class. The same evaluation is given the torch model and the exported file in this form.
Predict = Callable[..., Any]

#: (what the model returns, the target of a train batch) → a scalar to be made small, a mean over the batch.
Loss = Callable[[Any, "torch.Tensor"], "torch.Tensor"]


@dataclass(frozen=True)
class Score:
    """A metric's value and, where it is a mean over examples, the per-example outcomes (shape: examples)."""

    value: float
    outcomes: npt.NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        # What people return: numpy and torch scalars, booleans.
        try:
            object.__setattr__(self, "value", float(self.value))
            if self.outcomes is not None:
                object.__setattr__(self, "outcomes", np.asarray(self.outcomes, dtype=np.float64))
        except (TypeError, ValueError) as error:
            raise TaskError(f"a score must be made of numbers; got {self.value!r} ({error})") from error


@dataclass(frozen=True)
class Metric:
    """The metric's name as shown to people, which way is better, and its unit (``%`` for values of 0 to 100)."""

    name: str
    direction: Direction = "maximize"
    unit: str = ""

    def __post_init__(self) -> None:
        if self.direction not in get_args(Direction):
            raise TaskError(f"a metric's direction must be maximize or minimize; got {self.direction!r}")

    @property
    def lost(self) -> str:
        """What a change for the worse is called: of an accuracy a drop, of a loss a rise."""
        return "drop" if self.direction == "maximize" else "rise"

    def words(self, value: float) -> str:
        """``91.25 %``."""
        return f"{value:.6g} {self.unit}".rstrip()

    def drop(self, baseline: float, value: float) -> float:
        """How much worse ``value`` is than ``baseline``; negative where it is better."""
        return baseline - value if self.direction == "maximize" else value - baseline

    def near(self, baseline: float, value: float, share: float) -> bool:
        """Whether ``value`` is at most ``share`` of ``|baseline|`` worse than ``baseline``; a better one always is."""
        return self.drop(baseline, value) <= share * abs(baseline) * (1 + 1e-9)


class Evaluate(Protocol):
    """Scores ``predict`` on one split. ``fraction`` takes a nested, seeded part of the split; a task may ignore it."""

    def __call__(self, predict: Predict, split: Split, fraction: float = 1.0) -> Score: ...


@dataclass(frozen=True)
class Task:
    """A trained model, its data and its metric.

    ``example_inputs`` are the model's positional inputs at batch 1; latency is that of inputs of these sizes.
    ``calibration`` are batches in the same form, kept out of both splits. ``train``, where there is one, are
    (inputs…, target) batches for recovery, which asks for each anew in every epoch: a sequence may augment them, by
    torch's own generator, which recovery seeds. ``loss`` is what recovery makes small of outputs and targets, beside the
    distance from the uncompressed network's outputs; None for the cross entropy where targets are classes, and for that
    distance alone where they are not. ``dynamic_dims`` says for each input which dimensions besides the batch may
    vary in size (a sequence's length is ``(1,)``); empty where only the batch does. A size that varies in several
    inputs is the same one in all of them.
    """

    name: str
    model: torch.nn.Module
    example_inputs: tuple[torch.Tensor, ...]
    calibration: Sequence[tuple[torch.Tensor, ...]]
    evaluate: Evaluate
    metric: Metric = Metric("accuracy")
    train: Sequence[tuple[torch.Tensor, ...]] | None = None
    loss: Loss | None = None
    dynamic_dims: tuple[tuple[int, ...], ...] = ()

    @property
    def takes_parts(self) -> bool:
        """Whether ``evaluate`` can be asked for a part of a split; one of two parameters cannot."""
        try:
            inspect.signature(self.evaluate).bind(None, "search", 0.5)
        except TypeError:
            return False
        except ValueError:  # a callable that does not tell
            return True
        return True

    def __post_init__(self) -> None:
        if not self.example_inputs:
            raise TaskError(f"task {self.name!r}: example_inputs must hold the model's inputs at batch 1; it is empty")
        if not self.calibration:
            raise TaskError(f"task {self.name!r}: calibration must hold at least one batch; it is empty")
        if self.dynamic_dims and len(self.dynamic_dims) != len(self.example_inputs):
            raise TaskError(
                f"task {self.name!r}: dynamic_dims must name dimensions for each of the {len(self.example_inputs)} "
                f"inputs; got {len(self.dynamic_dims)}"
            )
        for tensor, dims in zip(self.example_inputs, self.dynamic_dims, strict=False):
            if any(not 0 < dim < tensor.dim() for dim in dims):
                raise TaskError(
                    f"task {self.name!r}: dynamic_dims must lie behind the batch and inside the input, from 1 to "
                    f"{tensor.dim() - 1}; got {dims}"
                )
