"""What a study of plans says of them: its parameters, and what is known of its trials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from optuna.distributions import BaseDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from autocomp.search.landscape import Choice, Landscape
from autocomp.space import SearchSpace

#: A trial's attributes: its indices, where they are not its parameters; its plan's hash; where it was stopped, its drop and
#: the error of that.
CHOICE, PLAN_HASH, STOPPED = "choice", "plan_hash", "stopped"


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """One integer per decision: the index of its option."""
    return {decision.name: IntDistribution(0, len(decision.options) - 1) for decision in space.decisions}


def indices_of(trial: FrozenTrial, space: SearchSpace) -> dict[str, int]:
    """The index of every decision's option; none where nothing was proposed yet."""
    if CHOICE in trial.user_attrs:
        return {decision.name: index for decision, index in zip(space.decisions, trial.user_attrs[CHOICE], strict=True)}
    return dict(trial.params)


@dataclass
class Books:
    """What is known of a study's trials, each read once when it is finished."""

    finished: dict[int, tuple[Choice, float]] = field(default_factory=dict)
    #: Their drops, as shares of the metric, and the standard errors of these.
    stopped: dict[int, tuple[Choice, float, float]] = field(default_factory=dict)
    failed: dict[int, Choice] = field(default_factory=dict)
    #: Of the last look: those still at work.
    waiting: dict[int, Choice] = field(default_factory=dict)
    #: What was proposed here: a trial at work tells its parameters one by one.
    proposed: dict[int, Choice] = field(default_factory=dict)

    def are_of(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether what is written here is of the study with these trials, not of another one."""
        metrics = {one.number: None if one.values is None else one.values[0] for one in trials}
        known = (*self.finished, *self.stopped, *self.failed)
        return all(number in metrics for number in known) and all(
            metrics[number] == metric for number, (_, metric) in self.finished.items()
        )

    def read(self, trials: Sequence[FrozenTrial], number: int, landscape: Landscape) -> None:
        self.waiting = {}
        for one in trials:
            if one.number == number or any(one.number in known for known in (self.finished, self.stopped, self.failed)):
                continue
            if not one.state.is_finished() and one.number in self.proposed:
                self.waiting[one.number] = self.proposed[one.number]
                continue
            indices = indices_of(one, landscape.space)
            if not indices:
                continue
            self.proposed.pop(one.number, None)
            choice = landscape.choice(indices)
            if PLAN_HASH in one.user_attrs:
                landscape.remember(choice, one.user_attrs[PLAN_HASH])
            if one.state == TrialState.COMPLETE and one.values is not None and math.isfinite(one.values[0]):
                self.finished[one.number] = (choice, one.values[0])
            elif STOPPED in one.user_attrs:
                self.stopped[one.number] = (choice, *one.user_attrs[STOPPED])
            elif one.state.is_finished():
                self.failed[one.number] = choice
            else:
                self.waiting[one.number] = choice
