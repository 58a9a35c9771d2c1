"""A model followed by ``torch.export``: what it is given, its graph as facts, and the program as a module."""

from __future__ import annotations

import copy
import inspect
import math
import re
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar, cast

from autocomp.errors import TraceError, first_line
from autocomp.fx_nodes import is_tensor, operator_name, read_after_change
from autocomp.graph import CONVOLUTIONS, WEIGHT_ARGUMENT, Graph, Node

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from torch.export import ExportedProgram
    from torch.fx import GraphModule
    from torch.fx import Node as FxNode
    from torch.utils._pytree import TreeSpec

ModuleT = TypeVar("ModuleT", bound="torch.nn.Module")


@dataclass(frozen=True)
class Example:
    """A model's positional inputs at batch 1, and which of their dimensions besides the batch may vary (see
    :class:`autocomp.task.Task`)."""

    inputs: tuple[torch.Tensor, ...]
    dynamic_dims: tuple[tuple[int, ...], ...] = ()

    def doubled(self) -> tuple[torch.Tensor, ...]:
        """The inputs at batch 2: torch.export takes a dimension of 1 for a constant."""
        import torch

        return tuple(torch.cat([x[:1], x[:1]]) for x in self.inputs)

    def arrays(self, batch: int) -> list[npt.NDArray[np.generic]]:
        """For a file: the inputs' first example, repeated to a batch."""
        import numpy as np

        return [np.ascontiguousarray(np.repeat(x[:1].numpy(), batch, axis=0)) for x in self.inputs]

    def dynamic_shapes(self) -> tuple[dict[int, object], ...]:
        """What torch.export and torch.onnx are told to leave free."""
        import torch

        dims = self.dynamic_dims or ((),) * len(self.inputs)
        return tuple(dict.fromkeys((0, *named), torch.export.Dim.DYNAMIC) for named in dims)


@dataclass(frozen=True)
class OutputForm:
    """How a model's output is nested, so that a file's plain list of tensors can be given back in the same form.

    ``constants`` are the leaves that are no tensors (None, numbers), by their place.
    """

    spec: TreeSpec
    constants: Mapping[int, object]

    @staticmethod
    def of(output: object) -> OutputForm:
        """The form of an output.

        Raises:
            TraceError: there is no tensor in it.
        """
        import torch
        from torch.utils._pytree import tree_flatten

        leaves, spec = tree_flatten(output)
        constants = {place: leaf for place, leaf in enumerate(leaves) if not isinstance(leaf, torch.Tensor)}
        if len(constants) == len(leaves):
            raise TraceError(f"a model must return tensors; it returns a {type(output).__name__} without any; wrap it")
        return OutputForm(spec, constants)

    def filled(self, tensors: Sequence[torch.Tensor]) -> object:
        """An output of this form, of a file's tensors in order."""
        from torch.utils._pytree import tree_unflatten

        waiting = iter(tensors)
        count = len(tensors) + len(self.constants)
        leaves = [self.constants[place] if place in self.constants else next(waiting) for place in range(count)]
        filled: object = tree_unflatten(leaves, self.spec)
        return filled


def export_program(model: torch.nn.Module, example: Example) -> ExportedProgram:
    """``torch.export`` of ``model`` (in eval mode) with a free batch dimension, as a graph whose edges are its data flow: where
    the model reads what it has changed in place, without changes in place.

    Args:
        model: left as it is.

    Raises:
        TraceError: torch.export cannot follow the model; names what stopped it.
    """
    program = export_as_written(model, example)
    if not read_after_change(program):
        return program
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch warns of its own internals
            functional: ExportedProgram = program.run_decompositions({})
    except Exception as error:
        raise TraceError(
            f"a model that writes into parts of tensors must be one that torch.export can rewrite without; it stopped at: "
            f"{_what_stopped(error)}"
        ) from error
    _norms_again(functional)
    return functional


def _norms_again(program: ExportedProgram) -> None:
    """Batch norms as models call them, in the place of what torch takes them apart into, in place."""
    import torch

    aten = torch.ops.aten
    for node in list(program.graph.nodes):
        if node.target is not aten._native_batch_norm_legit_no_training.default:
            continue
        (result,) = node.users  # its first output: in evaluation the others are empty
        x, weight, bias, mean, variance, momentum, eps = node.args
        with program.graph.inserting_before(node):
            arguments = (x, weight, bias, mean, variance, False, momentum, eps, False)
            norm = program.graph.call_function(aten.batch_norm.default, arguments)
        norm.meta = {**result.meta}
        result.replace_all_uses_with(norm)
        program.graph.erase_node(result)
        program.graph.erase_node(node)
    program.graph_module.recompile()


