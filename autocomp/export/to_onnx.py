"""A compressed model → one ONNX file. torch.onnx writes the graph; this module stores the weights as the plan says."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import torch
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper

from autocomp.errors import ExportError, first_line
from autocomp.export.integers import (
    consumers,
    dynamic_product,
    integer_lookup,
    replace_node,
    sums_before_norms,
)
from autocomp.export.names import shorten
from autocomp.export.older import lower_opset
from autocomp.export.opsets import raise_opset
from autocomp.export.packing import encode, encode_bias, install
from autocomp.export.shortcuts import convolve_shortcuts
from autocomp.export.stored import StoredWeight, weight_spec
from autocomp.fx_nodes import operator_name
from autocomp.graph import ATTENTION, Graph
from autocomp.trace import copied

if TYPE_CHECKING:
    from torch.fx import GraphModule
    from torch.fx import Node as FxNode
    from torch.fx.graph import _PyTreeCodeGen

    from autocomp.compress.apply import Compressed
    from autocomp.plan import Format


Array = npt.NDArray[Any]

#: The widest opset that a plain file needs, the same for every file; attention as one operator came with 23. Weights of
#: 2 bits need 25, where onnxruntime 1.32 has no kernel for it and computes it piece by piece.
OPSET = 21
ATTENTION_OPSET = 23

#: A marked parameter's values are this times its number: no trained parameter is like it.
MARK = -1e30


def export_onnx(compressed: Compressed, packed: bool) -> bytes:
    """The ONNX file of a compressed model, batch size free.

    Args:
        compressed: as :func:`autocomp.compress.apply.apply` gives it.
        packed: store weights self-unpacking (``onnx-packed``), or plainly (``onnx``) and in the opset that the numerics name.

    Raises:
        ExportError: torch.onnx cannot write an operator, or rewrote a weight that the plan stores in its own way.
    """
    odd = next((name for name, chosen in compressed.formats.items() if chosen.in_float8), None)
    if odd is not None:
        raise ExportError(
            f"floats of 8 bits are for torch packages; layer {odd!r} has {compressed.formats[odd]}; write it with "
            "--format torch, or give it w8a8"
        )
    in_two_bits = packed and any(chosen.needs_two_bit_type for chosen in compressed.formats.values())
    attention = compressed.numerics.attention_operator and not in_two_bits
    model = _float_graph(compressed, attention)
    graph = model.graph
    places = {
        name: _take(graph, number, name, tuple(compressed.model.get_parameter(name).shape))
        for number, name in enumerate(_stored_names(compressed), start=1)
    }
    sums_before_norms(graph)
    if compressed.numerics.convolved_shortcuts:
        convolve_shortcuts(graph)
    stored: dict[str, StoredWeight] = {}
    rounded: dict[str, str] = {}
    for name in _weight_names(compressed):
        place = places[name]
        stored[place.tensor] = _stored(compressed, name, place)
        _rewrite(graph, compressed, name, place, rounded)
    short = shorten(model)
    raise_opset(model, OPSET)
    encoded = [encode(short[tensor], weight, packed) for tensor, weight in stored.items()]
    for name, bias in compressed.biases.items():
        tensor, values = short[places[name].tensor], compressed.model.get_parameter(name)
        if packed and bias.halves is not None:
            encoded.append(encode_bias(tensor, bias.halves.numpy(), *_steps(graph, tensor)))
        else:
            _add_bias(model, tensor, *_integer_bias(values, bias.steps))
    install(model, encoded)
    if compressed.numerics.opset is not None and not packed:
        lower_opset(model, compressed.numerics.opset)
    checker.check_model(model)
    return bytes(model.SerializeToString())


@dataclass(frozen=True)
class _Place:
    """Where a parameter stands in the float graph: the tensor, the node that reads it, and whether torch.onnx has
    turned the weight of a product round to (in, out)."""

    tensor: str
    reader: NodeProto
    turned: bool


@contextmanager
def _quiet() -> Iterator[None]:
    """torch.onnx tells of its own internals; the user asked for a file."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _weight_names(compressed: Compressed) -> tuple[str, ...]:
    """The weights that this module stores, not torch.onnx."""
    return tuple(dict.fromkeys([*(f"{name}.weight" for name in compressed.formats), *compressed.masks]))


