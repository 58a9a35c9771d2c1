"""The CUDA GPU of this machine: what makes latencies measured on one hold, or not hold, on another."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata

from autocomp.errors import TargetError
from autocomp.hardware.fingerprint import Fingerprint

#: What ``nvidia-smi`` is asked of a card beside its driver, with units: a card that may draw less, or is held to lower clocks,
#: is another one.
LIMITS = (("clocks.max.sm", "MHz"), ("power.limit", "W"))
SMI_SECONDS = 20


def has_gpu() -> bool:
    """Whether torch sees a CUDA GPU here."""
    import torch

    return torch.cuda.is_available()


def gpu_fingerprint(runtime: str) -> Fingerprint:
    """The first GPU that torch sees: its name, compute capability (``family``), driver (``model``) and limits (``features``),
    and torch's version.

    Raises:
        TargetError: torch sees none.
    """
    if not has_gpu():
        raise TargetError(
            "a target on CUDA is measured on a GPU; torch sees none here; run autocomp calibrate cuda --out DIR on a machine "
            "with one, and give that folder as --target here"
        )
    import torch

    driver, *limits = _asked("driver_version", *(name for name, _ in LIMITS))
    return Fingerprint(
        cpu=torch.cuda.get_device_name(0),
        family=".".join(map(str, torch.cuda.get_device_capability(0))),
        model=driver,
        architecture=platform.machine(),
        features=tuple(sorted(f"{name} {told} {unit}" for (name, unit), told in zip(LIMITS, limits) if told)),
        logical_cores=len(os.sched_getaffinity(0)),
        runtime=runtime,
        runtime_version=metadata.version("torch"),
    )


def multiplies_sparse(here: Fingerprint) -> bool:
    """Whether there is a kernel for products of weights with two zeros in every four: torch's on GPUs of compute capability
    8.x, and one of our own on a CPU (see :mod:`autocomp.export.semi_structured`)."""
    return not here.on_gpu or here.family.startswith("8.")


def multiplies_float8(here: Fingerprint) -> bool:
    """Whether torch has a kernel for products of floats of 8 bits there: on a CPU, and on GPUs from compute capability 8.9."""
    if not here.on_gpu:
        return True
    return tuple(map(int, here.family.split("."))) >= (8, 9)


def gpu_clock_words() -> str:
    """How the GPU is clocked at the moment, as ``nvidia-smi`` tells."""
    now, most, drawn, limit = _asked("clocks.sm", "clocks.max.sm", "power.draw", "power.limit")
    if not now:
        return "GPU clocks not told by this system"
    return f"GPU at {now} of at most {most} MHz, drawing {drawn} of {limit} W at the time"


def _cards() -> list[str]:
    """What ``nvidia-smi`` may know the first GPU by that torch sees: its own numbers are in another order, and go to cards that
    ``CUDA_VISIBLE_DEVICES`` hides as well. The last is for a torch that does not tell, and for a part of a card."""
    import torch

    uuid = getattr(torch.cuda.get_device_properties(0), "uuid", None) if has_gpu() else None
    return ["0"] if uuid is None else [f"GPU-{uuid}", "0"]


def _asked(*fields: str) -> list[str]:
    """What ``nvidia-smi`` tells of the first card, a word a field; empty ones where it does not."""
    for card in _cards():
        command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", f"--id={card}"]
        try:
            ran = subprocess.run(command, capture_output=True, text=True, timeout=SMI_SECONDS, check=True)
        except (OSError, subprocess.SubprocessError):
            continue
        words = [word.strip() for word in ran.stdout.strip().split(",")]
        known = ["" if word.startswith("[") else word for word in words]  # [N/A], [Not Supported]
        if len(known) == len(fields):
            return known
    return [""] * len(fields)
