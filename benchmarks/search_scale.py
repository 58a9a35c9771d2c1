"""What a large network costs a search beside its evaluations.

    python benchmarks/search_scale.py --layers 500 --trials 60 --reopened 10000

A chain of so many convolutions with 29 choices each beside "leave it", of a few shapes, whose costs and scores are arithmetic:
what is timed is what the sampler and the journal take. The table (results/reference/search_scale.csv) has the seconds a
proposal takes, those before the first (once, with the costs of every choice), the bytes of the journal a trial, and the seconds
until a run of so many trials is open again.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import optuna
from tables import write_table

from autocomp.graph import Graph
from autocomp.inventory import Inventory, LayerInfo
from autocomp.plan import Format, Plan
from autocomp.run import Request
from autocomp.search.books import CHOICE
from autocomp.search.evaluate import Outcome
from autocomp.search.landscape import Landscape
from autocomp.search.ledger import Knowledge, Ledger
from autocomp.search.study import open_study
from autocomp.space import Decision, Option, SearchSpace
from autocomp.task import Metric
from autocomp.trial import Cost

REFERENCE = Path("results/reference")
WIDTHS = (64, 128, 256, 512)
BASELINE = 90.0
CHOICES = 30


def options() -> tuple[Option | None, ...]:
    """ "Leave it", and 29 formats: bits and how they are rounded."""
    found: list[Option | None] = [None]
    for bits in (8, 6, 5, 4, 3, 2):
        for clip in ("mse", "minmax", "percentile"):
            found += [Format(bits, clip=clip), Format(bits, clip=clip, granularity="tensor")]
    return tuple(found[:CHOICES])


def space_of(layers: int) -> SearchSpace:
    infos = []
    for number in range(layers):
        width = WIDTHS[number * len(WIDTHS) // layers]
        shape, side = (width, width, 3, 3), 4096 // width
        macs = width * width * 9 * side * side
        infos.append(
            LayerInfo(
                f"stage.{number}.conv",
                "conv2d",
                shape,
                (width, side, side),
                (width, side, side),
                macs,
                width * width * 9,
                None,
            )
        )
    decisions = tuple(Decision(f"format:{info.name}", "format", (info.name,), options()) for info in infos)
    return SearchSpace(decisions, Inventory(tuple(infos), (), (), Graph((), ())))


def cost_of(space: SearchSpace, plan: Plan) -> Cost:
    size, latency = 0.0, 0.1
    for info in space.inventory.layers:
        chosen = plan[info.name].format
        size += info.params * (32 if chosen is None else chosen.weight_bits) / 8
        latency += info.macs * (1.0 if chosen is None else 0.4) / 1e10
    return Cost(latency, 0.05 * latency, round(size), 1, 1, "fitted")


def errors_of(space: SearchSpace) -> dict[str, list[float]]:
    chance = random.Random(0)
    found = {}
    for decision in space.decisions:
        weight = chance.uniform(0.2, 2.0) / len(space.decisions)
        found[decision.name] = [
            0.0 if not isinstance(one, Format) else weight * 4.0 ** (2 - one.weight_bits) * chance.uniform(1.0, 2.0)
            for one in decision.options
        ]
    return found


def ledger_of(journal: Path, space: SearchSpace, trials: int, landscape: Landscape) -> Ledger:
    request = Request("paper", "paper", "paper", "auto", "onnx-packed", 1, 1, 0, trials)
    return Ledger(open_study(journal, "maximize"), space, request, Metric("accuracy"), BASELINE, Knowledge(landscape))


def run(ledger: Ledger, space: SearchSpace, errors: dict[str, list[float]]) -> Iterator[float]:
    """The seconds that each proposal took."""
    chance = random.Random(1)
    while True:
        began = time.perf_counter()
        proposal = ledger.propose()
        took = time.perf_counter() - began
        if proposal is None:
            return
        indices = space.indices(proposal.plan)
        assert indices is not None
        error = sum(errors[name][index] for name, index in indices.items())
        ledger.tell(
            proposal, Outcome(BASELINE - 30.0 * error * chance.uniform(0.8, 1.2), cost_of(space, proposal.plan), 1.0)
        )
        yield took


def reopening_s(journal: Path, space: SearchSpace, trials: int, landscape: Landscape) -> float:
    """The seconds until a run of so many trials is open again and proposes the next one. Its trials are plans by chance."""
    chance, ledger = random.Random(2), ledger_of(journal, space, trials + 1, landscape)
    for number in range(trials):
        indices = {
            one.name: chance.randrange(len(one.options)) if chance.random() < 0.9 else 0 for one in space.decisions
        }
        with ledger._together():
            # As Ledger.propose writes it down, without the sampler, which would take an hour.
            trial = ledger._study.ask()
            trial.set_user_attr(CHOICE, list(indices.values()))
            proposal = ledger._proposal(trial, indices)
        ledger.tell(proposal, Outcome(BASELINE - number % 50, cost_of(space, proposal.plan), 1.0))
    began = time.perf_counter()
    ledger_of(journal, space, trials + 1, landscape).propose()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=500)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--reopened", type=int, default=10_000)
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = space_of(given.layers)
    errors = errors_of(space)
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder) / "study.log"
        landscape = Landscape(space, errors, lambda plan: cost_of(space, plan))
        began = time.perf_counter()
        landscape.foresee()
        before_s = time.perf_counter() - began
        took = list(run(ledger_of(journal, space, given.trials, landscape), space, errors))
        size = journal.stat().st_size / given.trials
        row = {
            "layers": given.layers,
            "choices": CHOICES,
            "trials": given.trials,
            "before_first_s": round(before_s, 2),
            "proposal_median_s": round(float(np.median(took[1:])), 3),
            "proposal_most_s": round(max(took), 3),
            "journal_bytes_a_trial": round(size),
        }
        print(row, flush=True)
        row["reopened_trials"] = given.reopened
        row["reopening_s"] = round(reopening_s(Path(folder) / "long.log", space, given.reopened, landscape), 1)
        print(row, flush=True)
    write_table(REFERENCE / "search_scale.csv", [row])


if __name__ == "__main__":
    main()