def _stored_names(compressed: Compressed) -> tuple[str, ...]:
    return (*_weight_names(compressed), *compressed.biases)


def _marked(compressed: Compressed) -> GraphModule:
    """A copy of the model in which every parameter that will be stored in another form has a value of its own.

    torch.onnx merges small initializers that are equal (biases of zeros, say); these must stay apart.
    """
    marked = copied(compressed.model)
    for number, name in enumerate(_stored_names(compressed), start=1):
        marked.get_parameter(name).data.fill_(MARK * number)
    _return_tensors_alone(marked)
    return marked


def _return_tensors_alone(module: GraphModule) -> None:
    """Leave out what a model returns beside its tensors, in place: a file has no place for it."""
    from torch.fx import Node as FxNode
    from torch.utils._pytree import tree_flatten

    output = module.graph.output_node()
    leaves = cast("Sequence[object]", output.args[0])
    tensors = tuple(leaf for leaf in leaves if isinstance(leaf, FxNode))
    if len(tensors) == len(leaves):
        return
    # torch.fx has no other way to change the form of an output.
    codegen = cast("_PyTreeCodeGen", module.graph._codegen)
    codegen.pytree_info = codegen.pytree_info._replace(out_spec=tree_flatten(tensors)[1])
    output.args = (tensors,)
    module.recompile()


def _float_graph(compressed: Compressed, attention: bool) -> ModelProto:
    example = compressed.example
    marked = _marked(compressed)
    attention = attention and any(node.op == ATTENTION for node in compressed.graph.nodes)
    if attention:
        _widen_masks(marked, compressed.graph)
    try:
        with _quiet(), _norms_apart(compressed), torch.no_grad():
            program = torch.onnx.export(
                marked,
                example.doubled(),
                dynamo=True,
                verbose=False,
                dynamic_shapes=example.dynamic_shapes(),
                opset_version=ATTENTION_OPSET if attention else None,
            )
    except Exception as error:  # torch.onnx raises whatever its passes raise
        raise ExportError(f"torch.onnx could not write the compressed model: {first_line(error)}") from error
    if program is None:
        raise ExportError("torch.onnx gave no model for the compressed network")
    return program.model_proto


@contextmanager
def _norms_apart(compressed: Compressed) -> Iterator[None]:
    """onnxscript would fold a batch norm that autocomp has left into the layer before it, which has only marks for weights
    here."""
    from onnxscript import rewriter
    from onnxscript.rewriter.rules import common

    if not _stored_names(compressed) or all(node.op != "batch_norm" for node in compressed.graph.nodes):
        yield
        return
    folding = (
        common.fuse_batchnorm_into_conv_rule,
        common.fuse_batchnorm_into_conv_transpose_rule,
        common.fuse_batchnorm_into_gemm_rule,
    )
    # torch.onnx asks onnxscript for its default rules, of which there is no other way to leave some out.
    rules = rewriter._DEFAULT_REWRITE_RULES
    rewriter._DEFAULT_REWRITE_RULES = tuple(rule for rule in rules if rule not in folding)
    try:
        yield
    finally:
        rewriter._DEFAULT_REWRITE_RULES = rules


def _widen_masks(module: GraphModule, graph: Graph) -> None:
    """Give attention masks their full (…, queries, keys), in place: onnxruntime's operator broadcasts no queries."""
    wide: dict[str, FxNode] = {}
    for node in list(module.graph.nodes):
        if node.op != "call_function" or operator_name(node) != ATTENTION or len(node.args) < 4 or node.args[3] is None:
            continue
        mask, query = cast("FxNode", node.args[3]), cast("FxNode", node.args[0])
        if mask.name not in graph.by_name or graph.by_name[mask.name].shape[-2] != 1:
            continue
        if mask.name not in wide:
            rank = len(graph.by_name[mask.name].shape)
            with module.graph.inserting_before(node):
                queries = module.graph.call_function(torch.ops.aten.sym_size.int, (query, 2))
                sizes: list[Any] = [*[-1] * (rank - 2), queries, -1]
                wide[mask.name] = module.graph.call_function(torch.ops.aten.expand.default, (mask, sizes))
        node.replace_input_with(mask, wide[mask.name])
    module.recompile()


