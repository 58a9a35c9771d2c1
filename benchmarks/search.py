"""How much of the front samplers find with how many evaluations.

    python benchmarks/search.py volumes --task cifar10-resnet20 --target cpu --trials 60 --data ../shared/data

Every sampler searches the same space with the same evaluator; an evaluation is kept under results/search/ by the plan's hash
and never made twice. What counts is the dominated hypervolume of drop × latency × size, with the reference point at a fifth
of the untouched network's metric, and its latency and size. Tables and plots go to results/reference/search_volumes_*. The
guided sampler's sensitivities are measured once, and timed; their seconds are in the table.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import optuna
from tables import write_table

from autocomp.hardware.resolve import resolve_target
from autocomp.plan import Plan
from autocomp.run import Request, RunFolder
from autocomp.search import flow
from autocomp.search.evaluate import Workbench
from autocomp.search.hypervolume import hypervolume
from autocomp.search.landscape import Landscape
from autocomp.search.sampler import SamplerName
from autocomp.search.sensitivity import sensitivities
from autocomp.search.study import Ledger, RunStudy, read_trials, run_trials
from autocomp.task import Score, Task
from autocomp.tasks.load import load_task
from autocomp.trial import Cost, Trial

REFERENCE, WORK = Path("results/reference"), Path("results/search")
SAMPLERS: tuple[SamplerName, ...] = ("auto", "nsga2", "tpe", "random", "uniform")
#: Evaluations after which volumes are told.
MARKS = (5, 10, 20, 40, 60, 100, 200, 400, 1000)
#: The drop that is as bad as no plan, as a share of the untouched network's metric.
WORST_DROP = 0.2


@dataclass
class Remembering:
    """Stands for a workbench: what was scored once is not scored again. ``scored`` counts what was."""

    bench: Workbench
    path: Path
    known: dict[str, float] = field(default_factory=dict)
    scored: int = 0

    def __post_init__(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                self.known.update(json.loads(line))

    @property
    def task(self) -> Task:
        return self.bench.task

    def cost(self, plan: Plan) -> Cost:
        return self.bench.cost(plan)

    def score(self, plan: Plan) -> Score:
        if plan.hash not in self.known:
            self.known[plan.hash] = self.bench.score(plan).value
            self.scored += 1
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({plan.hash: self.known[plan.hash]}) + "\n")
        return Score(self.known[plan.hash])


def volumes(trials: Sequence[Trial], setup: flow.Setup) -> list[float]:
    """After each trial, the volume of it and all before."""
    (first, *_) = trials
    assert first.cost is not None
    metric, worst = setup.bench.task.metric, WORST_DROP * abs(setup.baseline.value)
    points: list[tuple[float, float, float]] = []
    found = []
    for trial in trials:
        if trial.metric is not None and trial.cost is not None:
            drop = metric.drop(setup.baseline.value, trial.metric) / worst
            points.append(
                (drop, trial.cost.latency_ms / first.cost.latency_ms, trial.cost.size_bytes / first.cost.size_bytes)
            )
        found.append(hypervolume(points))
    return found


def searched(
    sampler: SamplerName, trials: int, seed: int, setup: flow.Setup, bench: Remembering, landscape: Landscape
) -> tuple[Trial, ...]:
    request = Request(setup.request.task, setup.request.target, "default", sampler, "onnx", 1, 1, seed, trials)
    study = optuna.create_study(directions=[setup.bench.task.metric.direction, "minimize", "minimize"])
    ledger = Ledger(RunStudy(study), setup.space, request, setup.bench.task.metric, setup.baseline.value, landscape)

    def told(trial: Trial, _: Sequence[Trial]) -> None:
        if trial.number % 20 == 19:
            print(f"{sampler}, seed {seed}: {trial.number + 1} trials, {bench.scored} new evaluations", flush=True)

    run_trials(ledger, cast("Workbench", bench), None, told)
    return read_trials(study, seed)


def draw(lines: dict[str, list[list[float]]], path: Path, title: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, runs in lines.items():
        for number, run in enumerate(runs):
            axes.plot(
                range(1, len(run) + 1), run, label=name if number == 0 else None, color=f"C{list(lines).index(name)}"
            )
    axes.set(xscale="log", xlabel="evaluations", ylabel="dominated hypervolume", title=title)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def tell(done: int, of: int, what: str) -> None:
    print(f"{what}: {done} of {of}", flush=True)


def compare(task: str, target: str, trials: int, seeds: int, data: Path, samplers: Sequence[SamplerName]) -> None:
    loaded = load_task(task, data=data)
    found = resolve_target(target)
    request = Request(task, found.name, "default", "auto", found.artifact, found.threads, found.batch, 0, trials)
    setup = flow.set_up(request, loaded, found)
    name = f"{task}-{found.name}"
    bench = Remembering(setup.bench, WORK / f"{name}-{found.profile_hash}.jsonl")
    folder = RunFolder(WORK / f"{name}-{found.profile_hash}")
    began = time.monotonic()
    with folder.working():
        table = sensitivities(setup.bench, setup.space, folder, None, tell)
    pass_s = time.monotonic() - began  # of what is not kept from an earlier run
    lines: dict[str, list[list[float]]] = {}
    rows = []
    for sampler in samplers:
        for seed in range(seeds):
            # A landscape of its own: what it remembers would be time that others spent.
            landscape = Landscape(setup.space, table, setup.bench.cost)
            count = min(trials, 40) if sampler == "uniform" else trials
            reached = volumes(searched(sampler, count, seed, setup, bench, landscape), setup)
            lines.setdefault(sampler, []).append(reached)
            row: dict[str, object] = {"task": task, "target": found.name, "sampler": sampler, "seed": seed}
            row |= {f"after_{mark}": round(reached[mark - 1], 4) if mark <= len(reached) else "" for mark in MARKS}
            rows.append(row | {"sensitivity_pass_s": round(pass_s, 1) if sampler == "auto" else ""})
            print(rows[-1], flush=True)
    write_table(REFERENCE / f"search_volumes_{name}.csv", rows)
    draw(lines, REFERENCE / f"search_volumes_{name}.png", f"{task} on {found.name}, seed by seed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["volumes"])
    parser.add_argument("--task", default="cifar10-resnet20")
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--data", type=Path, required=True)
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    compare(given.task, given.target, given.trials, given.seeds, given.data, given.samplers)


if __name__ == "__main__":
    main()
