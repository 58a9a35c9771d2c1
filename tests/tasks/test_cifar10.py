"""The CIFAR ResNets: their checkpoints, their parts, and what is said of missing data."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from autocomp.errors import TaskError
from autocomp.task import Split, Task
from autocomp.tasks.accuracy import Accuracy
from autocomp.tasks.cifar10 import NORM, RESNET20, ResNet, checkpoint_net, cifar10_resnet20, resnet_task
from autocomp.tasks.data import read_images
from autocomp.tasks.images import Batches, Labelled, augmented, held_out, mixed

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the data folder {SHARED} is absent")

CLASSES = [f"class{number}" for number in range(10)]
TINY = replace(RESNET20, epochs=1, batch=16)
FILE = "tiny.th"


def jpegs(per_class: int, seed: int) -> Iterator[tuple[str, bytes]]:
    rng = np.random.default_rng(seed)
    for name in CLASSES:
        for number in range(per_class):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(file, "JPEG")
            yield f"{name}/{number:04}.jpg", file.getvalue()


def save_checkpoint(path: Path, net: nn.Module) -> None:
    """As akamaster's are: no count of batches, and the names of a net that was spread over GPUs."""
    state = {f"module.{key}": value for key, value in net.state_dict().items() if "num_batches" not in key}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state, "best_prec1": 91.0}, path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "cifar10-jpeg").mkdir()
    for part, per_class, seed in (("train", 12, 0), ("test", 3, 1)):
        with zipfile.ZipFile(folder / "cifar10-jpeg" / f"{part}.zip", "w") as archive:
            for name, content in jpegs(per_class, seed):
                archive.writestr(name, content)
    save_checkpoint(folder / "weights" / FILE, ResNet(8))
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def task(data: Path, cache: Path) -> Task:
    return resnet_task("tiny", 8, TINY, FILE, data=data, cache_dir=cache)


@pytest.mark.parametrize(("depth", "weights"), [(20, 269_722), (56, 853_018)])
def test_the_nets_have_the_published_sizes(depth: int, weights: int) -> None:
    assert sum(parameter.numel() for parameter in ResNet(depth).parameters()) == weights


def test_the_task_is_shaped_as_promised(task: Task) -> None:
    assert [tuple(tensor.shape) for tensor in task.example_inputs] == [(1, 3, 32, 32)]
    assert all(inputs.dtype == torch.float32 and len(inputs) <= 64 for (inputs,) in task.calibration)
    assert task.train is not None
    assert sum(len(labels) for _, labels in task.train) == 60
    search, test = task.evaluate(task.model, "search"), task.evaluate(task.model, "test")
    assert search.outcomes is not None
    assert test.outcomes is not None
    assert (len(search.outcomes), len(test.outcomes)) == (60, 30)
    assert "(JPEG)" in task.metric.name
    assert not any(module.training for module in task.model.modules())


