"""What a run tells beside its tables: where time and bytes go, how good the latency model is, what each choice does by itself.

A run of before, or one whose search is not finished, tells less; the report then says what is missing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from autocomp.errors import RunError
from autocomp.hardware.latency import HeldOutError
from autocomp.report.data import Sensitivity, Spent
from autocomp.report.read import Fields, read_object

#: The event of one decision's sensitivities.
SENSITIVITY = "sensitivity"


@dataclass(frozen=True)
class Explanation:
    """``spent`` is by the hash of a plan."""

    spent: dict[str, Spent]
    held_out: HeldOutError | None
    sensitivities: tuple[Sensitivity, ...]


def read_explanation(run_dir: Path) -> Explanation:
    """From ``explanation.json`` and ``events.jsonl``, each of which may be missing.

    Raises:
        RunError: one of them is malformed.
    """
    path = run_dir / "explanation.json"
    told = read_object(path) if path.is_file() else Fields({}, str(path))
    spent = told.inner("spent") if "spent" in told.values else Fields({}, str(path))
    options = {one.text("name"): one.texts("options") for one in told.objects("decisions")}
    return Explanation(
        {name: _spent(spent.inner(name)) for name in spent.values},
        _held_out(told.inner("held_out")) if told.values.get("held_out") is not None else None,
        tuple(_sensitivity(event, options) for event in _events(run_dir / "events.jsonl")),
    )


def _spent(entry: Fields) -> Spent:
    return Spent(
        entry.numbers("latency_ms"),
        entry.numbers("other_latency_ms"),
        {name: round(size) for name, size in entry.numbers("size_bytes").items()},
        entry.integer("other_size_bytes"),
    )


def _held_out(entry: Fields) -> HeldOutError:
    return HeldOutError(
        mean=entry.number("mean"),
        median=entry.number("median"),
        within_10=entry.number("within_10"),
        within_20=entry.number("within_20"),
        networks=entry.integer("networks"),
        note=entry.text("note", ""),
        pairs=entry.number_pairs("pairs"),
    )


def _sensitivity(event: Fields, options: dict[str, tuple[str, ...]]) -> Sensitivity:
    decision, errors = event.text("decision"), event.reals("errors")
    names = options.get(decision, ())
    return Sensitivity(decision, decision.partition(":")[0], errors, names if len(names) == len(errors) else ())


def _events(path: Path) -> list[Fields]:
    """The sensitivities. A line that a crash cut short is left out, as the run itself leaves it out."""
    found: dict[str, Fields] = {}
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        if f'"{SENSITIVITY}"' not in line:
            continue
        try:
            document = json.loads(line)
        except json.JSONDecodeError:
            continue
        if not isinstance(document, dict):
            raise RunError(f"{path}, line {number}: an event must be an object; got {line[:60]!r}; search again")
        if document.get("event") == SENSITIVITY:
            event = Fields(document, f"{path}, line {number}")
            found[event.text("decision")] = event
    return list(found.values())
