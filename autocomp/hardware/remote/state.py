"""What a board says of its clocks, power mode, heat and throttling, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

#: Raspberry Pi's word for never throttled, never short of voltage.
NEVER_THROTTLED = "throttled=0x0"


def state_words(before: Mapping[str, object], after: Mapping[str, object]) -> str:
    """One line of what held while something was measured.

    Args:
        before, after: answers of the agent's ``state``.
    """
    return "; ".join(_words(before, after)) or "not told by this system"


def _words(before: Mapping[str, object], after: Mapping[str, object]) -> Iterator[str]:
    governors, limits = (cast("list[str]", before["governors"]), cast("list[int]", before["cpu_max_khz"]))
    if governors:
        most = f", at most {max(limits) / 1e3:.0f} MHz" if limits else ""
        yield f"governor {', '.join(governors)}{most}"
    for key, unit, what in (("cpu_khz", 1e3, "cores"), ("gpu_hz", 1e6, "GPU")):
        clocks = [*cast("list[int]", before[key]), *cast("list[int]", after[key])]
        if clocks:
            yield f"{what} at {min(clocks) / unit:.0f} to {max(clocks) / unit:.0f} MHz when looked at"
    if before["power_mode"]:
        yield str(before["power_mode"])
    heat = [*cast("dict[str, float]", before["celsius"]).values(), *cast("dict[str, float]", after["celsius"]).values()]
    if heat:
        yield f"{min(heat):.0f} to {max(heat):.0f} °C"
    if before["throttled"]:
        yield "not throttled" if after["throttled"] == NEVER_THROTTLED else f"{after['throttled']} (0x0 is never)"
