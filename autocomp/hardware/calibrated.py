"""A folder that a machine's calibration is kept in: measured, fitted, described and written down, by one process at a time."""

from __future__ import annotations

import datetime
import fcntl
import json
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, cast

import yaml

from autocomp.errors import RequestError, TargetError
from autocomp.hardware.calibrate import Calibration, calibrate, measured_block
from autocomp.hardware.clocks import clock_words
from autocomp.hardware.experiment import Packages
from autocomp.hardware.fingerprint import Fingerprint, this_machine
from autocomp.hardware.fit import undisturbed
from autocomp.hardware.gpu import gpu_clock_words, multiplies_float8, multiplies_sparse
from autocomp.hardware.measurements import of_another_version
from autocomp.hardware.memory import PARTS
from autocomp.hardware.profiles import MEMORY_MODEL, Profile, read_if_any, read_profile
from autocomp.hardware.remote.state import state_words
from autocomp.hardware.runtimes.runtime import cpu_runtime
from autocomp.run import write_whole

if TYPE_CHECKING:
    from autocomp.hardware.remote.onnxruntime import OnnxruntimeOnBoard

#: Says what an unfinished calibration folder is of.
BEGUN = "begun.json"

#: What a calibration measures, and goes on from.
MEASURED = ("measurements.csv", "memory.csv", "gains.csv")

#: Instruction sets for products of bfloat16.
BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})

Progress = Callable[[float, str], None]


def check_bfloat16(profile: Profile, here: Fingerprint) -> None:
    """Raises:
    TargetError: the runtime computes in bfloat16, and this CPU does not.
    """
    if profile.file.runtime == "openvino-bf16" and not BFLOAT16.intersection(here.features):
        raise TargetError(
            f"{profile.file.name} needs a CPU that computes in bfloat16 (one of {', '.join(sorted(BFLOAT16))}); this one "
            f"({here.cpu}) has {', '.join(here.features) or 'none of these'}; choose --target cpu-openvino"
        )


def check_cores(here: Fingerprint, threads: int) -> None:
    """Raises:
    RequestError: more threads than the machine has cores: what is measured so would hold nowhere.
    """
    if threads > here.logical_cores:
        raise RequestError(f"threads must be at most the cores that there are, {here.logical_cores}; got {threads}")


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
    check_bfloat16(like, here)
    check_cores(here, threads)
    with _alone_in(folder, progress) as waited:
        done = read_if_any(folder)
        made = None if done is None else (done.fingerprint, done.file.threads, done.file.batch)
        if waited and done is not None and not (folder / BEGUN).is_file() and made == (here, threads, batch):
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
    profile = read_if_any(folder)
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
