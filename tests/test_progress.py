"""The tables of the command line, as terminals show them."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from autocomp.progress import front_table
from autocomp.report.load import load
from autocomp.report.shown import shown
from tests.report.synthetic import Kind, write_run


@pytest.mark.parametrize(("target", "common"), [("cpu", "measured"), ("jetson-orin-nano", "datasheet")])
def test_a_front_fits_into_eighty_columns_and_says_once_what_is_so_of_all(
    target: str, common: str, tmp_path: Path
) -> None:
    (run,) = shown([load(write_run(tmp_path / "run", Kind(target)))])
    console = Console(file=io.StringIO(), width=80)
    console.print(front_table(run))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert text.count(common) == 1
    assert "…" not in text
    for one in run.listed:
        assert all(word in text for name in one.names for word in name.split())
