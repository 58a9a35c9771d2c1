"""Recovery as the last rung of a search: which of its points are trained, and what is solved for by what that taught."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from autocomp.plan import Plan
from autocomp.run import RunFolder
from autocomp.search.begin import Setup
from autocomp.search.brought_back import solved_anew
from autocomp.search.candidates import (
    CHOSEN,
    SOLVED_ANEW,
    decided,
    furthest,
    plans_anew,
    searched_ones,
    short_epochs,
    sought,
    to_train,
    tried_shortly,
    wanted_first,
    worth_recovering,
)
from autocomp.search.landscape import Landscape
from autocomp.search.limits import ENDS, Goal, Limits
from autocomp.search.points import front_in, keeping_in
from autocomp.search.recovery import recover_points
from autocomp.search.rounds import Check, Load, Searched
from autocomp.search.stored_plan import plan_text
from autocomp.trial import Trial
from autocomp.watch import Watcher


@dataclass(frozen=True)
class LastRung:
    """What points of a run are trained with. ``searched`` is what its trials were made by; ``load`` reads them all; ``check``
    exports and measures them."""

    setup: Setup
    folder: RunFolder
    searched: Searched
    watcher: Watcher
    load: Load
    check: Check

    def run(self) -> None:
        """Recover what is worth it; where an end of the front is wanted, what that takes to be found. It is the same at every
        sitting: what was recovered is no candidate."""
        request, metric, goal = self.setup.request, self.setup.bench.task.metric, cast("Goal", self.setup.request.goal)
        trials = searched_ones(self.folder, self.load())
        if goal == "most-accurate":
            self._train(self._most_accurate(trials))
        elif goal in ENDS:  # which are asked for with a drop
            line = wanted_first(front_in(self.folder, trials, metric, Limits.of_trials), metric, goal)
            worth = sought(line, self.folder, self.setup.baseline.value, metric, request)
            recover_points(self.setup.bench, self.folder, worth, len(line).bit_length(), request, self.watcher)
        else:
            kept = keeping_in(self.folder, trials, metric, self.setup.baseline.value)
            self._train(worth_recovering(kept, front_in(self.folder, trials, metric, Limits.of_trials)))

    def _train(self, several: Sequence[Trial], short: int = 0) -> None:
        setup = self.setup
        recover_points(setup.bench, self.folder, several, len(several), setup.request, self.watcher, short)

    def _most_accurate(self, trials: Sequence[Trial]) -> list[Trial]:
        """The few that are trained whole: those that came furthest in short trainings, where there are any."""
        request, metric, base = self.setup.request, self.setup.bench.task.metric, self.setup.baseline.value
        several = to_train(self.folder, trials, metric, base, self.setup.space.extent)
        if decided(self.folder, CHOSEN, trials) is None:
            numbers = [trial.number for trial in several]
            self.folder.append_event({"event": CHOSEN, "searched": len(trials), "trials": [*numbers]})
        if short := short_epochs(request):
            self._train(several, short)
            if (landscape := self.searched.landscape) is not None:
                several += self._found_anew(self._solved_anew(landscape, trials, several), short)
        return furthest(several, self.folder, metric, request)

    def _solved_anew(self, landscape: Landscape, trials: Sequence[Trial], several: Sequence[Trial]) -> Sequence[Plan]:
        """Have trials of the plans that are the best by what short trainings brought back of others, ``several`` of all."""
        request, metric, base = self.setup.request, self.setup.bench.task.metric, self.setup.baseline.value
        plans = plans_anew(self.folder, trials)
        if plans is None:
            came_to = tried_shortly(self.folder, request)
            trained = [
                (point.plan, metric.drop(base, came_to[point.plan.hash]) / (abs(base) or 1.0))
                for point in several
                if point.plan.hash in came_to
            ]
            tried = frozenset(trial.plan.hash for trial in self.load())
            plans = solved_anew(landscape, Limits.of_trials(request, self.folder.events()), trained, tried)
            found = [plan_text(plan) for plan in plans]
            self.folder.append_event({"event": SOLVED_ANEW, "searched": len(trials), "plans": [*found]})
        self.searched.evaluate(plans)
        return plans

    def _found_anew(self, plans: Sequence[Plan], short: int) -> list[Trial]:
        """Of trials of these plans those whose files keep the limits, trained shortly."""
        metric, base = self.setup.bench.task.metric, self.setup.baseline.value
        hashes = {plan.hash for plan in plans}
        found = [one for one in self.load() if one.parent is None and one.plan.hash in hashes]
        self.check(found)
        kept = keeping_in(self.folder, found, metric, base)
        self._train(kept, short)
        return kept
