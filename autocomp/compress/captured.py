"""A training step on a GPU as one graph of kernels."""

from __future__ import annotations

from collections.abc import Callable

import torch

Batch = tuple[torch.Tensor, ...]

#: Steps that are done one kernel at a time first, so that the optimizer and the libraries have what they allocate once.
WARM_UP = 3


class CapturedStep:
    """A step that is recorded once and replayed on every batch of the same shapes: to launch the kernels of a small
    network one by one takes several times as long as to run them. Other batches are stepped as they are.

    Args:
        step: learns from a batch that is on the GPU and gives its loss. It does the same for every batch, and reads no
            number back.
    """

    def __init__(self, step: Callable[[Batch], torch.Tensor]) -> None:
        self._step = step
        self._steps = 0
        self._batch: Batch = ()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._loss = torch.zeros(())

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Step on a batch, from any device; the loss is overwritten by the next step."""
        alike = [one.shape for one in batch] == [one.shape for one in self._batch]
        if self._graph is None and not alike:
            self._steps, self._batch = 0, tuple(tensor.cuda() for tensor in batch)
        elif not alike:
            return self._step(tuple(tensor.cuda() for tensor in batch))
        for own, given in zip(self._batch, batch, strict=True):
            own.copy_(given)
        if self._graph is None and self._steps < WARM_UP:
            self._steps += 1
            return self._aside()
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._loss = self._step(self._batch)
        self._graph.replay()
        return self._loss

    def _aside(self) -> torch.Tensor:
        """A step in a stream of its own, as the recording asks of those before it."""
        stream, usual = torch.cuda.Stream(), torch.cuda.current_stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(usual)
        with torch.cuda.stream(stream):
            loss = self._step(self._batch)
        usual.wait_stream(stream)
        return loss
