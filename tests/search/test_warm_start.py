"""A search corrects the latency model by its own files first, once, and replays what it measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from autocomp.hardware.kernels import Kernel
from autocomp.hardware.memory import PARTS, MemoryModel
from autocomp.hardware.timing import Timing
from autocomp.hardware.warm import WarmModel
from autocomp.plan import Plan
from autocomp.run import RunFolder
from autocomp.search import warm_start
from autocomp.search.begin import Setup, begin
from autocomp.search.evaluate import Workbench
from autocomp.search.warm_start import LEFT_OUT, file_count, timed_in, warm_plans, warmed_up
from tests.targets import made_target, small_setup

pytestmark = pytest.mark.slow


class Clock:
    """In the place of timing: file number n of a sitting takes n + 1 ms; the fourth never settles."""

    def __init__(self) -> None:
        self.sittings: list[int] = []

    def __call__(self, bench: Workbench, models: Mapping[int, bytes], progress: object) -> dict[int, Timing]:
        assert all(models.values())
        self.sittings.append(len(models))
        return {number: Timing(number + 1.0, 0.02, 0.01, number != 3, 5, 0.05) for number in models}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(warm_start, "time_files", made)
    return made


@pytest.fixture(scope="module")
def setup() -> Setup:
    made = small_setup()
    return replace(made, bench=replace(made.bench, target=replace(made_target(), reachable=True)))


def warm(setup: Setup, folder: RunFolder, trials: int) -> Workbench:
    folder.path.mkdir(exist_ok=True)
    return warmed_up(setup.bench, setup.space, trials, 3, folder, lambda *_: None)


def model_of(bench: Workbench) -> WarmModel:
    assert isinstance(bench.target.model, WarmModel)
    return bench.target.model


def test_plans_are_different_seeded_and_begin_with_the_untouched_one(setup: Setup) -> None:
    plans = warm_plans(setup.space, 12, 3)
    assert len({plan.hash for plan in plans}) == 12
    assert plans == warm_plans(setup.space, 12, 3)
    assert plans != warm_plans(setup.space, 12, 4)
    assert plans[0] == setup.space.plan({})
    assert len(warm_plans(setup.space, 0, 3)) == 0


def test_likely_plans_take_the_place_of_others_behind_the_untouched_one(setup: Setup) -> None:
    before = warm_plans(setup.space, 30, 3)
    likely = before[-3:]
    plans = warm_plans(setup.space, 8, 3, likely)
    assert len({plan.hash for plan in plans}) == 8
    assert plans[:3] == before[:3]
    assert plans[3:6] == likely
    assert warm_plans(setup.space, 8, 3, before[:3])[:3] == before[:3]  # what is no other plan takes no place


def test_half_of_the_files_are_of_likely_plans_which_are_asked_for_once(
    setup: Setup, clock: Clock, tmp_path: Path
) -> None:
    folder, asked = RunFolder(tmp_path / "run"), list[int]()
    folder.path.mkdir()
    plans = warm_plans(setup.space, 40, 9)

    def likely(count: int) -> tuple[Plan, ...]:
        asked.append(count)
        return plans[-count:]

    for _ in range(2):
        warmed = warmed_up(setup.bench, setup.space, 18, 3, folder, lambda *_: None, likely)
        kernels = [one.kernels for one in model_of(warmed).measured]
        lowered = [warmed.target.lower(setup.bench.structure(plan)) for plan in plans[-3:]]
        assert sum(each in kernels for each in lowered) >= 2  # the fourth file never settles
    assert asked == [3]
    assert clock.sittings == [6]


def test_what_an_earlier_run_timed_corrects_as_well_and_is_not_timed_again(
    setup: Setup, clock: Clock, tmp_path: Path
) -> None:
    """Through one that began from it and timed nothing itself."""
    earlier, between, run = (RunFolder(tmp_path / name) for name in ("earlier", "between", "run"))
    asked = replace(setup.request, trials=15, seed=3)
    for folder in (earlier, between, run):
        with folder.working():
            begin(replace(setup, request=asked), folder)
    measured = model_of(warm(setup, earlier, 15)).measured
    for before, after in ((earlier, between), (between, run)):
        after.append_event(*timed_in(before, setup.space, ()))
    assert model_of(warm(setup, run, 24)).measured[:4] == measured
    assert 0 < clock.sittings[1] < file_count(24)


def test_a_run_of_before_whose_plans_were_not_written_down_goes_on(setup: Setup, clock: Clock, tmp_path: Path) -> None:
    new, old = RunFolder(tmp_path / "new"), RunFolder(tmp_path / "old")
    measured = model_of(warm(setup, new, 15)).measured
    old.path.mkdir()
    old.append_event({"event": "warm-start-files", "files": 5}, *list(new.events())[1:])
    assert model_of(warm(setup, old, 15)).measured == measured
    assert clock.sittings == [5]


def test_a_search_measures_a_file_for_three_trials_and_no_more_than_thirty() -> None:
    assert [file_count(trials) for trials in (1, 12, 90, 5000)] == [0, 4, 30, 30]


def test_what_settled_corrects_the_model_and_every_timing_is_an_event(
    setup: Setup, clock: Clock, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "run")
    model = model_of(warm(setup, folder, 15))
    assert clock.sittings == [5]
    assert [one.latency_ms for one in model.measured] == [1.0, 2.0, 3.0, 5.0]
    assert [event["event"] for event in folder.events()] == ["warm-start-files", *["warm-start"] * 5]
    kernels = model.measured[0].kernels
    base = setup.bench.target.model
    assert abs(model.predict(kernels).latency_ms - 1) < abs(base.predict(kernels).latency_ms - 1)


@pytest.mark.exhaustive
def test_what_the_runtime_compiles_puts_the_rules_right_and_is_replayed(
    setup: Setup, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runtime that adds floats in blocks where the rules foresee convolutions of them."""
    foreseen = [setup.bench.target.lower(setup.bench.structure(plan)) for plan in warm_plans(setup.space, 5, 3)]
    op = foreseen[0][0].op

    def compiled(bench: Workbench, models: Mapping[int, bytes]) -> dict[int, tuple[Kernel, ...]]:
        return {
            number: tuple(replace(kernel, op="add" if kernel.op == op else kernel.op) for kernel in foreseen[number])
            for number in models
        }

    monkeypatch.setattr(warm_start, "compiled_kernels", compiled)
    folder = RunFolder(tmp_path / "run")
    first = warm(setup, folder, 15)
    kernels = first.target.lower(setup.bench.structure(Plan()))
    assert Counter(kernel.op for kernel in kernels)["add"] >= Counter(kernel.op for kernel in foreseen[0])[op] > 0
    assert op not in {kernel.op for kernel in kernels}
    assert model_of(first).measured[0].kernels == kernels
    monkeypatch.delattr(warm_start, "compiled_kernels")
    again = warm(setup, folder, 15)
    plan = warm_plans(setup.space, 9, 3)[-1]
    assert again.cost(plan) == first.cost(plan)
    assert model_of(again).measured == model_of(first).measured


