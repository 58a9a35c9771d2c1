"""The object detectors YOLOX (Ge et al., 2021, arXiv:2107.08430) and YOLO11 (described by Khanam and Hussain, 2024,
arXiv:2410.17725), written down from the papers to be timed, not trained.

Only their shape matters here: the output is the raw maps of three scales.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import nn


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, SiLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.SiLU()
    )


class Bottleneck(nn.Module):
    def __init__(self, width: int, shortcut: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(width, width, 1), conv(width, width, 3))
        self.shortcut = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.body(x)
        return x + y if self.shortcut else y


class Stage(nn.Module):
    """Cross-stage partial: one half of the channels goes through the bottlenecks, the other past them."""

    def __init__(self, inputs: int, outputs: int, depth: int, shortcut: bool = True) -> None:
        super().__init__()
        half = outputs // 2
        self.main, self.past = conv(inputs, half, 1), conv(inputs, half, 1)
        self.blocks = nn.Sequential(*(Bottleneck(half, shortcut) for _ in range(depth)))
        self.join = conv(2 * half, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        joined: torch.Tensor = self.join(torch.cat([self.blocks(self.main(x)), self.past(x)], 1))
        return joined


class Focus(nn.Module):
    """Every second pixel into channels, then a convolution."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.conv = conv(12, outputs, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]]
        out: torch.Tensor = self.conv(torch.cat(parts, 1))
        return out


