"""The formats that a compressed model is written in: the file of each, its name, and what its bytes are foreseen to be."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, Protocol

from autocomp.export.package_size import PackageSizes
from autocomp.export.size import SizeModel
from autocomp.export.to_onnx import export_onnx
from autocomp.export.to_torch import export_torch

if TYPE_CHECKING:
    from autocomp.compress.apply import Compressed
    from autocomp.compress.quantize import Numerics
    from autocomp.compress.structure import Structure

Artifact = Literal["onnx", "onnx-packed", "torch"]

#: What a file is called in an export folder.
FILE_NAMES: Mapping[Artifact, str] = MappingProxyType(
    {"onnx": "model.onnx", "onnx-packed": "model.onnx", "torch": "model.pt2"}
)


class Sizes(Protocol):
    """Foresees the bytes of one network's files."""

    def predict(self, structure: Structure) -> int:
        """Bytes of the file of a compressed network of this structure."""
        ...


def export(compressed: Compressed, artifact: Artifact) -> bytes:
    """The file of a compressed model in a format, batch size free.

    Raises:
        ExportError: the file cannot be written.
    """
    if artifact == "torch":
        return export_torch(compressed)
    return export_onnx(compressed, packed=artifact == "onnx-packed")


def sizes_of(untouched: Structure, file_bytes: int, artifact: Artifact, numerics: Numerics) -> Sizes:
    """What foresees the bytes of a network's files, from the size of the untouched one."""
    if artifact == "torch":
        return PackageSizes.from_package(untouched, file_bytes, numerics.floats, numerics.symmetric_activations)
    packed = artifact == "onnx-packed"
    return SizeModel.from_export(untouched, file_bytes, packed, numerics.integer_bias, numerics.attention_operator)
