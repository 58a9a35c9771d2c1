"""From a target's name to a target that holds on this machine: its shipped profile, a calibration kept from before, or
a calibration now."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from autocomp.errors import RequestError
from autocomp.export.artifact import Artifact
from autocomp.hardware.calibrated import Progress, calibrate_profile, check_bfloat16, check_cores
from autocomp.hardware.fingerprint import this_machine
from autocomp.hardware.gpu import has_gpu
from autocomp.hardware.profiles import Profile, calibrated_folder, find_profile, read_if_any, why_not_here
from autocomp.hardware.target import Target
from autocomp.places import names_profile_folder

#: Seconds of measuring that a search spends on a machine that no profile holds for.
FIRST_BUDGET_S = 120.0
#: What that takes in all, with what 8 bits are worth, memory, and the fit.
FIRST_MINUTES = 5

Tell = Callable[[str], None]


def resolve_target(
    name: str,
    threads: int | None = None,
    batch: int | None = None,
    artifact: Artifact | None = None,
    tell: Tell = lambda _: None,
    progress: Progress | None = None,
) -> Target:
    """The target of that name or alias, or of a profile's folder, for so many threads and examples per inference (default:
    the profile's).

    A shipped profile that was measured on another kind of machine is not used: this machine is calibrated first, once; the
    result is kept in the cache folder. A folder's profile is used all the same: it is of a machine that is out of reach.

    Raises:
        TargetError: no such target, or this CPU does not compute in what it computes in.
        RequestError: threads or batch below 1, or given for a target whose profile cannot be measured here.
        MeasurementError: calibration was needed and found no quiet moment.
    """
    profile = find_profile(name)
    if name in profile.file.aliases:
        tell(f"{name} stands for {profile.file.name}: {profile.file.device}")
    if not names_profile_folder(name) and (Path(name) / "profile.yaml").is_file():
        tell(f"{name} is the target of that name, not the profile in the folder {name} here; that is .{os.sep}{name}")
    threads, batch = threads_and_batch(profile, threads, batch)
    if profile.fingerprint is not None and names_profile_folder(name):
        return _of_folder(profile, threads, batch, tell).target(
            threads, batch, artifact, reachable=not why_not_here(profile, threads, batch)
        )
    if not profile.measurable:
        if threads != profile.file.threads:
            raise RequestError(f"{profile.file.name} has no threads to set; got {threads}; leave --threads out")
        return profile.target(threads, batch, artifact, reachable=False)
    return _for_this_machine(profile, threads, batch, tell, progress).target(threads, batch, artifact, reachable=True)


def _of_folder(profile: Profile, threads: int, batch: int, tell: Tell) -> Profile:
    """Raises:
    RequestError: its measurements are with other threads or batch.
    """
    if (threads, batch) != (profile.file.threads, profile.file.batch):
        raise RequestError(
            f"the profile in {profile.folder} was measured with {profile.file.threads} threads at batch "
            f"{profile.file.batch}; got {threads} and {batch}; leave --threads and --batch out, or calibrate with them"
        )
    reasons = why_not_here(profile, threads, batch)
    if reasons:
        tell(f"target {profile.folder}: {profile.file.device}, which is not this machine; latency is predicted")
    return profile


def check_measurable(profile: Profile) -> None:
    """Before any work is begun: whether this machine has what a target that is measured here needs.

    Raises:
        TargetError: its runtime is not installed, there is no GPU for it, or this CPU does not compute in what it computes in.
    """
    if profile.measurable:
        check_bfloat16(profile, this_machine(profile.file.runtime))


def threads_and_batch(profile: Profile, threads: int | None, batch: int | None) -> tuple[int, int]:
    """What was asked for, or else the profile's.

    Raises:
        RequestError: one is below 1.
    """
    threads = profile.file.threads if threads is None else threads
    batch = profile.file.batch if batch is None else batch
    if threads < 1 or batch < 1:
        raise RequestError(f"threads and batch must be at least 1; got {threads} and {batch}")
    return threads, batch


def profile_here(profile: Profile, threads: int, batch: int) -> Profile:
    """The calibration of this machine that is kept, where there is one that this version reads; else one that holds here
    all the same (a process may be given other cores than the one before, a runtime be patched); else the given profile."""
    if not profile.measurable or (profile.file.runtime == "torch-cuda" and not has_gpu()):
        return profile
    folder = calibrated_folder(profile.file.name, this_machine(profile.file.runtime), threads, batch)
    others = sorted(folder.parent.glob(f"{profile.file.name}-*-t{threads}-b{batch}"))
    found = [one for one in map(read_if_any, (folder, *others)) if one is not None]
    # The name of a target may begin with that of another.
    alike = [one for one in found if (one.file.name, one.file.runtime) == (profile.file.name, profile.file.runtime)]
    return next((one for one in alike if not why_not_here(one, threads, batch) and one.is_readable), profile)


def _for_this_machine(profile: Profile, threads: int, batch: int, tell: Tell, progress: Progress | None) -> Profile:
    check_measurable(profile)
    check_cores(this_machine(profile.file.runtime), threads)
    kept = profile_here(profile, threads, batch)
    if kept is not profile:
        tell(f"target {profile.file.name}: using the calibration of this machine in {kept.folder}")
        return kept
    reasons = why_not_here(profile, threads, batch)
    if not reasons:
        return profile
    folder = calibrated_folder(profile.file.name, this_machine(profile.file.runtime), threads, batch)
    tell(
        f"target {profile.file.name}: the shipped profile {'does not hold here' if profile.calibrated else 'is none yet'} "
        f"({'; '.join(reasons)}); "
        f"calibrating this machine first, some {FIRST_MINUTES} minutes; kept in {folder}"
    )
    return calibrate_profile(profile, folder, FIRST_BUDGET_S, threads, batch, progress)
