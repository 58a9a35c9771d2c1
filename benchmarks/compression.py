"""Real networks made as small as they go.

    python benchmarks/compression.py small [--task NAME] [--seeds 0 1 2] [--data FOLDER]
    python benchmarks/compression.py train [--task NAME] [--seeds 0 1 2] [--data FOLDER] --device cuda   its first half

Every figure is of an exported file: all of its bytes, its accuracy on the test split with the paired 95 % interval of
the drop from the uncompressed network's own file. Plans and recipes were chosen on the search split alone. A figure is
the mean of three seeds. Rows that are there already are not worked out again: delete them to have them anew.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
from compression_bench import REFERENCE, WORK, Bench, read_rows
from tables import write_table

from autocomp.compress.apply import Compressed
from autocomp.compress.recipe import Recovery
from autocomp.compress.recovered import with_weights
from autocomp.export.to_onnx import export_onnx
from autocomp.plan import Format, Granularity, Grid, LayerPlan, Plan, Rounding, Sparsity
from autocomp.search.drop import drop_interval

SEEDS = (0, 1, 2)


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
    device: str
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


#: What ``allocation.py`` found for 60,600 bytes of weights: bits of a codebook, and the share cut; 0 bits for ternary.
RESNET20: Mapping[str, tuple[int, float]] = {
    "layer1.0.conv1": (2, 0.0),
    "layer1.0.conv2": (3, 0.6),
    "layer1.1.conv1": (2, 0.3),
    "layer1.1.conv2": (3, 0.4),
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
    "layer3.2.conv1": (2, 0.56),
    "layer3.2.conv2": (2, 0.7),
}


def low_bits(bits: int, level: float) -> LayerPlan:
    """Some weights cut by second order, and the others in few bits, rounded by it; no bits stand for ternary."""
    return cut(level, bits or 2, "codebook" if bits else "ternary", "channel", "gptq")


def resnet20(bench: Bench) -> Plan:
    first, *inner, last = (layer.name for layer in bench.prepared.inventory.layers)
    whole = {first: cut(0.0, 8, granularity="channel"), last: cut(0.0, 4, granularity="channel")}
    return Plan(whole | {name: low_bits(*RESNET20[name]) for name in inner})


SMALL: Mapping[str, Made] = {
    "mnist-lenet300": Made(lenet300, Recovery(40, gradual=True, rate=0.01)),
    "mnist-lenet5": Made(lenet5, Recovery(30, gradual=True, rate=0.01)),
    "cifar10-resnet20": Made(resnet20, Recovery(65, rate=0.0015, bfloat16=True)),
}


def trained(bench: Bench, compressed: Compressed, made: Made, seed: int) -> dict[str, object]:
    """The weights that recovery finds, with the device and the seconds: kept in a file, so that a machine with a GPU may
    train what another one exports and scores."""
    path = WORK / "small" / f"{bench.task.name}-{seed}.pt"
    if not path.is_file():
        began = time.monotonic()
        found = bench.recovered(compressed, replace(made.recovery, seed=seed))
        path.parent.mkdir(parents=True, exist_ok=True)
        facts = {"plan": compressed.plan.hash, "epochs": made.recovery.epochs, "seconds": time.monotonic() - began}
        name = torch.cuda.get_device_name() if bench.device == "cuda" else "cpu"
        torch.save({"weights": dict(found.weights), "device": name} | facts, path)
    kept: dict[str, object] = torch.load(path, weights_only=True)
    if (kept["plan"], kept["epochs"]) != (compressed.plan.hash, made.recovery.epochs):
        raise SystemExit(f"{path} is of another plan or recipe; delete it to train anew")
    return kept


def train(task: str, seeds: Sequence[int], data: Path | None, device: str) -> None:
    """The first half of ``small``, which a GPU can do."""
    bench = Bench.of(task, data, device)
    compressed = bench.compress(SMALL[task].plan(bench))
    for seed in seeds:
        trained(bench, compressed, SMALL[task], seed)


def small(task: str, seeds: Sequence[int], data: Path | None, device: str) -> None:
    """A row for every seed, each on disk when the next begins, and their mean."""
    folder = REFERENCE / "compression_small"
    bench = Bench.of(task, data, device)
    made = SMALL[task]
    compressed = bench.compress(made.plan(bench))
    before = bench.searched(compressed)
    for seed in seeds:
        path = folder / f"{task}-{seed}.csv"
        if path.is_file():
            continue
        kept = trained(bench, compressed, made, seed)
        result = with_weights(compressed, kept["weights"])  # type: ignore[arg-type]
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
            str(kept["device"]),
            float(str(kept["seconds"])),
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
            if field.name not in {"task", "seed", "device"}
        }
        rows.append({"task": task, "seeds": len(found)} | means)
    if rows:
        write_table(REFERENCE / "compression_small.csv", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("small", "train"))
    parser.add_argument("--task", default="cifar10-resnet20")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="that networks are trained on")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.what == "train":
        train(asked.task, asked.seeds, asked.data, asked.device)
    else:
        small(asked.task, asked.seeds, asked.data, asked.device)
        small_summary()


if __name__ == "__main__":
    main()
