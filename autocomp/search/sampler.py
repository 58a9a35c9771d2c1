"""What to try next. Every sampler is one of Optuna's or like them; a fresh one is made for every trial, seeded by the run's
seed and the trial's number, so that a proposal is a function of the seed, the number and the finished history, and a resumed
run goes on as the undisturbed one would."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, get_args

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from autocomp.errors import RequestError, check_known
from autocomp.plan import Plan
from autocomp.search.books import distributions
from autocomp.search.guided import GuidedSampler
from autocomp.search.landscape import Landscape
from autocomp.search.worth import Wish
from autocomp.space import Kind, SearchSpace

SamplerName = Literal["auto", "nsga2", "tpe", "random", "uniform"]

#: The kinds of decision that uniform plans differ in.
UNIFORM_KINDS: tuple[Kind, ...] = ("channel", "unstructured", "rank", "format")

#: Trials of one generation. Searches run to some dozens or hundreds of trials, so generations are small.
POPULATION = 16


def uniform_indices(space: SearchSpace) -> Iterator[dict[str, int]]:
    """The plans that treat all layers alike, every one that the space has once: first each format alone, then with
    ever more pruning and truncation beside it, so that the first dozen span the space. Heads go with channels; blocks
    all stay, since a network without any of them is none."""
    steps: Mapping[Kind, range] = {kind: range(space.strengths(kind)) for kind in UNIFORM_KINDS}
    combinations: list[dict[Kind, int]] = [
        dict(zip(UNIFORM_KINDS, chosen, strict=True)) for chosen in itertools.product(*steps.values())
    ]
    # Channels win over single weights, so both at once is channels alone.
    distinct = [c for c in combinations if not (c["channel"] and c["unstructured"])]
    ordered = sorted(
        distinct, key=lambda c: (c["channel"] + c["unstructured"] + c["rank"], sum(c.values()), *c.values())
    )
    seen: set[Plan] = set()
    for chosen in ordered:
        indices = space.uniform({**chosen, "head": chosen["channel"]})
        plan = space.plan(indices)
        if plan not in seen:  # a rank that saves nothing in pruned layers is left out of them
            seen.add(plan)
            yield indices


class UniformSampler(BaseSampler):
    """Baseline: the uniform plans, one after the other, then from the start again."""

    def __init__(self, space: SearchSpace) -> None:
        self._plans = list(uniform_indices(space))

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self,
        study: Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, int]:
        return {}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> int:
        return self._plans[trial.number % len(self._plans)][param_name]


class StartingSampler(BaseSampler):
    """Gives the first trials as told, and leaves the others to another sampler, which keeps its books on all: of a trial
    that was enqueued Optuna's NSGA-II is not asked, and counts it to no generation."""

    def __init__(self, first: Sequence[Mapping[str, int]], then: BaseSampler) -> None:
        self._first = first
        self._then = then

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._then.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, object]:
        proposed = self._then.sample_relative(study, trial, search_space)
        if trial.number < len(self._first):
            for name in [one for one in search_space if one not in proposed]:  # what it would have been asked for next
                self._then.sample_independent(study, trial, name, search_space[name])
            return {name: self._first[trial.number][name] for name in search_space}
        return dict(proposed)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> object:
        # Drawn in any case, so that what follows is what would have followed the same trials in one sitting.
        drawn = self._then.sample_independent(study, trial, param_name, param_distribution)
        return self._first[trial.number][param_name] if trial.number < len(self._first) else drawn

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._then.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._then.after_trial(study, trial, state, values)


class GeneticSampler(NSGAIISampler):
    """NSGA-II whose parents come by number: the trial that opens a generation then sees them in the order in which
    later ones, and a resumed run, read them back from the journal. All trials make the same decisions, so what they have
    in common is not looked for in ever more of them."""

    def __init__(self, decided: Mapping[str, BaseDistribution], seed: int) -> None:
        super().__init__(population_size=POPULATION, seed=seed)
        self._decided = {name: decided[name] for name in sorted(decided) if not decided[name].single()}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(self._decided)

    def get_trial_generation(self, study: Study, trial: FrozenTrial) -> int:
        """As Optuna has it, from the last trials alone: of a trial that was asked for later it is never an earlier one."""
        key = self._get_generation_key()
        if key not in trial.system_attrs:
            latest, finished = 0, 0
            for one in reversed(study._get_trials(deepcopy=False, use_cache=True)):
                generation = one.system_attrs.get(key, -1)
                if finished and 0 <= generation < latest:
                    break
                if one.state == TrialState.COMPLETE and generation >= 0:
                    latest, finished = generation, finished + 1
            following = latest + (finished >= POPULATION)
            study._storage.set_trial_system_attr(trial._trial_id, key, following)
            return following
        return int(trial.system_attrs[key])

    def select_parent(self, study: Study, generation: int) -> list[FrozenTrial]:
        return sorted(super().select_parent(study, generation), key=lambda trial: trial.number)


def make_sampler(
    name: SamplerName,
    space: SearchSpace,
    seed: int,
    number: int,
    landscape: Landscape | None = None,
    wish: Wish | None = None,
) -> BaseSampler:
    """The sampler for one trial.

    The first trial of every sampler is the untouched plan. ``auto`` is the guided one. NSGA-II and TPE heed the constraints
    that finished trials carry.

    Args:
        landscape, wish: what the guided sampler goes by.

    Raises:
        RequestError: no such sampler, or a guided one without a landscape.
    """
    check_known("sampler", name, get_args(SamplerName))
    if name == "auto":
        if landscape is None:
            raise RequestError("sampler auto goes by sensitivities; got none; measure them, or take nsga2")
        return GuidedSampler(landscape, seed, wish or Wish())
    trial_seed = int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4], "big")
    untouched = [space.uniform({})]
    if name == "uniform":
        return UniformSampler(space)
    if name == "random":
        return StartingSampler(untouched, RandomSampler(trial_seed))
    if name == "tpe":
        return StartingSampler(untouched, TPESampler(seed=trial_seed))
    return StartingSampler(untouched, GeneticSampler(distributions(space), trial_seed))
