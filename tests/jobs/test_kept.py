"""Run folders on their way back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocomp.errors import RequestError, WorkError
from autocomp.jobs.kept import BEGIN, check_storage, download, holds_run, read_back, upload, written


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


def test_what_is_no_storage_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="a URI that fsspec knows"):
        check_storage("nowhere://bucket/runs")
    with pytest.raises(RequestError, match="a folder that can be written to"):
        check_storage(str(tmp_path / "file" / "runs"))
