"""`autocomp submit` to a real cluster on loopback, by a client that sees nothing of the cluster's disk."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="Ray is not installed; pip install 'autocomp[ray]'")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

#: For 127.0.0.1 Ray takes the machine's own address, which others reach.
LOOPBACK = "127.0.0.2"
TASK = """
import torch
from torch import nn

from autocomp import Metric, Score, Task
from neighbour import WIDTH


def small():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 4)).eval()
    inputs = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    labels = net(inputs).argmax(dim=1)

    def evaluate(predict, split, fraction=1.0):
        right = (predict(inputs).argmax(dim=1) == labels).double()
        return Score(100 * float(right.mean()), right.numpy())

    return Task("small", net, (inputs[:1],), [(inputs,)], evaluate, Metric("accuracy", "maximize", "%"))
"""
#: A client that fails as soon as it opens something of the cluster's.
BLIND = """
import os, sys
secret = os.environ.pop("SECRET")

def refuse(event, given):
    if event == "open" and isinstance(given[0], (str, os.PathLike)) and os.fspath(given[0]).startswith(secret):
        raise PermissionError(f"{given[0]} is on the cluster")

sys.addaudithook(refuse)
from autocomp.cli import main
main()
"""
SEARCH = ("--", "search", "--target", "jetson", "--trials", "5", "--seed", "3")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass(frozen=True)
class Cluster:
    """One that was begun by ``ray start``; ``home`` is its own disk."""

    address: str
    home: Path


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    home, port, gcs = tmp_path_factory.mktemp("cluster"), free_port(), free_port()
    # A socket's path has 107 characters at most, and a temporary folder of pytest's is long.
    scratch = tempfile.mkdtemp(prefix="ac", dir="/tmp")
    bin_folder = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "AUTOCOMP_CACHE": str(home / "cache"),
        "RAY_TMPDIR": scratch,
    }
    environment |= with_token(home)
    environment.pop("RAY_ADDRESS", None)
    options = ["--head", f"--port={gcs}", f"--node-ip-address={LOOPBACK}", "--num-cpus=2", "--disable-usage-stats"]
    dashboard = ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}"]
    # Another test's cluster has the usual ports.
    dashboard += [f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}"]
    command = [str(bin_folder / "ray"), "start", "--block", *options, *dashboard, "--object-store-memory=100000000"]
    with (home / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    found = Cluster(f"http://127.0.0.1:{port}", home)
    try:
        wait_for(found, process)
        yield found
    finally:
        process.terminate()  # it takes the cluster's other processes with it
        try:
            process.wait(30)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(scratch, ignore_errors=True)


def with_token(home: Path) -> dict[str, str]:
    """What a cluster and its clients must have in common, so that nobody else's jobs are taken."""
    (home / "token").write_text("5ecre7" * 8)
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(home / "token")}


def wait_for(cluster: Cluster, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 120
    while "it knows no" not in submit(cluster, cluster.home, "--status", "autocomp-none").stderr:
        assert process.poll() is None, (cluster.home / "log").read_text()
        assert time.monotonic() < until, (cluster.home / "log").read_text()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(TASK)
    (tmp_path / "neighbour.py").write_text("WIDTH = 16\n")
    return tmp_path


def environment(cluster: Cluster, project: Path) -> dict[str, str]:
    found = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    found |= {"SECRET": f"{cluster.home}/cache", "AUTOCOMP_CACHE": str(project / "cache")}
    return found | with_token(project)


def submit(cluster: Cluster, project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLIND, "submit", "--address", cluster.address, *arguments]
    return subprocess.run(
        command, cwd=project, env=environment(cluster, project), capture_output=True, text=True, timeout=240
    )


def here(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "autocomp", *arguments], cwd=project, capture_output=True, text=True, timeout=240
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize("storage", [False, True])
def test_a_search_is_followed_to_its_end_and_its_run_folder_comes_back(
    cluster: Cluster, project: Path, storage: bool
) -> None:
    where = ("--storage", str(project / "storage")) if storage else ()
    asked = (*SEARCH, "--task", "net.py:small", "--max-concurrent", "1", "--out", "results/there")
    done = submit(cluster, project, *where, *asked)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "results/there\n"
    assert "trial" in done.stderr  # the job's own log
    assert (project / "storage" / "there" / "run.json").is_file() == storage
    report = here(project, "report", "results/there")
    assert report.returncode == 0, report.stderr
    alone = here(project, "search", *SEARCH[2:], "--task", "net.py:small", "--out", "results/here")
    assert alone.returncode == 0, alone.stderr
    fronts = [(project / "results" / name / "front.csv").read_text() for name in ("there", "here")]
    assert fronts[0] == fronts[1]
    again = submit(cluster, project, "--", "search", "--from", "results/there", "--max-size-kb", "4", "--trials", "3")
    assert again.returncode == 0, again.stderr
    assert again.stdout == "results/there-jetson-orin-nano\n"
    known = (project / "results" / "there-jetson-orin-nano" / "events.jsonl").read_text()
    assert "taken over" in known
    begun = json.loads((project / "results" / "there-jetson-orin-nano" / "run.json").read_text())["request"]
    assert (begun["task"], begun["begun_from"]) == ("net.py:small", str(project / "results" / "there"))
    export = here(
        project, "export", "results/there", "--pick", "0", "--out", "shipped"
    )  # finds the task where it is here
    assert export.returncode == 0, export.stderr


@pytest.mark.exhaustive
def test_a_job_may_be_left_alone_asked_for_stopped_and_fetched(cluster: Cluster, project: Path) -> None:
    long = ("--", "search", "--target", "jetson", "--trials", "5000", "--sampler", "random", "--executor", "local")
    begun = submit(cluster, project, "--detach", *long, "--task", "net.py:small")
    assert begun.returncode == 0, begun.stderr
    name = begun.stdout.strip()
    assert submit(cluster, project, "--status", name).stdout.startswith((f"job {name} pending", f"job {name} running"))
    kept = cluster.home / "cache" / "jobs" / name
    until = time.monotonic() + 120
    while not (kept / "trials.csv").exists() and not (kept / "study.log").exists():
        assert time.monotonic() < until, submit(cluster, project, "--status", name).stdout
        time.sleep(0.5)
    assert submit(cluster, project, "--stop", name).stdout.startswith(f"job {name} stopped")
    fetched = submit(cluster, project, "--fetch", name, "--out", "results/part")
    assert fetched.returncode == 0, fetched.stderr
    assert (project / "results" / "part" / "study.log").is_file()
    again = submit(cluster, project, "--fetch", name, "--out", "results/part")
    assert again.returncode == 2
    assert "must not hold a run yet" in again.stderr


@pytest.mark.exhaustive
def test_ctrl_c_leaves_the_job_alone(cluster: Cluster, project: Path) -> None:
    long = ("--", "search", "--target", "jetson", "--trials", "5000", "--sampler", "random", "--executor", "local")
    command = [sys.executable, "-c", BLIND, "submit", "--address", cluster.address, *long, "--task", "net.py:small"]
    follower = subprocess.Popen(
        command, cwd=project, env=environment(cluster, project), stderr=subprocess.PIPE, text=True
    )
    assert follower.stderr is not None
    name = follower.stderr.readline().split()[1].rstrip(";")
    follower.stderr.readline()  # something of the job's log, so that it is followed by now
    follower.send_signal(signal.SIGINT)
    rest = follower.stderr.read()
    assert follower.wait(60) == 130, rest
    assert f"no longer followed; job {name} goes on" in rest
    assert submit(cluster, project, "--status", name).stdout.startswith(f"job {name} running")
    assert submit(cluster, project, "--stop", name).returncode == 0


#: Follows a job over a connection that is interrupted while it is made, and takes that for a failure of its own. In a
#: process of its own, since an interrupt is for the whole of one.
INTERRUPTED = """
import asyncio, os, signal
from autocomp.jobs import client

class Making:
    async def tail_job_logs(self, name):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(10)
        except (asyncio.CancelledError, KeyboardInterrupt):
            raise RuntimeError("the connection was closed") from None
        yield ""

before = signal.getsignal(signal.SIGINT)
try:
    client.follow(Making(), "job", print)
except KeyboardInterrupt:
    assert signal.getsignal(signal.SIGINT) is before
    print("interrupted")
"""


def test_ctrl_c_is_not_lost_while_a_connection_is_made() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=120)
    assert done.stdout == "interrupted\n", done.stderr


