"""Packed files beside plain ones of the same networks: what they weigh, how long they load and run, whether their outputs
are the same.

    python benchmarks/compression_packed.py
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch
from compression_bench import REFERENCE
from tables import write_table
from torch import nn

from autocomp.compress.apply import apply
from autocomp.compress.prepare import prepare
from autocomp.export.to_onnx import export_onnx
from autocomp.hardware.runtimes import onnxruntime
from autocomp.hardware.runtimes.runtime import batch_outputs, cpu_runtime, loaded_run, reference_run
from autocomp.hardware.timing import TimingSettings, measure
from autocomp.plan import Format, LayerPlan, Plan, Sparsity
from autocomp.tasks.cifar10 import ResNet


@dataclass(frozen=True)
class Packed:
    """A packed file beside the plain one of the same network."""

    network: str
    stored: str
    plain_bytes: int
    packed_bytes: int
    plain_load_ms: float
    packed_load_ms: float
    plain_ms: float
    packed_ms: float
    times_as_long: float
    outputs_equal: bool


class Wide(nn.Module):
    """10.2 million weights in one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3200, 3200)
        self.last = nn.Linear(3200, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(x)))  # type: ignore[no-any-return]


#: Loads of each file, turn by turn.
LOADS = 15
STORED: Mapping[str, LayerPlan] = {
    "8 bits": LayerPlan(format=Format(8)),
    "6 bits": LayerPlan(format=Format(6)),
    "4 bits": LayerPlan(format=Format(4)),
    "3 bits": LayerPlan(format=Format(3)),
    "2 bits": LayerPlan(format=Format(2)),
    "ternary": LayerPlan(format=Format(2, grid="ternary")),
    "binary": LayerPlan(format=Format(1)),
    "codebook of 4 bits": LayerPlan(format=Format(4, grid="codebook")),
    "30 % of 4 bits": LayerPlan(Sparsity("unstructured", 0.7), None, Format(4)),
    "10 % of 4 bits": LayerPlan(Sparsity("unstructured", 0.9), None, Format(4)),
    "2 % of 4 bits": LayerPlan(Sparsity("unstructured", 0.98), None, Format(4)),
}


def packed() -> None:
    rows = []
    runs = cpu_runtime("onnxruntime")
    networks: Mapping[str, tuple[nn.Module, torch.Tensor]] = {
        "10 million weights": (Wide().eval(), torch.randn(8, 3200)),
        "ResNet-20": (ResNet(20).eval(), torch.randn(8, 3, 32, 32)),
    }
    for name, (model, batch) in networks.items():
        prepared = prepare(model, (batch[:1],))
        for stored, choice in STORED.items():
            plan = Plan({layer.name: choice for layer in prepared.inventory.layers})
            compressed = apply(prepared, plan, [(batch,)])
            files = {form: export_onnx(compressed, packed=form == "packed") for form in ("plain", "packed")}
            loads: dict[str, list[float]] = {form: [] for form in files}
            for _, (form, file) in itertools.product(range(LOADS), files.items()):
                began = time.perf_counter()
                onnxruntime.load(file, 1)
                loads[form].append(1e3 * (time.perf_counter() - began))
            load_ms = {form: float(np.quantile(times, 0.2)) for form, times in loads.items()}
            given = batch[:1].numpy()
            candidates = {form: partial(loaded_run, runs, file, 1, [given]) for form, file in files.items()}
            timings = measure(candidates, TimingSettings(repeats=40, max_rounds=24), reference=reference_run(runs, 1))
            outputs = [batch_outputs(onnxruntime.load(file, 1), batch.numpy())[0] for file in files.values()]
            rows.append(
                Packed(
                    name,
                    stored,
                    len(files["plain"]),
                    len(files["packed"]),
                    round(load_ms["plain"], 1),
                    round(load_ms["packed"], 1),
                    round(timings["plain"].latency_ms, 4),
                    round(timings["packed"].latency_ms, 4),
                    round(timings["packed"].latency_ms / timings["plain"].latency_ms, 3),
                    bool(np.array_equal(outputs[0], outputs[1])),
                )
            )
            print(rows[-1], flush=True)
    write_table(REFERENCE / "compression_packed.csv", [asdict(row) for row in rows])


if __name__ == "__main__":
    torch.set_num_threads(1)
    packed()
