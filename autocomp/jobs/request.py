"""From the command line of a search to that of a job: what it names on this machine is taken out, and put back as it is
called on the cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from autocomp.errors import RequestError
from autocomp.jobs.kept import check_storage, holds_run
from autocomp.jobs.parcel import GIVEN, Named
from autocomp.places import names_profile_folder
from autocomp.run import RunFolder
from autocomp.tasks.data import VARIABLE
from autocomp.tasks.load import WITHOUT_DATA

#: Options whose values are places on this machine.
PLACES = ("--task", "--data", "--space", "--target", "--recipe", "--from", "--out")


@dataclass(frozen=True)
class Asked:
    """A search that is to run as a job. ``arguments``: of the command line, without :data:`PLACES`; ``out``: where its
    run folder comes back to; ``storage``: where it is kept; empty for the head node; ``gone``: the run that it began from,
    where there is nothing of that to send."""

    arguments: tuple[str, ...]
    named: Named
    out: Path
    storage: str
    gone: Path | None = None

    def arguments_with(self, named: Named) -> list[str]:
        """The command line on the cluster, where things are called like that."""
        placed = {
            "--task": named.task,
            "--data": named.data,
            "--space": named.space,
            "--target": named.target,
            "--recipe": named.recipe,
            "--from": named.begun_from,
        }
        return [
            *self.arguments,
            *(part for name, value in placed.items() if value is not None for part in (name, str(value))),
        ]


def asked_for(
    arguments: Sequence[str],
    task: str | None,
    data: Path | None,
    space: str,
    target: str,
    out: Path,
    resume: bool,
    storage: str | None,
    recipe: Path | None = None,
    begun_from: Path | None = None,
) -> Asked:
    """A search on a cluster; on all of it, where the command line does not say how.

    Args:
        arguments: of the command line, ``search`` first.
        task, data, space, target, out, resume, recipe, begun_from: what they say, or what follows from it.
        storage: a URI under which run folders are kept.

    Raises:
        RequestError: the run folder is taken, cannot be resumed, or has no place to be kept.
    """
    if resume and storage is None:
        raise RequestError(
            "a job can resume a run that is kept in a --storage; there is none; name it, or leave --resume out"
        )
    if resume and RunFolder(out).exists():
        raise RequestError(
            f"the resumed run is brought back to --out, which must be free; {out} holds a run; move it away"
        )
    RunFolder(out).check_free(resume=False)
    uri = "" if storage is None else f"{storage.rstrip('/')}/{out.name}"
    if uri:
        check_storage(uri)
        if holds_run(uri) != resume:
            way = "it holds none; leave --resume out" if resume else "it holds one; add --resume, or name another --out"
            raise RequestError(f"{uri} must hold a run to resume, or nothing; {way}")
    rest = list(_without(arguments, PLACES))
    if not any(one.startswith("--executor") for one in rest):
        rest += ["--executor", "ray"]
    file = Path(space) if Path(space).suffix in {".yaml", ".yml"} else None
    if file is None:
        rest += ["--space", space]
    calibrated = Path(target) if names_profile_folder(target) else None
    if calibrated is None:
        rest += ["--target", target]
    default = os.environ.get(VARIABLE)
    takes_default = default and data is None and task is not None and task not in WITHOUT_DATA
    gone = None
    if resume and begun_from is not None and not begun_from.exists():
        # What it found is in the run that goes on, which knows it by this name.
        rest += ["--from", str(Path(GIVEN) / f"run-{begun_from.resolve().name}")]
        begun_from, gone = None, begun_from
    named = Named(
        task, data, file, Path(default) if default and takes_default else None, recipe, calibrated, begun_from
    )
    return Asked(tuple(rest), named, out, uri, gone)


def _without(arguments: Sequence[str], options: Sequence[str]) -> Iterator[str]:
    """The command line without some options and their values."""
    given = iter(arguments)
    for one in given:
        if one in options:
            next(given, None)
        elif one.partition("=")[0] not in options:
            yield one
