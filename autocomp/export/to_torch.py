"""A compressed model → one ``torch.export`` package (``.pt2``), which stock torch loads and runs.

Floats are computed in the precision that the numerics name, and inputs and outputs are float32 whatever that is. Linears
with calibrated activations of 8 bits multiply integers; every other weight of 8 bits or fewer is stored as int8 levels, a
byte each, and turned into floats where it is read, at every run: that makes the file smaller and nothing faster. Linears with
two zeros in every four weights multiply what is kept, where the numerics say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

import torch
from torch.utils import _pytree

from autocomp.compress.apply import plan_of
from autocomp.compress.float8 import Float8Quantizer
from autocomp.compress.quantize import ActivationQuantizer, DynamicQuantizer, Floats
from autocomp.compress.simulate import SimulatedQuantizer
from autocomp.compress.structure import is_sparse_product
from autocomp.errors import ExportError, TraceError
from autocomp.export.package import package
from autocomp.export.package_size import least_rows
from autocomp.export.semi_structured import SparseLinear
from autocomp.export.torch_layers import (
    Float8Levels,
    Float8Linear,
    FromLevels,
    HalfWeight,
    InFloat32,
    IntegerLinear,
    IntegerTable,
    Levels,
    StoredWeight,
)
from autocomp.graph import WEIGHT_ARGUMENT
from autocomp.graph import Node as GraphNode
from autocomp.trace import Example, copied, export_program

if TYPE_CHECKING:
    from torch import nn
    from torch.fx import GraphModule, Node

    from autocomp.compress.apply import Compressed

DTYPES: Mapping[Floats, torch.dtype] = MappingProxyType(
    {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
)


def export_torch(compressed: Compressed) -> bytes:
    """The package of a compressed model, batch size free.

    Raises:
        ExportError: torch.export cannot write the model in this form.
    """
    floats = DTYPES[compressed.numerics.floats]
    module = copied(compressed.model)
    _round_activations(module, compressed, floats)
    _store_weights(module, compressed, floats)
    _multiply_what_is_kept(module, compressed, floats)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    _drop_unread(module)
    return write_package(module, compressed.example, floats)


def write_package(module: GraphModule, example: Example, floats: torch.dtype) -> bytes:
    """The package of a module that is in form, but for what its floats are computed in, in place.

    Raises:
        ExportError: torch.export cannot write it.
    """
    if floats != torch.float32:
        _compute_in(module, floats)
    module.recompile()
    try:
        program = export_program(module, example)
    except TraceError as error:
        raise ExportError(str(error)) from error
    return package(program)


def _round_activations(module: GraphModule, compressed: Compressed, floats: torch.dtype) -> None:
    """Quantizers become levels, and floats again for whoever does not multiply integers."""
    for node in list(module.graph.nodes):
        if node.op != "call_module":
            continue
        quantizer = module.get_submodule(str(node.target))
        if isinstance(quantizer, ActivationQuantizer):
            _as_levels(module, node, quantizer, compressed, floats)
        elif isinstance(quantizer, Float8Quantizer):
            columns = next(one for one in compressed.graph.layers if any(one.name == user.name for user in node.users))
            module.set_submodule(str(node.target), Float8Levels(quantizer.step, columns.weight_shape[1]))
        elif isinstance(quantizer, DynamicQuantizer):
            module.set_submodule(str(node.target), InFloat32(quantizer.rounded, floats))
        elif isinstance(quantizer, SimulatedQuantizer):
            module.set_submodule(str(node.target), InFloat32(quantizer, floats))


def _as_levels(
    module: GraphModule, node: Node, quantizer: ActivationQuantizer, compressed: Compressed, floats: torch.dtype
) -> None:
    zero_point = _signed_zero(quantizer)
    name = str(node.target)
    module.set_submodule(name, Levels(quantizer.scale, zero_point))
    integer = {one.name for one in compressed.graph.layers if multiplies_integers(one, compressed)}
    others = [user for user in node.users if user.name not in integer]
    if others:
        module.add_submodule(f"{name}_floats", FromLevels(quantizer.scale, zero_point, floats))
        with module.graph.inserting_after(node):
            back = module.graph.call_module(f"{name}_floats", (node,))
        for user in others:
            user.replace_input_with(node, back)


def _signed_zero(quantizer: ActivationQuantizer) -> int:
    """The zero point among int8 levels."""
    return quantizer.zero_point if quantizer.dtype == torch.int8 else quantizer.zero_point - 128


def multiplies_integers(node: GraphNode, compressed: Compressed) -> bool:
    """Whether a layer is a product of int8 numbers: a linear that reads a calibrated grid."""
    chosen = compressed.formats.get(node.layer or "")
    return node.op == "linear" and chosen is not None and chosen.calibrated


def _store_weights(module: GraphModule, compressed: Compressed, floats: torch.dtype) -> None:
    """Give the layers with a format the weights that are stored."""
    nodes = {node.name: node for node in module.graph.nodes}
    for place in compressed.graph.layers:
        chosen = compressed.formats.get(place.layer or "")
        if chosen is None:
            continue
        node, name = nodes[place.name], f"{place.layer}.weight"
        stored = compressed.weights.get(name)
        if stored is None:  # half precision: the parameter's values are there already
            if floats == torch.float32:
                _read(module, node, place.op, f"{place.layer}_halves", HalfWeight(module.get_parameter(name)))
        elif multiplies_integers(place, compressed):
            levels = cast("Node", node.args[0])
            step = module.get_submodule(str(levels.target))
            assert isinstance(step, Levels)
            bias = module.get_parameter(f"{place.layer}.bias") if place.has_bias else None
            scale = stored.scale / float(step.inverse)
            linear = IntegerLinear(stored.levels, scale, bias, step.zero_point, least_rows(place), floats)
            _replace(module, node, f"{place.layer}_integers", linear, levels)
        elif chosen.in_float8:
            levels = cast("Node", node.args[0])
            step = module.get_submodule(str(levels.target))
            assert isinstance(step, Float8Levels)
            bias = module.get_parameter(f"{place.layer}.bias") if place.has_bias else None
            product = Float8Linear(stored.levels, stored.scale * step.step, bias, floats)
            _replace(module, node, f"{place.layer}_floats8", product, levels)
        elif place.op == "embedding" and chosen.tables_of_integers:
            table = IntegerTable(stored.levels, stored.scale, floats)
            _replace(module, node, f"{place.layer}_integers", table, cast("Node", node.args[1]))
        else:
            weight = StoredWeight(stored.levels, stored.scale, stored.group, floats)
            _read(module, node, place.op, f"{place.layer}_levels", weight)


def _multiply_what_is_kept(module: GraphModule, compressed: Compressed, floats: torch.dtype) -> None:
    """Linears with zeros that the device does not multiply."""
    nodes = {node.name: node for node in module.graph.nodes}
    for place in compressed.graph.layers:
        layer = place.layer or ""
        mask = plan_of(compressed.plan, layer).mask
        if is_sparse_product(place, mask, compressed.formats.get(layer), compressed.numerics):
            bias = module.get_parameter(f"{layer}.bias") if place.has_bias else None
            product = SparseLinear(module.get_parameter(f"{layer}.weight"), bias, least_rows(place), floats)
            node = nodes[place.name]
            _replace(module, node, f"{layer}_sparse", product, cast("Node", node.args[0]))


def _replace(module: GraphModule, node: Node, path: str, by: nn.Module, given: Node) -> None:
    """Put a module that reads ``given`` in the place of a node."""
    path = path.replace(".", "_")
    module.add_submodule(path, by)
    with module.graph.inserting_before(node):
        call = module.graph.call_module(path, (given,))
    node.replace_all_uses_with(call)
    module.graph.erase_node(node)


def _read(module: GraphModule, node: Node, op: str, path: str, weight: nn.Module) -> None:
    """Let a node read its weight from a module."""
    path = path.replace(".", "_")
    module.add_submodule(path, weight)
    with module.graph.inserting_before(node):
        call = module.graph.call_module(path, ())
    node.update_arg(WEIGHT_ARGUMENT[op], call)


def _drop_unread(module: GraphModule) -> None:
    """Parameters whose weights are stored in another form now."""
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    called = tuple(f"{node.target}." for node in module.graph.nodes if node.op == "call_module")
    for name, _ in [*module.named_parameters(), *module.named_buffers()]:
        if name not in read and not name.startswith(called):
            owner, _, last = name.rpartition(".")
            delattr(module.get_submodule(owner), last)


def _compute_in(module: GraphModule, floats: torch.dtype) -> None:
    """Let the traced operations compute in ``floats``; what the modules put in here compute in is their own affair."""
    own = {id(tensor) for node in module.graph.nodes if node.op == "get_attr" for tensor in [_attribute(module, node)]}
    largest = torch.finfo(floats).max
    for tensor in [*module.parameters(), *module.buffers()]:
        if id(tensor) in own and tensor.is_floating_point():
            finite = tensor.data.clamp(-largest, largest)
            tensor.data = torch.where(tensor.data.isinf(), tensor.data, finite).to(floats)

    def fitting(argument: object) -> object:
        if argument is torch.float32:
            return floats
        if isinstance(argument, float) and abs(argument) > largest and abs(argument) != float("inf"):
            return largest if argument > 0 else -largest  # as masks have it, which mean minus infinity by it
        return argument

    for node in list(module.graph.nodes):
        if node.op == "call_function":
            node.args = _pytree.tree_map(fitting, node.args)
            node.kwargs = _pytree.tree_map(fitting, node.kwargs)
        elif node.op == "placeholder":
            with module.graph.inserting_after(node):
                cast_in = module.graph.call_function(_cast, (node, floats))
            node.replace_all_uses_with(cast_in, delete_user_cb=lambda user, own=cast_in: user is not own)
        elif node.op == "output":
            with module.graph.inserting_before(node):
                node.args = _pytree.tree_map(partial(_cast_out, module), node.args)


def _attribute(module: GraphModule, node: Node) -> object:
    owner, _, last = str(node.target).rpartition(".")
    return getattr(module.get_submodule(owner), last)


def _cast(x: torch.Tensor, floats: torch.dtype) -> torch.Tensor:
    """Traced: of floats a cast, of whole numbers nothing."""
    return x.to(floats) if x.is_floating_point() else x


def _cast_out(module: GraphModule, leaf: object) -> object:
    from torch.fx import Node

    return module.graph.call_function(_cast, (leaf, torch.float32)) if isinstance(leaf, Node) else leaf
