"""From a network's structure to the kernels that a TensorRT engine runs on a GPU.

The rules follow TensorRT's published catalogue of layer fusions and published logs of engines (on an Orin:
ultralytics/ultralytics#17640): pointwise operations in a row become one kernel; a convolution takes in an activation,
or an addition and an activation; a concatenation costs nothing for what can be written in its place, and a copy for each
other part; a part of a split is copied. Engines are taken to be built with fp16 allowed, so that a layer that is not
quantized runs in fp16. Precisions come from where the exported file rounds, as TensorRT's explicit quantization reads it,
and a tensor that changes precision outside a pointwise kernel is reformatted by a kernel of its own. Convolutions side by
side, which TensorRT merges at times, are left apart. Nothing here was held against an engine of our own: no board was at hand.

The names of kernels are ``family_precision``; an operation that none of the rules knows keeps its own name, so that a
latency model can refuse it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from autocomp.compress.structure import Structure
from autocomp.graph import ADDITIONS, ATTENTION, Graph, Node
from autocomp.hardware.kernels import Kernel

#: What an engine computes nothing for: it is removed, or (the rest of FREE) only names the same memory anew.
NOTHING = frozenset({"dropout", "dropout_", "contiguous", "clone", "alias", "detach", "identity"})
FREE = NOTHING | {
    *("flatten", "view", "_unsafe_view", "reshape", "unflatten", "squeeze", "unsqueeze", "expand", "expand_as"),
    *("split", "split_with_sizes", "chunk", "unbind"),
}
POINTWISE = frozenset(
    {
        *("relu", "relu6", "hardtanh", "clamp", "clamp_min", "clamp_max", "leaky_relu", "elu", "tanh", "sigmoid"),
        *("silu", "hardswish", "hardsigmoid", "gelu", "mish", "softplus"),
        *("add", "sub", "rsub", "mul", "div", "pow", "sqrt", "rsqrt", "exp", "log", "neg", "abs", "maximum", "minimum"),
        # Casts and comparisons are pointwise as well, as they are in masks of attention.
        *("batch_norm", "to", "where", "masked_fill", "eq", "ne", "ge", "gt", "le", "lt", "logical_not", "bitwise_not"),
        "zeros_like",
    }
)
#: With them sums and norms over some dimensions, which are reductions like a mean.
POOLS = frozenset(
    {
        *("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "mean"),
        *("max_pool1d", "avg_pool1d", "adaptive_avg_pool1d"),
        *("sum", "amax", "amin", "linalg_vector_norm", "norm"),
    }
)
#: Pools that pick a value and so commute with rounding.
SELECTING_POOLS = frozenset({"max_pool2d", "max_pool1d", "adaptive_max_pool2d"})
#: Data is moved, nothing computed. ``getitem`` is a part of a split.
MOVES = frozenset(
    {
        *("transpose", "permute", "slice", "select", "narrow", "getitem"),
        *("pad", "constant_pad_nd", "upsample_nearest2d"),
    }
)
NORMS = frozenset({"layer_norm", "native_layer_norm", "group_norm", "instance_norm", "rms_norm"})
SOFTMAXES = frozenset({"softmax", "_softmax", "log_softmax"})
MATMULS = frozenset({"matmul", "bmm"})


@dataclass
class _Engine:
    graph: Graph
    quantized_layers: frozenset[str]
    rounded: frozenset[str]
    #: What is computed from weights alone: folded when the engine is built.
    constants: frozenset[str]
    kernels: list[Kernel] = field(default_factory=list)
    #: Tensor → the precisions that it is at hand in.
    forms: dict[str, set[str]] = field(default_factory=dict)

    def elements(self, name: str) -> int:
        return self.graph.by_name[name].elements

    def convert(self, name: str, op: str, precision: str) -> None:
        self.kernels.append(Kernel(op, (name,), in_elements=self.elements(name), out_elements=self.elements(name)))
        self.forms.setdefault(name, set()).add(precision)

    def read(self, name: str, precision: str) -> None:
        """Make a tensor available in a precision, with a reformat kernel where it is not."""
        if name not in self.constants and precision not in self.forms[name]:
            self.convert(name, "reformat_int8", precision)

    def write(self, name: str, precision: str) -> None:
        """Note the precision of a result; one that the file rounds goes on in int8."""
        self.forms[name] = {precision}
        if name in self.rounded and precision != "int8":
            self.convert(name, "reformat_int8", "int8")
            self.forms[name] = {"int8"}


def lower(structure: Structure, batch: int) -> tuple[Kernel, ...]:
    """The kernel calls of one inference of a TensorRT engine, in order.

    Layers without a format run in fp16, layers with one in int8 (weights of fewer bits are unpacked to int8: the GPU
    has no narrower kernel for convolutions). Inputs and outputs are fp32, as engines take them by default.

    Args:
        structure: of the compressed network, as :func:`autocomp.compress.structure.restructure` gives it.
        batch: examples per inference; elements and MACs are multiplied by it.
    """
    graph = structure.graph
    quantized = frozenset(structure.integer_layers)
    engine = _Engine(graph, quantized, structure.rounded, _constants(graph))
    absorbed: set[str] = set()
    for node in graph.nodes:
        if node.name in absorbed or node.name in engine.constants:
            continue
        if node.op == "input":
            engine.convert(node.name, "reformat_fp32", "int8" if node.name in engine.rounded else "fp16")
        elif node.op in FREE:
            _pass_on(engine, node)
        elif node.op == "cat":
            _concatenated(engine, node)
        else:
            absorbed.update(_lower_one(engine, node))
    for name in graph.outputs:
        engine.read(name, "fp16")
        engine.convert(name, "reformat_fp32", "fp32")
    return tuple(kernel.batched(batch) for kernel in engine.kernels)


def _constants(graph: Graph) -> frozenset[str]:
    found: set[str] = set()
    for node in graph.nodes:
        if node.op != "input" and all(name in found for name in node.inputs):
            found.add(node.name)
    return frozenset(found)


def _concatenated(engine: _Engine, node: Node) -> None:
    """What feeds nothing but the concatenation is written in its place; every other part is copied by a kernel of its own."""
    copied = [
        name
        for name in node.inputs
        if engine.graph.sole_user(name) is not node or engine.graph.by_name[name].op in FREE | {"input"}
    ]
    if not copied:
        _pass_on(engine, node)
        return
    precision = "int8" if _is_int8(engine, node) else "fp16"
    for name in dict.fromkeys(node.inputs):
        engine.read(name, precision)
    for name in copied:
        elements = engine.elements(name)
        engine.kernels.append(Kernel(f"copy_{precision}", (node.name,), in_elements=elements, out_elements=elements))
    engine.write(node.name, precision)


def _pass_on(engine: _Engine, node: Node) -> None:
    common = set.intersection(*(engine.forms[name] for name in node.inputs if name not in engine.constants))
    if not common:
        for name in node.inputs:
            engine.read(name, "fp16")
        common = {"fp16"}
    engine.forms[node.name] = set(common)
    if node.name in engine.rounded and "int8" not in common:
        engine.read(node.name, "int8")


def _lower_one(engine: _Engine, node: Node) -> set[str]:
    """Append the kernel of ``node``; the names of the later nodes that it computes as well."""
    op = _plain(node.op)
    if node.op == "embedding":  # rows are looked up, not the whole table read
        return _alone(engine, node, "copy", "fp16")
    if node.layer is not None:
        return _weighted(engine, node)
    if op in POINTWISE:
        return _pointwise(engine, node)
    if op in POOLS:
        eight = _is_int8(engine, node) and (node.name in engine.rounded or op in SELECTING_POOLS)
        return _alone(engine, node, "pool", "int8" if eight else "fp16")
    if op in MOVES:
        return _alone(engine, node, "copy", "int8" if _is_int8(engine, node) else "fp16")
    if op in MATMULS:
        inner = engine.graph.by_name[node.inputs[0]].shape[-1]
        return _alone(engine, node, "matmul", "fp16", macs=node.elements * inner)
    if op == ATTENTION:  # two products with a softmax between, as the decomposed graph has them
        tokens = engine.graph.by_name[node.inputs[1]].shape[-2]
        return _alone(engine, node, "matmul", "fp16", macs=2 * node.elements * tokens)
    if op in SOFTMAXES or op in NORMS:
        return _alone(engine, node, "softmax" if op in SOFTMAXES else "norm", "fp16")
    return _alone(engine, node, node.op, None)


def _plain(op: str) -> str:
    """``relu_`` computes what ``relu`` computes."""
    return op.removesuffix("_")


def _is_int8(engine: _Engine, node: Node) -> bool:
    return all("int8" in engine.forms[name] for name in node.inputs if name not in engine.constants)


def _alone(engine: _Engine, node: Node, family: str, precision: str | None, macs: int = 0) -> set[str]:
    """A kernel of its own; without a precision it is one that no rule knows, computed in fp16."""
    sources = [name for name in dict.fromkeys(node.inputs) if name not in engine.constants]
    for name in sources:
        engine.read(name, precision or "fp16")
    # What only moves data reads no more than it writes: a part of a split is not the whole.
    read = node.elements if family == "copy" else sum(engine.elements(name) for name in sources)
    op = family if precision is None else f"{family}_{precision}"
    engine.kernels.append(
        Kernel(op, (node.layer or node.name,), macs=macs, in_elements=read, out_elements=node.elements)
    )
    engine.write(node.name, precision or "fp16")
    return set()


def _weighted(engine: _Engine, node: Node) -> set[str]:
    precision = "int8" if node.layer in engine.quantized_layers else "fp16"
    source = node.inputs[0]
    engine.read(source, precision)
    chain = _taken_in(engine, node)
    kernel = Kernel(
        f"{_family(node)}_{precision}",
        (node.layer or node.name,),
        macs=node.macs,
        in_elements=engine.elements(source) + chain.read,
        out_elements=node.elements,
        weight_elements=node.weights,
        kernel_area=node.kernel[0] * node.kernel[1],
        stride=node.stride[0],
        groups=node.groups,
        fused_add=chain.read > 0,
    )
    engine.kernels.append(kernel)
    # Integer kernels write either precision: integers where the file rounds behind them.
    engine.write(chain.last.name, "int8" if precision == "int8" and chain.last.name in engine.rounded else "fp16")
    return set(chain.names)


def _family(node: Node) -> str:
    if node.op == "linear":
        return "gemm"
    if node.op == "conv_transpose2d":
        return "conv_transpose"
    if node.groups == 1:
        return "conv"
    return "depthwise" if node.weight_shape[1] == 1 else "grouped_conv"


def _pointwise(engine: _Engine, node: Node) -> set[str]:
    """A chain of pointwise operations as one kernel. It reads and writes either precision without a reformat."""
    chain = _behind(engine, node)[-1]
    last = chain.last
    sources = [name for name in dict.fromkeys(node.inputs) if name not in engine.constants]
    eight = _is_int8(engine, node) and last.name in engine.rounded
    engine.kernels.append(
        Kernel(
            f"elementwise_{'int8' if eight else 'fp16'}",
            (node.name,),
            in_elements=sum(engine.elements(name) for name in sources) + chain.read,
            out_elements=last.elements,
        )
    )
    engine.forms[last.name] = {"int8" if last.name in engine.rounded else "fp16"}
    return set(chain.names)


@dataclass(frozen=True)
class _Chain:
    """Pointwise operations that one kernel computes: their names and those of no-operations between them, the last
    node (the start where there is none), elements of second tensors read on the way."""

    names: tuple[str, ...]
    last: Node
    read: int = 0


def _behind(engine: _Engine, start: Node) -> list[_Chain]:
    """All the chains behind ``start``, from the empty one to the longest.

    A chain ends where the file rounds, where a result has several readers or is broadcast, and at a second tensor that
    is not computed yet.
    """
    chains = [_Chain((), start)]
    while chains[-1].last.name not in engine.rounded:
        before = chains[-1]
        user = engine.graph.sole_user(before.last.name)
        if user is None or user.elements != before.last.elements:
            break
        if user.op not in NOTHING and _plain(user.op) not in POINTWISE:
            break
        others = _second_tensors(engine, user, before.last)
        if any(name not in engine.forms for name in others):
            break
        read = before.read + sum(engine.elements(name) for name in others)
        chains.append(_Chain((*before.names, user.name), user, read))
    return chains


def _second_tensors(engine: _Engine, node: Node, first: Node) -> list[str]:
    return [name for name in node.inputs if name != first.name and name not in engine.constants]


def _taken_in(engine: _Engine, node: Node) -> _Chain:
    """The chain behind a convolution or linear that its kernel takes in.

    TensorRT joins the pointwise operations first. What then reads one tensor is an activation, and taken in; so is an
    addition of equal shape right behind the layer, with the activation behind that. A chain that reads a second tensor
    later on (activation, then addition) stays a kernel of its own.
    """
    chains = _behind(engine, node)
    single = [chain for chain in chains if chain.read == 0]
    if len(single) == len(chains):
        return chains[-1]
    first = chains[len(single)]
    right_behind = all(engine.graph.by_name[name].op in NOTHING for name in single[-1].names)
    if right_behind and first.last.op in ADDITIONS and first.read == node.elements:
        return [chain for chain in chains if chain.read == first.read][-1]
    return chains[0]
