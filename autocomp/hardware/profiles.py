"""Hardware profiles on disk → targets. One folder a profile: ``profile.yaml``, ``measurements.csv``,
``latency_model.json``, ``README.md``.

Profiles that ship lie in ``hardware_profiles/``; those that were calibrated here lie in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from autocomp.compress.quantize import Floats, Numerics
from autocomp.errors import RequestError, TargetError, did_you_mean
from autocomp.export.artifact import Artifact
from autocomp.formats import Activations, Work
from autocomp.hardware import lowering, lowering_openvino, lowering_torch, tensorrt
from autocomp.hardware.calibrate import narrow_products, nchwc_block
from autocomp.hardware.datasheet_cpu import DatasheetCpu
from autocomp.hardware.fingerprint import Fingerprint, mismatch, this_machine
from autocomp.hardware.fitted import FittedModel
from autocomp.hardware.gains import Gain, Way, paying
from autocomp.hardware.gpu import has_gpu
from autocomp.hardware.latency import LatencyModel
from autocomp.hardware.memory import PARTS, MemoryModel
from autocomp.hardware.roofline import RooflineModel
from autocomp.hardware.target import Offer, RuntimeName, Target, check_unpacks
from autocomp.places import cache_folder, names_profile_folder, shipped_folder
from autocomp.plan import UNIT_PATTERNS, Pattern

#: The file of a profile's model of memory.
MEMORY_MODEL = "memory_model.json"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _OfferFile(_Strict):
    weight_bits: tuple[int, ...]
    patterns: tuple[Pattern, ...]
    ranks: bool
    activations: tuple[Activations, ...]


class _GainFile(_Strict):
    work: Work
    way: Way
    speedup: float


class _NumericsFile(_Strict):
    symmetric_activations: bool
    integer_bias: bool
    rounded_outputs: bool
    attention_operator: bool
    convolved_shortcuts: bool = False
    opset: int | None = None
    floats: Floats = "fp32"
    sparse_products: bool = False


class ProfileFile(_Strict):
    """``profile.yaml``. ``offer`` is what the runtime has kernels for, ``gains`` what they were measured to be worth there
    (see :mod:`autocomp.hardware.gains`). ``runtime_version`` in words, where files are written for one. ``boards``: a word
    of what such a board calls itself (``/proc/device-tree/model``), or with a hyphen the whole of it, like JetPack 4's
    ``Jetson-AGX``; with a star, words that follow each other in it. ``nchwc_block``: see :mod:`autocomp.hardware.lowering`; by
    the CPU where it was not measured. ``fingerprint`` is there where the profile holds for one kind of machine only."""

    name: str
    aliases: tuple[str, ...] = ()
    device: str
    runtime: RuntimeName
    runtime_version: str = ""
    artifact: Artifact
    threads: int
    batch: int
    clocks: str
    offer: _OfferFile
    gains: tuple[_GainFile, ...] = ()
    numerics: _NumericsFile
    note: str
    boards: tuple[str, ...] = ()
    nchwc_block: int | None = None
    fingerprint: dict[str, str | int | list[str]] | None = None


@dataclass(frozen=True)
class Profile:
    """A profile folder that was read and checked."""

    folder: Path
    file: ProfileFile

    @property
    def names(self) -> tuple[str, ...]:
        return (self.file.name, *self.file.aliases)

    @property
    def fingerprint(self) -> Fingerprint | None:
        given = self.file.fingerprint
        return None if given is None else Fingerprint.from_json(json.dumps(given))

    @property
    def calibrated(self) -> bool:
        """Whether it has a latency model. One that has none says what a calibration begins with."""
        return (self.folder / "latency_model.json").is_file()

    @property
    def measurable(self) -> bool:
        """Whether its runtime can be measured on a machine of the user's own, by ``autocomp calibrate``."""
        return self.fingerprint is not None or not self.calibrated

    @property
    def floats(self) -> Floats | None:
        """What its torch packages compute floats in; None where its files are ONNX."""
        return self.file.numerics.floats if self.file.artifact == "torch" else None

    @property
    def hash(self) -> str:
        """Of what predictions depend on."""
        digest = hashlib.sha256()
        for name in ("profile.yaml", "latency_model.json", MEMORY_MODEL):
            if (self.folder / name).is_file():
                digest.update((self.folder / name).read_bytes())
        return digest.hexdigest()[:16]

    @property
    def is_readable(self) -> bool:
        """Whether its models are of this version."""
        try:
            self.model(), self.memory()
        except TargetError:
            return False
        return True

    def model(self) -> LatencyModel:
        """Raises:
        TargetError: it is not calibrated.
        """
        if not self.calibrated:
            raise TargetError(
                f"a target must be calibrated to tell milliseconds; {self.file.name} is not; run autocomp calibrate "
                f"{self.file.name} on a machine that has its device"
            )
        path = self.folder / "latency_model.json"
        try:
            return self._model_of(path.read_text(encoding="utf-8"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TargetError(f"{path} must hold a latency model; it is damaged ({error}); calibrate again") from error

    def _model_of(self, text: str) -> LatencyModel:
        if self.file.runtime == "tensorrt":
            return RooflineModel.from_json(text)
        if self.fingerprint is None:
            return DatasheetCpu.from_json(text)
        return FittedModel.from_json(text)

    def memory(self) -> MemoryModel | None:
        """None where none was measured: for a device out of reach, or on a system that does not tell.

        Raises:
            TargetError: it is of an earlier version.
        """
        path = self.folder / MEMORY_MODEL
        if not path.is_file():
            return None
        document = json.loads(path.read_text(encoding="utf-8"))
        if set(document["bytes_for"]) != set(PARTS):
            raise TargetError(
                f"{path} must tell bytes for {', '.join(PARTS)}; it is of another version; calibrate again"
            )
        return MemoryModel(
            tuple(document["bytes_for"][part] for part in PARTS),
            document["held_out_mean"],
            document["held_out_within_10"],
            document["files"],
        )

    def check_artifact(self, artifact: Artifact | None) -> None:
        """Raises:
        RequestError: the runtime takes no such files.
        """
        file = self.file
        if artifact is not None and (artifact == "torch") != (file.artifact == "torch"):
            raise RequestError(
                f"--format of a search must be one that the target's runtime takes; {file.runtime} takes no {artifact}; "
                f"leave it out, or write the points in another format by export RUN --format {artifact}"
            )
        check_unpacks(artifact, file.runtime, f"{file.name} runs")

    def target(self, threads: int, batch: int, artifact: Artifact | None, reachable: bool) -> Target:
        """Raises:
        RequestError: the runtime takes no such files.
        """
        file = self.file
        self.check_artifact(artifact)
        numerics = Numerics(**file.numerics.model_dump())
        if file.runtime == "tensorrt":
            lower = partial(tensorrt.lower, batch=batch)
        elif file.artifact == "torch":
            lower = partial(
                lowering_torch.lower,
                batch=batch,
                floats=numerics.floats,
                symmetric_activations=numerics.symmetric_activations,
            )
        else:
            machine = self.fingerprint
            numerics = replace(numerics, narrow_products=machine is not None and narrow_products(machine))
            if file.runtime in {"openvino", "openvino-bf16"}:
                lower = partial(lowering_openvino.lower, batch=batch, bfloat16=file.runtime == "openvino-bf16")
            else:
                lower = partial(lowering.lower, batch=batch, block=_block(file, machine))
        model = self.model()
        return Target(
            name=file.name,
            device=file.device,
            runtime=file.runtime,
            runtime_version=file.runtime_version,
            artifact=artifact or file.artifact,
            threads=threads,
            batch=batch,
            clocks=file.clocks,
            offer=_offer(file, artifact or file.artifact),
            numerics=numerics,
            model=model,
            memory=self.memory(),
            lower=lower,
            reachable=reachable,
            note=file.note,
            profile_hash=self.hash,
            pace_us=model.reference_us if isinstance(model, FittedModel) else None,
        )


def _block(file: ProfileFile, machine: Fingerprint | None) -> int:
    """Raises:
    TargetError: the profile says neither the block nor the machine.
    """
    if file.nchwc_block is not None:
        return file.nchwc_block
    if machine is None:
        raise TargetError(f"a profile must have a nchwc_block or a fingerprint; {file.name} has neither; add one")
    return nchwc_block(machine)


def _offer(file: ProfileFile, artifact: Artifact) -> Offer:
    """What pays. A plain file stores every level in a byte and every zero, so that zeros are for a runtime that was measured
    to be faster by them, and its stored weights are as they were measured; a packed one unpacks them into floats when it
    is loaded, which costs nothing later."""
    offer, packed = file.offer, artifact == "onnx-packed"
    gains = tuple(Gain(one.work, one.way, one.speedup) for one in file.gains)
    if packed:
        gains = tuple(gain for gain in gains if gain.way != "a32")
    measured, faster = {gain.way for gain in gains}, {gain.way for gain in gains if gain.pays}
    ways = tuple(how for how in offer.activations if packed or how != "a32" or how in measured)
    return Offer(
        offer.weight_bits if packed else tuple(bits for bits in offer.weight_bits if bits == 8),
        tuple(pattern for pattern in offer.patterns if packed or pattern in UNIT_PATTERNS or pattern in faster),
        offer.ranks,
        paying(gains, ways),
        tuple(pattern for pattern in offer.patterns if pattern in faster),
    )


def read_profile(folder: Path) -> Profile:
    """The profile in ``folder``.

    Raises:
        TargetError: a file is missing, or not what a profile holds.
    """
    try:
        text = (folder / "profile.yaml").read_text(encoding="utf-8")
        return Profile(folder, ProfileFile.model_validate(yaml.safe_load(text)))
    except FileNotFoundError as error:
        raise TargetError(f"a profile folder must hold profile.yaml; {folder} does not; calibrate again") from error
    except (yaml.YAMLError, ValidationError) as error:
        first = str(error).replace("\n", " ")[:200]
        raise TargetError(f"{folder / 'profile.yaml'} is not a profile: {first}; calibrate again") from error


def read_if_any(folder: Path) -> Profile | None:
    """The profile in a folder of calibrations; None where it is unfinished, or of another version."""
    try:
        return read_profile(folder) if (folder / "profile.yaml").is_file() else None
    except TargetError:
        return None


def shipped_profiles() -> Iterator[Profile]:
    for folder in sorted(shipped_folder("hardware_profiles").iterdir()):
        if (folder / "profile.yaml").is_file():
            yield read_profile(folder)


def find_profile(name: str) -> Profile:
    """The shipped profile of that name or alias, or the one in a folder (a path with a separator), as ``calibrate`` writes it.

    Raises:
        TargetError: there is none; names the near ones.
    """
    profiles = list(shipped_profiles())
    for profile in profiles:
        if name in profile.names:
            return profile
    if names_profile_folder(name):
        return read_profile(Path(name).resolve())
    if (Path(name) / "profile.yaml").is_file():
        raise TargetError(f"the folder of a profile is told by a path; got {name!r}; write .{os.sep}{name}")
    known = [known for profile in profiles for known in profile.names]
    raise TargetError(f"a target must be a known one; got {name!r}; {did_you_mean(name, known)}")


def calibrated_folder(name: str, here: Fingerprint, threads: int, batch: int) -> Path:
    """Where a calibration of this machine is kept."""
    return cache_folder() / "profiles" / f"{name}-{here.hash}-t{threads}-b{batch}"


def why_not_here(profile: Profile, threads: int, batch: int) -> list[str]:
    """What differs between a profile and this machine and request, in words; nothing where it holds."""
    expected = profile.fingerprint
    if expected is None:
        return [] if profile.calibrated else ["it was never calibrated"]
    if expected.on_gpu and not has_gpu():
        return [f"no CUDA GPU instead of {expected.cpu}"]
    reasons = mismatch(expected, this_machine(profile.file.runtime), threads)
    if threads != profile.file.threads:
        reasons.append(f"threads: the profile has {profile.file.threads}, asked for {threads}")
    if batch != profile.file.batch:
        reasons.append(f"batch: the profile has {profile.file.batch}, asked for {batch}")
    return reasons
