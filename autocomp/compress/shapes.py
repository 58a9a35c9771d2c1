"""How the shapes of a network follow when some of its layers become narrower, operation by operation.

A rule here says what re-tracing the narrower network would find; :func:`autocomp.compress.apply.prepare` holds the two
against each other on every model, and forbids what the rules get wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from autocomp.graph import RESHAPES, Node

Shape = tuple[int, ...]

#: Operations of several results.
SPLITS = frozenset({"chunk", "split", "split_with_sizes", "unbind"})


def follow(before: Node, sources_before: Sequence[Node], sources: Sequence[Node]) -> Shape:
    """The shape of an operation's result.

    Args:
        before: the operation in the untouched network.
        sources_before, sources: what it reads there, and in the narrower network.
    """
    old, new = [node.shape for node in sources_before], [node.shape for node in sources]
    if not before.shape or not old:
        return before.shape
    return _RULES.get(before.op, _elementwise)(before, old, new)


def _elementwise(node: Node, old: Sequence[Shape], new: Sequence[Shape]) -> Shape:
    """Every dimension is that of an input which has it, counted from the last."""
    shape = list(node.shape)
    for place in range(1, len(shape) + 1):
        for was, now in zip(old, new):
            if len(was) >= place and len(now) >= place and was[-place] == shape[-place] != now[-place]:
                shape[-place] = now[-place]
                break
    return tuple(shape)


def _permutation(node: Node, old: Sequence[Shape], new: Sequence[Shape]) -> Shape:
    rank = len(new[0])
    order = list(range(rank))
    numbers = [number % rank for number in node.numbers]
    if node.op == "permute":
        order = numbers
    else:
        first, second = numbers[:2]
        order[first], order[second] = second, first
    return tuple(new[0][place] for place in order)


def _joined(node: Node, old: Sequence[Shape], new: Sequence[Shape]) -> Shape:
    dim = (node.numbers[-1] if node.numbers else 0) % len(node.shape)
    # A tensor that is joined to itself is one input.
    times = node.shape[dim] // sum(shape[dim] for shape in old) if len(old) == 1 else 1
    shape = list(new[0])
    shape[dim] = times * sum(one[dim] for one in new)
    return tuple(shape)


def _reshaped(node: Node, old: Sequence[Shape], new: Sequence[Shape]) -> Shape:
    """Dimensions that are merged or split together shrink together; of those that share, the one that was left open
    (-1), or else the last that can."""
    sizes = node.numbers
    if node.op == "unflatten":
        first = unflattened(node)
        sizes = (*node.shape[:first], *node.numbers[1:], *node.shape[first + len(node.numbers) - 1 :])
    left_open = {
        place
        for place, size in enumerate(sizes if len(sizes) == len(node.shape) else ())
        if size == -1 and node.shape[place] > 0
    }
    shape = list(node.shape)
    for ins, outs in _aligned(old[0], node.shape):
        was, now = _product(old[0], ins), _product(new[0], ins)
        if was == now:
            continue
        able = [place for place in outs if abs(shape[place]) * now % was == 0 and abs(shape[place]) > 1]
        chosen = next((place for place in outs if place in left_open), able[-1] if able else outs[-1])
        shape[chosen] = shape[chosen] * now // was
    return tuple(shape)


def unflattened(node: Node) -> int:
    """The first of the dimensions that an ``unflatten`` makes, counted from the front."""
    return node.numbers[0] % (len(node.shape) - len(node.numbers) + 2)


def _product(shape: Shape, places: Sequence[int]) -> int:
    return math.prod(abs(shape[place]) for place in places)


def _aligned(left: Shape, right: Shape) -> list[tuple[list[int], list[int]]]:
    """The shortest runs of dimensions of two shapes that hold equally many elements."""
    runs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(left) or j < len(right):
        ins: list[int] = []
        outs: list[int] = []
        a = b = 1
        while True:
            if a <= b and i < len(left) and (a < b or not ins or not outs or abs(left[i]) == 1):
                ins.append(i)
                a, i = a * abs(left[i]), i + 1
            elif j < len(right) and (b < a or not outs or abs(right[j]) == 1):
                outs.append(j)
                b, j = b * abs(right[j]), j + 1
            else:
                break
        if not ins and not outs:
            break
        runs.append((ins, outs))
    return runs


def part(node: Node, split: Node, old: Shape, new: Shape) -> Shape:
    """The shape of one of the parts that ``split`` gives, ``node``, where what is split was ``old`` and is ``new``."""
    if old == new:
        return node.shape
    index = node.numbers[0]
    if split.op == "unbind":
        dim = (split.numbers[0] if split.numbers else 0) % len(new)
        return (*new[:dim], *new[dim + 1 :])
    numbers, shape = split.numbers, list(new)
    if len(numbers) > 2 and sum(numbers[:-1]) == old[numbers[-1] % len(old)]:  # a size for every part, then where
        dim = numbers[-1] % len(new)
        shape[dim] = node.shape[dim]
        return tuple(shape)
    dim = (numbers[1] if len(numbers) > 1 else 0) % len(new)
    parts = numbers[0] if split.op == "chunk" else math.ceil(old[dim] / numbers[0])
    size = math.ceil(new[dim] / parts)
    shape[dim] = min(size, new[dim] - index * size)
    return tuple(shape)


def _reduced(node: Node, old: Sequence[Shape], new: Sequence[Shape]) -> Shape:
    rank = len(old[0])
    dims = {number % rank for number in node.numbers} or set(range(rank))
    if len(node.shape) == rank:
        return tuple(1 if dim in dims else size for dim, size in enumerate(new[0]))
    return tuple(size for dim, size in enumerate(new[0]) if dim not in dims)


def _pooled(node: Node, old: Sequence[Shape], new: Sequence[Shape]) -> Shape:
    """Pools and resizings work on the last two dimensions and keep the others."""
    return (*new[0][:-2], *node.shape[-2:])


def _padded(node: Node, old: Sequence[Shape], new: Sequence[Shape]) -> Shape:
    return tuple(now + size - was for was, now, size in zip(old[0], new[0], node.shape, strict=True))


def _sliced(node: Node, old: Sequence[Shape], new: Sequence[Shape]) -> Shape:
    """A part of one dimension; a part that was all of it stays all of it."""
    dim = node.numbers[0] if node.numbers else 0
    shape = list(new[0])
    if node.shape[dim] != old[0][dim]:
        shape[dim] = node.shape[dim]
    return tuple(shape)


def _selected(node: Node, old: Sequence[Shape], new: Sequence[Shape]) -> Shape:
    dim = node.numbers[0] % len(new[0])
    return (*new[0][:dim], *new[0][dim + 1 :])


def _product_of_matrices(node: Node, old: Sequence[Shape], new: Sequence[Shape]) -> Shape:
    if len(new) < 2 or min(len(new[0]), len(new[1])) < 2:
        return _elementwise(node, old, new)
    batches = _elementwise(replace(node, shape=node.shape[:-2]), [s[:-2] for s in old], [s[:-2] for s in new])
    return (*batches, new[0][-2], new[1][-1])


def _attention(node: Node, old: Sequence[Shape], new: Sequence[Shape]) -> Shape:
    value = new[2] if len(new) > 2 else new[-1]
    return (*new[0][:-1], value[-1])


_RULES: dict[str, Callable[[Node, Sequence[Shape], Sequence[Shape]], Shape]] = {
    **dict.fromkeys(RESHAPES, _reshaped),
    **dict.fromkeys(("transpose", "permute"), _permutation),
    **dict.fromkeys(("cat", "concat", "concatenate"), _joined),
    **dict.fromkeys(("mean", "sum", "amax", "amin"), _reduced),
    **dict.fromkeys(("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d"), _pooled),
    **dict.fromkeys(("upsample_nearest2d", "upsample_bilinear2d"), _pooled),
    **dict.fromkeys(("pad", "constant_pad_nd"), _padded),
    **dict.fromkeys(("matmul", "bmm"), _product_of_matrices),
    "scaled_dot_product_attention": _attention,
    "slice": _sliced,
    "select": _selected,
}
