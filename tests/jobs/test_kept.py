"""Run folders on their way back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocomp.errors import RequestError, WorkError
from autocomp.jobs import kept
from autocomp.jobs.kept import BEGIN, check_storage, claim, download, holds_run, read_back, unclaim, upload, written

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem


def made(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


FILES = {"run.json": b"{}", "exports/3/model.onnx": bytes(range(256)) * 40, "a name with spaces": b""}


@given(st.binary(max_size=9000), st.text(max_size=40))
def test_a_folder_in_an_output_is_read_back_whatever_is_around_it(
    tmp_path_factory: pytest.TempPathFactory, one: bytes, around: str
) -> None:
    root = tmp_path_factory.mktemp("kept")
    folder = made(root / "run", {**FILES, "one": one})
    output = "\n".join([around, *written(folder), around])
    read_back(output, root / "back")
    assert content(root / "back") == content(folder)


def test_half_an_output_is_no_folder(tmp_path: Path) -> None:
    lines = list(written(made(tmp_path / "run", FILES)))
    damaged = [lines[0], lines[1][:-4] + "AAAA", lines[2]]
    for output in ("\n".join(lines[:-1]), "\n".join(damaged), "no such folder", ""):
        with pytest.raises(WorkError, match="must hold the whole run folder"):
            read_back(output, tmp_path / "back")
    assert lines[0] == BEGIN
    assert not (tmp_path / "back").exists()


def test_a_path_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    import base64
    import hashlib
    import io
    import tarfile

    from autocomp.jobs.kept import END

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("../outside"), io.BytesIO(b""))
    text = base64.b64encode(packed.getvalue()).decode()
    output = f"{BEGIN}\n{text}\n{END} {hashlib.sha256(text.encode()).hexdigest()}\n"
    with pytest.raises(tarfile.OutsideDestinationError):
        read_back(output, tmp_path / "back")
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("scheme", ["file://{}", "{}"])
def test_a_storage_gets_what_changed_and_gives_it_back(tmp_path: Path, scheme: str) -> None:
    folder, uri = made(tmp_path / "run", FILES), scheme.format(tmp_path / "storage" / "run")
    sent: dict[Path, tuple[int, int]] = {}
    check_storage(uri)
    assert not holds_run(uri)
    upload(folder, uri, sent)
    first = dict(sent)
    (folder / "front.csv").write_bytes(b"trial")
    (folder / ".lock").write_bytes(b"")
    upload(folder, uri, sent)
    assert {path: sent[path] for path in first} == first
    assert holds_run(uri)
    assert download(uri, tmp_path / "back")
    assert content(tmp_path / "back") == {**FILES, "front.csv": b"trial"}
    assert not download(f"{uri}-none", tmp_path / "none")


def test_events_come_after_what_they_tell_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that are written while a copy is made."""
    folder, storage = (
        made(tmp_path / "run", {**FILES, "events.jsonl": b"one\n", "weights/1.pt": b"1"}),
        tmp_path / "kept",
    )
    put, order = kept._put, list[str]()

    def slow(filesystem: AbstractFileSystem, path: Path, place: str) -> None:
        order.append(path.name)
        with (folder / "events.jsonl").open("ab") as events:
            events.write(b"of weights that are not listed any more\n")
        put(filesystem, path, place)

    monkeypatch.setattr(kept, "_put", slow)
    upload(folder, str(storage), {})
    assert order[-1] == "events.jsonl"
    assert (storage / "events.jsonl").read_bytes() == b"one\n"


def test_one_job_at_a_time_keeps_its_run_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = str(tmp_path / "storage" / "run")
    claim(uri, "autocomp-1")
    claim(uri, "autocomp-1")
    with pytest.raises(RequestError, match="is kept by autocomp-1, which wrote there 0 s ago; stop that one"):
        claim(uri, "autocomp-2")
    upload(made(tmp_path / "run", FILES), uri, {})
    assert download(uri, tmp_path / "back")
    assert content(tmp_path / "back") == FILES
    unclaim(uri)
    claim(uri, "autocomp-2")
    monkeypatch.setattr(kept, "CLAIMED_S", -1.0)  # it has not written for long
    claim(uri, "autocomp-3")


def test_what_is_no_storage_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="a URI that fsspec knows"):
        check_storage("nowhere://bucket/runs")
    with pytest.raises(RequestError, match="a folder that can be written to"):
        check_storage(str(tmp_path / "file" / "runs"))
