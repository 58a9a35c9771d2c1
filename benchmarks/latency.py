"""How well latency is predicted for compressed networks of architectures that no calibration has seen.

    python benchmarks/latency.py write                      random plans of seven architectures, as files
    python benchmarks/latency.py compile                    other plans of theirs, as the runtimes compile them
    python benchmarks/latency.py time SITTING [CONFIG ...]  their latencies; two sittings at least ten minutes apart
    python benchmarks/latency.py score                      predictions held against them
    python benchmarks/latency.py lowering                   kernels foreseen for plans held against the compiled graphs
    python benchmarks/latency.py memory                     memory foreseen for two files of every architecture, and measured
    python benchmarks/latency.py speed                      how long a prediction takes
    python benchmarks/latency.py chosen RUN ...             what searches chose: foreseen, and measured when they ended

A CONFIG is a runtime, threads and batch, like onnxruntime-t1b1. What is written lies under results/latency/; the tables
and the plots go to results/reference/latency_*. Truth is the mean of both sittings, where they agree within 3 %; files
that do not are counted, and scored apart. All of it twice: as it was timed; and at one pace, every latency in the
proportion in which the reference workload beside it took longer than in the calibration. Beside the model stand what
other tools go by: MACs and bit operations (with the one factor that suits these files best), and the plain sum of a
file's own profiled kernels.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from latency_files import (
    ARCHITECTURES,
    RUNTIMES,
    TARGETS,
    WORK,
    Written,
    compile_plans,
    files,
    images,
    put_right,
    random_plan,
    warm_files,
    write,
)
from tables import rows_there, write_table

from autocomp.compress.prepare import prepare
from autocomp.compress.structure import Structure, restructure
from autocomp.hardware.fingerprint import this_machine
from autocomp.hardware.fitted import FittedModel
from autocomp.hardware.followed import CompiledPlan, Lower, followed
from autocomp.hardware.footprint import footprint_bytes
from autocomp.hardware.kernels import Kernel
from autocomp.hardware.latency import Prediction
from autocomp.hardware.memory import MeasuredMemory, MemoryModel, table_bytes
from autocomp.hardware.resolve import resolve_target
from autocomp.hardware.runtimes.runtime import cpu_runtime, loaded_run, reference_run
from autocomp.hardware.target import Target
from autocomp.hardware.timed_files import RUNS, footprints
from autocomp.hardware.timing import Timing, TimingSettings, measure, timing_words
from autocomp.hardware.warm import MeasuredFile, WarmModel
from autocomp.hardware.warm_memory import WarmMemory
from autocomp.search.warm_start import MEMORY_FILES
from autocomp.tasks.cifar10 import ResNet

REFERENCE = Path(__file__).resolve().parents[1] / "results" / "reference"

PLANS = 30
#: Plans of an architecture that are timed where not :data:`ALL_PLANS`.
FEWER_PLANS = 10
#: The configuration in which every plan is timed.
ALL_PLANS = "onnxruntime-t1b1"
#: A sitting goes over all files so many times: the machine drifts by a percent or two from one minute to the next.
PASSES = 2
BATCHES = (1, 8)
CONFIGS = {
    f"{runtime}-t{threads}b{batch}": (runtime, threads, batch)
    for runtime in RUNTIMES
    for batch in BATCHES
    for threads in (1, 2)
}
#: Two sittings agree where they differ by less than this.
AGREEMENT = 0.03
#: Of a sitting's rows: configuration, architecture, file, the fields of its timing, when.
SETTLED_COLUMN, REFERENCE_COLUMN = (
    3 + [field.name for field in fields(Timing)].index(name) for name in ("settled", "reference_ms")
)
#: The files of a network are foreseen in so many turns by a model that was corrected with the others, 30 at most.
WARM_TURNS, WARM_FILES = 5, 30
#: Plans that are foreseen before the clock counts, and that it counts.
SPEED_PLANS = 60
#: Runs of a file under the profiler.
PROFILE_RUNS = 40
#: Files of many weights feel every neighbour in the shared cache: only quiet moments count.
SETTINGS = TimingSettings(repeats=20, max_rounds=15, reference_tolerance=0.03, patience_s=20.0)


def time_files(sitting: int, configs: Sequence[str], names: Sequence[str]) -> None:
    path = WORK / f"sitting-{sitting}.csv"
    for config, number in itertools.product(configs, range(PASSES)):
        runtime, threads, batch = CONFIGS[config]
        runs = cpu_runtime(runtime)
        for name in names:
            candidates = {
                one.name: partial(
                    loaded_run, runs, one.path, threads, [np.repeat(x, batch, axis=0) for x in one.inputs]
                )
                for one in itertools.islice(files([name], runtime), None if config == ALL_PLANS else FEWER_PLANS)
            }
            reference = reference_run(runs, threads)
            timings = measure(candidates, SETTINGS, reference=reference, quiet_ms=quiet_ms(config))
            with path.open("a", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, lineterminator="\n")
                for label, timing in timings.items():
                    row = asdict(timing)
                    writer.writerow([config, name, label, *row.values(), round(time.time())])
            print(config, f"pass {number + 1}", name, timing_words(timings), flush=True)


def quiet_ms(config: str) -> float:
    """The least that the reference took beside any file so far."""
    rows = (row for path in WORK.glob("sitting-*.csv") for row in csv.reader(path.read_text().splitlines()))
    return min((float(row[REFERENCE_COLUMN]) for row in rows if row[0] == config), default=math.inf)


@dataclass(frozen=True)
class Truth:
    """What a file was measured to take in both sittings (ms)."""

    first_ms: float
    second_ms: float

    @property
    def agrees(self) -> bool:
        return abs(self.first_ms / self.second_ms - 1) <= AGREEMENT

    @property
    def latency_ms(self) -> float:
        return (self.first_ms + self.second_ms) / 2


def _middle_ms(passes: Sequence[tuple[bool, float]]) -> float:
    settled = [latency_ms for each_settled, latency_ms in passes if each_settled]
    return statistics.median(settled or [latency_ms for _, latency_ms in passes])


@dataclass(frozen=True)
class Line:
    """How one way of predicting did on the files of one configuration; ``pace``: whether times are as they were."""

    config: str
    pace: str
    files: str
    excluded_share: float
    method: str
    count: int
    within_5: float
    within_10: float
    mean_error: float
    signed_error: float
    spearman: float


def truths(config: str, reference_ms: float | None) -> Mapping[str, Truth]:
    """File → its latencies: the median of a sitting's passes, of those that settled where one did; as they would be where
    the reference workload takes so long, if that is said."""
    sittings = []
    for sitting in (1, 2):
        passes: dict[str, list[tuple[bool, float]]] = {}
        with (WORK / f"sitting-{sitting}.csv").open(encoding="utf-8") as file:
            for row in csv.reader(file):
                if row[0] == config:
                    slower = 1.0 if reference_ms is None else float(row[REFERENCE_COLUMN]) / reference_ms
                    passes.setdefault(row[2], []).append((row[SETTLED_COLUMN] == "True", float(row[3]) / slower))
        sittings.append({name: _middle_ms(found) for name, found in passes.items()})
    return {name: Truth(sittings[0][name], sittings[1][name]) for name in sittings[0] if name in sittings[1]}


def line(
    config: str,
    pace: str,
    which: str,
    excluded: float,
    method: str,
    predicted: Sequence[float],
    true: Sequence[float],
) -> Line:
    from scipy.stats import spearmanr

    errors = np.array(predicted) / np.array(true) - 1
    return Line(
        config,
        pace,
        which,
        round(excluded, 3),
        method,
        len(errors),
        round(float((np.abs(errors) <= 0.05).mean()), 4),
        round(float((np.abs(errors) <= 0.10).mean()), 4),
        round(float(np.abs(errors).mean()), 4),
        round(float(errors.mean()), 4),
        round(float(spearmanr(predicted, true).statistic), 4),
    )


def vectors() -> str:
    """What this machine multiplies with: tables of different machines lie side by side."""
    features = this_machine("onnxruntime").features
    return next((name for name in ("amx_int8", "avx512_vnni", "avx512f", "avx2") if name in features), "other")


def bit_operations(structure: Structure) -> float:
    """Multiplications, each times the bits of both factors."""
    total = 0.0
    for node in structure.graph.layers:
        chosen = structure.layers[node.layer or ""].format
        eight = chosen is not None and chosen.integer_activations
        total += node.macs * (8 * 8 if eight else 32 * 32)
    return total


def scaled(values: Sequence[float], true: Sequence[float], method: str) -> list[float]:
    """A quantity that is no time, given the one factor that suits these files best; milliseconds as they are."""
    if method not in {"MACs", "bit operations"}:
        return list(values)
    factor = float(np.median(np.array(true) / np.array(values)))
    return [factor * value for value in values]


def score(names: Sequence[str], configs: Sequence[str]) -> None:
    lines: list[Line] = []
    for config in configs:
        runtime, threads, batch = CONFIGS[config]
        target = resolve_target(TARGETS[runtime], threads, batch, tell=print)
        written = [one for one in files(names, runtime) if one.name in truths(config, None)]
        foreseen = foreseen_by(written, target)
        assert isinstance(target.model, FittedModel)
        paces: dict[str, float | None] = {"as timed": None}
        if target.model.reference_us is not None:
            paces["at one pace"] = target.model.reference_us / 1e3
        for pace, reference_ms in paces.items():
            known = truths(config, reference_ms)
            methods = foreseen | {
                "warm": {name: found.latency_ms for name, found in warmed(written, target, known).items()}
            }
            judged = [one for one in written if known[one.name].agrees]
            excluded = 1 - len(judged) / len(written)
            print(f"{config}, {pace}: {excluded:.1%} of {len(written)} files excluded, whose sittings differ")
            groups = {"judged": judged, "all": written}
            groups |= {name: [one for one in judged if one.architecture == name] for name in names}
            for which, group in groups.items():
                if len(group) > 2:
                    true = [known[one.name].latency_ms for one in group]
                    for method, found in methods.items():
                        given = scaled([found[one.name] for one in group], true, method)
                        lines.append(line(config, pace, which, excluded, method, given, true))
                    first, second = (
                        [getattr(known[one.name], name) for one in group] for name in ("first_ms", "second_ms")
                    )
                    lines.append(line(config, pace, which, excluded, "first sitting, of the second", first, second))
            draw(f"{config}, {pace}", REFERENCE / f"latency_error_{vectors()}_{config}.png", judged, methods, known)
    for each in lines:
        print(each)
    merge_table(REFERENCE / f"latency_error_{vectors()}.csv", lines)


def merge_table(path: Path, lines: Sequence[Line]) -> None:
    """Put lines in the place of those of the same configurations."""
    rows = [asdict(each) for each in lines]
    renewed = {each.config for each in lines}
    known = [row for row in rows_there(path) if set(row) == set(rows[0]) and row["config"] not in renewed]
    write_table(path, sorted([*known, *rows], key=lambda row: str(row["config"])))


def foreseen_by(written: Sequence[Written], target: Target) -> dict[str, dict[str, float]]:
    """Method → file → its number: milliseconds, or what is to be brought to milliseconds by one factor."""
    runtime = cpu_runtime(target.runtime)
    sums = {}
    for one in written:
        inputs = [np.repeat(x, target.batch, axis=0) for x in one.inputs]
        samples = runtime.kernel_samples(one.path, inputs, target.threads, PROFILE_RUNS)
        sums[one.name] = sum(sample.time_us for sample in samples) / 1e3
    lower = {name: put_right(name, target) for name in dict.fromkeys(one.architecture for one in written)}
    predict = target.model.predict
    return {
        "cold": {one.name: predict(lower[one.architecture](one.structure)).latency_ms for one in written},
        "cold, by rules alone": {one.name: target.predict(one.structure).latency_ms for one in written},
        "kernel sums": sums,
        "MACs": {one.name: float(one.structure.macs) for one in written},
        "bit operations": {one.name: bit_operations(one.structure) for one in written},
    }


def warmed(written: Sequence[Written], target: Target, known: Mapping[str, Truth]) -> dict[str, Prediction]:
    """Predictions by models corrected with other files of the same network, as their first sitting has them."""
    found: dict[str, Prediction] = {}
    for name in dict.fromkeys(one.architecture for one in written):
        mine = [one for one in written if one.architecture == name]
        lower = put_right(name, target)
        for turn in range(WARM_TURNS):
            out = mine[turn::WARM_TURNS]
            others = [one for one in mine if one not in out][:WARM_FILES]
            seen = tuple(MeasuredFile(lower(one.structure), known[one.name].first_ms) for one in others)
            corrected = WarmModel(target.model, seen)
            found |= {one.name: corrected.predict(lower(one.structure)) for one in out}
    return found


def draw(
    title: str,
    path: Path,
    judged: Sequence[Written],
    methods: Mapping[str, Mapping[str, float]],
    known: Mapping[str, Truth],
) -> None:
    """Foreseen over measured, cold and warm, by architecture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 5), sharey=True)
    for axis, method in zip(axes, ("cold", "warm"), strict=True):
        for name in dict.fromkeys(one.architecture for one in judged):
            mine = [one for one in judged if one.architecture == name]
            true = np.array([known[one.name].latency_ms for one in mine])
            error = np.array([methods[method][one.name] for one in mine]) / true - 1
            axis.plot(true, 100 * error, ".", label=name)
        axis.axhspan(-10, 10, color="0.92", zorder=0)
        axis.axhspan(-5, 5, color="0.84", zorder=0)
        axis.set(xscale="log", xlabel="measured, ms", title=f"{title}, {method}", ylim=(-40, 40))
    axes[0].set_ylabel("foreseen − measured, %")
    axes[1].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


