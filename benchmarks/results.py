"""How fast and how small networks become at a small loss: the points of finished runs, against the uncompressed file.

    autocomp search --task cifar10-resnet20 --target cpu --trials 100 --recover 8 --out results/resnet20-cpu
    python benchmarks/results.py results/resnet20-cpu [MORE RUNS]

Of the fronts of all runs of a task and target that are given, and of what was trained: for every allowed drop the fastest and
the smallest point, and for every number of times faster or smaller the most accurate one; each chosen by the search split and
by what was measured of its file, beside the untouched file of the same run. Beside it stands the exported file's own metric on
the test split, with the paired 95 % interval of the drop. Where uniform 8 bits are on the front, they are there too. The table
is results/reference/results.csv; rows of other tasks and targets in it are kept, and points of earlier sittings, whose runs
are not given, stand beside the new ones: each is so many times faster than the untouched file was on the same machine.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import cast

import pandas as pd
from tables import rows_there, write_table

from autocomp.finished import Run
from autocomp.search import flow

TABLE = Path("results/reference/results.csv")
#: In the metric's own units.
DROPS = (0.0, 0.3, 0.5, 1.0, 2.0, 3.0)
#: Times faster and times smaller that a point is to be at least.
FACTORS = (
    (2.5, 0.0),
    (3.0, 0.0),
    (4.0, 0.0),
    (4.5, 0.0),
    (0.0, 7.0),
    (0.0, 10.0),
    (0.0, 14.0),
    (3.0, 7.0),
    (4.0, 10.0),
)


#: Of a point, what is no column of the table.
UNTOLD = ("worth_a_look", "uniform")


def points_of(run: Run) -> pd.DataFrame:
    """What was verified of a run, the untouched network first: rows of the table but for why they are in it, and
    :data:`UNTOLD`."""
    metric = flow.metric_of(run.folder)
    table = run.trials.dropna(subset=["measured_size_bytes", "measured_latency_ms"])
    base = table[table["trial"] == 0].iloc[0]
    front = {*run.front["trial"]}
    device = cast("dict[str, str]", run.folder.read()["target"])["device"]
    return pd.DataFrame(
        {
            "machine": device,
            "run": run.folder.path.name,
            "recovered": bool(pd.notna(point["parent"])),
            "trial": int(point["trial"]),
            "drop_search": round(metric.drop(base["metric_search"], point["metric_search"]), 3),
            "drop_test": round(metric.drop(base["measured_metric"], point["measured_metric"]), 3),
            "drop_test_low": point["measured_metric_low"],
            "drop_test_high": point["measured_metric_high"],
            "latency_ms": point["measured_latency_ms"],
            "times_faster": round(base["measured_latency_ms"] / point["measured_latency_ms"], 2),
            "size_bytes": int(point["measured_size_bytes"]),
            "times_smaller": round(base["measured_size_bytes"] / point["measured_size_bytes"], 2),
            "worth_a_look": point["trial"] in front or bool(pd.notna(point["parent"])),
            "uniform": point["uniform"],
        }
        for _, point in table.sort_values("trial").iterrows()
    )


def points_kept(task: str, target: str, runs: Collection[str]) -> pd.DataFrame:
    """The same of the table's rows of a task and target, but for those of ``runs`` and the untouched networks."""
    if not TABLE.is_file():
        return pd.DataFrame()
    there = pd.read_csv(TABLE)
    there = there[(there["task"] == task) & (there["target"] == target) & ~there["run"].isin({*runs})]
    uniform = there["point"].where(there["point"].str.startswith("uniform ")).str.removeprefix("uniform ")
    there = there.assign(uniform=uniform, worth_a_look=True)[there["point"] != "uncompressed"]
    return there.sort_values("uniform").drop_duplicates(["run", "trial"]).drop(columns=["task", "target", "point"])


def chosen(points: pd.DataFrame) -> list[tuple[str, pd.Series]]:
    """Why a point is in the table, and the point."""
    found = [("uncompressed", points.iloc[0])]
    found += [
        (f"uniform {point['uniform']}", point) for _, point in points[points["uniform"].isin(["w8a8", "w8"])].iterrows()
    ]
    looked_at = points[points["worth_a_look"]]
    for allowed in DROPS:
        within = looked_at[looked_at["drop_search"] <= allowed + 1e-9]
        for end, by in (("fastest", "times_faster"), ("smallest", "times_smaller")):
            best = within.sort_values(by, ascending=False, kind="stable").iloc[0]
            found.append((f"{end} within {allowed:g}", best))
    for faster, smaller in FACTORS:
        within = looked_at[(looked_at["times_faster"] >= faster) & (looked_at["times_smaller"] >= smaller)]
        asked = [f"{faster:g} times faster"] * (faster > 0) + [f"{smaller:g} times smaller"] * (smaller > 0)
        if len(within):
            best = within.sort_values("drop_search", kind="stable").iloc[0]
            found.append((f"most accurate {' and '.join(asked)}", best))
    return found


def rows_of(runs: Sequence[Run]) -> list[dict[str, object]]:
    """Of runs of one task and target."""
    request = runs[0].folder.request()
    earlier = points_kept(request.task, request.target, [run.folder.path.name for run in runs])
    points = pd.concat([*(points_of(run) for run in runs), earlier], ignore_index=True)
    where = {"task": request.task, "target": request.target}
    return [
        {**where, "point": why, **{str(name): value for name, value in point.items() if name not in UNTOLD}}
        for why, point in chosen(points)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    together: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in map(Run.open, parser.parse_args().runs):
        together[run.folder.request().task, run.folder.request().target].append(run)
    found = [row for runs in together.values() for row in rows_of(runs)]
    others = [row for row in rows_there(TABLE) if (row["task"], row["target"]) not in together]
    write_table(TABLE, [*others, *found])


if __name__ == "__main__":
    main()
