"""Imports go one way, from the nouns at the bottom to the command line on top, and heavy libraries load on use."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "autocomp"

#: From the bottom up. What stands together may import each other only within one part (a folder, or a module).
LAYERS = (
    ("errors", "changed"),
    ("plan", "task", "trial"),
    ("graph", "fx_nodes"),
    ("trace",),
    ("inventory",),
    ("formats",),
    ("places",),
    ("space", "space_file", "pareto", "run", "watch"),
    ("space_builder", "saved"),
    ("tasks", "compress"),
    ("export",),
    ("hardware",),
    ("search",),
    ("jobs",),
    ("report", "explain"),
    ("finished", "forecast"),
    ("api",),
    ("__init__",),
    ("progress",),
    ("cli",),
    ("__main__",),
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
NOUNS = ("errors", "plan", "task", "trial")
HEAVY = (
    "torch",
    "optuna",
    "onnx",
    "onnxruntime",
    "openvino",
    "ray",
    "plotly",
    "matplotlib",
    "pandas",
    "sklearn",
    "torch_pruning",
)


@dataclass(frozen=True)
class Import:
    """One import in a module of ``autocomp``; ``typing_only`` inside ``if TYPE_CHECKING``."""

    module: str
    imported: str
    line: int
    typing_only: bool

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.imported}"


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(ROOT.rglob("*.py")):
        yield ".".join(path.relative_to(ROOT.parent).with_suffix("").parts), ast.parse(path.read_text(encoding="utf-8"))


def imports_of(module: str, tree: ast.AST, typing_only: bool = False) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, node.lineno, typing_only)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: imports are absolute here"
            for alias in node.names:
                # a part may be imported by name: from autocomp import plan
                inside = node.module == "autocomp"
                yield Import(
                    module, f"{node.module}.{alias.name}" if inside else str(node.module), node.lineno, typing_only
                )
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for child in node.body:
                yield from imports_of(module, ast.Module([child], []), typing_only=True)
            for child in node.orelse:
                yield from imports_of(module, ast.Module([child], []), typing_only)
        else:
            yield from imports_of(module, node, typing_only)


IMPORTS = [one for module, tree in modules() for one in imports_of(module, tree)]


def part(module: str) -> str:
    """``autocomp.compress.apply`` → ``compress``."""
    return module.split(".")[1] if "." in module else "__init__"


def inner() -> list[Import]:
    return [one for one in IMPORTS if one.imported.split(".")[0] == "autocomp"]


def test_the_walk_sees_the_package() -> None:
    assert "autocomp.plan" in {one.module for one in inner() if one.imported == "autocomp.errors"}
    assert any(one.typing_only for one in IMPORTS)
    assert any(one.imported == "torch" for one in IMPORTS)


def test_every_part_has_its_place() -> None:
    parts = {part(module) for module, _ in modules()}
    assert parts <= LEVEL.keys(), f"give {sorted(parts - LEVEL.keys())} a place in LAYERS"


def test_imports_go_down() -> None:
    """Those for type checkers as well: a name that cannot be said without looking up is looked up."""
    wrong = [
        str(one)
        for one in inner()
        if part(one.module) != part(one.imported)
        and LEVEL[part(one.module)] <= LEVEL[part(one.imported)]
        and not (part(one.module) in NOUNS and part(one.imported) in NOUNS and part(one.module) != "errors")
    ]
    assert not wrong


@pytest.mark.parametrize("below", ["compress", "export", "hardware"])
def test_the_lower_parts_know_nothing_of_search_and_report(below: str) -> None:
    wrong = [str(one) for one in inner() if part(one.module) == below and part(one.imported) in ("search", "report")]
    assert not wrong


def test_nouns_need_the_standard_library_and_numpy() -> None:
    allowed = sys.stdlib_module_names | {"numpy", "autocomp"}
    wrong = [
        str(one)
        for one in IMPORTS
        if part(one.module) in NOUNS and not one.typing_only and one.imported.split(".")[0] not in allowed
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("library", "places"),
    # Optuna's place: samplers, and the study that they propose for.
    [
        (
            "optuna",
            {
                "search.books",
                "search.guided",
                "search.journal",
                "search.ledger",
                "search.own_study",
                "search.sampler",
                "search.study",
            },
        ),
        ("ray", {"search.ray_cluster", "search.ray_sensitivity", "search.ray_tune", "jobs.client"}),
        ("plotly", {"report.page"}),
    ],
)
def test_some_libraries_are_imported_in_one_place(library: str, places: set[str]) -> None:
    found = {one.module for one in IMPORTS if one.imported.split(".")[0] == library}
    assert {module.removeprefix("autocomp.") for module in found} <= places


def test_importing_autocomp_is_cheap() -> None:
    code = f"import sys, autocomp; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert done.stdout.strip() == "[]"
