"""How well latency is predicted for compressed networks of architectures that no calibration has seen.

    python benchmarks/latency.py write                      random plans of seven architectures, as files
    python benchmarks/latency.py time SITTING [CONFIG ...]  their latencies; two sittings at least ten minutes apart
    python benchmarks/latency.py score                      predictions held against them
    python benchmarks/latency.py lowering                   kernels foreseen for plans held against the compiled graphs

A CONFIG is threads and batch, like t1b1. What is written lies under results/latency/; the tables and the plot go to
results/reference/latency_*. Truth is the mean of both sittings, where they agree within 3 %; files that do not are
counted, and scored apart.
"""

from __future__ import annotations

import argparse
import copyreg
import csv
import itertools
import pickle
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from tables import write_table
from torch import nn

from autocomp.compress.apply import Prepared, apply, prepare
from autocomp.compress.quantize import Numerics
from autocomp.compress.structure import Structure, restructure
from autocomp.export.to_onnx import export_onnx
from autocomp.hardware import lowering_openvino
from autocomp.hardware.calibrate import narrow_products, nchwc_block
from autocomp.hardware.fingerprint import this_machine
from autocomp.hardware.kernels import Kernel
from autocomp.hardware.latency import LatencyModel
from autocomp.hardware.lowering import lower
from autocomp.hardware.resolve import resolve_target
from autocomp.hardware.runtimes.runtime import cpu_runtime, loaded_run, reference_run
from autocomp.hardware.timing import TimingSettings, measure
from autocomp.hardware.warm import MeasuredFile, WarmModel
from autocomp.inventory import Inventory
from autocomp.plan import Format, LayerPlan, Plan, Rank, Sparsity
from autocomp.tasks.cifar10 import ResNet
from autocomp.tasks.zoo import import_torchvision

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "results" / "latency"
REFERENCE = ROOT / "results" / "reference"

PLANS = 30
RUNTIMES = ("onnxruntime", "openvino")
CONFIGS = {
    f"{runtime}-t{threads}b{batch}": (runtime, threads, batch)
    for runtime in RUNTIMES
    for threads, batch in ((1, 1), (2, 1), (1, 8), (2, 8))
}
TARGETS = {"onnxruntime": "cpu", "openvino": "cpu-openvino"}
#: Two sittings agree where they differ by less than this.
AGREEMENT = 0.03
#: Files of a network that its model is corrected with.
WARM_FILES = 30
SETTINGS = TimingSettings(repeats=20, max_rounds=24)


class Plain(nn.Module):
    """Eight convolutions in a row, as VGG has them."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for width in (32, 64, 0, 128, 128, 0, 256, 256, 0, 256, 256):
            if width == 0:
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(inputs, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU()]
                inputs = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images))  # type: ignore[no-any-return]


class Sentences(nn.Module):
    """BERT's encoder, four layers of width 256."""

    def __init__(self) -> None:
        super().__init__()
        import_torchvision()
        from transformers import BertConfig, BertModel

        config = BertConfig(
            hidden_size=256, num_hidden_layers=4, num_attention_heads=8, intermediate_size=1024, vocab_size=3000
        )
        self.bert = BertModel(config, add_pooling_layer=False)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.bert(input_ids=ids, attention_mask=mask).last_hidden_state.mean(dim=1)  # type: ignore[no-any-return]


def images(side: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(1, 3, side, side),)


def mobilenet() -> nn.Module:
    return import_torchvision().models.mobilenet_v2(weights=None)  # type: ignore[no-any-return]


def gated() -> nn.Module:
    return import_torchvision().models.mobilenet_v3_small(weights=None)  # type: ignore[no-any-return]


def dense() -> nn.Module:
    import_torchvision()
    from torchvision.models import DenseNet

    return DenseNet(growth_rate=16, block_config=(4, 6, 6), num_init_features=32, num_classes=10)  # type: ignore[no-any-return]


def vision_transformer() -> nn.Module:
    import timm

    return timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=96)


