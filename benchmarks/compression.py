"""What compression does to real networks: how small, how good, and what each method is worth.

    python benchmarks/compression.py small    [--task NAME] [--seeds 0 1 2] [--data FOLDER]   as small as it goes
    python benchmarks/compression.py methods  [--task NAME] [--data FOLDER]   a row per method and level
    python benchmarks/compression.py times    [--task NAME] [--data FOLDER]   what the files of those rows take
    python benchmarks/compression.py packed   packed files beside plain ones: load, run, outputs

Every figure is of an exported file: all of its bytes, its accuracy on the test split with the paired 95 % interval of
the drop from the uncompressed network's own file. Plans and recipes were chosen on the search split alone. A figure of
recovery is the mean of three seeds. Rows that are there already are not worked out again: delete them to have them anew.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from tables import write_table
from torch import nn

from autocomp.compress.apply import Compressed, apply
from autocomp.compress.levels import global_plan
from autocomp.compress.prepare import prepare
from autocomp.compress.quantize import DEFAULT_NUMERICS, Numerics
from autocomp.compress.rebuild import Prepared
from autocomp.compress.recover import Recovery, recover
from autocomp.compress.solve import Solver
from autocomp.export.to_onnx import export_onnx
from autocomp.hardware.calibrate import narrow_products
from autocomp.hardware.fingerprint import this_machine
from autocomp.hardware.runtimes import onnxruntime
from autocomp.hardware.runtimes.runtime import batch_outputs, cpu_runtime, loaded_run, reference_run
from autocomp.hardware.timing import TimingSettings, measure
from autocomp.inventory import LayerInfo
from autocomp.plan import (
    N_OF_M,
    Adjustment,
    Format,
    Granularity,
    Grid,
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
#: Where the files of the tables lie.
WORK = Path(__file__).resolve().parents[1] / "results" / "compression"
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Bench:
    """A task, its network made ready, and what its uncompressed file scores and weighs. Files are made for the integer
    arithmetic of this machine, on which they are scored."""

    task: Task
    prepared: Prepared
    solver: Solver
    numerics: Numerics
    file_bytes: int
    score: Score
    search: float

    @staticmethod
    def of(name: str, data: Path | None) -> Bench:
        task = load_task(name, print, data)
        prepared = prepare(task.model, task.example_inputs, task.dynamic_dims)
        solver = Solver(prepared.model, task.calibration)
        numerics = replace(DEFAULT_NUMERICS, narrow_products=narrow_products(this_machine("onnxruntime")))
        untouched = apply(prepared, Plan(), task.calibration, numerics, solver)
        file = export_onnx(untouched, packed=False)
        bench = Bench(task, prepared, solver, numerics, len(file), Score(0.0), 0.0)
        return replace(bench, score=bench.tested(file), search=bench.searched(untouched))

    def compress(self, plan: Plan) -> Compressed:
        return apply(self.prepared, plan, self.task.calibration, self.numerics, self.solver)

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
    """A network made as small as it goes, by one seed of its recovery."""

    task: str
    seed: int
    epochs: int
    baseline_bytes: int
    file_bytes: int
    times_smaller: float
    baseline_test: float
    test: float
    drop: float
    drop_low: float
    drop_high: float
    search_drop_before: float
    search_drop: float
    seconds: float


@dataclass(frozen=True)
class Made:
    """How a network is made small."""

    plan: Callable[[Bench], Plan]
    recovery: Recovery


def cut(
    level: float,
    bits: int,
    grid: Grid = "uniform",
    granularity: Granularity = "tensor",
    rounding: Rounding = "nearest",
) -> LayerPlan:
    """Single weights cut, and what stays in few bits."""
    sparsity = Sparsity("unstructured", level, "hessian") if level else None
    return LayerPlan(sparsity, None, Format(bits, grid=grid, granularity=granularity, rounding=rounding))


def lenet300(_: Bench) -> Plan:
    return Plan({"fc1": cut(0.965, 2, "codebook"), "fc2": cut(0.9, 2, "codebook"), "fc3": cut(0.5, 4)})


def lenet5(_: Bench) -> Plan:
    return Plan(
        {
            "conv1": cut(0.5, 4),
            "conv2": cut(0.9, 3, "codebook"),
            "fc1": cut(0.987, 2, "codebook"),
            "fc2": cut(0.8, 3, "codebook"),
        }
    )


#: What ``allocation.py`` found for 59,400 bytes of weights: bits of a codebook, and the share cut; 0 bits for ternary.
RESNET20: Mapping[str, tuple[int, float]] = {
    "layer1.0.conv1": (2, 0.0),
    "layer1.0.conv2": (3, 0.6),
    "layer1.1.conv1": (2, 0.3),
    "layer1.1.conv2": (2, 0.0),
    "layer1.2.conv1": (3, 0.4),
    "layer1.2.conv2": (3, 0.66),
    "layer2.0.conv1": (3, 0.4),
    "layer2.0.conv2": (2, 0.0),
    "layer2.1.conv1": (2, 0.0),
    "layer2.1.conv2": (2, 0.61),
    "layer2.2.conv1": (2, 0.0),
    "layer2.2.conv2": (2, 0.0),
    "layer3.0.conv1": (2, 0.0),
    "layer3.0.conv2": (0, 0.0),
    "layer3.1.conv1": (2, 0.61),
    "layer3.1.conv2": (0, 0.0),
    "layer3.2.conv1": (2, 0.66),
    "layer3.2.conv2": (2, 0.75),
}


def low_bits(bits: int, level: float) -> LayerPlan:
    """Some weights cut by second order, and the others in few bits, rounded by it; no bits stand for ternary."""
    return cut(level, bits or 2, "codebook" if bits else "ternary", "channel", "gptq")


def resnet20(bench: Bench) -> Plan:
    first, *inner, last = (layer.name for layer in bench.prepared.inventory.layers)
    whole = {first: cut(0.0, 6, granularity="channel"), last: cut(0.0, 4, granularity="channel")}
    return Plan(whole | {name: low_bits(*RESNET20[name]) for name in inner})


SMALL: Mapping[str, Made] = {
    "mnist-lenet300": Made(lenet300, Recovery(40, gradual=True)),
    "mnist-lenet5": Made(lenet5, Recovery(30, gradual=True)),
    "cifar10-resnet20": Made(resnet20, Recovery(30, bfloat16=True)),
}


def small(task: str, seeds: Sequence[int], data: Path | None) -> None:
    """A row for every seed, each on disk when the next begins, and their mean."""
    folder = REFERENCE / "compression_small"
    bench = Bench.of(task, data)
    made = SMALL[task]
    compressed = bench.compress(made.plan(bench))
    before = bench.searched(compressed)
    for seed in seeds:
        path = folder / f"{task}-{seed}.csv"
        if path.is_file():
            continue
        began = time.monotonic()
        result = bench.recovered(compressed, replace(made.recovery, seed=seed))
        file = export_onnx(result, packed=True)
        score = bench.tested(file)
        drop, low, high = drop_interval(bench.task.metric, bench.score, score)
        row = Small(
            task,
            seed,
            made.recovery.epochs,
            bench.file_bytes,
            len(file),
            bench.file_bytes / len(file),
            bench.score.value,
            score.value,
            drop,
            low,
            high,
            bench.task.metric.drop(bench.search, before),
            bench.task.metric.drop(bench.search, bench.searched(result)),
            time.monotonic() - began,
        )
        folder.mkdir(exist_ok=True)
        write_table(path, [asdict(row)])
        print(row, flush=True)


def small_summary() -> None:
    """The mean over seeds of every network that has all of them."""
    rows = []
    for task in SMALL:
        found = [row for seed in SEEDS for row in read_rows(REFERENCE / "compression_small" / f"{task}-{seed}.csv")]
        if len(found) < len(SEEDS):
            continue
        means = {
            field.name: round(statistics.mean(float(row[field.name]) for row in found), 3)
            for field in fields(Small)
            if field.name not in {"task", "seed"}
        }
        rows.append({"task": task, "seeds": len(found)} | means)
    if rows:
        write_table(REFERENCE / "compression_small.csv", rows)


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


#: Levels of sparsity, of channels left out, shares of the largest rank that saves, and widths.
SPARSE, CHANNELS, RANKED, WIDTHS = (0.5, 0.75, 0.9), (0.125, 0.25, 0.5), (0.75, 0.5, 0.25), (4, 3, 2)
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
        for level in SPARSE:
            asked = LayerPlan(Sparsity("block", level, saliency))
            yield f"blocks of four by {saliency}", f"{level:.0%}", plan(same(asked))
        for level in SPARSE:
            whole = global_plan(bench.prepared, bench.solver, level, saliency=saliency)
            yield f"unstructured by {saliency}, one threshold for all layers", f"{level:.0%}", whole
        for level in CHANNELS:
            cut_groups = {
                name: LayerPlan(Sparsity("channel", level, saliency))
                for group in inventory.groups
                if group.prunable and group.pattern == "channel"
                for name in group.producers
            }
            yield f"channels by {saliency}", f"{100 * level:g}%", Plan(cut_groups)
    for count in (1, 2, 3):
        if len(inventory.blocks) > count:
            last = tuple(block.name for block in inventory.blocks[-count:])
            yield "residual blocks left out", f"the last {count}", Plan(dropped_blocks=last)
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
    """A row for every method and level: goes on where it stopped. Files are timed at the end, all in one measurement."""
    path = REFERENCE / f"compression_methods_{bench.task.name}.csv"
    done = {(row["method"], row["level"]): row for row in read_rows(path)}
    for method, level, plan in methods(bench):
        if (method, level) in done:
            continue
        began = time.monotonic()
        compressed = bench.compress(plan)
        before = bench.tested(export_onnx(compressed, packed=True))
        recovered = bench.recovered(compressed, Recovery(1, bfloat16=True), RECOVERED_BATCHES)
        file = export_onnx(recovered, packed=True)
        after = bench.tested(file)
        kept = file_path(bench.task.name, method, level)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(file)
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
            None,
        )
        done[method, level] = {key: "" if value is None else str(value) for key, value in asdict(row).items()}
        write_table(path, list(done.values()))
        print(row, f"{time.monotonic() - began:.0f} s", flush=True)


def time_table(bench: Bench) -> None:
    """Fill in what the table's files take on onnxruntime, one thread, batch 1; nothing else should run meanwhile."""
    path = REFERENCE / f"compression_methods_{bench.task.name}.csv"
    rows = read_rows(path)
    runs = cpu_runtime("onnxruntime")
    inputs = [tensor[:1].numpy() for tensor in bench.prepared.example.inputs]
    files = {number: file_path(bench.task.name, row["method"], row["level"]) for number, row in enumerate(rows)}
    candidates = {
        str(number): partial(loaded_run, runs, file.read_bytes(), 1, inputs)
        for number, file in files.items()
        if file.is_file()
    }
    for number, timing in measure(candidates, reference=reference_run(runs, 1)).items():
        rows[int(number)]["latency_ms"] = str(round(timing.latency_ms, 4)) if timing.settled else ""
    write_table(path, rows)


def file_path(task: str, method: str, level: str) -> Path:
    name = re.sub(r"[^a-z0-9]+", "-", f"{method} {level}".lower())
    return WORK / task / f"{name}.onnx"


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
    parser.add_argument("what", choices=("small", "methods", "times", "packed"))
    parser.add_argument("--task", default="cifar10-resnet20")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="for small")
    parser.add_argument("--data", type=Path, default=None)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.what == "small":
        small(asked.task, asked.seeds, asked.data)
        small_summary()
    elif asked.what == "methods":
        table(Bench.of(asked.task, asked.data))
    elif asked.what == "times":
        time_table(Bench.of(asked.task, asked.data))
    else:
        packed()


if __name__ == "__main__":
    main()
