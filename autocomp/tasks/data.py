"""Where the data of the built-in tasks lies, and how it is read: decoded images, idx files, rows of text."""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from autocomp.errors import TaskError, first_line
from autocomp.run import write_whole
from autocomp.tasks.image_folder import ImageFolder, open_image_folder

Progress = Callable[[str], None]

VARIABLE = "AUTOCOMP_DATA"
TOLD_EVERY = 10_000


@dataclass(frozen=True, eq=False)
class Images:
    """``pixels`` (n, 3, height, width) uint8, RGB; ``labels`` (n,) int64; ``classes``, the label of each its place."""

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]


def data_folder(given: Path | None) -> Path | None:
    """The folder named by ``given``, else by the environment variable AUTOCOMP_DATA; None where neither names one.

    Raises:
        TaskError: what is named is not a folder.
    """
    named = os.environ.get(VARIABLE)
    folder = given or (Path(named) if named else None)
    if folder is not None and not folder.is_dir():
        source = "--data" if given else VARIABLE
        raise TaskError(f"{source} must name a folder; {str(folder)!r} is none, seen from {str(Path.cwd())!r}")
    return folder


def find(folder: Path | None, own: Sequence[str], names: Sequence[str], what: str) -> Path:
    """The first of ``names`` in ``folder`` or, since people name a set's parent or a sibling as well, near it.

    Looked in are ``folder`` itself, its subfolders ``own``, and the subfolders ``own`` of its parent.

    Args:
        folder: as :func:`data_folder` gave it.
        own: the folders that the data set is usually kept in.
        names: files or folders; any of them will do.
        what: is wanted, and where it is to be had; it begins the error line.

    Raises:
        TaskError: no folder is named, or none of the names is there.
    """
    wanted = " or ".join(names)
    if folder is None:
        raise TaskError(f"{what}: no data folder is named; give the one with {wanted} by --data DIR or in {VARIABLE}")
    places = [folder, *(folder / name for name in own), *(folder.absolute().parent / name for name in own)]
    for place in places:
        for name in names:
            if (place / name).exists():
                return place / name
    raise TaskError(
        f"{what}: {wanted} must be in the data folder or its {' or '.join(own)}; {folder} has none of them; "
        f"name another by --data DIR or in {VARIABLE}"
    )


def read_images(root: Path, cache: Path, tell: Progress) -> Images:
    """All images of an image folder, or of a zip of one, by class in alphabetical order and then by name.

    Decoding takes some ten seconds for 50,000 small images, so the result is kept in the folder ``cache`` (3 bytes a
    pixel) until names, sizes or times of the files change; where nothing can be written there, it is not kept.

    Raises:
        TaskError: there are no class subfolders with images, one does not decode, or they differ in size.
    """
    folder = open_image_folder(root)
    kept = cache / f"images-{_stamp(root, folder)}.npz"
    pixels = _kept_pixels(kept, len(folder))
    if pixels is None:
        pixels = _decoded(folder, tell)
        with suppress(OSError):
            packed = io.BytesIO()
            np.savez(packed, pixels=pixels)
            write_whole(kept, packed.getvalue())
    return Images(torch.from_numpy(pixels), torch.tensor(folder.targets), folder.classes)


def read_idx(path: Path) -> Tensor:
    """An idx file of bytes (http://yann.lecun.com/exdb/mnist), plain or gzipped, as uint8 in the shape that it names.

    Raises:
        TaskError: it cannot be read, or is not such a file.
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise TaskError(f"an idx file must be readable; {path} is not ({first_line(error)}); get it again") from error
    dims = content[3] if content[:3] == b"\x00\x00\x08" and len(content) > 3 else 0
    start = 4 + 4 * dims
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    if not dims or len(content) - start != math.prod(shape):
        raise TaskError(
            f"an idx file of bytes must begin with 00 00 08, the number of dimensions and their sizes, and hold so many "
            f"bytes; {path} begins with {content[:4].hex(' ') or 'nothing'} and has {len(content)} bytes; get it again"
        )
    return torch.frombuffer(bytearray(content[start:]), dtype=torch.uint8).reshape(shape)


def read_rows(path: Path, columns: int) -> list[tuple[str, ...]]:
    """Rows of tab-separated UTF-8 text: the first ``columns`` fields of each; quotes mean nothing.

    Raises:
        TaskError: it cannot be read, or a row has fewer fields.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"a table must be readable as UTF-8 text; {path} is not ({first_line(error)})") from error
    rows = [tuple(line.rstrip("\r").split("\t")) for line in lines]
    for number, row in enumerate(rows, start=1):
        if len(row) < columns and row != ("",):
            raise TaskError(
                f"a row must have {columns} fields with tabs between; line {number} of {path} has {len(row)}; mend it"
            )
    return [row[:columns] for row in rows if row != ("",)]


def _stamp(root: Path, folder: ImageFolder) -> str:
    """Twelve hexadecimal digits over what tells that the files are the same: names, sizes, times."""
    files = [root] if root.is_file() else [root / name for name in folder.names]
    facts = [(path.name, stat.st_size, stat.st_mtime_ns) for path in files for stat in [path.stat()]]
    return hashlib.sha256(repr((facts, folder.names)).encode()).hexdigest()[:12]


def _decoded(folder: ImageFolder, tell: Progress) -> np.ndarray:
    count = len(folder)
    tell(f"decoding {count:,} images of {folder.root}")
    first = np.asarray(folder.image(0)).transpose(2, 0, 1)
    pixels = np.empty((count, *first.shape), dtype=np.uint8)
    for index, name in enumerate(folder.names):
        image = np.asarray(folder.image(index)).transpose(2, 0, 1)
        if image.shape != first.shape:
            raise TaskError(
                f"the images of this data set must have one size; {name} in {folder.root} has "
                f"{image.shape[2]}×{image.shape[1]} pixels and {folder.names[0]} {first.shape[2]}×{first.shape[1]}"
            )
        pixels[index] = image
        if (index + 1) % TOLD_EVERY == 0 and index + 1 < count:
            tell(f"decoding: {index + 1:,} of {count:,}")
    return pixels


def _kept_pixels(path: Path, count: int) -> np.ndarray | None:
    try:
        with path.open("rb") as file, np.load(file) as kept:  # a zip: its sums are checked
            pixels: np.ndarray = kept["pixels"]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None
    return pixels if pixels.dtype == np.uint8 and pixels.ndim == 4 and len(pixels) == count else None