@dataclass(frozen=True)
class Foreseen:
    """How many of the kernels that a runtime compiles for an architecture's files were foreseen, every number of them
    right, how many were foreseen that it does not have, and in how many files all is right; ``by`` the rules alone, or put
    right by other plans' compiled graphs."""

    runtime: str
    architecture: str
    by: str
    files: int
    kernels: int
    foreseen: int
    too_many: int
    whole_files: int


def lowering(names: Sequence[str]) -> None:
    rows: list[Foreseen] = []
    for runtime, name in itertools.product(RUNTIMES, names):
        target = resolve_target(TARGETS[runtime], 1, 1, tell=print)
        ways: dict[str, Lower] = {"rules": target.lower, "compiled plans": put_right(name, target)}
        found = {by: Foreseen(runtime, name, by, 0, 0, 0, 0, 0) for by in ways}
        for one in files([name], runtime):
            samples = cpu_runtime(runtime).kernel_samples(one.path, [*one.inputs], threads=1, runs=RUNS)
            expected = facts(sample.kernel for sample in samples)
            for by, lower in ways.items():
                actual, row = facts(lower(one.structure)), found[by]
                found[by] = replace(
                    row,
                    files=row.files + 1,
                    kernels=row.kernels + expected.total(),
                    foreseen=row.foreseen + (expected & actual).total(),
                    too_many=row.too_many + (actual - expected).total(),
                    whole_files=row.whole_files + (expected == actual),
                )
        rows += found.values()
        print(*found.values(), sep="\n", flush=True)
    write_table(REFERENCE / f"latency_lowering_{vectors()}.csv", [asdict(row) for row in rows])


