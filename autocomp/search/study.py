"""The run's Optuna study, in an append-only journal: how it is opened, and read as trials."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as State

from autocomp.errors import RunError
from autocomp.search.books import PLAN_HASH, STOPPED
from autocomp.search.journal import Journal
from autocomp.search.stored_plan import plan_of
from autocomp.task import Direction
from autocomp.trial import Cost, Rung, Trial, TrialState

NAME = "autocomp"

#: Attributes of a trial.
PLAN, RUNGS, WHY = "plan", "rungs", "why"


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


def study_in_memory(direction: Direction) -> optuna.Study:
    """A study of what no run keeps."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(directions=[direction, "minimize", "minimize"])


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


def read_trials(study: optuna.Study, seed: int) -> tuple[Trial, ...]:
    """All trials of a study that have a plan, by number."""
    return tuple(_trial(frozen, seed) for frozen in study.get_trials(deepcopy=False) if PLAN in frozen.user_attrs)


def _trial(frozen: FrozenTrial, seed: int) -> Trial:
    attributes = frozen.user_attrs
    plan, seconds = plan_of(attributes[PLAN], attributes.get(PLAN_HASH)), attributes.get("seconds")
    rungs, why = tuple(Rung(*pair) for pair in attributes.get(RUNGS, ())), attributes.get(WHY)
    if frozen.state == State.COMPLETE and frozen.values is not None:
        metric, latency_ms, size_bytes = frozen.values
        cost = Cost(latency_ms=latency_ms, size_bytes=int(size_bytes), **attributes["cost"])
        return Trial(frozen.number, plan, "complete", metric, cost, seconds, seed, rungs=rungs, why=why)
    if STOPPED in attributes and frozen.state == State.PRUNED:
        cost, (drop, _) = Cost(**attributes["cost"]), attributes[STOPPED]
        return Trial(frozen.number, plan, "stopped", None, cost, seconds, seed, rungs=rungs, stopped_drop=drop, why=why)
    state: TrialState = "failed" if frozen.state == State.FAIL else "running"
    return Trial(frozen.number, plan, state, None, None, seconds, seed, error=attributes.get("error"), why=why)
