"""What all tests share: one thread, one finished search on a small task, and torch.onnx's operators read once."""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in every run: what fails here fails everywhere, and what passed keeps passing.
settings.register_profile("fixed", derandomize=True)
settings.load_profile("fixed")

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
def finished_run(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The folder of an undisturbed search with :data:`tests.targets.REQUEST`; copy it before changing anything. One for all
    workers: the first that asks for it makes it, and the others wait."""
    from autocomp.run import RunFolder
    from autocomp.search import flow
    from autocomp.watch import SILENT
    from tests.targets import small_setup

    own = tmp_path_factory.getbasetemp()
    shared = own if worker_id == "master" else own.parent
    folder, done = shared / "finished" / "run", shared / "finished" / "done"
    folder.parent.mkdir(exist_ok=True)
    with (folder.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            flow.search(small_setup(), RunFolder(folder), resume=False, watcher=SILENT)
            done.touch()
    return folder
