"""What is sent to a cluster, and what is told before it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from autocomp.errors import RequestError
from autocomp.jobs import parcel
from autocomp.jobs.parcel import Named, packed

TASK = "def task(): ...\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder, with what should be sent and what should not."""
    root = tmp_path / "mine"
    for path, text in {
        "tasks/net.py": TASK,
        "neighbour.py": "",
        "weights.pt": "weights",
        "requirements.txt": "einops\n",
        ".gitignore": "weights.pt\n",
        ".git/config": "",
        ".venv/lib/large.py": "",
        "results/old/run.json": "{}",
        "results/old/study.log": "",
        "data/images.npy": "pixels",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    monkeypatch.chdir(root)
    return root


def sent(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_task_file_comes_with_its_project_without_runs_environments_and_history(
    project: Path, tmp_path: Path
) -> None:
    made = packed(Named("tasks/net.py:small"), tmp_path / "parcel")
    assert made.named.task == "tasks/net.py:small"
    assert sent(made.project) == {"tasks/net.py", "neighbour.py", "weights.pt", "requirements.txt", "data/images.npy"}
    assert made.requirements is not None
    assert made.requirements.read_text() == "einops\n"


def test_a_task_file_elsewhere_comes_with_its_own_folder(project: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "net.py").write_text(TASK)
    made = packed(Named(str(tmp_path / "elsewhere" / "net.py")), tmp_path / "parcel")
    assert (made.named.task, sent(made.project), made.requirements) == ("net.py", {"net.py"}, None)


def test_what_lies_outside_is_copied_in_and_called_what_it_is_there(project: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("space.yaml", "weights.pth"):
        (outside / name).write_text(name)
    weights, space = outside / "weights.pth", outside / "space.yaml"
    named = Named(f"torchvision:resnet18@{weights}", Path("data"), space, outside, space)
    made = packed(named, tmp_path / "parcel")
    assert made.named.task is not None
    kind, _, place = made.named.task.partition("@")
    assert kind == "torchvision:resnet18"
    places = {Path(place): "weights.pth", made.named.space: "space.yaml", made.named.recipe: "space.yaml"}
    for path, name in places.items():
        assert path is not None
        assert (made.project / path).read_text() == name
    assert made.named.data is not None
    assert sent(made.project / made.named.data) == {"images.npy"}
    assert made.named.default_data is not None
    assert sent(made.project / made.named.default_data) == {"space.yaml", "weights.pth"}


def test_of_the_run_that_a_search_begins_from_the_truth_is_sent(project: Path, tmp_path: Path) -> None:
    """Though runs in the project are left out, and whatever else is in its folder."""
    old = project / "results" / "old"
    for path in ("events.jsonl", "weights/abc.pt", "weights/abc.unfinished", "exports/1/model.onnx", "front.csv"):
        (old / path).parent.mkdir(parents=True, exist_ok=True)
        (old / path).write_text("")
    made = packed(Named("tasks/net.py:small", begun_from=old), tmp_path / "parcel")
    assert made.named.begun_from == Path("given/run-old")
    found = {path.removeprefix("given/run-old/") for path in sent(made.project) if path.startswith("given/")}
    assert found == {"run.json", "study.log", "events.jsonl", "weights/abc.pt"}


def test_data_inside_the_project_are_sent_once(project: Path, tmp_path: Path) -> None:
    made = packed(Named("tasks/net.py", project / "data"), tmp_path / "parcel")
    assert made.named.data == Path("data")
    assert "data/images.npy" in sent(made.project)
    assert not (made.project / parcel.GIVEN).exists()


def test_linked_folders_of_data_are_sent_and_those_of_a_project_are_not(project: Path, tmp_path: Path) -> None:
    """As a search follows them; a project's may lead anywhere."""
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "cats").mkdir(parents=True)
    (elsewhere / "cats" / "1.png").write_text("a cat")
    (elsewhere / "back").symlink_to(elsewhere)
    for name in ("data", "other"):
        (project / name).mkdir(exist_ok=True)
        for split in ("search", "train"):  # the same folder twice
            (project / name / split).symlink_to(elsewhere)
    made = packed(Named("tasks/net.py", project / "data"), tmp_path / "parcel")
    found = sent(made.project)
    assert {f"data/{split}/cats/1.png" for split in ("search", "train")} <= found
    assert not any(path.startswith("other/") or "/back/" in path for path in found)


def test_nobody_elses_secrets_are_sent(project: Path, tmp_path: Path) -> None:
    for path in (".env", ".ssh/id_ed25519", ".rayignore"):
        (project / path).parent.mkdir(exist_ok=True)
        (project / path).write_text("secret")
    found = sent(packed(Named("tasks/net.py"), tmp_path / "parcel").project)
    assert not found & {".env", ".ssh/id_ed25519"}
    assert ".rayignore" in found  # by which Ray keeps back what it names


@pytest.mark.parametrize(("path", "there"), [("/nfs/images/cifar", "/nfs"), ("images/cifar", "images")])
def test_what_the_cluster_has_is_not_sent(project: Path, tmp_path: Path, path: str, there: str) -> None:
    made = packed(Named(None, Path(path)), tmp_path / "parcel", on_cluster=[Path(there)])
    assert made.named.data == project / path  # a whole path stays what it is
    assert sent(made.project) == set()


def test_what_the_cluster_could_not_see_is_told(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for named, match in (
        (Named("none.py"), "a task's file must exist"),
        (Named(None, Path("none")), "able to see the data; .*none is not here.*--on-cluster /"),
        (Named("torchvision:resnet18@none.pth"), "able to see the weights"),
        (Named("hf:none"), "able to see the model"),
        (Named(None, None, Path("none.yaml")), "able to see the space"),
    ):
        with pytest.raises(RequestError, match=match):
            packed(named, tmp_path / "refused" / str(match))
    with pytest.raises(RequestError, match="requirements must be a file"):
        packed(Named(), tmp_path / "requirements", requirements=Path("none.txt"))
    monkeypatch.setattr(parcel, "MOST_BYTES", 5)
    with pytest.raises(RequestError, match=r"at most 0 MB.*--on-cluster.*or begin in a smaller folder"):
        packed(Named(None, Path("data")), tmp_path / "large")


def test_autocomp_travels_with_the_data_that_it_ships(tmp_path: Path) -> None:
    """Both ends are one version: the copy works by itself, from anywhere."""
    made = packed(Named(), tmp_path / "parcel")
    script = "import autocomp, autocomp.cli; print(autocomp.__file__); autocomp.cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "targets"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(made.package.parent), "PATH": "/usr/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[0] == str(made.package / "__init__.py")
    assert "jetson" in done.stdout
