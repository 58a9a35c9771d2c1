"""What is published of Raspberry Pis under ncnn → the datasheet models of the targets ``raspberry-pi-4`` and ``-5``.

    python benchmarks/raspberry.py --data ../shared/data/devices

Nothing is published of the runtime that these targets have, onnxruntime. ncnn's benchmark tells what such a CPU reaches; its
rows in fp16 storage are fitted with a few rates, held near the datasheet's, and what onnxruntime computes in fp32 is taken to
reach the same share of its own peak. So all of it is called ``datasheet``. Writes results/reference/boards_raspberry.csv, and
``measurements.csv``, ``latency_model.json`` and ``README.md`` of both profiles.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from boards import four_digits
from boards_fit import held_out_error, rms_log
from published import float_structure
from scipy.optimize import least_squares
from tables import write_table

from autocomp.hardware.datasheet_cpu import CpuRates, DatasheetCpu, time_us
from autocomp.hardware.kernels import Kernel
from autocomp.hardware.lowering import lower

REFERENCE = Path("results/reference")
PROFILES = Path(__file__).parent.parent / "hardware_profiles"

#: ncnn's name of a network → ours and its input; those of which it is known which one they are. VGG-16 is not among them:
#: ncnn computes its large maps with Winograd's products, half as many or less, and onnxruntime has none.
NETWORKS = {
    "squeezenet": ("squeezenet1_1", "3x227x227"),
    "mobilenet_v2": ("mobilenet_v2", "3x224x224"),
    "mobilenet_v3": ("mobilenetv3_large", "3x224x224"),
    "mnasnet": ("mnasnet1_0", "3x224x224"),
    "efficientnet_b0": ("efficientnet_b0", "3x224x224"),
    "googlenet": ("googlenet", "3x224x224"),
    "resnet18": ("resnet18", "3x224x224"),
    "alexnet": ("alexnet", "3x227x227"),
    "resnet50": ("resnet50", "3x224x224"),
}
THREADS = 4
#: How much slower or faster another runtime may be on the same CPU (one standard deviation of the logarithm); a guess.
RUNTIME_STD = 0.3


@dataclass(frozen=True)
class Pi:
    """A Raspberry Pi: its target, its name in both tables, and how much faster ncnn computes in it than in fp32."""

    target: str
    board: str
    half_speedup: float


#: The Cortex-A76 has arithmetic in fp16, and ncnn uses it; the A72 has none.
PIS = (Pi("raspberry-pi-4", "Raspberry Pi 4B", 1.0), Pi("raspberry-pi-5", "Raspberry Pi 5", 2.0))


@dataclass(frozen=True)
class Row:
    """A published latency: the fastest run of the benchmark, as its averages are disturbed at times."""

    model: str
    measured_ms: float
    int8: bool
    kernels: tuple[Kernel, ...]


#: Share of the datasheet's bandwidth and of its fp32 products, of these in depthwise convolutions, int8 over fp32, and
#: microseconds a kernel; and one standard deviation of the logarithm of each.
START = {"bandwidth": 0.5, "products": 0.5, "depthwise": 0.3, "int8": 2.0, "overhead_us": 10.0}
SPREAD = (0.5, 0.5, 0.7, 0.4, 1.0)


@dataclass(frozen=True)
class Fit:
    """What onnxruntime is taken to reach, in fp32; and what ncnn has besides."""

    rates: CpuRates
    half_speedup: float

    def latency_ms(self, row: Row) -> float:
        """Of ncnn: floats are stored in 16 bits, and computed in as many where the CPU can. Its int8 networks are in int8
        but for what has no weights."""
        half = self.half_speedup
        floats = replace(
            self.rates,
            float_gmac_s=self.rates.int8_gmac_s if row.int8 else self.rates.float_gmac_s * half,
            depthwise_gmac_s=self.rates.depthwise_gmac_s * half,
        )
        return math.fsum(time_us(kernel, floats, 2) for kernel in row.kernels) / 1e3


def fit(rows: Sequence[Row], pi: Pi, peak_gmac_s: float, bandwidth_gb_s: float) -> Fit:
    before = np.log([*START.values()])

    def told(logs: npt.NDArray[np.float64]) -> Fit:
        bandwidth, products, depthwise, int8, overhead = (float(value) for value in np.exp(logs))
        rates = CpuRates(
            overhead_us=four_digits(overhead),
            bandwidth_gb_s=four_digits(bandwidth * bandwidth_gb_s),
            float_gmac_s=four_digits(products * peak_gmac_s),
            int8_gmac_s=four_digits(products * int8 * peak_gmac_s),
            depthwise_gmac_s=four_digits(products * depthwise * peak_gmac_s),
        )
        return Fit(rates, pi.half_speedup)

    def residuals(logs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        now = told(logs)
        off = [math.log(now.latency_ms(row) / row.measured_ms) / 0.15 for row in rows]
        return np.concatenate([off, (logs - before) / np.array(SPREAD)])

    return told(least_squares(residuals, before, loss="soft_l1", diff_step=1e-3).x)


def rows_of(data: Path, pi: Pi) -> list[Row]:
    table = pd.read_csv(data / "published_latency.csv")
    table = table[(table.device == pi.board) & (table.runtime == f"ncnn CPU {THREADS} thread")]
    rows = []
    for row in table.to_dict("records"):
        name = row["model"].removesuffix("_int8")
        if name in NETWORKS:
            least = re.findall(r"min ([\d.]+)", row["statistic"])
            rows.append(
                Row(row["model"], float(least[0]), row["model"] != name, lower(float_structure(*NETWORKS[name]), 1, 1))
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of published_latency.csv and device_specs.csv")
    data: Path = parser.parse_args().data
    specified = pd.read_csv(data / "device_specs.csv").set_index("device")
    known = json.loads((PROFILES / "cpu" / "latency_model.json").read_text(encoding="utf-8"))
    kinds = tuple(sorted({kind.partition("/")[0] for kind in known["samples"]}))
    lines = []
    for pi in PIS:
        peak_gmac_s = float(specified["fp32_tflops"][pi.board]) * 1e3 / 2
        bandwidth_gb_s = float(specified["mem_bandwidth_gbs"][pi.board])
        rows = rows_of(data, pi)
        fitted = fit(rows, pi, peak_gmac_s, bandwidth_gb_s)
        ratios = []
        for row in rows:
            name = row.model.removesuffix("_int8")
            others = [other for other in rows if other.model.removesuffix("_int8") != name]
            without = fit(others, pi, peak_gmac_s, bandwidth_gb_s)
            ratios.append(without.latency_ms(row) / row.measured_ms)
            lines.append(
                {
                    "target": pi.target,
                    "model": row.model,
                    "published_ms": row.measured_ms,
                    "error_left_out": round(ratios[-1] - 1.0, 3),
                }
            )
        held_out = held_out_error(
            ratios, "published latencies of another runtime, ncnn, each network left out; nothing of onnxruntime"
        )
        model = DatasheetCpu(fitted.rates, kinds, round(math.hypot(rms_log(ratios), RUNTIME_STD), 4), held_out)
        print(pi.target, fitted, held_out)
        folder = PROFILES / pi.target
        (folder / "latency_model.json").write_text(model.to_json() + "\n", encoding="utf-8")
        (folder / "README.md").write_text(readme(pi, model, peak_gmac_s, bandwidth_gb_s, lines), encoding="utf-8")
        write_table(
            folder / "measurements.csv",
            [
                {"model": row.model, "threads": THREADS, "latency_ms": row.measured_ms, "runtime": "ncnn"}
                for row in rows
            ],
        )
    write_table(REFERENCE / "boards_raspberry.csv", lines)


def readme(
    pi: Pi, model: DatasheetCpu, peak_gmac_s: float, bandwidth_gb_s: float, lines: Sequence[dict[str, object]]
) -> str:
    rates, error = model.rates, model.held_out
    assert error is not None
    own = "\n".join(
        f"| {line['model']} | {line['published_ms']} | {float(str(line['error_left_out'])):+.0%} |"
        for line in lines
        if line["target"] == pi.target
    )
    half = "computes in fp16 there, which onnxruntime does not" if pi.half_speedup > 1 else "stores floats in 16 bits"
    return f"""# {pi.target}

