"""Do searches keep the latencies and sizes that people state, and do they use what they were allowed?

    python benchmarks/search_goals.py --from results/resnet20-cpu --of latency --trials 12

Between the fastest and the slowest point of a finished run (or the smallest and the largest), so many limits are stated, one
search each that begins from the run and wants the most accurate plan within the limit. What each picks is exported and measured
once more after the search, and that second measurement is what counts. A limit is used where the file takes at least 90 % of
it, or where no file that any of the searches measured is both within it and more accurate. The table
(results/reference/search_goals_<task>-<target>_<of>.csv) has a row a limit. A search that was stopped goes on from its folder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
from tables import write_table

import autocomp
from autocomp.errors import RunError
from autocomp.finished import Run
from autocomp.run import Json
from autocomp.search import flow
from autocomp.search.points import VERIFIED, verifications
from autocomp.task import Metric
from autocomp.trial import Trial

REFERENCE = Path("results/reference")
USED, TRIES = 0.9, 5

Quantity = Literal["latency", "size"]


@dataclass(frozen=True)
class Picked:
    """What a search within a limit gave: its plan's file, measured after it."""

    limit: float
    run: Run
    trial: Trial
    measured: float

    @property
    def met(self) -> bool:
        return self.measured <= self.limit

    @property
    def used(self) -> float:
        return self.measured / self.limit


def limits_between(run: Run, of: Quantity, count: int) -> list[float]:
    """Evenly spread strictly between the ends of the run's front, as its files were measured; rounded as people state them."""
    front = run.front
    found = front["measured_latency_ms"] if of == "latency" else front["measured_size_bytes"] / 1000
    return [float(f"{limit:.3g}") for limit in np.linspace(found.min(), found.max(), count + 2)[1:-1]]


def searched(begun_from: Path, of: Quantity, limit: float, trials: int, seed: int) -> Picked:
    out = begun_from.parent / f"{begun_from.name}-{of}-{limit:g}"
    told = out / "picked.json"
    if told.is_file():  # what counts is the measurement after the search, not a later one
        known = json.loads(told.read_text())
        run = Run.open(out)
        trial = next(one for one in flow.load_trials(run.folder) if one.number == known["trial"])
        return Picked(limit, run, trial, known["measured"])
    run = autocomp.search(
        begin_from=begun_from,
        out=out,
        trials=trials,
        goal="most-accurate",
        max_latency_ms=limit if of == "latency" else None,
        max_size_kb=limit if of == "size" else None,
        seed=seed,
        resume=(out / "run.json").is_file(),
    )
    try:
        trial = run.pick("most-accurate")
    except RunError:  # nothing keeps the limit: it is missed by the untouched network
        trial = run.pick(0)
    found = measured_once_more(run, trial, of)
    told.write_text(json.dumps({"trial": trial.number, "measured": found}))
    return Picked(limit, run, trial, found)


def measured_once_more(run: Run, trial: Trial, of: Quantity) -> float:
    """After the search. A timing that does not settle is not kept by a run that has one that did, and is no measurement."""

    def times() -> int:
        documents = (event["verification"] for event in run.folder.events() if event["event"] == VERIFIED)
        return sum(cast("Json", document)["key"] == trial.key for document in documents)

    for _ in range(TRIES):
        before = times()
        document = run.verify(trial.number)[0]
        if times() > before:
            return measured(document, of)
    raise SystemExit(f"in {TRIES} tries no timing of trial {trial.number} settled; go on when the machine is quieter")


def measured(verified: Json, of: Quantity) -> float:
    """Of a file, as its verification says."""
    found = cast("dict[str, float]", verified["measured"])
    return found["latency_ms"] if of == "latency" else found["size_bytes"] / 1000


def known_of(run: Run, of: Quantity) -> list[tuple[float, float]]:
    """(metric, what was measured) of all of a run's plans that have a file."""
    verified = verifications(run.folder)
    return [
        (one.metric, measured(verified[one.key], of))
        for one in flow.load_trials(run.folder)
        if one.metric is not None and one.key in verified
    ]


def more_accurate(picked: Picked, known: Sequence[tuple[float, float]], metric: Metric) -> list[float]:
    """By how much the plans whose files were measured within the limit and that beat what was picked do, in the metric's
    units."""
    assert picked.trial.metric is not None
    gained = [-metric.drop(picked.trial.metric, value) for value, found in known if found <= picked.limit]
    return [gain for gain in gained if gain > 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="begun_from", type=Path, required=True)
    parser.add_argument("--of", choices=["latency", "size"], default="latency")
    parser.add_argument("--limits", type=int, default=20)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    of: Quantity = given.of
    base = Run.open(given.begun_from)
    metric = flow.metric_of(base.folder)
    picks = []
    for limit in limits_between(base, of, given.limits):
        picks.append(searched(given.begun_from, of, limit, given.trials, given.seed))
        last = picks[-1]
        print(f"{of} {limit:g}: trial {last.trial.number}, {last.trial.metric:.2f}, takes {last.used:.3f}", flush=True)
    known = [point for run in (base, *(one.run for one in picks)) for point in known_of(run, of)]
    rows = []
    for one in picks:
        better = more_accurate(one, known, metric)
        rows.append(
            {
                "limit": one.limit,
                "measured": round(one.measured, 4),
                "used": round(one.used, 3),
                "met": one.met,
                "metric_search": one.trial.metric,
                "more_accurate_known": len(better),
                "by_at_most": round(max(better, default=0.0), 3),
                "uses_it": one.met and (one.used >= USED or not better),
            }
        )
    request = base.folder.request()
    write_table(REFERENCE / f"search_goals_{request.task}-{request.target}_{of}.csv", rows)
    met, used = sum(one.met for one in picks), sum(bool(row["uses_it"]) for row in rows)
    best = sum(one.met and not row["more_accurate_known"] for one, row in zip(picks, rows, strict=True))
    print(
        f"{met} of {len(picks)} met, {used} use at least {USED:.0%} of what they were allowed or are the most accurate, "
        f"{best} are the most accurate that any of the searches measured within the limit"
    )


if __name__ == "__main__":
    main()
