"""Images in class subfolders, in a folder or in a zip of one. An image is decoded when it is asked for."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from autocomp.errors import TaskError, first_line

if TYPE_CHECKING:
    from PIL.Image import Image

Transform = Callable[["Image"], Tensor]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})


@dataclass(frozen=True)
class ImageFolder:
    """The images below ``root``, by class and name: a dataset of (transformed image, class number).

    ``classes`` are the names of the subfolders in alphabetical order; ``targets`` the class number of each image.
    """

    root: Path
    names: tuple[str, ...]
    targets: tuple[int, ...]
    classes: tuple[str, ...]
    transform: Transform

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.image(index)), self.targets[index]

    def image(self, index: int) -> Image:
        """The decoded image, in RGB.

        Raises:
            TaskError: it cannot be decoded.
        """
        from PIL import Image

        name = self.names[index]
        try:
            data = _archive(self.root).read(name) if self.root.is_file() else (self.root / name).read_bytes()
            with Image.open(io.BytesIO(data)) as image:
                return image.convert("RGB")
        except (OSError, SyntaxError, zipfile.BadZipFile) as error:
            raise TaskError(f"an image must decode; {self.root / name} does not ({first_line(error)})") from error


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder, in linked folders as well, but for those that a link leads back to."""
    seen: set[Path] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        seen.add(Path(parent).resolve())
        folders[:] = [name for name in folders if Path(parent, name).resolve() not in seen]
        yield from (Path(parent, name) for name in files)


def open_image_folder(root: Path, transform: Transform | None = None) -> ImageFolder:
    """The images below ``root``, a folder of class subfolders or a zip of one.

    Args:
        transform: from an RGB image to a tensor (channels, height, width). Default: values in 0 to 1, size as it is.

    Raises:
        TaskError: there is nothing at ``root``, or no class subfolder with an image.
    """
    if root.is_dir():
        names = sorted(path.relative_to(root).as_posix() for path in _files(root) if path.is_file())
        by_class = _by_class(names, outer=0)
    elif root.is_file():
        try:
            names = sorted(_archive(root).namelist())
        except (OSError, zipfile.BadZipFile) as error:
            raise TaskError(f"images must be in a folder or a zip; {root} is neither ({first_line(error)})") from error
        # A zip of a folder often has that folder inside.
        tops = {PurePosixPath(name).parts[0] for name in names if _is_image(name)}
        deep = all(len(PurePosixPath(name).parts) > 2 for name in names if _is_image(name))
        by_class = _by_class(names, outer=1 if len(tops) == 1 and deep else 0)
    else:
        raise TaskError(f"an image folder must exist; {root} does not; give a folder with a subfolder per class")
    if not by_class:
        raise TaskError(
            f"an image folder must have a subfolder per class with images in it; {root} has none; "
            f"images end with {', '.join(sorted(SUFFIXES))}"
        )
    classes = tuple(sorted({name for name, _ in by_class}))
    number = {name: index for index, name in enumerate(classes)}
    return ImageFolder(
        root=root,
        names=tuple(path for _, path in by_class),
        targets=tuple(number[name] for name, _ in by_class),
        classes=classes,
        transform=transform or plain_tensor,
    )


@dataclass(frozen=True)
class ImageSplits:
    """Where the splits of an image data folder are; ``search`` is None where it is to be held out of ``train``."""

    train: Path
    search: Path | None
    test: Path


def find_splits(data: Path | None, task: str) -> ImageSplits:
    """The image folders in ``data``.

    Raises:
        TaskError: no folder is given or one lacks ``train`` or ``test``.
    """
    layout = "train/ and test/ (or val/), and optionally search/, with a subfolder per class, or zips of them"
    if data is None:
        raise TaskError(f"{task} needs data; name a folder by --data or AUTOCOMP_DATA, with {layout}")
    found = {name: place for name in ("train", "search", "val", "test") if (place := _place(data, name)) is not None}
    test = found.get("test", found.get("val"))
    if "train" not in found or test is None:
        missing = "train" if "train" not in found else "test"
        raise TaskError(f"{task} needs a data folder with {layout}; {data} has no {missing}")
    search = found.get("search", found.get("val") if "test" in found else None)
    return ImageSplits(found["train"], search, test)


def plain_tensor(image: Image) -> Tensor:
    """(3, height, width) float32 in 0 to 1."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).float() / 255


def _by_class(names: Iterable[str], outer: int) -> list[tuple[str, str]]:
    """(class, name) of the images among ``names``, whose class is the folder below ``outer`` others."""
    found = []
    for name in names:
        parts = PurePosixPath(name).parts
        if _is_image(name) and len(parts) > outer + 1:
            found.append((parts[outer], name))
    return sorted(found)


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES and not any(part.startswith((".", "__MACOSX")) for part in path.parts)


@lru_cache(maxsize=8)
def _archive(path: Path) -> zipfile.ZipFile:
    # Reading the table of a large zip takes long, so it stays open; reading from several threads is allowed.
    return zipfile.ZipFile(path)


def _place(data: Path, name: str) -> Path | None:
    return next((place for place in (data / name, data / f"{name}.zip") if place.exists()), None)
