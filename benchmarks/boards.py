"""What is published of Jetsons under TensorRT → the latency models of the Jetson targets, and how far off they are.

    python benchmarks/boards.py --data ../shared/data/devices

Rebuilds the published networks, lowers them to TensorRT's kernels, and fits to all boards together: how kernels use a GPU
(shared by all), and what each board reaches (its own, held near its datasheet). A board that was measured by two people, at
other clocks and with another TensorRT, has two sets of rates. Left out is one network at a time, on all boards; and, harder,
one family of networks. Writes results/reference/boards_*.csv, and ``measurements.csv``, ``latency_model.json`` and
``README.md`` of every Jetson's profile.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import pandas as pd
from boards_fit import (
    INT8_SPEEDUP,
    Datasheet,
    Fit,
    LeftOut,
    Setting,
    fit,
    held_out_error,
    left_out,
    pair_errors,
    rms_log,
    setting_of,
)
from published import Row, published_rows
from tables import write_table

from autocomp.hardware.profiles import Profile, read_profile
from autocomp.hardware.roofline import Habits, Rates, RooflineModel, split_op

REFERENCE = Path("results/reference")
PROFILES = Path(__file__).parent.parent / "hardware_profiles"

#: Whole networks gain something between nothing and the datasheet's factor; uniform in the logarithm between the two.
INT8_RELATIVE_STD = math.log(INT8_SPEEDUP) / math.sqrt(12)


@dataclass(frozen=True)
class Board:
    """A Jetson: its target, its name in the table of latencies, that in the table of specifications, and its GPU."""

    target: str
    published: str
    specified: str
    gpu: str

    @property
    def profile(self) -> Profile:
        return read_profile(PROFILES / self.target)


BOARDS = (
    Board("jetson-nano", "Jetson Nano", "Jetson Nano 4GB", "Maxwell, 128 cores"),
    Board("jetson-tx2", "Jetson TX2", "Jetson TX2 8GB", "Pascal, 256 cores"),
    Board("jetson-xavier-nx", "Jetson Xavier NX", "Jetson Xavier NX 8GB", "Volta, 384 cores, 48 tensor cores"),
    Board("jetson-agx-xavier", "Jetson AGX Xavier", "Jetson AGX Xavier 32GB", "Volta, 512 cores, 64 tensor cores"),
    Board(
        "jetson-orin-nano", "Jetson Orin Nano", "Jetson Orin Nano 8GB (original)", "Ampere, 1024 cores, 32 tensor cores"
    ),
    Board(
        *("jetson-orin-nano-super", "Jetson Orin Nano Super 8GB", "Jetson Orin Nano Super 8GB"),
        "Ampere, 1024 cores, 32 tensor cores",
    ),
    Board("jetson-orin-nx", "Jetson Orin NX 16GB", "Jetson Orin NX 16GB", "Ampere, 1024 cores, 32 tensor cores"),
    Board("jetson-agx-orin", "Jetson AGX Orin", "Jetson AGX Orin 64GB", "Ampere, 2048 cores, 64 tensor cores"),
)


def datasheets(data: Path) -> dict[str, Datasheet]:
    """The specified board's name → what is printed of it."""
    found = {}
    table = pd.read_csv(data / "device_specs.csv")
    for row in table[table.device.isin([board.specified for board in BOARDS])].to_dict("records"):
        cores, clock = int(float(row["cuda_cores"])), float(row["gpu_max_mhz"])
        volta, tensor_cores = row["gpu_arch"] == "Volta", float(row["tensor_cores"]) > 0
        if volta:  # 64 multiply-accumulates a clock and tensor core
            tensor = float(row["tensor_cores"]) * 64 * clock / 1e3
        elif tensor_cores:  # an operation is half a multiply-accumulate; fp16 half of int8
            tensor = float(row["int8_tops_dense_gpu"]) * 1e3 / 2 / INT8_SPEEDUP
        else:
            tensor = float(row["fp16_tflops_cuda"]) * 1e3 / 2
        found[row["device"]] = Datasheet(
            tensor_gmac_s=tensor,
            plain_gmac_s=cores * clock / 1e3,
            bandwidth_gb_s=float(row["mem_bandwidth_gbs"]),
            multiprocessors=cores // (64 if volta else 128),
            tensor_cores=tensor_cores,
        )
    return found


