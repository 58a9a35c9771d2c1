"""Latencies that others published of real boards under TensorRT, with the networks rebuilt and lowered to kernels.

Needs torchvision and timm, which the project itself does not; a CPU build of torch will do.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import ModuleType

import pandas as pd
import torch
from detectors import Yolo11, YoloX
from torch import nn

from autocomp.compress.fold import fold_batch_norm
from autocomp.compress.quantize import Numerics, quantized_tensors
from autocomp.compress.structure import LayerShape, Structure
from autocomp.graph import Graph
from autocomp.hardware.kernels import Kernel
from autocomp.hardware.tensorrt import lower
from autocomp.plan import Format
from autocomp.trace import Example, export_program, read_graph

#: How files for TensorRT are rounded; see the profiles.
NUMERICS = Numerics(symmetric_activations=True, integer_bias=False, rounded_outputs=False, attention_operator=False)

#: Published names of networks → their families, whose members differ in width and depth alone.
FAMILIES = (
    "resnet",
    "densenet",
    "vgg",
    "squeezenet",
    "shufflenet",
    "mnasnet",
    "mobilenetv3",
    "mixnet",
    "yolox",
    "yolo11",
)

TORCHVISION = (
    *("squeezenet1_0", "squeezenet1_1", "resnet18", "resnet34", "resnet50", "resnet101", "densenet121", "densenet169"),
    *("densenet201", "densenet161", "vgg11", "vgg13", "vgg16", "vgg19", "mobilenet_v2", "shufflenet_v2_x1_0"),
    *("shufflenet_v2_x1_5", "shufflenet_v2_x2_0", "mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "alexnet"),
)


@dataclass(frozen=True)
class Row:
    """One published latency at batch 1. ``board`` and ``source`` as the table names them; ``network`` is the same for rows
    of one network, however they call it; ``kernels`` in the row's precision, fp16 or int8 for every layer."""

    board: str
    source: str
    model: str
    network: str
    precision: str
    measured_ms: float
    reference: str
    kernels: tuple[Kernel, ...]

    @property
    def family(self) -> str:
        return next((family for family in FAMILIES if self.network.startswith(family)), self.network)


def network_name(model: str) -> str:
    """``ResNet-50 v1.5`` and ``resnet50`` are one network; batch norms are folded, so that VGG is one with and without."""
    return model.lower().removesuffix(" v1.5").removesuffix("_bn").replace("resnet-", "resnet").replace("-", "_")


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


@cache
def builders() -> Mapping[str, Callable[[int], nn.Module]]:
    """The network's name → the network, given the number of classes."""
    vision, timm = torchvision_models(), importlib.import_module("timm")

    def plain(name: str, classes: int) -> nn.Module:
        built: nn.Module = getattr(vision, name)(num_classes=classes)
        return built

    def of_timm(name: str, classes: int) -> nn.Module:
        built: nn.Module = timm.create_model(name, num_classes=classes)
        return built

    return {
        **{name: partial(plain, name) for name in TORCHVISION},
        "efficientnet_b0": partial(plain, "efficientnet_b0"),
        "googlenet": lambda classes: vision.googlenet(num_classes=classes, aux_logits=False, init_weights=False),
        "mobilenetv3_small": partial(plain, "mobilenet_v3_small"),
        "mobilenetv3_large": partial(plain, "mobilenet_v3_large"),
        "mixnet_m": partial(of_timm, "mixnet_m"),
        "mixnet_l": partial(of_timm, "mixnet_l"),
        "efficientformer_l1": partial(of_timm, "efficientformer_l1"),
        "yolox_s": lambda classes: YoloX(width=0.50, depth=1, classes=classes),
        "yolox_m": lambda classes: YoloX(width=0.75, depth=2, classes=classes),
        "yolo11l": lambda classes: Yolo11(1.0, classes),
        "yolo11x": lambda classes: Yolo11(1.5, classes),
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
    formats = {name: layer.format for name, layer in layers.items()}
    return Structure(graph, layers, frozenset(quantized_tensors(graph, formats, NUMERICS)))


def published_rows(data: Path) -> tuple[list[Row], list[str]]:
    """The usable rows of Jetsons under TensorRT in fp16 and int8, and the names of those whose network cannot be rebuilt."""
    torch.set_num_threads(1)
    table = pd.read_csv(data / "published_latency.csv")
    table = table[
        table.device.str.startswith("Jetson")
        & table.runtime.str.startswith("TensorRT")
        & table.precision.isin(["fp16", "int8"])
        & table.latency_ms.notna()
    ]
    rows, unknown = [], []
    for row in table.to_dict("records"):
        network, classes = network_name(row["model"]), re.findall(r"(\d+) classes head", str(row["note"]))
        count = int(classes[0]) if classes else 80 if network.startswith("yolo11") else 1000
        if network not in builders():
            unknown.append(f"{row['device']}: {row['model']}")
            continue
        kernels = _kernels(network, row["input"], count, row["precision"])
        rows.append(
            Row(
                board=row["device"],
                source=re.findall(r"TensorRT \((.*)\)", row["runtime"])[0],
                model=row["model"],
                network=network,
                precision=row["precision"],
                measured_ms=float(row["latency_ms"]),
                reference=row["source"],
                kernels=kernels,
            )
        )
    return rows, unknown


def float_structure(network: str, shape: str) -> Structure:
    """A network that :func:`builders` knows, untouched, with 1000 classes."""
    return structure(_graph(network, shape, 1000))


@cache
def _graph(network: str, shape: str, classes: int) -> Graph:
    return trace(builders()[network](classes).eval(), tuple(int(size) for size in shape.split("x")))


@cache
def _kernels(network: str, shape: str, classes: int, precision: str) -> tuple[Kernel, ...]:
    graph = _graph(network, shape, classes)
    return lower(structure(graph, Format(8) if precision == "int8" else None), 1)