def facts(kernels: Iterable[Kernel]) -> Counter[Kernel]:
    """Kernels but for what they are called after, and for the footprint, which follows from all of them."""
    return Counter(replace(kernel, sources=(), footprint_bytes=0) for kernel in kernels)


def memory(names: Sequence[str]) -> None:
    """Two random plans of each architecture, before and after a warm start."""
    rows: list[dict[str, object]] = []
    for runtime, name in itertools.product(RUNTIMES, names):
        cold = resolve_target(TARGETS[runtime], 1, 1, tell=print)
        prepared, first = warm_files(name, cold, MEMORY_FILES)
        inputs = [x.numpy() for x in prepared.example.inputs]
        held = footprints(runtime, 1, inputs, dict(enumerate(file for _, file in first)))
        lower = put_right(name, cold)
        seen = [MeasuredMemory(lower(one), table_bytes(one), held[place]) for place, (one, _) in enumerate(first)]
        assert isinstance(cold.memory, MemoryModel)
        warm = replace(cold, lower=lower, memory=WarmMemory(cold.memory, tuple(seen)))
        for one in list(files([name], runtime))[1:3]:
            measured = footprint_bytes(runtime, one.path, one.inputs, threads=1)
            before, after = (each.peak_memory_bytes(one.structure, each.lower(one.structure)) for each in (cold, warm))
            rows.append(
                {
                    "runtime": runtime,
                    "file": one.name,
                    "file_bytes": one.path.stat().st_size,
                    "measured_bytes": measured,
                    "foreseen_bytes": before,
                    "error": round(before / measured - 1, 4),
                    "warm_bytes": after,
                    "warm_error": round(after / measured - 1, 4),
                }
            )
            print(rows[-1], flush=True)
    write_table(REFERENCE / f"latency_memory_{vectors()}.csv", rows)


