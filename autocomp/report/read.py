"""Reading a run folder's files: every cell is checked, and what does not hold is a one-line :class:`RunError`."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from autocomp.errors import RunError

T = TypeVar("T", bound=str)

_TRUE, _FALSE = ("true", "1"), ("false", "0", "")
_REBUILD = "rebuild it with `autocomp report`, or search again"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Fields:
    """Named values read from ``where``: a CSV row (text cells; an empty one is None) or a JSON object."""

    values: Mapping[str, object]
    where: str

    def _bad(self, key: str, rule: str) -> RunError:
        given = repr(self.values.get(key))
        return RunError(f"{self.where}: {key} must be {rule}; got {given[:60]}; {_REBUILD}")

    def text(self, key: str, default: str | None = None) -> str:
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self._bad(key, "text")
        return value

    def maybe_number(self, key: str) -> float | None:
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise self._bad(key, "a number")
        try:
            number = float(value)
        except ValueError:
            raise self._bad(key, "a number") from None
        if math.isnan(number):
            return None
        if math.isinf(number):
            raise self._bad(key, "finite")
        return number

    def number(self, key: str) -> float:
        value = self.maybe_number(key)
        if value is None:
            raise self._bad(key, "a number")
        return value

    def maybe_integer(self, key: str) -> int | None:
        value = self.maybe_number(key)  # a column with gaps comes back from pandas as floats: 1234.0
        if value is not None and not value.is_integer():
            raise self._bad(key, "a whole number")
        return None if value is None else int(value)

    def integer(self, key: str) -> int:
        value = self.maybe_integer(key)
        if value is None:
            raise self._bad(key, "a whole number")
        return value

    def flag(self, key: str) -> bool:
        word = str(self.values.get(key) or "").lower()
        if word not in _TRUE + _FALSE:
            raise self._bad(key, "true or false")
        return word in _TRUE

    def maybe_flag(self, key: str) -> bool | None:
        return None if self.values.get(key) is None else self.flag(key)

    def choice(self, key: str, options: Sequence[T]) -> T:
        """The one of ``options`` that stands under ``key``."""
        for option in options:
            if option == self.values.get(key):
                return option
        raise self._bad(key, f"one of {', '.join(options)}")

    def shape(self, key: str) -> tuple[int, ...]:
        value = self.values.get(key)
        if not isinstance(value, list) or not all(isinstance(size, int) for size in value):
            raise self._bad(key, "a list of whole numbers")
        return tuple(value)

    def pairs(self, key: str) -> tuple[tuple[float, float], ...]:
        """Pairs of numbers, written ``1:2 3:4``; none where nothing stands there."""
        found = [one.partition(":") for one in self.text(key, "").split()]
        try:
            return tuple((float(one), float(other)) for one, _, other in found)
        except ValueError:
            raise self._bad(key, "pairs of numbers") from None

    def number_pairs(self, key: str) -> tuple[tuple[float, float], ...]:
        """A list of pairs of numbers; none where it is missing."""
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(
            isinstance(pair, list) and len(pair) == 2 and all(map(_is_number, pair)) for pair in value
        ):
            raise self._bad(key, "a list of pairs of numbers")
        return tuple((float(one), float(other)) for one, other in value)

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.values.get(key)
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise self._bad(key, "a list of texts")
        return tuple(value)

    def reals(self, key: str) -> tuple[float, ...]:
        value = self.values.get(key)
        if not isinstance(value, list) or not all(_is_number(one) for one in value):
            raise self._bad(key, "a list of numbers")
        return tuple(float(one) for one in value)

    def numbers(self, key: str) -> dict[str, float]:
        """The object under ``key``, whose values are all numbers."""
        values = self.inner(key).values
        if not all(_is_number(one) for one in values.values()):
            raise self._bad(key, "an object of numbers")
        return {name: float(str(one)) for name, one in values.items()}

    def objects(self, key: str) -> tuple[Fields, ...]:
        """The objects listed under ``key``; empty where there is none."""
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            raise self._bad(key, "a list of objects")
        return tuple(Fields(one, f"{self.where}, {key} {number}") for number, one in enumerate(value))

    def inner(self, key: str) -> Fields:
        value = self.values.get(key)
        if not isinstance(value, dict):
            raise self._bad(key, "an object")
        return Fields(value, f"{self.where}, {key}")

    def facts(self, key: str) -> tuple[tuple[str, str], ...]:
        """The object under ``key`` (empty where there is none) as pairs of words, in its own order."""
        value = self.values.get(key)
        if value is None:
            return ()
        if not isinstance(value, dict):
            raise self._bad(key, "an object")
        return tuple((str(k), v if isinstance(v, str) else json.dumps(v)) for k, v in value.items())


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RunError(f"a run folder must hold {path.name}; {path} does not exist; {_REBUILD}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} must be a readable text file; {error}; {_REBUILD}") from None


def read_csv(path: Path, columns: Sequence[str]) -> tuple[Fields, ...]:
    """The rows of a CSV file that must have at least ``columns``.

    Raises:
        RunError: the file is missing or unreadable, or lacks a column.
    """
    lines = csv.DictReader(io.StringIO(_content(path), newline=""))
    try:
        rows = list(lines)
    except csv.Error as error:
        raise RunError(f"{path} must be a CSV file; {error}; {_REBUILD}") from None
    missing = [name for name in columns if name not in (lines.fieldnames or ())]
    if missing:
        raise RunError(f"{path} must have the columns {', '.join(columns)}; {', '.join(missing)} missing; {_REBUILD}")
    return tuple(
        Fields({key: cell or None for key, cell in row.items() if key is not None}, f"{path}, row {number}")
        for number, row in enumerate(rows, start=1)
    )


def read_json(path: Path) -> object:
    """The document in ``path``.

    Raises:
        RunError: the file is missing or is not JSON.
    """
    try:
        document: object = json.loads(_content(path))
    except ValueError as error:
        raise RunError(f"{path} must be JSON; {error}; {_REBUILD}") from None
    return document


def read_object(path: Path) -> Fields:
    """The JSON object in ``path``; :class:`RunError` where it is none."""
    document = read_json(path)
    if not isinstance(document, dict):
        raise RunError(f"{path} must hold a JSON object; got {str(document)[:60]!r}; {_REBUILD}")
    return Fields(document, str(path))


def read_objects(path: Path) -> tuple[Fields, ...]:
    """The JSON objects listed in ``path``; :class:`RunError` where it holds anything else."""
    document = read_json(path)
    if not isinstance(document, list) or not all(isinstance(entry, dict) for entry in document):
        raise RunError(f"{path} must hold a list of JSON objects; got {str(document)[:60]!r}; {_REBUILD}")
    return tuple(Fields(entry, f"{path}, entry {number}") for number, entry in enumerate(document))
