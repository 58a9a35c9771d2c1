"""Short names for what is inside a file."""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterator

from onnx import GraphProto, ModelProto, NodeProto

from autocomp.export.opsets import leave_out_defaults


def shorten(model: ModelProto) -> dict[str, str]:
    """Give every value inside the graph a short name, and drop what only a reader of the file would miss.

    Returns:
        Old name → short name.
    """
    graph = model.graph
    del graph.value_info[:]
    del graph.metadata_props[:]
    del model.metadata_props[:]
    graph.ClearField("doc_string")
    graph.name = "g"
    kept = {value.name for value in (*graph.input, *graph.output)} | {""}
    free = (name for name in map(_short_name, itertools.count()) if name not in kept)
    short: dict[str, str] = {}

    def rename(name: str) -> str:
        if name not in kept and name not in short:
            short[name] = next(free)
        return short.get(name, name)

    for tensor in graph.initializer:
        tensor.name = rename(tensor.name)
        tensor.ClearField("doc_string")
        del tensor.metadata_props[:]
    for node in _nodes_of(graph):
        node.input[:] = [rename(name) for name in node.input]
        node.output[:] = [rename(name) for name in node.output]
        node.ClearField("name")
        node.ClearField("doc_string")
        del node.metadata_props[:]
        leave_out_defaults(node)
    for inner in _bodies(graph):
        del inner.value_info[:]
        for value in (*inner.input, *inner.output, *inner.initializer):
            value.name = rename(value.name)
    for value in (*graph.input, *graph.output):
        value.ClearField("doc_string")
        del value.metadata_props[:]
    model.producer_name = "autocomp"
    model.ClearField("producer_version")
    model.ClearField("doc_string")
    return short


def _bodies(graph: GraphProto) -> Iterator[GraphProto]:
    """The graphs inside a graph, branches and loops, whose names are seen from each other."""
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield inner
                yield from _bodies(inner)


def _nodes_of(graph: GraphProto) -> Iterator[NodeProto]:
    """All nodes of a graph and of those inside it."""
    yield from graph.node
    for inner in _bodies(graph):
        yield from inner.node


def _short_name(number: int) -> str:
    """a, b, …, Z, aa, ba, …: names of C, as ONNX wants them."""
    letters = string.ascii_letters
    number, first = divmod(number, len(letters))
    others = ""
    while number:
        number, other = divmod(number - 1, len(letters + string.digits))
        others += (letters + string.digits)[other]
    return letters[first] + others
