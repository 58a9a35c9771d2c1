"""A session with a board: the system's own ssh, the agent behind it, and what to do when the line is cut.

Configuration, keys and host-key checks are those of the user's ``ssh``; no password is handled. A connection that is lost
is made anew, files that arrived are there still, and what was loaded is loaded again; so a request is answered once,
however often it had to be sent.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import secrets
import shlex
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, cast

from autocomp.errors import BoardError, BoardLostError, RequestError
from autocomp.hardware.remote import agent

Answer = Mapping[str, object]
Request = Mapping[str, object]

#: Names another ssh, with options, as GIT_SSH_COMMAND does for git.
SSH_VARIABLE = "AUTOCOMP_SSH"
SSH_OPTIONS = ("-T", *(f"-o{option}" for option in ("BatchMode=yes", "ConnectTimeout=20", "ServerAliveInterval=15")))
#: Seconds before each further try to connect again.
WAITS_S = (0.5, 2.0, 5.0, 15.0, 30.0)
#: Requests that may end the agent itself, which runs what is asked for, by memory or a signal; and how often one does on lines
#: that were had again before it is given up.
RUNS, ENDS = frozenset({"load", "block", "run", "optimize", "profile"}), 2
#: What ssh says → what to do about it.
REMEDIES = {
    "IDENTIFICATION HAS CHANGED": "find out why the board's key is another before you connect by hand",
    "Host key verification failed": "connect once by hand, so that the board's key is known",
    "Permission denied": "let ssh in by a key (ssh-copy-id), since no password is asked for",
    "python3": "install python3 on the board",
}
_HOST = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.+-]*@)?[A-Za-z0-9_\[][A-Za-z0-9_.:%\[\]-]*")


def checked_host(host: str) -> str:
    """A host as ssh takes it: ``board``, ``user@board``, or a name of the user's ssh configuration.

    Raises:
        RequestError: it is something else, like an option.
    """
    if not _HOST.fullmatch(host):
        raise RequestError(f"a host must be a name or an address, like user@board; got {host!r}; see `man ssh`")
    return host


def own_ssh() -> tuple[str, ...]:
    """The user's ssh, which asks nothing and sees when a line is dead."""
    return (*shlex.split(os.environ.get(SSH_VARIABLE, "ssh")), *SSH_OPTIONS)


class _LostError(Exception):
    """The line is cut; says what ssh said."""


@dataclass
class _Line:
    """One connection: the process of ssh, and the last lines that it said."""

    process: subprocess.Popen[bytes]
    #: Whether a request is on its way, or its answer: what is sent now would be taken for a part of it.
    busy: bool = False
    said: deque[str] = field(default_factory=lambda: deque(maxlen=20))
    listener: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()

    @property
    def to_board(self) -> IO[bytes]:
        return cast("IO[bytes]", self.process.stdin)

    @property
    def from_board(self) -> IO[bytes]:
        return cast("IO[bytes]", self.process.stdout)

    def _listen(self) -> None:
        """Collect what ssh says beside the answers, until it ends."""
        for line in cast("IO[bytes]", self.process.stderr):
            self.said.append(line.decode("utf-8", "replace").strip("@ \r\n"))

    def send(self, request: Request, payload: bytes) -> tuple[Answer, bytes]:
        """Raises:
        _LostError: there is no answer.
        """
        self.busy = True
        try:
            self.to_board.write(json.dumps({**request, "bytes": len(payload)}).encode() + b"\n" + payload)
            self.to_board.flush()
            line = self.from_board.readline()
            while line and agent.MARK not in line:  # a login message, whose last line may be without an end
                line = self.from_board.readline()
            answer: Answer = json.loads(line.partition(agent.MARK)[2]) if line.endswith(b"\n") else {}
            wanted = int(cast("int", answer.get("bytes", 0)))
            data = self.from_board.read(wanted)
        except (OSError, ValueError) as error:
            raise _LostError(str(error)) from error
        if not line.endswith(b"\n") or len(data) < wanted:
            raise _LostError("the connection was closed")
        self.busy = False
        return answer, data

    def end(self) -> str:
        """Close it; the most telling of what ssh said."""
        for pipe in (self.to_board, self.from_board):
            with contextlib.suppress(OSError):
                pipe.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.listener.join(timeout=2)
        cast("IO[bytes]", self.process.stderr).close()
        lines = [line for line in reversed(self.said) if line]
        known = [line for word in REMEDIES for line in lines if word in line]
        return next(iter([*known, *lines]), f"it ended with code {self.process.returncode}")


