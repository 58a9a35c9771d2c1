"""A compressed network while it is trained, beside the uncompressed one that it learns from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch.func import functional_call
from torch.nn import functional

from autocomp.compress.apply import Compressed, adjusted, apply, plan_of
from autocomp.compress.average import Average
from autocomp.compress.captured import Batch, CapturedStep
from autocomp.compress.distill import distillation
from autocomp.compress.latent import (
    SIGN_SHARPNESS,
    Latent,
    LearnedQuantizer,
    LearnedSimulated,
    StraightDynamicQuantizer,
    learned_quantizers,
)
from autocomp.compress.prune import cut_weights
from autocomp.compress.quantize import DynamicQuantizer
from autocomp.compress.rebuild import Prepared
from autocomp.compress.recipe import Recovery
from autocomp.compress.recovered import FLOAT, KEPT, LEVELS, SCALE, STEP
from autocomp.compress.solve import Solver
from autocomp.compress.taps import common_results, same_layers, tapped
from autocomp.compress.unfinished import Learned
from autocomp.graph import ATTENTION
from autocomp.plan import LayerPlan, Plan, Sparsity
from autocomp.trace import copied, export_program, graph_module, on_device

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from autocomp.task import Loss

#: A step of the optimizer in shares of a weight's root mean square; networks with attention bear smaller ones. Trainings
#: of more than so many epochs take smaller ones, in proportion: weights that go far between two levels end up worse (of
#: ResNet-20 at 2 bits, 65 epochs at 0.0015, 0.004 and 0.01 ended with losses of 0.19, 0.21 and 0.28).
RATE, ATTENTION_RATE, SHORT_EPOCHS = 0.01, 0.001, 10
#: Of steps, of levels in tables, and of parameters that are none of a layer's weights.
SCALE_RATE, TABLE_RATE, PLAIN_RATE = 0.003, 0.05, 0.001
#: The share of the epochs over which a gradual schedule goes to its level, and the level that it starts from as a share.
RAMP, RAMP_START = 0.5, 0.3


class Student:
    """Floats behind a compressed network, its masks and grids in front of them, and the optimizer that moves them.

    Args:
        prepared: the uncompressed network; left as it is.
        compressed: of it; left as it is.
        solver: that made ``compressed``.
        example: a batch, on any device.
        labelled: whether batches have a target behind the inputs that is to be learned.
        loss: what is to be learned of it, where that is the task's own.
        device: where it is trained.
    """

    def __init__(
        self,
        prepared: Prepared,
        compressed: Compressed,
        solver: Solver,
        example: Batch,
        recovery: Recovery,
        labelled: bool,
        device: torch.device,
        loss: Loss | None = None,
    ) -> None:
        self._compressed, self._recovery = compressed, recovery
        self._labelled, self._device, self._task_loss = labelled, device, loss
        common = common_results(prepared, compressed) if recovery.features > 0 else {}
        teacher, _ = adjusted(prepared, compressed.plan, solver)
        # A copy: what is exported has the very parameters of the network that was given.
        self._teacher = copied(graph_module(export_program(teacher.model, teacher.example)))
        self._module = copied(compressed.model)
        self._taps, self._teacher_taps = tapped(self._module, [*common]), tapped(self._teacher, [*common.values()])
        layers = same_layers(prepared, compressed) if recovery.layerwise else {}
        own, of_teacher = ([nodes[side] for nodes in layers.values()] for side in (0, 1))
        ends = tapped(self._module, own, "end"), tapped(self._teacher, of_teacher, "end")
        #: Layer → what it gives here, and in the uncompressed network.
        self._ends = dict(zip(layers, zip(*ends, strict=True), strict=True))
        plan = _without_formats(compressed.plan)
        self._inputs = len(prepared.example.inputs)
        inputs = [example[: self._inputs]]
        floats = apply(prepared, plan, inputs, compressed.numerics, solver)
        self._growing = True
        self._masks: dict[str, Sparsity] = {}
        self._latents: dict[str, Latent] = {}
        for name in dict.fromkeys([*(f"{layer}.weight" for layer in compressed.formats), *compressed.masks]):
            layer = name.removesuffix(".weight")
            chosen = compressed.formats.get(layer)
            looked = chosen is not None and chosen.rounding != "nearest"
            start = (compressed if looked else floats).model.get_parameter(name)
            narrow = compressed.numerics.narrow_products and chosen is not None and chosen.integer_activations
            mask = plan_of(compressed.plan, layer).mask
            kept = compressed.masks.get(name)
            if mask is not None and recovery.gradual and mask.pattern in {"unstructured", "block"}:
                self._masks[name] = mask
            self._latents[name] = Latent(start, chosen, compressed.weights.get(name), kept, narrow)
        if self._masks:
            whole = apply(prepared, _without_masks(plan), inputs, compressed.numerics, solver)
            for name in self._masks:
                self._latents[name].latent.data = whole.model.get_parameter(name).detach().clone()
                # A grid for the few large weights that stay at last has no level near the many small ones before.
                self._latents[name].rounds = False
        self._plain = {
            name: parameter.requires_grad_()
            for name, parameter in self._module.named_parameters()
            if name not in self._latents and parameter.is_floating_point()
        }
        self._scales = learned_quantizers(self._module)
        for name, quantizer in list(self._module.named_modules()):
            if isinstance(quantizer, DynamicQuantizer):
                self._module.set_submodule(name, StraightDynamicQuantizer())
        self._module.requires_grad_(False)
        for parameter in (*self._plain.values(), *self._scales):
            parameter.requires_grad_()
        groups = self._groups()
        for module in (self._module, self._teacher, *self._latents.values()):
            on_device(module, device)
        self._highest_rates = torch.tensor([rate for _, rate in groups], device=device)
        #: Read by the optimizer at every step.
        self._rates = self._highest_rates.clone()
        self._optimizer = torch.optim.Adam(
            [{"params": of, "lr": rate} for (of, _), rate in zip(groups, self._rates, strict=True)],
            fused=True,
            capturable=device.type == "cuda",
        )
        # A task's loss may read numbers back, which no graph of kernels can.
        self._captured = CapturedStep(self._step) if device.type == "cuda" and loss is None else None
        self._average = Average(device)

    def _groups(self) -> list[tuple[Sequence[torch.Tensor], float]]:
        """Parameters, and the rate at which they learn at first."""
        attention = any(node.op == ATTENTION for node in self._compressed.graph.nodes)
        rate = self._recovery.rate
        if rate is None:
            rate = (ATTENTION_RATE if attention else RATE) * min(1.0, SHORT_EPOCHS / self._recovery.epochs)
        groups: list[tuple[Sequence[torch.Tensor], float]] = []
        for one in self._latents.values():
            size = float(one.latent.detach().square().mean().sqrt()) or 1e-3
            groups.append(([one.latent], rate * size))
            if one.log_scale is not None:
                groups.append(([one.log_scale], SCALE_RATE * rate / RATE))
            if one.table is not None:
                groups.append(([one.table], TABLE_RATE * rate / RATE))
        plain = [parameter for parameter in self._plain.values() if parameter.requires_grad]
        groups.append((plain, PLAIN_RATE * rate / RATE))
        groups.append((self._scales, SCALE_RATE * rate / RATE))
        return [group for group in groups if group[0]]

    def set_rate(self, share: float) -> None:
        """Learn at this share of the highest rates from now on."""
        torch.mul(self._highest_rates, share, out=self._rates)

    def step(self, batch: Batch) -> torch.Tensor:
        """Learn from a batch; the loss before that, a number that the next step may overwrite."""
        if self.final:
            self._average.begin_step(self._learned)
        if self._captured is None or not self._steady:
            return self._step(self._moved(batch))
        return self._captured(batch)

    @property
    def _steady(self) -> bool:
        """Whether a step does what the one before did, but for the numbers."""
        signs = any(one.chosen is not None and one.chosen.weight_bits == 1 for one in self._latents.values())
        return self.final and not signs

    def _step(self, batch: Batch) -> torch.Tensor:
        loss = self._loss(batch, training=True)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        if self.final:
            self._average.add(self._learned)
        return loss.detach()

    def _moved(self, batch: Batch) -> Batch:
        return tuple(tensor.to(self._device) for tensor in batch)

    def reconstruct(self, batches: Iterator[Batch], told: Callable[[], None]) -> None:
        """Train each layer by itself, the first ones first, to give what it gives in the uncompressed network, though those
        before it are compressed by now (I. Hubara et al., "Accurate post training quantization with small calibration
        sets", 2021). Layers whose output has another shape, or is another's, are left as they are.

        Args:
            batches: without end.
            told: called after every step.
        """
        everything = [tensor for tensor in self._learned if tensor.requires_grad]
        highest = [(tensor, rate) for of, rate in self._groups() for tensor in of]
        for layer, (own, wanted) in self._ends.items():
            alone = self._of_layer(layer)
            if not alone:
                continue
            for tensor in everything:
                tensor.requires_grad_(any(tensor is one for one in alone))
            groups = [{"params": [tensor], "lr": rate} for tensor, rate in highest if tensor.requires_grad]
            optimizer = torch.optim.Adam(groups)
            for _ in range(self._recovery.layerwise):
                self._outputs(self._moved(next(batches))[: self._inputs])
                given, expected = own.value.float(), wanted.value.float()
                loss = _relative_error(given, expected)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                told()
        for tensor in everything:
            tensor.requires_grad_()

    @property
    def layerwise_steps(self) -> int:
        """Steps that :meth:`reconstruct` takes."""
        return self._recovery.layerwise * sum(bool(self._of_layer(layer)) for layer in self._ends)

    def _of_layer(self, layer: str) -> list[torch.Tensor]:
        """What is learned of a layer that is compressed."""
        latent, bias = self._latents.get(f"{layer}.weight"), self._plain.get(f"{layer}.bias")
        return [] if latent is None else [*latent.parameters(), *(() if bias is None else (bias,))]

    def set_progress(self, share: float) -> None:
        """What changes over the training: how sharp signs are, and how much is cut."""
        low, high = SIGN_SHARPNESS
        for one in self._latents.values():
            one.sharpness = low * (high / low) ** share
        for name, mask in self._masks.items():
            if share <= RAMP:
                grown = 1 - (1 - share / RAMP) ** 3
                level = mask.level * (RAMP_START + (1 - RAMP_START) * grown)
                now = Sparsity(mask.pattern, mask.level if share == RAMP else min(level, mask.level))
                self._cut(name, now)
            elif self._growing:
                self._cut(name, Sparsity(mask.pattern, mask.level))
                self._latents[name].begin_rounding()
        self._growing = share <= RAMP

    def _cut(self, name: str, sparsity: Sparsity) -> None:
        _, kept = cut_weights(self._latents[name].latent.cpu(), sparsity)
        self._latents[name].cut_to(kept.to(self._device))

    @property
    def final(self) -> bool:
        """Whether masks are as the plan wants them."""
        return not self._masks or not self._growing

    def _loss(self, batch: Batch, training: bool) -> torch.Tensor:
        with self._precision() if training else nullcontext():
            output, wanted = self._outputs(batch[: self._inputs])
            total = self._distance(output, wanted, batch)
        for tap, own in zip(self._teacher_taps, self._taps, strict=True):
            error = _relative_error(own.value.float(), tap.value.float())
            total = total + self._recovery.features / len(self._taps) * error
        if training and self._recovery.l1 > 0 and not self.final:
            magnitudes = sum(layer.latent.abs().mean() for layer in self._latents.values())
            total = total + self._recovery.l1 * magnitudes
        return total

    def _outputs(self, inputs: Batch) -> tuple[object, object]:
        """Of this network and of the uncompressed one."""
        values: dict[str, torch.Tensor] = {name: one() for name, one in self._latents.items()}
        output: object = functional_call(self._module, {**self._plain, **values}, inputs)
        with torch.no_grad():
            return output, self._teacher(*inputs)

    def _precision(self) -> AbstractContextManager[object]:
        if not self._recovery.bfloat16:
            return nullcontext()
        # Every weight is read once a step: there is nothing to keep in a cache of what was cast.
        return torch.autocast(self._device.type, torch.bfloat16, cache_enabled=False)

    def held_loss(self, batches: Sequence[Batch]) -> float:
        return self._mean(batches, lambda batch: self._loss(batch, training=False))

    def better_state(self, batches: Sequence[Batch]) -> tuple[float, list[torch.Tensor]]:
        """Of what is trained and its average over the last steps, the one of less loss; and that loss."""
        trained, average = self.state(), self._average.values
        found = self.held_loss(batches), trained
        if average:
            self.load(average)
            found = min(found, (self.held_loss(batches), self.state()), key=lambda one: one[0])
            self.load(trained)
        return found

    def loss_of(self, model: GraphModule, batches: Sequence[Batch]) -> float:
        """What the outputs of a whole model cost, features aside."""
        moved = on_device(copied(model), self._device)

        def of_batch(batch: Batch) -> torch.Tensor:
            inputs = batch[: self._inputs]
            wanted = self._teacher(*inputs)
            return self._distance(moved(*inputs), wanted, batch)

        return self._mean(batches, of_batch)

    def _mean(self, batches: Sequence[Batch], loss: Callable[[Batch], torch.Tensor]) -> float:
        with torch.no_grad():
            return sum(float(loss(self._moved(batch))) for batch in batches) / len(batches)

    def _distance(self, output: object, wanted: object, batch: Batch) -> torch.Tensor:
        target = batch[self._inputs] if self._labelled and len(batch) > self._inputs else None
        return distillation(output, wanted, target, self._recovery.labels, self._task_loss)

    def state(self) -> list[torch.Tensor]:
        """What has been learned so far; masks, which it goes with, are the plan's once they are final."""
        return [tensor.detach().clone() for tensor in self._learned]

    def load(self, state: Sequence[torch.Tensor]) -> None:
        with torch.no_grad():
            for tensor, value in zip(self._learned, state, strict=True):
                tensor.copy_(value)

    def learned(self) -> Learned:
        """All that the next step depends on, but for the data."""
        latents = self._latents
        return Learned(
            self.state(),
            {name: one.kept.clone() for name, one in latents.items() if one.kept is not None},
            [name for name, one in latents.items() if one.rounds],
            max((one.sharpness for one in latents.values()), default=0.0),
            self._growing,
            self._optimizer.state_dict()["state"],
            [tensor.clone() for tensor in self._average.values],
            self._average.steps,
        )

    def resume(self, found: Learned) -> None:
        """Be as another student of the same training was.

        Raises:
            ValueError, RuntimeError: it was one of another training.
        """
        for tensor, value in zip(self._learned, found.tensors, strict=True):
            tensor.data = value.to(self._device)  # a table may have come to other levels than it began with
        for name, one in self._latents.items():
            one.kept = found.kept[name].to(self._device) if name in found.kept else None
            one.rounds, one.sharpness = name in found.rounding, found.sharpness
        self._growing = found.growing
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": found.optimizer, "param_groups": groups})
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate  # which it read from a copy otherwise
        self._average.steps = found.averaged
        self._average.values = [tensor.to(self._device) for tensor in found.average]

    @property
    def _learned(self) -> list[torch.Tensor]:
        latents = [parameter for one in self._latents.values() for parameter in one.parameters()]
        return [*latents, *self._plain.values(), *self._scales]

    def weights(self) -> dict[str, torch.Tensor]:
        """What has been trained, as :func:`autocomp.compress.recovered.with_weights` takes it, on the CPU."""
        found = {FLOAT + name: parameter.detach().clone() for name, parameter in self._plain.items()}
        for name, quantizer in self._module.named_modules():
            if isinstance(quantizer, LearnedQuantizer | LearnedSimulated):
                found[STEP + name] = quantizer.log_scale.detach().exp()
        with torch.no_grad():
            for name, one in self._latents.items():
                stored = one.stored()
                if one.kept is not None:
                    found[KEPT + name] = one.kept
                if stored is None:
                    found[FLOAT + name] = one().detach().clone()
                else:
                    found |= {LEVELS + name: stored.levels, SCALE + name: stored.scale}
        return {name: tensor.cpu() for name, tensor in found.items()}


def _relative_error(given: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """The mean squared error as a share of the variance; of the mean square where all are alike, as those of one example with
    one output are."""
    variance, square = expected.var(correction=0), expected.square().mean()
    spread = torch.where(variance > 1e-6 * square, variance, square)
    return functional.mse_loss(given, expected) / spread.clamp_min(1e-12)


def _without_formats(plan: Plan) -> Plan:
    return Plan(
        {name: LayerPlan(one.sparsity, one.rank) for name, one in plan.layers.items()},
        plan.dropped_blocks,
        plan.adjustments,
    )


def _without_masks(plan: Plan) -> Plan:
    layers = {
        name: LayerPlan(None if one.mask is not None else one.sparsity, one.rank) for name, one in plan.layers.items()
    }
    return Plan(layers, plan.dropped_blocks, plan.adjustments)
