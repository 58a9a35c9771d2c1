"""The embedded task: its parts, its score, and the cache that keeps its net."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from autocomp.errors import TaskError
from autocomp.task import Score, Split, Task
from autocomp.tasks.accuracy import Accuracy
from autocomp.tasks.digits import CLASSES, PART_SIZES, RECIPE, Recipe, digits, load_parts, part_indices

TINY = Recipe(widths=(4, 8), blocks_per_stage=1, epochs=1, half_size_epochs=0)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def task(cache: Path) -> Task:
    return digits(cache, recipe=TINY)


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return np.asarray(load_digits().target)


def test_no_example_is_in_two_parts(labels: np.ndarray) -> None:
    parts = part_indices(labels, seed=0)
    everything = np.concatenate(list(parts.values()))
    assert len(np.unique(everything)) == len(everything)
    assert everything.max() < len(labels)
    assert {part: len(indices) for part, indices in parts.items()} == dict(PART_SIZES)
    assert PART_SIZES["search"] >= 500
    assert PART_SIZES["test"] >= 500


def test_no_image_is_in_two_parts() -> None:
    seen: set[bytes] = set()
    for images, _ in load_parts().values():
        these = {image.numpy().tobytes() for image in images}
        assert not these & seen
        seen |= these


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_every_part_holds_each_class_in_its_proportion(labels: np.ndarray, seed: int) -> None:
    share = np.bincount(labels) / len(labels)
    for indices in part_indices(labels, seed).values():
        counts = np.bincount(labels[indices], minlength=CLASSES)
        assert np.abs(counts - share * len(indices)).max() <= 3


def test_the_parts_are_fixed_by_the_seed(labels: np.ndarray) -> None:
    first, again, other = part_indices(labels, 0), part_indices(labels, 0), part_indices(labels, 1)
    for part in PART_SIZES:
        np.testing.assert_array_equal(first[part], again[part])
        assert set(first[part]) != set(other[part])


def test_the_task_is_shaped_as_promised(task: Task) -> None:
    assert not any(module.training for module in task.model.modules())
    assert [tuple(tensor.shape) for tensor in task.example_inputs] == [(1, 1, 24, 24)]
    assert sum(len(images) for (images,) in task.calibration) == PART_SIZES["calibration"]
    assert all(len(images) <= 64 for (images,) in task.calibration)
    assert task.train is not None
    assert sum(len(target) for _, target in task.train) == PART_SIZES["train"]
    for images, target in task.train:
        assert images.shape[1:] == (1, 24, 24)
        assert images.dtype == torch.float32
        assert 0.0 <= images.min() <= images.max() <= 1.0
        assert target.shape == (len(images),)
    assert task.model(*task.example_inputs).shape == (1, CLASSES)
    assert task.metric.direction == "maximize"


@pytest.mark.parametrize("split", ["search", "test"])
def test_the_value_is_the_outcomes_mean_in_percent(task: Task, split: Split) -> None:
    score = task.evaluate(task.model, split)
    assert score.outcomes is not None
    assert score.outcomes.dtype == np.float64
    assert score.outcomes.shape == (PART_SIZES[split],)
    assert set(np.unique(score.outcomes)) <= {0.0, 1.0}
    assert score.value == pytest.approx(100 * score.outcomes.mean())


def test_a_perfect_and_a_hopeless_model_score_100_and_0(task: Task) -> None:
    images, labels = load_parts(TINY)["search"]
    truth = {image.numpy().tobytes(): int(label) for image, label in zip(images, labels, strict=True)}

    def perfect(batch: torch.Tensor) -> torch.Tensor:
        return torch.eye(CLASSES)[[truth[image.numpy().tobytes()] for image in batch]]

    assert task.evaluate(perfect, "search").value == 100.0
    assert task.evaluate(lambda batch: -perfect(batch), "search").value == 0.0


def test_batches_hold_250_images_and_the_last_the_rest(task: Task) -> None:
    sizes = []

    def predict(batch: torch.Tensor) -> torch.Tensor:
        sizes.append(len(batch))
        return torch.zeros(len(batch), CLASSES)

    task.evaluate(predict, "test")
    assert sizes == [250, 250, 10]


@settings(deadline=None)
@given(small=st.floats(0.001, 1.0), large=st.floats(0.001, 1.0))
def test_a_smaller_fraction_lies_within_a_larger(small: float, large: float) -> None:
    small, large = sorted((small, large))
    images = torch.arange(40.0).reshape(40, 1, 1, 1)
    accuracy = Accuracy((images, torch.arange(40) % CLASSES), (images, torch.zeros(40)))

    def seen(fraction: float) -> list[float]:
        batches: list[float] = []

        def predict(batch: torch.Tensor) -> torch.Tensor:
            batches.extend(batch.flatten().tolist())
            return torch.zeros(len(batch), CLASSES)

        score = accuracy(predict, "search", fraction)
        assert score.outcomes is not None
        assert len(score.outcomes) == len(batches)
        return batches

    part = seen(small)
    assert part == seen(large)[: len(part)]
    assert 1 <= len(part) <= small * 40 + 1


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.01, float("nan")])
def test_a_fraction_outside_its_range_is_refused(task: Task, fraction: float) -> None:
    with pytest.raises(TaskError, match="fraction must lie above 0 and at most at 1; got"):
        task.evaluate(task.model, "search", fraction)


def test_an_unknown_split_is_refused(task: Task) -> None:
    with pytest.raises(TaskError, match="a split must be search or test; got 'train'"):
        task.evaluate(task.model, "train")  # type: ignore[arg-type]


def test_a_second_call_loads_the_same_net(task: Task, cache: Path) -> None:
    said: list[str] = []
    again = digits(cache, said.append, TINY)
    assert said == []
    assert _same_weights(task, again)


def test_the_same_recipe_trains_the_same_net(task: Task, tmp_path: Path) -> None:
    said: list[str] = []
    other = digits(tmp_path, said.append, TINY)
    assert any("epoch 1 of 1" in line for line in said)
    for ours, theirs in zip(task.model.state_dict().values(), other.model.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_training_improves_the_net(cache: Path, task: Task) -> None:
    def loss(trained: Task) -> float:
        assert trained.train is not None
        with torch.no_grad():
            losses = [
                torch.nn.functional.cross_entropy(trained.model(images), target) for images, target in trained.train
            ]
        return float(torch.stack(losses).mean())

    assert loss(digits(cache, recipe=replace(TINY, epochs=4))) < loss(task)


def test_another_recipe_is_kept_beside_the_first(task: Task, cache: Path) -> None:
    before = set(cache.iterdir())
    digits(cache, recipe=replace(TINY, seed=1))
    assert before < set(cache.iterdir())
    assert _same_weights(task, digits(cache, recipe=TINY))


def test_the_callers_random_state_is_left_alone(tmp_path: Path) -> None:
    torch_state, numpy_state = torch.get_rng_state(), pickle.dumps(np.random.get_state())
    digits(tmp_path, recipe=TINY)  # trains
    digits(tmp_path, recipe=TINY)  # loads
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert pickle.dumps(np.random.get_state()) == numpy_state


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _one_weight_changed(content: bytes) -> bytes:
    """The same archive with another value in the first tensor: every torch loader accepts it."""
    tensor = b"data/0"
    start = content.index(tensor) + 200
    return content[:start] + bytes([content[start] ^ 0x10]) + content[start + 1 :]


@pytest.mark.parametrize(
    "damage", [_cut, _one_weight_changed, lambda _: b"", lambda _: b"not a net", lambda _: b"\x80\xc0garbage"]
)
def test_a_damaged_cache_file_is_trained_again_and_said(
    task: Task, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    said: list[str] = []
    digits(tmp_path, said.append, TINY)
    (kept,) = tmp_path.iterdir()
    complaint = f"digits: the cached net {kept} is damaged; training it again"
    assert complaint not in said
    kept.write_bytes(damage(kept.read_bytes()))
    again = digits(tmp_path, said.append, TINY)
    for ours, theirs in zip(task.model.state_dict().values(), again.model.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs)
    digits(tmp_path, said.append, TINY)
    assert said.count(complaint) == 1
    assert list(tmp_path.iterdir()) == [kept]


def test_the_kept_file_loads_without_trusting_it(task: Task, cache: Path) -> None:
    for path in cache.iterdir():
        kept = torch.load(path, weights_only=True)
        assert set(kept) == {"weights", "sha256"}
    assert task.name == "digits"


def test_a_killed_training_leaves_nothing(tmp_path: Path) -> None:
    def killed(line: str) -> None:
        if "epoch" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        digits(tmp_path, killed, TINY)
    assert list(tmp_path.iterdir()) == []


def test_a_save_that_fails_leaves_nothing_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.save", full)
    with pytest.raises(TaskError, match=r"must be writable; .* \(No space left on device\); .* AUTOCOMP_CACHE$"):
        digits(tmp_path, recipe=TINY)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_folder_that_is_a_file_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    said: list[str] = []
    with pytest.raises(TaskError, match="the cache folder must be writable") as caught:
        digits(tmp_path / "file", said.append, TINY)
    assert "\n" not in str(caught.value)
    assert said == []


def test_the_cache_folder_can_be_named_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOCOMP_CACHE", str(tmp_path / "named"))
    digits(recipe=TINY)
    assert len(list((tmp_path / "named").iterdir())) == 1


def test_evaluate_travels_to_another_process(task: Task) -> None:
    there = pickle.loads(pickle.dumps(task.evaluate))
    assert isinstance(there(task.model, "search"), Score)


def test_the_embedded_net_knows_its_digits() -> None:
    """The real one: trained where no net is cached yet, loaded otherwise."""
    task = digits()
    assert RECIPE.side_px == task.example_inputs[0].shape[-1]
    assert task.evaluate(task.model, "search").value >= 97.0


def _same_weights(one: Task, other: Task) -> bool:
    pairs = zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    return all(torch.equal(ours, theirs) for ours, theirs in pairs)
