"""Fits the latency model of the target ``jetson-orin-nano`` to published TensorRT latencies.

Builds the published networks, lowers them to TensorRT's kernels, fits a few forms of the roofline model by least
squares on the logarithm of the latency, and keeps the form that predicts best the networks left out. Writes
``measurements.csv``, ``latency_model.json`` and ``README.md`` of the profile, and prints what it found.

    python benchmarks/fit_jetson.py --data ../shared/data/devices

Needs torchvision and timm, which the project itself does not; a CPU build of torch will do.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import math
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import get_args

import numpy as np
import pandas as pd
import torch
from scipy.optimize import least_squares
from torch import nn

from autocomp.compress.fold import fold_batch_norm
from autocomp.compress.structure import LayerShape, Structure
from autocomp.graph import Example, Graph, export_program, read_graph
from autocomp.hardware.kernels import Kernel
from autocomp.hardware.latency import HeldOutError
from autocomp.hardware.roofline import Join, RooflineModel, Vector, join_times, split_op, work
from autocomp.hardware.tensorrt import lower
from autocomp.plan import Format

sys.path.insert(0, str(Path(__file__).parent))
from yolox import YoloX

DEVICE, SPECIFICATION = "Jetson Orin Nano", "Jetson Orin Nano 8GB (original)"
RUNTIME = "TensorRT (NetsPresso"
#: Ampere's tensor cores do twice as many int8 as fp16 operations.
INT8_SPEEDUP = 2.0
#: Whole networks gain something between nothing and the datasheet's factor; uniform in the logarithm between the two.
INT8_RELATIVE_STD = math.log(INT8_SPEEDUP) / math.sqrt(12)
PROFILE = Path(__file__).parent.parent / "hardware_profiles" / "jetson-orin-nano"
FAMILIES = {"ResNet", "MobileNetV3", "MixNet", "YOLOX"}


def torchvision_models() -> ModuleType:
    """torchvision's models. Beside a CPU build of torch its own operators are missing, and it refuses to be imported
    unless they are at least declared."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        for operator in ("nms", "qnms"):
            torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou) -> Tensor")
    return importlib.import_module("torchvision.models")


def builders() -> dict[str, Callable[[int], nn.Module]]:
    """The published model's name → the network, given the number of classes."""
    vision, timm = torchvision_models(), importlib.import_module("timm")
    return {
        "ResNet18": lambda classes: vision.resnet18(num_classes=classes),
        "ResNet34": lambda classes: vision.resnet34(num_classes=classes),
        "ResNet50": lambda classes: vision.resnet50(num_classes=classes),
        "MobileNetV3-small": lambda classes: vision.mobilenet_v3_small(num_classes=classes),
        "MobileNetV3-large": lambda classes: vision.mobilenet_v3_large(num_classes=classes),
        "MixNet-m": lambda classes: timm.create_model("mixnet_m", num_classes=classes),
        "MixNet-l": lambda classes: timm.create_model("mixnet_l", num_classes=classes),
        "EfficientFormer-l1": lambda classes: timm.create_model("efficientformer_l1", num_classes=classes),
        "YOLOX-s": lambda classes: YoloX(width=0.50, depth=1, classes=classes),
        "YOLOX-m": lambda classes: YoloX(width=0.75, depth=2, classes=classes),
    }


def trace(model: nn.Module, shape: tuple[int, ...]) -> Graph:
    example = Example((torch.zeros(1, *shape),))
    return read_graph(export_program(fold_batch_norm(model, example), example))


def structure(graph: Graph, chosen: Format | None = None) -> Structure:
    """The untouched network, or one with every layer quantized."""
    layers = {
        node.layer: LayerShape(node.weight_shape, node.has_bias, chosen, None)
        for node in graph.layers
        if node.layer is not None
    }
    return Structure(graph, layers)


