"""What a cluster's evaluations run on."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from autocomp.errors import RequestError

#: In front of a target's name: the resource of the node that latency is measured on.
LABEL = "autocomp_target_"


@dataclass(frozen=True)
class Workers:
    """What evaluations run on.

    ``concurrent``: at most so many at a time; None for as many as the cluster has room for. ``cpus``, ``gpus``: of each.
    ``limit_s``, ``limit_gb``: an evaluation that takes longer, or a worker that grows larger, fails its trial.
    """

    concurrent: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    limit_s: float | None = None
    limit_gb: float | None = None

    def __post_init__(self) -> None:
        if self.concurrent is not None and self.concurrent < 1:
            raise RequestError(f"at least one trial must run at a time; got --max-concurrent {self.concurrent}")
        if self.cpus <= 0 or self.gpus < 0:
            raise RequestError(f"a trial must have CPUs, and may have GPUs; got {self.cpus} and {self.gpus}")
        for name in ("limit_s", "limit_gb"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise RequestError(f"a trial's limit must be positive; got {name} {value}; leave it out for none")


def check_ray() -> None:
    """Raises:
    RequestError: Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise RequestError("--executor ray must have Ray, which is not installed; pip install 'autocomp[ray]'")
