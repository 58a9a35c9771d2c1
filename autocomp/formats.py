"""How a format is written in a space file and in a plan's name, and what it means for a layer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

from autocomp.errors import PlanError
from autocomp.inventory import LayerInfo
from autocomp.plan import Clip, Format, Grid, Rounding

#: How activations may be given to a layer: rounded on a calibrated grid, on that of the moment, not at all, or to floats of 8
#: bits, as its weights then are.
Activations = Literal["a8", "d8", "a32", "f8"]

#: Kinds of layers that a runtime treats differently: dense and depthwise (or grouped) convolutions, linears over plain
#: vectors and over sequences. Of everything else only the weights are stored in few bits.
Work = Literal["conv", "depthwise", "linear", "sequence"]
WORKS: tuple[Work, ...] = ("conv", "depthwise", "linear", "sequence")

_FORMAT = re.compile(
    r"^(?P<grid>[wtcf])(?P<weight>\d+)(?:(?P<how>[ad])(?P<activation>\d+))?(?:/(?P<steps>tensor|g\d+))?(?P<ways>(?:\+\w+)*)$"
)
_GRIDS: dict[str, Grid] = {"w": "uniform", "t": "ternary", "c": "codebook", "f": "float8"}


def check_format(text: str) -> None:
    """Raises:
    ValueError: the text is no format, or has bits that are not offered.
    """
    match = _FORMAT.match(text)
    if match is None:
        raise ValueError(
            f"a format is written like w8 (activations as suits the layer), w8a8, w8d8, w4a32, t2 (ternary), c4 (a "
            f"codebook) or f8 (floats of 8 bits), and then /tensor or /g32, +gptq, +adaround, +minmax or +percentile; got "
            f"{text!r}"
        )
    # Without a word on activations, floats are what every format can have but for the one that has its own.
    usual = "a8" if match["grid"] == "f" else "a32"
    _format(match, f"{match['how']}{match['activation']}" if match["how"] else usual)


def _format(match: re.Match[str], activations: str) -> Format:
    """Raises:
    ValueError: these bits, or these ways together, are not offered.
    """
    steps, ways = match["steps"] or "", [way for way in match["ways"].split("+") if way]
    for way in ways:
        if way not in (*get_args(Rounding), *get_args(Clip)):
            raise ValueError(
                f"a way to round or clip is one of {', '.join((*get_args(Rounding), *get_args(Clip)))}; got {way}"
            )
    try:
        return Format(
            int(match["weight"]),
            int(activations[1:]),
            activations[0] == "d",
            _GRIDS[match["grid"]],
            "tensor" if steps == "tensor" else "group" if steps else "channel",
            int(steps[1:]) if steps.startswith("g") else 0,
            next((way for way in get_args(Clip) if way in ways), "mse"),
            next((way for way in get_args(Rounding) if way in ways), "nearest"),
        )
    except PlanError as error:
        raise ValueError(str(error)) from error


def work_of(layer: LayerInfo) -> Work | None:
    """The kind of layers that one is of; None where no runtime has integer kernels for it."""
    if layer.kind == "conv2d":
        return "conv" if layer.groups == 1 else "depthwise"
    if layer.kind == "linear":
        return "linear" if len(layer.out_shape) == 1 else "sequence"
    return None


def format_for(text: str, layer: LayerInfo, activations: Sequence[Activations]) -> Format | None:
    """What a format of a space file means for a layer; None where the layer cannot have it.

    ``w4`` leaves the activations to the layer: rounded on a calibrated grid in convolutions and in linears over plain
    vectors; rounded at run time in linears over sequences, whose activations have outliers that come and go; not at all
    where there is no integer kernel.

    Args:
        activations: what the target makes something of.
    """
    match = _FORMAT.match(text)
    if match is None:
        return None
    if match["grid"] == "f":
        return _format(match, "a8") if layer.kind == "linear" and "f8" in activations else None
    order: tuple[Activations, ...] = ("a8", "a32") if layer.computes_integers else ("a32",)
    if layer.kind == "linear":
        order = ("d8", "a8", "a32") if len(layer.out_shape) > 1 else ("a8", "d8", "a32")
    if match["how"] is not None:
        wanted = f"{match['how']}{match['activation']}"
        possible = wanted == "a32" or (layer.computes_integers and (wanted == "a8" or layer.kind == "linear"))
        return _rounded(_format(match, wanted), layer) if possible and wanted in activations else None
    if match["weight"] == "16" or (match["steps"] or "").startswith("g"):
        order = ("a32",)
    return next((_rounded(_format(match, how), layer) for how in order if how in activations), None)


def _rounded(chosen: Format, layer: LayerInfo) -> Format:
    """To the nearest levels where the rounding looks at inputs that cannot be seen."""
    return chosen if layer.sees_inputs else replace(chosen, rounding="nearest")
