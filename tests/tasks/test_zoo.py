"""Models by their name in torchvision and timm: weights from a file, data from a folder, and what is refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from autocomp.errors import TaskError
from autocomp.task import Task
from autocomp.tasks import zoo
from autocomp.tasks.check import check_task
from autocomp.tasks.load import load_task

CLASSES = ("ant", "bee", "cow")

torchvision_only = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed"
)
timm_only = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for split, each in (("train", 3), ("search", 1), ("test", 2)):
        for place, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for number in range(each):
                Image.new("RGB", (40, 30), (80 * place, 20 * number, 90)).save(folder / split / name / f"{number}.png")
    return folder


def torchvision_weights(path: Path, classes: int = 3, prefix: str = "") -> Path:
    models: Any = zoo.import_torchvision().models
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = models.get_model("shufflenet_v2_x0_5", weights=None, num_classes=classes).state_dict()
    torch.save({"state_dict": {f"{prefix}{key}": value for key, value in state.items()}, "epoch": 3}, path)
    return path


def refused(name: str, data: Path | None) -> str:
    with pytest.raises(TaskError) as caught:
        load_task(name, data=data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def holds_together(task: Task, name: str, side: int) -> None:
    assert task.name == name
    assert task.example_inputs[0].shape == (1, 3, side, side)
    assert task.train is not None
    score = check_task(task)
    assert score.outcomes is not None
    assert len(score.outcomes) == 3
    assert not task.model.training


@torchvision_only
class TestTorchvision:
    def test_weights_from_a_file(self, data: Path, tmp_path: Path) -> None:
        weights = torchvision_weights(tmp_path / "weights.pth", prefix="module.")
        task = load_task(f"torchvision:shufflenet_v2_x0_5@{weights}", data=data)
        holds_together(task, "shufflenet_v2_x0_5", 224)
        assert task.train is not None
        assert sum(len(batch[-1]) for batch in task.train) == 9

    def test_weights_beside_the_splits(self, data: Path) -> None:
        torchvision_weights(data / "shufflenet_v2_x0_5.pt")
        holds_together(load_task("torchvision:shufflenet_v2_x0_5", data=data), "shufflenet_v2_x0_5", 224)

    def test_val_is_test_or_else_search(self, data: Path, tmp_path: Path) -> None:
        weights = torchvision_weights(tmp_path / "weights.pth")
        (data / "search").rename(data / "val")  # one image a class; test has two
        task = load_task(f"torchvision:shufflenet_v2_x0_5@{weights}", data=data)
        holds_together(task, "shufflenet_v2_x0_5", 224)
        (data / "test").rename(data / "spare")
        said: list[str] = []
        task = load_task(f"torchvision:shufflenet_v2_x0_5@{weights}", said.append, data)
        assert said == ["shufflenet_v2_x0_5: no search split given; 2 of 9 training examples held out"]

    def test_a_head_for_other_classes(self, data: Path, tmp_path: Path) -> None:
        weights = torchvision_weights(tmp_path / "weights.pth", classes=7)
        message = refused(f"torchvision:shufflenet_v2_x0_5@{weights}", data)
        assert message.endswith(
            "an output per class of the data folder, 3; its fc.weight is (7, 1024) and must be (3, 1024)"
        )
        message = refused("torchvision:resnet18", data)  # the library's own, which are not fetched in vain
        assert "torchvision's pretrained resnet18 has 1000 and the data folder 3 class subfolders" in message

    def test_weights_that_are_none(self, data: Path, tmp_path: Path) -> None:
        path = tmp_path / "weights.pth"
        assert "a file of weights must exist" in refused(f"torchvision:resnet18@{path}", data)
        path.write_bytes(b"none")
        assert "must hold a state_dict" in refused(f"torchvision:resnet18@{path}", data)
        torch.save([1, 2], path)
        assert "holds a list" in refused(f"torchvision:resnet18@{path}", data)
        torchvision_weights(path)
        assert "bn1.bias among them" in refused(f"torchvision:resnet18@{path}", data)

    def test_weights_that_cannot_be_fetched(self, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object, **__: object) -> None:
            raise OSError("no\nnetwork")

        monkeypatch.setattr(zoo._Torchvision, "pretrained_classes", lambda *_: 3)
        monkeypatch.setattr(zoo._Torchvision, "pretrained", fail)
        assert refused("torchvision:resnet18", data) == (
            "torchvision must fetch its weights for resnet18; it could not (no); hand over a file of weights, "
            "torchvision:resnet18@weights.pth, or put resnet18.pth into the data folder"
        )

    def test_an_unknown_model(self, data: Path) -> None:
        assert refused("torchvision:resnt18", data).endswith("did you mean resnet18 or resnet152 or resnet101?")
        assert "see its list of" in refused("torchvision:qqq", data)
        assert refused("torchvision:", data).endswith("write torchvision:NAME")

    def test_data_that_are_not_there(self, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AUTOCOMP_DATA", raising=False)
        assert "needs data; name a folder by --data or AUTOCOMP_DATA" in refused("torchvision:resnet18", None)
        assert "--data must name a folder" in refused("torchvision:resnet18", data / "nowhere")
        (data / "train").rename(data / "training")
        assert refused("torchvision:resnet18", data).endswith("has no train")


@timm_only
@torchvision_only
class TestTimm:
    def test_weights_from_a_file_of_safetensors(self, data: Path) -> None:
        zoo.import_torchvision()
        safetensors = pytest.importorskip("safetensors.torch")
        timm = importlib.import_module("timm")
        state = timm.create_model("test_resnet", pretrained=False, num_classes=3).state_dict()
        safetensors.save_file(state, data / "test_resnet.safetensors")
        holds_together(load_task("timm:test_resnet", data=data), "test_resnet", 160)

    def test_an_unknown_model(self, data: Path) -> None:
        assert "did you mean" in refused("timm:test_resnt", data)

    def test_classes_are_compared_before_anything_is_fetched(self, data: Path) -> None:
        message = refused("timm:resnet18.a1_in1k", data)
        assert "timm's pretrained resnet18.a1_in1k has 1000 and the data folder 3 class subfolders" in message


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_missing_library_says_how_to_install_it(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> object:
        return None if name == library else found(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    message = refused(f"{library}:resnet18", None)
    assert f"needs {library}, which is not installed; pip install {library} (torch first, pinned" in message


@torchvision_only
def test_torchvision_can_be_imported_twice() -> None:
    assert zoo.import_torchvision() is zoo.import_torchvision()
