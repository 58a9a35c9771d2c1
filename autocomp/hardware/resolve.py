"""From a target's name to a target that holds on this machine: its shipped profile, a calibration kept from before, or
a calibration now."""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, cast

import yaml

from autocomp.errors import RequestError, TargetError
from autocomp.export.artifact import Artifact
from autocomp.hardware.calibrate import Calibration, calibrate, measured_block
from autocomp.hardware.clocks import clock_words
from autocomp.hardware.experiment import Packages
from autocomp.hardware.fingerprint import Fingerprint, this_machine
from autocomp.hardware.fit import undisturbed
from autocomp.hardware.gpu import gpu_clock_words, has_gpu, multiplies_float8, multiplies_sparse
from autocomp.hardware.measurements import of_another_version
from autocomp.hardware.memory import PARTS
from autocomp.hardware.profiles import (
    MEMORY_MODEL,
    Profile,
    calibrated_folder,
    find_profile,
    read_profile,
    why_not_here,
)
from autocomp.hardware.remote.state import state_words
from autocomp.hardware.runtimes.runtime import cpu_runtime
from autocomp.hardware.target import Target
from autocomp.places import names_profile_folder
from autocomp.run import write_whole

if TYPE_CHECKING:
    from autocomp.hardware.remote.onnxruntime import OnnxruntimeOnBoard

#: Seconds of measuring that a search spends on a machine that no profile holds for.
FIRST_BUDGET_S = 120.0
#: What that takes in all, with what 8 bits are worth, memory, and the fit.
FIRST_MINUTES = 5

#: Says what an unfinished calibration folder is of.
BEGUN = "begun.json"

#: What a calibration measures, and goes on from.
MEASURED = ("measurements.csv", "memory.csv", "gains.csv")

#: Instruction sets for products of bfloat16.
BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})

Tell = Callable[[str], None]
Progress = Callable[[float, str], None]


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
        _check_bfloat16(profile, this_machine(profile.file.runtime))


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


def _check_cores(here: Fingerprint, threads: int) -> None:
    """Raises:
    RequestError: more threads than the machine has cores: what is measured so would hold nowhere.
    """
    if threads > here.logical_cores:
        raise RequestError(f"threads must be at most the cores that there are, {here.logical_cores}; got {threads}")


def profile_here(profile: Profile, threads: int, batch: int) -> Profile:
    """The calibration of this machine that is kept, where there is one that this version reads; else one that holds here
    all the same (a process may be given other cores than the one before, a runtime be patched); else the given profile."""
    if not profile.measurable or (profile.file.runtime == "torch-cuda" and not has_gpu()):
        return profile
    folder = calibrated_folder(profile.file.name, this_machine(profile.file.runtime), threads, batch)
    others = sorted(folder.parent.glob(f"{profile.file.name}-*-t{threads}-b{batch}"))
    found = [one for one in map(_read_if_any, (folder, *others)) if one is not None]
    # The name of a target may begin with that of another.
    alike = [one for one in found if (one.file.name, one.file.runtime) == (profile.file.name, profile.file.runtime)]
    return next((one for one in alike if not why_not_here(one, threads, batch)), profile)


def _read_if_any(folder: Path) -> Profile | None:
    """The profile in a folder of calibrations; None where it is unfinished, or of another version."""
    try:
        return read_profile(folder) if (folder / "profile.yaml").is_file() else None
    except TargetError:
        return None


def _for_this_machine(profile: Profile, threads: int, batch: int, tell: Tell, progress: Progress | None) -> Profile:
    check_measurable(profile)
    _check_cores(this_machine(profile.file.runtime), threads)
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


def _check_bfloat16(profile: Profile, here: Fingerprint) -> None:
    """Raises:
    TargetError: the runtime computes in bfloat16, and this CPU does not.
    """
    if profile.file.runtime == "openvino-bf16" and not BFLOAT16.intersection(here.features):
        raise TargetError(
            f"{profile.file.name} needs a CPU that computes in bfloat16 (one of {', '.join(sorted(BFLOAT16))}); this one "
            f"({here.cpu}) has {', '.join(here.features) or 'none of these'}; choose --target cpu-openvino"
        )


