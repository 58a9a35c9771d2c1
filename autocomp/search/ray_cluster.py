"""The Ray cluster that a search runs on, and the machine among its nodes that latency is measured on."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import ray
import ray.cloudpickle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from autocomp.errors import WorkError, first_line
from autocomp.hardware.resolve import resolve_target
from autocomp.search.workers import LABEL, Workers
from autocomp.tasks.user_file import modules_of_user

if TYPE_CHECKING:
    from autocomp.export.artifact import Artifact
    from autocomp.hardware.target import Target

ResultT = TypeVar("ResultT")

#: How often what a worker died of is begun again elsewhere.
RETRIES = 3
#: Seconds that a cluster named by RAY_ADDRESS has to answer; Ray itself tries for minutes.
ANSWER_S = 5.0


@contextmanager
def connected() -> Iterator[None]:
    """The cluster that is there (RAY_ADDRESS, or one begun on this machine by ``ray start``), or one of this process.

    Raises:
        WorkError: RAY_ADDRESS names none.
    """
    if ray.is_initialized():
        yield
        return
    try:
        _check_address(os.environ.get("RAY_ADDRESS", ""))
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, OSError, RuntimeError) as error:
        raise WorkError(
            f"a search must run on a node of a Ray cluster; {' '.join(str(error).split())[:200]}; make this machine one "
            "with ray start, send the search with autocomp submit, or unset RAY_ADDRESS"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
        except OSError as error:
            raise ConnectionError(f"RAY_ADDRESS is {address}, where nothing answers ({error})") from error


def node_resources() -> list[Mapping[str, float]]:
    """What each node that is there has."""
    return [node["Resources"] for node in _alive()]


def _own_node() -> str:
    found: str = ray.get_runtime_context().get_node_id()
    return found


def _alive() -> list[Any]:
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class TargetNode:
    """The node that files of a target are timed on: that with the target's label; where none has it, the one that the
    search itself runs on. All of its CPUs are held meanwhile, so that it waits for what runs there, and nothing begins.
    ``labelled``: that a node has the label; where it is lost, no other one takes its place."""

    target: str
    labelled: bool = False

    def resolve(self, threads: int | None, batch: int | None, artifact: Artifact | None) -> Target:
        """The target as it holds on that node, which is calibrated first where no profile does."""
        return self.there(partial(resolve_target, self.target, threads, batch, artifact))

    def is_labelled(self) -> bool:
        """Whether a node has the target's label."""
        return any(self._label in has for has in node_resources())

    @property
    def elsewhere(self) -> str:
        """As :attr:`name`."""
        return self.name

    @property
    def another_machine(self) -> bool:
        """Whether the search itself runs on another node."""
        return str(self._chosen()["NodeID"]) != _own_node()

    @property
    def name(self) -> str:
        return f"the node with {self._label}" if self.is_labelled() else "the search's own node"

    @property
    def _label(self) -> str:
        return f"{LABEL}{self.target}"

    def _chosen(self) -> Any:
        """The node with the label, or the search's own."""
        nodes, own = _alive(), _own_node()
        has = next((node for node in nodes if self._label in node["Resources"]), None)
        if has is None and self.labelled:
            raise WorkError(
                f"what a search times must be timed on one machine; the node with {self._label} is gone; bring it back, and go "
                "on with --resume"
            )
        return has or next(node for node in nodes if node["NodeID"] == own)

    def there(self, work: Callable[[], ResultT]) -> ResultT:
        """Do something on that node, alone."""
        chosen = self._chosen()
        held = {self._label: 1.0} if self._label in chosen["Resources"] else {}
        remote: Any = ray.remote(_done).options(
            num_cpus=chosen["Resources"].get("CPU", 0.0),
            resources=held,
            scheduling_strategy=NodeAffinitySchedulingStrategy(chosen["NodeID"], soft=False),
            max_retries=0,
            # Ray's workers let others go first; what is timed must not.
            runtime_env={"env_vars": {"RAY_worker_niceness": "0"}},
        )
        try:
            result: ResultT = ray.get(remote.remote(work))
        except ray.exceptions.RayTaskError as error:
            raise (error.cause or error) from None
        except ray.exceptions.RayError as error:
            raise WorkError(f"{self.name} must do the timing; it does not: {first_line(error)}") from error
        return result


def _done(work: Callable[[], ResultT]) -> ResultT:
    return work()


def by_value() -> None:
    """Workers have no module of a user's file, nor those that it imports from its own folder: what they define travels
    with the task."""
    for module in modules_of_user():
        ray.cloudpickle.register_pickle_by_value(module)  # type: ignore[no-untyped-call]


def checked_room(workers: Workers) -> int:
    """Trials that fit on the cluster at a time.

    Raises:
        WorkError: none does.
    """
    nodes = node_resources()
    room = sum(_fitting(has, workers) for has in nodes)
    if not room:
        has = "; ".join(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in nodes)
        raise WorkError(
            f"a node must have room for a trial of {workers.cpus:g} CPUs and {workers.gpus:g} GPUs; there are {has}; "
            "ask for less with --trial-cpus and --trial-gpus"
        )
    return room


def _fitting(has: Mapping[str, float], workers: Workers) -> int:
    """Trials that fit on a node at a time."""
    fits = has.get("CPU", 0.0) / workers.cpus
    return int(min(fits, has.get("GPU", 0.0) / workers.gpus) if workers.gpus else fits)
