"""How shapes follow: each rule against what torch computes for the narrower tensors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as functional
from torch import nn

from autocomp.compress.shapes import SPLITS, follow, part
from autocomp.graph import Graph, Node
from autocomp.trace import Example, export_program, read_graph

Operation = Callable[..., torch.Tensor]


class One(nn.Module):
    def __init__(self, operation: Operation) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.operation(x)


class Two(One):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return self.operation(x, y)


class Three(One):
    def forward(self, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return self.operation(x, y, z)


def traced(operation: Operation, shapes: tuple[tuple[int, ...], ...]) -> Graph:
    example = Example(tuple(torch.ones(1, *shape) for shape in shapes))
    return read_graph(export_program((One, Two, Three)[len(shapes) - 1](operation).eval(), example))


#: An operation, the shapes of what it reads, and narrower ones.
CASES: dict[str, tuple[Operation, tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]] = {
    "a value each": (lambda x: x.relu() * 2, ((8, 4, 4),), ((5, 4, 4),)),
    "two tensors": (lambda x, y: x + y, ((8, 4, 4), (8, 4, 4)), ((5, 4, 4), (5, 4, 4))),
    "a gate that is spread": (lambda x, y: x * y, ((8, 4, 4), (8, 1, 1)), ((5, 4, 4), (5, 1, 1))),
    "spread from the left": (lambda x, y: x * y, ((8, 1, 1), (8, 4, 4)), ((5, 1, 1), (5, 4, 4))),
    "joined channels": (lambda x, y: torch.cat([x, y], dim=1), ((8, 4), (6, 4)), ((5, 4), (6, 4))),
    "joined elsewhere": (lambda x, y: torch.cat([x, y], dim=-1), ((8, 4), (8, 3)), ((5, 4), (5, 3))),
    "joined to itself": (lambda x: torch.cat([x, x], dim=1), ((8, 4),), ((5, 4),)),
    "flattened": (lambda x: x.flatten(1), ((8, 4, 4),), ((5, 4, 4),)),
    "flattened behind": (lambda x: x.flatten(2).transpose(1, 2), ((8, 4, 4),), ((5, 4, 4),)),
    "split into heads, open": (lambda x: x.view(x.shape[0], 6, -1, 4), ((6, 16),), ((6, 8),)),
    "split, open elsewhere": (lambda x: x.unflatten(-1, (4, -1)), ((6, 16),), ((6, 8),)),
    "split, open in front": (lambda x: x.unflatten(2, (-1, 4)), ((6, 16),), ((6, 8),)),
    "split in the middle": (lambda x: x.unflatten(1, (-1, 4)), ((16, 3),), ((8, 3),)),
    "heads joined": (lambda x: x.transpose(1, 2).reshape(x.shape[0], 6, -1), ((4, 6, 8),), ((2, 6, 8),)),
    "permuted": (lambda x: x.permute(0, 2, 3, 1), ((8, 4, 3),), ((5, 4, 3),)),
    "averaged to a vector": (lambda x: x.mean(dim=(2, 3)), ((8, 4, 4),), ((5, 4, 4),)),
    "averaged, kept": (lambda x: x.mean(dim=(2, 3), keepdim=True), ((8, 4, 4),), ((5, 4, 4),)),
    "averaged over them": (lambda x: x.mean(dim=1, keepdim=True), ((8, 4, 4),), ((5, 4, 4),)),
    "largest": (lambda x: x.amax(dim=-1), ((8, 4),), ((5, 4),)),
    "pooled": (lambda x: functional.max_pool2d(x, 2), ((8, 4, 4),), ((5, 4, 4),)),
    "pooled to one": (lambda x: functional.adaptive_avg_pool2d(x, 1), ((8, 4, 4),), ((5, 4, 4),)),
    "enlarged": (lambda x: functional.interpolate(x, scale_factor=2.0), ((8, 4, 4),), ((5, 4, 4),)),
    "padded": (lambda x: functional.pad(x, (1, 1, 0, 2)), ((8, 4, 4),), ((5, 4, 4),)),
    "a part of another dimension": (lambda x: x[:, :, 1:3], ((8, 4),), ((5, 4),)),
    "the first token": (lambda x: x[:, 0], ((6, 8),), ((6, 5),)),
    "a dimension more": (lambda x: x[:, :, None, None], ((8,),), ((5,),)),
    "products of matrices": (lambda x, y: x @ y.transpose(-2, -1), ((4, 6, 8), (4, 6, 8)), ((2, 6, 8), (2, 6, 8))),
    "a product over them": (lambda x, y: x @ y, ((6, 8), (8, 3)), ((6, 5), (5, 3))),
    "attention": (
        lambda q, k, v: functional.scaled_dot_product_attention(q, k, v),
        ((4, 6, 8), (4, 5, 8), (4, 5, 8)),
        ((2, 6, 8), (2, 5, 8), (2, 5, 8)),
    ),
    "halves": (lambda x: x.chunk(2, dim=1)[1], ((8, 4),), ((6, 4),)),
    "unequal parts": (lambda x: x.chunk(3, dim=1)[2], ((8, 4),), ((5, 4),)),
    "pieces of a size": (lambda x: x.split(3, dim=-1)[0], ((4, 9),), ((2, 9),)),
    "sizes given": (lambda x: x.split([2, 6], dim=1)[1], ((8, 4),), ((8, 3),)),
    "one of three": (lambda x: x.permute(2, 0, 1, 3).unbind(0)[1], ((4, 3, 8),), ((2, 3, 8),)),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_said_is_what_re_tracing_finds(case: str) -> None:
    operation, wide, narrow = CASES[case]
    before, after = traced(operation, wide), traced(operation, narrow)
    said: dict[str, Node] = {}
    for was, is_now in zip(before.nodes, after.nodes, strict=True):
        old, new = [before.by_name[name] for name in was.inputs], [said[name] for name in was.inputs]
        if was.op == "input":
            shape = is_now.shape
        elif was.op == "getitem" and old[0].op in SPLITS:
            source = old[0].inputs[0]
            shape = part(was, old[0], before.by_name[source].shape, said[source].shape)
        else:
            shape = follow(was, old, new)
        assert shape == is_now.shape, was.name
        said[was.name] = is_now


@pytest.mark.parametrize("case", CASES)
def test_what_stays_as_wide_keeps_its_shape(case: str) -> None:
    operation, wide, _ = CASES[case]
    graph = traced(operation, wide)
    for node in graph.nodes:
        sources = [graph.by_name[name] for name in node.inputs]
        if sources and node.op != "getitem":
            assert follow(node, sources, sources) == node.shape
