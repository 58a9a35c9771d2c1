"""What all tests share: one thread, one finished search on a small task, and torch.onnx's operators read once."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import pytest

# On layers as small as the tests' a second thread is no help. Read by torch when it is first imported, here or in a
# child process; importing it here would make every test wait for it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _operators_are_read_once() -> None:
    """``torch.onnx.export`` reads the source of all operators that it can write with every file, a third of the time that
    a small network takes; the tests write hundreds."""
    from torch.onnx._internal._lazy_import import onnxscript_apis  # type: ignore[attr-defined]

    onnxscript_apis.get_torchlib_ops = functools.cache(onnxscript_apis.get_torchlib_ops)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed search with :data:`tests.targets.REQUEST`; copy it before changing anything."""
    from autocomp.run import RunFolder
    from autocomp.search import flow
    from autocomp.watch import SILENT
    from tests.targets import small_setup

    folder = tmp_path_factory.mktemp("finished") / "run"
    flow.search(small_setup(), RunFolder(folder), resume=False, watcher=SILENT)
    return folder
