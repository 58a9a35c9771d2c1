"""The client of a job, where the cluster is slow, gone, or has called things by other names."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

pytest.importorskip("ray", reason="Ray is not installed; pip install 'autocomp[ray]'")

from ray.job_submission import JobStatus

from autocomp.errors import WorkError
from autocomp.jobs import client
from autocomp.jobs.kept import upload
from autocomp.run import BEGUN_IN

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient


class Cluster:
    """Writes its output and waits; says of a job how it is. After so many answers it is gone."""

    def __init__(self, answers: list[str]) -> None:
        self._answers = answers

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        import asyncio

        if self._answers:
            yield "begun\n"
        await asyncio.sleep(600)

    def get_job_logs(self, name: str) -> str:
        return "begun\nended\n"

    def get_job_info(self, name: str) -> object:
        if not self._answers:
            time.sleep(600)
        return SimpleNamespace(status=JobStatus(self._answers.pop(0)), message="", metadata={})


def followed(answers: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[client.Job, str]:
    for name, seconds in (("QUIET_S", 0.05), ("REQUEST_S", 0.1), ("SILENT_S", 0.3), ("LOOK_S", 0.01), ("GIVE_S", 1.0)):
        monkeypatch.setattr(client, name, seconds)
    heard = list[str]()
    found = client.follow(cast("JobSubmissionClient", Cluster(answers)), "a-job", heard.append)
    return found, "".join(heard)


def test_a_job_that_says_nothing_for_long_is_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    found, heard = followed(["RUNNING", "RUNNING", "SUCCEEDED"], monkeypatch)
    assert found.succeeded
    assert heard == "begun\nended\n"


def test_a_cluster_that_is_gone_is_not_followed_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WorkError, match="the cluster has not answered for"):
        followed(["RUNNING"], monkeypatch)


@pytest.mark.parametrize("took", [None, "/cluster/data"])
def test_a_run_that_comes_back_calls_things_what_they_are_here(took: str | None, tmp_path: Path) -> None:
    """Its task may have taken no data, though AUTOCOMP_DATA named some."""
    kept, storage = tmp_path / "kept", tmp_path / "storage"
    kept.mkdir()
    (kept / "run.json").write_text(json.dumps({"request": {"task": "net.py", "data": took}, BEGUN_IN: "/cluster"}))
    upload(kept, str(storage), {})
    names = {"task": "mine/net.py", "data": "/here/data", BEGUN_IN: "/here"}
    job = client.Job("a-job", "SUCCEEDED", "", str(storage), names)
    client.fetch(cast("JobSubmissionClient", None), job, tmp_path / "run")
    document = json.loads((tmp_path / "run" / "run.json").read_text())
    data = None if took is None else "/here/data"
    assert document == {"request": {"task": "mine/net.py", "data": data}, BEGUN_IN: "/here"}
