"""The client's side of a job: Ray's Jobs API over HTTP."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import os
import queue
import secrets
import shlex
import signal
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import aiohttp
import ray
from ray.job_submission import JobStatus, JobSubmissionClient

from autocomp.errors import RequestError, WorkError
from autocomp.jobs.kept import RUN, arriving, download, read_back
from autocomp.jobs.parcel import package_of_this, packed
from autocomp.jobs.request import Asked
from autocomp.run import BEGUN_IN
from autocomp.tasks.data import VARIABLE
from autocomp.tasks.user_file import one_line

#: Seconds that the cluster has to answer, that a job which gives a run folder back may take, and between two looks at it.
ANSWER_S, GIVE_S, LOOK_S = 10.0, 600.0, 1.0
#: Seconds without an answer after which a job is followed no longer; that one request may take; and without a word of the job
#: after which the cluster is asked whether it is still there.
SILENT_S, REQUEST_S, QUIET_S = 300.0, 120.0, 120.0
#: Of a job's metadata.
STORAGE, NAMES = "storage", "names"
FoundT = TypeVar("FoundT")

#: Is told of what a job writes, as it comes.
Heard = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """A job as the cluster knows it. ``storage``: the URI of its run folder; empty where it is on the head node.
    ``names``: what the task, its data, the search space, the target and the run that it began from are called where it was
    submitted, and the folder that it was submitted in."""

    name: str
    status: str
    message: str
    storage: str
    names: Mapping[str, str]

    @property
    def line(self) -> str:
        return f"job {self.name} {self.status.lower()}" + (f": {self.message}" if self.message else "")

    @property
    def succeeded(self) -> bool:
        return self.status == JobStatus.SUCCEEDED.value

    @property
    def ended(self) -> bool:
        return JobStatus(self.status).is_terminal()


def connect(address: str) -> JobSubmissionClient:
    """The cluster whose dashboard is at ``address``, like ``http://head:8265``.

    Raises:
        RequestError: nothing answers there, or what answers is not a Ray of this version.
    """
    there = _version_at(address)
    if _minor(there) != _minor(ray.__version__):
        raise RequestError(
            f"client and cluster must have the same Ray; here it is {ray.__version__}, on {address} {there}; "
            f"pip install 'ray[default,tune]=={there}' here, or the other there"
        )
    # Ray lets RAY_ADDRESS win over an address that it is given; this one variable wins over both.
    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.WARNING)  # what it packs and sends is not for our users
    name = "RAY_API_SERVER_ADDRESS"
    before = os.environ.get(name)
    os.environ[name] = address
    try:
        return JobSubmissionClient(address)
    except ray.exceptions.AuthenticationError as error:
        raise RequestError(
            f"{address} takes jobs from who has its token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH, as they are on the cluster"
        ) from error
    except (ConnectionError, RuntimeError) as error:
        raise RequestError(f"--address must be a Ray dashboard; {address}: {one_line(error)}") from error
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _version_at(address: str) -> str:
    """What it says of itself, asked before Ray is: that tries for long, and tells in many lines."""
    if not address.startswith(("http://", "https://")):
        raise RequestError(f"--address must be a Ray dashboard's, like http://head:8265; got {address!r}")
    try:
        with urllib.request.urlopen(f"{address.rstrip('/')}/api/version", timeout=ANSWER_S) as answer:
            return str(json.load(answer)["ray_version"])
    except urllib.error.HTTPError as error:
        if error.code in {401, 403}:
            return ray.__version__  # it tells nobody without a token, which Ray's own client has
        raise RequestError(f"--address must be a Ray dashboard's; {address} answers {error}") from error
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise RequestError(
            f"--address must be a Ray dashboard that can be reached, like http://head:8265; {address}: {reason}"
        ) from error
    except (ValueError, KeyError, TypeError, http.client.HTTPException) as error:
        raise RequestError(
            f"--address must be a Ray dashboard's; what answers at {address} is something else"
        ) from error


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]


def submit(
    client: JobSubmissionClient, asked: Asked, on_cluster: Sequence[Path] = (), requirements: Path | None = None
) -> str:
    """Send what a search needs, and begin it as a job; its name.

    Args:
        on_cluster, requirements: see :func:`autocomp.jobs.parcel.packed`.

    Raises:
        RequestError: something that it names cannot be sent.
        WorkError: the cluster did not take it.
    """
    name = f"autocomp-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory() as scratch:
        parcel = packed(asked.named, Path(scratch) / "parcel", on_cluster, requirements)
        environment: dict[str, object] = {"working_dir": str(parcel.project), "py_modules": [str(parcel.package)]}
        if parcel.requirements is not None:
            environment["pip"] = str(parcel.requirements)
        if parcel.named.default_data is not None:
            environment["env_vars"] = {VARIABLE: str(parcel.named.default_data)}
        arguments = ["search", name, asked.storage, *asked.arguments_with(parcel.named)]
        return _begin(client, name, arguments, environment, {STORAGE: asked.storage, NAMES: _names(asked)})


def _names(asked: Asked) -> str:
    """What things are called here, as JSON: they are called so again in the run folder that comes back."""
    named, begun_from = asked.named, asked.named.begun_from or asked.gone
    data = named.data or named.default_data
    found = {
        "task": named.task,
        "data": data and str(data.resolve()),
        "space": named.space and str(named.space),
        "target": named.target and str(named.target.resolve()),
        "begun_from": begun_from and str(begun_from.resolve()),
        BEGUN_IN: str(Path.cwd()),
    }
    return json.dumps({key: name for key, name in found.items() if name is not None})


def _begin(
    client: JobSubmissionClient,
    name: str,
    arguments: Sequence[str],
    environment: Mapping[str, object],
    metadata: Mapping[str, str],
) -> str:
    entrypoint = shlex.join(["python", "-m", "autocomp.jobs.on_cluster", *arguments])
    try:
        return client.submit_job(
            entrypoint=entrypoint,
            submission_id=name,
            runtime_env=dict(environment),
            metadata=dict(metadata),
        )
    except Exception as error:  # Ray raises what its server, the connection or the packing raised
        raise WorkError(f"the cluster must take the job; it did not: {one_line(error)}") from error


def job(client: JobSubmissionClient, name: str) -> Job:
    """Raises:
    RequestError: the cluster knows no such job.
    """
    try:
        found = _answered(partial(client.get_job_info, name))
    except RuntimeError as error:
        if "status code 404" not in str(error):
            raise WorkError(f"the cluster must tell of {name}; it does not: {one_line(error)[:300]}") from error
        raise RequestError(f"a job must be one that the cluster knows; it knows no {name!r}") from error
    facts = found.metadata or {}
    message = " ".join((found.message or "").split())[:500]
    return Job(name, found.status.value, message, facts.get(STORAGE, ""), json.loads(facts.get(NAMES, "{}")))


def _answered(ask: Callable[[], FoundT], most_s: float | None = None) -> FoundT:
    """What a request gives, which itself may wait for ever where the other end is gone.

    Args:
        most_s: that it may take; default is :data:`REQUEST_S`.

    Raises:
        WorkError: there was no answer.
    """
    most_s = REQUEST_S if most_s is None else most_s
    came: queue.SimpleQueue[FoundT | Exception] = queue.SimpleQueue()

    def answer() -> None:
        try:
            came.put(ask())
        except Exception as error:  # noqa: BLE001  raised where it was asked
            came.put(error)

    threading.Thread(target=answer, daemon=True).start()
    try:
        found = came.get(timeout=most_s)
    except queue.Empty:
        raise WorkError(
            f"the cluster must answer within {most_s:g} s; it does not; try again when it can be reached"
        ) from None
    if isinstance(found, Exception):
        raise found
    return found


def follow(client: JobSubmissionClient, name: str, heard: Heard) -> Job:
    """Tell what a job writes until it has ended. A connection that breaks is made again, and nothing is told twice.

    Raises:
        WorkError: the cluster has not answered for some time.
    """
    told = _Told(heard)
    while True:
        try:
            with _own_interrupts():
                asyncio.run(_tail(client, name, told))
            found = job(client, name)
            if found.ended:
                told.all(_answered(partial(client.get_job_logs, name), GIVE_S))
                return found
            told.answered_at = time.monotonic()
        except (RuntimeError, OSError, aiohttp.ClientError, WorkError) as error:
            if time.monotonic() - told.answered_at > SILENT_S:
                raise WorkError(f"the cluster has not answered for {SILENT_S:g} s; {one_line(error)[:300]}") from error
        time.sleep(LOOK_S)


class _Told:
    """How much of a job's output has been told, and when the cluster last answered."""

    def __init__(self, heard: Heard) -> None:
        self._heard, self._count = heard, 0
        self.answered_at = time.monotonic()

    def all(self, output: str) -> None:
        """Tell what is new in all that there is so far."""
        self.answered_at = time.monotonic()
        if len(output) > self._count:
            self._heard(output[self._count :])
            self._count = len(output)


