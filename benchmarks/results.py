"""How fast and how small networks become at a small loss: the points of finished runs, against the uncompressed file.

    autocomp search --task cifar10-resnet20 --target cpu --trials 100 --recover 8 --out results/resnet20-cpu
    python benchmarks/results.py results/resnet20-cpu [MORE RUNS]

For every run and every allowed drop, the fastest and the smallest point of its front, chosen by the search split and by what
was measured of its file; beside it the exported file's own metric on the test split, with the paired 95 % interval of the drop.
Where uniform 8 bits are on the front, they stand beside them. The table is results/reference/results.csv; rows of other runs in
it are kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import cast

import pandas as pd
from tables import rows_there, write_table

from autocomp.finished import Run
from autocomp.search import flow
from autocomp.task import Metric

TABLE = Path("results/reference/results.csv")
#: In the metric's own units.
DROPS = (0.0, 0.3, 0.5, 1.0)


def row_of(point: pd.Series, base: pd.Series, metric: Metric, what: str, allowed: float | None) -> dict[str, object]:
    return {
        "recovered": bool(pd.notna(point["parent"])),
        "point": what,
        "drop_allowed": "" if allowed is None else allowed,
        "trial": int(point["trial"]),
        "drop_search": round(metric.drop(base["metric_search"], point["metric_search"]), 3),
        "drop_test": round(metric.drop(base["measured_metric"], point["measured_metric"]), 3),
        "drop_test_low": point["measured_metric_low"],
        "drop_test_high": point["measured_metric_high"],
        "latency_ms": point["measured_latency_ms"],
        "times_faster": round(base["measured_latency_ms"] / point["measured_latency_ms"], 2),
        "size_bytes": point["measured_size_bytes"],
        "times_smaller": round(base["measured_size_bytes"] / point["measured_size_bytes"], 2),
    }


def rows_of(run: Run) -> list[dict[str, object]]:
    metric, front = flow.metric_of(run.folder), run.front
    base = front.iloc[0]
    front = front.assign(drop=[metric.drop(base["metric_search"], value) for value in front["metric_search"]])
    rows = [row_of(base, base, metric, "uncompressed", None)]
    verified = run.trials.dropna(subset=["measured_size_bytes"])
    for _, point in verified[verified["uniform"].isin(["w8a8", "w8"])].iterrows():
        rows.append(row_of(point, base, metric, f"uniform {point['uniform']}", None))
    for allowed in DROPS:
        within = front[front["drop"] <= allowed + 1e-9]
        for what, column in (("fastest", "measured_latency_ms"), ("smallest", "measured_size_bytes")):
            if within[column].notna().any():
                rows.append(row_of(within.sort_values(column).iloc[0], base, metric, what, allowed))
    request, device = run.folder.request(), cast("dict[str, str]", run.folder.read()["target"])["device"]
    return [{"task": request.task, "target": request.target, "machine": device, **row} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    found = [row for path in parser.parse_args().runs for row in rows_of(Run.open(path))]
    renewed = {(row["task"], row["target"]) for row in found}
    others = [row for row in rows_there(TABLE) if (row["task"], row["target"]) not in renewed]
    write_table(TABLE, [*others, *found])


if __name__ == "__main__":
    main()
