"""The process that holds a device and runs packages on it, for :mod:`autocomp.hardware.runtimes.torch_package`.

It reads requests from a pipe, answers each with a result or with one line of what went wrong, and ends when the pipe does:
with the process that began it. On CUDA a package is captured as a CUDA graph and timed by CUDA events, inputs and outputs
staying on the device; on a CPU it is called, and timed by the clock.
"""

from __future__ import annotations

import io
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, cast

import numpy as np
import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]  # torch itself does not list it
from torch.fx import Interpreter, Node
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils import _pytree

from autocomp.errors import first_line
from autocomp.export.semi_structured import CPU_KERNEL
from autocomp.fx_nodes import operator_name
from autocomp.graph import WEIGHT_ARGUMENT
from autocomp.hardware.runtimes.profiled import lower_half_mean
from autocomp.hardware.runtimes.torch_messages import (
    About,
    Answer,
    Array,
    Bind,
    Block,
    Load,
    Profile,
    Refused,
    Request,
    Run,
)
from autocomp.hardware.torch_kernels import ExecutedNode

#: Runs before a capture and before a profile: the first ones allocate memory and choose kernels.
WARMUP_RUNS = 3
#: Products whose second factor is a weight, and those of what is kept of one, which is the second argument as well.
PRODUCTS = frozenset({"_int_mm", "_scaled_mm"})
SPARSE_PRODUCT = "_sparse_semi_structured_addmm"
#: Marks an operation in the profiler's events.
MARK = "autocomp:"


