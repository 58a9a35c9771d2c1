"""The memory part of a calibration: some of its files run in processes of their own."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from autocomp.hardware.experiment import FILES_PER_NETWORK, network_files, network_number
from autocomp.hardware.fingerprint import Fingerprint
from autocomp.hardware.footprint import footprint_bytes, tells_memory
from autocomp.hardware.measurements import MeasuredNetwork, whole_rows
from autocomp.hardware.memory import PARTS, MeasuredMemory, MemoryModel, fit_memory

#: As many as a calibration takes two minutes for.
FILES = 150
#: Fewer than this fit nothing.
FEWEST_FILES = 2 * len(PARTS)
COLUMNS = ("network", "table_bytes", "measured_bytes")


def measured_memory(
    path: Path, networks: Sequence[MeasuredNetwork], here: Fingerprint, threads: int, batch: int, narrow_products: bool
) -> MemoryModel | None:
    """Measure what is missing in the ``memory.csv`` at ``path``, and fit. None where the system does not tell, or there
    are too few networks.

    Args:
        networks: measured ones.

    Raises:
        MeasurementError: the runtime refused a file.
    """
    chosen = networks[:: max(1, math.ceil(len(networks) / FILES))]
    if len(chosen) < FEWEST_FILES or not tells_memory():
        return None
    known = _read(path)
    for network in chosen:
        if network.name not in known:
            known[network.name] = _measure(network.name, here.runtime, threads, batch, narrow_products)
            _append(path, network.name, *known[network.name])
    files = [MeasuredMemory(network.kernels, *known[network.name]) for network in chosen]
    return fit_memory(files, [network.architecture for network in chosen])


def _measure(name: str, runtime: str, threads: int, batch: int, narrow_products: bool) -> tuple[int, int]:
    seed, number = int(name.split("-")[1]), int(name.rpartition("-")[2])
    files = network_files(seed, network_number(name), narrow_products, runtime == "onnxruntime")
    specimen = files[number % FILES_PER_NETWORK]
    return _table_bytes(specimen.model), footprint_bytes(runtime, specimen.model, [specimen.batch_of(batch)], threads)


def _table_bytes(model: bytes) -> int:
    """Of what the file gathers rows from."""
    import onnx

    graph = onnx.load_from_string(model).graph
    tables = {node.input[0] for node in graph.node if node.op_type == "Gather"}
    return sum(len(one.raw_data) for one in graph.initializer if one.name in tables and len(one.dims) == 2)


def _read(path: Path) -> dict[str, tuple[int, int]]:
    if not path.exists():
        return {}
    rows = [row for row in csv.DictReader(whole_rows(path).splitlines()) if row["measured_bytes"]]
    return {row["network"]: (int(row["table_bytes"]), int(row["measured_bytes"])) for row in rows}


def _append(path: Path, name: str, table_bytes: int, measured_bytes: int) -> None:
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(COLUMNS)
        writer.writerow([name, table_bytes, measured_bytes])
