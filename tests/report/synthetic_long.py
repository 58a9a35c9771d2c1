"""A made-up run of many trials on a network of many layers, as a long search leaves it."""

from __future__ import annotations

import json
import random
from pathlib import Path

from autocomp.plan import Format, LayerPlan, Plan, Sparsity
from autocomp.report.load import POINT_COLUMNS, TRIAL_COLUMNS
from tests.report.synthetic import Kind, run_document, write_csv

WHY = "adds 0.0012 of hypervolume, it is expected: a metric worse by 2.39% (2.06% to 2.72%) at 0.2782 ms and 458,600 bytes"


def write_long_run(run: Path, trials: int = 5000, front: int = 200, layers: int = 60) -> Path:
    """Make up a run, all of whose front was verified."""
    run.mkdir(parents=True)
    chance = random.Random(7)
    names = [f"stages.{index // 20}.{index // 2 % 10}.conv{index % 2 + 1}" for index in range(layers)]
    entries = [
        {"name": name, "kind": "conv2d", "weight_shape": [64, 64, 3, 3], "out_shape": [64, 8, 8], "macs": 2_359_296,
         "params": 36_864, "group": name, "block": "", "channel_units": 64}
        for name in names
    ]  # fmt: skip
    (run / "layers.json").write_text(json.dumps(entries))
    rows = [_row(number, number / trials, chance) for number in range(trials)]
    # A front in three objectives has about so many of its points anywhere along the way.
    chosen = [rows[0], *sorted(chance.sample(rows[1:], front), key=lambda row: int(str(row["trial"])))]
    spent = {}
    for row in chosen:
        plan = _plan(names, chance) if row["trial"] else Plan()
        row["plan_hash"] = plan.hash
        folder = run / "exports" / str(row["trial"])
        folder.mkdir(parents=True)
        (folder / "plan.json").write_text(plan.to_json())
        spent[plan.hash] = {
            "latency_ms": {name: chance.uniform(0.01, 0.05) for name in names},
            "other_latency_ms": {"reformat": 0.04},
            "size_bytes": {name: chance.randrange(9000, 36_864) for name in names},
            "other_size_bytes": 4000,
        }
    write_csv(run / "front.csv", POINT_COLUMNS, chosen)
    write_csv(run / "trials.csv", (*TRIAL_COLUMNS, "plan", "why", "rungs"), rows)
    (run / "explanation.json").write_text(json.dumps({"spent": spent, "decisions": [], "held_out": None}))
    (run / "run.json").write_text(json.dumps(run_document(Kind())))
    return run


def _plan(names: list[str], chance: random.Random) -> Plan:
    def one() -> LayerPlan:
        sparsity = Sparsity("channel", chance.choice((0.25, 0.5, 0.75))) if chance.random() < 0.4 else None
        return LayerPlan(sparsity, None, Format(chance.choice((8, 4, 2))))

    return Plan({name: one() for name in names if chance.random() < 0.9})


def _row(number: int, progress: float, chance: random.Random) -> dict[str, object]:
    smaller, faster = chance.uniform(1, 9), chance.uniform(1, 4)
    if number == 0:
        smaller, faster = 1.0, 1.0
    metric = 0.95 - (0.004 * (smaller - 1) + 0.01 * (faster - 1)) * (1.5 - progress)
    size, ms = round(8e6 / smaller), 2.4 / faster
    return {
        "trial": number, "is_baseline": number == 0, "metric_search": round(metric, 6), "metric_test": round(metric - 0.002, 6),
        "size_bytes": size, "latency_ms": round(ms, 5), "latency_std_ms": round(0.03 * ms, 5), "latency_source": "fitted",
        "measured_metric": round(metric - 0.002, 6), "measured_metric_low": round(0.944 - metric, 6),
        "measured_metric_high": round(0.956 - metric, 6), "measured_size_bytes": size,
        "measured_latency_ms": round(1.02 * ms, 5),
        "measured_latency_spread": 0.01, "plan_hash": f"{number:016x}", "state": "complete", "seconds": 4.2,
        "plan": "w8a8 ×31, channel ×22, w4a8 ×14, low rank ×3", "why": WHY,
        "rungs": f"0.1111:{metric - 0.01:.6g} 0.3333:{metric + 0.004:.6g}",
    }  # fmt: skip
