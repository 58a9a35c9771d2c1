"""A search's evaluations on a Ray cluster: Ray Tune places and stops them; what comes next, what is known and what is
begun again is the run's own (:class:`autocomp.search.ledger.Ledger`).

So nothing that Tune keeps matters: it writes to a folder that is thrown away, and a run whose driver, Tune or cluster
died goes on from its journal like any other. Nor does it matter where an evaluation ran, or how often it was begun: it
is a function of the plan.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.cloudpickle
from ray import tune
from ray.exceptions import RayActorError
from ray.tune.search import Searcher

from autocomp.plan import Plan
from autocomp.search.confined import Confined
from autocomp.search.evaluate import Outcome, evaluate
from autocomp.search.ledger import Ledger, Proposal, Told
from autocomp.search.ray_cluster import RETRIES, by_value, checked_room, connected
from autocomp.search.rungs import Hurdle
from autocomp.search.workers import Workers
from autocomp.trial import Cost, Rung

if TYPE_CHECKING:
    from ray.tune.experiment import Trial as TuneTrial

    from autocomp.search.evaluate import Workbench

#: Tune's own files, callbacks and reports: what it would do beside placing trials, each of which costs time a trial.
_QUIET: Mapping[str, str] = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def run_trials(ledger: Ledger, bench: Workbench, workers: Workers, timeout_s: float | None, told: Told) -> None:
    """Propose and evaluate until all trials asked for are finished or the time is up; results are told as they come.

    Raises:
        WorkError: there is no cluster, or no node of it has room for a trial.
    """
    by_value()
    for logger in ("ray.tune", "ray.train", "ray.air"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)  # a trial's failure is told by us, in one line
    with connected(), tempfile.TemporaryDirectory(prefix="autocomp-tune-") as scratch, _environment(_QUIET):
        room = checked_room(workers)
        proposals = _Proposals(ledger, timeout_s, told, room)
        tune.run(
            tune.with_parameters(_Evaluation, bench=bench, limit_s=workers.limit_s, limit_gb=workers.limit_gb),
            name="search",
            storage_path=scratch,
            num_samples=-1,
            search_alg=proposals,
            max_concurrent_trials=workers.concurrent or room,
            resources_per_trial={"cpu": workers.cpus, "gpu": workers.gpus},
            reuse_actors=True,
            max_failures=0,  # begun again by _Proposals: Tune counts a lost worker that it used again as two failures
            raise_on_failed_trial=False,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
            callbacks=[_Telling(proposals)],
            verbose=0,
        )


@dataclass
class _Attempts:
    """How often a proposal was given to a worker that then was lost: in the evaluation or its own setup, which may be the
    plan's doing, or before, which is not."""

    proposal: Proposal
    begun: bool = False
    died: int = 0
    lost: int = 0


