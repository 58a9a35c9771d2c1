"""A calibration's ``measurements.csv``: a row for every file (its latency), for every kernel in it that the profiler timed,
and for every kernel in a file that was profiled alone."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from autocomp.hardware.experiment import network_number
from autocomp.hardware.fitted import KernelSample
from autocomp.hardware.kernels import Kernel
from autocomp.hardware.timing import Timing

#: Kinds of rows.
FILE, NODE, PROFILED = "file", "node", "profiled"
KERNEL_FIELDS = tuple(field.name for field in fields(Kernel) if field.name != "sources")
COLUMNS = ("network", "row", *KERNEL_FIELDS, "time_us", "spread", "reference_us")

Row = dict[str, object]


@dataclass(frozen=True)
class MeasuredNetwork:
    """A file that was measured: its latency, the reference workload's beside it, and the kernels in it as the profiler
    timed them.

    Files of one ``architecture`` differ by their plan only.
    """

    name: str
    architecture: str
    latency_ms: float
    spread: float
    reference_us: float
    samples: tuple[KernelSample, ...]

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        return tuple(sample.kernel for sample in self.samples)


@dataclass(frozen=True)
class Measurements:
    """What a ``measurements.csv`` holds; ``profiled`` are the kernels of the files that were profiled alone."""

    networks: tuple[MeasuredNetwork, ...] = ()
    profiled: tuple[KernelSample, ...] = ()

    @property
    def timed_numbers(self) -> set[int]:
        """Of the networks whose files were timed."""
        return {network_number(network.name) for network in self.networks}

    @property
    def profiled_numbers(self) -> set[int]:
        """Of the networks of which a file was profiled alone."""
        return {network_number(sample.kernel.sources[0]) for sample in self.profiled}


def read_measurements(path: Path) -> Measurements:
    """Nothing where there is no such file. A network that an interruption cut short is left out."""
    if not path.exists():
        return Measurements()
    found: dict[str, tuple[float, float, float, list[KernelSample]]] = {}
    profiled: list[KernelSample] = []
    for row in csv.DictReader(io.StringIO(whole(path.read_text(encoding="utf-8")))):
        if row["row"] == FILE:
            times = float(row["time_us"]) / 1e3, float(row["spread"]), float(row["reference_us"])
            found[row["network"]] = (*times, [])
        else:
            sample = KernelSample(_kernel(row), float(row["time_us"]))
            (profiled if row["row"] == PROFILED else found[row["network"]][3]).append(sample)
    networks = tuple(
        MeasuredNetwork(name, _architecture(name), latency_ms, spread, reference_us, tuple(samples))
        for name, (latency_ms, spread, reference_us, samples) in found.items()
        if samples
    )
    return Measurements(networks, tuple(profiled))


def whole(text: str) -> str:
    """A ``measurements.csv`` without the network whose last row was cut in the middle."""
    if text.endswith("\n"):
        return text
    lines = text.splitlines(keepends=True)[:-1]
    torn = lines[-1].partition(",")[0] if len(lines) > 1 else ""
    return "".join(line for line in lines if line.partition(",")[0] != torn)


def whole_rows(path: Path) -> str:
    """The text of a file that rows are appended to, which is cut where its last one was cut in the middle: what is appended to
    that would be lost with it."""
    text = path.read_text(encoding="utf-8")
    rows = text[: text.rfind("\n") + 1]
    if rows != text:
        path.write_text(rows, encoding="utf-8")
    return rows


def of_another_version(path: Path) -> bool:
    """Whether it is a file with other columns."""
    text = whole(path.read_text(encoding="utf-8")) if path.exists() else ""
    return text != "" and not text.startswith(",".join(COLUMNS) + "\n")


def file_rows(name: str, timing: Timing, samples: Iterable[KernelSample]) -> Iterator[Row]:
    """Of a file that was timed, and of its kernels."""
    yield {
        "network": name,
        "row": FILE,
        "time_us": f"{timing.latency_ms * 1e3:.3f}",
        "spread": f"{timing.error:.4f}",
        "reference_us": f"{timing.reference_ms * 1e3:.3f}",
    }
    for sample in samples:
        yield kernel_row(name, NODE, sample)


def kernel_row(network: str, row: str, sample: KernelSample) -> Row:
    cells: Row = {name: getattr(sample.kernel, name) for name in KERNEL_FIELDS}
    cells["fused_add"] = int(sample.kernel.fused_add)
    return {"network": network, "row": row, **cells, "time_us": f"{sample.time_us:.3f}"}


def append(path: Path, rows: Iterable[Row]) -> None:
    new = not path.exists() or path.stat().st_size == 0
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def _architecture(name: str) -> str:
    """The random network that a specimen is a plan of."""
    stem = name.rpartition("-")[0]
    return f"{stem}/{network_number(name)}"


def _kernel(row: dict[str, str]) -> Kernel:
    numbers = {name: int(row[name]) for name in KERNEL_FIELDS if name not in {"op", "fused_add"}}
    return Kernel(row["op"], (row["network"],), fused_add=row["fused_add"] == "1", **numbers)