def _stored(compressed: Compressed, name: str, place: _Place) -> StoredWeight:
    quantized = compressed.weights.get(name)
    mask = compressed.masks.get(name)
    chosen = compressed.formats.get(name.removesuffix(".weight"))
    turn = place.turned or (chosen is not None and chosen.dynamic)

    def turned(values: torch.Tensor) -> Array:
        return np.ascontiguousarray((values.T if turn else values).detach().numpy())

    kept = None if mask is None else turned(mask)
    values = turned(compressed.model.get_parameter(name) if quantized is None else quantized.levels)
    in_integers = chosen is not None and _stays_integers(chosen, place)
    spec = weight_spec(
        values.shape, chosen, None if kept is None else int(np.count_nonzero(kept)), int(turn), in_integers
    )
    if quantized is None or spec.scale_shape is None:
        return StoredWeight(spec, values, None, kept)
    scale = quantized.scale.T if spec.scaling == "group" and turn else quantized.scale
    return StoredWeight(spec, values, scale.numpy().copy(), kept)


def _stays_integers(chosen: Format, place: _Place) -> bool:
    return chosen.dynamic or (place.reader.op_type == "Gather" and chosen.tables_of_integers)


def _rewrite(graph: GraphProto, compressed: Compressed, name: str, place: _Place, rounded: dict[str, str]) -> None:
    """Give a weight that stays integers the operators that read it so."""
    quantized, chosen = compressed.weights.get(name), compressed.formats.get(name.removesuffix(".weight"))
    if quantized is None or chosen is None or not _stays_integers(chosen, place):
        return
    scale, values = f"{place.tensor}.s", quantized.scale.expand(len(quantized.levels)).numpy()
    if place.reader.op_type == "Gather":
        values = values[:, None]
        nodes = integer_lookup(place.reader, place.tensor, scale)
    else:
        nodes = dynamic_product(place.reader, place.tensor, scale, rounded)
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), scale))
    replace_node(graph, place.reader, nodes)


def _take(graph: GraphProto, number: int, name: str, shape: tuple[int, ...]) -> _Place:
    """Remove the initializer of a marked parameter, whatever torch.onnx has called it."""
    mark = np.float32(MARK * number)
    for position, tensor in enumerate(graph.initializer):
        if tensor.data_type != TensorProto.FLOAT or not tensor.dims:
            continue
        first = np.frombuffer(tensor.raw_data[:4], np.float32) if tensor.raw_data else np.empty(0)
        if first.size and first[0] == mark:
            readers = consumers(graph.node, tensor.name)
            turned = len(readers) == 1 and readers[0].op_type == "MatMul"
            # What was worked out of it when the file was written (rows of a table) is marked as it is.
            if len(readers) != 1 or tuple(tensor.dims) != (shape[::-1] if turned else shape):
                break
            tensor_name = tensor.name
            del graph.initializer[position]
            return _Place(tensor_name, readers[0], turned)
    raise ExportError(
        f"torch.onnx rewrote {name!r}, so that it cannot be stored in the plan's format; leave it at fp32"
    )


def _steps(graph: GraphProto, bias: str) -> tuple[str, str]:
    """The steps of the input and of the weight of the layer that reads a bias."""
    (reader,) = consumers(graph.node, bias)
    (before,) = (node for node in graph.node if reader.input[0] in node.output)
    return before.input[1], f"{reader.input[1]}.s"


def _integer_bias(values: torch.Tensor, steps: torch.Tensor) -> tuple[Array, Array]:
    """The int32 that the integer kernels add, and its step: input scale times weight scale, one per channel."""
    levels = np.rint(values.detach().double().numpy() / steps.double().numpy()).clip(-(2**31), 2**31 - 1)
    return levels.astype(np.int32), steps.float().numpy()


def _add_bias(model: ModelProto, name: str, levels: Array, step: Array) -> None:
    model.graph.initializer.extend(
        [numpy_helper.from_array(levels, f"{name}.v"), numpy_helper.from_array(step, f"{name}.s")]
    )
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", [f"{name}.v", f"{name}.s"], [name], axis=0))