def speed() -> None:
    """Of plans whose like was foreseen before, as in a search: the shapes of some kernels are new in each. Before and after a
    warm start, in whose files one kernel in ten is taken to be compiled otherwise than foreseen."""
    cold = resolve_target("cpu", tell=print)
    rows: list[dict[str, object]] = []
    for layers in (20, 200):
        torch.manual_seed(0)
        inventory = prepare(ResNet(layers).eval(), images(32)).inventory
        plans = [random_plan(inventory, f"speed/{number}") for number in range(2 * SPEED_PLANS)]
        foreseen = [cold.lower(restructure(inventory, plan, cold.numerics)) for plan in plans[:WARM_FILES]]
        compiled = [CompiledPlan(kernels, tuple(_every_tenth(kernels, "activation"))) for kernels in foreseen]
        seen = tuple(MeasuredFile(kernels, cold.model.predict(kernels).latency_ms) for kernels in foreseen)
        lower = followed(cold.lower, compiled, cold.model.covers)
        warm = replace(cold, lower=lower, model=WarmModel(cold.model, seen))
        for name, target in (("before a warm start", cold), ("after it", warm)):
            seconds = []
            for plan in plans:
                began = time.perf_counter()
                structure = restructure(inventory, plan, target.numerics)
                middle = time.perf_counter()
                target.predict(structure)
                seconds.append((middle - began, time.perf_counter() - middle))
            shape_s, latency_s = np.median(np.array(seconds[SPEED_PLANS:]), axis=0)
            rows.append(
                {
                    "layers": layers,
                    "target": name,
                    "plan_to_structure_ms": round(1e3 * float(shape_s), 3),
                    "structure_to_latency_ms": round(1e3 * float(latency_s), 3),
                }
            )
            print(rows[-1], flush=True)
    write_table(REFERENCE / f"latency_speed_{vectors()}.csv", rows)


