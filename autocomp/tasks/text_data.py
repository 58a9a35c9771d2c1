"""Texts with labels or scores from plain files: ``train``, ``search`` (or ``dev``) and ``test`` in one folder."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from autocomp.errors import TaskError, first_line

SUFFIXES = (".tsv", ".csv", ".jsonl")
#: The names that each split's file goes by, the first one first.
FILE_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train",),
    "search": ("search", "dev", "validation", "val"),
    "test": ("test",),
}
LAYOUT = "train, search (or dev) and test as .tsv, .csv or .jsonl files with the columns text, text_pair (optional) and label"


@dataclass(frozen=True)
class Texts:
    """Texts, their second texts where they are pairs, and the label or score of each, as it stands in the file."""

    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.texts) != len(self.labels) or (self.pairs is not None and len(self.pairs) != len(self.texts)):
            raise TaskError(f"texts need a label each; got {len(self.texts)} texts and {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.texts)

    def scores(self) -> tuple[float, ...]:
        """The labels as numbers.

        Raises:
            TaskError: one is no number.
        """
        try:
            return tuple(float(label) for label in self.labels)
        except ValueError as error:
            raise TaskError(f"a pair's score must be a number; {first_line(error)}; mend the label column") from error


def read_texts(data: Path | None, split: str, task: str) -> Texts | None:
    """A split in the folder ``data``; None where it has no file for it.

    Raises:
        TaskError: no folder is given, the file lacks a column, or it is empty or not in its format.
    """
    if data is None:
        raise TaskError(f"{task} needs data; name a folder by --data or AUTOCOMP_DATA, with {LAYOUT}")
    if not data.is_dir():
        raise TaskError(f"{task} needs a data folder with {LAYOUT}; {data} is none")
    places = (data / f"{name}{suffix}" for name in FILE_NAMES[split] for suffix in SUFFIXES)
    path = next((place for place in places if place.is_file()), None)
    return None if path is None else read_file(path)


def need_texts(data: Path | None, split: str, task: str) -> Texts:
    """:func:`read_texts`, for a split that must be there.

    Raises:
        TaskError: it is not.
    """
    found = read_texts(data, split, task)
    if found is None:
        raise TaskError(f"{task} needs a data folder with {LAYOUT}; {data} has no {split}")
    return found


def read_file(path: Path) -> Texts:
    """The texts in a file; the score of a pair may be called ``score`` instead of ``label``.

    Raises:
        TaskError: the file lacks a column, is empty, or is not in the format that its name says.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # a spreadsheet begins with the mark
            rows = list(_rows(file, path.suffix))
    except (ValueError, csv.Error) as error:
        raise TaskError(f"{path} must be {path.suffix[1:]} in UTF-8; it is not ({first_line(error)})") from error
    if not rows:
        raise TaskError(f"a split must hold examples; {path} is empty")
    label = "label" if "label" in rows[0] else "score"
    for number, row in enumerate(rows, start=1):
        if lacking := [name for name in ("text", label) if row.get(name) is None]:
            missing = "label" if lacking == ["score"] else lacking[0]
            raise TaskError(
                f"{path} must have the columns text, text_pair (optional) and label; entry {number} has no {missing}; "
                f"the columns are {', '.join(map(str, rows[0]))}"
            )
    alone = [number for number, row in enumerate(rows, start=1) if row.get("text_pair") is None]
    if 0 < len(alone) < len(rows):
        raise TaskError(
            f"{path} must have a text_pair in all entries or in none; entry {alone[0]} has none, others have one"
        )
    pairs = () if alone else tuple(str(row["text_pair"]) for row in rows)
    return Texts(tuple(str(row["text"]) for row in rows), pairs or None, tuple(str(row[label]) for row in rows))


def _rows(lines: Iterator[str], suffix: str) -> Iterator[Mapping[str, object]]:
    if suffix == ".jsonl":
        for line in lines:
            if line.strip():
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"a line must be an object, got {line.strip()[:40]}")
                yield row
    elif suffix == ".tsv":  # quotation marks in it are the text's own
        yield from csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        yield from csv.DictReader(lines)
