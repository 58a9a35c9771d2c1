"""What makes latencies measured on one machine hold, or not hold, on another."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from autocomp.errors import TargetError

#: Instruction sets that the runtimes pick kernels by, in Linux's words, with ours.
KERNEL_FEATURES = {
    "avx2": "avx2",
    "avx512f": "avx512f",
    "avx512_vnni": "avx512_vnni",
    "avx_vnni": "avx_vnni",
    "avx_vnni_int8": "avx_vnni_int8",
    "avx512_bf16": "avx512_bf16",
    "avx512_fp16": "avx512_fp16",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
    "neon": "neon",
    "asimd": "neon",
    "asimdhp": "fp16",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "sve2": "sve2",
    "sme": "sme",
}

_WORDS = ("cpu", "family", "model", "architecture", "runtime", "runtime_version")

_CPUINFO = Path("/proc/cpuinfo")
_BOARD = Path("/proc/device-tree/model")


@dataclass(frozen=True)
class Fingerprint:
    """A CPU, or a GPU, and the runtime on it.

    ``family`` and ``model`` are the vendor's numbers as the system writes them (on Arm: implementer and part, several
    parts joined by ``+``); empty where the system does not say. ``features`` are sorted names out of
    :data:`KERNEL_FEATURES`. ``logical_cores`` counts those that this process may run on. ``runtime`` is the name of its
    package, with what floats are computed in behind a hyphen where that is not floats.
    """

    cpu: str
    family: str
    model: str
    architecture: str
    features: tuple[str, ...]
    logical_cores: int
    runtime: str
    runtime_version: str

    @property
    def on_gpu(self) -> bool:
        """Whether it is of a GPU: see :func:`autocomp.hardware.gpu.gpu_fingerprint` for what the words mean then."""
        return self.runtime.endswith("-cuda")

    def to_json(self) -> str:
        """Canonical JSON: the same fingerprint gives the same text."""
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Fingerprint:
        """The fingerprint written by :meth:`to_json`.

        Raises:
            TargetError: the text is not a fingerprint.
        """
        try:
            document = json.loads(text)
            if not all(isinstance(feature, str) for feature in document["features"]):
                raise TypeError("features must be names")
            return Fingerprint(
                **{key: str(document[key]) for key in _WORDS},
                features=tuple(sorted(document["features"])),
                logical_cores=int(document["logical_cores"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise TargetError(
                f"a fingerprint must be the JSON that Fingerprint.to_json writes; got {text[:60]!r} ({error!r}); "
                "calibrate again"
            ) from error

    @property
    def hash(self) -> str:
        """The first 16 hex digits of the SHA-256 of :meth:`to_json`."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]


def this_machine(runtime: str = "onnxruntime") -> Fingerprint:
    """The fingerprint of the machine this runs on, with that runtime.

    Linux says it all; elsewhere :mod:`platform` gives the CPU's name and architecture, and the features stay empty.

    Raises:
        TargetError: the runtime is not installed, or computes on a GPU and there is none.
    """
    if runtime.endswith("-cuda"):
        from autocomp.hardware.gpu import gpu_fingerprint

        return gpu_fingerprint(runtime)
    machine, cores, version = platform.machine(), _usable_cores(), (runtime, installed_version(runtime))
    if _CPUINFO.exists():
        board = _BOARD.read_text(encoding="utf-8", errors="replace").strip("\0\n ") if _BOARD.exists() else ""
        return from_cpuinfo(_CPUINFO.read_text(encoding="utf-8", errors="replace"), machine, cores, version, board)
    name = platform.processor() or machine or "unknown"
    return Fingerprint(name, "", "", machine, (), cores, *version)


def installed_version(runtime: str) -> str:
    """The version of a runtime's package.

    Raises:
        TargetError: it is not installed.
    """
    package = runtime.partition("-")[0]
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError as error:
        raise TargetError(
            f"the target's runtime must be installed; {package} is not; pip install 'autocomp[{package}]', or choose "
            "another --target"
        ) from error


def from_cpuinfo(
    text: str, architecture: str, logical_cores: int, runtime: tuple[str, str], board: str = ""
) -> Fingerprint:
    """The fingerprint in the text of Linux's ``/proc/cpuinfo``.

    ``runtime`` is a name and a version. On Arm that text seldom names the CPU; ``board``, the device tree's model, stands
    in for its name.
    """
    entries: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            entries.setdefault(key.strip(), []).append(value.strip())

    def distinct(key: str) -> list[str]:
        return list(dict.fromkeys(entries.get(key, [])))

    family = "+".join(distinct("cpu family") or distinct("CPU implementer"))
    model = "+".join(distinct("model") or distinct("CPU part"))
    names = [*distinct("model name"), board, *distinct("Hardware"), f"{architecture} {family} {model}"]
    # cores of different kinds: only what all of them can do is safe to count on
    per_core = [set(flags.split()) for flags in [*entries.get("flags", []), *entries.get("Features", [])]]
    flags = set.intersection(*per_core) if per_core else set()
    return Fingerprint(
        cpu=next(name.strip() for name in names if name.strip()),
        family=family,
        model=model,
        architecture=architecture,
        features=tuple(sorted({ours for theirs, ours in KERNEL_FEATURES.items() if theirs in flags})),
        logical_cores=logical_cores,
        runtime=runtime[0],
        runtime_version=runtime[1],
    )


def mismatch(profile: Fingerprint, here: Fingerprint, threads: int = 1) -> list[str]:
    """Why latencies measured on ``profile``'s machine do not hold ``here``, in words; empty where they hold.

    Another number of cores does not matter as long as ``threads`` fit; neither does a patch release of the runtime.
    """
    words = []
    if profile.architecture != here.architecture:
        words.append(f"architecture {here.architecture} instead of {profile.architecture}")
    if _identity(profile) != _identity(here):
        device = "GPU" if here.on_gpu else "CPU"
        words.append(f"{device} {_described(here)} instead of {_described(profile)}")
    missing = sorted(set(profile.features) - set(here.features))
    added = sorted(set(here.features) - set(profile.features))
    if missing:
        words.append(f"without {', '.join(missing)}")
    if added:
        words.append(f"with {', '.join(added)} besides")
    if (profile.runtime, _minor(profile.runtime_version)) != (here.runtime, _minor(here.runtime_version)):
        words.append(f"{here.runtime} {here.runtime_version} instead of {profile.runtime} {profile.runtime_version}")
    if here.logical_cores < threads:
        words.append(f"{here.logical_cores} cores for {threads} threads")
    return words


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _identity(fingerprint: Fingerprint) -> tuple[str, str, str]:
    return (fingerprint.cpu, fingerprint.family, fingerprint.model)


def _described(fingerprint: Fingerprint) -> str:
    words = ("compute capability", "driver") if fingerprint.on_gpu else ("family", "model")
    told = zip(words, (fingerprint.family, fingerprint.model), strict=True)
    numbers = ", ".join(f"{word} {value}" for word, value in told if value)
    return f"{fingerprint.cpu} ({numbers})" if numbers else fingerprint.cpu


def _minor(version: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\d+", version)[:2])
