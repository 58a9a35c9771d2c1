"""Tasks that do not score as a search needs it are refused before it begins, in one line each."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from autocomp.errors import TaskError
from autocomp.task import Metric, Predict, Score, Split, Task
from autocomp.tasks.check import check_task


def _task(evaluate: Callable[..., object]) -> Task:
    x = torch.ones(1, 2)
    return Task("small", torch.nn.Linear(2, 2), (x,), [(x,)], evaluate)  # type: ignore[arg-type]


def _refusal_of(task: Task) -> str:
    with pytest.raises(TaskError) as caught:
        check_task(task)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_not_finite_is_refused(value: float) -> None:
    message = _refusal_of(_task(lambda *_: Score(value)))
    assert f"must score a finite number on the search split; got {value}" in message


def test_a_model_may_return_tensors_in_a_dictionary() -> None:
    class Nested(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, tuple[torch.Tensor, ...]]:
            return {"parts": (x, x + 1)}

    def evaluate(predict: Predict, *_: object) -> Score:
        return Score(float(predict(torch.ones(1, 2))["parts"][1].sum()))

    assert check_task(replace(_task(evaluate), model=Nested())).value == 4.0


def test_only_the_search_split_is_read() -> None:
    asked: list[str] = []

    def evaluate(predict: Predict, split: Split, _fraction: float = 1.0) -> Score:
        asked.append(split)
        return Score(float(predict(torch.ones(1, 2)).numel()))

    check_task(_task(evaluate))
    assert {*asked} == {"search"}


def test_an_evaluate_that_never_calls_what_it_is_given_is_refused() -> None:
    model = torch.nn.Linear(2, 2)
    message = _refusal_of(replace(_task(lambda *_: Score(float(model(torch.ones(1, 2)).numel()))), model=model))
    assert "evaluate must score what its first argument gives, predict; it never called it" in message


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"calibration": [(torch.ones(8, 3),)]}, r"a batch of calibration must be .* on shapes \(8, 3\) it raised"),
        ({"calibration": [(torch.ones(8, 2), torch.ones(8))]}, r"without labels; on shapes \(8, 2\), \(8,\) it raised"),
        (
            {"example_inputs": (torch.ones(1, 3),)},
            r"example_inputs must be .* on shapes \(1, 3\) it raised RuntimeError",
        ),
    ],
)
def test_inputs_that_the_model_does_not_take_are_named(changed: dict[str, Any], said: str) -> None:
    assert re.search(said, _refusal_of(replace(_task(lambda predict, _: Score(1.0)), **changed)))


def test_a_share_is_no_percentage() -> None:
    def evaluate(predict: Predict, *_: object) -> Score:
        predict(torch.ones(1, 2))
        return Score(0.75, np.array([1.0, 1.0, 1.0, 0.0]))

    task = replace(_task(evaluate), metric=Metric("accuracy", "maximize", "%"))
    assert "a metric whose unit is % has values of 0 to 100; got 0.75" in _refusal_of(task)
    assert check_task(_task(evaluate)).value == 0.75


def test_an_evaluate_that_raises_is_quoted_with_its_line() -> None:
    @torch.no_grad()
    def evaluate(predict: Predict, *_: object) -> Score:
        return Score(float(predict(torch.ones(1, 7)).sum()))  # the wrong width

    message = _refusal_of(_task(evaluate))
    line = evaluate.__wrapped__.__code__.co_firstlineno + 2  # type: ignore[attr-defined]
    assert "evaluate must score the untouched model; on the search split it raised RuntimeError" in message
    assert message.endswith(f"line {line} of test_check.py")


def test_an_evaluate_that_leans_on_the_module_is_refused() -> None:
    # An exported file has no such attributes, so the score would fail after the search.
    assert "has no attribute 'eval'" in _refusal_of(_task(lambda predict, _: Score(float(bool(predict.eval())))))


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (97.5, "must return a Score(value, outcomes); got a float; wrap the number"),
        (None, "must return a Score(value, outcomes); got None"),
        (Score(0.5, np.ones((4, 2))), "shape (examples,); got shape (4, 2)"),
        (Score(0.5, np.ones(0)), "got shape (0,)"),
        (Score(0.5, np.array([1.0, np.nan])), "got shape (2,) with 1 not finite"),
        (
            Score(2.0, np.array([1.0, 7.0])),
            "got the value 2 and outcomes of mean 4; leave them out where it is no mean",
        ),
        (Score(75.0, np.array([1.0, 0.0, 0.0, 0.0])), "got the value 75 and outcomes of mean 0.25"),
    ],
)
def test_a_malformed_score_is_refused(returned: object, words: str) -> None:
    assert words in _refusal_of(_task(lambda *_: returned))


def test_numbers_of_other_kinds_become_a_plain_score() -> None:
    def evaluate(predict: Predict, *_: object) -> Score:
        predict(torch.ones(1, 2))
        return Score(torch.tensor(0.5), np.array([True, False]))  # type: ignore[arg-type]

    score = check_task(_task(evaluate))
    assert type(score.value) is float
    assert score.outcomes is not None
    assert score.outcomes.dtype == np.float64


def test_a_model_left_in_training_mode_is_scored_in_evaluation_mode_and_not_touched() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2), torch.nn.Dropout(0.9)).train()
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.randn(32, 2, generator=torch.Generator().manual_seed(0))

    def evaluate(predict: Predict, *_: object) -> Score:
        return Score(float(predict(x).sum()))

    task = replace(_task(evaluate), model=model)
    assert check_task(task).value == check_task(task).value  # dropout and batch statistics would differ
    assert all(module.training for module in model.modules())
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, kept[name], rtol=0, atol=0)


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    class Stubborn(torch.nn.Module):
        def __deepcopy__(self, _memo: object) -> Stubborn:
            raise NotImplementedError("only one of me")

    message = _refusal_of(replace(_task(lambda *_: Score(1.0)), model=Stubborn()))
    assert "must be copyable by copy.deepcopy; it raised NotImplementedError: only one of me" in message


def test_a_score_is_made_of_numbers() -> None:
    with pytest.raises(TaskError, match="a score must be made of numbers; got 'high'"):
        Score("high")  # type: ignore[arg-type]
    mixed = Score(torch.tensor(0.5), np.array([True, False]))  # type: ignore[arg-type]
    assert type(mixed.value) is float
    assert mixed.outcomes is not None
    assert mixed.outcomes.dtype == np.float64


XS = torch.linspace(-1.0, 1.0, 64).unsqueeze(1).repeat(1, 2)


def _mean_over(loader: DataLoader[Any], outcomes: bool) -> Callable[..., Score]:
    def evaluate(predict: Predict, *_: object) -> Score:
        found = torch.cat([predict(x).square().sum(dim=1) for (x,) in loader]).double().numpy()
        return Score(float(found.mean()), found if outcomes else None)

    return evaluate


@pytest.mark.parametrize("outcomes", [True, False])
def test_an_evaluate_that_draws_its_examples_is_refused(outcomes: bool) -> None:
    def evaluate(predict: Predict, *_: object) -> Score:
        found = predict(XS[random.sample(range(64), 8)]).square().sum(dim=1).numpy().astype(np.float64)
        return Score(float(found.mean()), found if outcomes else None)

    assert "evaluate must score the same examples in the same order every time" in _refusal_of(_task(evaluate))


def test_a_shuffled_loader_pairs_no_outcomes() -> None:
    loader = DataLoader(TensorDataset(XS), batch_size=16, shuffle=True)
    message = _refusal_of(_task(_mean_over(loader, outcomes=True)))
    assert message.endswith("shuffle and draw nothing, or seed it anew in every call")
    assert check_task(_task(_mean_over(loader, outcomes=False))).value > 0  # the mean is the same in any order


def test_an_order_that_is_the_same_in_every_call_is_as_good_as_any() -> None:
    def evaluate(predict: Predict, *_: object) -> Score:
        order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
        found = predict(XS[order]).square().sum(dim=1).double().numpy()
        return Score(float(found.mean()), found)

    assert check_task(_task(evaluate)).value > 0


def test_a_model_may_write_into_what_it_is_given() -> None:
    class Writing(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mul_(2.0)

    def evaluate(predict: Predict, *_: object) -> Score:
        return Score(float(predict(torch.ones(1, 2)).sum()))

    assert check_task(replace(_task(evaluate), model=Writing())).value == 4.0


def test_an_evaluate_that_wraps_errors_of_its_own_is_taken_as_it_is() -> None:
    def evaluate(predict: Predict, *_: object) -> Score:
        try:
            return Score(float(predict(torch.ones(1, 2)).numel()))
        except Exception as error:
            raise RuntimeError("my own words") from error

    assert check_task(_task(evaluate)).value == 2.0


def test_a_part_is_the_same_in_every_call_too() -> None:
    def evaluate(predict: Predict, _: Split, fraction: float = 1.0) -> Score:
        chosen = XS if fraction == 1.0 else XS[torch.randperm(64)[: round(64 * fraction)]]
        found = predict(chosen).square().sum(dim=1).double().numpy()
        return Score(float(found.mean()), found)

    assert "gave the model first of a part of the split, fraction=0.1 differed" in _refusal_of(_task(evaluate))


def test_inputs_may_hold_what_is_no_number() -> None:
    class Filled(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.nan_to_num(0.0)

    def evaluate(predict: Predict, *_: object) -> Score:
        found = predict(torch.tensor([[1.0, float("nan")]])).sum(dim=1).double().numpy()
        return Score(float(found.mean()), found)

    assert check_task(replace(_task(evaluate), model=Filled())).value == 1.0
