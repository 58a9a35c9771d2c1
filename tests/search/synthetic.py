"""A search without a network: four layers that exist on paper, and costs that are arithmetic of the plan."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from autocomp.graph import Graph
from autocomp.inventory import Inventory, LayerInfo
from autocomp.plan import Format, Plan, Rank, Sparsity
from autocomp.run import Request
from autocomp.search.landscape import Landscape
from autocomp.search.ledger import Knowledge, Ledger, run_trials
from autocomp.search.rungs import Climb, Hurdle
from autocomp.search.sampler import SamplerName
from autocomp.search.study import RunStudy, open_study, read_trials
from autocomp.space import Decision, SearchSpace
from autocomp.task import Metric, Score
from autocomp.trial import Cost, Trial

if TYPE_CHECKING:
    from autocomp.search.evaluate import Workbench

LAYERS = ("a", "b", "c", "d")
BASELINE = 90.0


def synthetic_space() -> SearchSpace:
    layers = tuple(
        LayerInfo(name, "conv2d", (32, 32, 3, 3), (32, 8, 8), (32, 8, 8), 589_824, 9216, None) for name in LAYERS
    )
    decisions = []
    for name in LAYERS:
        levels = (None, Sparsity("unstructured", 0.5), Sparsity("unstructured", 0.75))
        decisions.append(Decision(f"unstructured:{name}", "unstructured", (name,), levels))
        decisions.append(Decision(f"rank:{name}", "rank", (name,), (None, Rank("svd", 16), Rank("svd", 8))))
        formats = (None, Format(8), Format(4), Format(2))
        decisions.append(Decision(f"format:{name}", "format", (name,), formats))
    return SearchSpace(tuple(decisions), Inventory(layers, (), (), Graph((), ())))


def one_option_space() -> SearchSpace:
    """One decision, and one thing to do other than nothing."""
    space = synthetic_space()
    return SearchSpace((Decision("format:a", "format", ("a",), (None, Format(8))),), space.inventory)


def request(sampler: SamplerName = "auto", trials: int = 40, seed: int = 0, **limits: float | str) -> Request:
    return Request("paper", "paper", "paper", sampler, "onnx-packed", 1, 1, seed, trials, **limits)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _PaperTask:
    metric: Metric


PAPER_TASK = _PaperTask(Metric("accuracy"))


@dataclass(frozen=True)
class PaperBench:
    """Stands for a Workbench. ``fails`` says which plans raise; ``scored`` lists the plans that were evaluated."""

    fails: Callable[[Plan], bool] = lambda plan: False
    scored: list[Plan] = field(default_factory=list)
    task: _PaperTask = PAPER_TASK

    def cost(self, plan: Plan) -> Cost:
        size, latency = 0.0, 0.1
        for name in LAYERS:
            layer = plan[name]
            bits = 32 if layer.format is None else layer.format.weight_bits
            share = 1.0 if layer.rank is None else layer.rank.r / 32
            size += 1000 * bits * share * (1 - 0.9 * layer.masked_level())
            latency += share * (1.0 if layer.format is None else 0.4)
        return Cost(latency, 0.05 * latency, round(size), 1, 1, "fitted")

    def climb(self, plan: Plan, cost: Cost, hurdle: Hurdle | None) -> Climb:
        return Climb((), self.score(plan))

    def score(self, plan: Plan) -> Score:
        self.scored.append(plan)
        if self.fails(plan):
            raise AssertionError("it\nbroke")
        loss = 0.0
        for weight, name in enumerate(LAYERS, start=1):
            layer = plan[name]
            bits = 32 if layer.format is None else layer.format.weight_bits
            loss += weight * (8 / bits + layer.masked_level() + (0 if layer.rank is None else 8 / layer.rank.r))
        return Score(BASELINE - loss + 1.0)


def landscape_of(space: SearchSpace) -> Landscape:
    """Every choice's error by itself: the share of the metric that it takes on paper."""
    bench = PaperBench()
    base = bench.score(Plan()).value
    errors = {
        one.name: [
            (base - bench.score(space.plan({one.name: index})).value) / base for index in range(len(one.options))
        ]
        for one in space.decisions
    }
    return Landscape(space, errors, PaperBench().cost)


def searched(
    opened: RunStudy, asked: Request, bench: PaperBench | None = None, space: SearchSpace | None = None
) -> Ledger:
    """The ledger after a search in that study."""
    bench = bench or PaperBench()
    space = space or synthetic_space()
    ledger = Ledger(opened, space, asked, bench.task.metric, BASELINE, Knowledge(landscape_of(space)))
    run_trials(ledger, cast("Workbench", bench), asked.timeout_s, lambda trial, trials: None)
    return ledger


def search(
    opened: RunStudy, asked: Request, bench: PaperBench | None = None, space: SearchSpace | None = None
) -> tuple[Trial, ...]:
    """All trials after a search in that study, as they are read back."""
    searched(opened, asked, bench, space)
    return read_trials(opened.study, asked.seed)


def search_in(journal: Path, asked: Request, bench: PaperBench | None = None) -> tuple[Trial, ...]:
    return search(open_study(journal, "maximize"), asked, bench)


def hashes(trials: Sequence[Trial]) -> list[str]:
    return [trial.plan.hash for trial in trials]


if __name__ == "__main__":  # what another process proposes
    found = {
        name: hashes(search_in(Path(sys.argv[1]) / f"{name}.log", request(name))) for name in get_args(SamplerName)
    }
    sys.stdout.write(json.dumps(found))
