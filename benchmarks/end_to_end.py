"""The whole flow on the embedded task, held against what is claimed of it.

    python benchmarks/end_to_end.py [--trials 60] [--out FOLDER]

Runs one search twice with the same seed on target cpu, verifies the first front again, prints a table and writes it
to results/reference/end_to_end.csv. Wall times are those of this machine, whatever else ran on it.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from pathlib import Path

import autocomp
from autocomp.hardware.fingerprint import this_machine
from autocomp.run import Json

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    folder = given.out or Path(tempfile.mkdtemp(prefix="autocomp-end-to-end-"))

    began = time.monotonic()
    first = autocomp.search(target="cpu", trials=given.trials, seed=given.seed, out=folder / "first")
    first.report()
    seconds = time.monotonic() - began
    second = autocomp.search(target="cpu", trials=given.trials, seed=given.seed, out=folder / "second")
    documents = first.verify("front")

    rows = table(documents)
    claims = [
        (f"search of {given.trials} trials, verified and reported, s", f"{seconds:.0f}"),
        ("front points", str(len(documents))),
        ("size spans", f"{spans(rows, 'size_bytes_file'):.1f}x"),
        ("measured latency spans", f"{spans(rows, 'latency_ms_file'):.2f}x"),
        ("same plans in a second run", str(list(first.trials["plan_hash"]) == list(second.trials["plan_hash"]))),
        ("largest size error", f"{max(abs(row['size_error']) for row in rows):.3%}"),
        ("largest metric difference, file against simulation", f"{max(abs(row['metric_error']) for row in rows):.3f}"),
        ("points within 20 % of measured latency", f"{share(rows, 0.20):.0%}"),
        ("points within 10 % of measured latency", f"{share(rows, 0.10):.0%}"),
        ("points whose timings settled", f"{sum(row['settled'] for row in rows)} of {len(rows)}"),
        ("median spread of timings", f"{sorted(row['spread'] for row in rows)[len(rows) // 2]:.1%}"),
        ("machine", this_machine().to_json()),
    ]
    for name, value in claims:
        print(f"{name}: {value}")
    target = ROOT / "results" / "reference" / "end_to_end.csv"
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: round(value, 6) for name, value in row.items()} for row in rows)
    (target.with_suffix(".txt")).write_text("".join(f"{name}: {value}\n" for name, value in claims), encoding="utf-8")


def table(documents: list[Json]) -> list[dict[str, float]]:
    """A row of numbers per front point, predicted beside measured."""
    rows = []
    for document in documents:
        predicted, simulated, measured = (numbers(document[part]) for part in ("predicted", "simulated", "measured"))
        rows.append(
            {
                "trial": float(str(document["trial"])),
                "metric_simulated": simulated["metric_test"],
                "metric_file": measured["metric_test"],
                "metric_error": measured["metric_test"] - simulated["metric_test"],
                "size_bytes_predicted": predicted["size_bytes"],
                "size_bytes_file": measured["size_bytes"],
                "size_error": predicted["size_bytes"] / measured["size_bytes"] - 1,
                "latency_ms_predicted": predicted["latency_ms"],
                "latency_ms_file": measured["latency_ms"],
                "latency_error": predicted["latency_ms"] / measured["latency_ms"] - 1,
                "spread": measured["latency_spread"],
                "settled": measured["settled"],
            }
        )
    return rows


def numbers(part: object) -> dict[str, float]:
    return {name: float(value) for name, value in dict(part).items() if isinstance(value, (int, float))}  # type: ignore[call-overload]


def spans(rows: list[dict[str, float]], name: str) -> float:
    values = [row[name] for row in rows]
    return max(values) / min(values)


def share(rows: list[dict[str, float]], within: float) -> float:
    return sum(abs(row["latency_error"]) <= within for row in rows) / len(rows)


if __name__ == "__main__":
    main()