def shipped_setting(rows: Sequence[Row], board: Board) -> Setting:
    """The one with the latest JetPack among those with ten rows or more, or else the one with the most."""
    counts = {one: sum(setting_of(row) == one for row in rows) for one in {setting_of(row) for row in rows}}
    own = {one: count for one, count in counts.items() if one.board == board.published}
    many = [one for one, count in own.items() if count >= 10] or [max(own, key=lambda one: own[one])]
    return max(many, key=lambda one: re.findall(r"J(?:etPack |P)([\d.]+)", one.source) or [""])


def four_digits(value: float) -> float:
    return float(f"{value:.4g}")


def model_of(rows: Sequence[Row], fitted: Fit, board: Board, found: Sequence[LeftOut]) -> RooflineModel:
    own = [one for one in found if setting_of(one.row).board == board.published]
    rates = fitted.rates(shipped_setting(rows, board))
    return RooflineModel(
        source="fitted",
        rates=replace(
            rates,
            overhead_us=four_digits(rates.overhead_us),
            bandwidth_gb_s=four_digits(rates.bandwidth_gb_s),
            tensor_gmac_s=four_digits(rates.tensor_gmac_s),
            depthwise_gmac_s=four_digits(rates.depthwise_gmac_s),
        ),
        habits=Habits(*map(four_digits, astuple(fitted.habits))),
        # A board with few rows of one family cannot be surer than boards are on the whole.
        relative_std=round(
            max(rms_log([one.ratio for one in own]), 0.0 if len(own) >= 10 else rms_log([one.ratio for one in found])),
            4,
        ),
        int8_relative_std=round(INT8_RELATIVE_STD, 4),
        families=tuple(sorted({split_op(kernel.op)[0] for row in rows for kernel in row.kernels})),
        held_out=held_out_error(
            [one.ratio for one in own],
            "published TensorRT latencies in fp16 at batch 1, each network left out of the fit on all boards; "
            "nothing in int8, and no pruned network, was among them",
        ),
    )


def summary_of(
    board: Board, found: Sequence[LeftOut], pairs: Sequence[tuple[LeftOut, LeftOut, float]]
) -> dict[str, object]:
    own = [one for one in found if setting_of(one.row).board == board.published]
    kin = [error for one, _, error in pairs if setting_of(one.row).board == board.published]
    errors = [abs(one.ratio - 1.0) for one in own]
    return {
        "target": board.target,
        "rows": len(own),
        "median_error": round(statistics.median(errors), 3),
        "mean_error": round(statistics.fmean(errors), 3),
        "median_error_without_family": round(statistics.median(abs(one.without_family - 1.0) for one in own), 3),
        "pairs_of_a_family": len(kin),
        "median_error_of_their_ratio": round(statistics.median(kin), 3),
        "mean_error_of_their_ratio": round(statistics.fmean(kin), 3),
    }


def table(lines: Sequence[Mapping[str, object]]) -> str:
    """Markdown."""
    head = list(lines[0])
    rows = [f"| {' | '.join(str(line[name]) for name in head)} |" for line in lines]
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *rows])


def int8_lines(rows: Sequence[Row], models: Mapping[str, RooflineModel]) -> list[dict[str, object]]:
    """The int8 side, which is the datasheet's, beside what is published of it (the median where one source has several):
    every layer in 8 bits, as a file with its rounding written out has it, against engines that were calibrated or tuned by
    hand."""
    grouped: dict[tuple[Setting, str], list[Row]] = {}
    for row in rows:
        if row.precision == "int8":
            grouped.setdefault((setting_of(row), row.network), []).append(row)
    half = {(setting_of(row), row.network): row.measured_ms for row in rows if row.precision == "fp16"}
    in_half = {row.network: row.kernels for row in rows if row.precision == "fp16"}
    lines = []
    for (setting, network), found in grouped.items():
        model, published_ms = models[setting.board], statistics.median(row.measured_ms for row in found)
        predicted = model.predict(found[0].kernels)
        published_gain = half.get((setting, network))
        lines.append(
            {
                "board": setting.board,
                "source": setting.source,
                "model": found[0].model,
                "published ms": round(published_ms, 2),
                "predicted ms": f"{predicted.latency_ms:.2f} ± {predicted.std_ms:.2f}",
                "published gain over fp16": "" if published_gain is None else f"{published_gain / published_ms:.2f}",
                "predicted gain": f"{model.predict(in_half[network]).latency_ms / predicted.latency_ms:.2f}",
            }
        )
    return lines


