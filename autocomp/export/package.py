"""A program of ``torch.export`` → the bytes of its ``.pt2`` package, without what only a debugger misses.

``torch.export.save`` writes a zip whose description of the graph (JSON) takes more room than the weights of a small network:
stack traces, the names of modules, the shape of every value in words. The former are left out, and the description is
deflated, as zips have it; weights are stored as they are. Stock torch loads both alike.
"""

from __future__ import annotations

import io
import zipfile
from typing import TYPE_CHECKING

import torch

from autocomp.errors import ExportError, first_line

if TYPE_CHECKING:
    from torch.export import ExportedProgram

#: In a package, what is stored as it is: its values say nothing to a compressor.
RAW = ("/weights/weight_", "/constants/tensor_")
#: Of a node, what computing needs.
NEEDED = frozenset({"val", "tensor_meta"})
#: Says which writer wrote the file, and differs from one writing to the next; no reader needs it.
SERIAL = "/.data/serialization_id"
#: A time that is the same for every file.
EPOCH = (1980, 1, 1, 0, 0, 0)


def package(program: ExportedProgram) -> bytes:
    """The ``.pt2`` package of ``program``, which loses what only a debugger misses, and what counts on the strides of the
    device that it was traced on. The same program gives the same bytes.

    Raises:
        ExportError: torch.export cannot write it.
    """
    _strip(program)
    whole = io.BytesIO()
    try:
        torch.export.save(program, whole)
    except Exception as error:  # torch.export raises whatever its serializer raises
        raise ExportError(f"torch.export could not write the compressed model: {first_line(error)}") from error
    return _deflated(whole.getvalue())


def _strip(program: ExportedProgram) -> None:
    graph = program.graph
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target == torch.ops.aten._assert_tensor_metadata.default:
            graph.erase_node(node)
        else:
            if node.target == torch.ops.aten.view.default:
                # Traced on a CPU: elsewhere attention writes its result in another order, and what was a view has to copy.
                node.target = torch.ops.aten.reshape.default
            node.meta = {name: value for name, value in node.meta.items() if name in NEEDED}
    del program.module_call_graph[1:]  # the first is the whole model: how its inputs are nested
    program.example_inputs = None


def _deflated(file: bytes) -> bytes:
    """The package with everything but its tensors deflated."""
    smaller = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(file)) as old, zipfile.ZipFile(smaller, "w") as new:
        for entry in old.infolist():
            if entry.filename.endswith(SERIAL):
                continue
            raw = any(part in entry.filename for part in RAW)
            written = zipfile.ZipInfo(entry.filename, EPOCH)
            written.external_attr = 0o644 << 16
            written.compress_type = zipfile.ZIP_STORED if raw else zipfile.ZIP_DEFLATED
            new.writestr(written, old.read(entry), compresslevel=None if raw else 9)
    return smaller.getvalue()
