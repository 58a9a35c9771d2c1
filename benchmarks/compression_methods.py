"""What each method of compression is worth: a row for every method at three levels, on every layer but the first and last.

    python benchmarks/compression_methods.py table [--task NAME] [--jobs N] [--data FOLDER]
    python benchmarks/compression_methods.py times [--task NAME] [--data FOLDER]   what the files of those rows take

Every figure is of an exported file: its accuracy on the test split before and after a short recovery, its bytes. Rows that
are there already are not worked out again: delete them to have them anew.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from compression_bench import REFERENCE, WORK, Bench, read_rows
from tables import write_table

from autocomp.compress.levels import global_sparsity
from autocomp.compress.recipe import Recovery
from autocomp.export.to_onnx import export_onnx
from autocomp.hardware.runtimes.runtime import cpu_runtime, loaded_run, reference_run
from autocomp.hardware.timing import measure
from autocomp.inventory import LayerInfo
from autocomp.plan import (
    N_OF_M,
    Adjustment,
    Format,
    Granularity,
    LayerPlan,
    Plan,
    Rank,
    RankMethod,
    Rounding,
    Saliency,
    Sparsity,
)


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


def one_threshold(bench: Bench, together: Sparsity) -> Plan:
    levels = global_sparsity(bench.prepared, bench.solver, together)
    return Plan({name: LayerPlan(one) for name, one in levels.items()})


def methods(bench: Bench) -> Iterator[tuple[str, str, Callable[[], Plan]]]:
    """Method, level, and what makes the plan: some look at all layers' weights for it."""
    inventory = bench.prepared.inventory
    inner = inventory.layers[1:-1] if len(inventory.layers) > 3 else inventory.layers

    def plan(choice: Callable[[LayerInfo], LayerPlan | None], adjustments: tuple[Adjustment, ...] = ()) -> Plan:
        chosen = {layer.name: choice(layer) for layer in inner}
        return Plan({name: one for name, one in chosen.items() if one is not None}, adjustments=adjustments)

    for saliency in get_args(Saliency):
        for level in SPARSE:
            asked = LayerPlan(Sparsity("unstructured", level, saliency))
            yield f"unstructured by {saliency}", f"{level:.0%}", partial(plan, same(asked))
        for pattern, (n, m) in N_OF_M.items():
            asked = LayerPlan(Sparsity(pattern, 1 - n / m, saliency))  # type: ignore[arg-type]
            yield f"n:m by {saliency}", pattern, partial(plan, same(asked))
        for level in SPARSE:
            asked = LayerPlan(Sparsity("block", level, saliency))
            yield f"blocks of four by {saliency}", f"{level:.0%}", partial(plan, same(asked))
        for level in SPARSE:
            together = partial(one_threshold, bench, Sparsity("unstructured", level, saliency))
            yield f"unstructured by {saliency}, one threshold for all layers", f"{level:.0%}", together
        for level in CHANNELS:
            cut_groups = {
                name: LayerPlan(Sparsity("channel", level, saliency))
                for group in inventory.groups
                if group.prunable and group.pattern == "channel"
                for name in group.producers
            }
            yield f"channels by {saliency}", f"{100 * level:g}%", partial(Plan, cut_groups)
    for count in (1, 2, 3):
        if len(inventory.blocks) > count:
            last = tuple(block.name for block in inventory.blocks[-count:])
            yield "residual blocks left out", f"the last {count}", partial(Plan, dropped_blocks=last)
    for method in get_args(RankMethod):
        for share in RANKED:
            yield (
                f"rank by {method}",
                f"{share:.0%} of the largest",
                partial(plan, partial(ranked, method, share)),
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
            yield name, f"{bits} bits", partial(plan, same(asked))
    for one in get_args(Rounding):
        yield (
            f"ternary, {one}",
            "2 bits",
            partial(plan, same(LayerPlan(format=Format(2, grid="ternary", rounding=one)))),
        )
    yield "binary", "1 bit", partial(plan, same(LayerPlan(format=Format(1))))
    for adjustment in get_args(Adjustment):
        # Norms bring back the spreads of channels that have steps of their own.
        granularity: Granularity = "channel" if adjustment == "norms" else "tensor"
        for bits in WIDTHS:
            asked = LayerPlan(format=Format(bits, granularity=granularity))
            yield (
                f"one step for the {granularity}, {adjustment}",
                f"{bits} bits",
                partial(plan, same(asked), (adjustment,)),
            )


def table(task: str, data: Path | None, device: str, jobs: int) -> None:
    """A row for every method and level: goes on where it stopped. Files are timed at the end, all in one measurement."""
    path = REFERENCE / f"compression_methods_{task}.csv"
    done = {(row["method"], row["level"]): row for row in read_rows(path)}
    asked = [(method, level) for method, level, _ in methods(Bench.of(task, data, device))]
    # Processes that are begun afresh: one that was forked may not use a GPU.
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, fresh, initializer=begin_worker, initargs=(task, data, device)) as pool:
        coming = [pool.submit(level_of, *one) for one in asked if one not in done]
        for finished in as_completed(coming):
            row = finished.result()
            done[row.method, row.level] = {k: "" if v is None else str(v) for k, v in asdict(row).items()}
            write_table(path, [done[one] for one in asked if one in done])
            print(row, flush=True)


def begin_worker(task: str, data: Path | None, device: str) -> None:
    torch.set_num_threads(1)
    worker_bench.append(Bench.of(task, data, device))


#: What a process that works out rows has made ready.
worker_bench: list[Bench] = []


def level_of(method: str, level: str) -> Level:
    """One row; its file is left where :func:`file_path` says."""
    bench = worker_bench[0]
    make = next(make for *names, make in methods(bench) if names == [method, level])
    compressed = bench.compress(make())
    before = bench.tested(export_onnx(compressed, packed=True))
    recovered = bench.recovered(compressed, Recovery(1, bfloat16=True), RECOVERED_BATCHES).compressed
    file = export_onnx(recovered, packed=True)
    after = bench.tested(file)
    kept = file_path(bench.task.name, method, level)
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(file)
    return Level(
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("table", "times"))
    parser.add_argument("--task", default="cifar10-resnet20")
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="that networks are trained on")
    parser.add_argument("--jobs", type=int, default=1, help="rows at a time")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.what == "table":
        table(asked.task, asked.data, asked.device, asked.jobs)
    else:
        time_table(Bench.of(asked.task, asked.data))


if __name__ == "__main__":
    main()