class Worker:
    """Answers requests about packages on one device."""

    def __init__(self, device: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._device = torch.device(device)
        self._held = CPU_KERNEL  # for packages that are run where no GPU is
        self._files: dict[int, torch.fx.GraphModule] = {}
        self._calls: dict[int, Callable[[], object]] = {}

    def answer(self, request: Request) -> Answer:
        """Raises whatever torch does."""
        with torch.no_grad():
            if isinstance(request, Load):
                module, about = self._load(request.model)
                self._files[request.number] = module
                return about
            if isinstance(request, Run):
                return self._run(self._files[request.number], request.inputs)
            if isinstance(request, Bind):
                self._calls[request.number] = self._bound(self._files[request.number], request.inputs)
                return None
            if isinstance(request, Block):
                return self._timed(self._calls[request.number], request)
            if isinstance(request, Profile):
                return self._profiled(request)
            self._calls.pop(request.number, None)
            self._files.pop(request.number, None)
            return None

    def _load(self, model: bytes) -> tuple[torch.fx.GraphModule, About]:
        program = torch.export.load(io.BytesIO(model))
        signature = program.graph_signature
        given = [node for node in program.graph.nodes if node.name in signature.user_inputs]
        values = [node.meta["val"] for node in given]
        about = About(
            tuple(node.name for node in given),
            tuple(tuple(size if isinstance(size, int) else None for size in value.shape) for value in values),
            tuple(str(value.dtype).removeprefix("torch.") for value in values),
        )
        if self._device.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, self._device)
        return program.module(), about

    def _tensors(self, arrays: Sequence[Array]) -> list[torch.Tensor]:
        return [torch.from_numpy(np.ascontiguousarray(array)).to(self._device) for array in arrays]

    def _run(self, module: torch.fx.GraphModule, arrays: Sequence[Array]) -> list[Array]:
        outputs = _pytree.tree_leaves(module(*self._tensors(arrays)))
        return [leaf.cpu().numpy() for leaf in outputs if isinstance(leaf, torch.Tensor)]

    def _bound(self, module: torch.fx.GraphModule, arrays: Sequence[Array]) -> Callable[[], object]:
        inputs = self._tensors(arrays)
        if self._device.type == "cpu":
            return lambda: module(*inputs)
        # As torch's notes on CUDA graphs have it: warmed up on a stream of its own, then captured.
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARMUP_RUNS):
                module(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = module(*inputs)

        return _Captured(graph, (inputs, outputs))

    def _timed(self, call: Callable[[], object], block: Block) -> list[float]:
        for _ in range(block.warmup):
            call()
        if self._device.type == "cpu":
            seconds = []
            for _ in range(block.samples):
                start = time.perf_counter()
                for _ in range(block.calls):
                    call()
                seconds.append(time.perf_counter() - start)
            return seconds
        pairs = []
        for _ in range(block.samples):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            for _ in range(block.calls):
                call()
            end.record()
            pairs.append((begin, end))
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) / 1e3 for begin, end in pairs]

    def _profiled(self, request: Profile) -> tuple[ExecutedNode, ...]:
        module, _ = self._load(request.model)
        inputs = self._tensors(request.inputs)
        walk = _Walk(module)
        for _ in range(WARMUP_RUNS):
            walk.walk(inputs)
        activities = [ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        with profile(activities=activities, acc_events=True) as profiler:
            for _ in range(request.runs):
                walk.walk(inputs)
            if self._device.type == "cuda":
                torch.cuda.synchronize()
        times: dict[str, list[float]] = {}
        for event in profiler.events() or ():
            # On a GPU the profiler tells of a mark twice: of the launching, and of the device.
            if event.name.startswith(MARK) and event.device_type == DeviceType.CPU:
                spent = event.device_time_total if self._device.type == "cuda" else event.cpu_time_total
                times.setdefault(event.name.removeprefix(MARK), []).append(spent)
        return tuple(walk.told(node, lower_half_mean(times[node.name])) for node in walk.executed)


@dataclass(frozen=True)
class _Captured:
    """A captured graph; it reads and writes the very memory of ``held``."""

    graph: torch.cuda.CUDAGraph
    held: object

    def __call__(self) -> None:
        self.graph.replay()


class _Walk(Interpreter):
    """Runs a graph operation by operation, each under its name in the profiler's events."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.executed: list[Node] = []
        self._results: dict[str, torch.Tensor] = {}
        self._constants: set[str] = {node.name for node in module.graph.nodes if node.op == "get_attr"}

    def walk(self, inputs: Sequence[torch.Tensor]) -> None:
        """Run the graph once."""
        self.executed = []
        self.run(*inputs, enable_io_processing=True)

    def run_node(self, n: Node) -> Any:
        if n.op != "call_function":
            result = super().run_node(n)
        else:
            with record_function(MARK + n.name):
                result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            self._results[n.name] = result
            if n.op == "call_function":
                self.executed.append(n)
        return result

    def told(self, node: Node, time_us: float) -> ExecutedNode:
        """What an operation was, with its time."""
        result = self._results[node.name]
        given = [source for source in node.all_input_nodes if source.name in self._results]
        computed = [source for source in given if source.name not in self._constants]
        overload = node.target if isinstance(node.target, torch._ops.OpOverload) else None  # else a part of a split
        op = operator_name(node)
        weight, kernel, stride, groups = _geometry(op, node, self._results)
        first = self._results[(computed or given)[0].name] if given else result
        read = computed[:1] if op in WEIGHT_ARGUMENT or op in PRODUCTS or op == SPARSE_PRODUCT else computed
        same = {self._results[source.name].untyped_storage().data_ptr() for source in given}
        writes = overload is not None and overload._schema.is_mutable
        return ExecutedNode(
            name=node.name,
            op=op,
            dtype=str(result.dtype).removeprefix("torch."),
            read_dtype=str(first.dtype).removeprefix("torch."),
            read=tuple(tuple(self._results[source.name].shape) for source in read or given[:1]),
            result=tuple(result.shape),
            weight=weight,
            kernel=kernel,
            stride=stride,
            groups=groups,
            view=overload is None or (not writes and result.untyped_storage().data_ptr() in same),
            time_us=time_us,
        )


Shape = tuple[int, ...]


def _geometry(op: str, node: Node, results: dict[str, torch.Tensor]) -> tuple[Shape | None, Shape, int, int]:
    """Weight, kernel, stride and groups of an operation that has some."""
    if op in PRODUCTS or op == SPARSE_PRODUCT:
        weight = results[cast("Node", node.args[1]).name]
        return tuple((weight.t() if op in PRODUCTS else weight).shape), (), 1, 1
    if op in {"max_pool2d", "avg_pool2d", "max_pool1d", "avg_pool1d"}:
        kernel = _numbers(node, 1)
        stride = _numbers(node, 2)
        square = len(kernel) == 1 and op.endswith("2d")
        return None, kernel * (2 if square else 1), (stride or kernel)[0], 1
    place = WEIGHT_ARGUMENT.get(op)
    if place is None or op == "embedding":
        return None, (), 1, 1
    shape = tuple(results[cast("Node", node.args[place]).name].shape)
    if op == "linear":
        return shape, (), 1, 1
    groups = node.args[6] if len(node.args) > 6 else 1
    return shape, shape[2:], (_numbers(node, 3) or (1,))[0], cast("int", groups)


def _numbers(node: Node, place: int) -> Shape:
    given = node.args[place] if len(node.args) > place else ()
    return tuple(cast("Sequence[int]", given)) if isinstance(given, (list, tuple)) else (cast("int", given),)


def serve(requests: Connection, answers: Connection, worker: Worker) -> None:
    """Answer until the other end is closed."""
    while True:
        try:
            request = requests.recv()
        except EOFError:
            return
        try:
            answer: Answer | Refused = worker.answer(request)
        except Exception as error:  # noqa: BLE001  torch raises of every kind; the other side raises it anew
            answer = Refused(first_line(error))
        answers.send(answer)


def _main(device: str, threads: str, requests: str, answers: str) -> None:
    logging.getLogger("torch").setLevel(logging.CRITICAL)  # what torch refuses is told by the answer
    serve(
        Connection(int(requests), writable=False),
        Connection(int(answers), readable=False),
        Worker(device, int(threads)),
    )


if __name__ == "__main__":
    _main(*sys.argv[1:])
