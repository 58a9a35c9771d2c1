"""What happens to each layer: data only, so that applying it can be a pure function.

A plan is JSON both ways and has a content hash; together with the original weights it rebuilds an unrecovered result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Literal, get_args

from autocomp.errors import PlanError

Pattern = Literal["unstructured", "channel", "head"]
RankMethod = Literal["svd"]

WEIGHT_BITS = (8, 4, 2)
#: 32 leaves activations as they are: the layer computes in floats with weights that are stored in few bits.
ACTIVATION_BITS = (8, 32)


@dataclass(frozen=True)
class Sparsity:
    """The share of a layer that is removed.

    ``unstructured`` zeroes the smallest single weights; ``channel`` removes whole output channels, together with
    those of every layer coupled to it, and makes the layer really smaller; ``head`` does so with whole attention heads,
    on the layers that make queries, keys and values. ``level`` is the share removed, in (0, 1).
    """

    pattern: Pattern
    level: float

    def __post_init__(self) -> None:
        if self.pattern not in get_args(Pattern):
            raise PlanError(f"sparsity pattern must be one of {', '.join(get_args(Pattern))}; got {self.pattern!r}")
        if not 0.0 < self.level < 1.0:
            raise PlanError(
                f"sparsity level must lie between 0 and 1 (exclusive); got {self.level}; for 0 leave it out"
            )


@dataclass(frozen=True)
class Rank:
    """The rank ``r`` that a layer's weight, seen as an (out, in·k·k) matrix, is truncated to."""

    method: RankMethod
    r: int

    def __post_init__(self) -> None:
        if self.method not in get_args(RankMethod):
            raise PlanError(f"rank method must be one of {', '.join(get_args(RankMethod))}; got {self.method!r}")
        if isinstance(self.r, bool) or not isinstance(self.r, int) or self.r < 1:
            raise PlanError(f"rank must be a whole number of at least 1; got {self.r!r}")


@dataclass(frozen=True)
class Format:
    """The bits of a layer's weights (uniform, symmetric, one scale per output channel, or per row of an embedding) and
    of its input activations.

    ``dynamic``: the range of the activations is found anew at every run, not calibrated. Written ``w8a8``, ``w8d8``
    (dynamic) and ``w4a32`` (activations in floats).
    """

    weight_bits: int
    activation_bits: int = 8
    dynamic: bool = False

    def __post_init__(self) -> None:
        if self.weight_bits not in WEIGHT_BITS:
            raise PlanError(f"weight bits must be one of {WEIGHT_BITS}; got {self.weight_bits!r}")
        if self.activation_bits not in ACTIVATION_BITS:
            raise PlanError(f"activation bits must be one of {ACTIVATION_BITS}; got {self.activation_bits!r}")
        if self.dynamic and self.activation_bits != 8:
            raise PlanError(f"dynamic activations have 8 bits; got {self.activation_bits}; leave out dynamic")

    @property
    def integer_activations(self) -> bool:
        """Whether the layer reads integers, so that an integer kernel can compute it."""
        return self.activation_bits == 8

    @property
    def calibrated(self) -> bool:
        """Whether its input is rounded on a grid that calibration found."""
        return self.integer_activations and not self.dynamic

    def __str__(self) -> str:
        return f"w{self.weight_bits}{'d' if self.dynamic else 'a'}{self.activation_bits}"


@dataclass(frozen=True)
class Drop:
    """A residual block is left out; its shortcut stays."""


@dataclass(frozen=True)
class LayerPlan:
    """What happens to one layer, in this order: rank, then sparsity, then format. The default leaves it untouched."""

    sparsity: Sparsity | None = None
    rank: Rank | None = None
    format: Format | None = None

    @property
    def untouched(self) -> bool:
        return self.sparsity is None and self.rank is None and self.format is None

    def channel_level(self) -> float:
        """The share of output channels removed, in whole heads or not; 0 where channels are not pruned."""
        return self.sparsity.level if self.sparsity is not None and self.sparsity.pattern != "unstructured" else 0.0

    def unstructured_level(self) -> float:
        """The share of single weights zeroed; 0 where they are not."""
        return self.sparsity.level if self.sparsity is not None and self.sparsity.pattern == "unstructured" else 0.0

    def describe(self) -> str:
        """A few words for tables: ``rank 16, channel 50 %, w4a8``."""
        words = []
        if self.rank is not None:
            words.append(f"rank {self.rank.r}")
        if self.sparsity is not None:
            words.append(f"{self.sparsity.pattern} {self.sparsity.level:.0%}")
        if self.format is not None:
            words.append(str(self.format))
        return ", ".join(words) or "untouched"


UNTOUCHED = LayerPlan()


@dataclass(frozen=True)
class Plan:
    """Layer path → :class:`LayerPlan`; a layer that is not named is left untouched.

    ``dropped_blocks`` names residual blocks that are left out altogether.
    """

    layers: Mapping[str, LayerPlan] = field(default_factory=dict)
    dropped_blocks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        touched = {name: lp for name, lp in sorted(self.layers.items()) if not lp.untouched}
        object.__setattr__(self, "layers", MappingProxyType(touched))
        object.__setattr__(self, "dropped_blocks", tuple(sorted(self.dropped_blocks)))

    def __getitem__(self, layer: str) -> LayerPlan:
        return self.layers.get(layer, UNTOUCHED)

    def __hash__(self) -> int:
        return hash((tuple(self.layers.items()), self.dropped_blocks))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Plan):
            return NotImplemented
        return dict(self.layers) == dict(other.layers) and self.dropped_blocks == other.dropped_blocks

    def __reduce__(self) -> tuple[type[Plan], tuple[dict[str, LayerPlan], tuple[str, ...]]]:
        return (Plan, (dict(self.layers), self.dropped_blocks))  # a mapping proxy does not pickle

    def to_json(self) -> str:
        """Canonical JSON: the same plan gives the same text."""
        layers = {
            name: {key: value for key, value in asdict(lp).items() if value is not None}
            for name, lp in self.layers.items()
        }
        for entry in layers.values():
            if not entry.get("format", {}).get("dynamic", True):
                del entry["format"]["dynamic"]  # so that plans from before it was there keep their hash
        return json.dumps({"layers": layers, "dropped_blocks": list(self.dropped_blocks)}, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Plan:
        """The plan written by :meth:`to_json`.

        Raises:
            PlanError: the text is not a plan, or a level in it is outside its range.
        """
        try:
            document = json.loads(text)
            layers = {
                name: LayerPlan(
                    sparsity=Sparsity(**entry["sparsity"]) if "sparsity" in entry else None,
                    rank=Rank(**entry["rank"]) if "rank" in entry else None,
                    format=Format(**entry["format"]) if "format" in entry else None,
                )
                for name, entry in document["layers"].items()
            }
            return Plan(layers, tuple(document.get("dropped_blocks", ())))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PlanError(f"a plan must be the JSON that Plan.to_json writes; got {text[:60]!r} ({error})") from error

    @property
    def hash(self) -> str:
        """The first 16 hex digits of the SHA-256 of :meth:`to_json`."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]