def _every_tenth(kernels: Sequence[Kernel], op: str) -> Iterator[Kernel]:
    return (replace(kernel, op=op) if place % 10 == 3 else kernel for place, kernel in enumerate(kernels))


def chosen(runs: Sequence[Path]) -> None:
    """The compressed points of some runs' fronts; rows of other runs are kept."""
    table, names = REFERENCE / "latency_chosen.csv", {run.name for run in runs}
    rows = [row for row in rows_there(table) if row["run"] not in names]
    for run in runs:
        with (run / "front.csv").open(newline="", encoding="utf-8") as file:
            points = [row for row in csv.DictReader(file) if row["is_baseline"] == "false"]
        errors = []
        for point in points:
            foreseen, measured = float(point["latency_ms"]), float(point["measured_latency_ms"])
            errors.append(foreseen / measured - 1)
            rows.append(
                {
                    "run": run.name,
                    "trial": point["trial"],
                    "foreseen_ms": round(foreseen, 4),
                    "measured_ms": round(measured, 4),
                    "settled": point["measured_latency_settled"],
                    "error": round(errors[-1], 4),
                }
            )
        print(f"{run.name}: {len(errors)} points, mean signed error {statistics.mean(errors):+.2%}", flush=True)
    write_table(table, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("write", "compile", "time", "score", "lowering", "memory", "speed", "chosen"))
    parser.add_argument(
        "rest", nargs="*", help="for time: the sitting's number, and configurations; for chosen: run folders"
    )
    parser.add_argument("--architectures", nargs="*", default=list(ARCHITECTURES))
    parser.add_argument("--plans", type=int, default=PLANS)
    asked = parser.parse_args()
    if asked.what == "write":
        write(asked.architectures, asked.plans)
    elif asked.what == "compile":
        compile_plans(asked.architectures, RUNTIMES, BATCHES)
    elif asked.what == "time":
        time_files(int(asked.rest[0]), asked.rest[1:] or list(CONFIGS), asked.architectures)
    elif asked.what == "lowering":
        lowering(asked.architectures)
    elif asked.what == "memory":
        memory(asked.architectures)
    elif asked.what == "speed":
        speed()
    elif asked.what == "chosen":
        chosen([Path(run) for run in asked.rest])
    else:
        score(asked.architectures, asked.rest or list(CONFIGS))


if __name__ == "__main__":
    main()