class _Proposals(Searcher):
    """What Tune asks for its next trial. A proposal whose worker was lost comes again, as another trial of Tune's."""

    def __init__(self, ledger: Ledger, timeout_s: float | None, told: Told, room: int) -> None:
        super().__init__()
        self._ledger, self._told = ledger, told
        self._until = None if timeout_s is None else time.monotonic() + timeout_s
        self._waiting = ledger.unfinished()
        self._open: dict[str, _Attempts] = {}
        self._again: deque[_Attempts] = deque()
        # A node that goes leaves at most this many idle workers, and Tune may give a proposal to one after the other.
        self._most_lost = RETRIES + room

    def suggest(self, trial_id: str) -> dict[str, object] | None:
        while (attempts := self._following()) is not None:
            known = self._ledger.known(attempts.proposal.plan)
            if known is None:
                self._open[trial_id] = attempts
                return {"plan": attempts.proposal.plan.to_json(), "hurdle": attempts.proposal.hurdle}
            self._tell(attempts.proposal, known)
        return None if self._open else Searcher.FINISHED  # type: ignore[return-value]  # what is open may come again

    def begun(self, trial_id: str) -> None:
        """A worker has it."""
        self._open[trial_id].begun = True

    def lost(self, trial_id: str, error: Exception) -> None:
        """Its worker is there no more."""
        attempts = self._open.pop(trial_id)
        if attempts.begun or not isinstance(error, RayActorError) or error.actor_init_failed:
            attempts.died += 1
        else:
            attempts.lost += 1
        attempts.begun = False
        if attempts.died <= RETRIES and attempts.lost <= self._most_lost:
            self._again.append(attempts)
            return
        what = f"its worker died {attempts.died} times" if attempts.died > RETRIES else "no worker could begin it"
        said = f"{type(error).__name__}: {' '.join(str(error).split())[-300:]}"
        self._tell(attempts.proposal, Outcome(None, None, 0.0, f"WorkError: {what}; the last said: {said}"))

    def finish(self, trial_id: str, outcome: Outcome) -> None:
        self._tell(self._open.pop(trial_id).proposal, outcome)

    def _following(self) -> _Attempts | None:
        if self._until is not None and time.monotonic() > self._until and self._ledger.trials:
            return None
        if self._again:
            return self._again.popleft()
        proposal = next(self._waiting, None) or self._ledger.propose()
        return None if proposal is None else _Attempts(proposal)

    def _tell(self, proposal: Proposal, outcome: Outcome) -> None:
        self._told(self._ledger.tell(proposal, outcome), self._ledger.trials)

    def on_trial_complete(self, trial_id: str, result: object = None, error: bool = False) -> None:
        """Told by :class:`_Telling`, which knows why a trial failed."""

    def save(self, checkpoint_path: str) -> None:
        """The study is saved by itself."""

    def restore(self, checkpoint_path: str) -> None:
        """As :meth:`save`."""


class _Telling(tune.Callback):
    """Brings what Tune reports to the ledger."""

    def __init__(self, proposals: _Proposals) -> None:
        self._proposals = proposals

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: object) -> None:
        said = trial.last_result["outcome"]
        cost = said["cost"]
        outcome = Outcome(
            said["metric"],
            None if cost is None else Cost(**cost),
            said["seconds"],
            said["error"],
            tuple(Rung(**rung) for rung in said["rungs"]),
            None if said["stopped"] is None else tuple(said["stopped"]),
        )
        self._proposals.finish(trial.trial_id, outcome)

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: object) -> None:
        self._proposals.begun(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: object) -> None:
        assert trial.pickled_error_file is not None  # Tune keeps what a worker said
        self._proposals.lost(trial.trial_id, ray.cloudpickle.loads(Path(trial.pickled_error_file).read_bytes()))


class _Evaluation(tune.Trainable):
    """A worker: it has the workbench, which came to its node once, and evaluates one plan after the other."""

    def setup(  # type: ignore[override]
        self, config: dict[str, Any], bench: Workbench, limit_s: float | None, limit_gb: float | None
    ) -> None:
        self._given(config)
        self._bench = bench
        confined = limit_s is not None or limit_gb is not None
        pickled: bytes = ray.cloudpickle.dumps(bench) if confined else b""  # type: ignore[no-untyped-call]
        self._confined = Confined(pickled, limit_s, limit_gb) if confined else None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._given(new_config)
        return True

    def _given(self, config: dict[str, Any]) -> None:
        self._plan = Plan.from_json(config["plan"])
        self._hurdle: Hurdle | None = config["hurdle"]

    def step(self) -> dict[str, object]:
        confined = self._confined
        if confined is None:
            outcome = evaluate(self._bench, self._plan, self._hurdle)
        else:
            outcome = confined.evaluate(self._plan, self._hurdle)
        return {"outcome": asdict(outcome), "done": True}

    def cleanup(self) -> None:
        if self._confined is not None:
            self._confined.close()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """There is nothing to go on from."""

    def load_checkpoint(self, checkpoint: object) -> None:
        """As :meth:`save_checkpoint`."""


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
