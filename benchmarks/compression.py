"""What compression does to real networks: how small, how good, and what each method is worth.

    python benchmarks/compression.py lenet    [--data FOLDER]   the two LeNets on MNIST, as small as they go
    python benchmarks/compression.py resnet   [--data FOLDER]   ResNet-20 on CIFAR-10 (JPEG), 14 times smaller
    python benchmarks/compression.py methods  [--data FOLDER]   one row per method and level, before and after recovery
    python benchmarks/compression.py packed                     packed files beside plain ones: load, run, outputs

Every figure is of an exported file: all of its bytes, its accuracy on the test split with the paired 95 % interval of
the drop from the uncompressed network's own file. Plans and recipes were chosen on the search split alone. A figure of
recovery is the mean of three seeds. Rows that are there already are not worked out again: delete them to have them anew.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from tables import write_table

from autocomp.compress.apply import Compressed, apply
from autocomp.compress.prepare import prepare
from autocomp.compress.rebuild import Prepared
from autocomp.compress.recover import Recovery, recover
from autocomp.compress.solve import Solver
from autocomp.export.to_onnx import export_onnx
from autocomp.hardware.runtimes import onnxruntime
from autocomp.plan import Format, LayerPlan, Plan, Sparsity
from autocomp.search.verify import drop_interval, predictor
from autocomp.task import Score, Task
from autocomp.tasks.load import load_task

REFERENCE = Path(__file__).resolve().parents[1] / "results" / "reference"
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Bench:
    """A task, its network made ready, and what its uncompressed file scores and weighs."""

    task: Task
    prepared: Prepared
    solver: Solver
    file_bytes: int
    score: Score
    search: float

    @staticmethod
    def of(name: str, data: Path | None) -> Bench:
        task = load_task(name, print, data)
        prepared = prepare(task.model, task.example_inputs, task.dynamic_dims)
        solver = Solver(prepared.model, task.calibration)
        untouched = apply(prepared, Plan(), task.calibration, solver=solver)
        file = export_onnx(untouched, packed=False)
        bench = Bench(task, prepared, solver, len(file), Score(0.0), 0.0)
        return replace(bench, score=bench.tested(file), search=bench.searched(untouched))

    def compress(self, plan: Plan) -> Compressed:
        return apply(self.prepared, plan, self.task.calibration, solver=self.solver)

    def recovered(self, compressed: Compressed, recovery: Recovery) -> Compressed:
        train = self.task.calibration if self.task.train is None else self.task.train
        return recover(self.prepared, compressed, train, recovery, self.solver, self.task.train is not None).compressed

    def searched(self, compressed: Compressed) -> float:
        with torch.no_grad():
            return self.task.evaluate(compressed.model, "search").value

    def tested(self, file: bytes) -> Score:
        return self.task.evaluate(predictor(onnxruntime.load(file, 1), self.prepared.outputs), "test")


@dataclass(frozen=True)
class Small:
    """A network made as small as it goes."""

    task: str
    plan: str
    epochs: int
    seeds: int
    baseline_bytes: int
    file_bytes: int
    times_smaller: float
    baseline_test: float
    test: float
    drop: float
    drop_low: float
    drop_high: float
    search_before_recovery: float
    search: float


def recover_and_test(bench: Bench, name: str, plan: Plan, recovery: Recovery, seeds: Sequence[int] = SEEDS) -> Small:
    compressed = bench.compress(plan)
    before = bench.searched(compressed)
    found = []
    for seed in seeds:
        began = time.monotonic()
        result = bench.recovered(compressed, replace(recovery, seed=seed))
        file = export_onnx(result, packed=True)
        score = bench.tested(file)
        found.append(
            (len(file), score.value, drop_interval(bench.task.metric, bench.score, score), bench.searched(result))
        )
        print(name, "seed", seed, found[-1], f"{time.monotonic() - began:.0f} s", flush=True)

    def mean(values: Sequence[float]) -> float:
        return round(statistics.mean(values), 3)

    size = round(statistics.mean(one[0] for one in found))
    return Small(
        bench.task.name,
        name,
        recovery.epochs,
        len(seeds),
        bench.file_bytes,
        size,
        round(bench.file_bytes / size, 1),
        round(bench.score.value, 3),
        mean([one[1] for one in found]),
        mean([one[2][0] for one in found]),
        mean([one[2][1] for one in found]),
        mean([one[2][2] for one in found]),
        round(before, 3),
        mean([one[3] for one in found]),
    )


def cut(level: float, bits: int, grid: str = "uniform", saliency: str = "hessian") -> LayerPlan:
    """Single weights cut, and what stays in few bits with one step for the tensor."""
    chosen = Format(bits, grid=grid, granularity="tensor")  # type: ignore[arg-type]
    return LayerPlan(Sparsity("unstructured", level, saliency) if level else None, None, chosen)  # type: ignore[arg-type]


#: Task → plan, and the recipe that recovers it.
LENETS: Mapping[str, tuple[Plan, Recovery]] = {
    "mnist-lenet300": (
        Plan({"fc1": cut(0.965, 2, "codebook"), "fc2": cut(0.9, 2, "codebook"), "fc3": cut(0.5, 4)}),
        Recovery(20, gradual=True),
    ),
    "mnist-lenet5": (
        Plan(
            {
                "conv1": cut(0.5, 4),
                "conv2": cut(0.9, 3, "codebook"),
                "fc1": cut(0.99, 2, "codebook"),
                "fc2": cut(0.8, 3, "codebook"),
            }
        ),
        Recovery(12, gradual=True),
    ),
}


def lenet(data: Path | None) -> None:
    rows = []
    for name, (plan, recovery) in LENETS.items():
        rows.append(recover_and_test(Bench.of(name, data), name, plan, recovery))
        print(rows[-1], flush=True)
    write_table(REFERENCE / "compression_lenet.csv", [asdict(row) for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("lenet",))
    parser.add_argument("--data", type=Path, default=None)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.what == "lenet":
        lenet(asked.data)


if __name__ == "__main__":
    main()