def test_a_plan_without_a_file_is_left_out_of_the_warm_start(
    setup: Setup, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, before = warm_plans(setup.space, 5, 3)[2], Workbench.compress

    def compress(bench: Workbench, plan: Plan) -> object:
        if plan == bad:
            raise ValueError("no such\nthing")
        return before(bench, plan)

    monkeypatch.setattr(Workbench, "compress", compress)
    folder = RunFolder(tmp_path / "run")
    model = model_of(warm(setup, folder, 15))
    assert clock.sittings == [4]
    left_out = [event for event in folder.events() if event["event"] == LEFT_OUT]
    assert [(event["plan_hash"], event["error"]) for event in left_out] == [(bad.hash, "ValueError: no such thing")]
    monkeypatch.undo()  # a later sitting keeps to what the first one did
    assert model_of(warm(setup, folder, 15)).measured == model.measured


@pytest.mark.exhaustive
def test_a_file_with_a_kernel_that_the_model_lacks_corrects_nothing(
    setup: Setup, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = warm_plans(setup.space, 5, 3)
    foreseen = [{kernel.op for kernel in setup.bench.target.lower(setup.bench.structure(plan))} for plan in plans]
    lacking = next(iter(set[str]().union(*foreseen) - foreseen[0]))
    settled = [place for place in range(5) if place != 3]
    kept = [place for place in settled if lacking not in foreseen[place]]
    assert 0 < len(kept) < len(settled)
    monkeypatch.setattr(type(setup.bench.target.model), "covers", lambda model, kernel: kernel.op != lacking)
    model = model_of(warm(setup, RunFolder(tmp_path / "run"), 15))
    assert [one.latency_ms for one in model.measured] == [place + 1.0 for place in kept]


@pytest.mark.exhaustive
def test_memory_of_the_first_files_corrects_its_model(
    setup: Setup, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that takes twice what the calibration says; an interrupted warm start measures the same files."""
    says = MemoryModel((1e5,) * len(PARTS), 0.1, 0.5, 100)
    bench = replace(setup.bench, target=replace(setup.bench.target, memory=says))
    setup = replace(setup, bench=bench)
    asked: list[int] = []

    def twice(bench: Workbench, models: Mapping[int, bytes]) -> dict[int, int]:
        asked.append(len(models))
        return dict.fromkeys(models, 2 * bench.cost(Plan()).peak_memory_bytes)

    monkeypatch.setattr(warm_start, "footprints", twice)
    whole, torn = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "torn")
    first = warm(setup, whole, 15)
    before, after = (each.cost(Plan()).peak_memory_bytes for each in (bench, first))
    assert 1.5 * before < after < 2.1 * before
    torn.path.mkdir()
    for event in list(whole.events())[:3]:
        torn.append_event(event)
    again = warm(setup, torn, 15)
    assert asked == [3, 1]
    assert again.cost(Plan()).peak_memory_bytes == after


@pytest.mark.exhaustive
def test_a_resumed_run_replays_it_whatever_it_asks_for_now(setup: Setup, clock: Clock, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    first = model_of(warm(setup, folder, 15))
    again = model_of(warm(setup, folder, 300))
    assert clock.sittings == [5]
    assert again.measured == first.measured


@pytest.mark.exhaustive
def test_an_interrupted_one_measures_the_rest(setup: Setup, clock: Clock, tmp_path: Path) -> None:
    whole, torn = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "torn")
    warm(setup, whole, 15)
    torn.path.mkdir()
    for event in list(whole.events())[:3]:
        torn.append_event(event)
    model = model_of(warm(setup, torn, 15))
    assert clock.sittings == [5, 3]
    assert [one.latency_ms for one in model.measured] == [1.0, 2.0, 1.0, 2.0, 3.0]
    assert len(list(torn.events())) == 6


@pytest.mark.exhaustive
def test_what_was_timed_before_it_was_killed_is_kept(setup: Setup, clock: Clock, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()

    def killed(done: int, of: int, what: str) -> None:
        if done == 14:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        warmed_up(setup.bench, setup.space, 48, 3, folder, killed)
    assert len(list(folder.events())) == 1 + 10
    assert len(model_of(warm(setup, folder, 48)).measured) == 16 - 2  # the fourth of a sitting never settles
    assert clock.sittings == [10, 6]


def test_a_search_too_short_for_it_keeps_its_model_however_it_goes_on(
    setup: Setup, clock: Clock, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "run")
    assert model_of(warm(setup, folder, 2)).measured == ()
    assert model_of(warm(setup, folder, 60)).measured == ()
    assert clock.sittings == []


@pytest.mark.parametrize("within_reach_first", [True, False])
def test_all_trials_of_a_run_are_foreseen_alike_wherever_it_goes_on(
    within_reach_first: bool, setup: Setup, clock: Clock, tmp_path: Path
) -> None:
    """A profile's folder is within reach on its own machine only."""
    folder, target = RunFolder(tmp_path / "run"), setup.bench.target
    folder.path.mkdir()
    costs = []
    for reachable in (within_reach_first, not within_reach_first):
        bench = replace(setup.bench, target=replace(target, reachable=reachable))
        warmed = warmed_up(bench, setup.space, 9, 3, folder, lambda *_: None)
        costs.append(warmed.cost(setup.space.plan({setup.space.decisions[0].name: 1})).latency_ms)
        folder.journal.touch()  # there are trials now
    assert costs[0] == costs[1]
    assert len(clock.sittings) == within_reach_first


def test_a_target_out_of_reach_is_left_as_it_is(setup: Setup, clock: Clock, tmp_path: Path) -> None:
    bench = replace(setup.bench, target=made_target())
    assert warmed_up(bench, setup.space, 30, 3, RunFolder(tmp_path), lambda *_: None) is bench
    assert clock.sittings == []
