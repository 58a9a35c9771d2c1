"""What each choice does by itself, measured on a real small network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autocomp.plan import Plan
from autocomp.run import RunFolder
from autocomp.search.sensitivity import BROKEN, distance, sensitivities, told
from tests.targets import small_setup


def measured(
    folder: RunFolder, seen: list[int] | None = None, limit_s: float | None = None
) -> dict[str, tuple[float, ...]]:
    setup = small_setup()
    with folder.working():
        return sensitivities(
            setup.bench,
            setup.space,
            folder,
            limit_s,
            lambda done, of, what: None if seen is None else seen.append(done),
        )


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def test_every_option_has_an_error_and_leaving_it_none(folder: RunFolder) -> None:
    space, found = small_setup().space, measured(folder)
    assert set(found) == set(space.by_name)
    for decision in space.decisions:
        errors = found[decision.name]
        assert len(errors) == len(decision.options)
        assert errors[0] == 0.0
        assert all(0.0 <= error <= BROKEN for error in errors)
        if decision.kind == "format":  # ever fewer bits
            assert errors[-1] == max(errors) > 0.0


def test_errors_of_other_options_are_not_those_of_these(folder: RunFolder) -> None:
    setup = small_setup()
    decision = next(one for one in setup.space.decisions if len(one.options) > 2)
    with folder.working():
        folder.append_event(
            told(replace(decision, options=decision.options[:-1]), [9.0] * (len(decision.options) - 1), ())
        )
    found = measured(folder)[decision.name]
    assert len(found) == len(decision.options)
    assert found[1] != 9.0


@pytest.mark.exhaustive
def test_an_interrupted_pass_goes_on_and_measures_nothing_twice(folder: RunFolder) -> None:
    whole = measured(folder)
    lines = (folder.path / "events.jsonl").read_text().splitlines()
    (folder.path / "events.jsonl").write_text("\n".join(lines[:3]) + "\n")
    seen: list[int] = []
    again = measured(folder, seen)
    assert seen[0] == 3
    assert list(again) != []
    for name, errors in whole.items():
        assert again[name] == pytest.approx(errors, rel=1e-4, abs=1e-9)
    seen.clear()
    assert measured(folder, seen) == again
    assert seen == []


def test_what_there_is_no_time_for_is_taken_to_be_like_the_rest(folder: RunFolder) -> None:
    space, whole = small_setup().space, measured(folder)
    lines = (folder.path / "events.jsonl").read_text().splitlines()
    (folder.path / "events.jsonl").write_text("\n".join(lines[:8]) + "\n")
    found = measured(folder, limit_s=0.0)
    assert set(found) == set(whole)
    guessed = [one for one in space.decisions if found[one.name] != whole[one.name]]
    assert guessed
    for one in guessed:
        assert len(found[one.name]) == len(one.options)
        assert found[one.name][0] == 0.0
        assert all(error > 0.0 for error in found[one.name][1:])
    assert len((folder.path / "events.jsonl").read_text().splitlines()) == 8


def test_a_distance_is_a_share_of_the_variance() -> None:
    before = [[torch.tensor([[0.0, 2.0]])], [torch.tensor([[4.0, 2.0]])]]
    assert distance(before, before) == 0.0
    nothing = [[torch.full((1, 2), 2.0)], [torch.full((1, 2), 2.0)]]
    assert distance(before, nothing) == pytest.approx(1.0)


def test_a_choice_that_fails_counts_as_broken(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = small_setup()
    compress = type(setup.bench).compress

    def failing(self: object, plan: Plan, weights: object = None) -> object:
        if any(layer.format is not None and layer.format.weight_bits == 2 for layer in plan.layers.values()):
            raise RuntimeError("no such solution")
        return compress(self, plan)  # type: ignore[arg-type]

    monkeypatch.setattr(type(setup.bench), "compress", failing)
    found = measured(folder)
    broken = [name for name, errors in found.items() if BROKEN in errors]
    assert any(name.startswith("format:") for name in broken)
    assert len(broken) < len(found)
