"""A classifier and its data as a task: every form that a split may have, what is held out, and what is refused."""

from __future__ import annotations

import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, SubsetRandomSampler, TensorDataset

import autocomp
from autocomp.errors import TaskError
from autocomp.task import Metric
from autocomp.tasks import examples
from autocomp.tasks.check import check_task
from autocomp.tasks.classification import logits_of

COLOURS = {"blue": (20, 30, 220), "green": (10, 200, 40), "red": (230, 25, 35)}


class Colours(nn.Module):
    """The mean of each channel, in the classes' alphabetical order: (batch, 3, height, width) → (batch, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(3).flip(0))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.mean(dim=(2, 3)))
        return logits


def write_folder(root: Path, each: int, wrong: int = 0, size: int = 4) -> Path:
    """``each`` images per class; ``wrong`` red ones among the blue."""
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for number in range(each):
            shown = COLOURS["red"] if name == "blue" and number < wrong else colour
            Image.new("RGB", (size, size), shown).save(root / name / f"{number}.png")
    return root


def tensors(count: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images that the model sees rightly, but for the first two."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, 4, 4, generator=generator)
    with torch.no_grad():
        labels = Colours()(images).argmax(dim=1)
    labels[:2] = (labels[:2] + 1) % 3
    return images, labels


TRAIN, SEARCH, TEST = tensors(50, 1), tensors(60, 2), tensors(40, 3)


def refused(**splits: object) -> str:
    arguments: dict[str, object] = {"train": TRAIN, "search": SEARCH, "test": TEST, **splits}
    model = arguments.pop("model", Colours())
    with pytest.raises(TaskError) as caught:
        autocomp.classification(model, **arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestForms:
    """The same examples in another form are the same split."""

    @pytest.mark.parametrize(
        "search",
        [
            SEARCH,
            list(SEARCH),
            TensorDataset(*SEARCH),
            DataLoader(TensorDataset(*SEARCH), batch_size=7),
            DataLoader(TensorDataset(*SEARCH), batch_size=7, shuffle=True, drop_last=True),
            list(zip(*(torch.split(tensor, 11) for tensor in SEARCH), strict=True)),
        ],
    )
    def test_the_score_and_the_order_are_the_same(self, search: object) -> None:
        task = autocomp.classification(Colours(), train=TRAIN, search=search, test=TEST)  # type: ignore[arg-type]
        score = check_task(task)
        assert task.metric == Metric("accuracy", "maximize", "%")
        assert score.value == pytest.approx(100 * 58 / 60)
        assert score.outcomes is not None
        assert np.flatnonzero(score.outcomes == 0).tolist() == [0, 1]
        assert [tuple(tensor.shape) for tensor in task.example_inputs] == [(1, 3, 4, 4)]

    def test_a_loader_with_an_order_of_its_own_is_read_once(self) -> None:
        said: list[str] = []
        loader = DataLoader(TensorDataset(*SEARCH), batch_size=8, sampler=SubsetRandomSampler(range(2, 32)))
        task = autocomp.classification(Colours(), train=TRAIN, search=loader, test=TEST, progress=said.append)
        first, again = (task.evaluate(task.model, "search") for _ in range(2))
        assert first.value == 100
        assert first.outcomes is not None
        assert again.outcomes is not None
        assert first.outcomes.shape == again.outcomes.shape == (30,)
        assert said == ["search: the loader's order is its own, so its batches are read once into memory"]

    def test_a_stream_is_read_once(self) -> None:
        class Stream(IterableDataset[tuple[Tensor, int]]):
            def __iter__(self):  # type: ignore[no-untyped-def]
                return ((image, int(label)) for image, label in zip(*SEARCH, strict=True))

        task = autocomp.classification(Colours(), train=TRAIN, search=DataLoader(Stream(), batch_size=9), test=TEST)
        assert check_task(task).value == pytest.approx(100 * 58 / 60)

    def test_an_image_folder_and_a_zip_of_it(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "search", 5, wrong=1)
        with zipfile.ZipFile(tmp_path / "search.zip", "w") as archive:
            for path in folder.rglob("*.png"):
                archive.write(path, path.relative_to(tmp_path))  # below a folder of its own, as people zip them
            archive.writestr("search/blue/.hidden.png", b"")
            archive.writestr("__MACOSX/search/blue/0.png", b"")
        test = write_folder(tmp_path / "test", 2)
        for search in (folder, str(folder), tmp_path / "search.zip"):
            task = autocomp.classification(Colours(), train=TRAIN, search=search, test=test)
            score = check_task(task)
            assert score.value == pytest.approx(100 * 14 / 15)
            assert task.evaluate(task.model, "test").value == 100

    def test_batches_of_unlike_lengths_with_two_inputs(self) -> None:
        class Longer(nn.Module):
            def forward(self, first: Tensor, second: Tensor) -> Tensor:
                return torch.stack([first.sum(dim=1), second.sum(dim=1)], dim=1)

        generator = torch.Generator().manual_seed(0)
        sizes = (4, 4, 9, 2)
        parts = [tuple(torch.rand(6, size, generator=generator) for _ in range(2)) for size in sizes]
        batches = [(*part, Longer()(*part).argmax(dim=1)) for part in parts]
        task = autocomp.classification(
            Longer(), train=batches[:1], search=batches[1:], test=batches[:2], batch=4, dynamic_dims=((1,), (1,))
        )
        assert check_task(task).value == 100
        assert task.evaluate(Longer(), "search", 0.5).outcomes.shape == (9,)  # type: ignore[union-attr]
        assert task.train is not None
        assert [len(batch) for batch in task.train] == [3, 3]
        assert sum(len(batch[-1]) for batch in task.train) == 6


class TestHeldOut:
    def test_a_fifth_of_train_stands_in_for_search(self) -> None:
        said: list[str] = []
        task = autocomp.classification(Colours(), train=TRAIN, test=TEST, progress=said.append, name="colours")
        assert said == ["colours: no search split given; 10 of 50 training examples held out"]
        assert task.train is not None
        seen: list[Tensor] = []

        def predict(images: Tensor) -> Tensor:
            seen.append(images)
            return torch.zeros(len(images), 3)

        task.evaluate(predict, "search")
        held = {bytes(image.numpy()) for image in torch.cat(seen)}
        assert len(held) == 10
        for part in (task.calibration, task.train):
            kept = {bytes(image.numpy()) for batch in part for image in batch[0]}
            assert len(kept) == 40
            assert not kept & held

    def test_the_same_seed_holds_out_the_same(self) -> None:
        first, again, other = (
            autocomp.classification(Colours(), train=TRAIN, test=TEST, seed=seed) for seed in (0, 0, 1)
        )
        for task, same in ((again, True), (other, False)):
            assert task.calibration[0][0].equal(first.calibration[0][0]) == same

    def test_the_classes_keep_their_proportions(self, tmp_path: Path) -> None:
        train, test = write_folder(tmp_path / "train", 10), write_folder(tmp_path / "test", 1)
        task = autocomp.classification(Colours(), train=train, test=test)
        labels: list[int] = []

        def predict(images: Tensor) -> Tensor:
            labels.extend(Colours()(images).argmax(dim=1).tolist())
            return torch.zeros(len(images), 3)

        task.evaluate(predict, "search")
        assert sorted(labels) == [0, 0, 1, 1, 2, 2]


class TestFraction:
    def test_parts_are_nested_and_seeded(self) -> None:
        task = autocomp.classification(Colours(), train=TRAIN, search=SEARCH, test=TEST)

        def seen_at(fraction: float) -> set[bytes]:
            seen: list[Tensor] = []

            def predict(images: Tensor) -> Tensor:
                seen.append(images)
                return torch.zeros(len(images), 3)

            task.evaluate(predict, "search", fraction)
            return {bytes(image.numpy()) for image in torch.cat(seen)}

        parts = [seen_at(fraction) for fraction in (0.01, 0.1, 0.5, 1.0)]
        assert [len(part) for part in parts] == [1, 6, 30, 60]
        assert all(part < larger for part, larger in pairwise(parts))
        assert seen_at(0.1) == parts[1]

    @pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5])
    def test_none_or_more_than_all_is_refused(self, fraction: float) -> None:
        task = autocomp.classification(Colours(), train=TRAIN, search=SEARCH, test=TEST)
        with pytest.raises(TaskError, match="above 0 and at most at 1"):
            task.evaluate(task.model, "test", fraction)


class TestLazy:
    """A folder of a million images is not read to make the task, and never held in memory whole."""

    class Counting(Dataset[tuple[Tensor, int]]):
        def __init__(self) -> None:
            self.read: list[int] = []

        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            self.read.append(index)
            return SEARCH[0][index], int(SEARCH[1][index])

    def test_examples_are_read_when_they_are_needed_and_then_kept(self) -> None:
        search, train = self.Counting(), self.Counting()
        task = autocomp.classification(Colours(), train=train, search=search, test=TEST, batch=16)
        assert search.read == [0]  # the example
        assert train.read == []
        for _ in range(2):
            task.evaluate(task.model, "search")
        assert sorted(search.read) == list(range(40))
        assert task.train is not None
        labels = task.train[0][-1]
        assert len(train.read) == len(labels) <= 16

    def test_no_more_is_kept_than_the_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(examples, "KEPT_BYTES", 1000)
        search = self.Counting()
        task = autocomp.classification(Colours(), train=TRAIN, search=search, test=TEST)
        task.evaluate(task.model, "search")
        task.evaluate(task.model, "search")
        kept = 1 + 1000 // (3 * 4 * 4 * 4 + 64)  # the one that goes over the limit is the last
        assert len(search.read) == 40 + (40 - kept)


class TestOutputs:
    def test_an_output_object_or_a_dictionary_of_logits(self) -> None:
        class Wrapped(nn.Module):
            def __init__(self, form: str) -> None:
                super().__init__()
                self.net, self.form = Colours(), form

            def forward(self, images: Tensor) -> object:
                from types import SimpleNamespace

                logits = self.net(images)
                return {
                    "object": SimpleNamespace(logits=logits, loss=None),
                    "dict": {"features": images, "logits": logits},
                    "tuple": (logits, images),
                }[self.form]

        for form in ("object", "dict", "tuple"):
            task = autocomp.classification(Wrapped(form), train=TRAIN, search=SEARCH, test=TEST)
            assert check_task(task).value == pytest.approx(100 * 58 / 60)

    def test_what_holds_no_logits_is_refused(self) -> None:
        with pytest.raises(TaskError, match=r"it returned shape \(2, 3, 4\)"):
            logits_of(torch.zeros(2, 3, 4))
        with pytest.raises(TaskError, match="it returned a str"):
            logits_of("none")

    def test_the_model_is_left_as_it_is(self) -> None:
        model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(48), nn.Linear(48, 3)).train()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        autocomp.classification(model, train=TRAIN, search=SEARCH, test=TEST)
        assert model.training
        assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


class TestRefused:
    def test_splits_that_are_the_same_data(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "images", 2)
        dataset = TensorDataset(*SEARCH)
        for one, other in (
            (SEARCH, SEARCH),
            (dataset, dataset),
            ((SEARCH[0].clone(), SEARCH[1].clone()), [SEARCH[0][:], SEARCH[1][:]]),
            (DataLoader(dataset), DataLoader(dataset, shuffle=True)),
            (folder, str(tmp_path / "images" / ".." / "images")),
        ):
            assert refused(search=one, test=other).startswith("splits must be apart; search and test are the same data")
        assert "train and search" in refused(train=dataset, search=dataset)

    def test_labels_that_are_no_classes(self) -> None:
        task = autocomp.classification(Colours(), train=TRAIN, search=(SEARCH[0], SEARCH[1] + 1), test=TEST)
        with pytest.raises(TaskError, match=r"from 0 to 2, for the model's 3 outputs; got 1 to 3"):
            task.evaluate(task.model, "search")
        assert "whole numbers of shape (batch,)" in refused(search=(SEARCH[0], SEARCH[1].float()))
        assert "whole numbers of shape (batch,)" in refused(search=(SEARCH[0], SEARCH[1].unsqueeze(1)))

    def test_other_forms(self) -> None:
        assert "search is a int" in refused(search=5)
        assert "search is empty" in refused(search=TensorDataset(SEARCH[0][:0], SEARCH[1][:0]))
        assert "beside 3 labels" in refused(search=(SEARCH[0], SEARCH[1][:3]))
        assert "got a dict with images, labels; make it a pair" in refused(search=[{"images": 1, "labels": 2}])

    def test_too_little_is_given(self) -> None:
        assert refused(train=None).endswith("neither train nor calibration is given; give train=")
        assert "give search=" in refused(train=None, search=None)
        task = autocomp.classification(Colours(), search=SEARCH, test=TEST, calibration=TRAIN)
        assert task.train is None
        assert [len(batch) for batch in task.calibration] == [1]
        assert sum(len(images) for (images,) in task.calibration) == 50

    def test_a_model_that_does_not_take_the_inputs(self) -> None:
        message = refused(model=nn.Linear(7, 3))
        assert "the model must take the example inputs, of shape (1, 3, 4, 4); it raised" in message

    def test_a_head_of_other_classes(self, tmp_path: Path) -> None:
        test = write_folder(tmp_path / "test", 1)
        model = nn.Sequential(nn.Flatten(), nn.Linear(48, 10))
        assert f"it has 10 and {test} has 3 class subfolders" in refused(model=model, test=test)

    def test_folders_that_differ_in_classes(self, tmp_path: Path) -> None:
        search, test = write_folder(tmp_path / "search", 1), write_folder(tmp_path / "test", 1)
        (search / "green").rename(search / "gren")
        assert refused(search=search, test=test).endswith("those of search and test differ in green, gren")

    def test_folders_without_images(self, tmp_path: Path) -> None:
        assert "does not; give a folder with a subfolder per class" in refused(search=tmp_path / "nowhere")
        (tmp_path / "loose").mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / "loose" / "0.png")
        assert "must have a subfolder per class" in refused(search=tmp_path / "loose")
        (tmp_path / "no.zip").write_bytes(b"not one")
        assert "no.zip is neither" in refused(search=tmp_path / "no.zip")

    def test_images_that_do_not_decode_or_differ_in_size(self, tmp_path: Path) -> None:
        search = write_folder(tmp_path / "search", 2)
        task = autocomp.classification(Colours(), train=TRAIN, search=search, test=TEST)
        Image.new("RGB", (5, 5)).save(search / "green" / "1.png")
        with pytest.raises(TaskError, match="must have one size"):
            task.evaluate(task.model, "search")
        (search / "red" / "1.png").write_bytes(b"broken")
        task = autocomp.classification(Colours(), train=TRAIN, search=search, test=TEST)
        with pytest.raises(TaskError, match=r"1\.png does not"):
            task.evaluate(task.model, "search")