@dataclass(frozen=True)
class Network:
    """A published latency and the network's kernels, as columns: tensor MACs, depthwise MACs, bytes."""

    name: str
    measured_ms: float
    kernels: tuple[Kernel, ...]
    columns: Vector


@dataclass(frozen=True)
class Limits:
    """What the rates cannot exceed: GMAC/s and GB/s of the datasheet."""

    tensor_gmac_s: float
    bandwidth_gb_s: float


def columns_of(kernels: Sequence[Kernel]) -> Vector:
    done = [work(kernel) for kernel in kernels]
    return np.array([(one.tensor_macs, one.depthwise_macs, one.moved_bytes) for one in done])


#: The fitted numbers, in this order, as logarithms: overhead (µs), tensor GMAC/s, depthwise GMAC/s, GB/s.
def latency_ms(logs: Vector, join: Join, columns: Vector) -> float:
    overhead_us, tensor, depthwise, bandwidth = np.exp(logs)
    compute_us = columns[:, 0] / (tensor * 1e3) + columns[:, 1] / (depthwise * 1e3)
    memory_us = columns[:, 2] / (bandwidth * 1e3)
    return float((overhead_us + join_times(join, compute_us, memory_us)).sum() / 1e3)


def fit(networks: Sequence[Network], join: Join, limits: Limits) -> Vector:
    """Least squares on the logarithm of the latency, from a few starts, within what the datasheet allows."""
    low = np.log([1.0, limits.tensor_gmac_s / 50, limits.tensor_gmac_s / 2000, limits.bandwidth_gb_s / 20])
    high = np.log([100.0, limits.tensor_gmac_s, limits.tensor_gmac_s, limits.bandwidth_gb_s])

    def residuals(logs: Vector) -> list[float]:
        return [math.log(latency_ms(logs, join, one.columns) / one.measured_ms) for one in networks]

    starts = (low + share * (high - low) for share in (0.3, 0.5, 0.7))
    fits = [least_squares(residuals, start, bounds=(low, high)) for start in starts]
    best: Vector = min(fits, key=lambda found: float(found.cost)).x
    return best


def left_out(networks: Sequence[Network], join: Join, limits: Limits) -> list[float]:
    """For every network, predicted over published latency, by a fit to the others."""
    ratios = []
    for one in networks:
        logs = fit([other for other in networks if other is not one], join, limits)
        ratios.append(latency_ms(logs, join, one.columns) / one.measured_ms)
    return ratios


def best_form(networks: Sequence[Network], limits: Limits) -> Join:
    """The form with the least squared error of the logarithm on networks left out."""
    return min(get_args(Join), key=lambda join: rms_log(left_out(networks, join, limits)))


def rms_log(ratios: Sequence[float]) -> float:
    return math.sqrt(statistics.fmean(math.log(ratio) ** 2 for ratio in ratios))


def nested(networks: Sequence[Network], limits: Limits) -> list[float]:
    """As :func:`left_out`, with the form, too, chosen without the network that is left out."""
    ratios = []
    for one in networks:
        others = [other for other in networks if other is not one]
        join = best_form(others, limits)
        ratios.append(latency_ms(fit(others, join, limits), join, one.columns) / one.measured_ms)
    return ratios


def pair_errors(networks: Sequence[Network], join: Join, limits: Limits) -> dict[tuple[str, str], float]:
    """For every two networks, the relative error of the ratio of their latencies, by a fit to the others."""
    errors = {}
    for one, two in itertools.combinations(networks, 2):
        logs = fit([other for other in networks if other is not one and other is not two], join, limits)
        predicted = latency_ms(logs, join, one.columns) / latency_ms(logs, join, two.columns)
        errors[one.name, two.name] = abs(predicted * two.measured_ms / one.measured_ms - 1.0)
    return errors


def same_family(pair: tuple[str, str]) -> bool:
    return any(all(name.startswith(family) for name in pair) for family in FAMILIES)


