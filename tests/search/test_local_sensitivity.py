"""What each choice does by itself, measured by real processes of this machine."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cloudpickle
import pytest
import torch

from autocomp.errors import WorkError
from autocomp.search import local_sensitivity
from autocomp.search.local_sensitivity import on_this_machine
from autocomp.search.sensitivity import Errors, Measurer, one_by_one
from autocomp.tasks.user_file import task_of_file
from tests import small_task
from tests.targets import small_setup, with_task

#: Ends any process but the one that the file was loaded in.
DYING = """
import os

LOADED_IN = os.getpid()
plain_forward = Net.forward


def forward(self, x):
    if os.getpid() != LOADED_IN:
        os._exit(3)
    return plain_forward(self, x)


Net.forward = forward
"""


@pytest.fixture(autouse=True)
def worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a network as small as this, and on a machine with however many cores."""
    monkeypatch.setattr(local_sensitivity, "WORTH_MACS", 0)
    monkeypatch.setattr(local_sensitivity, "cpu_count", lambda: 2)


def of_file(folder: Path, more: str = "") -> Measurer:
    """The small task as a user's file has it, whose module no other process can import."""
    file = folder / "task_of_mine.py"
    file.write_text(inspect.getsource(small_task) + more)
    task, _ = task_of_file(file, "task")
    setup = with_task(task)
    return Measurer(setup.bench, setup.space)


def measured(measurer: Measurer, told: list[str]) -> dict[str, Errors]:
    decisions = measurer.space.decisions[::3]
    found = {decision.name: errors for decision, errors in on_this_machine(told.append)(measurer, decisions)}
    assert set(found) == {decision.name for decision in decisions}
    return found


def assert_as_here(found: dict[str, Errors]) -> None:
    setup = small_setup()
    here = one_by_one(Measurer(setup.bench, setup.space), [setup.space.by_name[name] for name in found])
    for decision, errors in here:
        assert found[decision.name] == pytest.approx(errors, rel=1e-4, abs=1e-9)


def test_processes_measure_what_one_measures(tmp_path: Path) -> None:
    told: list[str] = []
    assert_as_here(measured(of_file(tmp_path), told))
    assert told == []


def test_a_model_that_cannot_be_sent_is_measured_here() -> None:
    setup = small_setup()
    task = replace(setup.bench.task, calibration=Held(setup.bench.task.calibration))
    told: list[str] = []
    assert_as_here(measured(Measurer(replace(setup.bench, task=task), setup.space), told))
    (line,) = told
    assert "one process" in line
    assert "lock" in line


class Held(list[tuple[torch.Tensor, ...]]):
    """Batches that hold something of this very process."""

    def __init__(self, batches: Sequence[tuple[torch.Tensor, ...]]) -> None:
        super().__init__(batches)
        self.lock = threading.Lock()


@pytest.mark.exhaustive
def test_what_a_dead_process_leaves_is_measured_here(tmp_path: Path) -> None:
    told: list[str] = []
    assert_as_here(measured(of_file(tmp_path, DYING), told))
    (line,) = told
    assert "one process" in line


def test_little_work_begins_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_sensitivity, "WORTH_MACS", 10**15)
    monkeypatch.setattr(local_sensitivity, "ProcessPoolExecutor", None)
    told: list[str] = []
    setup = small_setup()
    measured(Measurer(setup.bench, setup.space), told)
    assert told == []


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # of PyTorch, of its own class
def test_no_data_but_what_is_calibrated_on_is_sent() -> None:
    setup = small_setup()
    sent = cloudpickle.loads(cloudpickle.dumps(Measurer(setup.bench, setup.space)))
    with pytest.raises(WorkError, match="has none"):
        sent.bench.task.evaluate(setup.bench.task.model, "search")
    assert sent.bench.task.train is None
    assert len(sent.bench.task.calibration) == len(setup.bench.task.calibration)
