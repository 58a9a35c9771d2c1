"""Which tensors are rounded to 8 bits, and their grids, simulated exactly as the exported file computes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import nn
from torch.ao.quantization.fx import _decomposed  # noqa: F401  defines torch.ops.quantized_decomposed

from autocomp.compress.sampling import spread_places
from autocomp.fx_nodes import operator_name
from autocomp.graph import RESHAPES, Graph
from autocomp.graph import Node as GraphNode
from autocomp.plan import Clip, Format

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

#: Shares of the range that are tried as clipping range of an activation.
ACTIVATION_CLIPS = torch.linspace(0.6, 1.0, 17)

#: Operations whose result holds some of the values they read, so that what is rounded before needs no grid of its own
#: behind them: runtimes compute them in integers only where both grids are the same.
GRID_KEEPING = frozenset({"max_pool2d"}) | RESHAPES

#: The share of an activation's values that the percentile leaves out at either end.
OUTSIDE = 0.0005

#: Values of an activation that are kept of a batch for choosing its range, and of all batches.
SAMPLE = 16_384
SAMPLES = 16 * SAMPLE


#: What floats are computed in.
Floats = Literal["fp32", "fp16", "bf16"]


@dataclass(frozen=True)
class Numerics:
    """The arithmetic of a runtime.

    ``symmetric_activations``: int8 with zero point 0 (what TensorRT takes) instead of uint8 with a zero point (what
    onnxruntime's x86 kernels are fastest with). ``integer_bias``: the bias is an int32 in the accumulator
    (onnxruntime), not a float (TensorRT). ``rounded_outputs``: an integer convolution writes integers only
    (onnxruntime), so that its result is rounded even in front of a float operation. ``attention_operator``:
    attention is one operator of the file (ONNX opset 23). ``narrow_products``: products of two
    pairs of 8-bit numbers are added up in 16 bits, which saturate (x86 without VNNI), so that 8-bit weights keep to half
    their levels. ``opset``: the latest that the runtime reads, where that is an early one; what it computes is the same.
    ``convolved_shortcuts``: in integers, a shortcut without weights is a convolution of ones (onnxruntime), see
    :mod:`autocomp.compress.shortcuts`. ``floats``: what a torch package computes floats in; a search evaluates them as
    float32, and scores the files of the front as they are computed. ``sparse_products``: a torch package's linears in half
    precision multiply no zeros of weights that have two in every four.
    """

    symmetric_activations: bool = False
    integer_bias: bool = True
    rounded_outputs: bool = True
    attention_operator: bool = True
    narrow_products: bool = False
    opset: int | None = None
    convolved_shortcuts: bool = False
    floats: Floats = "fp32"
    sparse_products: bool = False


DEFAULT_NUMERICS = Numerics()


class ActivationQuantizer(nn.Module):
    """Rounds a tensor to 8 bits and back. ``scale`` and ``zero_point`` hold for the whole tensor.

    Exported, it is a ``QuantizeLinear`` and a ``DequantizeLinear``; in eager mode the same arithmetic, in a training step in
    one call that gradients go through.
    """

    def __init__(self, scale: float, zero_point: int, signed: bool) -> None:
        super().__init__()
        self.scale = scale
        self.zero_point = zero_point
        self.low, self.high = (-128, 127) if signed else (0, 255)
        self.dtype = torch.int8 if signed else torch.uint8

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_exporting():
            grid = (self.scale, self.zero_point, self.low, self.high, self.dtype)
            levels = torch.ops.quantized_decomposed.quantize_per_tensor(x, *grid)
            rounded: torch.Tensor = torch.ops.quantized_decomposed.dequantize_per_tensor(levels, *grid)
            return rounded
        if torch.is_grad_enabled() and x.requires_grad:
            return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, self.low, self.high)
        # In place, which takes a tenth of the time that the call above does on a CPU.
        levels = (x / self.scale).round_().add_(self.zero_point).clamp_(self.low, self.high)
        return levels.sub_(self.zero_point).mul_(self.scale)


class DynamicQuantizer(nn.Module):
    """Rounds a tensor to 8 bits and back on the grid of its own range, as ONNX's ``DynamicQuantizeLinear`` does.

    Exported, it is nothing: the exporter writes the operator itself, in front of the integer product.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.clone() if torch.compiler.is_exporting() else self.rounded(x)

    def rounded(self, x: torch.Tensor) -> torch.Tensor:
        """What the operator computes."""
        low, high = x.amin().clamp_max(0.0), x.amax().clamp_min(0.0)
        scale = (high - low) / 255
        scale = torch.where(scale == 0, 1.0, scale)
        zero_point = (-low / scale).round().clamp(0, 255)
        levels = ((x / scale).round() + zero_point).clamp(0, 255)
        return (levels - zero_point) * scale


def quantize_dynamically(module: GraphModule, graph: Graph, layers: Sequence[str]) -> None:
    """Put a dynamic quantizer in front of some linears of ``module``, in place, one for all that read one tensor."""
    readers: dict[str, list[str]] = {}
    for node in graph.layers:
        if node.layer in layers:
            readers.setdefault(node.inputs[0], []).append(node.name)
    nodes = {node.name: node for node in module.graph.nodes}
    for source, names in readers.items():
        insert_before(module, [nodes[name] for name in names], f"dynamic_quantizer_{source}", DynamicQuantizer())
    module.recompile()


def insert_before(module: GraphModule, readers: Sequence[Node], path: str, inserted: nn.Module) -> None:
    """Put a module in front of nodes that read one tensor first, the earliest first, in place; to be recompiled. What they
    read is what they really read: a layer's input may have a calibrated quantizer in between by now."""
    given = cast("Node", readers[0].args[0])
    module.add_submodule(path, inserted)
    with module.graph.inserting_before(readers[0]):
        call = module.graph.call_module(path, (given,))
    for reader in readers:
        reader.replace_input_with(given, call)


class RangeObserver(nn.Module):
    """Passes a tensor on and remembers its range and a sample of its values."""

    def __init__(self) -> None:
        super().__init__()
        self.low = 0.0
        self.high = 0.0
        self.samples: list[torch.Tensor] = []
        self.share = SAMPLE

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.detach().flatten()
        self.low = min(self.low, float(flat.min()))
        self.high = max(self.high, float(flat.max()))
        self.samples.append(flat[spread_places(flat.numel(), self.share)])
        while sum(map(len, self.samples)) > SAMPLES and self.share > 1:
            self.share //= 2  # of batches that were seen and of those to come
            self.samples = [one[spread_places(len(one), self.share)] for one in self.samples]
        return x

    def quantizer(self, symmetric: bool, clip: Clip = "mse") -> ActivationQuantizer:
        """The 8-bit grid that holds zero exactly: over the whole range, over all but :data:`OUTSIDE` of the sample at either
        end, or with the least squared error on the sample."""
        lowest, highest = self.low, self.high
        if clip == "percentile":
            inside = torch.cat(self.samples).float()
            ends = torch.quantile(inside, torch.tensor([OUTSIDE, 1 - OUTSIDE]))
            lowest, highest = min(0.0, float(ends[0])), max(0.0, float(ends[1]))
        largest = max(-lowest, highest, 1e-8)
        low, high = (-largest, largest) if symmetric else (lowest, max(highest, lowest + 1e-8))
        bottom, top = (-128, 127) if symmetric else (0, 255)
        values = torch.cat(self.samples)
        clips = ACTIVATION_CLIPS if clip == "mse" else torch.ones(1)
        lows, highs = clips * low, clips * high
        scales = ((highs - lows) / (254 if symmetric else 255))[:, None]
        zero_points = torch.zeros_like(scales) if symmetric else (-lows[:, None] / scales).round().clamp(0, 255)
        rounded = (values[None] / scales + zero_points).round().clamp(bottom, top)
        errors = ((rounded - zero_points) * scales - values[None]).square().mean(dim=1)
        best = int(errors.argmin())
        return ActivationQuantizer(float(scales[best, 0]), int(zero_points[best, 0]), signed=symmetric)


def quantized_tensors(
    graph: Graph, formats: Mapping[str, Format | None], numerics: Numerics = DEFAULT_NUMERICS
) -> tuple[str, ...]:
    """The nodes whose results are rounded to 8 bits on a calibrated grid when layers have the given formats.

    Every layer with such a format reads a rounded tensor. Where the runtime has no integer convolution that writes
    floats, a quantized conv also writes one, behind its activation: without it onnxruntime leaves the weight in floats
    (``DequantizeLinear`` → ``Conv`` at every run). A quantized linear may write floats, unless an activation is behind
    it, which onnxruntime would rather fuse into a float kernel. What only linears over sequences read rounded stays in
    floats for everybody else: see :func:`rounded_for_products`.
    """
    names: dict[str, None] = {}
    for node in graph.layers:
        if reads_rounded(node, formats) and not _is_product(node):
            names[node.inputs[0]] = None
            tail = graph.tail(node)
            if numerics.rounded_outputs and (node.op == "conv2d" or tail is not node):
                names[tail.name] = None
    return tuple(node.name for node in graph.nodes if node.name in names)


def rounded_for_products(
    graph: Graph, formats: Mapping[str, Format | None], public: Collection[str]
) -> tuple[str, ...]:
    """The nodes whose results are rounded for the linears over sequences that read them, and for nobody else (what
    goes by on the residual path keeps its outliers).

    Args:
        public: those of :func:`quantized_tensors`, which are not among them.
    """
    names = {node.inputs[0] for node in graph.layers if reads_rounded(node, formats) and _is_product(node)}
    names.difference_update(public)
    return tuple(node.name for node in graph.nodes if node.name in names)


def reads_rounded(node: GraphNode, formats: Mapping[str, Format | None]) -> bool:
    """Whether a layer with such a format reads a calibrated grid."""
    chosen = formats.get(node.layer or "")
    return chosen is not None and chosen.calibrated


def _is_product(node: GraphNode) -> bool:
    return node.op == "linear" and not node.is_gemm


def complete_formats(
    graph: Graph, formats: Mapping[str, Format | None], numerics: Numerics = DEFAULT_NUMERICS
) -> dict[str, Format | None]:
    """The formats that layers really get: one that reads and writes rounded tensors is computed in integers as well.

    Its neighbours leave it nothing to gain from floats, and onnxruntime would round its weights at load, with a
    single scale for the whole tensor, without being asked. (TensorRT would not, so there formats stay as they are.)

    Args:
        formats: layer → the format that its plan gives it.
    """
    if not numerics.rounded_outputs:
        return dict(formats)
    rounded = _on_a_grid(graph, quantized_tensors(graph, formats))
    complete = dict(formats)
    uses = Counter(node.layer for node in graph.layers)
    for node in graph.layers:
        # One that is used again is no layer of the plan's: its weight is stored once and read at several places. Nor is
        # one whose bias no step can be given, or one that reads nothing but parameters.
        if node.layer is None or uses[node.layer] > 1 or node.computed_bias or not node.inputs:
            continue
        if not (node.op == "conv2d" or node.is_gemm):
            continue
        chosen = complete.get(node.layer)
        inside = node.inputs[0] in rounded and graph.tail(node).name in rounded
        if inside and (chosen is None or not (chosen.integer_activations or chosen.simulated)):
            complete[node.layer] = _in_integers(chosen)
    return complete


def _in_integers(chosen: Format | None) -> Format:
    """The format with activations on a calibrated grid, as near to it as there is one."""
    if chosen is None or chosen.weight_bits == 16:
        return Format(8)
    if chosen.granularity == "group":
        chosen = replace(chosen, granularity="channel", group=0)
    return replace(chosen, activation_bits=8, dynamic=False)


def _on_a_grid(graph: Graph, rounded: Iterable[str]) -> set[str]:
    """The tensors that hold rounded values, or nothing but values that are about to be rounded: onnxruntime moves the
    rounding across operations that only move values."""
    found = set(rounded)
    movers = [node for node in graph.nodes if node.op in GRID_KEEPING and node.inputs]
    for node in movers:
        if node.inputs[0] in found:
            found.add(node.name)
    for node in reversed(movers):
        if node.name in found and graph.sole_user(node.inputs[0]) is node:
            found.add(node.inputs[0])
    return found


def insert_after(
    module: GraphModule,
    sites: Mapping[str, nn.Module],
    readers: Mapping[str, Collection[str]] | None = None,
    stem: str = "quantizer",
) -> None:
    """Put a module behind each named node of ``module``, in place; all its readers then read the module's result, or
    those that ``readers`` names for it. Its path is ``stem`` and the node's name."""
    nodes = {node.name: node for node in module.graph.nodes}
    for name, inserted in sites.items():
        node = nodes[name]
        only = None if readers is None else readers.get(name)
        path = f"{stem}_{name}"
        module.add_submodule(path, inserted)
        with module.graph.inserting_after(node):
            call = module.graph.call_module(path, (node,))
        node.replace_all_uses_with(
            call,
            delete_user_cb=lambda user, call=call, only=only: user is not call and (only is None or user.name in only),
        )
    module.recompile()


def _shared_grids(module: GraphModule, sites: Collection[str]) -> dict[str, str]:
    """Site → the site whose grid its values are on already."""
    shared: dict[str, str] = {}
    for node in module.graph.nodes:
        source = node
        while node.name in sites and source.op == "call_function" and operator_name(source) in GRID_KEEPING:
            source = cast("Node", source.args[0])
            if source.name in sites:
                shared[node.name] = shared.get(source.name, source.name)
                break
    return shared


def observe(module: GraphModule, calibration: Iterable[tuple[torch.Tensor, ...]]) -> None:
    """Let the observers in a module, which is recompiled, see the calibration batches pass, as far as the last of them."""
    observing = [
        node
        for node in module.graph.nodes
        if node.op == "call_module" and isinstance(module.get_submodule(str(node.target)), RangeObserver)
    ]
    if not observing:
        return
    watching = _as_far_as(module, observing[-1])
    with torch.no_grad():
        for batch in calibration:
            watching(*batch)


def _as_far_as(module: GraphModule, last: Node) -> nn.Module:
    """The same modules, without what comes behind a node."""
    from torch.fx import Graph, GraphModule

    graph = Graph()
    copied: dict[Node, Node] = {}
    # All inputs, also those that stand behind the node: they are given all the same.
    nodes = [*module.graph.nodes]
    before = nodes[: nodes.index(last) + 1]
    for node in (
        *(one for one in nodes if one.op == "placeholder"),
        *(one for one in before if one.op != "placeholder"),
    ):
        copied[node] = graph.node_copy(node, copied.__getitem__)
    graph.output(copied[last])
    return GraphModule(module, graph)


def calibrate_activations(
    module: GraphModule,
    sites: Collection[str],
    calibration: Iterable[tuple[torch.Tensor, ...]],
    numerics: Numerics,
    readers: Mapping[str, Collection[str]] | None = None,
    clips: Mapping[str, Clip] | None = None,
) -> dict[str, ActivationQuantizer]:
    """Insert calibrated quantizers behind the named nodes of ``module``, in place.

    Args:
        module: a graph module as :func:`autocomp.trace.graph_module` gives it.
        sites: node names, as :func:`quantized_tensors` gives them.
        calibration: batches of the model's positional inputs.
        readers: for some of the nodes, the only ones that read the rounded result.
        clips: for some of the nodes, how their range is chosen; default is the least squared error.

    Returns:
        Node name → its quantizer.
    """
    shared = _shared_grids(module, sites)
    observers = {name: RangeObserver() for name in sites}
    insert_after(module, observers, readers)
    observe(module, calibration)
    quantizers = {}
    for name in observers:
        source = shared.get(name, name)
        clip: Clip = "mse" if clips is None else clips.get(source, "mse")
        quantizers[name] = observers[source].quantizer(numerics.symmetric_activations, clip)
    for name, quantizer in quantizers.items():
        module.set_submodule(f"quantizer_{name}", quantizer)
    return quantizers
