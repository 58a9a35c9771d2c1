"""Recovery: a compressed network trained on, with its masks held and its rounding in the loop, to do as the uncompressed
one does."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from autocomp.compress.agreement import flat_output, output_tensors
from autocomp.compress.apply import Compressed, adjusted, apply, plan_of
from autocomp.compress.latent import (
    SIGN_SHARPNESS,
    Latent,
    LearnedQuantizer,
    StraightDynamicQuantizer,
    learned_quantizers,
)
from autocomp.compress.prune import cut_weights
from autocomp.compress.quantize import DynamicQuantizer, insert_after
from autocomp.compress.rebuild import Prepared
from autocomp.compress.recovered import FLOAT, KEPT, LEVELS, SCALE, STEP, Recovered, weights_of, with_weights
from autocomp.compress.solve import Solver
from autocomp.errors import CompressionError
from autocomp.graph import ADDITIONS, ATTENTION, copied, export_program, graph_module
from autocomp.plan import LayerPlan, Plan, Sparsity

if TYPE_CHECKING:
    from torch.fx import GraphModule

Batch = tuple[torch.Tensor, ...]
#: Is told (steps done, of so many, what the loss on the data kept apart last was; infinite before the first epoch's end).
Progress = Callable[[int, int, float], None]

#: A step of the optimizer in shares of a weight's root mean square; networks with attention bear smaller ones.
RATE, ATTENTION_RATE = 0.01, 0.001
#: Of steps, of levels in tables, and of parameters that are none of a layer's weights.
SCALE_RATE, TABLE_RATE, PLAIN_RATE = 0.003, 0.05, 0.001
#: The share of the data that is kept apart to stop by.
KEPT_APART = 0.1
#: Epochs without a better loss on it after which training ends: the larger of so many, and this share of all, since much
#: of what is gained is gained when the rate comes down at last.
PATIENCE, PATIENT_SHARE = 10, 0.5
#: Softening of the logits that are distilled (G. Hinton et al., "Distilling the knowledge in a neural network", 2015).
TEMPERATURE = 4.0
#: The share of the epochs over which a gradual schedule goes to its level, and the level that it starts from as a share.
RAMP, RAMP_START = 0.5, 0.3
#: Steps between two changes of what is cut: to sort all weights takes longer than a step of a small network.
STEPS_TO_GROW = 16


@dataclass(frozen=True)
class Recovery:
    """How a network is trained on.

    ``labels``: the weight of the labels beside the uncompressed network's outputs, where there are any; ``features``:
    that of the results of its residual additions, or of its layers where it has none (A. Romero et al., "FitNets",
    2015). ``gradual``: sparsity grows over the first half (M. Zhu & S. Gupta, "To prune, or not to prune", 2017) by the
    magnitudes as they then are; else masks are those of the plan from the start. ``l1``: the weight of the sum of the
    layers' mean magnitudes until masks are final (S. Han et al., "Learning both weights and connections", 2015).
    ``rate``: a step in shares of a weight's root mean square; None for what suits the kind of network. ``bfloat16``:
    products in 16 bits while it trains, in two thirds of the time where the CPU has instructions for them (AVX512-BF16,
    AMX) and in more where it has none; what is kept of the training is judged in 32 bits.
    """

    epochs: int
    seed: int = 0
    labels: float = 0.3
    features: float = 0.0
    gradual: bool = False
    l1: float = 0.0
    rate: float | None = None
    bfloat16: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise CompressionError(f"recovery takes at least one epoch; got {self.epochs}")
        if not 0.0 <= self.labels <= 1.0:
            raise CompressionError(f"the weight of labels lies between 0 and 1; got {self.labels}")


def recover(
    prepared: Prepared,
    compressed: Compressed,
    batches: Sequence[Batch],
    recovery: Recovery,
    solver: Solver,
    labelled: bool = True,
    progress: Progress | None = None,
) -> Recovered:
    """Train a compressed network on; the best state by the data kept apart is what is returned, be it the network given.

    The loss is distillation from the uncompressed network: of softened logits beside the labels where the targets are
    classes, else of all outputs.

    Args:
        prepared: the uncompressed network; left as it is.
        compressed: of it; left as it is.
        batches: (inputs…, target), or inputs alone where not ``labelled``; each is asked for anew in every epoch.
        solver: that made ``compressed``.
        progress: called after every step.

    Raises:
        CompressionError: there is no data, or the loss is no number.
    """
    if not batches:
        raise CompressionError("recovery must have data to train on; the task has none; give it train batches")
    torch.manual_seed(recovery.seed)
    student = _Student(prepared, compressed, solver, batches[0], recovery)
    chance = random.Random(recovery.seed)
    order = list(range(len(batches)))
    chance.shuffle(order)
    apart = max(1, round(KEPT_APART * len(order))) if len(order) > 1 else 0
    kept_apart = [batches[place] for place in order[:apart] or order]
    trained_on = order[apart:] or order
    steps = recovery.epochs * len(trained_on)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        student.optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
    )
    best, waited, step = student.state(), 0, 0
    given_loss = student.loss_of(compressed.model, kept_apart, labelled)
    if not math.isfinite(given_loss):
        raise CompressionError(f"the loss of recovery must be a number; it is {given_loss} before any training")
    best_loss = held = student.held_loss(kept_apart, labelled) if student.final else math.inf
    for _ in range(recovery.epochs):
        chance.shuffle(trained_on)
        for batch in (batches[place] for place in trained_on):
            if step % max(1, min(STEPS_TO_GROW, steps // 8)) == 0:
                student.set_progress(step / steps)
            loss = student.loss(batch, labelled, training=True)
            if not math.isfinite(float(loss.detach())):
                raise CompressionError(f"the loss of recovery must be a number; got {float(loss)}; lower its rate")
            student.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            student.optimizer.step()
            schedule.step()
            step += 1
            if progress is not None:
                progress(step, steps, held)
        held = student.held_loss(kept_apart, labelled)
        if student.final:
            waited += 1
            if held < best_loss:
                best_loss, best, waited = held, student.state(), 0
        if waited >= max(PATIENCE, PATIENT_SHARE * recovery.epochs):
            break
    if student.final:
        student.load(best)
    else:
        student.set_progress(1.0)  # too few steps to get there
    weights = student.weights()
    trained = with_weights(compressed, weights)
    if not student.loss_of(trained.model, kept_apart, labelled) < given_loss:
        return Recovered(compressed, weights_of(compressed))
    return Recovered(trained, weights)


class _Student:
    """The compressed network while it is trained."""

    def __init__(
        self, prepared: Prepared, compressed: Compressed, solver: Solver, example: Batch, recovery: Recovery
    ) -> None:
        self._compressed, self._recovery = compressed, recovery
        names = _common_results(prepared, compressed) if recovery.features > 0 else ()
        teacher, _ = adjusted(prepared, compressed.plan, solver)
        self._teacher = graph_module(export_program(teacher.model, teacher.example))
        self._module = copied(compressed.model)
        self._taps, self._teacher_taps = _tapped(self._module, names), _tapped(self._teacher, names)
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
        self.optimizer = torch.optim.Adam(self._groups(), fused=True)

    def _groups(self) -> list[dict[str, object]]:
        attention = any(node.op == ATTENTION for node in self._compressed.graph.nodes)
        rate = self._recovery.rate or (ATTENTION_RATE if attention else RATE)
        groups: list[dict[str, object]] = []
        for one in self._latents.values():
            size = float(one.latent.detach().square().mean().sqrt()) or 1e-3
            groups.append({"params": [one.latent], "lr": rate * size})
            if one.log_scale is not None:
                groups.append({"params": [one.log_scale], "lr": SCALE_RATE * rate / RATE})
            if one.table is not None:
                groups.append({"params": [one.table], "lr": TABLE_RATE * rate / RATE})
        plain = [parameter for parameter in self._plain.values() if parameter.requires_grad]
        groups.append({"params": plain, "lr": PLAIN_RATE * rate / RATE})
        groups.append({"params": self._scales, "lr": SCALE_RATE * rate / RATE})
        return [group for group in groups if group["params"]]

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
                self._latents[name].cut_to(cut_weights(self._latents[name].latent, now)[1])
            elif self._growing:
                final = Sparsity(mask.pattern, mask.level)
                self._latents[name].cut_to(cut_weights(self._latents[name].latent, final)[1])
                self._latents[name].begin_rounding()
        self._growing = share <= RAMP

    @property
    def final(self) -> bool:
        """Whether masks are as the plan wants them."""
        return not self._masks or not self._growing

    def loss(self, batch: Batch, labelled: bool, training: bool) -> torch.Tensor:
        inputs = batch[: self._inputs]
        values: dict[str, torch.Tensor] = {name: one() for name, one in self._latents.items()}
        with torch.autocast("cpu", torch.bfloat16, enabled=training and self._recovery.bfloat16):
            output = functional_call(self._module, {**self._plain, **values}, inputs)
            with torch.no_grad():
                wanted = self._teacher(*inputs)
        total = distillation(output, wanted, self._target(batch, labelled), self._recovery.labels)
        for tap, own in zip(self._teacher_taps, self._taps, strict=True):
            given, expected = own.value.float(), tap.value.float()
            error = functional.mse_loss(given, expected) / expected.var().clamp_min(1e-12)
            total = total + self._recovery.features / len(self._taps) * error
        if training and self._recovery.l1 > 0 and not self.final:
            magnitudes = sum(layer.latent.abs().mean() for layer in self._latents.values())
            total = total + self._recovery.l1 * magnitudes
        return total

    def held_loss(self, batches: Sequence[Batch], labelled: bool) -> float:
        return _mean(batches, lambda batch: self.loss(batch, labelled, training=False))

    def loss_of(self, model: nn.Module, batches: Sequence[Batch], labelled: bool) -> float:
        """What the outputs of a whole model cost, features aside."""

        def of_batch(batch: Batch) -> torch.Tensor:
            inputs = batch[: self._inputs]
            wanted = self._teacher(*inputs)
            return distillation(model(*inputs), wanted, self._target(batch, labelled), self._recovery.labels)

        return _mean(batches, of_batch)

    def _target(self, batch: Batch, labelled: bool) -> torch.Tensor | None:
        return batch[self._inputs] if labelled and len(batch) > self._inputs else None

    def state(self) -> list[torch.Tensor]:
        tensors = [*self._tensors()]
        return [tensor.detach().clone() for tensor in tensors]

    def load(self, state: Sequence[torch.Tensor]) -> None:
        with torch.no_grad():
            for tensor, value in zip(self._tensors(), state, strict=True):
                tensor.copy_(value)

    def _tensors(self) -> list[torch.Tensor]:
        latents = [tensor for one in self._latents.values() for tensor in one.state_dict(keep_vars=True).values()]
        return [*latents, *self._plain.values(), *self._scales]

    def weights(self) -> dict[str, torch.Tensor]:
        """What has been trained, as :func:`autocomp.compress.recovered.with_weights` takes it."""
        found = {FLOAT + name: parameter.detach().clone() for name, parameter in self._plain.items()}
        for name, quantizer in self._module.named_modules():
            if isinstance(quantizer, LearnedQuantizer):
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
        return found


def _mean(batches: Sequence[Batch], loss: Callable[[Batch], torch.Tensor]) -> float:
    with torch.no_grad():
        return sum(float(loss(batch)) for batch in batches) / len(batches)


def _common_results(prepared: Prepared, compressed: Compressed) -> tuple[str, ...]:
    """The additions whose results have the same shape in both networks, or the layers where there are no additions; none
    where blocks are left out, behind which the nodes of one are not those of the other."""
    if compressed.plan.dropped_blocks:
        return ()
    before = prepared.inventory.graph.by_name
    nodes = compressed.graph.nodes
    same = [node for node in nodes if node.name in before and node.shape == before[node.name].shape]
    additions = [node for node in same if node.op in ADDITIONS]
    chosen = additions or [node for node in same if node.layer is not None and before[node.name].layer == node.layer]
    return tuple(node.name for node in chosen)


class _Tap(nn.Module):
    """Passes a tensor on and keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.value = torch.zeros(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.value = x
        return x


def _tapped(module: GraphModule, names: Sequence[str]) -> list[_Tap]:
    """Taps behind some nodes of ``module``, put there in place."""
    taps = {name: _Tap() for name in names}
    insert_after(module, taps, stem="tap")
    return list(taps.values())


def distillation(output: object, wanted: object, target: torch.Tensor | None, labels: float) -> torch.Tensor:
    """How far outputs are from the uncompressed network's and, where targets are classes, from these.

    Args:
        output: of the compressed network, nested as the model nests it.
        wanted: of the uncompressed one.
        target: (examples,) classes; others are not looked at.
        labels: their weight beside the outputs'.
    """
    given, expected = ([one.float() for one in output_tensors(outputs)] for outputs in (output, wanted))
    classes = (
        target is not None
        and target.dtype == torch.int64
        and target.dim() == 1
        and len(given) == 1
        and given[0].dim() == 2
        and given[0].shape[1] > 1
    )
    if not classes or target is None:
        flat, reference = flat_output(output), flat_output(wanted)
        return functional.mse_loss(flat, reference) / reference.square().mean().clamp_min(1e-12)
    soft = functional.kl_div(
        functional.log_softmax(given[0] / TEMPERATURE, dim=1),
        functional.log_softmax(expected[0] / TEMPERATURE, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return (1 - labels) * TEMPERATURE**2 * soft + labels * functional.cross_entropy(given[0], target)


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
