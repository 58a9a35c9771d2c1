"""How much of the front samplers find with how many evaluations.

    python benchmarks/search.py run --task cifar10-resnet20 --target cpu --sampler nsga2 --data ../shared/data
    python benchmarks/search.py volumes --task cifar10-resnet20 --target cpu --data ../shared/data

Every sampler searches the same space with the same evaluator: a plan's metric on two fifths of the search split (2,000
images), as it is without recovery, and the costs that the shipped profile predicts. Where a tenth of these images already
shows a drop of twice the reference point's, that is the metric: most plans of samplers that start from scratch are of that
kind, and add nothing wherever they are (the first 1,100 of ResNet-20 were scored on all of them all the same). What a plan
scored is kept by its hash (results/reference/search/, in a folder of the very weights: fine-tuning gives others on another
kind of CPU; with ATEN_CPU_CAPABILITY=avx2 and ONEDNN_MAX_CPU_ISA=AVX2 it gives those of AVX2 on AVX-512 as well, and the same
metrics) and never evaluated twice; what a run proposed is kept by its sampler and seed. So runs can be stopped, go on in
another sitting (their sampler is led through what it proposed before), and stand side by side: ``run`` adds to them,
``volumes`` makes the table and the plot of them as far as they got, without evaluating anything.

What counts is the dominated hypervolume of drop × latency × size, with the reference point at a fifth of the untouched
network's metric, and its latency and size. The best front known is everything that was ever evaluated; ``closed`` is the share
of the gap to it, from the whole additive front, that a sampler closed.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

import optuna
import torch
from optuna.samplers import RandomSampler
from search_rivals import BUDGETS, Rival, entry
from tables import write_table

from autocomp.hardware.profiles import find_profile
from autocomp.pareto import front, hypervolume
from autocomp.plan import Plan
from autocomp.run import Request, RunFolder
from autocomp.search import flow
from autocomp.search.begin import Setup, weights_hash
from autocomp.search.books import distributions
from autocomp.search.hypervolume import Point
from autocomp.search.landscape import Landscape
from autocomp.search.local_sensitivity import on_this_machine
from autocomp.search.sampler import StartingSampler
from autocomp.search.sensitivity import sensitivities
from autocomp.tasks.load import load_task

REFERENCE = Path("results/reference")
KEPT = REFERENCE / "search"
#: Evaluations after which volumes are told.
MARKS = (5, 10, 20, 50, 100, 150, 200, 500, 1000, 2000)
#: The part of the search split that plans are scored on, and the one before it that shows what is hopeless.
SHARE, GLANCE = 0.4, 0.04
#: The drop that is as bad as no plan, as a share of the untouched network's metric.
WORST_DROP = 0.2


@dataclass(frozen=True)
class Scored:
    """What came of a plan."""

    metric: float
    latency_ms: float
    size_bytes: int


@dataclass
class Evaluations:
    """What plans scored, in a file that several processes add to."""

    path: Path
    setup: Setup
    known: dict[str, Scored] = field(default_factory=dict)
    read: int = 0

    def of(self, plan: Plan) -> Scored:
        if plan.hash not in self.known:
            self.catch_up()
        if plan.hash not in self.known:
            cost = self.setup.bench.cost(plan)
            self._keep(plan.hash, Scored(self._metric(plan), cost.latency_ms, cost.size_bytes))
        return self.known[plan.hash]

    def _metric(self, plan: Plan) -> float:
        task, model = self.setup.bench.task, self.setup.bench.compress(plan).model
        with torch.no_grad():
            if plan != Plan():
                untouched, found = self.of(Plan()).metric, task.evaluate(model, "search", GLANCE).value
                if task.metric.drop(untouched, found) > 2 * WORST_DROP * abs(untouched):
                    return found
            return task.evaluate(model, "search", SHARE).value

    def catch_up(self) -> None:
        """Read what others have added meanwhile."""
        if self.path.is_file():
            with self.path.open(encoding="utf-8", newline="") as file:
                file.seek(self.read)
                for hash_, metric, latency_ms, size_bytes in csv.reader(iter(file.readline, "")):
                    self.known[hash_] = Scored(float(metric), float(latency_ms), int(size_bytes))
                self.read = file.tell()

    def _keep(self, plan_hash: str, scored: Scored) -> None:
        self.known[plan_hash] = scored
        with self.path.open("a", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(f"{plan_hash},{scored.metric!r},{scored.latency_ms!r},{scored.size_bytes}\n")


@dataclass(frozen=True)
class Contest:
    """One space and evaluator, and what the guided sampler and the additive front go by."""

    name: str
    setup: Setup
    evaluations: Evaluations
    errors: Mapping[str, Sequence[float]]

    def landscape(self) -> Landscape:
        return Landscape(self.setup.space, self.errors, self.setup.bench.cost)


def contest(task: str, target: str, data: Path) -> Contest:
    # The shipped profile, wherever this runs: costs are predictions, and sittings are on different machines.
    profile = find_profile(target)
    found = profile.target(profile.file.threads, profile.file.batch, None, reachable=False)
    # Files as they were written when the first plans were scored: predictions of others would not stand beside theirs.
    found = replace(found, numerics=replace(found.numerics, convolved_shortcuts=False))
    request = Request(task, found.name, "default", "auto", found.artifact, found.threads, found.batch, 0, 1)
    setup = flow.set_up(request, load_task(task, data=data), found)
    name = f"{task}-{found.name}"
    folder = RunFolder(KEPT / f"{name}-{weights_hash(setup.bench.prepared)[:8]}")
    folder.path.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    before = len(list(folder.events()))
    errors = sensitivities(setup.bench, setup.space, folder, None, told, on_this_machine(print))
    if len(list(folder.events())) > before:
        print(f"{name}: sensitivities of {len(errors)} decisions took {time.monotonic() - began:.0f} s", flush=True)
    return Contest(name, setup, Evaluations(folder.path / "evaluations.csv", setup), errors)


def told(done: int, of: int, what: str) -> None:
    if done % 10 == 0:
        print(f"{what}: {done} of {of}", flush=True)


def kept(name: Rival, seed: int, of: Contest) -> Path:
    """Where the proposals of a run are kept: a line each, of the option chosen in every decision."""
    return of.evaluations.path.with_name(f"{name}-{seed}.txt")


def proposed(name: Rival, seed: int, of: Contest) -> list[dict[str, int]]:
    path = kept(name, seed, of)
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [decision.name for decision in of.setup.space.decisions]
    return [dict(zip(names, map(int, line.split()), strict=True)) for line in lines]


def run(name: Rival, seed: int, trials: int, of: Contest) -> None:
    """Evaluate what a sampler proposes, beginning with what it proposed before."""
    space, direction = of.setup.space, of.setup.bench.task.metric.direction
    entered = entry(name, seed, space, of.landscape())
    path = kept(name, seed, of)
    before = proposed(name, seed, of)
    sampler = StartingSampler([*before, *entered.first[len(before) :]], entered.sampler or RandomSampler(seed))
    study = optuna.create_study(directions=[direction, "minimize", "minimize"], sampler=sampler)
    for number in range(trials if entered.sampler is not None else min(trials, len(entered.first))):
        trial = study.ask(distributions(space))
        scored = of.evaluations.of(space.plan(trial.params))
        study.tell(trial, [scored.metric, scored.latency_ms, float(scored.size_bytes)])
        if number >= len(before):
            with path.open("a", encoding="utf-8") as file:
                print(*(trial.params[decision.name] for decision in space.decisions), file=file)
        if number % 20 == 19:
            print(f"{name}, seed {seed}: {number + 1} trials; {len(of.evaluations.known)} plans are known", flush=True)


def points_of(scored: Sequence[Scored], of: Contest) -> list[Point]:
    """As shares of the reference point."""
    metric, untouched = of.setup.bench.task.metric, of.evaluations.of(Plan())
    worst = WORST_DROP * abs(untouched.metric)
    return [
        (
            metric.drop(untouched.metric, one.metric) / worst,
            one.latency_ms / untouched.latency_ms,
            one.size_bytes / untouched.size_bytes,
        )
        for one in scored
    ]


def volume(points: Sequence[Point]) -> float:
    return hypervolume([points[place] for place in front(points)])


def volumes(of: Contest, seeds: int) -> None:
    of.evaluations.catch_up()
    known = of.evaluations.known
    runs = {
        (name, seed): points_of([known[of.setup.space.plan(one).hash] for one in proposed(name, seed, of)], of)
        for name in get_args(Rival)
        for seed in range(seeds)
    }
    if not runs["additive", 0]:
        raise SystemExit(f"the gap is that above the additive front; run --sampler additive on {of.name} first")
    best = volume(points_of(list(known.values()), of))
    additive = volume(runs["additive", 0])
    rows: list[dict[str, object]] = []
    lines: dict[Rival, list[list[float]]] = {}
    for (name, seed), points in runs.items():
        if not points:
            continue
        row: dict[str, object] = {"sampler": name, "seed": seed, "evaluations": len(points)}
        reached = [volume(points[:mark]) for mark in range(1, len(points) + 1)]
        row["all"] = f"{reached[-1]:.4f}"
        row |= {f"after_{mark}": f"{reached[mark - 1]:.4f}" if mark <= len(points) else "" for mark in MARKS}
        row |= {
            f"closed_{mark}": f"{(reached[mark - 1] - additive) / (best - additive):.2f}" if mark <= len(points) else ""
            for mark in (50, 200)
        }
        rows.append(row)
        lines.setdefault(name, []).append(reached)
    rows.append({"sampler": "everything", "evaluations": len(known), "all": f"{best:.4f}"})
    write_table(REFERENCE / f"search_volumes_{of.name}.csv", rows)
    draw(lines, best, REFERENCE / f"search_volumes_{of.name}.png", of.name)


def draw(lines: Mapping[Rival, Sequence[Sequence[float]]], best: float, path: Path, title: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, (name, runs) in enumerate(lines.items()):
        for place, run in enumerate(runs):
            axes.plot(range(1, len(run) + 1), run, label=None if place else name, color=f"C{number}")
    axes.axhline(best, color="grey", linestyle=":", label="everything evaluated")
    axes.set(xscale="log", xlabel="evaluations", ylabel="dominated hypervolume", title=f"{title}, seed by seed")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "volumes"])
    parser.add_argument("--task", default="cifar10-resnet20")
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--sampler", choices=get_args(Rival), default="auto")
    parser.add_argument("--trials", type=int, help="default: as many as the sampler is to be given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=5, help="of volumes: the runs that are looked for")
    parser.add_argument("--data", type=Path, required=True)
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    of = contest(given.task, given.target, given.data)
    if given.what == "run":
        run(given.sampler, given.seed, given.trials or BUDGETS[given.sampler], of)
    else:
        volumes(of, given.seeds)


if __name__ == "__main__":
    main()
