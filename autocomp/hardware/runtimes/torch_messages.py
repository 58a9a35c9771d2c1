"""What is asked of the process that runs torch packages, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from autocomp.hardware.torch_kernels import ExecutedNode

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Load:
    """A package, to be loaded afresh, and the number that it is called by."""

    number: int
    model: bytes


@dataclass(frozen=True)
class About:
    """What a loaded package takes: names, shapes (None where a size is free) and types of its inputs."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int | None, ...], ...]
    dtypes: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """Compute all outputs."""

    number: int
    inputs: Sequence[Array]


@dataclass(frozen=True)
class Bind:
    """Get ready to be timed on these inputs."""

    number: int
    inputs: Sequence[Array]


@dataclass(frozen=True)
class Block:
    """See :meth:`autocomp.hardware.timing.TimesItself.block`."""

    number: int
    warmup: int
    calls: int
    samples: int


@dataclass(frozen=True)
class Profile:
    """Tell of every operation of a package what it is and how long it takes."""

    model: bytes
    inputs: Sequence[Array]
    runs: int


@dataclass(frozen=True)
class Drop:
    """Forget a package."""

    number: int


Request = Load | Run | Bind | Block | Profile | Drop
Answer = About | list[Array] | list[float] | tuple[ExecutedNode, ...] | None


@dataclass(frozen=True)
class Refused:
    """What torch says, in one line."""

    reason: str
