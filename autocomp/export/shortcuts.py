"""Integer shortcuts without weights as convolutions of ones: a rewrite of a float graph, in place.

onnxruntime computes a slice of every second pixel in 3 ns a pixel, brings a pad and the addition behind it back to floats,
and all of it out of the layout of its convolutions. The ones take no space in a file: they are made when it is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from autocomp.compress.shortcuts import TO_THE_END
from autocomp.export.integers import consumers, replace_node

#: Dimensions of rows and columns.
ROWS, COLUMNS = 2, 3


def convolve_shortcuts(graph: GraphProto) -> None:
    """Write what :func:`autocomp.compress.shortcuts.find_shortcuts` finds as a convolution of ones on its source's grid."""
    pads, replaced = [node for node in graph.node if node.op_type == "Pad"], list[NodeProto]()
    if not pads:
        return
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    writers = {name: node for node in graph.node for name in node.output}
    channels = {value.name: value.type.tensor_type.shape.dim for value in graph.value_info}
    returned = {value.name for value in graph.output}
    for pad in pads:
        ends = constants.get(pad.input[1])
        filled = constants.get(pad.input[2], 0.0) if len(pad.input) > 2 and pad.input[2] else 0.0
        if ends is None or len(ends) != 8 or any(ends[[0, 2, 3, 4, 6, 7]]) or min(ends) < 0 or filled != 0.0:
            continue
        stride, chain, source = {ROWS: 1, COLUMNS: 1}, [pad], pad.input[0]
        while (node := writers.get(source)) is not None and (step := _step(node, constants)) is not None:
            if source in returned or len(consumers(graph.node, source)) > 1:
                break
            stride[step[0]] *= step[1]
            chain.append(node)
            source = node.input[0]
        rounding = writers.get(source)
        if rounding is None or rounding.op_type != "DequantizeLinear" or source not in channels:
            continue
        inputs = channels[source][1].dim_value
        _convolve(graph, pad, rounding, (stride[ROWS], stride[COLUMNS]), inputs, int(ends[1]), int(ends[5]))
        for node in chain[1:]:
            graph.node.remove(node)
        replaced += chain
    read = {name for node in graph.node for name in node.input}
    unread = {name for node in replaced for name in node.input[1:]} - read
    for tensor in [one for one in graph.initializer if one.name in unread]:
        graph.initializer.remove(tensor)


def _step(node: NodeProto, constants: Mapping[str, npt.NDArray[Any]]) -> tuple[int, int] | None:
    """(dimension, step) of a slice of all rows or columns; None of all else."""
    if node.op_type != "Slice" or len(node.input) < 5:
        return None
    found = [constants[name] for name in node.input[1:5] if name in constants]
    if len(found) < 4 or any(one.size != 1 for one in found):
        return None
    start, end, axis, step = (int(one.item()) for one in found)
    return (axis, step) if start == 0 and end == TO_THE_END and axis in (ROWS, COLUMNS) and step > 0 else None


def _convolve(
    graph: GraphProto,
    pad: NodeProto,
    rounding: NodeProto,
    stride: tuple[int, int],
    inputs: int,
    before: int,
    after: int,
) -> None:
    """Put the convolution in the place of a pad: output channel i + ``before`` is input channel i."""
    name, make, grid = pad.output[0], helper.make_node, list(rounding.input[1:])
    graph.initializer.extend(
        [
            helper.make_tensor(f"{name}.shape", TensorProto.INT64, [2], [before + inputs + after, inputs]),
            helper.make_tensor(f"{name}.axes", TensorProto.INT64, [2], [ROWS, COLUMNS]),
            helper.make_tensor(f"{name}.one", TensorProto.FLOAT, [], [1.0]),
        ]
    )
    weight = [
        make("ConstantOfShape", [f"{name}.shape"], [f"{name}.zeros"]),
        make("EyeLike", [f"{name}.zeros"], [f"{name}.ones"], dtype=TensorProto.INT32, k=-before),
        make("Cast", [f"{name}.ones"], [f"{name}.flat"], to=TensorProto.INT8),
        make("Unsqueeze", [f"{name}.flat", f"{name}.axes"], [f"{name}.levels"]),
        make("DequantizeLinear", [f"{name}.levels", f"{name}.one"], [f"{name}.weight"]),
    ]
    convolution = [
        make("Conv", [rounding.output[0], f"{name}.weight"], [f"{name}.y"], strides=stride),
        make("QuantizeLinear", [f"{name}.y", *grid], [f"{name}.q"]),
        make("DequantizeLinear", [f"{name}.q", *grid], [name]),
    ]
    replace_node(graph, pad, [*weight, *convolution])
