"""What each choice does by itself, measured on a Ray cluster: as many decisions at a time as there is room for."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import ray

from autocomp.errors import WorkError, first_line
from autocomp.search.ray_cluster import RETRIES, by_value, checked_room, connected
from autocomp.search.sensitivity import Errors, Measurer, Measures
from autocomp.search.workers import Workers
from autocomp.space import Decision

#: What Ray says of a worker that is gone, whatever it was at.
LOST = (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError)


def across(workers: Workers) -> Measures:
    """Measures on a cluster's workers, each of which keeps what it learns of the layers it has seen."""
    return partial(_measured, workers)


def _measured(workers: Workers, measurer: Measurer, decisions: Sequence[Decision]) -> Iterator[tuple[Decision, Errors]]:
    """Raises:
    WorkError: there is no cluster, no node of it has room, or a worker dies again and again.
    """
    by_value()
    with connected():
        most = min(workers.concurrent or len(decisions), checked_room(workers), len(decisions))
        remote: Any = ray.remote(_Measuring).options(num_cpus=workers.cpus, num_gpus=workers.gpus)
        held = ray.put(measurer)
        crew = _Crew(lambda: remote.remote(held), decisions)
        try:
            yield from crew.work(most)
        except ray.exceptions.RayError as error:
            raise WorkError(f"workers must measure what each choice does; one cannot: {first_line(error)}") from error
        finally:
            crew.dismiss()


class _Crew:
    """Workers that measure. None is given anything before it has a place: where a node is lost, or another search holds the
    rest of the cluster, those that are there do all of it.

    Args:
        hire: asks for a worker, which begins when there is room for it.
    """

    def __init__(self, hire: Callable[[], Any], decisions: Sequence[Decision]) -> None:
        self._hire, self._left = hire, deque(decisions)
        #: What is waited for: of which worker, and what it was given; nothing before it has begun.
        self._awaited: dict[Any, tuple[Any, Decision | None]] = {}
        self._hired: list[Any] = []
        self._lost = Counter[str]()

    def work(self, most: int) -> Iterator[tuple[Decision, Errors]]:
        """Raises:
        RayError: a measurement fails, or workers are lost again and again.
        """
        for _ in range(most):
            self._ask_for_one()
        while self._left or any(decision is not None for _, decision in self._awaited.values()):
            (done,), _ = ray.wait([*self._awaited], num_returns=1)
            worker, decision = self._awaited.pop(done)
            found: Errors | None = None
            try:
                found = ray.get(done)
            except LOST as error:
                name = "" if decision is None else decision.name
                self._lost[name] += 1
                hopeless = getattr(error, "actor_init_failed", False)
                if hopeless or self._lost[name] > (RETRIES if name else RETRIES * most):
                    raise
                if decision is not None:
                    self._left.append(decision)
                self._ask_for_one()
            else:
                self._hand_out(worker)
            if decision is not None and found is not None:
                yield decision, found

    def _ask_for_one(self) -> None:
        worker = self._hire()
        self._hired.append(worker)
        self._awaited[worker.begin.remote()] = (worker, None)

    def _hand_out(self, worker: Any) -> None:
        if self._left:
            decision = self._left.popleft()
            self._awaited[worker.errors.remote(decision)] = (worker, decision)
        else:
            ray.kill(worker)  # others may need its place

    def dismiss(self) -> None:
        for worker in self._hired:
            ray.kill(worker)


class _Measuring:
    """A worker."""

    def __init__(self, measurer: Measurer) -> None:
        self._measurer = measurer

    def begin(self) -> None:
        """It has a place."""

    def errors(self, decision: Decision) -> Errors:
        return self._measurer.errors(decision)
