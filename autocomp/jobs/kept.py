"""Where the run folders of jobs are kept: on the head node, and at a URI that the cluster and its clients both reach."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import os
import re
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from autocomp.errors import RequestError, WorkError
from autocomp.places import cache_folder
from autocomp.tasks.user_file import one_line

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

#: Between lines of these a run folder is written to a job's output, the second with its hash.
BEGIN, END = "=== autocomp run folder ===", "=== autocomp run folder ends"
LINE = 4096
#: What a run folder cannot be without; what tells of others of its files.
RUN, EVENTS = "run.json", "events.jsonl"
#: In a storage: the job that writes there, and when it last did; after so many seconds it is taken to have ended.
CLAIM, CLAIMED_S = ".claimed", 150.0


def kept_folder(job: str) -> Path:
    """Where a job keeps its run folder on the machine that it runs on."""
    return cache_folder() / "jobs" / job


def upload(folder: Path, uri: str, sent: dict[Path, tuple[int, int]], renew: Callable[[], None] = lambda: None) -> None:
    """Bring ``uri`` up to date.

    Args:
        sent: file → the size and the time of what is there already; kept up to date.
        renew: called before every file, which may take its time.
    """
    filesystem, root = _filesystem(uri)

    def bring(path: Path, source: Path, facts: os.stat_result) -> None:
        if sent.get(path) != (facts.st_size, facts.st_mtime_ns):
            renew()
            _put(filesystem, source, f"{root}/{path.relative_to(folder).as_posix()}")
            sent[path] = facts.st_size, facts.st_mtime_ns

    # The events as they are now, and after all that they tell of: weights that were trained, above all.
    events = folder / EVENTS
    told = events.stat() if events.is_file() else None
    with tempfile.TemporaryDirectory() as scratch:
        if told is not None:
            shutil.copyfile(events, Path(scratch) / EVENTS)
        for path in _files(folder):
            with contextlib.suppress(FileNotFoundError):  # gone since it was listed
                if path != events:
                    bring(path, path, path.stat())
        if told is not None:
            bring(events, Path(scratch) / EVENTS, told)


def claim(uri: str, job: str) -> None:
    """Say that a job keeps its run folder there; again and again, for as long as it does.

    Raises:
        RequestError: another one does, or did until a moment ago.
    """
    filesystem, root = _filesystem(uri)
    place = f"{root}/{CLAIM}"
    if filesystem.exists(place):
        owner, _, said_s = filesystem.cat_file(place).decode().partition(" ")
        age_s = max(time.time() - float(said_s or 0.0), 0.0)  # two clocks may differ
        if owner != job and age_s < CLAIMED_S:
            raise RequestError(
                f"a run folder must be kept by one job at a time; {uri} is kept by {owner}, which wrote there {age_s:.0f} s "
                f"ago; stop that one, wait until it has not for {CLAIMED_S:g} s, or name another --out"
            )
    filesystem.makedirs(root, exist_ok=True)
    filesystem.pipe_file(place, f"{job} {time.time():.0f}".encode())


def unclaim(uri: str) -> None:
    """Say that it is kept there no longer."""
    filesystem, root = _filesystem(uri)
    with contextlib.suppress(FileNotFoundError):
        filesystem.rm_file(f"{root}/{CLAIM}")


def _put(filesystem: AbstractFileSystem, path: Path, place: str) -> None:
    filesystem.makedirs(place.rpartition("/")[0], exist_ok=True)
    if not _is_local(filesystem):
        filesystem.put_file(str(path), place)
        return
    # A copy that is broken off must not stand in the place of a whole one.
    filesystem.put_file(str(path), f"{place}.part")
    filesystem.mv(f"{place}.part", place)


def download(uri: str, folder: Path) -> bool:
    """Bring the run folder at ``uri`` to ``folder``, which is new; False where there is none."""
    if not holds_run(uri):
        return False
    filesystem, root = _filesystem(uri)
    for place in filesystem.find(root):
        if place.endswith(f"/{CLAIM}"):
            continue
        path = folder / Path(place).relative_to(root)
        path.parent.mkdir(parents=True, exist_ok=True)
        filesystem.get_file(place, str(path))
    return True


def holds_run(uri: str) -> bool:
    """Whether a run folder is kept there."""
    filesystem, root = _filesystem(uri)
    return bool(filesystem.exists(f"{root}/{RUN}"))


def check_storage(uri: str) -> None:
    """Raises:
    RequestError: it is no URI that can be written to.
    """
    filesystem, root = _filesystem(uri)
    if _is_local(filesystem) and not uri.partition("://")[2 if "://" in uri else 0].startswith("/"):
        raise RequestError(f"a --storage folder must be a whole path, the same for client and cluster; got {uri!r}")
    try:
        filesystem.makedirs(root, exist_ok=True)
        probe = f"{root}/.autocomp"
        filesystem.pipe_file(probe, b"")
        filesystem.rm_file(probe)
    except Exception as error:  # every file system raises its own
        raise RequestError(f"--storage must be a folder that can be written to; {uri}: {one_line(error)}") from error


def _is_local(filesystem: AbstractFileSystem) -> bool:
    names = filesystem.protocol
    return "file" in ((names,) if isinstance(names, str) else names)


def _filesystem(uri: str) -> tuple[AbstractFileSystem, str]:
    import fsspec

    try:
        filesystem, root = fsspec.core.url_to_fs(uri)
    except (ValueError, ImportError) as error:
        raise RequestError(
            f"--storage must be a URI that fsspec knows, like s3://bucket/runs or /mnt/shared/runs; got {uri!r}; "
            f"{one_line(error)}"
        ) from error
    return filesystem, str(root).rstrip("/")


def _files(folder: Path) -> Iterator[Path]:
    """What is worth keeping of a run folder that somebody may be at work in: no locks, and nothing half written."""
    for path in sorted(folder.rglob("*")):
        passing = path.name.endswith((".lock", ".rename", ".tmp"))
        if not passing and not path.is_symlink() and path.is_file():
            yield path


def written(folder: Path) -> Iterator[str]:
    """A run folder as lines of text, for a job's output."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for path in _files(folder):
            with contextlib.suppress(FileNotFoundError):
                archive.add(path, path.relative_to(folder).as_posix())
    text = base64.b64encode(packed.getvalue()).decode()
    yield BEGIN
    yield from (text[start : start + LINE] for start in range(0, len(text), LINE))
    yield f"{END} {hashlib.sha256(text.encode()).hexdigest()}"


def read_back(output: str, folder: Path) -> None:
    """The run folder in a job's output, as :func:`written` wrote it, to ``folder``.

    Raises:
        WorkError: there is none, or not all of it.
    """
    found = re.search(f"^{BEGIN}$\n(.*?)^{END} ([0-9a-f]{{64}})$", output, re.MULTILINE | re.DOTALL)
    text = "" if found is None else "".join(found[1].split())
    if found is None or hashlib.sha256(text.encode()).hexdigest() != found[2]:
        said = output.strip().splitlines()[-1:] or ["nothing"]
        raise WorkError(f"a job's output must hold the whole run folder; it does not; it ends: {said[0][:200]}")
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(text)), mode="r:gz") as archive:
        archive.extractall(folder, filter="data")


@contextlib.contextmanager
def arriving(folder: Path) -> Iterator[Path]:
    """A new folder beside ``folder`` to bring something to, which takes its place when all of it is there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield beside
        beside.chmod(0o755)
        if folder.is_dir():
            folder.rmdir()  # empty, or it would not have been asked for
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
