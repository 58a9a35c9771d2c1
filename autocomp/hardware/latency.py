"""What every latency model promises: kernels in, milliseconds with an error bar and their source out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from autocomp.errors import UncoveredKernelError
from autocomp.hardware.kernels import Kernel
from autocomp.trial import Source


@dataclass(frozen=True)
class KernelTime:
    """One kernel's share of a prediction."""

    kernel: Kernel
    latency_ms: float


@dataclass(frozen=True)
class Prediction:
    """A predicted latency. ``std_ms`` is one standard deviation of its error; ``kernels`` say where the time goes."""

    latency_ms: float
    std_ms: float
    source: Source
    kernels: tuple[KernelTime, ...]


#: How a number of bytes was come by: read off a process that ran the file, by a calibration's model, or by counting.
MemorySource = Literal["measured", "fitted", "counted"]


@dataclass(frozen=True)
class Forecast:
    """What a network is foreseen to take on a target: its latency, and the memory that a process holds for running it.

    ``uncovered`` names the kernels that the latency model does not know, whose time the latency lacks; None where it knows
    all.
    """

    latency: Prediction
    peak_memory_bytes: int
    memory_source: MemorySource
    uncovered: UncoveredKernelError | None = None

    @property
    def latency_ms(self) -> float:
        return self.latency.latency_ms

    @property
    def kernels(self) -> tuple[KernelTime, ...]:
        return self.latency.kernels


@dataclass(frozen=True)
class HeldOutError:
    """How far a model was off on networks that it was not fitted to.

    ``mean`` and ``median`` are of the absolute relative error (0.05 = 5 %), ``within_10`` and ``within_20`` the shares
    of networks within ±10 % and ±20 %. ``networks`` were held out in all; ``note`` says what they were. ``pairs`` are each
    one's latency as it was measured and as it was predicted, in ms, where they were kept.
    """

    mean: float
    median: float
    within_10: float
    within_20: float
    networks: int
    note: str
    pairs: tuple[tuple[float, float], ...] = ()

    @staticmethod
    def of_json(entry: Mapping[str, Any] | None) -> HeldOutError | None:
        """Of what ``dataclasses.asdict`` made of one, as JSON gives it back.

        Raises:
            TypeError, ValueError: it is none.
        """
        if entry is None:
            return None
        pairs = tuple((float(measured), float(predicted)) for measured, predicted in entry.get("pairs", ()))
        return HeldOutError(**{**entry, "pairs": pairs})


class LatencyModel(Protocol):
    """Predicts the latency of one inference from the kernels that a runtime runs for it."""

    @property
    def source(self) -> Source:
        """Where its milliseconds come from."""
        ...

    @property
    def held_out(self) -> HeldOutError | None:
        """Its error on held-out networks; None where there was nothing to hold out."""
        ...

    def covers(self, kernel: Kernel) -> bool:
        """Whether it was calibrated on kernels of this kind."""
        ...

    def predict(self, kernels: Sequence[Kernel]) -> Prediction:
        """The latency of a network.

        Raises:
            UncoveredKernelError: the model was not calibrated on one of the kernels; names the layers.
        """
        ...


def refuse(unknown: Sequence[Kernel], said: str, remedy: str) -> None:
    """Refuse kernels that a model has no numbers for, if there are any.

    Args:
        said: what the model knows or not, up to the kernels' names.
        remedy: the way out.

    Raises:
        UncoveredKernelError: there are some; names the layers.
    """
    if unknown:
        layers = tuple(dict.fromkeys(source for kernel in unknown for source in kernel.sources))
        ops = ", ".join(sorted({kernel.op for kernel in unknown}))
        raise UncoveredKernelError(f"{said} {ops} (needed by {', '.join(layers)}); {remedy}", layers)