def export_as_written(model: torch.nn.Module, example: Example) -> ExportedProgram:
    """As :func:`export_program`, with the operators that the model calls, batch norms and changes in place among them.

    Raises:
        TraceError: torch.export cannot follow the model; names what stopped it.
    """
    import torch

    try:
        with torch.no_grad():
            return torch.export.export(
                model, example.doubled(), dynamic_shapes=_by_parameter(model, example.dynamic_shapes()), strict=False
            )
    except Exception as error:  # torch.export raises whatever the model's own code raises
        raise TraceError(
            f"a model must be one that torch.export can follow with a free batch size; it stopped at: {_what_stopped(error)}; "
            "see the torch.export documentation for what to rewrite"
        ) from error


def _by_parameter(model: torch.nn.Module, shapes: tuple[object, ...]) -> tuple[object, ...]:
    """Shapes of positional inputs as torch.export wants them: those of ``*inputs`` are one."""
    kinds = [one.kind for one in inspect.signature(model.forward).parameters.values()]
    named = kinds.index(inspect.Parameter.VAR_POSITIONAL) if inspect.Parameter.VAR_POSITIONAL in kinds else len(shapes)
    return shapes if named >= len(shapes) else (*shapes[:named], shapes[named:])


def _what_stopped(error: BaseException) -> str:
    """The first line of an error, and the operator and the model's own line where torch tells them further down."""
    text = str(error)
    told = [first_line(error)]
    operator = re.search(r"(?:aten|torchvision|torch\.ops)[\w.:]+", text)
    if operator is not None and operator[0] not in told[0]:
        told.append(f"operator {operator[0]}")
    frames = [(frame.filename, str(frame.lineno)) for frame in traceback.extract_tb(error.__traceback__)]
    frames += re.findall(r'File "([^"]+)", line (\d+), in \w+', text)
    own = [(file, line) for file, line in frames if "/torch/" not in file and file != __file__]
    if own:
        told.append(f"line {own[-1][1]} of {own[-1][0].rpartition('/')[2]}")
    return ", ".join(told)


def read_graph(program: ExportedProgram) -> Graph:
    """The :class:`Graph` of an exported program."""
    from torch.export.graph_signature import OutputKind, TensorArgument

    signature = program.graph_signature
    weights = {
        **signature.inputs_to_lifted_tensor_constants,
        **signature.inputs_to_buffers,
        **signature.inputs_to_parameters,
    }
    sizes = _Sizes.of(program)
    nodes: list[Node] = []
    outputs: tuple[str, ...] = ()
    for node in program.graph.nodes:
        if node.op == "placeholder":
            if node.name not in weights:
                nodes.append(Node(node.name, "input", (), sizes.shape(node)))
        elif node.op == "call_function":
            if is_tensor(node):
                nodes.append(_read_node(node, weights, signature.inputs_to_parameters, sizes))
        elif node.op == "output":
            # Others are of buffers that were changed.
            own = [spec for spec in signature.output_specs if spec.kind == OutputKind.USER_OUTPUT]
            outputs = tuple(spec.arg.name for spec in own if isinstance(spec.arg, TensorArgument))
    return Graph(_read_by_someone(nodes, outputs), outputs)


