"""Where autocomp keeps things on disk, and where what ships with it lies."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """autocomp's folder in the user's cache; ``AUTOCOMP_CACHE`` names another."""
    named = os.environ.get("AUTOCOMP_CACHE")
    if named:
        return Path(named)
    import platformdirs

    return Path(platformdirs.user_cache_dir("autocomp"))


def shipped_folder(name: str) -> Path:
    """A folder of data that ships: beside the package in a checkout, inside it once installed."""
    package = Path(__file__).resolve().parent
    inside = package / "data" / name
    return inside if inside.is_dir() else package.parent / name


def names_profile_folder(target: str) -> bool:
    """Whether a target is told by the folder of its profile: only a path with a separator is one, so that a folder here
    that is called like a target is not taken for it in one place and not in the next."""
    return os.sep in target