class Board:
    """A board, connected to from ``with`` on.

    Args:
        host: as ssh takes it.
        ssh: the command before the host; default: :func:`own_ssh`.
        tell: is told when a connection is lost and had again.

    Raises:
        RequestError: the host is none.
        BoardError: it cannot be reached, or has no python3.
    """

    def __init__(
        self, host: str, ssh: Sequence[str] | None = None, tell: Callable[[str], None] = lambda _: None
    ) -> None:
        self.host = checked_host(host)
        self._ssh, self._tell = own_ssh() if ssh is None else tuple(ssh), tell
        self._session = secrets.token_hex(16)
        self._there: set[str] = set()
        self._held: dict[str, list[tuple[Request, bytes]]] = {}
        #: Names, with the files that they were of.
        self._dropped: list[tuple[str, list[str]]] = []
        self._line: _Line | None = None
        self.facts: Answer = {}
        #: For names of what is held.
        self.numbers = itertools.count()

    def __enter__(self) -> Board:
        try:
            self.facts = self._connect()
        except _LostError as error:
            raise BoardError(self._words(str(error))) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._part()

    def ask(self, request: Request, payload: bytes = b"") -> tuple[Answer, bytes]:
        """The answer to a request, and the bytes behind it, however often the line is cut meanwhile.

        Raises:
            BoardError: the board cannot do it, or cannot be reached any more.
        """
        had_again = 0
        for wait_s in (*WAITS_S, None):
            try:
                if self._line is None:
                    self._reconnect()
                    had_again += 1
                assert self._line is not None
                answer, data = self._line.send(request, payload)
                break
            except _LostError as error:
                said = self._line.end() if self._line is not None else str(error)
                self._line = None
                if had_again == ENDS and request["do"] in RUNS:
                    raise BoardError(
                        f"{self.host} must be able to {request['do']} the file; its agent ends whenever it is asked to; "
                        "is there enough memory?"
                    ) from error
                if wait_s is None:
                    raise BoardLostError(
                        f"the connection to {self.host} was lost and could not be had again; ssh says: {said}; run the "
                        "same command again: what was measured is kept"
                    ) from error
                self._tell(f"the connection to {self.host} was lost ({said}); connecting again")
                time.sleep(wait_s)
        self._check(request, answer)
        return answer, data

    def _check(self, request: Request, answer: Answer) -> None:
        """Raises:
        BoardError: the board could not do what it was asked for.
        """
        if "refused" in answer:
            raise BoardError(f"{self.host}: {answer['refused']}")
        if "failed" in answer:
            raise BoardError(f"{self.host} must be able to {request['do']} the file; it says: {answer['failed']}")

    def put(self, data: bytes) -> str:
        """Bring a file there, unless it is; its hash, which is its name there."""
        name = hashlib.sha256(data).hexdigest()
        if name not in self._there:
            has, _ = self.ask({"do": "has", "hashes": [name]})
            if name not in cast("list[str]", has["has"]):
                self.ask({"do": "put", "sha256": name}, data)
            self._there.add(name)
        return name

    def hold(self, name: str, request: Request, payload: bytes = b"") -> Answer:
        """A request whose effect on the agent lasts under a name, and is had again in another connection."""
        unheld: list[str] = []
        while self._dropped:
            dropped, models = self._dropped.pop()
            self.ask({"do": "unload", "name": dropped})
            unheld += models
        answer, _ = self.ask({**request, "name": name}, payload)
        kept = [one for one in self._held.get(name, []) if one[0]["do"] != request["do"]]
        self._held[name] = [*kept, ({**request, "name": name}, payload)]
        self.forget(unheld)  # of which this may be one
        return answer

    def drop(self, name: str) -> None:
        """What lasts under a name is not needed any more. Says so with the next that is held."""
        held = self._held.pop(name, None)
        if held is not None:
            self._dropped.append((name, _models(held)))

    def forget(self, models: Iterable[str]) -> None:
        """Have files removed there, by their hashes, but for those that are still held, or dropped and not yet said so."""
        # Garbage may be collected meanwhile, and something be dropped.
        needed = {model for held in [*self._held.values()] for model in _models(held)}
        needed |= {model for _, dropped in [*self._dropped] for model in dropped}
        unused = sorted({*models} - needed)
        if unused:
            self._there -= {*unused}
            self.ask({"do": "forget", "hashes": [*unused]})

    def _connect(self) -> Answer:
        """Raises:
        _LostError: ssh did not get through; says why.
        BoardError: the agent cannot begin.
        """
        source = Path(agent.__file__).read_bytes()
        boot = f'import sys;exec(compile(sys.stdin.buffer.read({len(source)}),"agent","exec"))'
        command = [*self._ssh, "--", self.host, f"exec python3 -u -c {shlex.quote(boot)}"]
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
            )
        except OSError as error:
            raise _LostError(f"{error}") from error
        line = _Line(process)
        try:
            with contextlib.suppress(OSError):  # said by what ssh says
                line.to_board.write(source)
            facts, _ = line.send({"do": "hello", "session": self._session}, b"")
        except _LostError:
            raise _LostError(line.end()) from None
        for said in (facts.get("refused"), facts.get("failed")):
            if said is not None:
                line.end()
                raise BoardLostError(
                    f"{self.host} must be able to begin a session; it says: {said}; try it by hand: ssh {self.host}"
                )
        self._line = line
        return facts

    def _reconnect(self) -> None:
        """Raises:
        _LostError: ssh did not get through, or the line was cut once more.
        BoardError: what was there is not there any more, or not taken again.
        """
        self._connect()
        try:
            self._have_again()
        except BoardError:
            self._part()
            raise

    def _have_again(self) -> None:
        """What was there, on a new line. After a restart its clocks may be others as well: it is not gone on with."""
        assert self._line is not None
        names = sorted(self._there)
        has, _ = self._line.send({"do": "has", "hashes": names}, b"")
        if has.get("has") != names:
            raise BoardLostError(
                f"a board must keep its files while it is measured; {self.host} has lost them, as by a restart; run the same "
                "command again: what was measured is kept"
            )
        for requests in [*self._held.values()]:  # what is held may be dropped meanwhile, when garbage is collected
            for request, payload in requests:
                self._check(request, self._line.send(request, payload)[0])

    def _part(self) -> None:
        """The board keeps nothing. Where the line is cut, one further is tried; where that was given up, or is in vain, its
        agent removes it another day."""
        if self._line is None:
            return
        with contextlib.suppress(_LostError, BoardError, KeyboardInterrupt):
            try:
                if self._line.busy:
                    raise _LostError("interrupted")
                self._line.send({"do": "bye"}, b"")
            except _LostError:
                self._line.end()
                self._connect()
                self._line.send({"do": "bye"}, b"")
        self._line.end()
        self._line = None

    def _words(self, said: str) -> str:
        remedy = next((what for word, what in REMEDIES.items() if word in said), "try it by hand")
        return f"ssh must be able to reach {self.host}; it says: {said}; {remedy}: ssh {self.host}"


def _models(held: Iterable[tuple[Request, bytes]]) -> list[str]:
    """The files that requests are about."""
    return [str(request["model"]) for request, _ in held if "model" in request]
