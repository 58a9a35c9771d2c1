"""What a job is sent: autocomp itself, the user's project, and what else the search names; the cluster sees nothing of
this machine's disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from autocomp.errors import RequestError
from autocomp.places import shipped_folder
from autocomp.run import RunFolder
from autocomp.tasks.load import OWN_FILE, model_tasks

#: A little less than what a Ray dashboard takes at once (100 MiB), for the zip's own part.
MOST_BYTES = 100_000_000
#: Folders and files of a project that no search reads. What git ignores is sent: weights mostly are.
LEFT_OUT = frozenset(
    {".git", ".venv", "venv", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", "node_modules", ".tox"}
    | {".ssh", ".aws", ".env"}  # nor are these anybody else's
)
#: What is sent of a run, beside the weights that were trained.
TRUTH = ("run.json", "study.log", "events.jsonl")
#: Ray leaves out what this names, of what it is given. A .rayignore is sent: it is there for nothing else.
IGNORING = ".gitignore"
#: Where in the parcel the things go that lie outside the project.
GIVEN = "given"
REQUIREMENTS = "requirements.txt"


@dataclass(frozen=True)
class Named:
    """What a search names: its task, as ``--task`` has it, the folder of data, the search space where it is a file, the
    folder that AUTOCOMP_DATA names, the recipe of the recovery, the target where it is a profile's folder, and the run that
    it begins from."""

    task: str | None = None
    data: Path | None = None
    space: Path | None = None
    default_data: Path | None = None
    recipe: Path | None = None
    target: Path | None = None
    begun_from: Path | None = None


@dataclass(frozen=True)
class Parcel:
    """What goes to the cluster.

    ``project``: the folder in which the search is begun there; ``package``: autocomp with the data that ship with it;
    ``requirements``: what pip installs there first; ``named``: as the search is told it there.
    """

    project: Path
    package: Path
    requirements: Path | None
    named: Named


def packed(named: Named, folder: Path, on_cluster: Sequence[Path] = (), requirements: Path | None = None) -> Parcel:
    """Put together what a search needs.

    A task file comes with its project: the folder that one is in, where the file lies below it, else the file's own.
    What lies elsewhere is copied in.

    Args:
        folder: new, for the parcel.
        on_cluster: folders that all machines of the cluster have at the same path: these are not sent.
        requirements: default is the project's requirements.txt, where there is one.

    Raises:
        RequestError: something named is not there, or all of it is too large to send.
    """
    project, package = folder / "project", folder / "autocomp"
    package_of_this(package)
    project.mkdir(parents=True)
    root, task = _task_of(named.task)
    parts: dict[Path, Path] = {}
    #: In what is named, folders that are linked are folders, as they are to a search; in a project they may lead anywhere.
    followed: list[Path] = []
    if root is not None:
        parts[project] = root
        requirements = requirements or (root / REQUIREMENTS if (root / REQUIREMENTS).is_file() else None)
    if requirements is not None and not requirements.is_file():
        raise RequestError(f"--requirements must be a file of what pip installs; {requirements} is none")

    def placed(path: Path, what: str) -> Path:
        """Where the cluster finds it."""
        named = Path(os.path.abspath(path))  # links as they are: the cluster's need not be ours
        if any(named.is_relative_to(os.path.abspath(there)) for there in on_cluster):
            return named
        if not path.exists():
            raise RequestError(
                f"the cluster must be able to see the {what}; {named} is not here, so it cannot be sent; where the cluster "
                f"has it at this path, say --on-cluster {named}"
            )
        absolute = path.resolve()
        followed.append(absolute)
        inside = root is not None and absolute.is_relative_to(root) and not _is_run(absolute)
        if root is not None and inside and not LEFT_OUT & {*absolute.relative_to(root).parts}:
            return absolute.relative_to(root)
        place = Path(GIVEN) / f"{what}-{absolute.name}"
        parts[project / place] = absolute
        return place

    if task is not None:
        prefix, _, model = task.partition(":")
        if prefix == "hf":
            task = f"hf:{placed(Path(model), 'model')}"
        elif prefix in model_tasks() and "@" in model:
            name, _, weights = model.partition("@")
            task = f"{prefix}:{name}@{placed(Path(weights), 'weights')}"
    data = None if named.data is None else placed(named.data, "data")
    space = None if named.space is None else placed(named.space, "space")
    default = None if named.default_data is None else placed(named.default_data, "data")
    recipe = None if named.recipe is None else placed(named.recipe, "recipe")
    target = None if named.target is None else placed(named.target, "profile")
    begun_from = None if named.begun_from is None else placed(named.begun_from, "run")
    files = {place: [*_files(source, followed)] for place, source in parts.items()}
    _check_size({parts[place]: of_part for place, of_part in files.items()})
    for place, of_part in files.items():
        _copy(parts[place], of_part, place)
    return Parcel(project, package, requirements, Named(task, data, space, default, recipe, target, begun_from))


def package_of_this(folder: Path) -> None:
    """This very autocomp, so that both ends are one version: copied to ``folder``."""
    own = Path(__file__).resolve().parents[1]
    shutil.copytree(own, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("hardware_profiles", "search_spaces"):
        shutil.copytree(shipped_folder(name), folder / "data" / name, dirs_exist_ok=True)


def _task_of(task: str | None) -> tuple[Path | None, str | None]:
    """The project of a task that is a file, and how the task is called inside it."""
    own = OWN_FILE.fullmatch(task or "")
    if own is None:
        return None, task
    path = Path(own["file"])
    if not path.is_file():
        raise RequestError(f"a task's file must exist; {str(path)!r} does not, seen from {str(Path.cwd())!r}")
    absolute, here = path.resolve(), Path.cwd().resolve()
    root = here if absolute.is_relative_to(here) else absolute.parent
    function = own["function"]
    return root, f"{absolute.relative_to(root)}" + ("" if function is None else f":{function}")


def _check_size(parts: dict[Path, list[Path]]) -> None:
    sizes = {source: sum(file.stat().st_size for file in files) for source, files in parts.items()}
    total = sum(sizes.values())
    if total > MOST_BYTES:
        largest = max(sizes, key=lambda source: sizes[source])
        raise RequestError(
            f"what is sent with a job must be at most {MOST_BYTES // 10**6} MB; it is {total // 10**6} MB, of which "
            f"{largest} is {sizes[largest] // 10**6}; put that where the machines of the cluster see it, and say "
            f"--on-cluster {largest}; or begin in a smaller folder"
        )


def _files(source: Path, followed: Sequence[Path]) -> Iterator[Path]:
    """What is sent of a file or folder: of a run its truth.

    Args:
        followed: folders in which links to folders are followed, but for those that lead back.
    """
    if source.is_file():
        yield source
        return
    if _is_run(source):
        yield from (file for file in (*map(source.joinpath, TRUTH), *source.glob("weights/*.pt")) if file.is_file())
        return
    for parent, folders, files in os.walk(source, followlinks=True):
        here = Path(parent)
        above = {one.resolve() for one in (here, *here.parents)}
        may_link = any(here.is_relative_to(one) for one in followed)
        folders[:] = [
            name
            for name in folders
            if name not in LEFT_OUT
            and not _is_run(here / name)
            and (may_link or not (here / name).is_symlink())
            and (here / name).resolve() not in above
        ]
        yield from (here / name for name in files if name not in {IGNORING, *LEFT_OUT} and (here / name).is_file())


def _is_run(folder: Path) -> bool:
    run = RunFolder(folder)
    return run.exists() and run.journal.is_file()


def _copy(source: Path, files: Sequence[Path], place: Path) -> None:
    for file in files:
        to = place if source.is_file() else place / file.relative_to(source)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, to)
