"""Attention heads: found in the traced graph, and cut there.

A head is some rows of the linears that make queries, keys and values, and the columns of the linear behind that read
what the head gives. Which ones is not guessed from names: indices are sent through the very reshapes and permutations
that stand between the linears and ``scaled_dot_product_attention``. What is found is believed only where the network
without some heads computes what the original does with the same heads masked.
(P. Michel et al., "Are sixteen heads really better than one?", 2019.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch

from autocomp.compress.agreement import agree, failing, shake
from autocomp.errors import CompressionError, first_line
from autocomp.fx_nodes import operator_name
from autocomp.graph import ATTENTION, Graph
from autocomp.inventory import ChannelGroup
from autocomp.trace import copied

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

#: What only moves values, so that indices can be sent through it.
MOVES = frozenset(
    {
        *("view", "reshape", "_unsafe_view", "unflatten", "flatten", "transpose", "permute", "contiguous", "clone"),
        *("unbind", "select", "getitem", "chunk", "split", "squeeze", "unsqueeze", "dropout", "slice", "expand"),
    }
)
#: Moves whose sizes stand among their arguments: operator → the argument.
SIZED = {"view": 1, "reshape": 1, "_unsafe_view": 1, "unflatten": 2, "expand": 1}

TRIAL_SHARES = (0.25, 0.5)


@dataclass(frozen=True)
class Heads:
    """One attention: its group (a unit is a head), rows per head of each producer, columns per head of the consumer."""

    group: ChannelGroup
    rows: Mapping[str, tuple[tuple[int, ...], ...]]
    columns: Mapping[str, tuple[tuple[int, ...], ...]]


HeadCut = tuple[Heads, Sequence[int]]


class _UnclearError(Exception):
    """Why heads cannot be followed, in words."""


def find_heads(module: GraphModule, graph: Graph, inputs: tuple[torch.Tensor, ...]) -> tuple[Heads, ...]:
    """Every attention that has linears around it, each checked; those whose heads cannot be cut carry the reason.

    Args:
        module: of :func:`autocomp.trace.graph_module`, traced from the folded model; left as it is.
        graph: its facts.
        inputs: a batch of two examples.
    """
    attentions = [node for node in module.graph.nodes if operator_name_of(node) == ATTENTION]
    if not attentions:
        return ()
    values = _values(module, inputs)
    used = Counter(node.layer for node in graph.layers)
    found = []
    for node in attentions:
        try:
            found.append(_heads(node, graph, values, used))
        except _UnclearError as unclear:
            found.append(Heads(ChannelGroup(node.name, 0, (), {}, str(unclear), pattern="head"), {}, {}))
    open_ones = [one for one in found if one.group.prunable]
    shaken = shake(module)
    bad = failing(open_ones, lambda some: _why_not(some, shaken, inputs))
    return tuple(
        replace(one, group=replace(one.group, reason=bad[id(one)])) if id(one) in bad else one for one in found
    )


def operator_name_of(node: Node) -> str:
    return operator_name(node) if node.op == "call_function" else ""


def _values(module: GraphModule, inputs: tuple[torch.Tensor, ...]) -> dict[Node, object]:
    """What every node gives that is no tensor (sizes), and the shapes of those that are."""

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: Node) -> object:
            result: object = super().run_node(n)
            seen[n] = tuple(result.shape) if isinstance(result, torch.Tensor) else result
            return result

    seen: dict[Node, object] = {}
    with torch.no_grad():
        Recorder(module).run(*inputs)
    return seen


def _heads(attention: Node, graph: Graph, values: Mapping[Node, object], used: Counter[str | None]) -> Heads:
    shapes = [cast("tuple[int, ...]", values[cast("Node", source)]) for source in attention.args[:3]]
    if any(len(shape) != 4 for shape in shapes) or len({shape[1] for shape in shapes}) > 1:
        raise _UnclearError("queries, keys and values are not (batch, heads, tokens, width) with one number of heads")
    count = shapes[0][1]
    if count < 2:
        raise _UnclearError("it has a single head")
    bias = attention.args[3] if len(attention.args) > 3 else attention.kwargs.get("attn_mask")
    bias_shape = () if bias is None else cast("tuple[int, ...]", values[cast("Node", bias)])
    if len(bias_shape) == 4 and bias_shape[1] > 1:
        raise _UnclearError("its attention bias has a row a head")
    rows: dict[str, list[set[int]]] = {}
    sizes: dict[tuple[str, int, int], None] = {}
    paths = [_back(cast("Node", source)) for source in attention.args[:3]]
    widths = [cast("tuple[int, ...]", values[path[0]])[-1] for path in paths]
    for path, width in zip(paths, widths, strict=True):
        layer = _layer(path[0], graph, used)
        labels = _sent(path, _labels(values[path[0]], width, -1), values)[path[-1]]
        for head in range(count):
            rows.setdefault(layer, [set() for _ in range(count)])[head] |= {*labels[:, head].flatten().tolist()}
    for path, width in zip(paths, widths, strict=True):
        owner = torch.full((width,), -1)
        for head, own in enumerate(rows[_layer(path[0], graph, used)]):
            if (owner[list(own)] >= 0).any():
                raise _UnclearError("its heads share rows")
            owner[list(own)] = head
        sizes |= dict.fromkeys(_sizes(path, _sent(path, owner[_labels(values[path[0]], width, -1)], values), count))
    path = _forward(attention)
    consumer = _layer(path[-1], graph, used)
    sent = _sent(path[:-1], _labels(values[attention], count, 1), values)
    sizes |= dict.fromkeys(_sizes(path[:-1], sent, count))
    last = sent[path[-2]]
    by_column = last.flatten(0, -2).T
    if (by_column != by_column[:, :1]).any():
        raise _UnclearError("the linear behind it reads several heads in one column")
    columns = [tuple((by_column[:, 0] == head).nonzero().flatten().tolist()) for head in range(count)]
    units = {len(own) for table in rows.values() for own in table}
    if len(units) > 1 or len({len(own) for own in columns}) > 1:
        raise _UnclearError("its heads are of different sizes")
    names = tuple(node.layer for node in graph.layers if node.layer is not None and node.layer in rows)
    group = ChannelGroup(
        name=names[0],
        width=count,
        producers=names,
        consumers={consumer: len(columns[0])},
        unit=units.pop(),
        pattern="head",
        sizes=tuple(sizes),
    )
    by_layer = {name: tuple(tuple(sorted(own)) for own in table) for name, table in rows.items()}
    return Heads(group, by_layer, {consumer: tuple(columns)})


def _labels(shape: object, count: int, dim: int) -> torch.Tensor:
    """A tensor of the shape that holds its own index along a dimension."""
    sizes = cast("tuple[int, ...]", shape)
    view = [1] * len(sizes)
    view[dim] = count
    return torch.arange(count).view(view).expand(sizes)


def _layer(node: Node, graph: Graph, used: Counter[str | None]) -> str:
    fact = graph.by_name.get(node.name)
    if fact is None or fact.op != "linear" or fact.layer is None or used[fact.layer] > 1:
        raise _UnclearError("there is no linear of its own before or behind it")
    return fact.layer


def _back(node: Node) -> list[Node]:
    """From the linear to ``node``, over moves."""
    path = [node]
    while operator_name_of(path[0]) != "linear":
        if operator_name_of(path[0]) not in MOVES:
            raise _UnclearError(f"{operator_name_of(path[0]) or 'an input'} stands between its linears and it")
        path.insert(0, cast("Node", path[0].args[0]))
    return path


def _forward(node: Node) -> list[Node]:
    """From the attention to the linear behind it, over moves."""
    path = [node]
    while len(path) == 1 or operator_name_of(path[-1]) != "linear":
        if len(path[-1].users) != 1:
            raise _UnclearError("what it gives is read several times")
        following = next(iter(path[-1].users))
        if operator_name_of(following) not in MOVES | {"linear"}:
            raise _UnclearError(
                f"{operator_name_of(following) or 'the output'} stands between it and the linear behind"
            )
        path.append(following)
    return path


def _sent(path: Sequence[Node], start: torch.Tensor, values: Mapping[Node, object]) -> dict[Node, torch.Tensor]:
    """What the nodes of a path give when its first one gives ``start``."""
    found: dict[Node, torch.Tensor] = {path[0]: start}
    for node in path[1:]:
        given = cast("Any", torch.fx.map_arg(node.args, lambda n: cast("Any", found.get(n, values[n]))))
        try:
            # How the attention's own result lies in memory is the kernel's business: a view of it may be a copy here.
            move: Any = torch.reshape if operator_name_of(node) in {"view", "_unsafe_view"} else node.target
            found[node] = move(*given, **node.kwargs)
        except (RuntimeError, TypeError, IndexError) as error:
            raise _UnclearError(f"heads cannot be sent through {node.name}: {first_line(error)[:80]}") from error
    return found


def _sizes(path: Sequence[Node], heads: Mapping[Node, torch.Tensor], count: int) -> Iterable[tuple[str, int, int]]:
    """The sizes on a path that count heads, where ``heads`` says which head every value belongs to."""
    for node in path[1:]:
        place = SIZED.get(operator_name_of(node))
        if place is None:
            continue
        given = cast("Sequence[object]", node.args[place])
        result = heads[node]
        first = result.dim() - len(given)
        if operator_name_of(node) == "unflatten":
            first = cast("int", node.args[1]) % (first + 1)
        for position, size in enumerate(given):
            dim = first + position
            along = result.movedim(dim, 0)
            varies = bool((along != along[:1]).any())
            if varies and size != -1:
                if not isinstance(size, int) or size % count:
                    raise _UnclearError(f"heads and other dimensions are one in {node.name}")
                yield node.name, position, size // count


def cut_heads(module: GraphModule, cuts: Iterable[HeadCut]) -> None:
    """Take heads out of a traced model, in place. The model has to be traced again for its shapes to be known.

    Raises:
        CompressionError: the graph is not the one that the heads were found in.
    """
    nodes = {node.name: node for node in module.graph.nodes}
    for heads, gone in cuts:
        for layer, table in heads.rows.items():
            _slice(module, layer, 0, {index for head in gone for index in table[head]})
        for layer, table in heads.columns.items():
            _slice(module, layer, 1, {index for head in gone for index in table[head]})
        for name, position, each in heads.group.sizes:
            if name not in nodes or operator_name_of(nodes[name]) not in SIZED:
                raise CompressionError(f"the compressed model must have the node {name!r} that heads are counted in")
            node, place = nodes[name], SIZED[operator_name_of(nodes[name])]
            sizes = list(cast("Sequence[int]", node.args[place]))
            sizes[position] -= each * len(gone)
            node.args = (*node.args[:place], sizes, *node.args[place + 1 :])
    module.recompile()


def _slice(module: GraphModule, layer: str, dim: int, gone: set[int]) -> None:
    """Where a low-rank pair has taken a layer's place, its first half loses inputs and its second outputs."""
    owner = module.get_submodule(layer)
    if getattr(owner, "weight", None) is None:
        owner = module.get_submodule(f"{layer}.{1 - dim}")
    weight = owner.get_parameter("weight")
    stay = torch.tensor([index for index in range(weight.shape[dim]) if index not in gone])
    owner.weight = torch.nn.Parameter(weight.detach().index_select(dim, stay), requires_grad=False)
    bias = getattr(owner, "bias", None)
    if dim == 0 and isinstance(bias, torch.Tensor):
        owner.bias = torch.nn.Parameter(bias.detach().index_select(0, stay), requires_grad=False)


