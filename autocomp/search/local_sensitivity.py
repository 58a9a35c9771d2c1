"""What each choice does by itself, measured by several processes of this machine: one core each, since small networks use
several badly, and tracing a model is not safe in threads."""

from __future__ import annotations

import pickle
import signal
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from functools import cache, partial
from pathlib import Path

import cloudpickle
import torch
import tqdm
from loky import ProcessPoolExecutor, cpu_count

from autocomp.errors import first_line
from autocomp.search.sensitivity import Errors, Measurer, Measures, one_by_one
from autocomp.space import Decision
from autocomp.tasks.user_file import modules_of_user

#: A pass of fewer multiply-accumulates is done before processes have begun.
WORTH_MACS = 2e11
#: A process takes memory for the model and what it computes, and gains ever less.
MOST_PROCESSES = 8

Tell = Callable[[str], None]


def on_this_machine(tell: Tell) -> Measures:
    """Measures in as many processes as there are cores for, where that is worth it and the model is on the CPU.

    Args:
        tell: is told why not, where the model cannot be sent to a process, or one has died; what is missing is then measured
            in this process.
    """
    return partial(_measured, tell)


def _measured(tell: Tell, measurer: Measurer, decisions: Sequence[Decision]) -> Iterator[tuple[Decision, Errors]]:
    processes = min(cpu_count(), MOST_PROCESSES, len(decisions))
    missing = list(decisions)
    if processes > 1 and measurer.work_macs(decisions) >= WORTH_MACS and _on_cpu(measurer):
        try:
            for decision, found in _in_processes(processes, measurer, decisions):
                missing.remove(decision)
                yield decision, found
        except Exception as error:  # noqa: BLE001  whatever keeps a user's model from another process, or ends that
            tell(
                "what each choice does is measured by one process from here on, since others cannot: "
                f"{type(error).__name__}: {first_line(error)}"
            )
    yield from one_by_one(measurer, missing)


def _on_cpu(measurer: Measurer) -> bool:
    return all(one.device.type == "cpu" for one in measurer.bench.prepared.model.state_dict().values())


def _in_processes(
    processes: int, measurer: Measurer, decisions: Sequence[Decision]
) -> Iterator[tuple[Decision, Errors]]:
    for module in modules_of_user():
        cloudpickle.register_pickle_by_value(module)
    with tempfile.TemporaryDirectory(prefix="autocomp-") as folder:
        sent = Path(folder) / "measurer"
        sent.write_bytes(cloudpickle.dumps(measurer))
        pool, ended = ProcessPoolExecutor(processes, initializer=_begin), False
        try:
            of = {pool.submit(_errors, sent, decision.name): decision for decision in decisions}
            for done in as_completed(of):
                yield of[done], done.result()
            ended = True
        finally:
            pool.shutdown(wait=True, kill_workers=not ended)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who is interrupted ends its workers
    # PyTorch traces with tqdm at hand, whose own lock is a semaphore that outlives a process that is killed.
    tqdm.tqdm.set_lock(threading.RLock())
    torch.set_num_threads(1)


@cache
def _received(sent: Path) -> Measurer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of PyTorch, of its own classes
        measurer: Measurer = pickle.loads(sent.read_bytes())
    return measurer


def _errors(sent: Path, name: str) -> Errors:
    measurer = _received(sent)
    return measurer.errors(measurer.space.by_name[name])
