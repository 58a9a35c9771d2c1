"""The trials of a search; and more of them when files break a limit that their predictions kept, or leave much of one unused
that their predictions do not."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

from autocomp.plan import Plan
from autocomp.run import Json, RunFolder
from autocomp.search.begin import Setup
from autocomp.search.candidates import searched_ones, to_train
from autocomp.search.earlier import Findings, adopt, earlier_findings
from autocomp.search.evaluate import Workbench
from autocomp.search.landscape import Landscape, without_errors
from autocomp.search.ledger import Knowledge, Ledger, run_trials
from autocomp.search.likely import likely_plans
from autocomp.search.limits import CORRECTED, Goal, Limits
from autocomp.search.local_sensitivity import on_this_machine
from autocomp.search.points import BASELINE, broken, front_in, known_drop, verifications, with_error
from autocomp.search.rungs import parts_of
from autocomp.search.sensitivity import Measures, sensitivities
from autocomp.search.study import RunStudy, open_study
from autocomp.search.surrogate import RESOLUTION, Surrogate
from autocomp.search.warm_start import warmed_up
from autocomp.search.workers import Workers
from autocomp.search.worth import Wish
from autocomp.trial import Trial
from autocomp.watch import Watcher

#: How often limits are corrected, and the trials that each correction is given: a share of those asked for, at least so many.
CORRECTIONS, MORE_SHARE, MORE_LEAST = 3, 0.1, 3
#: Where all files take less than this share of the milliseconds that are foreseen, a limit has more room than was thought.
ROOM = 0.95

#: The event that says that all rounds of so many trials are over.
OVER = "rounds over"

#: Verifies front points.
Check = Callable[[Sequence[Trial]], None]
Load = Callable[[], tuple[Trial, ...]]


@dataclass(frozen=True)
class Searched:
    """What trials were made by: ``landscape`` where the sampler goes by one; ``evaluate`` makes trials of more plans."""

    landscape: Landscape | None
    evaluate: Callable[[Sequence[Plan]], None]


@dataclass(frozen=True)
class Rounds:
    """What the trials of a run are made with. ``load`` reads them all; ``check`` exports and measures front points."""

    setup: Setup
    bench: Workbench
    folder: RunFolder
    watcher: Watcher
    workers: Workers | None
    load: Load
    check: Check

    def run(self) -> Searched:
        """Make all trials, in as many rounds as it takes until predictions are right about the limits, or enough."""
        began = time.monotonic()
        errors, found = self._errors(), earlier_findings(self.setup, self.folder)
        spent_s = time.monotonic() - began
        warm = replace(self, bench=self._warmed_up(errors, found))
        began = time.monotonic() - spent_s  # a warm start takes none of the time that was asked for
        landscape = warm._foreseen(errors)
        if errors is not None:
            self._tell_of_doubts(landscape)
        knowledge = Knowledge(landscape, self._with_worthy(found, landscape))
        opened = open_study(self.folder.journal, self.setup.bench.task.metric.direction)
        warm._rounds(opened, knowledge, began)
        return Searched(landscape if errors is not None else None, partial(warm._given, opened, knowledge))

    def _with_worthy(self, found: Findings, landscape: Landscape) -> Findings:
        """Of what was trained earlier what keeps all limits as they were asked for."""
        limits, scale = Limits.of(self.setup.request), abs(self.setup.baseline.value) or 1.0
        worthy = (
            (indices, drop)
            for indices, drop in found.trained
            if limits.allows(scale * drop) and landscape.keeps(landscape.choice(indices), limits)
        )
        return replace(found, trained=tuple(worthy) if self.setup.request.sampler == "auto" else ())

    def _given(self, opened: RunStudy, knowledge: Knowledge, plans: Sequence[Plan]) -> None:
        """Trials of these very plans, beyond all others."""
        if not plans:
            return
        limits = Limits.of_trials(self.setup.request, self.folder.events())
        self._trials(opened, knowledge, limits, self._corrections(), None, plans)

    def _rounds(self, opened: RunStudy, knowledge: Knowledge, began: float) -> None:
        request = self.setup.request
        while True:
            limits, corrections = Limits.of_trials(request, self.folder.events()), self._corrections()
            ledger = self._trials(opened, knowledge, limits, corrections, began)
            trials = self.load()
            if adopt(self.folder, trials):
                trials = self.load()
            if not limits.of_costs or not self._measurable(limits):
                return
            searched = searched_ones(self.folder, trials)
            if any(event.get("event") == OVER and event["trials"] == len(searched) for event in self.folder.events()):
                return  # what was measured after that is no reason to search on, nor to train others
            metric = self.setup.bench.task.metric
            # Before recovery what has gone through it, in an earlier sitting or run, has no say: what is trained is as it was.
            looked_at = searched if request.recover_epochs else trials
            if request.recover_epochs and request.goal == "most-accurate":
                # What these become, trained, leaves few of the others on the front.
                points = to_train(self.folder, looked_at, metric, self.setup.baseline.value, self.setup.space.extent)
            else:
                points = front_in(self.folder, looked_at, metric, Limits.of_trials)
            if points:
                before = time.monotonic()
                self.check(points)
                began += time.monotonic() - before  # measuring takes none of the time that was asked for
            if corrections == CORRECTIONS or not self._correct(limits, looked_at, ledger):
                self.folder.append_event({"event": OVER, "trials": len(searched)})
                return

    def _trials(
        self,
        opened: RunStudy,
        knowledge: Knowledge,
        limits: Limits,
        corrections: int,
        began: float | None,
        given: Sequence[Plan] = (),
    ) -> Ledger:
        request, metric = self.setup.request, self.setup.bench.task.metric
        # To take up again what was trained costs next to nothing, and is not counted; nor is what training asked for.
        more = corrections * max(MORE_LEAST, round(MORE_SHARE * request.trials)) + len(knowledge.found.trained)
        if request.recover_epochs:
            searched = [trial for trial in self.load() if trial.parent is None]
            more += len(searched) - len(searched_ones(self.folder, searched))
        again = frozenset(
            number for event in self._corrected() for number in cast("Sequence[int]", event.get("again", ()))
        )
        base = self.setup.baseline.value
        ledger = Ledger(opened, self.setup.space, request, metric, base, knowledge, limits, more, given, again)
        left_s = None
        if request.timeout_s is not None and began is not None:
            left_s = request.timeout_s - (time.monotonic() - began)

        def told(trial: Trial, trials: Sequence[Trial]) -> None:
            self.watcher.trial(trial, trials, request.trials + more + len(given), metric)

        if self.workers is None:
            run_trials(ledger, self.bench, left_s, told)
        else:
            from autocomp.search import ray_tune

            ray_tune.run_trials(ledger, self.bench, self.workers, left_s, told)
        return ledger

    def _errors(self) -> Mapping[str, Sequence[float]] | None:
        """What each choice does to the outputs by itself; None for a sampler that does not ask."""
        request = self.setup.request
        if request.sampler != "auto":
            return None
        # Half of the time that there is at most: the other half is for trials.
        half_s = None if request.timeout_s is None else request.timeout_s / 2
        return sensitivities(self.bench, self.setup.space, self.folder, half_s, self._step, self._measures())

    def _warmed_up(self, errors: Mapping[str, Sequence[float]] | None, found: Findings) -> Workbench:
        setup, request = self.setup, self.setup.request

        def likely(count: int) -> Sequence[Plan]:
            if errors is None:
                return ()
            goal, recovers = cast("Goal", request.goal), request.recover_epochs > 0
            wish = Wish(Limits.of_trials(request), goal, found.scored, recovers=recovers)
            direction = self.bench.task.metric.direction
            return likely_plans(self._foreseen(errors), direction, setup.baseline.value, request.seed, wish, count)

        return warmed_up(self.bench, setup.space, request.trials, request.seed, self.folder, self._step, likely)

    def _foreseen(self, errors: Mapping[str, Sequence[float]] | None) -> Landscape:
        if errors is None:
            return Landscape(self.setup.space, without_errors(self.setup.space), self.bench.cost)
        landscape, what = Landscape(self.setup.space, errors, self.bench.cost), "foreseeing what each choice costs"
        self._step(0, 1, what)
        landscape.foresee()
        self._step(1, 1, what)
        return landscape

    def _measures(self) -> Measures:
        if self.workers is None:
            return on_this_machine(self.watcher.say)
        from autocomp.search.ray_sensitivity import across

        return across(self.workers)

    def _step(self, done: int, of: int, what: str) -> None:
        self.watcher.step(what, done, of)

    def _tell_of_doubts(self, landscape: Landscape) -> None:
        """Where the drop that is allowed seems out of reach, before the trials."""
        limits = Limits.of_trials(self.setup.request, self.folder.events())
        if limits.max_drop is None:
            return
        scale, metric = abs(self.setup.baseline.value) or 1.0, self.setup.bench.task.metric
        choices = [
            choice for choice in (*landscape.front, *landscape.keeping(limits)) if landscape.keeps(choice, limits)
        ]
        if not choices:
            return
        medians, spreads = Surrogate(landscape).drops(choices)
        least = int(medians.argmin())
        if medians[least] * math.exp(-2 * spreads[least]) * scale > limits.max_drop + RESOLUTION * scale:
            self.watcher.say(
                f"the least {metric.lost} of {metric.name} that is foreseen within these limits is "
                f"{medians[least] * scale:.3g}, and at most {limits.max_drop:g} is allowed: it may be that no plan keeps both"
            )

    def _corrected(self) -> list[Json]:
        return [event for event in self.folder.events() if event.get("event") == CORRECTED]

    def _corrections(self) -> int:
        return len(self._corrected())

    def _measurable(self, limits: Limits) -> bool:
        """Whether a file may break a limit that its prediction keeps."""
        return self.bench.target.reachable or limits.size_bytes is not None

    def _correct(self, limits: Limits, trials: Sequence[Trial], ledger: Ledger) -> bool:
        """Write down by how much files broke limits that their predictions kept, the worst of them, or how much less than
        foreseen even the slowest of them takes, and what was stopped for nothing; False where neither is so. Timings that never
        settled say nothing."""
        verified = verifications(self.folder)
        base = next(trial for trial in trials if trial.number == BASELINE)
        factors = {"latency": limits.latency_factor, "size": limits.size_factor, "memory": limits.memory_factor}
        missed, shares = [], list[float]()
        for trial in trials:
            found = verified.get(trial.key)
            if found is None or trial.cost is None or trial.number == BASELINE:
                continue
            drop = known_drop(trial, self.setup.bench.task.metric, base.metric or 0.0)
            measured = cast("Mapping[str, float | None]", found["measured"])
            latency_ms = with_error(measured) if measured.get("settled", True) else None
            if latency_ms is not None:
                shares.append(latency_ms / trial.cost.latency_ms)
            if broken(trial, limits, drop, None):
                continue
            of_file = {
                "latency": (limits.latency_ms, latency_ms, trial.cost.latency_ms),
                "size": (limits.size_bytes, measured["size_bytes"], trial.cost.size_bytes),
                "memory": (limits.memory_bytes, measured.get("peak_memory_bytes"), trial.cost.peak_memory_bytes),
            }
            for name, (limit, took, foreseen) in of_file.items():
                if limit is not None and took is not None and took > limit:
                    factors[name] = max(factors[name], took / foreseen)
                    missed.append(trial.number)
        if missed:
            numbers = ", ".join(str(number) for number in sorted({*missed}))
            words = f"the files of trials {numbers} break a limit that their predictions kept"
        elif limits.latency_ms is not None and max(shares, default=1.0) < ROOM * limits.latency_factor:
            factors["latency"] = max(shares)
            words = "all files are faster than foreseen, and more of --max-latency-ms can be used"
        else:
            return False
        self.watcher.say(
            f"{words}; what is predicted is corrected ({factors['latency']:.3f} times the milliseconds, "
            f"{factors['size']:.4f} times the bytes, {factors['memory']:.3f} times the memory), and the search goes on"
        )
        latency, size, memory = (factors[name] for name in ("latency", "size", "memory"))
        corrected = replace(limits, latency_factor=latency, size_factor=size, memory_factor=memory)
        again = ledger.to_see_again(corrected)
        event: Json = {"event": CORRECTED, **factors, "missed": [*sorted({*missed})], "again": [*again]}
        self.folder.append_event(event)
        return True


def with_parts(setup: Setup) -> Workbench:
    """With the parts of the search split that evaluations begin with."""
    return replace(setup.bench, parts=parts_of(setup.bench.task, setup.baseline))
