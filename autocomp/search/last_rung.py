"""Recovery as the last rung of a search: which of its points are trained, and what is solved for by what that taught."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from autocomp.run import RunFolder
from autocomp.search.begin import Setup
from autocomp.search.brought_back import solved_anew
from autocomp.search.candidates import (
    SOLVED_ANEW,
    furthest,
    most_accurate,
    plans_anew,
    searched_ones,
    short_epochs,
    sought,
    tried_shortly,
    wanted_first,
    worth_recovering,
)
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
        trials, request, metric = (
            searched_ones(self.folder, self.load()),
            self.setup.request,
            self.setup.bench.task.metric,
        )
        goal = cast("Goal", request.goal)
        if goal == "most-accurate":
            self._train(self._most_accurate(trials))
        elif goal in ENDS:  # which are asked for with a drop
            line = wanted_first(front_in(self.folder, trials, metric, Limits.of_trials), metric, goal)
            worth = sought(line, self.folder, self.setup.baseline.value, metric, request)
            recover_points(self.setup.bench, self.folder, worth, len(line).bit_length(), request, self.watcher)
        else:
            self._train(worth_recovering(trials, front_in(self.folder, trials, metric, Limits.of_trials)))

    def _train(self, several: Sequence[Trial], short: int = 0) -> None:
        setup = self.setup
        recover_points(setup.bench, self.folder, several, len(several), setup.request, self.watcher, short)

    def _most_accurate(self, trials: Sequence[Trial]) -> list[Trial]:
        """The few that are trained whole: those that came furthest in short trainings, where there are any."""
        request, metric = self.setup.request, self.setup.bench.task.metric
        several = most_accurate(keeping_in(self.folder, trials, metric), metric, self.setup.space.extent)
        if short := short_epochs(request):
            self._train(several, short)
            if self.searched.landscape is not None:
                several += self._found_anew(self._solved_anew(several), short)
        return furthest(several, self.folder, metric, request)

    def _solved_anew(self, several: Sequence[Trial]) -> Sequence[str]:
        """Have trials of the plans that are the best by what short trainings brought back of others; their hashes."""
        request, metric, landscape = self.setup.request, self.setup.bench.task.metric, self.searched.landscape
        plans = plans_anew(self.folder)
        if plans is None and landscape is not None:
            base, came_to = self.setup.baseline.value, tried_shortly(self.folder, request)
            trained = [
                (point.plan, metric.drop(base, came_to[point.plan.hash]) / (abs(base) or 1.0))
                for point in several
                if point.plan.hash in came_to
            ]
            tried = frozenset(trial.plan.hash for trial in self.load())
            limits = Limits.of_trials(request, self.folder.events())
            plans = solved_anew(landscape, limits, trained, tried)
            self.folder.append_event({"event": SOLVED_ANEW, "plans": [plan_text(plan) for plan in plans]})
        self.searched.evaluate(plans or ())
        return [plan.hash for plan in plans or ()]

    def _found_anew(self, hashes: Sequence[str], short: int) -> list[Trial]:
        """Of trials of these plans those whose files keep the limits, trained shortly."""

        def there() -> list[Trial]:
            return [one for one in self.load() if one.parent is None and (one.number == 0 or one.plan.hash in hashes)]

        self.check(there()[1:])
        kept = keeping_in(self.folder, there(), self.setup.bench.task.metric)
        kept = [trial for trial in kept if trial.number != 0]
        self._train(kept, short)
        return kept