def _read_by_someone(nodes: Sequence[Node], outputs: Iterable[str]) -> tuple[Node, ...]:
    """The nodes that the outputs depend on, and the inputs."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if node.op == "input" or node.name in needed:
            needed.update(node.inputs)
            kept.append(node)
    return tuple(reversed(kept))


@dataclass(frozen=True)
class _Sizes:
    """The sizes that symbols stand for: those of the example, whose batch was doubled."""

    batches: frozenset[object]

    @staticmethod
    def of(program: ExportedProgram) -> _Sizes:
        found = set()
        for node in program.graph.nodes:
            if node.op == "placeholder" and node.name in program.graph_signature.user_inputs:
                first = node.meta["val"].shape[0]
                if not isinstance(first, int):
                    found |= first.node.expr.free_symbols
        return _Sizes(frozenset(found))

    def size(self, size: object) -> int:
        """A dimension as :attr:`Node.shape` has it."""
        if isinstance(size, int):
            return size
        symbolic = cast("torch.SymInt", size)
        hint = int(symbolic.node.hint)
        return -(hint // 2) if symbolic.node.expr.free_symbols & self.batches else hint

    def shape(self, node: FxNode) -> tuple[int, ...]:
        value = node.meta["val"]
        return () if isinstance(value, (list, tuple)) else tuple(self.size(size) for size in value.shape)

    def free(self, node: FxNode) -> tuple[int, ...]:
        """The dimensions of a length that is neither fixed nor that of a batch."""
        value = node.meta["val"]
        if isinstance(value, (list, tuple)):
            return ()
        return tuple(
            place
            for place, size in enumerate(value.shape)
            if not isinstance(size, int) and not size.node.expr.free_symbols & self.batches
        )

    def numbers(self, arguments: Iterable[object]) -> Iterator[int]:
        """The whole numbers among some arguments; sizes that were computed count as what they are for the example."""
        for argument in arguments:
            if isinstance(argument, (list, tuple)):
                yield from self.numbers(argument)
            elif isinstance(argument, int) and not isinstance(argument, bool):
                yield argument
            elif hasattr(argument, "meta") and "val" in argument.meta and not is_tensor(cast("FxNode", argument)):
                value = argument.meta["val"]
                if isinstance(value, int) or hasattr(value, "node"):
                    yield self.size(value)


def _read_node(node: FxNode, weights: Mapping[str, str], parameters: Mapping[str, str], sizes: _Sizes) -> Node:
    import torch

    op = operator_name(node)
    inputs = tuple(source.name for source in node.all_input_nodes if source.name not in weights and is_tensor(source))
    read = [source for source in node.all_input_nodes if source.name in weights and is_tensor(source)]
    fact = Node(
        node.name,
        op,
        inputs,
        sizes.shape(node),
        numbers=tuple(sizes.numbers([*node.args, *node.kwargs.values()])),
        parameters=sum(math.prod(sizes.shape(source)) for source in read),
        free=sizes.free(node),
        reads_booleans=any(
            isinstance(value := source.meta.get("val"), torch.Tensor) and value.dtype == torch.bool
            for source in node.all_input_nodes
        ),
    )
    place = WEIGHT_ARGUMENT.get(op)
    if place is None or len(node.args) <= place:
        return fact
    weight = cast("FxNode", node.args[place])
    fact = replace(fact, weight_shape=sizes.shape(weight))
    if op in CONVOLUTIONS:
        fact = replace(
            fact,
            kernel=(fact.weight_shape[2], fact.weight_shape[3]),
            stride=_pair(node, 3, 1),
            padding=_pair(node, 4, 0),
            groups=cast("int", node.args[6]) if len(node.args) > 6 else 1,
        )
    layer, _, parameter = parameters.get(getattr(weight, "name", ""), "").rpartition(".")
    if parameter != "weight":  # computed, or fixed in a buffer
        return fact
    bias = None if op == "embedding" else node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    own = parameters[weight.name].removesuffix("weight") + "bias"
    return replace(
        fact,
        layer=layer,
        has_bias=bias is not None,
        parameters=0,
        computed_bias=bias is not None and parameters.get(getattr(bias, "name", "")) != own,
    )


def _pair(node: FxNode, position: int, default: int) -> tuple[int, int]:
    value = node.args[position] if len(node.args) > position else default
    if isinstance(value, (list, tuple)):
        first, second = (value[0], value[-1])
        return int(cast("int", first)), int(cast("int", second))
    if isinstance(value, int):
        return value, value
    return default, default  # padding="same" and the like


def graph_module(program: ExportedProgram) -> GraphModule:
    """The exported program as a module that can be run and edited; its nodes have the graph's names.

    The guards that torch.export puts in front are taken out: shapes are checked by what the module computes.
    """
    module = program.module(check_guards=False)
    # An input called as a Python builtin is (nn.Sequential's is ``input``) has been given another name on the way.
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    for node, name in zip(placeholders, program.graph_signature.user_inputs, strict=True):
        node.name = name
    module.recompile()
    return module


def copied_trace(module: GraphModule) -> GraphModule:
    """A deep copy whose nodes have the names of the given one's: copying renames inputs as :func:`graph_module` says."""
    found = copied(module)
    for node, named in zip(found.graph.nodes, module.graph.nodes, strict=True):
        node.name = named.name
    found.recompile()
    return found


def on_device(module: ModuleT, device: torch.device) -> ModuleT:
    """``module`` itself, moved; in a traced one, what makes tensors where it was traced makes them there as well."""
    import torch

    for inner in module.modules():
        if isinstance(inner, torch.fx.GraphModule):
            for node in inner.graph.nodes:
                if node.kwargs.get("device") is not None:
                    node.update_kwarg("device", device)
            inner.recompile()
    return module.to(device)


def copied(module: ModuleT) -> ModuleT:
    """A deep copy. torch warns of its own internals when a traced module is copied."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return copy.deepcopy(module)