{pi.board} with onnxruntime on {THREADS} threads, batch 1. **No board was at hand, and nothing is published of onnxruntime on
it: every prediction has the source `datasheet`.** `benchmarks/raspberry.py` fits a few rates to what ncnn reaches on the
board (`measurements.csv`: the fastest run of its benchmark; ncnn {half}) and takes onnxruntime to reach the same
share of the CPU's fp32 peak; it writes this page.

| number | value | datasheet |
|---|---|---|
| overhead per kernel | {rates.overhead_us:.0f} µs | |
| memory | {rates.bandwidth_gb_s:.1f} GB/s | {bandwidth_gb_s:.1f} |
| products in fp32 | {rates.float_gmac_s:.1f} GMAC/s | {peak_gmac_s:.1f} |
| products in 8 bits | {rates.int8_gmac_s:.1f} GMAC/s | |
| depthwise convolutions | {rates.depthwise_gmac_s:.1f} GMAC/s | |

## How far off it may be
Of ncnn's own rows, each network left out: median error {error.median:.0%}, mean {error.mean:.0%} ({error.networks} rows). How
far onnxruntime is from ncnn is not known and taken to be {RUNTIME_STD:.0%}: one standard deviation of a prediction is
{model.relative_std:.0%}.

| network | ncnn ms | error, left out |
|---|---|---|
{own}

If you have the board, measure it instead, which takes ten minutes: `docs/boards.md`.
"""


if __name__ == "__main__":
    main()