def calibrate_profile(
    like: Profile,
    folder: Path,
    budget_s: float,
    threads: int,
    batch: int,
    progress: Progress | None = None,
    board: OnnxruntimeOnBoard | None = None,
) -> Profile:
    """Calibrate a machine and write a whole profile into ``folder``; an interrupted one there is continued. A profile that is
    there already is kept until the new one takes its place. Where another process calibrates into the folder, its profile is
    waited for.

    Args:
        like: the shipped profile whose runtime, offer and numerics the new one keeps.
        board: the machine; default: this one.

    Raises:
        RequestError: the folder holds measurements of another machine, or with other threads or batch.
            Or more threads than this machine has cores.
        TargetError: the runtime computes in bfloat16, and this CPU does not; or the folder cannot be written.
        MeasurementError: too few files settled.
    """
    here = this_machine(like.file.runtime) if board is None else board.fingerprint
    _check_bfloat16(like, here)
    _check_cores(here, threads)
    with _alone_in(folder, progress) as waited:
        done = _read_if_any(folder)
        if waited and done is not None and not (folder / BEGUN).is_file() and done.fingerprint == here:
            return done
        return _calibrated(like, folder, budget_s, threads, batch, progress, board, here)


@contextmanager
def _alone_in(folder: Path, progress: Progress | None) -> Iterator[bool]:
    """Hold a calibration's folder; gives whether another process had to be waited for.

    Raises:
        TargetError: it cannot be made, or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise _unwritable(folder, error) from error
    with file:
        waited = False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = True
            if progress is not None:
                progress(0.0, "another process calibrates this machine; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield waited


def _calibrated(
    like: Profile,
    folder: Path,
    budget_s: float,
    threads: int,
    batch: int,
    progress: Progress | None,
    board: OnnxruntimeOnBoard | None,
    here: Fingerprint,
) -> Profile:
    _begin(folder, here, threads, batch)
    packages = None
    if like.floats is not None:
        sparse = like.floats != "fp32" and multiplies_sparse(here)
        packages = Packages(like.floats, multiplies_float8(here), sparse)
    result = calibrate(folder, budget_s, threads, batch, here, progress=progress, elsewhere=board, packages=packages)
    machine = _this_machine_words(here) if board is None else _board_words(board)
    write_whole(folder / "latency_model.json", (result.model.to_json() + "\n").encode())
    if result.memory is None:
        (folder / MEMORY_MODEL).unlink(missing_ok=True)  # that of an earlier calibration
    else:
        memory = asdict(result.memory) | {"bytes_for": dict(zip(PARTS, result.memory.bytes_for, strict=True))}
        write_whole(folder / MEMORY_MODEL, (json.dumps(memory, indent=1) + "\n").encode())
    document = like.file.model_dump(mode="json")
    document |= {
        "device": here.cpu,
        "threads": threads,
        "batch": batch,
        "gains": [asdict(gain) | {"speedup": round(gain.speedup, 3)} for gain in result.gains],
        "clocks": f"{machine.clocks}; every timing stands beside a reference workload (measurements.csv)",
        "fingerprint": asdict(here) | {"features": list(here.features)},
    }
    if packages is not None:
        document["numerics"]["sparse_products"] = packages.sparse
        if not packages.float8:
            document["offer"]["activations"] = [how for how in like.file.offer.activations if how != "f8"]
        if not packages.sparse:
            document["offer"]["patterns"] = [pattern for pattern in like.file.offer.patterns if pattern != "2:4"]
    if here.runtime == "onnxruntime":
        document["nchwc_block"] = measured_block(cpu_runtime(here.runtime) if board is None else board)
    (folder / "README.md").write_text(_readme(like, result, here, machine, threads, batch), encoding="utf-8")
    # After all others, because a folder with a profile.yaml is a finished profile.
    text = yaml.safe_dump(json.loads(json.dumps(document)), sort_keys=False, width=110)
    write_whole(folder / "profile.yaml", text.encode())
    (folder / BEGUN).unlink()
    return read_profile(folder)


def _begin(folder: Path, here: Fingerprint, threads: int, batch: int) -> None:
    """Note what is measured in a folder, and that it is not finished; refuse to mix measurements. Those of another version
    are set aside.

    Raises:
        RequestError: it holds measurements of something else.
        TargetError: it cannot be written.
    """
    begun, finished = folder / BEGUN, folder / "profile.yaml"
    wanted = {"threads": threads, "batch": batch, "fingerprint": json.loads(here.to_json())}
    before: dict[str, object] | None = None
    profile = _read_if_any(folder)
    if begun.is_file():
        before = json.loads(begun.read_text(encoding="utf-8"))
    elif profile is not None:
        file = profile.file
        before = {"threads": file.threads, "batch": file.batch, "fingerprint": file.fingerprint}
    if before is not None and before != wanted:
        raise RequestError(
            f"a calibration folder holds one machine, runtime, threads and batch; {folder} was begun with others; "
            "name another --out, or delete it"
        )
    try:
        unread = before is None and finished.is_file()
        if unread or of_another_version(folder / "measurements.csv"):
            for name in MEASURED:
                if (folder / name).is_file():
                    (folder / name).replace(folder / f"{name}.earlier")
        write_whole(begun, json.dumps(wanted).encode())
        if unread:
            finished.unlink()
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> TargetError:
    return TargetError(
        f"the folder of a calibration must be writable; {folder} is not ({error.strerror}); name another by calibrate "
        "--out, or for all in AUTOCOMP_CACHE"
    )


@dataclass(frozen=True)
class _MachineWords:
    """How a machine's cores were clocked, and what is installed there."""

    clocks: str
    software: str


