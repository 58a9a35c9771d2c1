"""The LeNets: their sizes, their parts, and what is said of missing data."""

from __future__ import annotations

import gzip
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from autocomp.errors import TaskError
from autocomp.task import Task
from autocomp.tasks.mnist import LENET5, LENET300, LeNet5, LeNet300, lenet_task, mnist_lenet300, read_part

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the data folder {SHARED} is absent")

TRAIN, TEST = 400, 100
TINY = replace(LENET300, epochs=2, batch=20)


def write_idx(path: Path, array: np.ndarray) -> None:
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(head + array.astype(np.uint8).tobytes()))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bright row per class, at the row of its number, on noise."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("data")
    for part, count in (("train", TRAIN), ("t10k", TEST)):
        labels = rng.permutation(np.arange(count) % 10)
        images = rng.integers(0, 60, (count, 28, 28))
        images[np.arange(count), 4 + 2 * labels] = 255
        write_idx(folder / "mnist" / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(folder / "mnist" / f"{part}-labels-idx1-ubyte.gz", labels)
    return folder


@pytest.fixture(scope="module")
def task(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Task:
    return lenet_task("tiny", LeNet300, TINY, data=data, cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize(("net", "weights"), [(LeNet300(), 266_610), (LeNet5(), 431_080)])
def test_the_nets_have_the_published_sizes(net: torch.nn.Module, weights: int) -> None:
    assert sum(parameter.numel() for parameter in net.parameters()) == weights
    assert net(torch.zeros(3, 1, 28, 28)).shape == (3, 10)


def test_the_task_is_shaped_as_promised(task: Task) -> None:
    assert [tuple(tensor.shape) for tensor in task.example_inputs] == [(1, 1, 28, 28)]
    assert all(inputs.dtype == torch.float32 and len(inputs) <= 64 for (inputs,) in task.calibration)
    assert task.train is not None
    assert sum(len(labels) for _, labels in task.train) == TRAIN // 2
    search, test = task.evaluate(task.model, "search"), task.evaluate(task.model, "test")
    assert search.outcomes is not None
    assert test.outcomes is not None
    assert (len(search.outcomes), len(test.outcomes)) == (TRAIN // 2, TEST)


def test_training_learns_what_is_there_to_learn(data: Path, tmp_path: Path) -> None:
    task = lenet_task("tiny", LeNet300, replace(TINY, epochs=12, shift_px=0), data=data, cache_dir=tmp_path)
    assert task.evaluate(task.model, "test").value > 90.0


def test_a_second_call_loads_the_same_net(data: Path, tmp_path: Path) -> None:
    said: list[str] = []
    first = lenet_task("tiny", LeNet5, replace(LENET5, epochs=1, batch=20), said.append, data, tmp_path)
    assert "tiny: epoch 1 of 1" in said[-1]
    told = len(said)
    again = lenet_task("tiny", LeNet5, replace(LENET5, epochs=1, batch=20), said.append, data, tmp_path)
    assert len(said) == told
    for ours, theirs in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_callers_random_state_is_left_alone(data: Path, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    lenet_task("tiny", LeNet300, TINY, data=data, cache_dir=tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_missing_data_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUTOCOMP_DATA", raising=False)
    with pytest.raises(TaskError, match=r"^MNIST, .*: no data folder is named; .* --data DIR or in AUTOCOMP_DATA$"):
        mnist_lenet300()
    with pytest.raises(TaskError, match=r"train-images-idx3-ubyte or train-images-idx3-ubyte.gz must be in") as caught:
        mnist_lenet300(data=tmp_path)
    assert "\n" not in str(caught.value)


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", np.zeros((3, 28, 28)))
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.zeros(4))
    with pytest.raises(TaskError, match=r"n images of 28×28 and n labels; .* shapes \(3, 28, 28\) and \(4,\)"):
        read_part(tmp_path, "train")


@needs_data
@pytest.mark.parametrize(("part", "count"), [("train", 60_000), ("t10k", 3_000)])
@pytest.mark.parametrize("folder", [SHARED, SHARED / "mnist"])
def test_the_real_images_are_all_there(part: str, count: int, folder: Path) -> None:
    images = read_part(folder, part)
    assert images.pixels.shape == (count, 1, 28, 28)
    assert set(images.labels.tolist()) == set(range(10))
    inputs, _ = images[:1000].tensors()
    assert abs(float(inputs.mean())) < 0.1
    assert abs(float(inputs.std()) - 1.0) < 0.1
