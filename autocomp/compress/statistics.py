"""What the layers of the untouched network read, over calibration data, and how much its outputs depend on their weights:
what solvers weigh errors by. Taken when first asked for, and kept."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional

from autocomp.compress.agreement import flat_output
from autocomp.compress.prune import Moment
from autocomp.compress.sampling import spread_places
from autocomp.errors import CompressionError
from autocomp.trace import copied

Batches = Sequence[tuple[torch.Tensor, ...]]

#: Rows of inputs that a second moment is taken of; of more, a sample.
ROWS = 1 << 16

#: Random directions of the output that derivatives are taken in, for every batch.
DIRECTIONS = 4


#: What layers compute whose inputs are seen in columns, whatever their class is called.
SEEN = frozenset({nn.Conv2d.forward, nn.Linear.forward})


def layer_input(given: tuple[torch.Tensor, ...], named: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What a layer that takes one tensor is called with, by place or by name."""
    return given[0] if given else next(iter(named.values()))


class Statistics:
    """Of one prepared model.

    Args:
        model: the untouched network, in evaluation; left as it is.
        calibration: batches of its positional inputs.
    """

    def __init__(self, model: nn.Module, calibration: Batches) -> None:
        self._model = model
        self._calibration = calibration
        self._moments: dict[str, Moment] = {}
        self._gradients: dict[str, torch.Tensor] = {}

    def moment(self, layer: str, others: Collection[str] = ()) -> Moment:
        """The moments of a convolution's or linear's input columns.

        Args:
            others: layers whose moments will be asked for next, so that one pass over the data does for all.

        Raises:
            CompressionError: the model does not call the layer as a module.
        """
        missing = [name for name in dict.fromkeys((layer, *others)) if name not in self._moments]
        if layer in missing:
            self._moments |= self._collect({name: self._model.get_submodule(name) for name in missing}, ())
        return self._moments[layer]

    def moment_behind(self, layer: str, stages: Sequence[nn.Module], inputs_gone: Collection[int]) -> Moment:
        """The moments of what the last of some stages reads that take the place of a layer.

        Args:
            stages: in a row; the last is the one asked for.
            inputs_gone: the layer's input channels that the first of them does without.
        """
        return self._collect({layer: stages[-1]}, stages[:-1], inputs_gone)[layer]

    def gradient(self, layer: str) -> torch.Tensor:
        """The mean, over examples and random directions of the output, of the squared derivative by each weight: what the
        squared change of the output depends on to first order (M. Hutchinson's estimate of the diagonal, 1990).

        Returns:
            The weight's shape.
        """
        if not self._gradients:
            self._gradients = self._differentiate()
        if layer not in self._gradients:
            raise CompressionError(f"the outputs must depend on the weights of {layer!r} smoothly; they do not")
        return self._gradients[layer]

    def _collect(
        self, layers: Mapping[str, nn.Module], before: Sequence[nn.Module], gone: Collection[int] = ()
    ) -> dict[str, Moment]:
        sums: dict[str, tuple[torch.Tensor, torch.Tensor, int]] = {}
        nothing = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64), 0
        rows = max(1, ROWS // len(self._calibration))

        def watch(name: str) -> Callable[..., None]:
            def hook(_: nn.Module, given: tuple[torch.Tensor, ...], named: Mapping[str, torch.Tensor]) -> None:
                x = without(layer_input(given, named), gone, layers[name])
                for stage in before:
                    x = stage(x)
                columns = input_columns(layers[name], x, rows)
                second, mean, count = sums.get(name, nothing)
                second = second + (columns.mT @ columns).double()
                sums[name] = second, mean + columns.sum(dim=1).double(), count + columns.shape[1]

            return hook

        modules = {name: self._model.get_submodule(name) for name in layers}
        hooks = [one.register_forward_pre_hook(watch(name), with_kwargs=True) for name, one in modules.items()]
        try:
            with torch.no_grad():
                for batch in self._calibration:
                    self._model(*batch)
        finally:
            for one in hooks:
                one.remove()
        for name in layers:
            if name not in sums:
                raise CompressionError(
                    f"the model must call {name!r} as a module for its inputs to be seen; it does not"
                )
        return {name: Moment((second / n).float(), (mean / n).float()) for name, (second, mean, n) in sums.items()}

    def gradient_of(
        self,
        layer: str,
        stages: Sequence[nn.Module],
        stage: int,
        inputs_gone: Collection[int],
        outputs_gone: Collection[int],
    ) -> torch.Tensor:
        """As :meth:`gradient`, of the weight of one of the stages that take the place of a layer."""
        weight = stages[stage].get_parameter("weight").requires_grad_()
        total, examples = torch.zeros_like(weight), 0
        seen: list[tuple[torch.Tensor, torch.Tensor]] = []

        def hook(
            module: nn.Module, given: tuple[torch.Tensor, ...], named: Mapping[str, torch.Tensor], output: torch.Tensor
        ) -> torch.Tensor:
            marked = output.detach().requires_grad_()
            seen.append((without(layer_input(given, named).detach(), inputs_gone, module), marked))
            return marked.clone()  # which may be changed in place behind the layer

        handle = self._model.get_submodule(layer).register_forward_hook(hook, with_kwargs=True)
        generator = torch.Generator().manual_seed(0)
        try:
            with torch.enable_grad():
                for batch in self._calibration:
                    seen.clear()
                    output = flat_output(self._model(*batch))
                    if not seen:
                        raise CompressionError(f"the model must call {layer!r} as a module to see its inputs")
                    (x, marked), examples = seen[0], examples + len(batch[0])
                    result = x
                    for one in stages:
                        result = one(result)
                    for _ in range(DIRECTIONS):
                        direction = torch.randn(output.shape, generator=generator)
                        (arriving,) = torch.autograd.grad(output, marked, direction, retain_graph=True)
                        arriving = without(arriving, outputs_gone, stages[-1])
                        (found,) = torch.autograd.grad(result, weight, arriving, retain_graph=True)
                        total += found.square()
        finally:
            handle.remove()
        weight.requires_grad_(False)
        return total / (examples * DIRECTIONS)

    def _differentiate(self) -> dict[str, torch.Tensor]:
        model = copied(self._model)
        weights = {
            name.removesuffix(".weight"): parameter.requires_grad_()
            for name, parameter in model.named_parameters()
            if name.endswith(".weight") and parameter.is_floating_point()
        }
        generator = torch.Generator().manual_seed(0)
        total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        examples = 0
        with torch.enable_grad():
            for batch in self._calibration:
                output = flat_output(model(*batch))
                examples += len(batch[0])
                for _ in range(DIRECTIONS):
                    direction = torch.randn(output.shape, generator=generator)
                    found = torch.autograd.grad(
                        output, list(weights.values()), direction, retain_graph=True, allow_unused=True
                    )
                    for name, one in zip(weights, found, strict=True):
                        total[name] += 0 if one is None else one.square()
        return {name: one / (examples * DIRECTIONS) for name, one in total.items()}


def left(count: int, gone: Collection[int]) -> torch.Tensor:
    """The numbers below ``count`` that are not gone."""
    return torch.tensor([number for number in range(count) if number not in {*gone}])


def without(x: torch.Tensor, gone: Collection[int], layer: nn.Module) -> torch.Tensor:
    """What a layer reads or gives, without some channels."""
    if not gone:
        return x
    dim = 1 if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)) else x.dim() - 1
    return x.index_select(dim, left(x.shape[dim], gone))


def input_columns(layer: nn.Module, x: torch.Tensor, rows: int) -> torch.Tensor:
    """What a convolution or linear multiplies its weights with, (groups, rows, columns); of more rows than asked for, a
    sample."""
    if isinstance(layer, nn.Conv2d):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        padded = functional.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
        patches = functional.unfold(padded, layer.kernel_size, layer.dilation, 0, layer.stride)
        flat = patches.mT.reshape(-1, patches.shape[1])
        groups = layer.groups
    else:
        flat, groups = x.reshape(-1, x.shape[-1]), 1
    flat = flat[spread_places(len(flat), rows)]
    return flat.reshape(len(flat), groups, -1).movedim(1, 0)
