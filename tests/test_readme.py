"""What the README tells a newcomer to type works as written, but for three substitutions that keep it quick and the
same on every machine: few trials, a short time limit, and a target that needs no calibration."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from autocomp.cli import main
from autocomp.search.tables import FRONT_COLUMNS, TRIAL_COLUMNS

README = Path(__file__).parents[1] / "README.md"
SUBSTITUTIONS = (
    # Sensitivities take a minute; the search that is given little time measures what it can of them.
    (r"^(?!.*--sampler)(.*)--trials \d+", r"\1--trials 3 --sampler random"),
    (r"--trials \d+", "--trials 3"),
    (r"--timeout \w+", "--timeout 3s --trials 3"),
    (r"--target cpu", "--target jetson"),
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


def commands() -> list[str]:
    lines = [line for block in blocks("console") for line in block.splitlines()]
    return [line.partition("#")[0].strip() for line in lines if line.startswith("autocomp ")]


def run(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for pattern, quick in SUBSTITUTIONS:
        command = re.sub(pattern, quick, command)
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    main()


@pytest.fixture
def newcomers_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_task.py").write_text(blocks("python")[0], encoding="utf-8")
    return tmp_path


def test_a_task_of_ones_own_is_short() -> None:
    lines = [line for line in blocks("python")[0].splitlines() if line and not line.startswith(("#", "import", "from"))]
    assert len(lines) <= 20


@pytest.mark.exhaustive
def test_every_command_of_the_readme(newcomers_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = commands()
    assert len(typed) >= 8
    for command in typed:
        run(command, monkeypatch)
    results = newcomers_folder / "results"
    assert sorted(path.name for path in results.iterdir()) == [
        "bits",
        "digits-cpu",
        "fast",
        "mine",
        "small",
        "two-minutes",
    ]
    for folder in results.iterdir():
        assert (folder / "report.html").stat().st_size > 100_000
    assert (newcomers_folder / "shipped" / "model.onnx").is_file()


@pytest.mark.exhaustive
def test_the_python_example(newcomers_folder: Path) -> None:
    code = (
        blocks("python")[1].replace('"cpu", trials=20', '"jetson", trials=3, sampler="random"').replace("0.3)", "9.0)")
    )
    exec(compile(code, "README", "exec"), {})
    assert (newcomers_folder / "shipped-api" / "model.onnx").is_file()


def test_every_column_of_the_tables_is_told() -> None:
    text = (README.parent / "docs" / "tables.md").read_text(encoding="utf-8")
    told = [name for cell in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for name in re.findall(r"`(\w+)`", cell)]
    assert told == [*TRIAL_COLUMNS]
    assert told[: len(FRONT_COLUMNS)] == [*FRONT_COLUMNS]


def test_the_two_commands_are_in_the_makefile() -> None:
    makefile = README.with_name("Makefile").read_text(encoding="utf-8")
    assert re.search(r"^demo:", makefile, flags=re.MULTILINE)
    assert re.search(r"^test:", makefile, flags=re.MULTILINE)