def held_out_error(ratios: Sequence[float]) -> HeldOutError:
    errors = [abs(ratio - 1.0) for ratio in ratios]
    return HeldOutError(
        mean=round(statistics.fmean(errors), 4),
        median=round(statistics.median(errors), 4),
        within_10=sum(error <= 0.1 for error in errors) / len(errors),
        within_20=sum(error <= 0.2 for error in errors) / len(errors),
        networks=len(errors),
        note="leave one model out, fp16 at batch 1; the form is chosen without it as well; no int8 latency of this "
        "board was at hand",
    )


def model_of(networks: Sequence[Network], limits: Limits) -> tuple[RooflineModel, list[float]]:
    join = best_form(networks, limits)
    overhead_us, tensor, depthwise, bandwidth = (float(f"{value:.4g}") for value in np.exp(fit(networks, join, limits)))
    ratios = nested(networks, limits)
    families = tuple(sorted({split_op(kernel.op)[0] for one in networks for kernel in one.kernels}))
    model = RooflineModel(
        join=join,
        overhead_us=overhead_us,
        bandwidth_gb_s=bandwidth,
        tensor_gmac_s=tensor,
        depthwise_gmac_s=depthwise,
        int8_speedup=INT8_SPEEDUP,
        relative_std=round(rms_log(ratios), 4),
        int8_relative_std=round(INT8_RELATIVE_STD, 4),
        families=families,
        held_out=held_out_error(ratios),
    )
    return model, ratios


def rows_of(data: Path) -> pd.DataFrame:
    """The published rows of the board under TensorRT."""
    table = pd.read_csv(data / "published_latency.csv")
    return table[(table.device == DEVICE) & table.runtime.str.startswith(RUNTIME)].reset_index(drop=True)


def limits_of(data: Path) -> Limits:
    table = (
        pd.read_csv(data / "device_specs.csv")
        .set_index("device")
        .astype({"int8_tops_dense_gpu": float, "mem_bandwidth_gbs": float})
    )
    int8_gmac_s = table["int8_tops_dense_gpu"][SPECIFICATION] * 1e3 / 2  # two operations a multiply-accumulate
    return Limits(float(int8_gmac_s / INT8_SPEEDUP), float(table["mem_bandwidth_gbs"][SPECIFICATION]))


def published_networks(rows: pd.DataFrame) -> tuple[list[Network], dict[str, Graph]]:
    """The networks of the published rows; the notes say how many classes their heads have."""
    built, networks, graphs = builders(), [], {}
    for row in rows.to_dict("records"):
        classes = int(re.findall(r"(\d+) classes head", row["note"])[0])
        graph = trace(built[row["model"]](classes), tuple(int(size) for size in row["input"].split("x")))
        kernels = lower(structure(graph), int(row["batch"]))
        networks.append(Network(row["model"], float(row["latency_ms"]), kernels, columns_of(kernels)))
        graphs[row["model"]] = graph
    return networks, graphs


