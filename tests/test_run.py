"""A run folder: what may change on resume, what a crash may leave, and that one process works in it at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from autocomp.errors import RequestError, RunError
from autocomp.run import Request, RunFolder

REQUEST = Request("digits", "cpu", "default", "auto", "onnx-packed", threads=1, batch=1, seed=0, trials=60)


def test_how_long_a_search_goes_on_may_change() -> None:
    assert REQUEST.changes(replace(REQUEST, trials=99, timeout_s=5.0)) == []


def test_a_path_may_be_written_in_another_way() -> None:
    asked = replace(REQUEST, task="net.py:small", space="spaces/own.yaml")
    assert asked.changes(replace(asked, task="./net.py:small", space="spaces/../spaces/own.yaml")) == []
    assert asked.changes(replace(asked, task="nets/net.py:small"))


def test_a_profile_may_have_moved() -> None:
    """That it is the same one is checked by its hash."""
    asked = replace(REQUEST, target="/before/my-board")
    assert asked.changes(replace(asked, target="/after/my-board")) == []
    assert asked.changes(replace(asked, target="/before/another")) == [
        "target was 'my-board' and is now 'another'",
    ]


def test_data_may_have_moved() -> None:
    """That the network does the same on them is checked by its score."""
    assert replace(REQUEST, data="/before").changes(replace(REQUEST, data="/after")) == []


def test_changes_are_named_with_both_values() -> None:
    assert REQUEST.changes(replace(REQUEST, seed=1, max_drop=2.0)) == [
        "seed was 0 and is now 1",
        "max_drop was None and is now 2.0",
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"trials": 0},
        {"timeout_s": 0.0},
        {"max_latency_ms": 0.0},
        {"max_latency_ms": -1.0},
        {"max_size_kb": float("nan")},
        {"max_drop": -0.5},
        {"trials": 4.5},
        {"timeout_s": "10m"},
        {"seed": None},
        {"max_size_kb": "20"},
    ],
)
def test_a_limit_that_means_nothing_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(RequestError, match=str(next(iter(wrong.values())))):
        replace(REQUEST, **wrong)  # type: ignore[arg-type]


def test_the_request_reads_back(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_json("run.json", {"request": {**REQUEST.__dict__}})
    assert folder.exists()
    assert folder.request() == REQUEST


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"request": {"tusk": 1}}', '{"request": 3}'])
def test_a_damaged_run_json_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunError) as caught:
        RunFolder(tmp_path).request()
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_run_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"must hold run\.json.*search --out"):
        RunFolder(tmp_path).read()


def test_events_come_back_in_order(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert list(folder.events()) == []
    for number in range(3):
        folder.append_event({"event": "verified", "number": number})
    assert [event["number"] for event in folder.events()] == [0, 1, 2]


@pytest.mark.parametrize("cut", [1, 2, 9])
def test_an_event_that_a_crash_cut_short_is_left_out_and_hides_no_later_one(tmp_path: Path, cut: int) -> None:
    folder = RunFolder(tmp_path)
    folder.append_event({"number": 0})
    folder.append_event({"number": 1})
    path = tmp_path / "events.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    before = [event["number"] for event in folder.events()]
    assert before == ([0, 1] if cut == 1 else [0])  # without its newline alone it is whole
    folder.append_event({"number": 2})
    folder.append_event({"number": 3})
    assert [event["number"] for event in folder.events()] == [*before, 2, 3]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path)
    folder.write("front.csv", "old\n")
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            folder.write("front.csv", "new\n")
    assert (tmp_path / "front.csv").read_text() == "old\n"
    folder.write("front.csv", "new\n")
    assert (tmp_path / "front.csv").read_text() == "new\n"


def test_files_are_written_below_folders_that_do_not_exist_yet(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run").write_json("exports/3/plan.json", {"layers": {}})
    assert json.loads((tmp_path / "run" / "exports" / "3" / "plan.json").read_text()) == {"layers": {}}


def test_two_processes_cannot_work_in_one_folder(tmp_path: Path) -> None:
    holding = (
        "import sys; from pathlib import Path; from autocomp.run import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).working():\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", holding, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(RunError, match="one process works in a run folder at a time"),
            RunFolder(tmp_path).working(),
        ):
            pass
        other.communicate("")
    with RunFolder(tmp_path).working():  # free again
        pass


def test_a_process_that_was_killed_leaves_the_folder_free(tmp_path: Path) -> None:
    dying = (
        "import os, signal, sys; from pathlib import Path; from autocomp.run import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).working(): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", dying, str(tmp_path)], check=False)
    with RunFolder(tmp_path).working():
        pass


def test_an_out_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(RunError, match=r"must be a folder.*notes\.txt"), RunFolder(tmp_path / "notes.txt").working():
        pass
