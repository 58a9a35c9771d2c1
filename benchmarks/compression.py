"""What compression does to real networks: how small, how good, and what each method is worth.

    python benchmarks/compression.py lenet    [--data FOLDER]   the two LeNets on MNIST, as small as they go
    python benchmarks/compression.py methods  [--task NAME] [--data FOLDER]   a row per method and level
    python benchmarks/compression.py packed                     packed files beside plain ones: load, run, outputs

Every figure is of an exported file: all of its bytes, its accuracy on the test split with the paired 95 % interval of
the drop from the uncompressed network's own file. Plans and recipes were chosen on the search split alone. A figure of
recovery is the mean of three seeds. Rows that are there already are not worked out again: delete them to have them anew.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from tables import write_table
from torch import nn

from autocomp.compress.apply import Compressed, apply
from autocomp.compress.prepare import prepare
from autocomp.compress.rebuild import Prepared
from autocomp.compress.recover import Recovery, recover
from autocomp.compress.solve import Solver
from autocomp.export.to_onnx import export_onnx
from autocomp.hardware.runtimes import onnxruntime
from autocomp.hardware.runtimes.runtime import batch_outputs, cpu_runtime, loaded_run, reference_run
from autocomp.hardware.timing import TimingSettings, measure
from autocomp.inventory import LayerInfo
from autocomp.plan import (
    N_OF_M,
    Adjustment,
    Format,
    LayerPlan,
    Plan,
    Rank,
    RankMethod,
    Rounding,
    Saliency,
    Sparsity,
)
from autocomp.search.verify import drop_interval, predictor
from autocomp.task import Score, Task
from autocomp.tasks.cifar10 import ResNet
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

    def recovered(self, compressed: Compressed, recovery: Recovery, batches: int | None = None) -> Compressed:
        train = self.task.calibration if self.task.train is None else self.task.train
        train = train if batches is None else train[:batches]
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


@dataclass(frozen=True)
class Level:
    """One method at one level, on every layer that can have it but the first and the last."""

    task: str
    method: str
    level: str
    search_before: float
    search_after: float | None
    test_before: float
    drop_before: float
    test_after: float | None
    drop_after: float | None
    file_bytes: int
    latency_ms: float | None


#: Levels of sparsity, shares of the largest rank that saves, and widths.
SPARSE, RANKED, WIDTHS = (0.5, 0.75, 0.9), (0.75, 0.5, 0.25), (4, 3, 2)
#: Batches that a row of the table is recovered with: enough to compare methods, not to finish.
RECOVERED_BATCHES = 120


def same(choice: LayerPlan) -> Callable[[LayerInfo], LayerPlan | None]:
    return lambda _: choice


def ranked(method: RankMethod, share: float, layer: LayerInfo) -> LayerPlan | None:
    largest = layer.largest_rank(method)
    return LayerPlan(rank=Rank(method, max(2, round(share * largest)))) if largest > 2 else None


def methods(bench: Bench) -> Iterator[tuple[str, str, Plan]]:
    """Method, level, plan."""
    inventory = bench.prepared.inventory
    inner = inventory.layers[1:-1] if len(inventory.layers) > 3 else inventory.layers

    def plan(choice: Callable[[LayerInfo], LayerPlan | None], adjustments: tuple[Adjustment, ...] = ()) -> Plan:
        chosen = {layer.name: choice(layer) for layer in inner}
        return Plan({name: one for name, one in chosen.items() if one is not None}, adjustments=adjustments)

    for saliency in get_args(Saliency):
        for level in SPARSE:
            asked = LayerPlan(Sparsity("unstructured", level, saliency))
            yield f"unstructured by {saliency}", f"{level:.0%}", plan(same(asked))
        for pattern, (n, m) in N_OF_M.items():
            asked = LayerPlan(Sparsity(pattern, 1 - n / m, saliency))  # type: ignore[arg-type]
            yield f"n:m by {saliency}", pattern, plan(same(asked))
        for level in (0.25, 0.5):
            cut_groups = {
                name: LayerPlan(Sparsity("channel", level, saliency))
                for group in inventory.groups
                if group.prunable and group.pattern == "channel"
                for name in group.producers
            }
            yield f"channels by {saliency}", f"{level:.0%}", Plan(cut_groups)
    for method in get_args(RankMethod):
        for share in RANKED:
            yield (
                f"rank by {method}",
                f"{share:.0%} of the largest",
                plan(partial(ranked, method, share)),
            )
    kinds: list[tuple[str, Callable[[int], Format]]] = [
        *((f"even steps, {one}", partial(Format, rounding=one)) for one in get_args(Rounding)),
        *((f"codebook, {one}", partial(Format, grid="codebook", rounding=one)) for one in get_args(Rounding)),
        *((f"even steps, clipped by {one}", partial(Format, clip=one)) for one in ("minmax", "percentile")),
        ("even steps, one for the tensor", partial(Format, granularity="tensor")),
        ("even steps, one for 16 weights", lambda bits: Format(bits, 32, granularity="group", group=16)),
    ]
    for name, make in kinds:
        for bits in WIDTHS:
            asked = LayerPlan(format=make(bits))
            yield name, f"{bits} bits", plan(same(asked))
    for one in get_args(Rounding):
        yield (
            f"ternary, {one}",
            "2 bits",
            plan(same(LayerPlan(format=Format(2, grid="ternary", rounding=one)))),
        )
    yield "binary", "1 bit", plan(same(LayerPlan(format=Format(1))))
    for adjustment in get_args(Adjustment):
        for bits in WIDTHS:
            asked = LayerPlan(format=Format(bits, granularity="tensor"))
            yield (
                f"one step for the tensor, {adjustment}",
                f"{bits} bits",
                plan(same(asked), (adjustment,)),
            )


def table(bench: Bench) -> None:
    """A row for every method and level: goes on where it stopped."""
    path = REFERENCE / f"compression_methods_{bench.task.name}.csv"
    done = {(row["method"], row["level"]): row for row in read_rows(path)}
    runs = cpu_runtime("onnxruntime")
    inputs = [tensor[:1].numpy() for tensor in bench.prepared.example.inputs]
    for method, level, plan in methods(bench):
        if (method, level) in done:
            continue
        began = time.monotonic()
        compressed = bench.compress(plan)
        before = bench.tested(export_onnx(compressed, packed=True))
        recovered = bench.recovered(compressed, Recovery(1), RECOVERED_BATCHES)
        file = export_onnx(recovered, packed=True)
        after = bench.tested(file)
        timing = measure({"file": partial(loaded_run, runs, file, 1, inputs)}, reference=reference_run(runs, 1))["file"]
        row = Level(
            bench.task.name,
            method,
            level,
            round(bench.searched(compressed), 2),
            round(bench.searched(recovered), 2),
            round(before.value, 2),
            round(bench.task.metric.drop(bench.score.value, before.value), 2),
            round(after.value, 2),
            round(bench.task.metric.drop(bench.score.value, after.value), 2),
            len(file),
            round(timing.latency_ms, 4) if timing.settled else None,
        )
        done[method, level] = {key: "" if value is None else str(value) for key, value in asdict(row).items()}
        write_table(path, list(done.values()))
        print(row, f"{time.monotonic() - began:.0f} s", flush=True)


def read_rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@dataclass(frozen=True)
class Packed:
    """A packed file beside the plain one of the same network."""

    network: str
    stored: str
    plain_bytes: int
    packed_bytes: int
    plain_load_ms: float
    packed_load_ms: float
    plain_ms: float
    packed_ms: float
    times_as_long: float
    outputs_equal: bool


class Wide(nn.Module):
    """10.2 million weights in one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3200, 3200)
        self.last = nn.Linear(3200, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(x)))  # type: ignore[no-any-return]


