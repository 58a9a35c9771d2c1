"""Small seeded networks that the tests share: one for every way in which channels are coupled."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as functional
from torch import nn

from autocomp.compress.apply import Compressed, Prepared, apply, prepare
from autocomp.export.to_onnx import export_onnx
from autocomp.inventory import Inventory
from autocomp.plan import WEIGHT_BITS, Format, LayerPlan, Plan, Rank, Sparsity

#: On layers this small a second thread is no help, and on a busy machine each of them waits for it.
torch.set_num_threads(1)

SIZE = 8
CLASSES = 5


class Block(nn.Module):
    """Two 3×3 convs around a shortcut: itself, or a 1×1 conv where the shape changes."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class PaddedBlock(nn.Module):
    """Option A of He et al. (2016): a strided slice whose missing channels are zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.missing = outputs - inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        short = x
        if self.stride > 1 or self.missing:
            half = self.missing // 2
            short = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.missing - half))
        return functional.relu(y + short)


class Head(nn.Module):
    """Global average and a linear."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.linear(x.mean(dim=(2, 3)))
        return result


def plain() -> nn.Module:
    """Convs of odd widths, a window pool, and two linears behind a flatten."""
    return ready(
        nn.Sequential(
            nn.Conv2d(3, 12, 3, padding=1),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Conv2d(12, 20, 3, padding=1, bias=False),
            nn.BatchNorm2d(20),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(20, 16, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * (SIZE // 2) ** 2, 24),
            nn.ReLU(),
            nn.Linear(24, CLASSES),
        ),
        seed=1,
    )


def residual() -> nn.Module:
    """A stem, an identity shortcut and two of 1×1 convs."""
    stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    return ready(
        nn.Sequential(stem, Block(16, 12, 16, 1), Block(16, 24, 24, 2), Block(24, 32, 32, 2), Head(32)), seed=2
    )


def option_a() -> nn.Module:
    """The CIFAR ResNets' form: only the inside of a block is free."""
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    return ready(
        nn.Sequential(stem, PaddedBlock(8, 8, 1), PaddedBlock(8, 16, 2), PaddedBlock(16, 16, 1), Head(16)), seed=3
    )


def mlp() -> nn.Module:
    """Linears alone, one with a batch norm."""
    return ready(
        nn.Sequential(
            nn.Linear(20, 32),
            nn.BatchNorm1d(32),
            nn.ReLU(),
            nn.Linear(32, 24, bias=False),
            nn.ReLU(),
            nn.Linear(24, CLASSES),
        ),
        seed=4,
    )


def separable() -> nn.Module:
    """Depthwise 3×3 and pointwise 1×1 convs, as in MobileNets."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()]
    for inputs, outputs, stride in ((16, 24, 1), (24, 32, 2)):
        layers += [
            nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
            nn.BatchNorm2d(inputs),
            nn.ReLU6(),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU6(),
        ]
    return ready(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES)), seed=5)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": plain,
    "residual": residual,
    "option_a": option_a,
    "mlp": mlp,
    "separable": separable,
}


def images(network: str, count: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Standard normal inputs of a network: (count, 3, size, size), or (count, 20) for the MLP."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 20) if network == "mlp" else (count, 3, SIZE, SIZE)
    return (torch.randn(*shape, generator=generator),)


@cache
def prepared(network: str) -> Prepared:
    """A network ready to be compressed; shared between tests, which leave it as it is."""
    return prepare(NETWORKS[network](), images(network, 1))


@cache
def compressed(network: str, plan: Plan) -> Compressed:
    """Calibrated on two batches of 16."""
    return apply(prepared(network), plan, [images(network, 16, seed=100), images(network, 16, seed=101)])


@cache
def exported(network: str, plan: Plan, packed: bool) -> bytes:
    return export_onnx(compressed(network, plan), packed)


def uniform_plan(network: str, **choice: Sparsity | Rank | Format) -> Plan:
    """The same choice for every layer."""
    return Plan({layer.name: LayerPlan(**choice) for layer in prepared(network).inventory.layers})  # type: ignore[arg-type]


def random_plan(inventory: Inventory, seed: int, formats: bool = True) -> Plan:
    """Every method in some layers: ranks that pay, channels or single weights cut, 8, 4 and 2 bits."""
    chance = random.Random(seed)
    sparsity = {
        name: Sparsity("channel", level)
        for group in inventory.groups
        if group.prunable and (level := chance.choice([0.0, 0.25, 0.5, 0.7]))
        for name in group.producers
    }
    plans = {}
    for layer in inventory.layers:
        cut = sparsity.get(layer.name)
        if cut is None and chance.random() < 0.4:
            cut = Sparsity("unstructured", chance.choice([0.3, 0.6, 0.9]))
        rank = None
        if layer.largest_paying_rank and chance.random() < 0.3:
            rank = Rank("svd", chance.randint(1, layer.largest_paying_rank))
        chosen = Format(chance.choice(WEIGHT_BITS)) if formats and chance.random() < 0.6 else None
        plans[layer.name] = LayerPlan(cut, rank, chosen)
    return Plan(plans)


def ready(model: nn.Module, seed: int) -> nn.Module:
    """Seeded weights, and batch norms that have statistics of their own, in eval mode."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, like: torch.Tensor) -> torch.Tensor:
        return low + (high - low) * torch.rand(like.shape, generator=generator)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                fan_in = module.weight[0].numel()
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * (2 / fan_in) ** 0.5)
                if module.bias is not None:
                    module.bias.copy_(uniform(-0.2, 0.2, module.bias))
            elif isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)):
                module.weight.copy_(uniform(0.5, 1.5, module.weight))
                module.bias.copy_(uniform(-0.3, 0.3, module.bias))
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.copy_(uniform(-0.3, 0.3, module.running_mean))
                module.running_var.copy_(uniform(0.5, 1.5, module.running_var))
    return model.eval()
