"""What a system says of how fast its cores are clocked."""

from __future__ import annotations

import re
from pathlib import Path

CORES = Path("/sys/devices/system/cpu")
CPUINFO = Path("/proc/cpuinfo")


def clock_words(cores: Path = CORES, cpuinfo: Path = CPUINFO) -> str:
    """The governors and the range that the cores may be clocked in; what they are clocked at now where a system, as in a
    virtual machine, says no more.

    Args:
        cores: Linux's folder of cores.
        cpuinfo: Linux's ``/proc/cpuinfo``.
    """
    policies = sorted(cores.glob("cpu[0-9]*/cpufreq"))
    governors = sorted({word for policy in policies if (word := _text(policy / "scaling_governor"))})
    limits = [
        int(number) / 1e3
        for policy in policies
        for name in ("scaling_min_freq", "scaling_max_freq")
        if (number := _text(policy / name)).isdigit()
    ]
    if governors and limits:
        return f"governor {', '.join(governors)}, {min(limits):.0f} to {max(limits):.0f} MHz"
    now = [float(number) for number in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", _text(cpuinfo), re.MULTILINE)]
    if now:
        return f"governor not told by this system; {min(now):.0f} MHz at the time"
    return "not told by this system"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
