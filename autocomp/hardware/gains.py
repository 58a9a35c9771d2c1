"""What 8 bits, zeros, fewer channels and lower ranks are worth on a runtime, found by measurement: chains of equal layers,
untouched and in every such way, timed side by side. A chain begins and ends in floats and has its layers' conversions in it,
and depthwise convolutions stand between pointwise ones in the same format, as they do in networks: no layer is judged alone.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from autocomp.errors import BoardLostError, MeasurementError
from autocomp.formats import WORKS, Activations, Work
from autocomp.hardware.experiment import Packages, network_writer
from autocomp.hardware.graph_writer import PATTERNS_OF_ZEROS, NetworkWriter, Value
from autocomp.hardware.measurements import whole_rows
from autocomp.hardware.runtimes.runtime import Array, Runtime, loaded_run, reference_run
from autocomp.hardware.timing import TimingSettings, measure

#: In floats: nine weights in ten are zero, or two in four; half the channels between the layers; a quarter of the rank.
Reduction = Literal["unstructured", "2:4", "channel", "rank"]
#: What may be done to a chain's layers.
Way = Activations | Reduction

#: Layers of a chain.
LAYERS = 4
#: Faster by less than this is not faster.
LEAST_SPEEDUP = 1.03
#: Weights that are stored in bytes and computed in floats may cost no more time than this.
FREE_SPEEDUP = 0.97

SETTINGS = TimingSettings(repeats=20, max_rounds=10, patience_s=10.0)


@dataclass(frozen=True)
class Gain:
    """How many times as fast as untouched a kind of layers is like this (geometric mean over chains of several shapes)."""

    work: Work
    way: Way
    speedup: float

    @property
    def pays(self) -> bool:
        """Whether a file is the better for it: faster, or smaller at no cost."""
        return self.speedup >= (FREE_SPEEDUP if self.way == "a32" else LEAST_SPEEDUP)


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
#: The ways that are tried; grids of the moment are for products alone, and what looks at one channel has no rank.
WAYS: Mapping[Work, tuple[Way, ...]] = {
    "conv": ("a8", "a32", "unstructured", "2:4", "channel", "rank"),
    "depthwise": ("a8", "a32", "unstructured", "2:4", "channel"),
    "linear": ("a8", "a32", "unstructured", "2:4", "channel", "rank"),
    "sequence": ("a8", "d8", "a32", "unstructured", "2:4", "channel", "rank"),
}


def ways_of(packages: Packages | None) -> Mapping[Work, tuple[Way, ...]]:
    """Those that are tried of files of a kind: torch rounds on calibrated grids only, and some of its devices multiply floats
    of 8 bits.

    Args:
        packages: see :func:`autocomp.hardware.experiment.network_writer`.
    """
    if packages is None:
        return WAYS
    others: Mapping[Work, tuple[Way, ...]] = {"linear": ("f8",), "sequence": ("f8",)} if packages.float8 else {}
    return {work: (*(how for how in ways if how != "d8"), *others.get(work, ())) for work, ways in WAYS.items()}


_ALL_WAYS: tuple[Way, ...] = (*get_args(Activations), *get_args(Reduction))

#: Of a file of gains: a row for every way of every chain.
COLUMNS = ("chain", "way", "log_ratio", "settled")


def measure_gains(
    path: Path, runtime: Runtime, threads: int, batch: int, narrow_products: bool, packages: Packages | None = None
) -> tuple[Gain, ...]:
    """The gain of every way of :data:`WAYS` on this machine; some 60 files, two minutes.

    Args:
        path: where what was measured is kept; chains that are there already are not measured again, but for those that never
            settled. Of a way that settled in no chain there is no gain.
        narrow_products: of the machine, see :class:`autocomp.compress.quantize.Numerics`.
        packages: see :func:`autocomp.hardware.experiment.network_writer`.
    """
    reference = reference_run(runtime, threads)
    ways = ways_of(packages)
    before = _read(path)
    known = {
        number: found
        for number, found in before.items()
        if set(found) == set(ways[CHAINS[number].work]) and all(settled for _, settled in found.values())
    }
    logs: dict[tuple[Work, Way], list[float]] = {}
    for number, chain in enumerate(CHAINS):
        if number not in known:
            files = {how: _file(chain, how, narrow_products, packages) for how in (None, *ways[chain.work])}
            try:
                known[number] = _measure_chain(chain, runtime, threads, batch, files, reference)
            except BoardLostError:
                raise
            except MeasurementError:
                continue  # the runtime refuses one of its files: nothing is known of the kind
            _append(path, number, known[number])
            # What settled before holds, where it does not now.
            known[number] |= {
                how: found for how, found in before.get(number, {}).items() if found[1] and not known[number][how][1]
            }
        for how, (log, settled) in known[number].items():
            if settled:
                logs.setdefault((chain.work, how), []).append(log)
    return tuple(Gain(*key, speedup=math.exp(sum(found) / len(found))) for key, found in logs.items())


def _measure_chain(
    chain: _Chain,
    runtime: Runtime,
    threads: int,
    batch: int,
    files: Mapping[Way | None, bytes],
    reference: Callable[[], object],
) -> dict[Way, tuple[float, bool]]:
    """Way → logarithm of how much faster it is than the untouched chain, and whether both settled."""
    inputs = [_input(chain, batch)]
    loads = {str(how): partial(loaded_run, runtime, file, threads, inputs) for how, file in files.items()}
    timings = measure(loads, SETTINGS, reference=reference)
    measured: dict[Way, tuple[float, bool]] = {}
    for how in files:
        if how is None:
            continue
        pair = timings[str(None)], timings[how]
        ratio = math.log(pair[0].latency_ms / pair[1].latency_ms)
        measured[how] = ratio, all(one.settled for one in pair)
    return measured


def _read(path: Path) -> dict[int, dict[Way, tuple[float, bool]]]:
    """Chain → way → logarithm of the ratio, and whether both settled. A file of an earlier version is begun anew."""
    if not path.exists():
        return {}
    text = whole_rows(path)
    if not text.startswith(",".join(COLUMNS) + "\n"):
        path.unlink()
        return {}
    found: dict[int, dict[Way, tuple[float, bool]]] = {}
    for row in csv.DictReader(text.splitlines()):
        how = next((one for one in _ALL_WAYS if one == row["way"]), None)
        if how is None or row["settled"] not in {"0", "1"}:
            continue
        of_chain = found.setdefault(int(row["chain"]), {})
        if not of_chain.get(how, (0.0, False))[1]:  # what settled stays
            of_chain[how] = float(row["log_ratio"]), row["settled"] == "1"
    return found


def _append(path: Path, number: int, measured: Mapping[Way, tuple[float, bool]]) -> None:
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(COLUMNS)
        writer.writerows([number, how, round(ratio, 5), int(settled)] for how, (ratio, settled) in measured.items())


def paying(gains: Sequence[Gain], offered: Sequence[Activations]) -> dict[Work, tuple[Activations, ...]]:
    """Of what is offered, what pays for each kind of layers; all of it where nothing was measured."""
    known = {(gain.work, gain.way): gain.pays for gain in gains}
    return {work: tuple(how for how in offered if known.get((work, how), True)) for work in WORKS}


def _file(chain: _Chain, how: Way | None, narrow_products: bool, packages: Packages | None = None) -> bytes:
    zeros = next((pattern for pattern in PATTERNS_OF_ZEROS if pattern == how), None)
    writer = network_writer(0, narrow_products, packages, stored=how == "a32", zeros=zeros)
    x = writer.input(chain.shape)
    width = chain.shape[0] if len(chain.shape) == 3 else chain.shape[-1]
    for layer in range(LAYERS):
        if how == "rank":
            x = _layer(writer, chain, x, how, width // 4, chain.kernel, active=False)
        outputs = width // 2 if how == "channel" and layer < LAYERS - 1 else width
        x = _layer(writer, chain, x, how, outputs, 1 if how == "rank" else chain.kernel)
    axes = {"conv": (2, 3), "depthwise": (2, 3), "linear": (), "sequence": (1,)}[chain.work]
    return writer.finish(writer.mean(x, axes) if axes else x)


def _layer(
    writer: NetworkWriter, chain: _Chain, x: Value, how: Way | None, width: int, kernel: int, active: bool = True
) -> Value:
    """With an activation behind it, or without."""
    if chain.work == "sequence" or how == "f8":
        ways = {"a8": "calibrated", "d8": "dynamic", "f8": "float8"}
        y = writer.product(x, width, ways.get(str(how), "float"), bias=active)
        return writer.activation(y, "Gelu" if chain.work == "sequence" else "Relu") if active else y
    if chain.work == "linear":
        return writer.linear(x, width, how == "a8", relu=active)
    if chain.work == "depthwise":
        x = writer.conv(x, width, 1, integers=how == "a8", activation="Relu")
    groups = width if chain.work == "depthwise" else 1
    return writer.conv(x, width, kernel, 1, groups, how == "a8", activation="Relu" if active else None)


def _input(chain: _Chain, batch: int) -> Array:
    return np.random.default_rng(0).standard_normal((batch, *chain.shape)).astype(np.float32)
