"""What a search is for: a device, a runtime, what that runtime truly accelerates, and a latency model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from autocomp.hardware.latency import LatencyModel, Prediction
from autocomp.plan import Pattern
from autocomp.space import Activations, Work

if TYPE_CHECKING:
    from autocomp.compress.quantize import Numerics
    from autocomp.compress.structure import Structure
    from autocomp.hardware.kernels import Kernel

RuntimeName = Literal["onnxruntime", "openvino", "tensorrt"]
Artifact = Literal["onnx", "onnx-packed"]


@dataclass(frozen=True)
class Offer:
    """What is worth offering a search on this target, because it makes the file smaller or faster there.

    ``weight_bits`` of quantized layers and how their ``activations`` may be given to each kind of them; sparsity
    ``patterns``; whether truncated ranks pay.
    """

    weight_bits: tuple[int, ...]
    patterns: tuple[Pattern, ...]
    ranks: bool
    activations: Mapping[Work, tuple[Activations, ...]]


@dataclass(frozen=True)
class Target:
    """A device and its runtime.

    ``artifact`` is the format that size is counted in and that is shipped; ``reachable`` says whether files can be
    timed on this machine. ``note`` is what a user must know of the milliseconds. ``profile_hash`` identifies the
    latency model, and ``lower`` turns a structure into the runtime's kernels.
    """

    name: str
    device: str
    runtime: RuntimeName
    artifact: Artifact
    threads: int
    batch: int
    clocks: str
    offer: Offer
    numerics: Numerics
    model: LatencyModel
    lower: Callable[[Structure], tuple[Kernel, ...]]
    reachable: bool
    note: str
    profile_hash: str

    def predict(self, structure: Structure) -> Prediction:
        """The latency of a compressed network of this structure.

        Raises:
            UncoveredKernelError: the latency model was not calibrated on one of its kernels.
        """
        return self.model.predict(self.lower(structure))
