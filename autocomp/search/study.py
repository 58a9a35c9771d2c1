"""The run's Optuna study: the one owner of what was proposed and how it scored, in an append-only journal.

A trial that was being worked on when the process died is finished, not replaced: its proposal stands in the journal
and its number stays, so that nothing is lost, nothing is evaluated twice, and what follows is what would have followed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as State

from autocomp.errors import RunError
from autocomp.plan import Plan
from autocomp.run import Request
from autocomp.search.evaluate import Outcome, Workbench, evaluate
from autocomp.search.guided import Bounds, GuidedSampler, distributions
from autocomp.search.journal import Journal
from autocomp.search.landscape import Landscape
from autocomp.search.sampler import SamplerName, make_sampler
from autocomp.space import SearchSpace
from autocomp.task import Direction, Metric
from autocomp.trial import Cost, Trial, TrialState

NAME = "autocomp"

Told = Callable[[Trial, Sequence[Trial]], None]


@dataclass(frozen=True)
class Limits:
    """What a user said the result must stay within. ``max_drop`` is in the metric's units."""

    latency_ms: float | None = None
    size_bytes: float | None = None
    max_drop: float | None = None

    def __bool__(self) -> bool:
        return any(limit is not None for limit in (self.latency_ms, self.size_bytes, self.max_drop))

    def broken(self, drop: float, cost: Cost) -> list[float]:
        """By how much each limit is broken, as a share of it; zero or less where it is kept.

        Args:
            drop: how much worse the search metric is than that of the untouched plan.
        """
        found = []
        if self.latency_ms is not None:
            found.append(cost.latency_ms / self.latency_ms - 1)
        if self.size_bytes is not None:
            found.append(cost.size_bytes / self.size_bytes - 1)
        if self.max_drop is not None:
            found.append(drop - self.max_drop)
        return found

    @staticmethod
    def of(request: Request) -> Limits:
        size = None if request.max_size_kb is None else request.max_size_kb * 1000
        return Limits(request.max_latency_ms, size, request.max_drop)


@dataclass(frozen=True)
class RunStudy:
    """A run's study. What is written within ``together()`` comes into its journal at once."""

    study: optuna.Study
    together: Callable[[], AbstractContextManager[None]] = nullcontext


def open_study(path: Path, direction: Direction) -> RunStudy:
    """The study in the journal at ``path``, to go on with; a new one where there is none. The caller holds the run folder."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # A process that was killed can leave Optuna's lock behind, and half a line. The run folder is held by this process
    # alone, so nobody else can be using it.
    Path(f"{path}.lock").unlink(missing_ok=True)
    _mend(path)
    journal = Journal(path)
    study = optuna.create_study(
        storage=JournalStorage(journal),
        study_name=NAME,
        directions=[direction, "minimize", "minimize"],
        load_if_exists=True,
    )
    return RunStudy(study, journal.together)


def read_study(journal: Path) -> optuna.Study:
    """The study in ``journal``, for reading: writes nothing, so that a run at work may be looked at.

    Raises:
        RunError: there is no journal, or no study in it.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if not journal.is_file():
        raise RunError(f"a run folder must hold {journal.name}; {journal} does not exist; start anew")
    try:
        return optuna.load_study(study_name=NAME, storage=JournalStorage(JournalFileBackend(str(journal))))
    except (KeyError, ValueError) as error:
        raise RunError(f"{journal} must hold the journal of a study; it does not ({error}); start anew") from error


def _mend(journal: Path) -> None:
    """Cut off a last line that a crash left incomplete: what is appended to it would be lost with it."""
    if journal.is_file():
        with journal.open("r+b") as file:
            text = file.read()
            file.truncate(text.rfind(b"\n") + 1)


@dataclass(frozen=True)
class Proposal:
    """A plan to be evaluated, under the number of its trial."""

    number: int
    plan: Plan
    trial: optuna.Trial


