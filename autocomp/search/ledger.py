"""What a run's study has been asked for and told: the one owner of what was proposed and how it scored.

A trial that was being worked on when the process died is finished, not replaced: its proposal stands in the journal
and its number stays, so that nothing is lost, nothing is evaluated twice, and what follows is what would have followed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import cast

import optuna
from optuna.trial import TrialState as State

from autocomp.errors import AutocompError
from autocomp.plan import Plan
from autocomp.run import Request
from autocomp.search.books import CHOICE, PLAN_HASH, STOPPED, distributions, indices_of
from autocomp.search.earlier import NOTHING, Findings
from autocomp.search.evaluate import Outcome, Workbench, evaluate
from autocomp.search.guided import GuidedSampler
from autocomp.search.landscape import Landscape
from autocomp.search.limits import Goal, Limits
from autocomp.search.reached import Reached
from autocomp.search.rungs import Hurdle
from autocomp.search.sampler import SamplerName, UniformSampler, make_sampler
from autocomp.search.stored_plan import plan_text
from autocomp.search.study import PLAN, RUNGS, WHY, RunStudy, read_trials
from autocomp.search.worth import Wish
from autocomp.space import SearchSpace
from autocomp.task import Metric
from autocomp.trial import Cost, Trial, TrialState

Told = Callable[[Trial, Sequence[Trial]], None]

#: Samplers that lose nothing by trials that are stopped early: one learns from these as well, the other from none. NSGA-II and
#: TPE learn from finished ones only, and the uniform plans are a baseline, which is to be seen whole.
STOPPING: frozenset[SamplerName] = frozenset({"auto", "random"})
#: Decisions beyond which the guided sampler's indices are one attribute of a trial, not a parameter each: Optuna writes two
#: hundred characters about every parameter of every trial.
MOST_PARAMETERS = 150


@dataclass(frozen=True)
class Proposal:
    """A plan to be evaluated, under the number of its trial, and what it has to clear."""

    number: int
    plan: Plan
    trial: optuna.Trial
    hurdle: Hurdle | None


@dataclass(frozen=True)
class Knowledge:
    """What a search knows before its first trial.

    ``landscape``: what is foreseen; the sampler ``auto`` goes by it. ``found``: what an earlier search did; all the plans that
    were trained there are proposed.
    """

    landscape: Landscape | None = None
    found: Findings = NOTHING


class Ledger:
    """The one owner of what comes next and of what is known, wherever the evaluations are made.

    Args:
        baseline_metric: the untouched model's score on the search split, which drops are counted from.
        limits: those of the request, corrected by what files were found to take.
        more: trials beyond those of the request.
        given: plans of the space that trials beyond all so far are of, where they have none, and no others.
        again: stopped trials whose plans may be proposed again (see :meth:`to_see_again`).
    """

    def __init__(
        self,
        opened: RunStudy,
        space: SearchSpace,
        request: Request,
        metric: Metric,
        baseline_metric: float,
        knowledge: Knowledge = Knowledge(),
        limits: Limits | None = None,
        more: int = 0,
        given: Sequence[Plan] = (),
        again: frozenset[int] = frozenset(),
    ) -> None:
        self._study, self._together = opened.study, opened.together
        self._space, self._request = space, request
        self._metric, self._baseline_metric, self._scale = metric, baseline_metric, abs(baseline_metric) or 1.0
        self._limits = Limits.of_trials(request) if limits is None else limits
        self._knowledge = knowledge
        self._trials: dict[int, Trial] = {}
        self._known: dict[str, Outcome] = {}
        self._again = again
        self._reached = Reached(self._limits, cast("Goal", request.goal), metric, baseline_metric)
        #: Drops and their standard errors, in the metric's units.
        self._stopped: dict[int, tuple[float, float]] = {}
        for frozen in self._study.get_trials(deepcopy=False, states=[State.PRUNED]):
            drop, std = (share * self._scale for share in frozen.user_attrs[STOPPED])
            self._stopped[frozen.number] = drop, std
        for trial in read_trials(self._study, request.seed):
            self._note(trial)
        self._asked = len(self._study.get_trials(deepcopy=False))  # counted on: to list ten thousand takes its time
        tried = {trial.plan.hash for trial in self._trials.values()} if given else set[str]()
        missing = [plan for plan in given if plan.hash not in tried]
        self._asked_for = self._asked + len(missing) if given else request.trials + more
        trained = ((indices, "an earlier run trained it") for indices, _ in knowledge.found.trained)
        solved = ((space.indices(plan) or {}, "is the best by what short trainings brought back") for plan in missing)
        self._given = {**dict(enumerate(trained, 1)), **dict(enumerate(solved, self._asked))}
        self._kept: GuidedSampler | UniformSampler | None = None

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All so far that have a plan, by number."""
        return tuple(self._trials[number] for number in sorted(self._trials))

    def unfinished(self) -> Iterator[Proposal]:
        """Those that a process which died was at work on, as they were proposed."""
        for frozen in self._study.get_trials(states=[State.RUNNING]):
            self._study.sampler = self._sampler(frozen.number)
            trial = optuna.trial.Trial(self._study, frozen._trial_id)
            sampler = self._study.sampler
            if self._in_one and isinstance(sampler, GuidedSampler):
                # Without a choice where the process died, or was interrupted, between two entries of its proposal.
                indices = indices_of(frozen, self._space) or sampler.indices(self._study, frozen.number)
                yield self._chosen(trial, indices)
                continue
            # Of what was proposed whole nothing is drawn: the guided sampler would take another plan to be at work.
            whole = isinstance(sampler, GuidedSampler) and WHY in frozen.user_attrs
            for name, distribution in distributions(self._space).items():
                if not whole and name in frozen.params and name not in trial.relative_params:
                    # Drawn before the process died: drawn again and dropped, so that the others get the draws due to them.
                    self._study.sampler.sample_independent(self._study, frozen, name, distribution)
                trial._suggest(name, distribution)  # what the journal already has is given back as it is
            yield self._proposal(trial, trial.params)

    def propose(self) -> Proposal | None:
        """The next one; None where all that were asked for have been proposed, or the untouched network has no score that
        others could be compared with."""
        untouched = self._trials.get(0)
        if self._asked >= self._asked_for or (untouched is not None and untouched.state == "failed"):
            return None
        self._study.sampler = sampler = self._sampler(self._asked)
        if self._in_one and isinstance(sampler, GuidedSampler):
            # What takes its time first: an interruption meanwhile leaves no trial behind.
            indices = sampler.indices(self._study, self._asked)
            with self._together():
                proposal = self._chosen(self._study.ask(), indices)
        else:
            with self._together():
                trial = self._study.ask(distributions(self._space))
                proposal = self._proposal(trial, trial.params)
        self._asked = proposal.number + 1
        return proposal

    def _chosen(self, trial: optuna.Trial, indices: Mapping[str, int]) -> Proposal:
        """Of a trial whose indices are one attribute."""
        if CHOICE not in trial.user_attrs:
            trial.set_user_attr(CHOICE, [indices[decision.name] for decision in self._space.decisions])
        return self._proposal(trial, indices)

    def known(self, plan: Plan) -> Outcome | None:
        """What came of a plan that was evaluated before: it is not evaluated again."""
        landscape, metric = self._knowledge.landscape, self._knowledge.found.metrics.get(plan.hash)
        if plan.hash in self._known or metric is None or landscape is None:
            return self._known.get(plan.hash)
        try:
            return Outcome(metric, landscape.predicted(plan), 0.0)
        except AutocompError:  # what it scored holds here, what it costs is not foreseen: its evaluation says why
            return None

    def tell(self, proposal: Proposal, outcome: Outcome) -> Trial:
        """Write down what came of a proposal."""
        trial, cost = proposal.trial, outcome.cost
        state: TrialState = "failed"
        stopped_drop: float | None = None
        with self._together():
            trial.set_user_attr("seconds", outcome.seconds)
            if outcome.rungs:
                trial.set_user_attr(RUNGS, [[rung.share, rung.metric] for rung in outcome.rungs])
            if outcome.metric is not None and cost is not None:
                state = "complete"
                trial.set_user_attr("cost", _not_values(cost))
                self._constrain(trial, outcome.metric, cost)
                self._study.tell(trial, [outcome.metric, cost.latency_ms, float(cost.size_bytes)])
            elif outcome.stopped is not None and cost is not None:
                state = "stopped"
                trial.set_user_attr("cost", asdict(cost))
                stopped_drop, error = (value / self._scale for value in outcome.stopped)
                trial.set_user_attr(STOPPED, [stopped_drop, error])
                self._study.tell(trial, state=State.PRUNED)
            else:
                trial.set_user_attr("error", outcome.error)
                self._study.tell(trial, state=State.FAIL)
        told = replace(
            self._trials[proposal.number],
            state=state,
            metric=outcome.metric,
            cost=cost,
            seconds=outcome.seconds,
            error=outcome.error,
            rungs=outcome.rungs,
            stopped_drop=stopped_drop,
        )
        if outcome.stopped is not None:
            self._stopped[told.number] = outcome.stopped
        self._note(told)
        return told

    def _note(self, trial: Trial) -> None:
        self._trials[trial.number] = trial
        stopped = self._stopped.get(trial.number)
        if trial.cost is not None and (trial.metric is not None or stopped is not None):
            if trial.number not in self._again:
                self._known[trial.plan.hash] = Outcome(trial.metric, trial.cost, 0.0, None, trial.rungs, stopped)
            self._reached.note(trial)

    def to_see_again(self, limits: Limits) -> list[int]:
        """The stopped trials that would be on the front, for all that is known, were these the limits: what they were stopped
        by breaks them."""
        reached = replace(self._reached, limits=limits, front=[], least_drop=math.inf)
        whole = set[str]()
        for trial in self.trials:
            reached.note(trial)
            if trial.metric is not None:
                whole.add(trial.plan.hash)
        stopped = ((self._trials[number], *found) for number, found in sorted(self._stopped.items()))
        return reached.clearing(one for one in stopped if one[0].plan.hash not in whole)

    def _constrain(self, trial: optuna.Trial, metric: float, cost: Cost) -> None:
        if not self._limits:
            return
        drop = self._metric.drop(self._baseline_metric, metric)
        told = self._study.get_trials(deepcopy=False)[trial.number].constraints  # by a process that died right after
        for place, excess in enumerate(self._limits.broken(drop, cost)):
            if str(place) not in told:
                trial.set_constraint(str(place), excess)

    def _proposal(self, trial: optuna.Trial, indices: Mapping[str, int]) -> Proposal:
        plan = self._space.plan(indices)
        trial.set_user_attr(PLAN, plan_text(plan))
        trial.set_user_attr(PLAN_HASH, plan.hash)
        # One that a process which died had proposed keeps its reason.
        why = trial.user_attrs.get(WHY)
        if why is None and isinstance(self._study.sampler, GuidedSampler):
            why = self._study.sampler.why
            trial.set_user_attr(WHY, why)
        self._trials[trial.number] = Trial(trial.number, plan, "running", None, None, None, self._request.seed, why=why)
        stops = self._request.sampler in STOPPING and trial.number > 0
        return Proposal(trial.number, plan, trial, self._reached.hurdle if stops else None)

    @property
    def _in_one(self) -> bool:
        return self._request.sampler == "auto" and len(self._space.decisions) > MOST_PARAMETERS

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        if self._kept is not None:
            return self._kept
        name: SamplerName = self._request.sampler  # type: ignore[assignment]
        knowledge, goal = self._knowledge, cast("Goal", self._request.goal)
        recovers = self._request.recover_epochs > 0
        wish = Wish(self._limits, goal, knowledge.found.scored, recovers, self._given, self._again)
        sampler = make_sampler(name, self._space, self._request.seed, number, knowledge.landscape, wish)
        if isinstance(sampler, GuidedSampler | UniformSampler):
            self._kept = sampler  # what it has read of the study, or made of the space, it need not again
        return sampler


def run_trials(ledger: Ledger, bench: Workbench, timeout_s: float | None, told: Told) -> None:
    """Propose and evaluate, one after the other, until all trials asked for are finished or the time is up.

    Args:
        told: called after every trial with it and all trials so far.
    """
    began = time.monotonic()

    def finish(proposal: Proposal) -> None:
        outcome = ledger.known(proposal.plan) or evaluate(bench, proposal.plan, proposal.hurdle)
        told(ledger.tell(proposal, outcome), ledger.trials)

    for proposal in ledger.unfinished():
        finish(proposal)
    # The untouched network is evaluated in any case: without it there is nothing to tell.
    while not ledger.trials or timeout_s is None or time.monotonic() - began <= timeout_s:
        following = ledger.propose()
        if following is None:
            return
        finish(following)


def _not_values(cost: Cost) -> dict[str, float | int | str]:
    """What is not among a trial's values."""
    return {name: value for name, value in asdict(cost).items() if name not in ("latency_ms", "size_bytes")}