def readme(
    board: Board,
    model: RooflineModel,
    setting: Setting,
    sheet: Datasheet,
    found: Sequence[LeftOut],
    summary: Mapping[str, object],
    int8: Sequence[Mapping[str, object]],
) -> str:
    own = [one for one in found if setting_of(one.row).board == board.published]
    rates, error, file = model.rates, model.held_out, board.profile.file
    assert error is not None
    networks = table(
        [
            {
                "network": one.row.model,
                "measured by": one.row.source,
                "published ms": f"{one.row.measured_ms:.2f}",
                "error, network left out": f"{one.ratio - 1:+.0%}",
                "error, family left out": f"{one.without_family - 1:+.0%}",
            }
            for one in own
        ]
    )
    eight, padded, rounded = int8_words(rates, int8)
    unit = "tensor cores" if sheet.tensor_cores else "cores, two products at once"
    in_ratio, in_ratio_mean = (
        float(str(summary[name])) for name in ("median_error_of_their_ratio", "mean_error_of_their_ratio")
    )
    return f"""# {board.target}

NVIDIA {board.specified} ({board.gpu}), with TensorRT in fp16, batch 1. **No board was at hand: nothing here was
measured by autocomp.** `benchmarks/boards.py` fits the latency model to latencies that others published of {len(BOARDS)}
Jetsons, {len(own)} of them of this one, and writes `measurements.csv`, `latency_model.json` and this page. A prediction
has the source `fitted`; with 8 bits in it, `datasheet`.

## How far off it may be
Each network predicted by a model fitted without it, on all boards: median error {error.median:.1%}, mean {error.mean:.1%},
{error.within_10:.0%} within ±10 %, {error.within_20:.0%} within ±20 % ({error.networks} rows). One standard deviation of a
prediction is {model.relative_std:.1%}; for 8 bits comes another {model.int8_relative_std:.1%} of the time spent in them.

What a search needs is less the milliseconds than the ratio of a compressed network to the untouched one. No pruned
network is published; the nearest is the ratio of two networks of one family (ResNet-18 and -34, say), predicted without
that family: median error {in_ratio:.1%}, mean {in_ratio_mean:.1%} (pairs on this board: {summary["pairs_of_a_family"]}).

{networks}

The errors are a little flattered: a rule of lowering was put right after errors had been seen (what a concatenation
cannot have written in its place is copied part by part, as DenseNet's latencies show), and which numbers boards share was
decided with all rows in sight.

## Where the numbers come from
| number | value | source |
|---|---|---|
| overhead per kernel | {rates.overhead_us:.1f} µs | fitted |
| memory | {rates.bandwidth_gb_s:.1f} GB/s reached | fitted; datasheet {sheet.bandwidth_gb_s:.1f} |
| {unit}, fp16 | {rates.tensor_gmac_s / 1e3:.2f} TMAC/s reached | fitted; datasheet {sheet.tensor_gmac_s / 1e3:.2f} |
| depthwise convolutions | {rates.depthwise_gmac_s / 1e3:.3f} TMAC/s reached | fitted |
| how kernels use a GPU | `habits` in `latency_model.json` | fitted to all boards together |
| channels | in multiples of {padded} | TensorRT's documentation; no pruned width was measured |
| what becomes one kernel | | TensorRT's fusion catalogue and published engine logs |

The rates are those of `{setting.source}`; what its rows say of power mode and clocks is in `profile.yaml`. A rate above
the datasheet's is Winograd's: 3×3 convolutions count as they are written.

{eight}

## What TensorRT takes
Files for this target are written for {file.runtime_version}, in opset {file.numerics.opset}, the latest that it reads{rounded}.
`trtexec.sh` beside a file builds its engine and times it.

## What it does not know
* Small networks. Below a millisecond the overhead per kernel is nearly all there is.
* Power mode, clocks, heat, other work on the memory that CPU and GPU share, CUDA graphs: all as in the source.
* Zeros among the weights gain no time and are predicted to gain none; weights of 4 and 2 bits run as int8.
* Kernels of other kinds than {", ".join(model.families)}; they are refused.

Measure a chosen file on the board before relying on its milliseconds: see `docs/boards.md`.
"""


