"""What a Ray cluster adds to a search: how busy its workers are kept, and what a trial costs beside its evaluation.

    python benchmarks/cluster.py efficiency   evaluations of 2 s on 1 to 32 workers
    python benchmarks/cluster.py overhead     evaluations that take no time: Tune's part, and autocomp's at 10,000 trials

Evaluations sleep, so that workers need no cores of their own; everything else is a real search: the run's study on disk,
sampler nsga2, Ray Tune, worker processes. Tables go to results/reference/cluster_*.csv.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import ray
from tables import write_table

from autocomp.graph import Graph
from autocomp.inventory import Inventory, LayerInfo
from autocomp.plan import Format, Plan, Sparsity
from autocomp.run import Request
from autocomp.search import ray_tune
from autocomp.search.evaluate import Outcome
from autocomp.search.ledger import Ledger
from autocomp.search.study import open_study
from autocomp.search.workers import Workers
from autocomp.space import Decision, SearchSpace
from autocomp.task import Metric, Score
from autocomp.trial import Cost, Trial

if TYPE_CHECKING:
    from autocomp.search.evaluate import Workbench

REFERENCE = Path(__file__).resolve().parents[1] / "results" / "reference"
#: Layers of the network on paper, and what may be done to each.
LAYERS = 50
LEVELS = (None, Sparsity("unstructured", 0.5), Sparsity("unstructured", 0.75))
FORMATS = (None, Format(8), Format(6), Format(4), Format(3), Format(2))
EVALUATION_S = 2.0
WORKERS = (1, 2, 4, 8, 16, 32)
#: Trials of each worker, after the first, for which it had to be started.
ROUNDS = 6
#: Trials that are timed.
TIMED = 200
MANY_TRIALS = 10_000
METRIC = Metric("accuracy")


@dataclass(frozen=True)
class PaperTask:
    metric: Metric = METRIC


@dataclass(frozen=True)
class Asleep:
    """Stands for a workbench: a plan's values are arithmetic, and take so many seconds.

    Every worker process leaves its number in the folder ``present``, and waits at its first trial until all ``workers``
    have: how long it takes to start them is another figure than how busy they are.
    """

    seconds: float
    workers: int = 1
    present: Path | None = None
    task: PaperTask = PaperTask()

    def cost(self, plan: Plan) -> Cost:
        bits = sum(one.format.weight_bits if one.format else 32 for one in plan.layers.values())
        return Cost(1.0 + bits / 100, 0.0, 1000 + bits, 1, 1, "fitted")

    def score(self, plan: Plan) -> Score:
        if self.present is not None:
            (self.present / str(os.getpid())).touch()
            while len(list(self.present.iterdir())) < self.workers:
                time.sleep(0.05)
        time.sleep(self.seconds)
        return Score(90.0 - len(plan.layers) / LAYERS)


def space() -> SearchSpace:
    names = [f"layer{number}" for number in range(LAYERS)]
    shapes = ((32, 32, 3, 3), (32, 8, 8), (32, 8, 8))
    layers = tuple(LayerInfo(name, "conv2d", *shapes, 589_824, 9216, None) for name in names)
    decisions = [Decision(f"unstructured:{name}", "unstructured", (name,), LEVELS) for name in names]
    decisions += [Decision(f"format:{name}", "format", (name,), FORMATS) for name in names]
    return SearchSpace(tuple(decisions), Inventory(layers, (), (), Graph((), ())))


def ledger(journal: Path, trials: int) -> Ledger:
    request = Request("paper", "paper", "paper", "nsga2", "onnx-packed", 1, 1, 0, trials)
    return Ledger(open_study(journal, METRIC.direction), space(), request, METRIC, 90.0)


@contextmanager
def cluster(cpus: int) -> Iterator[None]:
    """Of this process, with so many CPUs to give away, whatever the machine has."""
    ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False, object_store_memory=200_000_000)
    try:
        yield
    finally:
        ray.shutdown()


def searched(trials: int, seconds: float, workers: int) -> list[float]:
    """When each trial was told, in seconds."""
    told: list[float] = []

    def tell(_: Trial, __: Sequence[Trial]) -> None:
        told.append(time.monotonic())

    with tempfile.TemporaryDirectory() as folder, cluster(workers):
        asked, present = ledger(Path(folder) / "study.log", trials), Path(folder, "present")
        present.mkdir()
        ray_tune.run_trials(asked, cast("Workbench", Asleep(seconds, workers, present)), Workers(), None, tell)
    return told


@dataclass(frozen=True)
class Efficiency:
    """How much of the workers' time was spent in evaluations. ``started_s``: until all workers had done one, together."""

    workers: int
    trials: int
    started_s: float
    steady_s: float
    efficiency: float


def efficiency() -> None:
    rows = []
    for workers in WORKERS:
        began = time.monotonic()
        trials = workers * (1 + ROUNDS)
        told = searched(trials, EVALUATION_S, workers)
        started, ended = told[workers - 1], told[-1]
        steady = ended - started
        useful = (len(told) - workers) * EVALUATION_S
        rows.append(
            Efficiency(
                workers, trials, round(started - began, 1), round(steady, 2), round(useful / steady / workers, 3)
            )
        )
        print(rows[-1], flush=True)
    write_table(REFERENCE / "cluster_efficiency.csv", [asdict(row) for row in rows])


@dataclass(frozen=True)
class Overhead:
    """What a trial costs beside its evaluation (ms, the median of those timed)."""

    part: str
    trials_before: int
    median_ms: float
    p90_ms: float


def overhead() -> None:
    told = searched(TIMED + 20, 0.0, 1)[20:]
    steps = [1e3 * (after - before) for before, after in itertools.pairwise(told)]
    rows = [Overhead("a whole trial on one reused worker", 20, *_quantiles(steps))]
    for before in (100, MANY_TRIALS):
        rows.append(Overhead("autocomp's own part: propose and tell", before, *_quantiles(own_ms(before))))
    for row in rows:
        print(row, flush=True)
    write_table(REFERENCE / "cluster_overhead.csv", [asdict(row) for row in rows])


def own_ms(before: int) -> list[float]:
    """Of each trial after so many."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        asked = ledger(Path(folder) / "study.log", before + TIMED)
        bench = Asleep(0.0)
        for number in range(before + TIMED):
            began = time.perf_counter()
            proposal = asked.propose()
            assert proposal is not None
            known = asked.known(proposal.plan)
            outcome = known or Outcome(bench.score(proposal.plan).value, bench.cost(proposal.plan), 0.0)
            asked.tell(proposal, outcome)
            if number >= before:
                found.append(1e3 * (time.perf_counter() - began))
    return found


def _quantiles(times_ms: Sequence[float]) -> tuple[float, float]:
    return round(statistics.median(times_ms), 2), round(statistics.quantiles(times_ms, n=10)[-1], 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("efficiency", "overhead"))
    (efficiency if parser.parse_args().what == "efficiency" else overhead)()


if __name__ == "__main__":
    main()
