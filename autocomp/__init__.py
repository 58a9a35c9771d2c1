"""Compress a trained network for a device: search sparsity, rank and bits per layer against measured latency."""

from __future__ import annotations

from typing import TYPE_CHECKING

# These packages first: once they are loaded, the functions of the same names below stay what the names mean.
import autocomp.compress
import autocomp.export
import autocomp.search  # noqa: F401
from autocomp.api import compress, export, predict, search
from autocomp.errors import AutocompError
from autocomp.finished import Run
from autocomp.plan import Format, LayerPlan, Plan, Rank, Sparsity
from autocomp.task import Metric, Score, Task

if TYPE_CHECKING:
    from autocomp.tasks.classification import classification

__all__ = [
    "AutocompError",
    "Format",
    "LayerPlan",
    "Metric",
    "Plan",
    "Rank",
    "Run",
    "Score",
    "Sparsity",
    "Task",
    "classification",
    "compress",
    "export",
    "predict",
    "search",
]


def __getattr__(name: str) -> object:
    # A task from parts is made of torch's own, which is loaded when it is asked for.
    if name == "classification":
        from autocomp.tasks.classification import classification

        return classification
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