@dataclass(frozen=True)
class Architecture:
    """A network with random weights, and its inputs at batch 1."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple[torch.Tensor, ...]]
    dynamic_dims: tuple[tuple[int, ...], ...] = ()


ARCHITECTURES: Mapping[str, Architecture] = {
    "plain": Architecture(Plain, partial(images, 32)),
    "residual": Architecture(partial(ResNet, 20), partial(images, 32)),
    "depthwise": Architecture(mobilenet, partial(images, 96)),
    "gated": Architecture(gated, partial(images, 128)),
    "dense": Architecture(dense, partial(images, 64)),
    "sentences": Architecture(
        Sentences, lambda: (torch.randint(1, 3000, (1, 64)), torch.ones(1, 64, dtype=torch.long)), ((1,), (1,))
    ),
    "vision-transformer": Architecture(vision_transformer, partial(images, 96)),
}


def prepared_network(name: str) -> Prepared:
    architecture = ARCHITECTURES[name]
    torch.manual_seed(0)
    model, inputs = architecture.make().eval(), architecture.inputs()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.01 * torch.randn(parameter.shape)
    return prepare(model, inputs, architecture.dynamic_dims)


def random_plan(inventory: Inventory, seed: str) -> Plan:
    """A joint plan, as searches propose them: mostly one format for the whole network, with exceptions per layer;
    channels and heads cut in some groups, ranks in some layers."""
    rng = random.Random(seed)
    usual = rng.choice((None, Format(8), Format(8), Format(4)))
    exception, pruned, split = rng.choice((0.0, 0.1, 0.3)), rng.choice((0.0, 0.3, 0.7)), rng.choice((0.0, 0.2, 0.5))
    dynamic = rng.random() < 0.7
    sparsity = {
        name: Sparsity(group.pattern, level)
        for group in inventory.groups
        if group.prunable and rng.random() < pruned
        for level in [rng.choice((0.125, 0.25, 0.5, 0.75))]
        if group.kept(level) < group.width
        for name in group.producers
    }
    layers = {}
    for layer in inventory.layers:
        chosen = rng.choice((None, Format(8))) if rng.random() < exception else usual
        if chosen is not None and not layer.computes_integers:
            chosen = Format(chosen.weight_bits, 32)
        elif chosen is not None and layer.kind == "linear" and len(layer.out_shape) > 1 and dynamic:
            chosen = replace(chosen, dynamic=True)
        largest = layer.largest_paying_rank
        ranked = largest >= 2 and rng.random() < split
        rank = Rank("svd", rng.randint(max(1, largest // 4), largest)) if ranked else None
        layers[layer.name] = LayerPlan(sparsity.get(layer.name), rank, chosen)
    dropped = tuple(block.name for block in inventory.blocks if rng.random() < rng.choice((0.0, 0.1)))
    return Plan(layers, dropped)


@dataclass(frozen=True)
class Written:
    """A file for one runtime, the structure it was written from, and its inputs at batch 1."""

    name: str
    architecture: str
    runtime: str
    structure: Structure
    inputs: tuple[np.ndarray, ...]

    @property
    def path(self) -> Path:
        return WORK / self.runtime / f"{self.name}.onnx"


# Plans and structures keep their mappings read-only, which pickle does not know.
def read_only(mapping: dict[object, object]) -> MappingProxyType[object, object]:
    return MappingProxyType(mapping)


copyreg.pickle(MappingProxyType, lambda mapping: (read_only, (dict(mapping),)))


def write(names: Sequence[str], plans: int) -> None:
    """For onnxruntime packed files; for openvino plain ones, which round nothing at run time."""
    for runtime in RUNTIMES:
        (WORK / runtime).mkdir(parents=True, exist_ok=True)
    numerics = Numerics(narrow_products=narrow_products(this_machine()))
    for name in names:
        prepared = prepared_network(name)
        inputs = prepared.example.inputs
        generator = torch.Generator().manual_seed(0)
        batch = tuple(
            torch.randn(4, *x.shape[1:], generator=generator) if x.is_floating_point() else x.repeat(4, 1)
            for x in inputs
        )
        written = []
        for number in range(plans):
            plan = Plan() if number == 0 else random_plan(prepared.inventory, f"{name}/{number}")
            compressed = apply(prepared, plan, [batch], numerics)
            for runtime in RUNTIMES:
                fitting = calibrated(plan) if runtime == "openvino" else plan
                if fitting != plan:
                    compressed = apply(prepared, fitting, [batch], numerics)
                structure = restructure(prepared.inventory, fitting, numerics)
                arrays = tuple(x.numpy() for x in inputs)
                written.append(Written(f"{name}-{number}", name, runtime, structure, arrays))
                written[-1].path.write_bytes(export_onnx(compressed, packed=runtime == "onnxruntime"))
            print(written[-1].name, flush=True)
        (WORK / f"{name}.pickle").write_bytes(pickle.dumps(written))


def calibrated(plan: Plan) -> Plan:
    """The plan without grids of the moment."""
    layers = {
        name: replace(layer, format=layer.format and replace(layer.format, dynamic=False))
        for name, layer in plan.layers.items()
    }
    return replace(plan, layers=layers)


def files(names: Sequence[str], runtime: str) -> Iterator[Written]:
    for name in names:
        yield from (one for one in pickle.loads((WORK / f"{name}.pickle").read_bytes()) if one.runtime == runtime)


def time_files(sitting: int, configs: Sequence[str], names: Sequence[str]) -> None:
    path = WORK / f"sitting-{sitting}.csv"
    for config in configs:
        runtime, threads, batch = CONFIGS[config]
        runs = cpu_runtime(runtime)
        for name in names:
            candidates = {
                one.name: partial(
                    loaded_run, runs, one.path, threads, [np.repeat(x, batch, axis=0) for x in one.inputs]
                )
                for one in files([name], runtime)
            }
            timings = measure(candidates, SETTINGS, reference=reference_run(runs, threads))
            with path.open("a", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, lineterminator="\n")
                for label, timing in timings.items():
                    row = asdict(timing)
                    writer.writerow([config, name, label, *row.values(), round(time.time())])
            settled = sum(timing.settled for timing in timings.values())
            print(config, name, f"{settled} of {len(timings)} settled", flush=True)


@dataclass(frozen=True)
class Truth:
    """What a file was measured to take in both sittings (ms)."""

    first_ms: float
    second_ms: float

    @property
    def agrees(self) -> bool:
        return abs(self.first_ms / self.second_ms - 1) <= AGREEMENT

    @property
    def latency_ms(self) -> float:
        return (self.first_ms + self.second_ms) / 2


@dataclass(frozen=True)
class Line:
    """How one way of predicting did on the files of one configuration."""

    config: str
    files: str
    method: str
    count: int
    within_5: float
    within_10: float
    mean_error: float
    signed_error: float
    spearman: float


def truths(config: str) -> Mapping[str, Truth]:
    """File → its latencies; the last timing of a sitting counts."""
    sittings = []
    for sitting in (1, 2):
        with (WORK / f"sitting-{sitting}.csv").open(encoding="utf-8") as file:
            sittings.append({row[2]: float(row[3]) for row in csv.reader(file) if row[0] == config})
    return {name: Truth(sittings[0][name], sittings[1][name]) for name in sittings[0] if name in sittings[1]}


def line(config: str, which: str, method: str, predicted: Sequence[float], true: Sequence[float]) -> Line:
    from scipy.stats import spearmanr

    errors = np.array(predicted) / np.array(true) - 1
    return Line(
        config,
        which,
        method,
        len(errors),
        round(float((np.abs(errors) <= 0.05).mean()), 4),
        round(float((np.abs(errors) <= 0.10).mean()), 4),
        round(float(np.abs(errors).mean()), 4),
        round(float(errors.mean()), 4),
        round(float(spearmanr(predicted, true).statistic), 4),
    )


def bit_operations(structure: Structure) -> float:
    """Multiplications, each times the bits of both factors."""
    total = 0.0
    for node in structure.graph.layers:
        chosen = structure.layers[node.layer or ""].format
        eight = chosen is not None and chosen.integer_activations
        total += node.macs * (8 * 8 if eight else 32 * 32)
    return total


def scaled(values: Sequence[float], true: Sequence[float]) -> list[float]:
    """A quantity that is no time, given the one factor that suits these files best."""
    factor = float(np.median(np.array(true) / np.array(values)))
    return [factor * value for value in values]


def score(names: Sequence[str], configs: Sequence[str]) -> None:
    lines: list[Line] = []
    for config in configs:
        runtime, threads, batch = CONFIGS[config]
        target = resolve_target(TARGETS[runtime], threads, batch, tell=print)
        known = truths(config)
        written = [one for one in files(names, runtime) if one.name in known]
        kernels = {one.name: target.lower(one.structure) for one in written}
        cold = {name: target.model.predict(each).latency_ms for name, each in kernels.items()}
        warm = warmed(written, kernels, known, target.model)
        for which in ("judged", "all"):
            chosen = [one for one in written if which == "all" or known[one.name].agrees]
            true = [known[one.name].latency_ms for one in chosen]
            add = partial(line, config, which)
            lines += [
                add("cold", [cold[one.name] for one in chosen], true),
                add("MACs", scaled([float(one.structure.macs) for one in chosen], true), true),
                add("bit operations", scaled([bit_operations(one.structure) for one in chosen], true), true),
                add(
                    "second sitting",
                    [known[one.name].second_ms for one in chosen],
                    [known[one.name].first_ms for one in chosen],
                ),
            ]
            some = [one for one in chosen if one.name in warm]
            lines.append(add("warm", [warm[one.name] for one in some], [known[one.name].latency_ms for one in some]))
            if which == "judged":
                for name in names:
                    part = [one for one in chosen if one.architecture == name]
                    if len(part) > 2:
                        true = [known[one.name].latency_ms for one in part]
                        lines.append(line(config, name, "cold", [cold[one.name] for one in part], true))
                        part = [one for one in part if one.name in warm]
                        true = [known[one.name].latency_ms for one in part]
                        lines.append(line(config, name, "warm", [warm[one.name] for one in part], true))
    for each in lines:
        print(each)
    write_table(REFERENCE / "latency_error.csv", [asdict(each) for each in lines])


def warmed(
    written: Sequence[Written],
    kernels: Mapping[str, tuple[Kernel, ...]],
    known: Mapping[str, Truth],
    model: LatencyModel,
) -> dict[str, float]:
    """Predictions by models corrected with up to 30 files of the same network (its first sitting), for the others."""
    found: dict[str, float] = {}
    for name in dict.fromkeys(one.architecture for one in written):
        mine = [one for one in written if one.architecture == name]
        random.Random(name).shuffle(mine)
        count = min(WARM_FILES, len(mine) // 2)
        seen = tuple(MeasuredFile(kernels[one.name], known[one.name].first_ms) for one in mine[:count])
        corrected = WarmModel(model, seen)
        found |= {one.name: corrected.predict(kernels[one.name]).latency_ms for one in mine[count:]}
    return found


@dataclass(frozen=True)
class Foreseen:
    """How many of the kernels that a runtime compiles for an architecture's files were foreseen, every number of them
    right, how many were foreseen that it does not have, and in how many files all is right."""

    runtime: str
    architecture: str
    files: int
    kernels: int
    foreseen: int
    too_many: int
    whole_files: int


def lowering(names: Sequence[str]) -> None:
    here = this_machine()
    rows = []
    for runtime, name in itertools.product(RUNTIMES, names):
        row = Foreseen(runtime, name, 0, 0, 0, 0, 0)
        for one in files([name], runtime):
            found = (
                lowering_openvino.lower(one.structure, 1)
                if runtime == "openvino"
                else lower(one.structure, 1, nchwc_block(here))
            )
            samples = cpu_runtime(runtime).kernel_samples(one.path, [*one.inputs], threads=1, runs=1)
            expected = Counter(replace(sample.kernel, sources=()) for sample in samples)
            actual = Counter(replace(kernel, sources=()) for kernel in found)
            row = Foreseen(
                runtime,
                name,
                row.files + 1,
                row.kernels + expected.total(),
                row.foreseen + (expected & actual).total(),
                row.too_many + (actual - expected).total(),
                row.whole_files + (expected == actual),
            )
        print(row, flush=True)
        rows.append(asdict(row))
    write_table(REFERENCE / "latency_lowering.csv", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("write", "time", "score", "lowering"))
    parser.add_argument("rest", nargs="*", help="for time: the sitting's number, and configurations")
    parser.add_argument("--architectures", nargs="*", default=list(ARCHITECTURES))
    parser.add_argument("--plans", type=int, default=PLANS)
    asked = parser.parse_args()
    if asked.what == "write":
        write(asked.architectures, asked.plans)
    elif asked.what == "time":
        time_files(int(asked.rest[0]), asked.rest[1:] or list(CONFIGS), asked.architectures)
    elif asked.what == "lowering":
        lowering(asked.architectures)
    else:
        score(asked.architectures, asked.rest or list(CONFIGS))


if __name__ == "__main__":
    main()
