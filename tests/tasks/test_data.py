"""Where data is looked for, and what a reader says of files that are not in their format."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autocomp.errors import TaskError
from autocomp.tasks.data import data_folder, find, read_idx, read_images, read_rows
from autocomp.tasks.image_folder import open_image_folder

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the data folder {SHARED} is absent")


def png(value: int, side_px: int = 4) -> bytes:
    """A grey square: lossless, so that what is read can be compared."""
    file = io.BytesIO()
    Image.new("RGB", (side_px, side_px), (value, value, value)).save(file, "PNG")
    return file.getvalue()


def image_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def image_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_folders_that_are_linked_are_folders(tmp_path: Path) -> None:
    image_folder(tmp_path / "all", {"dog/1.png": png(10), "cat/1.png": png(30), "cat/2.png": png(40)})
    (tmp_path / "some" / "bird").mkdir(parents=True)
    (tmp_path / "some" / "bird" / "1.png").write_bytes(png(50))
    (tmp_path / "some" / "cat").symlink_to(tmp_path / "all" / "cat")
    (tmp_path / "some" / "bird" / "back").symlink_to(tmp_path / "some")
    found = open_image_folder(tmp_path / "some")
    assert found.classes == ("bird", "cat")
    assert found.names == ("bird/1.png", "cat/1.png", "cat/2.png")


FILES = {"dog/0002.png": png(20), "dog/0001.png": png(10), "cat/0001.png": png(30)}


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


class TestFolder:
    def test_what_is_given_goes_before_the_environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "given").mkdir()
        monkeypatch.delenv("AUTOCOMP_DATA", raising=False)
        assert data_folder(None) is None
        assert data_folder(tmp_path / "given") == tmp_path / "given"
        monkeypatch.setenv("AUTOCOMP_DATA", str(tmp_path))
        assert data_folder(None) == tmp_path
        assert data_folder(tmp_path / "given") == tmp_path / "given"

    def test_a_folder_that_is_none_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(TaskError, match=r"--data must name a folder; .*nowhere' is none"):
            data_folder(tmp_path / "nowhere")
        monkeypatch.setenv("AUTOCOMP_DATA", str(tmp_path / "nowhere"))
        with pytest.raises(TaskError, match="AUTOCOMP_DATA must name a folder"):
            data_folder(None)

    @pytest.mark.parametrize("given", [".", "set", "other"])
    def test_a_set_is_found_in_its_folder_its_parent_and_beside(self, tmp_path: Path, given: str) -> None:
        (tmp_path / "other").mkdir()
        image_folder(tmp_path, {"set/a.gz": b""})
        assert find(tmp_path / given, ["set"], ["a", "a.gz"], "it").resolve() == tmp_path / "set" / "a.gz"

    def test_the_folder_itself_goes_first(self, tmp_path: Path) -> None:
        image_folder(tmp_path, {"set/a": b"", "a": b""})
        assert find(tmp_path, ["set"], ["a"], "it") == tmp_path / "a"

    def test_what_is_missing_is_said_in_one_line(self, tmp_path: Path) -> None:
        with pytest.raises(
            TaskError, match=r"^CIFAR: no data folder is named; .* train.zip or train by --data DIR"
        ) as no:
            find(None, ["set"], ["train.zip", "train"], "CIFAR")
        with pytest.raises(TaskError, match=r"^CIFAR: train.zip or train must be in .* AUTOCOMP_DATA$") as absent:
            find(tmp_path, ["set"], ["train.zip", "train"], "CIFAR")
        assert str(tmp_path) in str(absent.value)
        assert "\n" not in str(no.value) + str(absent.value)


class TestImages:
    @pytest.fixture(params=["folder", "zip"])
    def root(self, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
        if request.param == "zip":
            return image_zip(tmp_path / "train.zip", FILES)
        return image_folder(tmp_path / "train", FILES)

    def test_classes_are_labels_in_alphabetical_order(self, root: Path, tmp_path: Path) -> None:
        images = read_images(root, tmp_path / "cache", lambda _: None)
        assert images.classes == ("cat", "dog")
        assert images.labels.tolist() == [0, 1, 1]
        assert images.pixels.shape == (3, 3, 4, 4)
        assert images.pixels.dtype == torch.uint8
        assert images.pixels[:, 0, 0, 0].tolist() == [30, 10, 20]

    def test_a_second_reading_decodes_nothing(self, root: Path, tmp_path: Path) -> None:
        said: list[str] = []
        first = read_images(root, tmp_path / "cache", said.append)
        assert said == [f"decoding 3 images of {root}"]
        again = read_images(root, tmp_path / "cache", said.append)
        assert len(said) == 1
        assert torch.equal(first.pixels, again.pixels)

    @pytest.mark.parametrize("damage", [lambda _: b"", lambda old: old[: len(old) // 2], lambda _: b"not a zip"])
    def test_a_damaged_copy_is_decoded_again(
        self, root: Path, tmp_path: Path, damage: Callable[[bytes], bytes]
    ) -> None:
        first = read_images(root, tmp_path / "cache", lambda _: None)
        (kept,) = (tmp_path / "cache").iterdir()
        kept.write_bytes(damage(kept.read_bytes()))
        assert torch.equal(first.pixels, read_images(root, tmp_path / "cache", lambda _: None).pixels)

    def test_a_cache_that_cannot_be_written_is_no_error(self, root: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        assert len(read_images(root, tmp_path / "file", lambda _: None).pixels) == 3

    def test_other_images_are_read_anew(self, tmp_path: Path) -> None:
        root = image_folder(tmp_path / "train", FILES)
        read_images(root, tmp_path / "cache", lambda _: None)
        (root / "dog" / "0001.png").write_bytes(png(99))
        assert read_images(root, tmp_path / "cache", lambda _: None).pixels[1, 0, 0, 0] == 99
        image_folder(root, {"dog/0003.png": png(40)})
        assert len(read_images(root, tmp_path / "cache", lambda _: None).pixels) == 4

    def test_images_of_two_sizes_are_refused(self, tmp_path: Path) -> None:
        root = image_zip(tmp_path / "train.zip", FILES | {"dog/0003.png": png(40, side_px=5)})
        with pytest.raises(TaskError, match=r"must have one size; dog/0003.png in .* has 5×5 pixels and .* 4×4"):
            read_images(root, tmp_path / "cache", lambda _: None)

    def test_a_file_that_is_no_image_is_named(self, tmp_path: Path) -> None:
        root = image_folder(tmp_path / "train", FILES | {"dog/0003.png": b"none"})
        with pytest.raises(TaskError, match=r"dog/0003.png") as caught:
            read_images(root, tmp_path / "cache", lambda _: None)
        assert "\n" not in str(caught.value)


class TestIdx:
    @pytest.mark.parametrize("pack", [bytes, gzip.compress])
    def test_the_shape_is_the_files(self, tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
        array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
        (tmp_path / "file").write_bytes(pack(idx(array)))
        read = read_idx(tmp_path / "file")
        assert read.dtype == torch.uint8
        np.testing.assert_array_equal(read.numpy(), array)

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\0\0\x08",
            b"\0\0\x08\0",
            b"\0\0\x08\x02\0\0\0\x01\0\0",
            b"\0\0\x09\x01\0\0\0\x01a",
            idx(np.zeros((2, 3)))[:-1],
            idx(np.zeros((2, 3))) + b"a",
            b"<html>not found</html>",
        ],
    )
    def test_another_file_is_refused(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(TaskError, match="an idx file of bytes must begin with 00 00 08") as caught:
            read_idx(tmp_path / "file")
        assert "\n" not in str(caught.value)

    def test_a_cut_gzip_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file.gz").write_bytes(gzip.compress(idx(np.zeros((20, 30))))[:-9])
        with pytest.raises(TaskError, match="an idx file must be readable"):
            read_idx(tmp_path / "file.gz")


class TestRows:
    def test_quotes_mean_nothing_and_extra_fields_are_dropped(self, tmp_path: Path) -> None:
        (tmp_path / "rows").write_text('a\t"b\tc\n1\t2\t3\t4\r\n', encoding="utf-8", newline="")
        assert read_rows(tmp_path / "rows", 3) == [("a", '"b', "c"), ("1", "2", "3")]

    def test_a_short_row_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "rows").write_text("a\tb\nc\n")
        with pytest.raises(TaskError, match=r"a row must have 2 fields .* line 2 of .* has 1"):
            read_rows(tmp_path / "rows", 2)

    def test_a_file_that_is_no_text_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "rows").write_bytes(b"\xff\xfe\xfd")
        with pytest.raises(TaskError, match="must be readable as UTF-8"):
            read_rows(tmp_path / "rows", 2)

    @needs_data
    @pytest.mark.parametrize(("part", "count"), [("train", 5749), ("dev", 1500), ("test", 1379)])
    def test_the_real_pairs_all_have_a_score(self, part: str, count: int) -> None:
        rows = read_rows(SHARED / "stsb" / f"sts-{part}.csv", 7)
        assert len(rows) == count
        assert all(0.0 <= float(row[4]) <= 5.0 for row in rows)
