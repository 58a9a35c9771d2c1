"""What ``trtexec`` is told: how an engine is built of a file, and the line that an owner of a board types."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from onnx import ModelProto, load_from_string

#: Beside ``model.onnx``.
SCRIPT = "trtexec.sh"


def build_options(file: ModelProto) -> list[str]:
    """Layers in fp16, and in int8 where the file rounds: then TensorRT must be allowed to."""
    integers = any(node.op_type == "QuantizeLinear" for node in file.graph.node)
    return ["--fp16", *(["--int8"] if integers else [])]


def shapes_option(file: ModelProto, shapes: Sequence[tuple[int, ...]]) -> list[str]:
    """The sizes that the file leaves open.

    Args:
        shapes: of the inputs, in the file's order; the batch among them.
    """
    initializers = {tensor.name for tensor in file.graph.initializer}
    inputs = [value for value in file.graph.input if value.name not in initializers]
    told = [
        f"{value.name}:{'x'.join(map(str, shape))}"
        for value, shape in zip(inputs, shapes, strict=True)
        if any(not dim.dim_value for dim in value.type.tensor_type.shape.dim)
    ]
    return [f"--shapes={','.join(told)}"] if told else []


def trtexec_script(model: bytes, shapes: Sequence[tuple[int, ...]], two_in_four: bool, tensorrt: str) -> bytes:
    """A shell script for the board.

    Args:
        model: the file, that will lie beside the script as ``model.onnx``.
        shapes: see :func:`shapes_option`.
        two_in_four: weights are zero in two places of four, for which the tensor cores of an Orin have products of half the
            work; TensorRT takes them where it finds them faster.
        tensorrt: the version that the file was written for, in words.
    """
    file = load_from_string(model)
    options = [
        "--onnx=model.onnx",
        *build_options(file),
        *(["--sparsity=enable"] if two_in_four else []),
        *shapes_option(file, shapes),
        "--saveEngine=model.engine",
        *("--useSpinWait", "--warmUp=500", "--duration=5"),
    ]
    return (
        "#!/bin/sh\n"
        f"# Builds the engine of model.onnx on the board and times it. Written for {tensorrt}; an engine holds for the\n"
        "# GPU and the TensorRT that built it. The median and percentiles of the GPU's time are printed at the end.\n"
        'cd "$(dirname "$0")" || exit 1\n'
        f'PATH="$PATH:/usr/src/tensorrt/bin" exec {shlex.join(["trtexec", *options])} "$@"\n'
    ).encode()