def mask_heads(module: GraphModule, cuts: Iterable[HeadCut]) -> None:
    """Zero what the linear behind reads of some heads, in place: what cutting them must equal."""
    with torch.no_grad():
        for heads, gone in cuts:
            for layer, table in heads.columns.items():
                indices = torch.tensor([index for head in gone for index in table[head]])
                module.get_parameter(f"{layer}.weight").index_fill_(1, indices, 0)


def _why_not(some: Sequence[Heads], module: GraphModule, inputs: tuple[torch.Tensor, ...]) -> str | None:
    generator = torch.Generator().manual_seed(len(some))
    for share in TRIAL_SHARES:
        cuts = [
            (one, torch.randperm(one.group.width, generator=generator)[: max(1, int(one.group.width * share))].tolist())
            for one in some
        ]
        masked, pruned = copied(module), copied(module)
        try:
            mask_heads(masked, cuts)
            cut_heads(pruned, cuts)
            with torch.no_grad():
                expected, actual = masked(*inputs), pruned(*inputs)
        except (RuntimeError, ValueError, IndexError, TypeError, AttributeError, CompressionError) as error:
            return f"the network without some heads does not run ({first_line(error)[:120]})"
        if not agree(expected, actual):
            return "the network without some heads differs from the one with these masked"
    return None


def choose_heads(heads: Heads, kept: int, scores: Callable[[str], torch.Tensor]) -> list[int]:
    """The heads to cut so that ``kept`` stay: those whose weights, over rows and columns, have the least scores together;
    sorted.

    Args:
        scores: layer → a score for each of its weights, of the weight's shape.
    """
    total = torch.zeros(heads.group.width, dtype=torch.float64)
    for dim, tables in enumerate((heads.rows, heads.columns)):
        for layer, table in tables.items():
            total += scores(layer).double().sum(dim=1 - dim)[torch.tensor(table)].sum(dim=1)
    return sorted(total.sort(stable=True).indices[: heads.group.width - kept].tolist())
