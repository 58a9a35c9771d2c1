"""A study of one's own, in Optuna or under Ray Tune, on what a run has found out about a network and a target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from autocomp.errors import RunError, WorkError
from autocomp.plan import Plan
from autocomp.run import RunFolder
from autocomp.search.begin import Setup, check_same_choices
from autocomp.search.books import distributions
from autocomp.search.evaluate import evaluate
from autocomp.search.guided import GuidedSampler
from autocomp.search.landscape import Landscape
from autocomp.search.limits import Goal, Limits
from autocomp.search.sensitivity import sensitivities
from autocomp.search.worth import Wish

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution, IntDistribution


@dataclass(frozen=True)
class OwnStudy:
    """The guided ``sampler``, and an objective for it, which is called with a trial. The values of a trial are the metric on
    the search split, the latency in ms and the size in bytes that are predicted; its parameters are the space's decisions, of
    each the index of its option."""

    sampler: GuidedSampler
    setup: Setup

    @property
    def directions(self) -> list[Literal["minimize", "maximize"]]:
        """Where each value is to go, in Optuna's words."""
        return [self.setup.bench.task.metric.direction, "minimize", "minimize"]

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Of the parameters."""
        return distributions(self.setup.space)

    def plan(self, parameters: Mapping[str, int]) -> Plan:
        """The plan that parameters are; what is missing is left as it is."""
        return self.setup.space.plan(parameters)

    def evaluate(self, plan: Plan) -> tuple[float, float, float]:
        """Metric, latency in ms and size in bytes.

        Raises:
            WorkError: it cannot be compressed so, has no prediction, or its evaluation failed; says why.
        """
        found = evaluate(self.setup.bench, plan)
        if found.metric is None or found.cost is None:
            raise WorkError(f"a plan could not be evaluated: {found.error}")
        return found.metric, found.cost.latency_ms, float(found.cost.size_bytes)

    def __call__(self, trial: optuna.Trial) -> tuple[float, float, float]:
        ranges = cast("Mapping[str, IntDistribution]", self.distributions)
        return self.evaluate(
            self.plan({name: trial.suggest_int(name, one.low, one.high) for name, one in ranges.items()})
        )


def own_study(setup: Setup, folder: RunFolder, seed: int) -> OwnStudy:
    """What a study of one's own needs of a run that was searched with the sampler ``auto``.

    Raises:
        RunError: it was searched with another one, or its space offers other choices now.
    """
    request = folder.request()
    if request.sampler != "auto":
        raise RunError(
            "a study is guided by what each choice does by itself, which a search with sampler auto measures; "
            f"{folder.path} is one with {request.sampler}"
        )
    check_same_choices(setup, folder, "search anew")
    # What is missing, of a run that was stopped while it measured, is measured now.
    errors = sensitivities(setup.bench, setup.space, folder, None, lambda *_: None)
    wish = Wish(Limits.of(request, folder.events()), cast("Goal", request.goal))
    return OwnStudy(GuidedSampler(Landscape(setup.space, errors, setup.bench.forecast.cost), seed, wish), setup)