@contextmanager
def _own_interrupts() -> Iterator[None]:
    """Ctrl-C ends what is done here, at once and whatever comes of it. Left to itself asyncio makes it the cancellation of a
    task, which a connection that is just being made takes for its own failure."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = False

    def interrupt(*_: object) -> None:
        nonlocal came
        came = True
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            raise KeyboardInterrupt


async def _tail(client: JobSubmissionClient, name: str, told: _Told) -> None:
    """Until the job ends, or has written nothing for some time: whether anything is there to hear is then asked for."""
    output, lines = "", aiter(client.tail_job_logs(name))
    with suppress(StopAsyncIteration, TimeoutError):
        while True:
            output += await asyncio.wait_for(anext(lines), QUIET_S)
            told.all(output)


def stop(client: JobSubmissionClient, name: str) -> Job:
    """Stop a job, if it has not ended; as it then is."""
    if not job(client, name).ended:
        _answered(partial(client.stop_job, name))
        waited = time.monotonic()
        while not job(client, name).ended and time.monotonic() - waited < ANSWER_S:
            time.sleep(LOOK_S)
    return job(client, name)


def fetch(client: JobSubmissionClient, found: Job, folder: Path) -> None:
    """Bring the run folder of a job to ``folder``, which is new or empty: from its storage, or, where it has none, through
    the output of a second job on the node that the first ran on. In ``run.json`` things are called what they are here.

    Raises:
        WorkError: it is not there any more.
    """
    with arriving(folder) as beside:
        if not found.storage:
            read_back(_given(client, found.name), beside)
        elif not download(found.storage, beside):
            raise WorkError(f"the run folder of {found.name} must be at {found.storage}; no run is there")
        if (beside / RUN).is_file():
            document = json.loads((beside / RUN).read_text(encoding="utf-8"))
            names = dict(found.names)
            document[BEGUN_IN] = names.pop(BEGUN_IN, document.get(BEGUN_IN))
            if document["request"].get("data") is None:  # the task took none, also where AUTOCOMP_DATA named some
                names.pop("data", None)
            document["request"] |= names
            (beside / RUN).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _given(client: JobSubmissionClient, name: str) -> str:
    """The output of a job that writes the run folder of another one to it."""
    giving = f"{name}-{secrets.token_hex(2)}"
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch) / "autocomp"
        package_of_this(package)
        _begin(client, giving, ["give", name], {"py_modules": [str(package)]}, {})
    waited = time.monotonic()
    while not job(client, giving).ended:
        if time.monotonic() - waited > GIVE_S:
            raise WorkError(f"a run folder must come back within {GIVE_S:g} s; {giving} is still at it; use --storage")
        time.sleep(LOOK_S)
    return _answered(partial(client.get_job_logs, giving), GIVE_S)
