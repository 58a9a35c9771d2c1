"""What a run folder says of itself from its first moment on, in ``run.json`` and ``layers.json``; and whether a run that is
taken up again is the same."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import subprocess
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch

from autocomp.compress import recovered
from autocomp.compress.rebuild import Prepared
from autocomp.errors import RunError
from autocomp.hardware.fingerprint import Fingerprint
from autocomp.run import BEGUN_IN, Json, Request, RunFolder
from autocomp.search.drop import outcome_scale
from autocomp.search.evaluate import Workbench
from autocomp.space import SearchSpace
from autocomp.task import Score

#: In ``run.json``: the untouched network's metric on the search split.
METRIC = "search_metric"
#: Modules with a smaller share of the parameters are left as they are without a word: norms, say.
WORTH_A_WORD = 0.01
#: What that may change by on another machine: a share of it, or what so many examples make, right for wrong.
SAME_SHARE, FLIPPED = 1e-3, 2

PACKAGES = ("autocomp", "torch", "onnx", "onnxruntime", "optuna", "torch-pruning", "scikit-learn", "numpy")


@dataclass(frozen=True)
class Setup:
    """A request made ready: what plans are evaluated with, what may be decided, the untouched model's score, and the
    machine that files are timed on."""

    request: Request
    bench: Workbench
    space: SearchSpace
    baseline: Score
    machine: Fingerprint


def weights_hash(prepared: Prepared) -> str:
    """Of the weights that the plans of a run are applied to."""
    return recovered.weights_hash(prepared.model.state_dict())


def space_hash(space: SearchSpace) -> str:
    """Of the decisions: a proposal in the journal is a number of an option each, which must stay what it was."""
    said = repr(space.decisions) + (repr(space.adjustments) if space.adjustments else "")
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def left_alone(prepared: Prepared) -> str | None:
    """Which modules with much of the network's weights no decision is about, and why; None where there are none."""
    total = sum(one.numel() for one in prepared.model.parameters())
    modules, names, told = (
        dict(prepared.model.named_modules()),
        defaultdict[str, list[str]](list),
        set[torch.nn.Parameter](),
    )
    for name, reason in prepared.inventory.skipped:
        own = set(modules[name].parameters(recurse=False)) if name in modules else set[torch.nn.Parameter]()
        if sum(one.numel() for one in own) >= WORTH_A_WORD * total:
            names[reason].append(name)
            told |= own
    if not names:
        return None
    said = "; ".join(f"{', '.join(of_reason)} ({reason})" for reason, of_reason in names.items())
    share = sum(one.numel() for one in told) / total
    return f"left as they are, with {share:.0%} of the parameters: {said}"


def begin(setup: Setup, folder: RunFolder) -> None:
    if folder.exists():
        _check_same(setup, folder)
    folder.write_json("run.json", _document(setup, folder))
    folder.write_json("layers.json", layers_document(setup.bench.prepared))


def layers_document(prepared: Prepared) -> list[dict[str, object]]:
    """``layers.json``: the compressible layers in execution order."""
    inventory = prepared.inventory
    block_of = {name: block.name for block in inventory.blocks for name in block.layers}
    widths = {name: group.width for group in inventory.groups for name in group.producers}
    return [
        {
            **asdict(layer),
            "prunable": layer.group is not None,
            "block": block_of.get(layer.name, ""),
            "channel_units": widths.get(layer.name),
        }
        for layer in inventory.layers
    ]


def _check_same(setup: Setup, folder: RunFolder) -> None:
    changes = folder.request().changes(setup.request)
    if changes:
        raise RunError(f"--resume must ask for the same search; {'; '.join(changes)}; name another --out for a new one")
    before = folder.read()
    if before["weights_hash"] != weights_hash(setup.bench.prepared):
        raise RunError(f"the model is not the one that {folder.path} was begun with; name another --out")
    check_same_choices(setup, folder, "name another --out")
    check_same_data(setup, folder, "name another --out")
    if before["profile_hash"] != setup.bench.target.profile_hash:
        raise RunError(
            f"the profile of {setup.request.target} is not the one that {folder.path} was begun with; name another --out"
        )


def check_same_choices(setup: Setup, before: RunFolder, way_out: str) -> None:
    """Raises:
    RunError: a run was begun with other decisions.
    """
    if before.read().get("space_hash") != space_hash(setup.space):
        raise RunError(
            f"the choices of space {setup.request.space} are not those that {before.path} was begun with; {way_out}"
        )


def check_same_data(setup: Setup, before: RunFolder, way_out: str) -> None:
    """Whether the untouched network does on the search split what it did when a run was begun, but for what another machine's
    arithmetic changes: it tells nobody what the data are.

    Raises:
        RunError: it does not.
    """
    then = cast("Json", before.read()["task"]).get(METRIC)
    if then is None:  # runs of before did not say
        return
    outcomes, now, words = setup.baseline.outcomes, setup.baseline.value, setup.bench.task.metric.words
    most = SAME_SHARE * abs(cast("float", then))
    if outcomes is not None:
        scale = outcome_scale(setup.baseline) or (100.0 if setup.bench.task.metric.unit == "%" else 1.0)
        most = max(most, FLIPPED * scale * (float(np.ptp(outcomes)) or 1.0) / len(outcomes))
    if abs(now - cast("float", then)) > most:
        raise RunError(
            f"the search split must be that of {before.path}, where the untouched network's {setup.bench.task.metric.name} is "
            f"{words(cast('float', then))}; it is {words(now)} now; give the same data, or {way_out}"
        )


def task_document(setup: Setup) -> dict[str, object]:
    """What ``run.json`` says of the task."""
    task, outcomes = setup.bench.task, setup.baseline.outcomes
    return {
        "name": task.name,
        "metric": task.metric.name,
        "direction": task.metric.direction,
        "unit": task.metric.unit,
        "search_examples": None if outcomes is None else len(outcomes),
        METRIC: setup.baseline.value,
    }


def _document(setup: Setup, folder: RunFolder) -> dict[str, object]:
    """``run.json``. On resume, when the run was begun stays."""
    bench, target = setup.bench, setup.bench.target
    held_out = target.model.held_out
    created = (
        folder.read()["created"] if folder.exists() else datetime.datetime.now(datetime.UTC).isoformat("T", "seconds")
    )
    return {
        "request": asdict(setup.request),
        BEGUN_IN: str(Path.cwd()),
        "task": task_document(setup),
        "target": {
            "name": target.name,
            "device": target.device,
            "runtime": target.runtime,
            "runtime_version": target.runtime_version,
            "input_shapes": [list(array.shape) for array in bench.prepared.example.arrays(target.batch)],
            "format": target.artifact,
            "threads": target.threads,
            "batch": target.batch,
            "clocks": target.clocks,
            "numerics": asdict(target.numerics),
            "reachable": target.reachable,
            "latency_source": target.model.source,
            "held_out_error": None if held_out is None else held_out.mean,
            "held_out_note": "" if held_out is None else held_out.note,
            "note": target.note,
        },
        "weights_hash": weights_hash(bench.prepared),
        "space_hash": space_hash(setup.space),
        "profile_hash": target.profile_hash,
        "skipped": [list(pair) for pair in bench.prepared.inventory.skipped],
        "versions": {name: _version(name) for name in PACKAGES},
        "git_commit": _git_commit(),
        "fingerprint": json.loads(setup.machine.to_json()),
        "created": created,
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed: it came with a job"


def _git_commit() -> str | None:
    """The commit of the checkout that autocomp runs from; None where it is installed."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
