"""The command line of a search as a job has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from autocomp.errors import RequestError, RunError
from autocomp.jobs.parcel import Named
from autocomp.jobs.request import Asked, asked_for


def asked(
    tmp_path: Path,
    *arguments: str,
    resume: bool = False,
    storage: str | None = None,
    task: str | None = None,
    data: Path | None = None,
    space: str = "default",
    target: str = "cpu",
    begun_from: Path | None = None,
) -> Asked:
    out = tmp_path / "results" / "run"
    return asked_for(["search", *arguments], task, data, space, target, out, resume, storage, begun_from=begun_from)


def test_places_on_this_machine_are_put_back_as_they_are_called_there(tmp_path: Path) -> None:
    line = ["--target", "cpu", "--task", "mine/net.py:small", "--data=/here/data", "--space", "own.yaml", "--out", "x"]
    found = asked(tmp_path, *line, task="mine/net.py:small", data=Path("/here/data"), space="own.yaml")
    there = Named("net.py:small", Path("given/data-data"), Path("given/space-own.yaml"))
    assert found.named == Named("mine/net.py:small", Path("/here/data"), Path("own.yaml"))
    assert found.arguments_with(there) == [
        *("search", "--executor", "ray", "--target", "cpu"),
        *("--task", "net.py:small", "--data", "given/data-data", "--space", "given/space-own.yaml"),
    ]


def test_how_it_is_executed_may_be_said(tmp_path: Path) -> None:
    found = asked(tmp_path, "--target", "cpu", "--executor", "local")
    assert found.arguments_with(found.named) == [
        *("search", "--executor", "local", "--space", "default", "--target", "cpu"),
    ]


def test_a_calibrated_target_is_a_place_too(tmp_path: Path) -> None:
    found = asked(tmp_path, "--target", "./profiles/board", target="./profiles/board")
    assert found.named == Named(target=Path("profiles/board"))
    there = Named(target=Path("given/profile-board"))
    assert found.arguments_with(there)[-2:] == ["--target", "given/profile-board"]


def test_the_run_that_it_begins_from_is_a_place_too(tmp_path: Path) -> None:
    found = asked(tmp_path, "--from", "results/fast", "--trials", "9", begun_from=Path("results/fast"))
    there = Named(begun_from=Path("given/run-fast"))
    line = found.arguments_with(there)
    assert line == ["search", "--trials", "9", *line[3:-2], "--from", "given/run-fast"]


def test_a_run_that_it_began_from_may_be_gone_when_it_is_resumed(tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    (storage / "run").mkdir(parents=True)
    (storage / "run" / "run.json").write_text("{}")
    out, gone = tmp_path / "run", tmp_path / "gone"
    asked = asked_for(["search"], None, None, "default", "jetson", out, True, str(storage), begun_from=gone)
    assert (asked.named.begun_from, asked.gone) == (None, gone)
    assert "--from given/run-gone" in " ".join(asked.arguments)


def test_the_default_folder_of_data_goes_along_where_the_task_may_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOCOMP_DATA", "/here/data")
    assert asked(tmp_path).named.default_data is None
    assert asked(tmp_path, task="digits").named.default_data is None
    assert asked(tmp_path, task="cifar10-resnet20").named.default_data == Path("/here/data")
    assert asked(tmp_path, task="cifar10-resnet20", data=Path("/other")).named.default_data is None


def test_a_run_folder_that_is_taken_or_cannot_be_resumed_is_told(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="can resume a run that is kept in a --storage"):
        asked(tmp_path, resume=True)
    storage = tmp_path / "storage"
    with pytest.raises(RequestError, match="it holds none; leave --resume out"):
        asked(tmp_path, resume=True, storage=str(storage))
    found = asked(tmp_path, storage=f"{storage}/")
    assert found.storage == f"{storage}/run"
    (storage / "run").mkdir(exist_ok=True)
    (storage / "run" / "run.json").write_text("{}")
    assert asked(tmp_path, resume=True, storage=str(storage)).storage == f"{storage}/run"
    with pytest.raises(RequestError, match="it holds one; add --resume"):
        asked(tmp_path, storage=str(storage))
    found.out.mkdir(parents=True)
    (found.out / "something").write_text("")
    with pytest.raises(RunError, match="new or empty folder"):
        asked(tmp_path)
