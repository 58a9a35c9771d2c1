"""What 8 bits are worth on a runtime, found by measurement: chains of equal layers, in floats and in every way that their
activations may be given, timed side by side. A chain begins and ends in floats and has its layers' conversions in it, and
depthwise convolutions stand between pointwise ones in the same format, as they do in networks: no layer is judged alone.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np

from autocomp.hardware.graph_writer import GraphWriter, Value
from autocomp.hardware.runtimes.runtime import Array, Runtime, loaded_run, reference_run
from autocomp.hardware.timing import TimingSettings, measure
from autocomp.space import WORKS, Activations, Work

#: Layers of a chain.
LAYERS = 4
#: Faster by less than this is not faster.
LEAST_SPEEDUP = 1.03
#: Weights that are stored in bytes and computed in floats may cost no more time than this.
FREE_SPEEDUP = 0.97

SETTINGS = TimingSettings(repeats=20, max_rounds=10, patience_s=10.0)


@dataclass(frozen=True)
class Gain:
    """How many times as fast as floats a kind of layers is with its activations given like this (geometric mean over
    chains of several shapes)."""

    work: Work
    activations: Activations
    speedup: float

    @property
    def pays(self) -> bool:
        """Whether a file is the better for it: faster, or smaller at no cost."""
        return self.speedup >= (FREE_SPEEDUP if self.activations == "a32" else LEAST_SPEEDUP)


@dataclass(frozen=True)
class _Chain:
    """``shape`` of its input without the batch; every layer has as many outputs as inputs."""

    work: Work
    shape: tuple[int, ...]
    kernel: int = 1


CHAINS = (
    _Chain("conv", (32, 32, 32), 3),
    _Chain("conv", (128, 8, 8), 3),
    _Chain("conv", (96, 16, 16), 1),
    _Chain("depthwise", (96, 32, 32), 3),
    _Chain("depthwise", (384, 8, 8), 3),
    _Chain("linear", (512,)),
    _Chain("linear", (1536,)),
    _Chain("sequence", (32, 256)),
    _Chain("sequence", (128, 384)),
)
#: The ways that are tried; grids of the moment are for products alone.
WAYS: Mapping[Work, tuple[Activations, ...]] = {
    "conv": ("a8", "a32"),
    "depthwise": ("a8", "a32"),
    "linear": ("a8", "a32"),
    "sequence": ("a8", "d8", "a32"),
}


#: Of a file of gains: a row for every way of every chain.
COLUMNS = ("chain", "activations", "log_ratio", "settled")


def measure_gains(path: Path, runtime: Runtime, threads: int, batch: int, narrow_products: bool) -> tuple[Gain, ...]:
    """The gain of every way of :data:`WAYS` on this machine; some 40 files, one minute.

    Args:
        path: where what was measured is kept; chains that are there already are not measured again.
        narrow_products: of the machine, see :class:`autocomp.compress.quantize.Numerics`.
    """
    reference = reference_run(runtime, threads)
    known = _read(path)
    logs: dict[tuple[Work, Activations], list[tuple[float, bool]]] = {}
    for number, chain in enumerate(CHAINS):
        if number not in known:
            known[number] = _measure_chain(chain, runtime, threads, batch, narrow_products, reference)
            _append(path, number, known[number])
        for how, found in known[number].items():
            logs.setdefault((chain.work, how), []).append(found)
    return tuple(Gain(*key, speedup=math.exp(_mean(found))) for key, found in logs.items())


def _measure_chain(
    chain: _Chain,
    runtime: Runtime,
    threads: int,
    batch: int,
    narrow_products: bool,
    reference: Callable[[], object],
) -> dict[Activations, tuple[float, bool]]:
    """Way → logarithm of how much faster it is than floats, and whether both settled."""
    inputs = [_input(chain, batch)]
    ways: tuple[Activations | None, ...] = (None, *WAYS[chain.work])
    files = {
        str(how): partial(loaded_run, runtime, _file(chain, how, narrow_products), threads, inputs) for how in ways
    }
    timings = measure(files, SETTINGS, reference=reference)
    measured: dict[Activations, tuple[float, bool]] = {}
    for how in WAYS[chain.work]:
        pair = timings[str(None)], timings[how]
        ratio = math.log(pair[0].latency_ms / pair[1].latency_ms)
        measured[how] = ratio, all(one.settled for one in pair)
    return measured


def _read(path: Path) -> dict[int, dict[Activations, tuple[float, bool]]]:
    """Chain → way → logarithm of the ratio, and whether both settled. A chain that was cut short is left out."""
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8")
    path.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")  # without a row that was cut in the middle
    found: dict[int, dict[Activations, tuple[float, bool]]] = {}
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            how = next((one for one in get_args(Activations) if one == row["activations"]), None)
            if how is not None and row["settled"] in {"0", "1"}:
                found.setdefault(int(row["chain"]), {})[how] = float(row["log_ratio"]), row["settled"] == "1"
    return {number: ways for number, ways in found.items() if set(ways) == set(WAYS[CHAINS[number].work])}


def _append(path: Path, number: int, measured: Mapping[Activations, tuple[float, bool]]) -> None:
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(COLUMNS)
        writer.writerows([number, how, round(ratio, 5), int(settled)] for how, (ratio, settled) in measured.items())


def _mean(ratios: Sequence[tuple[float, bool]]) -> float:
    """Of those that settled; of all where none did."""
    settled = [ratio for ratio, both_settled in ratios if both_settled]
    counted = settled or [ratio for ratio, _ in ratios]
    return sum(counted) / len(counted)


def paying(gains: Sequence[Gain], offered: Sequence[Activations]) -> dict[Work, tuple[Activations, ...]]:
    """Of what is offered, what pays for each kind of layers; all of it where nothing was measured."""
    known = {(gain.work, gain.activations): gain.pays for gain in gains}
    return {work: tuple(how for how in offered if known.get((work, how), True)) for work in WORKS}


def _file(chain: _Chain, how: Activations | None, narrow_products: bool) -> bytes:
    writer = GraphWriter(0, narrow_products, stored=how == "a32")
    x = writer.input(chain.shape)
    for _ in range(LAYERS):
        x = _layer(writer, chain, x, how)
    axes = {"conv": (2, 3), "depthwise": (2, 3), "linear": (), "sequence": (1,)}[chain.work]
    return writer.finish(writer.mean(x, axes) if axes else x)


def _layer(writer: GraphWriter, chain: _Chain, x: Value, how: Activations | None) -> Value:
    width = chain.shape[0] if len(chain.shape) == 3 else chain.shape[-1]
    if chain.work == "sequence":
        ways = {"a8": "calibrated", "d8": "dynamic"}
        return writer.activation(writer.product(x, width, ways.get(str(how), "float")), "Gelu")
    if chain.work == "linear":
        return writer.linear(x, width, how == "a8", relu=True)
    if chain.work == "depthwise":
        x = writer.conv(x, width, 1, integers=how == "a8", activation="Relu")
    groups = width if chain.work == "depthwise" else 1
    return writer.conv(x, width, chain.kernel, groups=groups, integers=how == "a8", activation="Relu")


def _input(chain: _Chain, batch: int) -> Array:
    return np.random.default_rng(0).standard_normal((batch, *chain.shape)).astype(np.float32)
