"""A task as a user writes it: a small residual net, scored by how often it gives the label that it was made for."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from autocomp import Metric, Score, Task
from autocomp.task import Predict, Split

CLASSES = 5
WIDTH = 32


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, WIDTH, 3, padding=1)
        self.conv1 = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.conv2 = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.conv2(torch.relu(self.conv1(x))))
        result: torch.Tensor = self.head(x.mean(dim=(2, 3)))
        return result


def made() -> tuple[Net, torch.Tensor, torch.Tensor]:
    """The net, and images with their labels: what the net says of them, but for every tenth."""
    generator = torch.Generator().manual_seed(7)
    net = Net().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            fan_in = parameter[0].numel()
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (2 / fan_in) ** 0.5)
        images = torch.randn(240, 1, 8, 8, generator=generator) * torch.rand(240, 1, 1, 1, generator=generator) * 2
        net.head.bias.sub_(net(images).mean(dim=0))  # so that no class takes all
        labels = net(images).argmax(dim=1)
    labels[::10] = (labels[::10] + 1) % CLASSES
    return net, images, labels


def evaluate_on(images: torch.Tensor, labels: torch.Tensor) -> Callable[..., Score]:
    parts = {"search": slice(0, 100), "test": slice(100, 200)}

    def evaluate(predict: Predict, split: Split, fraction: float = 1.0) -> Score:
        right = (predict(images[parts[split]]).argmax(dim=1) == labels[parts[split]]).numpy().astype(np.float64)
        return Score(100 * float(right.mean()), right)

    return evaluate


def task() -> Task:
    net, images, labels = made()
    return Task("small", net, (images[:1],), [(images[200:],)], evaluate_on(images, labels), Metric("accuracy"))


def nan_task() -> Task:
    """Its score is not a number."""
    net, images, _ = made()
    return Task("nan", net, (images[:1],), [(images[200:],)], lambda predict, split, fraction=1.0: Score(float("nan")))


def raising_task() -> Task:
    """Cannot be scored once a weight is zero."""
    net, images, labels = made()
    score = evaluate_on(images, labels)

    def evaluate(predict: Predict, split: Split, fraction: float = 1.0) -> Score:
        if isinstance(predict, nn.Module) and any((p == 0).any() for p in predict.parameters() if p.dim() > 1):
            raise AssertionError("a weight\nis zero")
        return score(predict, split)

    return Task("raising", net, (images[:1],), [(images[200:],)], evaluate)
