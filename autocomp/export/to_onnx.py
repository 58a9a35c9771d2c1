"""A compressed model → one ONNX file. torch.onnx writes the graph; this module stores the weights as the plan says."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from onnx import ModelProto, checker, helper, numpy_helper

from autocomp.errors import ExportError, first_line
from autocomp.export.packing import StoredWeight, encode, install, raise_opset
from autocomp.graph import free_batch

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from autocomp.compress.apply import Compressed


Array = npt.NDArray[Any]

#: torch.onnx writes 20; the widest one that a plain file needs is the same for every file.
OPSET = 21


def export_onnx(compressed: Compressed, packed: bool) -> bytes:
    """The ONNX file of a compressed model, batch size free.

    Args:
        compressed: as :func:`autocomp.compress.apply.apply` gives it.
        packed: store weights self-unpacking (``onnx-packed``) or plainly (``onnx``).

    Raises:
        ExportError: torch.onnx cannot write an operator, or rewrote a weight that the plan stores in its own way.
    """
    model = _float_graph(compressed)
    stored = {name: _stored(compressed, name) for name in _weight_names(compressed)}
    biases = {name: _integer_bias(compressed, name) for name in compressed.bias_scales}
    for name in _stored_names(compressed):
        _take(model, name)
    short = _shorten(model)
    for name, (levels, step) in biases.items():
        _add_bias(model, short[name], levels, step)
    raise_opset(model, OPSET)
    install(model, [encode(short[name], weight, packed) for name, weight in stored.items()])
    checker.check_model(model)
    return bytes(model.SerializeToString())


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
    return tuple(dict.fromkeys([*compressed.weights, *compressed.masks]))


def _stored_names(compressed: Compressed) -> tuple[str, ...]:
    return (*_weight_names(compressed), *compressed.bias_scales)


def _marked(compressed: Compressed) -> GraphModule:
    """A copy of the model in which every parameter that will be stored in another form has a value of its own.

    torch.onnx merges small initializers that are equal (biases of zeros, say); these must stay apart.
    """
    marked = copy.deepcopy(compressed.model)
    for number, name in enumerate(_stored_names(compressed), start=1):
        marked.get_parameter(name).data.fill_(-1e30 * number)  # no trained parameter is like it
    return marked


def _float_graph(compressed: Compressed) -> ModelProto:
    doubled, shapes = free_batch(compressed.example_inputs)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(_marked(compressed), doubled, dynamo=True, verbose=False, dynamic_shapes=shapes)
    except Exception as error:  # torch.onnx raises whatever its passes raise
        raise ExportError(f"torch.onnx could not write the compressed model: {first_line(error)}") from error
    if program is None:
        raise ExportError("torch.onnx gave no model for the compressed network")
    return program.model_proto


def _stored(compressed: Compressed, name: str) -> StoredWeight:
    quantized = compressed.weights.get(name)
    mask = compressed.masks.get(name)
    kept = None if mask is None else mask.numpy()
    if quantized is not None:
        return StoredWeight(quantized.levels.numpy(), quantized.bits, quantized.scale.numpy(), 0, kept)
    return StoredWeight(compressed.model.get_parameter(name).detach().numpy(), 32, None, 0, kept)


def _take(model: ModelProto, name: str) -> None:
    """Remove the initializer ``name``."""
    for position, tensor in enumerate(model.graph.initializer):
        if tensor.name == name:
            del model.graph.initializer[position]
            return
    raise ExportError(
        f"torch.onnx rewrote {name!r}, so that it cannot be stored in the plan's format; leave it at fp32"
    )


def _integer_bias(compressed: Compressed, name: str) -> tuple[Array, Array]:
    """The int32 that the integer kernels add, and its step: input scale times weight scale, one per channel."""
    values, step = compressed.model.get_parameter(name).detach().numpy(), compressed.bias_scales[name]
    levels = np.rint(values.astype(np.float64) / step.numpy().astype(np.float64)).clip(-(2**31), 2**31 - 1)
    return levels.astype(np.int32), step.numpy().astype(np.float32)


def _add_bias(model: ModelProto, name: str, levels: Array, step: Array) -> None:
    model.graph.initializer.extend(
        [numpy_helper.from_array(levels, f"{name}.v"), numpy_helper.from_array(step, f"{name}.s")]
    )
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", [f"{name}.v", f"{name}.s"], [name], axis=0))


def _shorten(model: ModelProto) -> dict[str, str]:
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
    short: dict[str, str] = {}

    def rename(name: str) -> str:
        return name if name in kept else short.setdefault(name, _base36(len(short)))

    for tensor in graph.initializer:
        tensor.name = rename(tensor.name)
        tensor.ClearField("doc_string")
        del tensor.metadata_props[:]
    for node in graph.node:
        node.input[:] = [rename(name) for name in node.input]
        node.output[:] = [rename(name) for name in node.output]
        node.ClearField("name")
        node.ClearField("doc_string")
        del node.metadata_props[:]
    for value in (*graph.input, *graph.output):
        value.ClearField("doc_string")
        del value.metadata_props[:]
    model.producer_name = "autocomp"
    model.ClearField("producer_version")
    model.ClearField("doc_string")
    return short


def _base36(number: int) -> str:
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    text = ""
    while True:
        text = digits[number % 36] + text
        number //= 36
        if number == 0:
            return f"_{text}"