def int8_words(rates: Rates, lines: Sequence[Mapping[str, object]]) -> tuple[str, str, str]:
    """What is known of 8 bits; what channels are padded to; how files are rounded."""
    if rates.int8_speedup is None:
        return (
            "This GPU has no int8 arithmetic: TensorRT builds no int8 engines for it, and 8 bits are not offered. What pays\n"
            "is fewer channels and lower ranks.",
            f"{rates.channels} in fp16",
            "",
        )
    return (
        f"8 bits take half of fp16's bytes, and their products are {rates.int8_speedup:.0f} times as fast: the **datasheet's** "
        "word, never held\nagainst a file of ours. What is published of int8 are engines that were calibrated, or tuned by "
        f"hand, where a file has\nits rounding written out:\n\n{table(lines) if lines else 'nothing of this board.'}",
        f"{rates.channels} in fp16, {4 * rates.channels} in int8",
        ": weights rounded per channel, activations per tensor with\nzero point 0, biases in floats",
    )


def write_profile(board: Board, rows: Sequence[Row], model: RooflineModel, text: str) -> None:
    folder = PROFILES / board.target
    kept = [row for row in rows if setting_of(row).board == board.published]
    write_table(
        folder / "measurements.csv",
        [
            {
                "model": row.model,
                "precision": row.precision,
                "batch": 1,
                "latency_ms": row.measured_ms,
                "runtime": f"TensorRT ({row.source})",
                "source": row.reference,
            }
            for row in kept
        ],
    )
    (folder / "latency_model.json").write_text(model.to_json() + "\n", encoding="utf-8")
    (folder / "README.md").write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of published_latency.csv and device_specs.csv")
    data: Path = parser.parse_args().data
    sheets = {board.published: datasheets(data)[board.specified] for board in BOARDS}
    rows, unknown = published_rows(data)
    print(f"{len(rows)} usable rows; not rebuilt: {', '.join(sorted(set(unknown)))}", flush=True)
    half = [row for row in rows if row.precision == "fp16"]
    fitted = fit(half, sheets)
    found = left_out(half, sheets, fitted)
    pairs = pair_errors(found)
    summaries = [summary_of(board, found, pairs) for board in BOARDS]
    models = {board.published: model_of(half, fitted, board, found) for board in BOARDS}
    int8 = int8_lines(rows, models)
    write_table(REFERENCE / "boards_error.csv", summaries)
    write_table(REFERENCE / "boards_int8.csv", int8)
    write_table(
        REFERENCE / "boards_rows.csv",
        [
            {
                "board": setting_of(one.row).board,
                "source": one.row.source,
                "model": one.row.model,
                "published_ms": one.row.measured_ms,
                "error_left_out": round(one.ratio - 1.0, 3),
                "error_without_family": round(one.without_family - 1.0, 3),
                "error_fitted": round(fitted.latency_ms(one.row) / one.row.measured_ms - 1.0, 3),
            }
            for one in found
        ],
    )
    print("\n\n".join([table(summaries), table(int8), str(fitted.habits)]))
    for board, summary in zip(BOARDS, summaries, strict=True):
        model, setting = models[board.published], shipped_setting(half, board)
        print(f"{board.target}, as of {setting.source}: {model.rates}")
        own = [line for line in int8 if line["board"] == board.published]
        text = readme(board, model, setting, sheets[board.published], found, summary, own)
        write_profile(board, rows, model, text)


if __name__ == "__main__":
    main()
