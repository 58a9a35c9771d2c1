"""What a job runs on the cluster:

    python -m autocomp.jobs.on_cluster search JOB STORAGE search …   the search, its run folder kept where the job's is
    python -m autocomp.jobs.on_cluster give JOB                      that folder, written to the output

STORAGE is a URI, or empty. There the run folder is as it was half a minute ago at most, whatever becomes of the cluster.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from autocomp.errors import AutocompError, RequestError
from autocomp.jobs.kept import check_storage, claim, download, holds_run, kept_folder, unclaim, upload, written
from autocomp.tasks.user_file import one_line

#: Seconds between two copies to the storage, and tries of the last one.
PERIOD_S, LAST_TRIES = 30.0, 5


def search(job: str, storage: str, arguments: Sequence[str]) -> int:
    """Run the command line and keep its run folder; its exit code, or 1 where the run could not be brought to the storage."""
    folder = kept_folder(job)
    if storage:
        check_storage(storage)
        claim(storage, job)
        try:
            if "--resume" in arguments:
                download(storage, folder)
            elif holds_run(storage):
                raise RequestError(f"{storage} must hold no run yet; it does; add --resume, or name another place")
        except BaseException:
            unclaim(storage)
            raise
    process = subprocess.Popen([sys.executable, "-m", "autocomp", *arguments, "--out", str(folder)])
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    sent: dict[Path, tuple[int, int]] = {}
    while process.poll() is None:
        try:
            process.wait(PERIOD_S)
        except subprocess.TimeoutExpired:
            if storage:
                _kept(folder, storage, sent, job)
    tries = LAST_TRIES if storage else 0
    while tries and not _kept(folder, storage, sent, job):
        tries -= 1
        time.sleep(PERIOD_S)
    if storage and not tries:
        _say(f"the run folder could not be brought to {storage}; it is in {folder} on this node")
        return 1
    if storage:
        unclaim(storage)
    return process.returncode


def _kept(folder: Path, storage: str, sent: dict[Path, tuple[int, int]], job: str) -> bool:
    """Whether the storage is up to date; where it is not, the search goes on all the same, and the next copy has all."""
    try:
        claim(storage, job)
        upload(folder, storage, sent, partial(claim, storage, job))
    except Exception as error:  # noqa: BLE001  every file system raises its own
        _say(f"the run folder was not brought to {storage} this time: {one_line(error)}")
        return False
    return True


def give(job: str) -> int:
    """Write the run folder of a job to the output."""
    folder = kept_folder(job)
    if not folder.is_dir():
        _say(f"the run folder of {job} must be on this node; it is not: another node's, or deleted")
        return 1
    for line in written(folder):
        sys.stdout.write(f"{line}\n")
    return 0


def _say(line: str) -> None:
    sys.stdout.write(f"autocomp: {line}\n")
    sys.stdout.flush()


def main(arguments: Sequence[str]) -> int:
    what, job, *rest = arguments
    try:
        return search(job, rest[0], rest[1:]) if what == "search" else give(job)
    except AutocompError as error:
        _say(str(error))
        return 2 if isinstance(error, RequestError) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
