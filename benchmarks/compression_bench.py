"""What the benchmarks of compression share: a task made ready to be compressed, recovered, and scored as a file."""

from __future__ import annotations

import csv
import math
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from autocomp.compress.apply import Compressed, apply
from autocomp.compress.prepare import prepare
from autocomp.compress.quantize import DEFAULT_NUMERICS, Numerics
from autocomp.compress.rebuild import Prepared
from autocomp.compress.recipe import Recovery
from autocomp.compress.recover import Progress, recover
from autocomp.compress.recovered import Recovered
from autocomp.compress.solve import Solver
from autocomp.export.to_onnx import export_onnx
from autocomp.hardware.calibrate import narrow_products
from autocomp.hardware.fingerprint import this_machine
from autocomp.hardware.runtimes import onnxruntime
from autocomp.plan import Plan
from autocomp.search.verify import predictor
from autocomp.task import Score, Task
from autocomp.tasks.load import load_task

REFERENCE = Path(__file__).resolve().parents[1] / "results" / "reference"
#: Where files and weights lie.
WORK = Path(__file__).resolve().parents[1] / "results" / "compression"


@dataclass(frozen=True)
class Bench:
    """A task, its network made ready, and the device that it is trained on. Files are made for the integer arithmetic of
    this machine, on which they are scored."""

    task: Task
    prepared: Prepared
    solver: Solver
    numerics: Numerics
    device: str

    @staticmethod
    def of(name: str, data: Path | None, device: str = "cpu") -> Bench:
        task = load_task(name, print, data)
        prepared = prepare(task.model, task.example_inputs, task.dynamic_dims)
        numerics = replace(DEFAULT_NUMERICS, narrow_products=narrow_products(this_machine("onnxruntime")))
        return Bench(task, prepared, Solver(prepared.model, task.calibration), numerics, device)

    @cached_property
    def untouched(self) -> Compressed:
        return self.compress(Plan())

    @cached_property
    def file_bytes(self) -> int:
        return len(export_onnx(self.untouched, packed=False))

    @cached_property
    def score(self) -> Score:
        return self.tested(export_onnx(self.untouched, packed=False))

    @cached_property
    def search(self) -> float:
        return self.searched(self.untouched)

    def compress(self, plan: Plan) -> Compressed:
        return apply(self.prepared, plan, self.task.calibration, self.numerics, self.solver)

    def recovered(self, compressed: Compressed, recovery: Recovery, batches: int | None = None) -> Recovered:
        train = self.task.calibration if self.task.train is None else self.task.train
        train = train if batches is None else train[:batches]
        labelled = self.task.train is not None
        device = torch.device(self.device)
        recovery = replace(recovery, bfloat16=recovery.bfloat16 and self.device == "cpu")
        return recover(self.prepared, compressed, train, recovery, self.solver, labelled, epochs_told(), device)

    def searched(self, compressed: Compressed) -> float:
        with torch.no_grad():
            return self.task.evaluate(compressed.model, "search").value

    def tested(self, file: bytes) -> Score:
        return self.task.evaluate(predictor(onnxruntime.load(file, 1), self.prepared.outputs), "test")


def epochs_told() -> Progress:
    """Prints the loss on the data kept apart whenever it is another."""
    last = [math.inf]

    def told(step: int, steps: int, held: float) -> None:
        if held != last[0]:
            last[0] = held
            print(f"{time.strftime('%H:%M:%S')} step {step} of {steps}: {held:.4f}", flush=True)

    return told


def read_rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
