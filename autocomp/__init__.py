"""Compress a trained network for a device: search sparsity, rank and bits per layer against measured latency."""

# These packages first: once they are loaded, the functions of the same names below stay what the names mean.
import autocomp.compress
import autocomp.export
import autocomp.search  # noqa: F401
from autocomp.api import Run, compress, export, predict, search
from autocomp.errors import AutocompError
from autocomp.plan import Format, LayerPlan, Plan, Rank, Sparsity
from autocomp.task import Metric, Score, Task

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
    "compress",
    "export",
    "predict",
    "search",
]
