"""What a search is for: a device, a runtime, what that runtime truly accelerates, and a latency model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from autocomp.errors import RequestError, UncoveredKernelError
from autocomp.formats import Activations, Work
from autocomp.hardware.latency import LatencyModel, Prediction
from autocomp.plan import Pattern

if TYPE_CHECKING:
    from autocomp.compress.quantize import Numerics
    from autocomp.compress.structure import Structure
    from autocomp.export.artifact import Artifact
    from autocomp.hardware.kernels import Kernel
    from autocomp.hardware.memory import MemoryModel
    from autocomp.hardware.warm_memory import WarmMemory

#: ``torch`` is followed by the device that it computes on. No target that ships runs torch on a CPU: packages for a GPU are
#: scored so where none is at hand, and what is written for both is tested so.
RuntimeName = Literal["onnxruntime", "openvino", "openvino-bf16", "tensorrt", "torch-cuda", "torch-cpu"]

#: They refuse a file with functions of its own, by which packed weights unpack themselves.
PLAIN_ONNX = frozenset({"openvino", "openvino-bf16", "tensorrt"})


def check_unpacks(artifact: Artifact | None, runtime: str, asked: str) -> None:
    """Raises:
    RequestError: the file would unpack itself, and the runtime cannot read it. ``asked`` says what it is for, up to the
        runtime's name.
    """
    if artifact == "onnx-packed" and runtime in PLAIN_ONNX:
        raise RequestError(
            f"a file that unpacks itself is for onnxruntime; {asked} {runtime}, which cannot read it; ask for "
            "--format onnx"
        )


@dataclass(frozen=True)
class Offer:
    """What is worth offering a search on this target, because it makes the file smaller or faster there.

    ``weight_bits`` of quantized layers and how their ``activations`` may be given to each kind of them; sparsity
    ``patterns``, and those of them that were measured to be ``faster``; whether truncated ranks pay.
    """

    weight_bits: tuple[int, ...]
    patterns: tuple[Pattern, ...]
    ranks: bool
    activations: Mapping[Work, tuple[Activations, ...]]
    faster: tuple[Pattern, ...] = ()


@dataclass(frozen=True)
class Target:
    """A device and its runtime.

    ``artifact`` is the format that size is counted in and that is shipped; ``reachable`` says whether files can be
    timed on this machine. ``runtime_version`` is the one that files are written for, in words, where it matters. ``note``
    is what a user must know of the milliseconds. ``profile_hash`` identifies the latency model, and ``lower`` turns a
    structure into the runtime's kernels. ``memory`` is None where none was measured. ``pace_us`` is what the reference
    workload took in the quiet moments of the calibration, None where that is not known.
    """

    name: str
    device: str
    runtime: RuntimeName
    runtime_version: str
    artifact: Artifact
    threads: int
    batch: int
    clocks: str
    offer: Offer
    numerics: Numerics
    model: LatencyModel
    memory: MemoryModel | WarmMemory | None
    lower: Callable[[Structure], tuple[Kernel, ...]]
    reachable: bool
    note: str
    profile_hash: str
    pace_us: float | None = None

    def peak_memory_bytes(self, structure: Structure, kernels: Sequence[Kernel]) -> int:
        """What a network takes while it runs: by the calibration's model of it, or counted where there is none.

        Args:
            kernels: as :attr:`lower` gives them for the structure.
        """
        from autocomp.hardware.memory import peak_memory_bytes, table_bytes

        if self.memory is None:
            return peak_memory_bytes(structure, self.batch)
        return self.memory.predict(kernels, table_bytes(structure))

    def predict(self, structure: Structure) -> Prediction:
        """The latency of a compressed network of this structure.

        Raises:
            UncoveredKernelError: the latency model was not calibrated on one of its kernels, or activations are of a kind
                that the runtime has none for.
        """
        self.check_kernels(structure)
        return self.model.predict(self.lower(structure))

    def check_kernels(self, structure: Structure) -> None:
        """Raises:
        UncoveredKernelError: activations are of a kind that the runtime has no kernel for.
        """
        formats = {name: layer.format for name, layer in structure.layers.items()}
        floats = tuple(name for name, chosen in formats.items() if chosen is not None and chosen.in_float8)
        if floats and self.artifact != "torch":
            raise UncoveredKernelError(
                f"{self.runtime} has no kernel for floats of 8 bits, which torch packages have; layers "
                f"{', '.join(floats[:5])}; give them w8a8, or choose a target that runs torch",
                floats,
            )
        simulated = tuple(name for name, chosen in formats.items() if chosen is not None and chosen.simulated)
        if simulated:
            raise UncoveredKernelError(
                f"{self.runtime} has no kernel for activations of {formats[simulated[0]]}, which are simulated for research "
                f"only; layers {', '.join(simulated[:5])}; give them 8 or 32 bits to have a latency",
                simulated,
            )
