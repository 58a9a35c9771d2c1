"""The unit of the latency model: one kernel call of a runtime, described by what its time depends on."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Kernel:
    """One kernel call for a whole batch.

    ``op`` is the runtime's kind of kernel (``conv_nchwc``, ``qlinear_conv``, ``quantize``, …), ``sources`` the layers
    (or graph nodes, where no layer is behind it) that it computes. Elements count values, not bytes.
    """

    op: str
    sources: tuple[str, ...]
    macs: int = 0
    in_elements: int = 0
    out_elements: int = 0
    weight_elements: int = 0
    kernel_area: int = 1
    stride: int = 1
    groups: int = 1
    fused_add: bool = False

    def features(self) -> tuple[float, ...]:
        """What a kernel's time is predicted from; see :data:`FEATURES`."""
        return (
            math.log1p(self.macs),
            math.log1p(self.in_elements),
            math.log1p(self.out_elements),
            math.log1p(self.weight_elements),
            math.log(self.kernel_area),
            math.log(self.stride),
            math.log(self.groups),
            float(self.fused_add),
        )


FEATURES = (
    "log_macs",
    "log_in_elements",
    "log_out_elements",
    "log_weight_elements",
    "log_kernel_area",
    "log_stride",
    "log_groups",
    "fused_add",
)
