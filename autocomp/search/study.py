"""The run's Optuna study: the one owner of what was proposed and how it scored, in an append-only journal.

A trial that was being worked on when the process died is finished, not replaced: its proposal stands in the journal
and its number stays, so that nothing is lost, nothing is evaluated twice, and what follows is what would have followed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from autocomp.errors import RunError
from autocomp.plan import Plan
from autocomp.run import Request
from autocomp.search.evaluate import Workbench
from autocomp.search.sampler import SamplerName, distributions, make_sampler
from autocomp.space import SearchSpace
from autocomp.task import Direction
from autocomp.trial import Cost, Trial

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


def open_study(journal: Path, direction: Direction) -> optuna.Study:
    """The study in ``journal``, to go on with; a new one where there is none. The caller holds the run folder."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # A process that was killed can leave Optuna's lock behind, and half a line. The run folder is held by this process
    # alone, so nobody else can be using it.
    Path(f"{journal}.lock").unlink(missing_ok=True)
    _mend(journal)
    storage = JournalStorage(JournalFileBackend(str(journal)))
    return optuna.create_study(
        storage=storage, study_name=NAME, directions=[direction, "minimize", "minimize"], load_if_exists=True
    )


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


def run_trials(
    study: optuna.Study, bench: Workbench, space: SearchSpace, request: Request, baseline_metric: float, told: Told
) -> None:
    """Propose and evaluate until ``request.trials`` are finished or the time is up.

    Args:
        baseline_metric: the untouched model's score on the search split, which drops are counted from.
        told: called after every trial with it and all trials so far.
    """
    began = time.monotonic()
    limits = Limits.of(request)
    known: dict[str, Trial] = {t.plan.hash: t for t in read_trials(study, request.seed) if t.state == "complete"}
    for frozen in study.get_trials(states=[TrialState.RUNNING]):
        study.sampler = _sampler(space, request, frozen.number)
        trial = optuna.trial.Trial(study, frozen._trial_id)
        for name, distribution in distributions(space).items():
            if name in frozen.params and name not in trial.relative_params:
                # Drawn before the process died: drawn again and dropped, so that the others get the draws due to them.
                study.sampler.sample_independent(study, frozen, name, distribution)
            trial._suggest(name, distribution)  # what the journal already has is given back as it is
        _finish(study, trial, bench, space, request, limits, baseline_metric, known)
        told(*_latest(study, request.seed, trial.number))
    while len(study.get_trials(deepcopy=False)) < request.trials:
        if request.timeout_s is not None and time.monotonic() - began > request.timeout_s:
            return
        study.sampler = _sampler(space, request, len(study.get_trials(deepcopy=False)))
        trial = study.ask(distributions(space))
        _finish(study, trial, bench, space, request, limits, baseline_metric, known)
        told(*_latest(study, request.seed, trial.number))


def _sampler(space: SearchSpace, request: Request, number: int) -> optuna.samplers.BaseSampler:
    name: SamplerName = request.sampler  # type: ignore[assignment]
    return make_sampler(name, space, request.seed, number)


def _finish(
    study: optuna.Study,
    trial: optuna.Trial,
    bench: Workbench,
    space: SearchSpace,
    request: Request,
    limits: Limits,
    baseline_metric: float,
    known: dict[str, Trial],
) -> None:
    """Evaluate a proposal and tell the study. A plan that was evaluated before is not evaluated again."""
    began = time.monotonic()
    plan = space.plan(trial.params)
    trial.set_user_attr("plan", plan.to_json())
    try:
        before = known.get(plan.hash)
        cost = bench.cost(plan)
        metric = bench.score(plan).value if before is None or before.metric is None else before.metric
    except Exception as error:  # noqa: BLE001
        # Whatever a model, a solver or a user's evaluate raises is this trial's failure; the search goes on.
        trial.set_user_attr("error", f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
        trial.set_user_attr("seconds", time.monotonic() - began)
        study.tell(trial, state=TrialState.FAIL)
        return
    trial.set_user_attr("cost", _cost_attributes(cost))
    trial.set_user_attr("seconds", time.monotonic() - began)
    if limits:
        drop = bench.task.metric.drop(baseline_metric, metric)
        told = study.get_trials(deepcopy=False)[trial.number].constraints  # by a process that died right after
        for place, excess in enumerate(limits.broken(drop, cost)):
            if str(place) not in told:
                trial.set_constraint(str(place), excess)
    study.tell(trial, [metric, cost.latency_ms, float(cost.size_bytes)])
    known[plan.hash] = Trial(trial.number, plan, "complete", metric, cost, None, request.seed)


def _cost_attributes(cost: Cost) -> dict[str, float | int | str]:
    return {
        "latency_std_ms": cost.latency_std_ms,
        "peak_memory_bytes": cost.peak_memory_bytes,
        "macs": cost.macs,
        "latency_source": cost.latency_source,
    }


def _latest(study: optuna.Study, seed: int, number: int) -> tuple[Trial, Sequence[Trial]]:
    trials = read_trials(study, seed)
    return next(trial for trial in trials if trial.number == number), trials


def read_trials(study: optuna.Study, seed: int) -> tuple[Trial, ...]:
    """All trials of a study that have a plan, by number."""
    return tuple(_trial(frozen, seed) for frozen in study.get_trials(deepcopy=False) if "plan" in frozen.user_attrs)


def _trial(frozen: FrozenTrial, seed: int) -> Trial:
    attributes = frozen.user_attrs
    plan = Plan.from_json(attributes["plan"])
    seconds = attributes.get("seconds")
    if frozen.state != TrialState.COMPLETE or frozen.values is None:
        state = "failed" if frozen.state == TrialState.FAIL else "running"
        return Trial(frozen.number, plan, state, None, None, seconds, seed, error=attributes.get("error"))  # type: ignore[arg-type]
    metric, latency_ms, size_bytes = frozen.values
    cost = Cost(latency_ms=latency_ms, size_bytes=int(size_bytes), **attributes["cost"])
    return Trial(frozen.number, plan, "complete", metric, cost, seconds, seed)