@pytest.mark.parametrize("split", ["search", "test"])
def test_a_fraction_of_a_split_holds_every_class(task: Task, split: Split) -> None:
    """A test set lies on disk by class, and the first part of it must not be all aeroplanes."""
    assert isinstance(task.evaluate, Accuracy)
    _, labels = task.evaluate.search if split == "search" else task.evaluate.test
    third = torch.bincount(labels[: len(labels) // 3], minlength=10)
    assert int(third.min()) >= 1


def test_no_search_image_is_in_train_or_calibration(task: Task) -> None:
    assert isinstance(task.evaluate, Accuracy)
    assert isinstance(task.train, Batches)
    unmoved = replace(task.train, shift_px=0, mirror=False)
    search = {image.numpy().tobytes() for image in task.evaluate.search[0]}
    others = [inputs for batches in (unmoved, task.calibration) for inputs, *_ in batches]
    assert len(search) == 60
    assert not search & {image.numpy().tobytes() for inputs in others for image in inputs}


def test_a_second_call_loads_the_same_net(task: Task, data: Path, cache: Path) -> None:
    said: list[str] = []
    again = resnet_task("tiny", 8, TINY, FILE, said.append, data, cache)
    assert said == []
    for ours, theirs in zip(task.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_fine_tuning_starts_from_the_checkpoint_and_leaves_it(task: Task, data: Path) -> None:
    start = checkpoint_net(8, data / "weights" / FILE)
    pairs = zip(task.model.parameters(), start.parameters(), strict=True)
    far = [((ours - theirs).norm().item(), theirs.norm().item()) for ours, theirs in pairs]
    assert all(distance > 0.0 for distance, _ in far)
    assert far[0][0] < far[0][1]


def test_another_checkpoint_is_another_net(data: Path, tmp_path: Path, cache: Path, task: Task) -> None:
    save_checkpoint(data / "weights" / "other.th", ResNet(8))
    before = set(cache.glob("tiny-*"))
    resnet_task("tiny", 8, TINY, "other.th", data=data, cache_dir=cache)
    assert len(set(cache.glob("tiny-*")) - before) == 1


def test_data_is_found_from_the_sets_own_folder(data: Path, cache: Path, task: Task) -> None:
    said: list[str] = []
    resnet_task("tiny", 8, TINY, FILE, said.append, data / "cifar10-jpeg", cache)
    assert said == []


def test_evaluate_travels_to_another_process(task: Task) -> None:
    there = pickle.loads(pickle.dumps(task.evaluate))
    assert there(task.model, "test").value == task.evaluate(task.model, "test").value


def test_missing_data_and_weights_are_said_in_one_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AUTOCOMP_DATA", raising=False)
    lines = []
    with pytest.raises(TaskError, match=r"^CIFAR-10 \(JPEG\), .*: no data folder is named") as caught:
        cifar10_resnet20()
    lines.append(str(caught.value))
    with pytest.raises(TaskError, match=r"train.zip or train must be in the data folder") as caught:
        cifar10_resnet20(data=tmp_path)
    lines.append(str(caught.value))
    with pytest.raises(TaskError, match=r"^a ResNet's checkpoint .* resnet20-12fca82f.th must be in") as caught:
        cifar10_resnet20(data=data, cache_dir=tmp_path)
    lines.append(str(caught.value))
    assert not any("\n" in line for line in lines)
    assert not list(tmp_path.iterdir())


def test_the_checkpoint_of_another_net_is_refused(data: Path) -> None:
    with pytest.raises(TaskError, match=r"must hold the weights of ResNet-14; layer1.1.conv1.weight is missing"):
        checkpoint_net(14, data / "weights" / FILE)


class TestImages:
    """What CIFAR-10 and MNIST share."""

    def labelled(self, count: int = 50) -> Labelled:
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
        return Labelled(pixels, torch.arange(count) % 10, NORM)

    def test_parts_are_stratified_and_fixed(self) -> None:
        parts, again = held_out(self.labelled(), search=20), held_out(self.labelled(), search=20)
        assert torch.bincount(parts.search.labels).tolist() == [2] * 10
        assert torch.equal(parts.search.pixels, again.search.pixels)
        assert len(parts.train) == 30
        assert not torch.equal(parts.search.pixels, held_out(self.labelled(), search=20, seed=1).search.pixels)

    def test_batches_make_the_whole(self) -> None:
        images = self.labelled()
        batches = Batches(images, 16)
        assert [len(labels) for _, labels in batches] == [16, 16, 16, 2]
        assert torch.equal(torch.cat([inputs for inputs, _ in batches]), images.tensors()[0])
        assert torch.equal(batches[-1][0], list(batches)[-1][0])
        assert len(batches[1:3]) == 2
        with pytest.raises(IndexError):
            batches[4]

    def test_augmented_batches_are_new_at_every_access_and_the_same_by_seed(self) -> None:
        batches = Batches(self.labelled(), 16, shift_px=1, mirror=True)
        torch.manual_seed(0)
        first, second = batches[0], batches[0]
        assert not torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])
        torch.manual_seed(0)
        assert torch.equal(batches[0][0], first[0])

    def test_normalised_pixels_have_the_stated_mean(self) -> None:
        pixels = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, 3, 1, 1)
        inputs = NORM(pixels).reshape(2, 3)
        for channel, (mean, std) in enumerate(zip(NORM.mean, NORM.std, strict=True)):
            assert inputs[:, channel].tolist() == pytest.approx([-mean / std, (1 - mean) / std], rel=1e-5)

    def test_an_augmented_image_is_a_moved_or_mirrored_one(self) -> None:
        inputs, _ = self.labelled().tensors()
        moved = augmented(inputs, 2, True, torch.Generator().manual_seed(0))
        padded = nn.functional.pad(inputs, (2, 2, 2, 2))
        for image, result in zip(padded, moved, strict=True):
            windows = [image[:, y : y + 8, x : x + 8] for y in range(5) for x in range(5)]
            assert any(torch.equal(result, one) or torch.equal(result, one.flip(2)) for one in windows)

    def test_no_shift_and_no_mirror_leave_all_as_it_is(self) -> None:
        inputs, _ = self.labelled().tensors()
        assert torch.equal(augmented(inputs, 0, False, torch.Generator()), inputs)


@needs_data
def test_the_real_checkpoints_load() -> None:
    for depth, name in ((20, "resnet20-12fca82f.th"), (56, "resnet56-4bfd9763.th")):
        net = checkpoint_net(depth, SHARED / "weights" / name)
        assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@needs_data
@pytest.mark.slow
def test_the_real_images_and_the_checkpoint_before_fine_tuning(tmp_path: Path) -> None:
    """All of test.zip gives 79.86 %; two fifths of it, stratified, come within three standard errors."""
    read = read_images(SHARED / "cifar10-jpeg" / "test.zip", tmp_path, lambda _: None)
    assert read.pixels.shape == (5_000, 3, 32, 32)
    assert read.classes[0] == "airplane"
    assert read.classes[-1] == "truck"
    part = mixed(Labelled(read.pixels, read.labels, NORM)).tensors()
    net = checkpoint_net(20, SHARED / "weights" / "resnet20-12fca82f.th")
    assert Accuracy(search=part, test=part)(net, "test", fraction=0.4).value == pytest.approx(79.9, abs=2.7)


@needs_data
@pytest.mark.exhaustive
def test_the_real_training_images_are_cut_in_parts(tmp_path: Path) -> None:
    read = read_images(SHARED / "cifar10-jpeg" / "train.zip", tmp_path, lambda _: None)
    assert read.pixels.shape == (50_000, 3, 32, 32)
    parts = held_out(Labelled(read.pixels, read.labels, NORM))
    assert torch.bincount(parts.search.labels).tolist() == [500] * 10
    assert len(parts.train) == 45_000
