"""A compiled graph joined with its profile: what each node was, and how long it took.

Pure functions over an ONNX graph and profile events; nothing here runs a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from autocomp.errors import MeasurementError

if TYPE_CHECKING:
    import onnx

Shape = tuple[int, ...]
Layout = Literal["nchw", "nhwc", "nchwc"]

#: Where an operator takes its weight, by its position among the inputs.
_WEIGHT_INPUT = {
    **dict.fromkeys(("Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "ConvInteger"), 1),
    **dict.fromkeys(("Gemm", "FusedGemm", "MatMul", "FusedMatMul", "MatMulInteger", "MatMulNBits"), 1),
    **dict.fromkeys(("MatMulIntegerToFloat", "DynamicQuantizeMatMul"), 1),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul", "QGemm"), 3),
}
#: Operators whose fourth input, where there is one, is added to the result.
_ADDS_FOURTH_INPUT = ("Conv", "FusedConv", "NhwcFusedConv")
_DTYPE_NAMES = {"float": "float32", "double": "float64"}  # the profiler's words for what numpy calls otherwise
_NCHWC_DOMAIN = "com.microsoft.nchwc"


@dataclass(frozen=True)
class OptimizedNode:
    """A node of the graph that the runtime compiled. ``domain`` is empty for standard ONNX operators."""

    op: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class NodeTime:
    """One node of the compiled graph, with what its kernel's time depends on.

    All shapes are in NCHW order; ``layout`` says how the kernel's result truly lies in memory, ``input_layout`` how the
    first input that is not constant does. ``nchwc`` (channels in blocks) has its channels padded to whole blocks, and so
    have the shapes. ``input_shapes`` counts every input that is there, initializers too. ``weight_shape`` is (out, in /
    group, kernel…) for convolutions and (in, out) for matrix products, however the weight is stored; None where there is
    no constant weight. ``dtype`` is that of the first input that is not constant, in numpy's words. ``time_us`` is the
    mean of the lower half of ``runs`` times.
    """

    op: str
    domain: str
    name: str
    dtype: str
    layout: Layout
    input_layout: Layout
    input_shapes: tuple[Shape, ...]
    output_shapes: tuple[Shape, ...]
    weight_shape: Shape | None
    kernel: Shape
    strides: Shape
    group: int
    activation: str | None
    fused_add: bool
    time_us: float
    runs: int


@dataclass(frozen=True)
class NodeEvents:
    """What the profiler said about one node: microseconds per run, and its outputs' types and shapes."""

    times_us: tuple[float, ...]
    outputs: tuple[tuple[str, Shape], ...]


@dataclass(frozen=True)
class _Tensor:
    dtype: str
    shape: Shape


def optimized_nodes(graph: onnx.GraphProto) -> tuple[OptimizedNode, ...]:
    """The nodes of ``graph``, in its order."""
    return tuple(
        OptimizedNode(node.op_type, node.domain, node.name, tuple(node.input), tuple(node.output))
        for node in graph.node
    )


def name_nodes(model: onnx.ModelProto) -> bool:
    """Gives every node that has no name of its own a new one, in place; True where one had to be given.

    The profiler knows nodes by name only. Local functions and subgraphs are named too.
    """
    taken: set[str] = set()
    changed = False
    for node in [*_all_nodes(model.graph.node), *(n for f in model.functions for n in _all_nodes(f.node))]:
        if not node.name or node.name in taken:
            stem = node.name or node.op_type
            node.name = next(name for n in range(len(taken) + 1) if (name := f"{stem}_n{n}") not in taken)
            changed = True
        taken.add(node.name)
    return changed


def join(
    graph: onnx.GraphProto, events: Mapping[str, NodeEvents], inputs: Mapping[str, tuple[str, Shape]]
) -> tuple[NodeTime, ...]:
    """Every node of the compiled ``graph`` with its time, in the graph's order.

    ``inputs`` are the dtype and shape of what the model was run on. Weight shapes come from the graph's initializers:
    the profiler leaves out weights that the kernel has packed for itself.

    Raises:
        MeasurementError: graph and profile are not of the same nodes.
    """
    nodes = list(graph.node)
    inner = {node.name for node in _all_nodes(nodes)} - {node.name for node in nodes}
    odd = sorted((set(events) - inner) ^ {node.name for node in nodes})
    if odd:
        raise MeasurementError(
            f"the profile must name the compiled graph's nodes; {odd[0]!r} ({len(odd)} in all) is in only one of the "
            "two; give the model's nodes unique names"
        )
    tensors, constants = _tensors(graph, events, inputs)
    layouts = _layouts(nodes, tensors, constants)
    return tuple(_node_time(node, events[node.name], tensors, constants, layouts) for node in nodes)


