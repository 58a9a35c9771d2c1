"""A journal file whose entries can be written together.

A proposal is an entry for every decision: a hundred of them, each of which Optuna would write down, and wait for, by
itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend, JournalFileBackend


@dataclass
class _Held:
    """Entries held back; ``before`` are those that the file had when the first of them was read."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    before: int | None = None


class Journal(BaseJournalBackend):
    """Optuna's journal file, of which this process is the only writer."""

    def __init__(self, path: Path) -> None:
        self._file = JournalFileBackend(str(path))
        self._held: _Held | None = None

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is written meanwhile comes into the file at the end, at once: after a crash there is all of it or nothing.
        Where it is left by an error as well, since Optuna has it in mind."""
        held = self._held = _Held()
        try:
            yield
        finally:
            self._held = None
            if held.entries:
                self._file.append_logs(held.entries)
            if held.before is not None:  # so that the file knows where the next entry begins
                for _ in self._file.read_logs(held.before):
                    pass

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        if self._held is None:
            self._file.append_logs(logs)
        else:
            self._held.entries.extend(logs)

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        if self._held is None:
            return self._file.read_logs(log_number_from)
        if self._held.before is None:
            # Optuna reads after each of its writes, so it has read all that came before.
            self._held.before = log_number_from
        return self._held.entries[log_number_from - self._held.before :]