def int8_check(data: Path, model: RooflineModel, graphs: dict[str, Graph]) -> str:
    """The int8 side beside what is published of the same chip at other clocks."""
    table = pd.read_csv(data / "published_latency.csv")
    orin = table[table.device.str.contains("Orin N") & table.runtime.str.startswith("TensorRT")]
    yolo = (
        orin[orin.model.str.startswith("YOLO11")].pivot_table("latency_ms", ["device", "model"], "precision").dropna()
    )
    published = sorted(yolo.fp16 / yolo.int8)
    tuned_ms = orin[(orin.model.str.startswith("ResNet-50")) & (orin.precision == "int8")].latency_ms.median()
    clocks = pd.read_csv(data / "device_specs.csv").set_index("device").gpu_max_mhz.astype(float)
    slower = clocks["Jetson Orin NX 16GB"] / clocks[SPECIFICATION]
    speedup = {}
    for name in ("ResNet50", "YOLOX-s", "YOLOX-m"):
        full = model.predict(lower(structure(graphs[name]), 1))
        speedup[name] = full.latency_ms / model.predict(lower(structure(graphs[name], Format(8)), 1)).latency_ms
    resnet = model.predict(lower(structure(graphs["ResNet50"], Format(8)), 1))
    return (
        f"Every layer in int8 instead of fp16: the model says {speedup['YOLOX-s']:.2f} times faster for YOLOX-s, "
        f"{speedup['YOLOX-m']:.2f} for YOLOX-m, {speedup['ResNet50']:.2f} for ResNet-50. Published for YOLO11 l and x "
        f"on the Orin Nano Super and Orin NX 16GB (same chip, other clocks, ultralytics): {published[0]:.2f} to "
        f"{published[-1]:.2f}. YOLOX gains little because a file rounds behind every int8 "
        "convolution, and a SiLU behind the rounding is a kernel of its own; engines that were calibrated instead keep "
        f"it inside.\n\nResNet-50 in int8: the model says {resnet.latency_ms:.2f} ± {resnet.std_ms:.2f} ms; "
        f"MLPerf v3.1 measured {tuned_ms:.2f} ms with a hand-tuned engine (int8 by convention, not stated) on the "
        f"Orin NX, whose GPU clock is {slower:.2f} times as high: about {tuned_ms * slower:.1f} ms here. "
        "Either such an engine is far better than the ones fitted to, or those ran in a slow power mode: take the "
        "prediction for an upper bound of what a tuned int8 engine needs."
    )


def report(
    networks: Sequence[Network], forms: dict[Join, float], pairs: dict[tuple[str, str], float], ratios: Sequence[float]
) -> tuple[str, str, str]:
    """Three tables in Markdown: networks left out, forms, ratios of pairs."""
    lines = ["| network | published ms | predicted ms, left out | error | kernels |", "|---|---|---|---|---|"]
    for one, ratio in zip(networks, ratios, strict=True):
        predicted_ms = one.measured_ms * ratio
        lines.append(
            f"| {one.name} | {one.measured_ms:.2f} | {predicted_ms:.2f} | {ratio - 1:+.0%} | {len(one.kernels)} |"
        )
    shapes = ["| how compute and memory join | left-out error (root mean square of the logarithm) |", "|---|---|"]
    shapes += [f"| {join} | {error:.1%} |" for join, error in forms.items()]
    kin = [error for pair, error in pairs.items() if same_family(pair)]
    strange = [error for pair, error in pairs.items() if not same_family(pair)]
    rows = ["| the ratio of two networks | pairs | mean error | median | worst |", "|---|---|---|---|---|"]
    for words, errors in (("of one family", kin), ("of different families", strange)):
        rows.append(
            f"| {words} | {len(errors)} | {statistics.fmean(errors):.0%} | {statistics.median(errors):.0%} "
            f"| {max(errors):.0%} |"
        )
    return "\n".join(lines), "\n".join(shapes), "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of published_latency.csv and device_specs.csv")
    data: Path = parser.parse_args().data
    torch.set_num_threads(1)
    rows, limits = rows_of(data), limits_of(data)
    networks, graphs = published_networks(rows)
    model, ratios = model_of(networks, limits)
    forms = {join: rms_log(left_out(networks, join, limits)) for join in get_args(Join)}
    tables = report(networks, forms, pair_errors(networks, model.join, limits), ratios)
    check = int8_check(data, model, graphs)
    print("\n\n".join([*tables, model.to_json(), check]))
    PROFILE.mkdir(parents=True, exist_ok=True)
    kept = ["model", "input", "precision", "batch", "latency_ms", "source", "note"]
    rows[kept].to_csv(PROFILE / "measurements.csv", index=False)
    (PROFILE / "latency_model.json").write_text(model.to_json() + "\n", encoding="utf-8")
    (PROFILE / "README.md").write_text(readme(model, limits, tables, check, str(rows.source[0])), encoding="utf-8")