class Ledger:
    """What a run's study has been asked for and told: the one owner of what comes next and of what is known, wherever
    the evaluations are made.

    Args:
        baseline_metric: the untouched model's score on the search split, which drops are counted from.
        landscape: what the sampler ``auto`` goes by; None for the others.
    """

    def __init__(
        self,
        opened: RunStudy,
        space: SearchSpace,
        request: Request,
        metric: Metric,
        baseline_metric: float,
        landscape: Landscape | None = None,
    ) -> None:
        self._study, self._together = opened.study, opened.together
        self._space, self._request = space, request
        self._metric, self._baseline_metric = metric, baseline_metric
        self._limits = Limits.of(request)
        self._landscape = landscape
        self._trials = {trial.number: trial for trial in read_trials(self._study, request.seed)}
        self._known = {trial.plan.hash: trial for trial in self._trials.values() if trial.state == "complete"}
        self._asked = len(self._study.get_trials(deepcopy=False))  # counted on: to list ten thousand takes its time

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All so far that have a plan, by number."""
        return tuple(self._trials[number] for number in sorted(self._trials))

    def unfinished(self) -> Iterator[Proposal]:
        """Those that a process which died was at work on, as they were proposed."""
        for frozen in self._study.get_trials(states=[State.RUNNING]):
            self._study.sampler = self._sampler(frozen.number)
            trial = optuna.trial.Trial(self._study, frozen._trial_id)
            for name, distribution in distributions(self._space).items():
                if name in frozen.params and name not in trial.relative_params:
                    # Drawn before the process died: drawn again and dropped, so that the others get the draws due to them.
                    self._study.sampler.sample_independent(self._study, frozen, name, distribution)
                trial._suggest(name, distribution)  # what the journal already has is given back as it is
            yield self._proposal(trial)

    def propose(self) -> Proposal | None:
        """The next one; None where all that were asked for have been proposed."""
        if self._asked >= self._request.trials:
            return None
        self._study.sampler = self._sampler(self._asked)
        with self._together():
            proposal = self._proposal(self._study.ask(distributions(self._space)))
        self._asked = proposal.number + 1
        return proposal

    def known(self, plan: Plan) -> Outcome | None:
        """What came of a plan that was evaluated before: it is not evaluated again."""
        trial = self._known.get(plan.hash)
        return None if trial is None else Outcome(trial.metric, trial.cost, 0.0)

    def tell(self, proposal: Proposal, outcome: Outcome) -> Trial:
        """Write down what came of a proposal."""
        trial = proposal.trial
        metric, cost = outcome.metric, outcome.cost
        with self._together():
            trial.set_user_attr("seconds", outcome.seconds)
            if metric is None or cost is None:
                trial.set_user_attr("error", outcome.error)
                self._study.tell(trial, state=State.FAIL)
            else:
                trial.set_user_attr("cost", _cost_attributes(cost))
                self._constrain(trial, metric, cost)
                self._study.tell(trial, [metric, cost.latency_ms, float(cost.size_bytes)])
        state: TrialState = "failed" if metric is None or cost is None else "complete"
        told = Trial(
            proposal.number, proposal.plan, state, metric, cost, outcome.seconds, self._request.seed, outcome.error
        )
        self._trials[told.number] = told
        if state == "complete":
            self._known[told.plan.hash] = told
        return told

    def _constrain(self, trial: optuna.Trial, metric: float, cost: Cost) -> None:
        if not self._limits:
            return
        drop = self._metric.drop(self._baseline_metric, metric)
        told = self._study.get_trials(deepcopy=False)[trial.number].constraints  # by a process that died right after
        for place, excess in enumerate(self._limits.broken(drop, cost)):
            if str(place) not in told:
                trial.set_constraint(str(place), excess)

    def _proposal(self, trial: optuna.Trial) -> Proposal:
        plan = self._space.plan(trial.params)
        trial.set_user_attr("plan", plan.to_json())
        if isinstance(self._study.sampler, GuidedSampler):
            trial.set_user_attr("why", self._study.sampler.why)
        self._trials[trial.number] = Trial(trial.number, plan, "running", None, None, None, self._request.seed)
        return Proposal(trial.number, plan, trial)

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        name: SamplerName = self._request.sampler  # type: ignore[assignment]
        limits = self._limits
        bounds = Bounds(limits.latency_ms, limits.size_bytes, limits.max_drop)
        return make_sampler(name, self._space, self._request.seed, number, self._landscape, bounds)


def run_trials(ledger: Ledger, bench: Workbench, timeout_s: float | None, told: Told) -> None:
    """Propose and evaluate, one after the other, until all trials asked for are finished or the time is up.

    Args:
        told: called after every trial with it and all trials so far.
    """
    began = time.monotonic()

    def finish(proposal: Proposal) -> None:
        outcome = ledger.known(proposal.plan) or evaluate(bench, proposal.plan)
        told(ledger.tell(proposal, outcome), ledger.trials)

    for proposal in ledger.unfinished():
        finish(proposal)
    while timeout_s is None or time.monotonic() - began <= timeout_s:
        following = ledger.propose()
        if following is None:
            return
        finish(following)


def _cost_attributes(cost: Cost) -> dict[str, float | int | str]:
    return {
        "latency_std_ms": cost.latency_std_ms,
        "peak_memory_bytes": cost.peak_memory_bytes,
        "macs": cost.macs,
        "latency_source": cost.latency_source,
    }


def read_trials(study: optuna.Study, seed: int) -> tuple[Trial, ...]:
    """All trials of a study that have a plan, by number."""
    return tuple(_trial(frozen, seed) for frozen in study.get_trials(deepcopy=False) if "plan" in frozen.user_attrs)


def _trial(frozen: FrozenTrial, seed: int) -> Trial:
    attributes = frozen.user_attrs
    plan = Plan.from_json(attributes["plan"])
    seconds = attributes.get("seconds")
    if frozen.state != State.COMPLETE or frozen.values is None:
        state = "failed" if frozen.state == State.FAIL else "running"
        return Trial(frozen.number, plan, state, None, None, seconds, seed, error=attributes.get("error"))  # type: ignore[arg-type]
    metric, latency_ms, size_bytes = frozen.values
    cost = Cost(latency_ms=latency_ms, size_bytes=int(size_bytes), **attributes["cost"])
    return Trial(frozen.number, plan, "complete", metric, cost, seconds, seed)
