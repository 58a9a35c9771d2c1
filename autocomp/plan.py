"""What happens to each layer: data only, so that applying it can be a pure function.

A plan is JSON both ways and has a content hash; together with the original weights it rebuilds an unrecovered result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from types import MappingProxyType
from typing import Literal, get_args

from autocomp.errors import PlanError

Pattern = Literal["unstructured", "2:4", "1:4", "4:8", "block", "channel", "head"]
Saliency = Literal["magnitude", "taylor", "wanda", "hessian"]
RankMethod = Literal["svd", "whitened", "spatial", "tucker2", "nmf"]
#: Levels of quantized weights: evenly spaced, three, a table of them that was learned, or floats of 8 bits.
Grid = Literal["uniform", "ternary", "codebook", "float8"]
#: One step for the whole tensor, for each output channel, or for each group of weights in a channel's row.
Granularity = Literal["channel", "tensor", "group"]
Clip = Literal["mse", "minmax", "percentile"]
Rounding = Literal["nearest", "gptq", "adaround"]

#: What is done to the whole network, see :class:`Plan`.
Adjustment = Literal["equalize", "smooth", "bias", "norms"]

#: Saliencies that look at what a layer reads.
SEEING = frozenset({"wanda", "hessian"})

#: Patterns that take whole units out of a layer, and those that keep n of every m weights.
UNIT_PATTERNS = ("channel", "head")
#: Of these one threshold can hold for many layers.
ONE_THRESHOLD_PATTERNS: tuple[Literal["unstructured", "channel"], ...] = ("unstructured", "channel")
N_OF_M = MappingProxyType({"2:4": (2, 4), "1:4": (1, 4), "4:8": (4, 8)})

#: 16 are floats of half precision; 1 is -1 and 1.
WEIGHT_BITS = (16, 8, 6, 5, 4, 3, 2, 1)
#: 32 leaves activations as they are: the layer computes in floats with weights that are stored in few bits. For 16, 4 and 1
#: no runtime here has a kernel: they are simulated.
ACTIVATION_BITS = (8, 32, 16, 4, 1)
SIMULATED_BITS = (16, 4, 1)


def units_kept(units: int, level: float) -> int:
    """Of so many channels or heads, those that a sparsity ``level`` leaves; never fewer than one."""
    return max(1, units - round(units * level))


def _one_of(value: object, kind: object, what: str) -> None:
    if value not in get_args(kind):
        raise PlanError(f"{what} must be one of {', '.join(get_args(kind))}; got {value!r}")


@dataclass(frozen=True)
class Sparsity:
    """The share of a layer that is removed.

    ``unstructured`` zeroes single weights (Han et al., "Learning both weights and connections", 2015); ``2:4`` (and
    ``1:4``, ``4:8``) keep two of every four weights in a row over the input channels (Mishra et al., "Accelerating sparse
    deep neural networks", 2021); ``block`` zeroes blocks of four such weights (Narang et al., "Block-sparse recurrent
    neural networks", 2017); ``channel`` removes whole output channels, together with those of every layer coupled to it,
    and makes the layer really smaller (Li et al., "Pruning filters for efficient ConvNets", 2017); ``head`` does so with
    whole attention heads, on the layers that make queries, keys and values (Michel et al., "Are sixteen heads really
    better than one?", 2019). ``level`` is the share removed, in (0, 1).

    ``saliency`` says what goes first: what is small (``magnitude``; Han et al., "Learning both weights and
    connections", 2015), what the output depends on least to first order (``taylor``; Molchanov et al., "Importance
    estimation for neural network pruning", 2019), what meets small inputs (``wanda``; Sun et al., "A simple and
    effective pruning approach for large language models", 2023), or what the rest can best make up for, and does
    (``hessian``; Frantar & Alistarh, "SparseGPT", 2023).
    """

    pattern: Pattern
    level: float
    saliency: Saliency = "magnitude"

    def __post_init__(self) -> None:
        _one_of(self.pattern, Pattern, "sparsity pattern")
        _one_of(self.saliency, Saliency, "saliency")
        if not 0.0 < self.level < 1.0:
            raise PlanError(
                f"sparsity level must lie between 0 and 1 (exclusive); got {self.level}; for 0 leave it out"
            )
        if self.pattern in N_OF_M:
            n, m = N_OF_M[self.pattern]
            if self.level != 1 - n / m:
                raise PlanError(f"{self.pattern} removes {1 - n / m} of the weights; got a level of {self.level}")

    def __str__(self) -> str:
        amount = self.pattern if self.pattern in N_OF_M else f"{self.pattern} {self.level:.0%}"
        return amount if self.saliency == "magnitude" else f"{amount} by {self.saliency}"


@dataclass(frozen=True)
class Rank:
    """The rank ``r`` that a layer's weight is truncated to.

    Of the weight as an (out, in·k·k) matrix: ``svd`` (least error of the weights), ``whitened`` (least error of the
    layer's outputs; Wang et al., "SVD-LLM", 2024), ``nmf`` (what is positive and what is negative are non-negative
    factors of rank r/2; Lee & Seung, "Learning the parts of objects", 1999). Of convolutions also ``spatial``
    (k×1 to r channels, then 1×k; Jaderberg et al., "Speeding up convolutional neural networks with low rank
    expansions", 2014) and ``tucker2`` (1×1, k×k to r channels, 1×1; Kim et al., "Compression of deep convolutional
    neural networks for fast and low power mobile applications", 2016).
    """

    method: RankMethod
    r: int

    def __post_init__(self) -> None:
        _one_of(self.method, RankMethod, "rank method")
        if isinstance(self.r, bool) or not isinstance(self.r, int) or self.r < 1:
            raise PlanError(f"rank must be a whole number of at least 1; got {self.r!r}")

    @property
    def as_matrix(self) -> bool:
        """Whether what is truncated is the weight as an (out, in·k·k) matrix."""
        return self.method not in {"spatial", "tucker2"}

    def input_rank(self, inputs: int, outputs: int) -> int:
        """The rank on the input side of a Tucker-2 decomposition, whose output side has rank ``r``: the same share."""
        return min(inputs, max(1, round(self.r * inputs / outputs)))

    def __str__(self) -> str:
        return f"rank {self.r}" if self.method == "svd" else f"rank {self.r} by {self.method}"


@dataclass(frozen=True)
class Format:
    """The bits of a layer's weights (symmetric around zero) and of its input activations.

    ``dynamic``: the range of the activations is found anew at every run, not calibrated. ``grid``: the levels of the
    weights, ``group`` the size of the groups where the ``granularity`` is one. ``clip`` is how a step is chosen, for
    the weights and for the activations that the layer reads: least squared error (``mse``; Banner et al., "Post training
    4-bit quantization of convolutional networks for rapid-deployment", 2019), the largest value (``minmax``) or all but a
    thousandth of the values (``percentile``; both in Wu et al., "Integer quantization for deep learning inference",
    2020); tables, signs, and activations in floats or on grids of the moment follow from no range, and it has no say
    there. ``rounding``: to the ``nearest`` level; or so that what is rounded later makes up for what was rounded before
    (``gptq``; Frantar et al., "GPTQ", 2022); or up or down as the layer's outputs have it (``adaround``; Nagel et al., "Up
    or down?", 2020).

    ``float8``: weights and activations both are floats of 8 bits (E4M3; Micikevicius et al., "FP8 formats for deep learning",
    2022), which some GPUs multiply; the largest activation of calibration becomes the largest of them.

    Written ``w8a8``, ``w8d8`` (dynamic), ``w4a32`` (activations in floats), ``t2a8`` (ternary), ``c4a8`` (a codebook of
    16 levels), ``f8a8`` (floats of 8 bits), with ``/tensor`` or ``/g32`` for the granularity and ``+gptq``, ``+minmax`` and
    the like.
    """

    weight_bits: int
    activation_bits: int = 8
    dynamic: bool = False
    grid: Grid = "uniform"
    granularity: Granularity = "channel"
    group: int = 0
    clip: Clip = "mse"
    rounding: Rounding = "nearest"

    def __post_init__(self) -> None:
        if self.weight_bits not in WEIGHT_BITS:
            raise PlanError(f"weight bits must be one of {WEIGHT_BITS}; got {self.weight_bits!r}")
        if self.activation_bits not in ACTIVATION_BITS:
            raise PlanError(f"activation bits must be one of {ACTIVATION_BITS}; got {self.activation_bits!r}")
        for value, kind, what in (
            (self.grid, Grid, "the grid of weights"),
            (self.granularity, Granularity, "the granularity of steps"),
            (self.clip, Clip, "the way to clip"),
            (self.rounding, Rounding, "the rounding"),
        ):
            _one_of(value, kind, what)
        self._check_together()

    def _check_together(self) -> None:
        if self.dynamic and self.activation_bits != 8:
            raise PlanError(f"dynamic activations have 8 bits; got {self.activation_bits}; leave out dynamic")
        if self.weight_bits == 16 and (
            self.activation_bits not in (16, 32) or self._how != ("uniform", "channel", "nearest")
        ):
            raise PlanError(f"weights of 16 bits are floats, w16a32 or w16a16 and nothing else; got {self}")
        if self.grid == "ternary" and self.weight_bits != 2:
            raise PlanError(f"ternary weights have 2 bits; got {self.weight_bits}")
        if self.grid == "codebook" and not 2 <= self.weight_bits <= 6:
            raise PlanError(f"codebooks have 2 to 6 bits; got {self.weight_bits}")
        if self.in_float8 and (
            (self.weight_bits, self.activation_bits, self.dynamic) != (8, 8, False)
            or self.granularity == "group"
            or (self.clip, self.rounding) != ("mse", "nearest")
        ):
            raise PlanError(f"floats of 8 bits are f8a8 or f8a8/tensor and nothing else; got {self}")
        if (self.granularity == "group") != (self.group > 0):
            raise PlanError(
                f"groups of weights have a size, and nothing else has; got {self.granularity}, {self.group}"
            )
        if self.granularity == "group" and self.integer_activations:
            raise PlanError(f"integer kernels take one step a channel; got {self}; give groups activations of 32 bits")

    @property
    def _how(self) -> tuple[str, str, str]:
        return self.grid, self.granularity, self.rounding

    @property
    def integer_activations(self) -> bool:
        """Whether the layer reads integers, so that an integer kernel can compute it."""
        return self.activation_bits == 8 and not self.in_float8

    @property
    def in_float8(self) -> bool:
        """Whether the layer multiplies floats of 8 bits."""
        return self.grid == "float8"

    @property
    def simulated(self) -> bool:
        """Whether its activations are rounded for research only: computed in floats, with no time gained."""
        return self.activation_bits in SIMULATED_BITS

    @property
    def calibrated(self) -> bool:
        """Whether its input is rounded on a grid that calibration found."""
        return self.integer_activations and not self.dynamic

    @property
    def tables_of_integers(self) -> bool:
        """Whether an embedding of this format stays integers, of which only the rows read become floats."""
        return self.weight_bits < 16 and self.granularity != "group"

    @property
    def needs_two_bit_type(self) -> bool:
        """Whether a packed file stores the weights in ONNX's type of 2 bits, for which the file's opset is 25."""
        return self.weight_bits == 2 and self.grid == "uniform"

    def __str__(self) -> str:
        letter = {"uniform": "w", "ternary": "t", "codebook": "c", "float8": "f"}[self.grid]
        steps = {"channel": "", "tensor": "/tensor", "group": f"/g{self.group}"}[self.granularity]
        rest = [name for name in (self.rounding, self.clip) if name not in {"nearest", "mse"}]
        how = "d" if self.dynamic else "a"
        told = " (simulated)" if self.simulated else ""
        return (
            f"{letter}{self.weight_bits}{how}{self.activation_bits}{steps}{''.join(f'+{name}' for name in rest)}{told}"
        )


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
        return self.sparsity.level if self.sparsity is not None and self.sparsity.pattern in UNIT_PATTERNS else 0.0

    @property
    def mask(self) -> Sparsity | None:
        """The sparsity that zeroes weights and leaves the layer's shape; None where there is none."""
        return None if self.sparsity is None or self.sparsity.pattern in UNIT_PATTERNS else self.sparsity

    def masked_level(self) -> float:
        """The share of weights zeroed; 0 where none are."""
        return 0.0 if self.mask is None else self.mask.level

    def describe(self) -> str:
        """A few words for tables: ``rank 16, channel 50 %, w4a8``."""
        words = [str(one) for one in (self.rank, self.sparsity, self.format) if one is not None]
        return ", ".join(words) or "untouched"


UNTOUCHED = LayerPlan()


def _told(option: Sparsity | Rank | Format) -> dict[str, object]:
    """The fields that are not as usual, so that plans from before a field was there keep their hash."""
    always = {"activation_bits"}
    return {
        one.name: getattr(option, one.name)
        for one in fields(option)
        if one.name in always or getattr(option, one.name) != one.default
    }


@dataclass(frozen=True)
class Plan:
    """Layer path → :class:`LayerPlan`; a layer that is not named is left untouched.

    ``dropped_blocks`` names residual blocks that are left out altogether. ``adjustments`` are of the whole network:
    before its layers are compressed, ``equalize`` brings the ranges of neighbouring layers' weights together and
    ``smooth`` takes outliers out of what linears behind layer norms read; afterwards ``bias`` puts the means of channels
    back, and ``norms`` their spreads as well (see :mod:`autocomp.compress.adjust`).
    """

    layers: Mapping[str, LayerPlan] = field(default_factory=dict)
    dropped_blocks: tuple[str, ...] = ()
    adjustments: tuple[Adjustment, ...] = ()

    def __post_init__(self) -> None:
        for one in self.adjustments:
            _one_of(one, Adjustment, "an adjustment")
        touched = {name: lp for name, lp in sorted(self.layers.items()) if not lp.untouched}
        object.__setattr__(self, "layers", MappingProxyType(touched))
        object.__setattr__(self, "dropped_blocks", tuple(sorted(self.dropped_blocks)))
        object.__setattr__(self, "adjustments", tuple(sorted(set(self.adjustments))))

    def __getitem__(self, layer: str) -> LayerPlan:
        return self.layers.get(layer, UNTOUCHED)

    def __hash__(self) -> int:
        return hash((tuple(self.layers.items()), self.dropped_blocks, self.adjustments))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Plan):
            return NotImplemented
        mine, theirs = (self.dropped_blocks, self.adjustments), (other.dropped_blocks, other.adjustments)
        return dict(self.layers) == dict(other.layers) and mine == theirs

    def __reduce__(self) -> tuple[type[Plan], tuple[dict[str, LayerPlan], tuple[str, ...], tuple[Adjustment, ...]]]:
        return (Plan, (dict(self.layers), self.dropped_blocks, self.adjustments))  # a mapping proxy does not pickle

    def to_json(self) -> str:
        """Canonical JSON: the same plan gives the same text."""
        layers = {
            name: {key: _told(value) for key, value in vars(lp).items() if value is not None}
            for name, lp in self.layers.items()
        }
        document = {"layers": layers, "dropped_blocks": list(self.dropped_blocks)}
        if self.adjustments:
            document["adjustments"] = list(self.adjustments)
        return json.dumps(document, sort_keys=True)

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
            return Plan(layers, tuple(document.get("dropped_blocks", ())), tuple(document.get("adjustments", ())))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PlanError(f"a plan must be the JSON that Plan.to_json writes; got {text[:60]!r} ({error})") from error

    @cached_property
    def hash(self) -> str:
        """The first 16 hex digits of the SHA-256 of :meth:`to_json`."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]