def readme(model: RooflineModel, limits: Limits, tables: tuple[str, str, str], check: str, source: str) -> str:
    by_network, forms, ratios = tables
    error = model.held_out
    tensor = limits.tensor_gmac_s / 1e3
    assert error is not None
    return f"""# jetson-orin-nano

NVIDIA Jetson Orin Nano, the original one (Ampere GPU, 1024 cores, 32 tensor cores; not the Super), with TensorRT in
fp16, batch 1. **No board was at hand: nothing here was measured by autocomp.** The latency model was fitted to
{error.networks} latencies that others published. `benchmarks/fit_jetson.py` writes `measurements.csv`,
`latency_model.json` and this page.

## Where the numbers come from
| number | value | source |
|---|---|---|
| overhead per kernel | {model.overhead_us:.1f} µs | fitted |
| memory | {model.bandwidth_gb_s:.1f} GB/s reached | fitted; datasheet {limits.bandwidth_gb_s:.0f} |
| tensor cores, fp16 | {model.tensor_gmac_s / 1e3:.2f} TMAC/s reached | fitted; datasheet {tensor:.1f} (half of int8) |
| depthwise convolutions | {model.depthwise_gmac_s / 1e3:.3f} TMAC/s reached | fitted |
| int8 over fp16 on the tensor cores | {model.int8_speedup:.0f}× | **datasheet**: no int8 latency of this board found |
| bytes in int8 | half of fp16 | arithmetic, never held against a measurement |
| which operations become one kernel | | TensorRT's fusion catalogue and published engine logs |

`measurements.csv` holds the published rows: `{source}`, JetPack 6.0, fp16.
The source states neither the power mode (7 or 15 W) nor whether clocks were locked, nor the batch (1 is assumed), nor
what statistic the milliseconds are; "model compute only, no pre/post". Owners of Jetsons disagree by up to 19 % about
one model on one board. The networks were rebuilt from torchvision and timm, YOLOX from its paper; the published engines
may differ in details.

A prediction without an int8 kernel has the source `fitted`; one with any has `datasheet`. Kernels of other kinds than
{", ".join(model.families)} are refused.

## How far off it may be
Each network predicted by a model fitted to the others (the form chosen without it as well): mean error
{error.mean:.0%}, median {error.median:.0%}, {error.within_10:.0%} within ±10 %, {error.within_20:.0%} within ±20 %.
One standard deviation of a prediction is {model.relative_std:.0%} in fp16; for int8 comes another
{model.int8_relative_std:.0%} of the time spent in int8 kernels (the gain taken to lie anywhere between none and the
datasheet's).

{by_network}

{forms}

This error is a little flattered: the rules of fusion were corrected once after errors had been seen (an activation
and then an addition behind a convolution are a kernel of their own, as published logs show; before, it was 17 %).
A kernel of its own for every GELU would bring it to about 6 %, but rests on EfficientFormer alone and was not adopted.

What a search needs is less the milliseconds than the ratio of a compressed network to the untouched one. Nothing
published tells how well that is met; the nearest thing is the ratio of two published networks, both left out:

{ratios}

{check}

## What it does not know
* Channel counts. TensorRT pads channels to multiples of 8 in fp16 and up to 32 in int8; here a conv of 60 channels is
  predicted to be faster than one of 64, and need not be. Prune to multiples of 8 or, in int8, of 32.
* Small networks. The fastest of the fitted takes 1.6 ms; below that, the overhead per kernel is nearly all there is.
* Power mode, clocks, heat, other work on the memory that CPU and GPU share, CUDA graphs: all as in the source.
* Zeros among the weights gain no time and are predicted to gain none; weights of 4 and 2 bits run as int8.

Measure a chosen file on the board before relying on its milliseconds.
"""


if __name__ == "__main__":
    main()