#: Loads of each file, turn by turn.
LOADS = 15
STORED: Mapping[str, LayerPlan] = {
    "8 bits": LayerPlan(format=Format(8)),
    "6 bits": LayerPlan(format=Format(6)),
    "4 bits": LayerPlan(format=Format(4)),
    "3 bits": LayerPlan(format=Format(3)),
    "2 bits": LayerPlan(format=Format(2)),
    "ternary": LayerPlan(format=Format(2, grid="ternary")),
    "binary": LayerPlan(format=Format(1)),
    "codebook of 4 bits": LayerPlan(format=Format(4, grid="codebook")),
    "30 % of 4 bits": LayerPlan(Sparsity("unstructured", 0.7), None, Format(4)),
    "10 % of 4 bits": LayerPlan(Sparsity("unstructured", 0.9), None, Format(4)),
    "2 % of 4 bits": LayerPlan(Sparsity("unstructured", 0.98), None, Format(4)),
}


def packed() -> None:
    rows = []
    runs = cpu_runtime("onnxruntime")
    networks: Mapping[str, tuple[nn.Module, torch.Tensor]] = {
        "10 million weights": (Wide().eval(), torch.randn(8, 3200)),
        "ResNet-20": (ResNet(20).eval(), torch.randn(8, 3, 32, 32)),
    }
    for name, (model, batch) in networks.items():
        prepared = prepare(model, (batch[:1],))
        for stored, choice in STORED.items():
            plan = Plan({layer.name: choice for layer in prepared.inventory.layers})
            compressed = apply(prepared, plan, [(batch,)])
            files = {form: export_onnx(compressed, packed=form == "packed") for form in ("plain", "packed")}
            loads: dict[str, list[float]] = {form: [] for form in files}
            for _, (form, file) in itertools.product(range(LOADS), files.items()):
                began = time.perf_counter()
                onnxruntime.load(file, 1)
                loads[form].append(1e3 * (time.perf_counter() - began))
            load_ms = {form: float(np.quantile(times, 0.2)) for form, times in loads.items()}
            given = batch[:1].numpy()
            candidates = {form: partial(loaded_run, runs, file, 1, [given]) for form, file in files.items()}
            timings = measure(candidates, TimingSettings(repeats=40, max_rounds=24), reference=reference_run(runs, 1))
            outputs = [batch_outputs(onnxruntime.load(file, 1), batch.numpy())[0] for file in files.values()]
            rows.append(
                Packed(
                    name,
                    stored,
                    len(files["plain"]),
                    len(files["packed"]),
                    round(load_ms["plain"], 1),
                    round(load_ms["packed"], 1),
                    round(timings["plain"].latency_ms, 4),
                    round(timings["packed"].latency_ms, 4),
                    round(timings["packed"].latency_ms / timings["plain"].latency_ms, 3),
                    bool(np.array_equal(outputs[0], outputs[1])),
                )
            )
            print(rows[-1], flush=True)
    write_table(REFERENCE / "compression_packed.csv", [asdict(row) for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("lenet", "methods", "packed"))
    parser.add_argument("--task", default="cifar10-resnet20", help="for methods")
    parser.add_argument("--data", type=Path, default=None)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.what == "lenet":
        lenet(asked.data)
    elif asked.what == "methods":
        table(Bench.of(asked.task, asked.data))
    else:
        packed()


if __name__ == "__main__":
    main()
