"""The files that latency is foreseen for by benchmarks/latency.py: random plans of architectures that no calibration has
seen, for every runtime."""

from __future__ import annotations

import copyreg
import pickle
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import nn

from autocomp.compress.apply import apply
from autocomp.compress.levels import global_sparsity
from autocomp.compress.prepare import prepare
from autocomp.compress.quantize import Numerics
from autocomp.compress.rebuild import Prepared
from autocomp.compress.solve import Solver
from autocomp.compress.structure import Structure, restructure
from autocomp.export.to_onnx import export_onnx
from autocomp.hardware.calibrate import narrow_products
from autocomp.hardware.fingerprint import this_machine
from autocomp.hardware.followed import CompiledPlan, Followed, followed
from autocomp.hardware.resolve import resolve_target
from autocomp.hardware.target import RuntimeName, Target
from autocomp.hardware.timed_files import compiled_kernels
from autocomp.inventory import Inventory
from autocomp.plan import Format, LayerPlan, Plan, Rank, Sparsity
from autocomp.search.warm_start import warm_plans
from autocomp.space_builder import build_space
from autocomp.space_file import read_space
from autocomp.tasks.cifar10 import ResNet
from autocomp.tasks.zoo import import_torchvision

WORK = Path(__file__).resolve().parents[1] / "results" / "latency"
RUNTIMES: tuple[RuntimeName, ...] = ("onnxruntime", "openvino")
TARGETS: Mapping[RuntimeName, str] = {"onnxruntime": "cpu", "openvino": "cpu-openvino"}
#: Plans of a network that are compiled: those of a search of three times as many trials.
COMPILED_PLANS = 20


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
        inputs, batch = prepared.example.inputs, calibration_batch(prepared)
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
        (WORK / f"{name}.written").write_bytes(pickle.dumps(written))


def compile_plans(names: Sequence[str], runtimes: Sequence[RuntimeName], batches: Sequence[int]) -> None:
    """What the runtimes make of some plans of each network, as a search has it before its first trial."""
    for name, runtime in ((name, runtime) for name in names for runtime in runtimes):
        prepared, files = warm_files(name, resolve_target(TARGETS[runtime], tell=print), COMPILED_PLANS)
        for size in batches:
            inputs = [np.repeat(x.numpy(), size, axis=0) for x in prepared.example.inputs]
            lower = resolve_target(TARGETS[runtime], 1, size, tell=print).lower
            compiled = compiled_kernels(runtime, 1, inputs, dict(enumerate(file for _, file in files)))
            plans = [CompiledPlan(lower(structure), compiled[place]) for place, (structure, _) in enumerate(files)]
            compiled_path(name, runtime, size).write_bytes(pickle.dumps(plans))
        print(name, runtime, len(files), "plans compiled", flush=True)


def warm_files(name: str, target: Target, count: int) -> tuple[Prepared, list[tuple[Structure, bytes]]]:
    """A network, and the files that the warm start of a search begins with."""
    prepared, offer = prepared_network(name), target.offer
    batch = calibration_batch(prepared)
    solver = Solver(prepared.model, [batch])
    space = build_space(
        read_space("default"),
        prepared.inventory,
        offer.weight_bits,
        offer.patterns,
        offer.ranks,
        offer.activations,
        partial(global_sparsity, prepared, solver),
    )
    return prepared, [
        (
            restructure(prepared.inventory, plan, target.numerics),
            export_onnx(apply(prepared, plan, [batch], target.numerics, solver), target.artifact == "onnx-packed"),
        )
        for plan in warm_plans(space, COMPILED_PLANS, 0)[:count]
    ]


def compiled_path(name: str, runtime: str, batch: int) -> Path:
    return WORK / f"{name}-{runtime}-b{batch}.compiled"


def put_right(name: str, target: Target) -> Followed:
    """The target's lowering as a search has it: put right by the network's compiled plans."""
    plans: list[CompiledPlan] = pickle.loads(compiled_path(name, target.runtime, target.batch).read_bytes())
    return followed(target.lower, plans, target.model.covers)


def calibration_batch(prepared: Prepared) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(4, *x.shape[1:], generator=generator) if x.is_floating_point() else x.repeat(4, 1)
        for x in prepared.example.inputs
    )


def calibrated(plan: Plan) -> Plan:
    """The plan without grids of the moment."""
    layers = {
        name: replace(layer, format=layer.format and replace(layer.format, dynamic=False))
        for name, layer in plan.layers.items()
    }
    return replace(plan, layers=layers)


def files(names: Sequence[str], runtime: str) -> Iterator[Written]:
    for name in names:
        yield from (one for one in pickle.loads((WORK / f"{name}.written").read_bytes()) if one.runtime == runtime)
