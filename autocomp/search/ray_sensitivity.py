"""What each choice does by itself, measured on a Ray cluster: as many decisions at a time as there is room for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import ray
from ray.util import ActorPool

from autocomp.errors import WorkError, first_line
from autocomp.search.ray_cluster import RETRIES, by_value, checked_room, connected
from autocomp.search.sensitivity import Errors, Measurer, Measures
from autocomp.search.workers import Workers
from autocomp.space import Decision


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
        remote: Any = ray.remote(_Measuring).options(
            num_cpus=workers.cpus, num_gpus=workers.gpus, max_restarts=RETRIES, max_task_retries=RETRIES
        )
        held = ray.put(measurer)
        actors = [remote.remote(held) for _ in range(most)]
        try:
            pool: Any = ActorPool(actors)
            yield from pool.map_unordered(lambda actor, one: actor.measure.remote(one), list(decisions))
        except ray.exceptions.RayError as error:
            raise WorkError(f"workers must measure what each choice does; one cannot: {first_line(error)}") from error
        finally:
            for actor in actors:
                ray.kill(actor)


class _Measuring:
    """A worker."""

    def __init__(self, measurer: Measurer) -> None:
        self._measurer = measurer

    def measure(self, decision: Decision) -> tuple[Decision, Errors]:
        return decision, self._measurer.errors(decision)