@pytest.mark.exhaustive
def test_a_search_that_fails_there_is_one_line_here(cluster: Cluster, project: Path) -> None:
    done = submit(cluster, project, *SEARCH, "--task", "net.py:none")
    assert done.returncode == 1
    assert "autocomp: a search must end well on the cluster; job autocomp-" in done.stderr.splitlines()[-1]
    assert "it has no 'none'" in done.stderr  # why, in the job's own log


class _OtherVersion(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps({"version": "4", "ray_version": "2.9.3", "ray_commit": "x"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def other_version() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _OtherVersion)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.exhaustive
def test_a_wrong_cluster_is_one_line(project: Path, other_version: str) -> None:
    nowhere = Cluster(f"http://127.0.0.1:{free_port()}", Path("/nowhere"))
    for cluster, words in (
        (nowhere, "must be a Ray dashboard that can be reached"),
        (Cluster("head:8265", Path("/nowhere")), "like http://head:8265; got 'head:8265'"),
        (Cluster(other_version, Path("/nowhere")), "must have the same Ray; here it is"),
    ):
        done = submit(cluster, project, "--status", "autocomp-1")
        assert (done.returncode, done.stdout) == (2, "")
        assert len(done.stderr.splitlines()) == 1
        assert words in done.stderr


def test_a_token_that_is_missing_is_one_line(cluster: Cluster, project: Path) -> None:
    command = [sys.executable, "-m", "autocomp", "submit", "--address", cluster.address, "--status", "autocomp-1"]
    without = {name: value for name, value in environment(cluster, project).items() if not name.startswith("RAY_AUTH")}
    done = subprocess.run(command, cwd=project, env=without | {"HOME": str(project)}, capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "RAY_AUTH_MODE=token" in done.stderr


def test_an_unknown_job_is_one_line(cluster: Cluster, project: Path) -> None:
    done = submit(cluster, project, "--status", "autocomp-none")
    assert done.returncode == 2
    assert "it knows no 'autocomp-none'" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "one of these: -- search …"),
        pytest.param(("--status", "a", "--stop", "b"), "one of these: -- search …", marks=pytest.mark.exhaustive),
        (("--", "report", "results/x"), "must be a search, written -- search …; got 'report'"),
        pytest.param(("--", "search", "--target", "cpu", "--trials", "none"), "--trials", marks=pytest.mark.exhaustive),
        (("--", "search", "--target", "cpu", "--task", "none.py"), "a task's file must exist"),
        (("--", "search", "--target", "cpu", "--data", "none", "--task", "digits"), "able to see the data"),
    ],
)
def test_what_is_wrong_with_the_request_is_told_before_anything_is_sent(
    cluster: Cluster, project: Path, arguments: tuple[str, ...], words: str
) -> None:
    done = submit(cluster, project, *arguments)
    assert done.returncode == 2
    assert words in done.stderr