def _this_machine_words(here: Fingerprint) -> _MachineWords:
    system = f"{platform.system()} {platform.release().partition('-')[0]}"
    return _MachineWords(
        gpu_clock_words() if here.on_gpu else clock_words(), f"Python {platform.python_version()}, {system}"
    )


def _board_words(board: OnnxruntimeOnBoard) -> _MachineWords:
    facts = board.board.facts
    after, _ = board.board.ask({"do": "state"})
    about = [f"Python {facts['python']}, {facts['system']}, over ssh", *cast("list[str]", facts["tegra"])]
    return _MachineWords(state_words(facts, after), "; ".join(about))


def _readme(
    like: Profile, result: Calibration, here: Fingerprint, machine: _MachineWords, threads: int, batch: int
) -> str:
    held_out = result.model.held_out
    error = (
        f"mean error {held_out.mean:.1%}, median {held_out.median:.1%}; {held_out.within_10:.0%} within ±10 %, "
        f"{held_out.within_20:.0%} within ±20 % of {held_out.networks} networks ({held_out.note})"
        if held_out is not None
        else "not determined"
    )
    return f"""# {like.file.name}

Measured with `autocomp calibrate {like.file.name}` on {datetime.date.today().isoformat()}.

| | |
|---|---|
| {_device_words(here)} |
| {"limits" if here.on_gpu else "features"} | {", ".join(here.features) or "unknown"} |
| cores | {here.logical_cores} |
| clocks | {machine.clocks} |
| runtime | {here.runtime} {here.runtime_version}, stock settings |
| measured with | autocomp {metadata.version("autocomp")}, {machine.software} |
| threads, batch | {threads}, {batch} |
| files measured | {len(result.networks)}, of which {len(undisturbed(result.networks))} in quiet moments are fitted to \
(and {result.dropped} of the last sitting that never settled, left out); {result.profiled} kernels of other files, which \
were profiled alone |
| repeatability | median standard error of a latency: {result.model.repeatability:.1%} |
| pace | {_pace_words(result)} |
| held-out error | {error} |
| memory | {_memory_words(result)} |

{_gains_table(result)}

`measurements.csv` has a row for every file (its latency: the lower quartile of interleaved rounds, each a fresh
load and the 10th percentile of its repeats; the reference workload's time beside it), and for every node that the
runtime's profiler timed in it.
`latency_model.json` is what was fitted to them; `profile.yaml` says on which machine they hold.
"""


def _device_words(here: Fingerprint) -> str:
    """What was measured, as a row of the table."""
    family, model = here.family or "?", here.model or "?"
    if here.on_gpu:
        return f"GPU | {here.cpu}, compute capability {family}, driver {model}; host {here.architecture}"
    return f"CPU | {here.cpu}, family {family}, model {model}, {here.architecture}"


def _pace_words(result: Calibration) -> str:
    """What the milliseconds hold for: a machine is some percent slower in one hour than in the next."""
    took_us = result.model.reference_us
    return (
        "as it was"
        if took_us is None
        else f"that of its quiet moments, when the reference workload took {took_us:.1f} µs"
    )


def _memory_words(result: Calibration) -> str:
    if result.memory is None:
        return "not measured; counted as weights and live activations"
    return (
        f"mean error {result.memory.held_out_mean:.1%} on held-out architectures, {result.memory.held_out_within_10:.0%} "
        f"within ±10 %, of {result.memory.files} files that ran in processes of their own (`memory.csv`)"
    )


def _gains_table(result: Calibration) -> str:
    """What 8 bits, zeros, fewer channels and lower ranks were measured to be worth, as Markdown."""
    lines = [
        "Times as fast as untouched, chains of four layers (depthwise ones with pointwise ones between). In 8 bits: a8, with",
        "activations on calibrated grids; d8, on grids of the moment; a32, weights stored in bytes and computed in floats; f8,",
        "weights and activations in floats of 8 bits. In floats: unstructured, nine weights in ten are zero; 2:4, two in four;",
        "channel, half of them between the layers; rank, a quarter of it. 8 bits that do not pay are not offered to a",
        "search, nor zeros that do not to one of plain files; packed files are smaller by them.",
        "",
        "| layers | way | speedup | pays |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {gain.work} | {gain.way} | {gain.speedup:.2f} | {'yes' if gain.pays else 'no'} |" for gain in result.gains
    ]
    return "\n".join(lines)
