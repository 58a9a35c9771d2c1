"""A made-up run folder in the form that a search leaves: the inputs of a report, and nothing else."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

from autocomp.plan import Format, LayerPlan, Plan, Rank, Sparsity
from autocomp.report.load import POINT_COLUMNS, TRIAL_COLUMNS

TRIALS = (3, 5, 8, 11, 17, 19, 23, 28, 31, 40, 52)
LAYERS = ("stem", *(f"block{b}.conv{c}" for b in range(1, 6) for c in (1, 2)), "head")


@dataclass(frozen=True)
class Kind:
    """What sort of run to make up; the last ``ruined`` points have lost nearly all of the accuracy. ``stem`` is the name of
    the first layer."""

    target: str = "cpu"
    verified: bool = True
    metric: str = "accuracy"
    task: str = "digits"
    ruined: int = 0
    stem: str = "stem"
    error: str = "CompressionError: rank 64 <script>alert('x')</script> exceeds & breaks"

    @property
    def measured(self) -> bool:
        return self.target == "cpu"


def layer_names(kind: Kind) -> tuple[str, ...]:
    return (kind.stem, *LAYERS[1:])


def layer_entries(kind: Kind) -> list[dict[str, object]]:
    entries: list[dict[str, object]] = []
    for index, name in enumerate(layer_names(kind)):
        linear = name == "head"
        width = 32 if index < 5 else 64
        shape = [10, 64] if linear else [width, 1 if index == 0 else width, 3, 3]
        group = None if linear else f"g{width}" if name.endswith("conv2") else name
        entries.append(
            {
                "name": name, "kind": "linear" if linear else "conv2d", "weight_shape": shape,
                "in_shape": [1, shape[1]], "out_shape": [1, shape[0]], "macs": 640 if linear else 9 * width**2 * 256,
                "params": 650 if linear else 9 * width**2, "group": group, "prunable": not linear, "reason": "",
                "block": "" if linear or index == 0 else name.partition(".")[0],
            }
        )  # fmt: skip
    return entries


def plan(step: int, kind: Kind) -> Plan:
    """Heavier with ``step`` (1 …): bits first, then channels, rank and zeros."""
    layers = {}
    for index, name in enumerate(layer_names(kind)):
        if index == 0 and step < 9:
            continue
        bits = 8 if step < 4 or index % 3 == 0 else 4 if step < 8 else 2
        sparsity = None
        if step > 2 and name.endswith("conv1"):
            sparsity = Sparsity("channel", min(0.75, 0.07 * step))
        elif step > 5 and name != "head":
            sparsity = Sparsity("unstructured", 0.08 * step)
        rank = Rank("svd", 24) if step > 3 and index == 7 else None
        layers[name] = LayerPlan(sparsity, rank, Format(bits) if step > 1 or index > 4 else None)
    return Plan(layers, ("block4",) if step == 11 else ())


def _row(kind: Kind, step: int) -> dict[str, object]:
    trial = 0 if step == 0 else TRIALS[step - 1]
    lost = 0.885 if step > len(TRIALS) - kind.ruined else 0.0006 * step**2 - 0.001 * (step % 3)
    share = 0.985 - lost
    metric = share if kind.metric == "accuracy" else 12.0 + 40 * (1 - share)
    size, ms = round(1_480_000 / (1 + 1.4 * step)), 2.4 / (1 + 0.21 * step)
    error = 0.03 if kind.measured else 0.35
    unit = 1 if kind.metric == "accuracy" else 40
    drop = unit * lost
    verified = kind.verified
    measured = verified and kind.measured
    return {
        "trial": trial, "is_baseline": step == 0, "metric_search": round(metric, 6),
        "metric_test": round(metric - 0.002, 6) if verified else None, "size_bytes": size, "latency_ms": round(ms, 5),
        "latency_std_ms": round(error * ms, 5), "latency_source": "fitted" if kind.measured else "datasheet",
        "measured_metric": round(metric - 0.002 + 0.001 * (step % 2), 6) if verified else None,
        "measured_metric_low": (0.0 if step == 0 else round(drop - unit * 0.006, 6)) if verified else None,
        "measured_metric_high": (0.0 if step == 0 else round(drop + unit * 0.006, 6)) if verified else None,
        "measured_size_bytes": float(size + 37 * step) if verified else None,
        "measured_latency_ms": round(ms * (1 + 0.03 * (step % 4 - 1.4)), 5) if measured else None,
        "measured_latency_spread": 0.02 if measured else None,
        "plan_hash": Plan().hash if step == 0 else plan(step, kind).hash,
        "peak_memory_bytes": 2 * size, "plan": f"made up {step}", "uniform": "w8a8" if step == 3 else "",
        "why": f"expected of step {step}", "rungs": f"0.1111:{metric - 0.02 * unit:.6g} 0.3333:{metric + 0.01 * unit:.6g}",
    }  # fmt: skip


def front_rows(kind: Kind) -> list[dict[str, object]]:
    return [_row(kind, step) for step in range(len(TRIALS) + 1)]


def write_csv(path: Path, columns: tuple[str, ...], rows: list[dict[str, object]]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def _write_export(folder: Path, kind: Kind, row: dict[str, object], the_plan: Plan) -> None:
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text(the_plan.to_json())
    if not kind.verified:
        return
    verification = {
        "trial": row["trial"], "plan_hash": row["plan_hash"], "format": "onnx-packed",
        "predicted": {key: row[key] for key in ("size_bytes", "latency_ms", "latency_std_ms", "latency_source")},
        "simulated": {"metric_test": row["metric_test"]},
        "measured": {
            "metric_test": row["measured_metric"], "examples": 600, "drop": 0.0, "drop_low": row["measured_metric_low"],
            "drop_high": row["measured_metric_high"], "size_bytes": row["measured_size_bytes"],
            "latency_ms": row["measured_latency_ms"], "latency_spread": row["measured_latency_spread"],
            "settled": row["trial"] != 23 if kind.measured else None,
        },
        "runtime": "onnxruntime 1.31.0",
    }  # fmt: skip
    (folder / "verification.json").write_text(json.dumps(verification))


def write_run(run: Path, kind: Kind | None = None) -> Path:
    """Make up a run with a baseline and 11 front points, 64 trials of which two failed and one never ended."""
    kind = kind or Kind()
    run.mkdir(parents=True)
    rows = front_rows(kind)
    write_csv(run / "front.csv", (*POINT_COLUMNS, "peak_memory_bytes"), rows)
    front = {row["trial"]: row for row in rows}
    trials: list[dict[str, object]] = []
    for number in range(64):
        state = {13: "failed", 44: "failed", 63: "running"}.get(number, "complete")
        values = front.get(number, {**rows[4], "is_baseline": False}) if state == "complete" else {}
        error = kind.error if state == "failed" else ""
        trials.append({**values, "trial": number, "state": state, "seconds": 1.5, "error": error})
    write_csv(run / "trials.csv", (*TRIAL_COLUMNS, "plan", "uniform", "why", "rungs"), trials)
    (run / "layers.json").write_text(json.dumps(layer_entries(kind)))
    for step, row in enumerate(rows):
        _write_export(run / "exports" / str(row["trial"]), kind, row, plan(step, kind) if step else Plan())
    (run / "explanation.json").write_text(json.dumps(explanation(kind)))
    events = [
        {"event": "sensitivity", "decision": f"format:{name}", "errors": [0.0, 0.001 * index, 0.3 * index]}
        for index, name in enumerate(layer_names(kind))
    ]
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (run / "run.json").write_text(json.dumps(run_document(kind)))
    return run


def explanation(kind: Kind) -> dict[str, object]:
    """Where time and bytes go: the more is done to a layer, the less."""
    names = layer_names(kind)
    plans = [plan(step, kind) if step else Plan() for step in range(len(TRIALS) + 1)]
    return {
        "spent": {
            one.hash: {
                "latency_ms": {name: 0.2 / (1 + step * (name in one.layers)) for name in names},
                "other_latency_ms": {"reformat": 0.02 * step},
                "size_bytes": {name: round(120_000 / (1 + step * (name in one.layers))) for name in names},
                "other_size_bytes": 900 + step,
            }
            for step, one in enumerate(plans)
        },
        "decisions": [
            {"name": f"format:{name}", "kind": "format", "layers": [name], "options": ["as it is", "w8a8", "w4a8"]}
            for name in names
        ],
        "held_out": {
            "mean": 0.041, "median": 0.032, "within_10": 0.92, "within_20": 0.98, "networks": 25, "note": "25 of 100",
            "pairs": [[0.5, 0.51], [2.0, 1.9], [8.0, 8.4]] if kind.measured else [],
        },
    }  # fmt: skip


def run_document(kind: Kind) -> dict[str, object]:
    cpu = kind.measured
    return {
        "request": {"task": kind.task, "target": kind.target, "trials": 64, "seed": 0, "sampler": "auto"},
        "task": {
            "name": kind.task, "metric": kind.metric,
            "direction": "maximize" if kind.metric == "accuracy" else "minimize",
            "search_examples": 600,
        },
        "target": {
            "name": kind.target, "device": "AMD EPYC (Zen 4)" if cpu else "NVIDIA Jetson Orin Nano 8GB",
            "runtime": "onnxruntime" if cpu else "tensorrt", "format": "onnx-packed" if cpu else "onnx",
            "threads": 1 if cpu else None, "batch": 1, "latency_source": "fitted" if cpu else "datasheet",
            "held_out_error": 0.041 if cpu else 0.35,
            "held_out_note": "25 networks held out of 100" if cpu else "9 published networks, leave-one-out",
            "note": "",
        },
        "versions": {"autocomp": "0.1.0", "torch": "2.13.0"}, "fingerprint": {"cpu": "AMD EPYC", "cores": 2},
        "created": "2026-05-01T12:00:00+00:00",
    }  # fmt: skip
