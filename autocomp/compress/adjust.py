"""Adjustments of a whole network around the compression of its layers: before it, weights and activations are brought to
ranges that are easier to round, without changing what is computed; after it, what has shifted is put back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from autocomp.compress.agreement import agree
from autocomp.compress.statistics import Batches, layer_input
from autocomp.errors import CompressionError
from autocomp.fx_nodes import operator_name
from autocomp.graph import COPIES, Graph
from autocomp.trace import copied

if TYPE_CHECKING:
    from torch.fx import GraphModule
    from torch.fx import Node as FxNode

    from autocomp.graph import Node

#: What gives s times its result for s times its input, channel by channel, where s is positive.
HOMOGENEOUS = frozenset(
    {"relu", "relu_", "leaky_relu", "leaky_relu_", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"} | COPIES
)
#: Times that all pairs are gone over: what one pair evens out changes its neighbours.
ROUNDS = 10
#: The share of the difficulty that goes from activations to weights.
MIGRATION = 0.5
#: Bounds on what a channel's spread is put back by.
SPREADS = (0.5, 2.0)
SMALL = 1e-8
#: Where a traced batch norm takes its running mean and variance.
RUNNING = (3, 4)


def equalized(model: nn.Module, graph: Graph, example: tuple[torch.Tensor, ...]) -> nn.Module:
    """A copy of ``model`` in which the channels between two layers have weights of a like range on both sides (M. Nagel et
    al., "Data-free quantization through weight equalization and bias correction", 2019).

    Args:
        model: in evaluation, batch norms folded.
        graph: its facts.

    Raises:
        CompressionError: the copy does not compute what the model does.
    """
    work = copied(model)
    pairs = [*_pairs(graph)]
    with torch.no_grad():
        for _ in range(ROUNDS):
            for first, second in pairs:
                _even_out(work.get_submodule(first), work.get_submodule(second))
    _check_same(model, work, example, "equalization")
    return work


def _pairs(graph: Graph) -> Iterator[tuple[str, str]]:
    """Layers whose output channels one other layer reads, with nothing between that has a scale of its own."""
    times = Counter(node.layer for node in graph.layers)
    for node in graph.layers:
        if node.op not in {"conv2d", "linear"} or times[node.layer] > 1:
            continue
        user = graph.sole_user(node.name)
        while user is not None and user.op in HOMOGENEOUS:
            user = graph.sole_user(user.name)
        if user is None or user.layer is None or user.op != node.op or times[user.layer] > 1:
            continue
        if user.groups == 1 or _depthwise(user):
            yield node.layer or "", user.layer


def _depthwise(node: Node) -> bool:
    return node.groups > 1 and node.weight_shape[0] == node.groups and node.weight_shape[1] == 1


def _even_out(first: nn.Module, second: nn.Module) -> None:
    one, other = first.get_parameter("weight"), second.get_parameter("weight")
    mine = one.abs().flatten(1).amax(dim=1)
    by_input = other if getattr(second, "groups", 1) > 1 else other.transpose(0, 1)
    theirs = by_input.abs().flatten(1).amax(dim=1)
    steps = torch.where((mine > SMALL) & (theirs > SMALL), (mine / theirs.clamp_min(SMALL)).sqrt(), torch.ones(()))
    one.div_(steps.reshape(-1, *[1] * (one.dim() - 1)))
    bias = getattr(first, "bias", None)
    if isinstance(bias, torch.Tensor):
        bias.div_(steps)
    by_input.mul_(steps.reshape(-1, *[1] * (by_input.dim() - 1)))


def smoothed(model: nn.Module, calibration: Batches, example: tuple[torch.Tensor, ...]) -> nn.Module:
    """A copy of ``model`` in which linears behind layer norms read smaller outliers and have larger weights instead (G. Xiao
    et al., "SmoothQuant", 2023).

    Raises:
        CompressionError: the copy does not compute what the model does.
    """
    work = copied(model)
    readers, largest = _behind_norms(work, calibration)
    with torch.no_grad():
        for norm, linears in readers.items():
            weights = [work.get_submodule(name).get_parameter("weight") for name in linears]
            own = torch.stack([weight.abs().amax(dim=0) for weight in weights]).amax(dim=0).clamp_min(SMALL)
            steps = (largest[norm].clamp_min(SMALL) ** MIGRATION / own ** (1 - MIGRATION)).clamp_min(SMALL)
            module = work.get_submodule(norm)
            module.get_parameter("weight").div_(steps)
            if getattr(module, "bias", None) is not None:
                module.get_parameter("bias").div_(steps)
            for weight in weights:
                weight.mul_(steps)
    _check_same(model, work, example, "smoothing")
    return work


def _behind_norms(model: nn.Module, calibration: Batches) -> tuple[dict[str, list[str]], dict[str, torch.Tensor]]:
    """Layer norm → the linears that read its result, where nothing else does; and the largest magnitude of each channel."""
    modules = dict(model.named_modules())
    norms = {
        name: one
        for name, one in modules.items()
        if isinstance(one, nn.LayerNorm) and type(one).forward is nn.LayerNorm.forward and one.elementwise_affine
    }
    linears = {name: one for name, one in modules.items() if type(one).forward is nn.Linear.forward}
    made: dict[int, tuple[str, torch.Tensor]] = {}
    readers: dict[str, list[str]] = {}
    largest: dict[str, torch.Tensor] = {}

    def norm_hook(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _given: object, output: torch.Tensor) -> None:
            made[id(output)] = name, output  # held, so that no other tensor gets its number
            found = output.abs().reshape(-1, output.shape[-1]).amax(dim=0)
            largest[name] = torch.maximum(largest[name], found) if name in largest else found

        return hook

    def linear_hook(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, given: tuple[torch.Tensor, ...], named: Mapping[str, torch.Tensor]) -> None:
            read = id(layer_input(given, named))
            if read in made:
                readers.setdefault(made[read][0], []).append(name)

        return hook

    hooks = [one.register_forward_hook(norm_hook(name)) for name, one in norms.items()]
    hooks += [one.register_forward_pre_hook(linear_hook(name), with_kwargs=True) for name, one in linears.items()]
    try:
        with torch.no_grad():
            for batch in calibration:
                made.clear()
                model(*batch)
    finally:
        for hook in hooks:
            hook.remove()
    once = {norm: list(dict.fromkeys(names)) for norm, names in readers.items()}
    kept = {norm: names for norm, names in once.items() if _alone(model, norm, names, calibration[0])}
    return kept, largest


def _alone(model: nn.Module, norm: str, linears: Sequence[str], batch: tuple[torch.Tensor, ...]) -> bool:
    """Whether nothing but some linears reads a norm: twice its result and half their weights is then the same."""
    trial = copied(model)
    with torch.no_grad():
        before = trial(*batch)
        for name in ("weight", "bias"):
            if getattr(trial.get_submodule(norm), name, None) is not None:
                trial.get_submodule(norm).get_parameter(name).mul_(2)
        for linear in linears:
            trial.get_submodule(linear).get_parameter("weight").div_(2)
        after = trial(*batch)
    return agree(before, after)


def _check_same(model: nn.Module, work: nn.Module, example: tuple[torch.Tensor, ...], what: str) -> None:
    with torch.no_grad():
        same = agree(model(*example), work(*example))
    if not same:
        raise CompressionError(f"{what} must not change what the network computes; it does; leave it out of the plan")


def output_moments(model: nn.Module, layers: Sequence[str], batch: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
    """Layer → mean and spread, (2, channels), of what it gives for a batch."""
    found: dict[str, torch.Tensor] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, _given: object, output: torch.Tensor) -> None:
            found[name] = _moments(output, isinstance(module, nn.Conv2d))

        return hook

    hooks = [model.get_submodule(name).register_forward_hook(watch(name)) for name in layers]
    try:
        with torch.no_grad():
            model(*batch)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _moments(output: torch.Tensor, convolution: bool) -> torch.Tensor:
    channels = output.movedim(1 if convolution else -1, 0).flatten(1)
    return torch.stack([channels.mean(dim=1), channels.std(dim=1, correction=0)])


def one_batch(calibration: Batches) -> tuple[torch.Tensor, ...]:
    """As many calibration batches in one as have the same shapes but for their length."""
    first = calibration[0]
    alike = [one for one in calibration if all(a.shape[1:] == b.shape[1:] for a, b in zip(one, first, strict=True))]
    return tuple(torch.cat(parts) for parts in zip(*alike, strict=True))


def corrections(
    module: GraphModule,
    graph: Graph,
    wanted: Mapping[str, torch.Tensor],
    batch: tuple[torch.Tensor, ...],
    spreads: Collection[str],
    norms: bool,
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """What brings the channels of layers back to the mean that they have in the uncompressed network, and those of
    ``spreads`` to the spread: layer after layer, each behind the corrected ones before it.

    Of means alone it is the empirical bias correction of M. Nagel et al. (2019); with spreads it does what re-estimating
    batch norms does (B. Li et al., "EagleEye", 2020), most of which are folded.

    Args:
        wanted: layer → its mean and spread, (2, channels), as :func:`output_moments` gives them.
        norms: whether batch norms that could not be folded are re-estimated on the way, in place.

    Returns:
        Layer → the factor of each channel's weights, and what its bias becomes: factor times bias plus this.
    """
    from torch.fx import Interpreter
    from torch.fx import Node as FxNode

    names = {node.name: node for node in graph.layers if node.layer in wanted and node.has_bias}
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    class Corrector(Interpreter):
        def run_node(self, n: FxNode) -> Any:
            if norms and n.op == "call_function" and operator_name(n) == "batch_norm":
                self._reestimate(n)
            result = super().run_node(n)
            node = names.get(n.name)
            if node is None or node.layer is None:
                return result
            mean, spread = _moments(result, node.op == "conv2d")
            target_mean, target_spread = wanted[node.layer]
            factor = torch.ones_like(mean)
            if node.layer in spreads:
                usable = (spread > SMALL) & (target_spread > SMALL)
                factor = torch.where(usable, (target_spread / spread.clamp_min(SMALL)).clamp(*SPREADS), factor)
            shift = target_mean - factor * mean
            found[node.layer] = factor, shift
            shape = (-1, 1, 1) if node.op == "conv2d" else (-1,)
            return factor.reshape(shape) * result + shift.reshape(shape)

        def _reestimate(self, n: FxNode) -> None:
            given, *running = (n.args[place] for place in (0, *RUNNING))
            kept = [node for node in running if isinstance(node, FxNode) and len(node.users) == 1]
            if not isinstance(given, FxNode) or len(kept) < len(running):
                return  # it keeps no statistics, or has them for several places
            # Channels are its second dimension, however many it has.
            mean, spread = _moments(self.env[given], convolution=True)
            for node, value in zip(kept, (mean, spread.square()), strict=True):
                path, _, name = str(node.target).rpartition(".")
                # A new tensor: the one that is there may be the uncompressed network's own.
                module.get_submodule(path).register_buffer(name, value)
                self.env[node] = value

    with torch.no_grad():
        Corrector(module).run(*batch)
    return found
