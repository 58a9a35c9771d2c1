"""A run folder on disk.

``run.json``, ``study.log`` (Optuna's journal), ``events.jsonl`` and the recovered ``weights/`` are the truth; everything else
in the folder can be deleted and rebuilt. Only one process works in a folder at a time.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from autocomp.errors import RequestError, RunError

JsonValue = str | int | float | bool | None | list["JsonValue"] | dict[str, "JsonValue"]
Json = dict[str, JsonValue]


@dataclass(frozen=True)
class Request:
    """What a search was asked for, resolved. Everything but what is :attr:`FREE` must be the same on resume.

    ``data`` is the absolute path of the folder that the task's data came from; None where it took none. ``recipe`` says how
    points are recovered, as JSON: what is not :class:`autocomp.compress.recipe.Recovery`'s default. ``goal`` is the end of
    the front that is wanted, or all of it; ``begun_from`` the earlier run whose findings this one began with.
    """

    task: str
    target: str
    space: str
    sampler: str
    artifact: str
    threads: int
    batch: int
    seed: int
    trials: int
    timeout_s: float | None = None
    max_latency_ms: float | None = None
    max_size_kb: float | None = None
    max_memory_kb: float | None = None
    max_drop: float | None = None
    data: str | None = None
    recover_epochs: int = 0
    recover_on: str = "cpu"
    recover_seeds: int = 1
    recipe: str = "{}"
    goal: str = "front"
    begun_from: str | None = None

    def __post_init__(self) -> None:
        for name in ("trials", "seed", "threads", "batch", "recover_epochs", "recover_seeds"):
            if not isinstance(value := getattr(self, name), int):
                raise RequestError(f"{name} must be a whole number; got {value!r}")
        for name in ("timeout_s", "max_latency_ms", "max_size_kb", "max_memory_kb", "max_drop"):
            if not isinstance(value := getattr(self, name), (int, float, type(None))):
                raise RequestError(f"{name} must be a number, or None for none; got {value!r}")
        if self.trials < 1:
            raise RequestError(f"a search needs at least 1 trial, the untouched plan; got --trials {self.trials}")
        if self.recover_epochs < 0:
            raise RequestError(f"recovery takes 0 epochs (none) or more; got --recover {self.recover_epochs}")
        if self.recover_seeds < 1:
            raise RequestError(f"recovery takes at least one seed; got --recover-seeds {self.recover_seeds}")
        for name in ("timeout_s", "max_latency_ms", "max_size_kb", "max_memory_kb"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise RequestError(f"a limit must be positive; got {name} {value}; leave it out for none")
        if self.max_drop is not None and not (math.isfinite(self.max_drop) and self.max_drop >= 0):
            raise RequestError(f"a largest drop must be 0 or more; got max_drop {self.max_drop}; leave it out for none")
        if self.goal in ("fastest", "smallest") and self.max_drop is None:
            raise RequestError(f"the {self.goal} plan is wanted within a drop; got none; say which by --max-drop")
        if self.goal == "most-accurate" and {self.max_latency_ms, self.max_size_kb, self.max_memory_kb} == {None}:
            raise RequestError(
                "the most-accurate plan is wanted within a limit; got none; say which by --max-latency-ms, --max-size-kb "
                "or --max-memory-kb"
            )

    #: How long a search goes on, and what is recovered, may change from one sitting to the next; and data may move.
    FREE = ("trials", "timeout_s", "data", "recover_epochs", "recover_on", "recover_seeds", "recipe")

    def changes(self, other: Request) -> list[str]:
        """In what ``other`` asks for another search, in words."""
        mine, theirs = asdict(self), asdict(other)
        for asked in (mine, theirs):  # these folders may move: on a cluster they come along with every job
            asked["begun_from"] = asked["begun_from"] and Path(asked["begun_from"]).name
            asked["target"] = Path(asked["target"]).name
            asked |= {name: os.path.normpath(asked[name]) for name in ("task", "space")}  # ./net.py is net.py
        return [
            f"{name} was {mine[name]!r} and is now {theirs[name]!r}"
            for name in mine
            if name not in self.FREE and mine[name] != theirs[name]
        ]


#: In ``run.json``: the working folder of the last sitting, which paths in the request are seen from.
BEGUN_IN = "begun_in"


def seen_from(folder: Path, path: str) -> str:
    """A path that is not here but, relative as it is, in another folder: as it is found from here; others as they are."""
    return str(folder / path) if not Path(path).exists() and (folder / path).exists() else path


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run, and reading and writing of its plain files."""

    path: Path

    @property
    def journal(self) -> Path:
        return self.path / "study.log"

    @property
    def exports(self) -> Path:
        return self.path / "exports"

    def exists(self) -> bool:
        return (self.path / "run.json").is_file()

    def read(self) -> Json:
        """``run.json``.

        Raises:
            RunError: the folder holds no run.
        """
        try:
            document: Json = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RunError(
                f"a run folder must hold run.json; {self.path} does not; start one with search --out"
            ) from error
        except json.JSONDecodeError as error:
            raise RunError(f"run.json must be JSON; {self.path / 'run.json'} is not ({error})") from error
        return document

    def request(self) -> Request:
        """What the run was asked for.

        Raises:
            RunError: there is no run, or another version of autocomp wrote it.
        """
        try:
            return Request(**self.read()["request"])  # type: ignore[arg-type]
        except (TypeError, KeyError) as error:
            raise RunError(
                f"run.json of {self.path} is from another version of autocomp ({error}); start anew"
            ) from error

    def begun_in(self) -> Path:
        """Where paths that the request names are, if they are not here."""
        return Path(str(self.read().get(BEGUN_IN, ".")))

    def write(self, name: str, text: str) -> None:
        """Write a file of the run whole or not at all."""
        write_whole(self.path / name, text.encode())

    def write_json(self, name: str, document: object) -> None:
        self.write(name, json.dumps(document, indent=2) + "\n")

    def append_event(self, *events: Mapping[str, JsonValue]) -> None:
        """Add a line each to ``events.jsonl``, on disk when this returns."""
        with (self.path / "events.jsonl").open("ab+") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            cut_short = file.read() not in (b"", b"\n")  # by a crash: the line must not swallow this one
            lines = "".join(json.dumps(dict(event)) + "\n" for event in events)
            file.write(("\n" * cut_short + lines).encode())
            file.flush()
            os.fsync(file.fileno())

    def events(self) -> Iterator[Json]:
        """The events so far. A line that was cut short by a crash is left out."""
        path = self.path / "events.jsonl"
        if not path.is_file():
            return
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue

    def check_free(self, resume: bool) -> None:
        """Whether a search may begin, or go on, in this folder.

        Raises:
            RunError: it holds a run or other files, or there is none to resume.
        """
        if self.exists() and not resume:
            raise RunError(f"--out must not hold a run yet; {self.path} does; resume it with --resume, or name another")
        if not self.exists() and resume:
            raise RunError(f"--resume needs a run to resume; {self.path} holds none; leave --resume out")
        if not self.exists() and self.path.is_dir() and any(path.name != ".lock" for path in self.path.iterdir()):
            raise RunError(f"--out must be a new or empty folder; {self.path} holds other files; name another")

    @contextmanager
    def working(self) -> Iterator[None]:
        """Hold the folder for this process.

        Raises:
            RunError: another process holds it, or it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"--out must be a folder that can be made; {self.path} is not ({error.strerror})") from error
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(
                    f"one process works in a run folder at a time; another is in {self.path}; wait"
                ) from error
            yield


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # what events tell of must be there, also after the power failed
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
