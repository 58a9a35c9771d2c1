"""What of a search's time is not evaluation, and how long its sensitivities take.

    python benchmarks/search_overhead.py --task cifar10-resnet20 --target cpu --trials 60 --data ../shared/data --out FOLDER

One search as users run it, timed stage by stage: until its first step, measuring what each choice does by itself, foreseeing,
trials, and what follows. The share outside evaluation is that of the time from the first trial's beginning to the last one's
end (proposals, the journal, what the sampler learns) in which no plan was being compressed or scored. Of a run that is there
already, made in one sitting, this share alone is told, from its journal. The table is
results/reference/search_overhead_<task>-<target>.csv.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tables import write_table

import autocomp
from autocomp.run import RunFolder
from autocomp.search.study import read_study, read_trials
from autocomp.task import Metric
from autocomp.trial import Trial

REFERENCE = Path("results/reference")
TRIALS = "trials"


@dataclass
class Clock:
    """Seconds of every stage; a stage lasts until the next begins."""

    stage: str = "before the first step"
    began: float = field(default_factory=time.monotonic)
    seconds: dict[str, float] = field(default_factory=dict)

    def say(self, line: str) -> None:
        print(line, flush=True)

    def trial(self, trial: Trial, trials: Sequence[Trial], asked: int, metric: Metric) -> None:  # noqa: ARG002
        self._enter(TRIALS)

    def step(self, what: str, done: int, of: int, note: str = "") -> None:  # noqa: ARG002
        self._enter(what)
        if done == of:  # what follows is another stage, whatever it is called
            self._enter(TRIALS if "foreseeing" in what else f"after {what}")

    def _enter(self, stage: str) -> None:
        if stage != self.stage:
            self.close()
            self.stage = stage

    def close(self) -> None:
        now = time.monotonic()
        self.seconds[self.stage] = self.seconds.get(self.stage, 0.0) + now - self.began
        self.began = now


def outside_share(folder: RunFolder) -> tuple[int, float]:
    """Finished trials, and the share of the time from the first to the last of them in which none was evaluated."""
    study = read_study(folder.journal)
    begun = [one.datetime_start for one in study.trials if one.datetime_start is not None]
    ended = [one.datetime_complete for one in study.trials if one.datetime_complete is not None]
    wall_s = (max(ended) - min(begun)).total_seconds()
    evaluated_s = sum(one.seconds or 0.0 for one in read_trials(study, folder.request().seed) if one.state != "running")
    return len(ended), 1 - evaluated_s / wall_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="cifar10-resnet20")
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--recover", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    given = parser.parse_args()
    rows: list[dict[str, object]] = []
    if not RunFolder(given.out).exists():
        clock = Clock()
        autocomp.search(
            given.task,
            target=given.target,
            trials=given.trials,
            recover_epochs=given.recover,
            seed=given.seed,
            out=given.out,
            data=given.data,
            watcher=clock,
        ).report()
        clock.close()
        rows += [{"what": f"seconds {stage}", "value": round(seconds, 1)} for stage, seconds in clock.seconds.items()]
    folder = RunFolder(given.out)
    request, (trials, share) = folder.request(), outside_share(folder)
    rows.append({"what": f"share outside evaluation, {trials} trials", "value": round(share, 4)})
    write_table(REFERENCE / f"search_overhead_{request.task}-{request.target}.csv", rows)


if __name__ == "__main__":
    main()