def lower_half_mean(times: Sequence[float]) -> float:
    """The mean of the lower half of ``times``: neighbours only ever make a run slower."""
    lower = sorted(times)[: (len(times) + 1) // 2]
    return sum(lower) / len(lower)


def _all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterable[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in [attribute.g, *attribute.graphs]:
                yield from _all_nodes(graph.node)


def _tensors(
    graph: onnx.GraphProto, events: Mapping[str, NodeEvents], inputs: Mapping[str, tuple[str, Shape]]
) -> tuple[dict[str, _Tensor], set[str]]:
    """Every tensor's type and shape as the runtime has it, and the names of those that depend on initializers only."""
    from onnx import helper

    tensors = {name: _Tensor(*given) for name, given in inputs.items()}
    constants: set[str] = set()
    for tensor in graph.initializer:
        tensors[tensor.name] = _Tensor(helper.tensor_dtype_to_np_dtype(tensor.data_type).name, tuple(tensor.dims))
        constants.add(tensor.name)
    for node in graph.node:
        present = [name for name in node.output if name]
        outputs = events[node.name].outputs
        if len(present) == len(outputs):  # the profiler leaves out what is not a tensor
            for name, (dtype, shape) in zip(present, outputs, strict=True):
                tensors[name] = _Tensor(_DTYPE_NAMES.get(dtype, dtype), shape)
        if all(name in constants for name in node.input if name):
            constants.update(present)
    return tensors, constants


def _layouts(nodes: Sequence[onnx.NodeProto], tensors: Mapping[str, _Tensor], constants: set[str]) -> dict[str, Layout]:
    """The tensors that do not lie in NCHW order.

    Only some operators say so; the layout is carried on from them, both ways, through operators that keep it.
    """
    layouts: dict[str, Layout] = {}

    def spread(names: Iterable[str], layout: Layout) -> bool:
        new = [n for n in names if n in tensors and len(tensors[n].shape) >= 3 and n not in constants | set(layouts)]
        layouts.update(dict.fromkeys(new, layout))
        return bool(new)

    for node in nodes:
        if _attribute_int(node, "channels_last", 0) or node.op_type.startswith("Nhwc"):
            spread([*node.output] if node.op_type.startswith("Reorder") else [*node.input, *node.output], "nhwc")
        elif node.domain == _NCHWC_DOMAIN and node.op_type != "ReorderOutput":
            spread(node.output, "nchwc")
    keeping = [node for node in nodes if _keeps_layout(node, tensors)]
    changed = True
    while changed:
        changed = False
        for node in keeping:
            around = [*node.input, *node.output]
            known = next((layouts[name] for name in around if name in layouts), None)
            if known is not None:
                changed |= spread(around, known)
    return layouts


def _keeps_layout(node: onnx.NodeProto, tensors: Mapping[str, _Tensor]) -> bool:
    """Whether a node works element by element, or joins channels: its tensors all lie the same way."""
    if node.op_type in ("Concat", "QLinearConcat"):
        return True
    if node.op_type in ("Transpose", "Reshape", "ReorderInput", "ReorderOutput") or not node.output:
        return False
    result = tensors.get(node.output[0])
    return result is not None and any(name in tensors and tensors[name].shape == result.shape for name in node.input)


def _node_time(
    node: onnx.NodeProto,
    events: NodeEvents,
    tensors: Mapping[str, _Tensor],
    constants: set[str],
    layouts: Mapping[str, Layout],
) -> NodeTime:
    def shape(name: str) -> Shape:
        given = tensors[name].shape
        return (given[0], given[-1], *given[1:-1]) if layouts.get(name) == "nhwc" else given

    present = [name for name in node.input if name in tensors]
    moving = [name for name in present if name not in constants]
    weight_shape = _weight_shape(node, tensors, constants)
    spatial = weight_shape[2:] if weight_shape is not None else ()
    kernel = _attribute_ints(node, "kernel_shape") or spatial
    return NodeTime(
        op=node.op_type,
        domain=node.domain,
        name=node.name,
        dtype=next((tensors[name].dtype for name in [*moving, *present, *node.output] if name in tensors), ""),
        layout=next((layouts[name] for name in node.output if name in layouts), "nchw"),
        input_layout=next((layouts[name] for name in moving[:1] if name in layouts), "nchw"),
        input_shapes=tuple(shape(name) for name in present),
        output_shapes=tuple(shape(name) for name in node.output if name in tensors),
        weight_shape=weight_shape,
        kernel=kernel,
        strides=_attribute_ints(node, "strides") or (1,) * len(kernel),
        group=_attribute_int(node, "group", 1),
        activation=_attribute_text(node, "activation"),
        fused_add=node.op_type in _ADDS_FOURTH_INPUT and len(node.input) > 3 and bool(node.input[3]),
        time_us=lower_half_mean(events.times_us),
        runs=len(events.times_us),
    )


def _weight_shape(node: onnx.NodeProto, tensors: Mapping[str, _Tensor], constants: set[str]) -> Shape | None:
    index = _WEIGHT_INPUT.get(node.op_type)
    if index is None or index >= len(node.input) or node.input[index] not in constants:
        return None
    if node.op_type == "MatMulNBits":  # stored as blocks of packed bytes
        return (_attribute_int(node, "K", 0), _attribute_int(node, "N", 0))
    shape = tensors[node.input[index]].shape
    return shape[::-1] if _attribute_int(node, "transB", 0) and len(shape) == 2 else shape


def _attribute_int(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)


def _attribute_ints(node: onnx.NodeProto, name: str) -> Shape:
    return next((tuple(attribute.ints) for attribute in node.attribute if attribute.name == name), ())


def _attribute_text(node: onnx.NodeProto, name: str) -> str | None:
    return next((attribute.s.decode() for attribute in node.attribute if attribute.name == name), None)