class PyramidPool(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduce, self.join = conv(width, width // 2, 1), conv(2 * width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.reduce(x)
        pooled = [functional.max_pool2d(x, size, 1, size // 2) for size in (5, 9, 13)]
        joined: torch.Tensor = self.join(torch.cat([x, *pooled], 1))
        return joined


class Head(nn.Module):
    """Decoupled: class scores on one branch, box and objectness on the other."""

    def __init__(self, inputs: int, width: int, classes: int) -> None:
        super().__init__()
        self.stem = conv(inputs, width, 1)
        self.classify = nn.Sequential(conv(width, width, 3), conv(width, width, 3))
        self.locate = nn.Sequential(conv(width, width, 3), conv(width, width, 3))
        self.scores, self.box, self.objectness = (nn.Conv2d(width, outputs, 1) for outputs in (classes, 4, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        located = self.locate(x)
        return torch.cat([self.box(located), self.objectness(located), self.scores(self.classify(x))], 1)


class YoloX(nn.Module):
    """``width`` multiplies the channels of YOLOX-l, ``depth`` counts the bottlenecks of a short stage (l: 3)."""

    def __init__(self, width: float, depth: int, classes: int) -> None:
        super().__init__()
        c1, c2, c3, c4, c5 = (int(64 * 2**power * width) for power in range(5))
        self.stem = Focus(c1)
        self.dark2 = nn.Sequential(conv(c1, c2, 3, 2), Stage(c2, c2, depth))
        self.dark3 = nn.Sequential(conv(c2, c3, 3, 2), Stage(c3, c3, 3 * depth))
        self.dark4 = nn.Sequential(conv(c3, c4, 3, 2), Stage(c4, c4, 3 * depth))
        self.dark5 = nn.Sequential(conv(c4, c5, 3, 2), PyramidPool(c5), Stage(c5, c5, depth, shortcut=False))
        self.lateral5, self.lateral4 = conv(c5, c4, 1), conv(c4, c3, 1)
        self.up4, self.up3 = Stage(2 * c4, c4, depth, shortcut=False), Stage(2 * c3, c3, depth, shortcut=False)
        self.down3, self.down4 = conv(c3, c3, 3, 2), conv(c4, c4, 3, 2)
        self.out4, self.out5 = Stage(2 * c3, c4, depth, shortcut=False), Stage(2 * c4, c5, depth, shortcut=False)
        self.heads = nn.ModuleList(Head(inputs, c3, classes) for inputs in (c3, c4, c5))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(batch, 3, height, width) → per scale (batch, 5 + classes, height/s, width/s), s = 8, 16, 32."""
        stage3 = self.dark3(self.dark2(self.stem(x)))
        stage4 = self.dark4(stage3)
        lateral5 = self.lateral5(self.dark5(stage4))
        lateral4 = self.lateral4(self.up4(torch.cat([functional.interpolate(lateral5, scale_factor=2), stage4], 1)))
        scale3 = self.up3(torch.cat([functional.interpolate(lateral4, scale_factor=2), stage3], 1))
        scale4 = self.out4(torch.cat([self.down3(scale3), lateral4], 1))
        scale5 = self.out5(torch.cat([self.down4(scale4), lateral5], 1))
        return tuple(head(scale) for head, scale in zip(self.heads, (scale3, scale4, scale5), strict=True))


def bare(inputs: int, outputs: int, kernel: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution and batch norm, without an activation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)
    )


class Pair(nn.Module):
    """Two 3×3 convolutions around a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(width, width, 3), conv(width, width, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)  # type: ignore[no-any-return]


class InnerStage(nn.Module):
    """C3k: a cross-stage partial stage of two pairs."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.main, self.past, self.join = conv(width, half, 1), conv(width, half, 1), conv(width, width, 1)
        self.blocks = nn.Sequential(Pair(half), Pair(half))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.join(torch.cat([self.blocks(self.main(x)), self.past(x)], 1))  # type: ignore[no-any-return]


class SplitStage(nn.Module):
    """C3k2 as the larger YOLO11 have it: what every block gives goes on to the next, and to the end."""

    def __init__(self, inputs: int, outputs: int, share: float = 0.5) -> None:
        super().__init__()
        self.width = int(outputs * share)
        self.head, self.join = conv(inputs, 2 * self.width, 1), conv(4 * self.width, outputs, 1)
        self.blocks = nn.ModuleList([InnerStage(self.width), InnerStage(self.width)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = list(self.head(x).split(self.width, 1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        return self.join(torch.cat(parts, 1))  # type: ignore[no-any-return]


class FastPyramidPool(nn.Module):
    """SPPF: one small pool three times over, in place of three of growing size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduce, self.join = conv(width, width // 2, 1), conv(2 * width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [self.reduce(x)]
        for _ in range(3):
            parts.append(functional.max_pool2d(parts[-1], 5, 1, 2))
        return self.join(torch.cat(parts, 1))  # type: ignore[no-any-return]


class PositionAttention(nn.Module):
    """Attention over the positions of a map, its keys half as wide as its values, and a feed-forward part."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads, self.key = width // 64, 32
        self.qkv, self.project = bare(width, 2 * width), bare(width, width)
        self.position = bare(width, width, 3, groups=width)
        self.forward_part = nn.Sequential(conv(width, 2 * width, 1), bare(2 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, width, height, across = x.shape
        mixed = self.qkv(x).view(batch, self.heads, 2 * self.key + 64, height * across)
        query, key, value = mixed.split([self.key, self.key, 64], 2)
        weights = ((query.transpose(-2, -1) @ key) * self.key**-0.5).softmax(-1)
        seen = (value @ weights.transpose(-2, -1)).view(batch, width, height, across)
        x = x + self.project(seen + self.position(value.reshape(batch, width, height, across)))
        return x + self.forward_part(x)  # type: ignore[no-any-return]


class AttentionStage(nn.Module):
    """C2PSA: half of the channels go through two attentions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width // 2
        self.head, self.join = conv(width, width, 1), conv(width, width, 1)
        self.blocks = nn.Sequential(PositionAttention(self.width), PositionAttention(self.width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        past, main = self.head(x).split(self.width, 1)
        return self.join(torch.cat([past, self.blocks(main)], 1))  # type: ignore[no-any-return]


class SeparableHead(nn.Module):
    """Box and class scores on branches of their own, that of the classes depthwise separable."""

    def __init__(self, inputs: int, box: int, width: int, classes: int) -> None:
        super().__init__()
        self.box = nn.Sequential(conv(inputs, box, 3), conv(box, box, 3), nn.Conv2d(box, 64, 1))
        self.scores = nn.Sequential(
            *(bare(inputs, inputs, 3, inputs), nn.SiLU(), conv(inputs, width, 1)),
            *(bare(width, width, 3, width), nn.SiLU(), conv(width, width, 1)),
            nn.Conv2d(width, classes, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.box(x), self.scores(x)], 1)


class Yolo11(nn.Module):
    """``width``: 1 is YOLO11-l, with 25.3 million parameters as published, and 1.5 YOLO11-x, with 56.9."""

    def __init__(self, width: float, classes: int = 80) -> None:
        super().__init__()
        c1, c2, c3, c4 = (int(channels * width) for channels in (64, 128, 256, 512))
        self.stem = nn.Sequential(conv(3, c1, 3, 2), conv(c1, c2, 3, 2), SplitStage(c2, c3, 0.25))
        self.stage3 = nn.Sequential(conv(c3, c3, 3, 2), SplitStage(c3, c4, 0.25))
        self.stage4 = nn.Sequential(conv(c4, c4, 3, 2), SplitStage(c4, c4))
        self.stage5 = nn.Sequential(conv(c4, c4, 3, 2), SplitStage(c4, c4), FastPyramidPool(c4), AttentionStage(c4))
        self.up4, self.up3 = SplitStage(2 * c4, c4), SplitStage(2 * c4, c3)
        self.down3, self.down4 = conv(c3, c3, 3, 2), conv(c4, c4, 3, 2)
        self.out4, self.out5 = SplitStage(c3 + c4, c4), SplitStage(2 * c4, c4)
        box, scores = max(16, c3 // 4, 64), max(c3, min(classes, 100))
        self.heads = nn.ModuleList(SeparableHead(inputs, box, scores, classes) for inputs in (c3, c4, c4))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(batch, 3, height, width) → per scale (batch, 64 + classes, height/s, width/s), s = 8, 16, 32."""
        stage3 = self.stage3(self.stem(x))
        stage4 = self.stage4(stage3)
        stage5 = self.stage5(stage4)
        middle = self.up4(torch.cat([functional.interpolate(stage5, scale_factor=2), stage4], 1))
        scale3 = self.up3(torch.cat([functional.interpolate(middle, scale_factor=2), stage3], 1))
        scale4 = self.out4(torch.cat([self.down3(scale3), middle], 1))
        scale5 = self.out5(torch.cat([self.down4(scale4), stage5], 1))
        return tuple(head(scale) for head, scale in zip(self.heads, (scale3, scale4, scale5), strict=True))
