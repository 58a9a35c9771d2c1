"""One layer at one setting: its factors, its mask and its rounded weights, each worked out once and kept, so that a search
never solves the same twice."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from autocomp.compress.channels import cut_channels, depthwise
from autocomp.compress.factorize import factorize
from autocomp.compress.grids import QuantizedWeight
from autocomp.compress.prune import Moment, cut_weights, weight_scores
from autocomp.compress.rounding import quantize_weight
from autocomp.compress.statistics import SEEN, Batches, Statistics, left
from autocomp.compress.surgeon import DAMPING
from autocomp.graph import Graph
from autocomp.plan import SEEING, Format, Rank, Saliency, Sparsity
from autocomp.trace import Example, export_program, graph_module, read_graph

if TYPE_CHECKING:
    from torch.fx import GraphModule

#: Weights that are kept, of all solutions together; the ones longest unused go first.
KEPT_WEIGHTS = 200_000_000


@dataclass(frozen=True)
class Gone:
    """The channels of a layer's outputs and inputs that are cut, sorted; and whether its other weights make up for the
    inputs that it has lost."""

    outputs: tuple[int, ...] = ()
    inputs: tuple[int, ...] = ()
    made_up_for: bool = False


@dataclass(frozen=True)
class Setting:
    """What is asked for of one stage of a layer (0 where it is whole)."""

    layer: str
    stage: int
    gone: Gone
    rank: Rank | None
    mask: Sparsity | None
    format: Format | None
    narrow_products: bool = False

    @property
    def reads_inputs(self) -> bool:
        """Whether solving it looks at what the layer reads."""
        looks = self.mask is not None and self.mask.saliency in SEEING
        return looks or self.compensates or (self.format is not None and self.format.rounding != "nearest")

    @property
    def compensates(self) -> bool:
        """Whether its weights make up for inputs that are gone."""
        return self.gone.made_up_for and bool(self.gone.inputs) and self.reads_whole

    @property
    def reads_whole(self) -> bool:
        """Whether what it reads is what the untouched layer reads, in the same columns."""
        return self.stage == 0 and (self.rank is None or self.rank.as_matrix)


@dataclass(frozen=True)
class Solution:
    """The weights of one stage: as they are computed with, which of them are not cut (None: nothing was), and their stored
    form where they are integers."""

    weight: torch.Tensor
    kept: torch.Tensor | None
    quantized: QuantizedWeight | None


class Solver:
    """Solves the layers of one untouched model.

    Args:
        model: prepared, in evaluation; left as it is.
        calibration: batches of its positional inputs.
    """

    def __init__(self, model: nn.Module, calibration: Batches) -> None:
        self.model = model
        self.calibration = calibration
        self._adjusted: dict[Hashable, Solver] = {}
        self.statistics = Statistics(model, calibration)
        self._traced: tuple[GraphModule, Graph] | None = None
        self._kept: OrderedDict[Hashable, tuple[int, Solution | nn.Sequential]] = OrderedDict()
        self.solved = 0

    def of_adjusted(self, adjustments: Sequence[str], adjust: Callable[[], nn.Module]) -> Solver:
        """The solver of the model after some adjustments, which are made once."""
        key = tuple(adjustments)
        if key not in self._adjusted:
            self._adjusted[key] = Solver(adjust(), self.calibration)
        return self._adjusted[key]

    def traced(self, example: Example) -> tuple[GraphModule, Graph]:
        """The model as a traced module, to be copied before it is changed, and its graph: what every plan that leaves all
        shapes as they are begins with. It is traced once, which takes longer than most of what is done to it."""
        if self._traced is None:
            program = export_program(self.model, example)
            self._traced = graph_module(program), read_graph(program)
        return self._traced

    def factors(self, layer: str, rank: Rank, others: Sequence[str] = ()) -> nn.Sequential:
        """The stages that take the place of a layer, over all of its channels; to be copied before they are changed.

        Args:
            others: layers that will be asked for next.
        """
        key = (layer, rank)
        known = self._known(key)
        if isinstance(known, nn.Sequential):
            return known
        moment = self.statistics.moment(layer, others) if rank.method == "whitened" else None
        found = factorize(self.model.get_submodule(layer), rank, moment)
        self._keep(key, sum(one.numel() for one in found.parameters()), found)
        return found

    def solution(self, setting: Setting, others: Sequence[Setting] = ()) -> Solution:
        """The weights of one stage.

        Args:
            others: settings that will be asked for next.

        Raises:
            CompressionError: it looks at the layer's inputs, and the model does not call the layer as a module.
        """
        known = self._known(setting)
        if isinstance(known, Solution):
            return known
        stages = self._stages(setting)
        weight = stages[setting.stage].get_parameter("weight").detach()
        moment = self._moment(setting, stages, others) if setting.reads_inputs else None
        kept = quantized = None
        if setting.compensates:
            whole = self.statistics.moment(setting.layer)
            weight = _compensated(self._uncut(setting), whole, setting.gone, stages[0])
            stages[0].get_parameter("weight").data = weight
        if setting.mask is not None:
            gradient = self._gradient(setting, stages) if setting.mask.saliency == "taylor" else None
            weight, kept = cut_weights(weight, setting.mask, moment, gradient)
        if setting.format is not None and setting.format.weight_bits == 16:
            weight = weight.half().to(weight.dtype)
        elif setting.format is not None:
            quantized = quantize_weight(weight, setting.format, kept, setting.narrow_products, moment)
            weight = quantized.dequantized()
        found = Solution(weight, kept, quantized)
        self.solved += 1
        self._keep(setting, weight.numel(), found)
        return found

    def _stages(self, setting: Setting) -> list[nn.Module]:
        """The layer's stages without the channels that are gone, otherwise untouched."""
        layer = self.model.get_submodule(setting.layer)
        whole = [layer] if setting.rank is None else [*self.factors(setting.layer, setting.rank)]
        stages = [copy.deepcopy(stage).requires_grad_(False) for stage in whole]
        outputs, inputs = {*setting.gone.outputs}, {*setting.gone.inputs}
        if depthwise(layer):  # whose channels are both
            outputs, inputs = outputs | inputs, set()
        if outputs:
            cut_channels(stages[-1], "out", outputs)
        if inputs:
            cut_channels(stages[0], "in", inputs)
        return stages

    def _uncut(self, setting: Setting) -> torch.Tensor:
        """The first stage's weight with all of the input channels."""
        every = replace(setting, gone=Gone(setting.gone.outputs))
        return self._stages(every)[0].get_parameter("weight").detach()

    def scores(self, layer: str, saliency: Saliency) -> torch.Tensor:
        """What each weight of a layer is worth, of the weight's shape, by a saliency; by magnitude where that looks at
        inputs that cannot be seen."""
        module = self.model.get_submodule(layer)
        looks = saliency in SEEING and type(module).forward in SEEN
        return weight_scores(
            module.get_parameter("weight"),
            saliency,
            self.statistics.moment(layer) if looks else None,
            self.statistics.gradient(layer) if saliency == "taylor" else None,
        )

    def _moment(self, setting: Setting, stages: Sequence[nn.Module], others: Sequence[Setting]) -> Moment:
        if not self._follows(setting):
            return self.statistics.moment_behind(setting.layer, stages[: setting.stage + 1], setting.gone.inputs)
        names = [one.layer for one in others if one.reads_inputs and self._follows(one)]
        moment = _narrowed(self.statistics.moment(setting.layer, names), setting.gone, stages[0])
        return moment if setting.stage == 0 else _behind(moment, stages[0])

    def _follows(self, setting: Setting) -> bool:
        """Whether the moments of what a stage reads follow from those of what the untouched layer reads."""
        if setting.reads_whole:
            return True
        embeds = isinstance(self.model.get_submodule(setting.layer), nn.Embedding)
        return setting.stage == 1 and setting.rank is not None and setting.rank.as_matrix and not embeds

    def _gradient(self, setting: Setting, stages: Sequence[nn.Module]) -> torch.Tensor:
        if setting.rank is None and setting.gone == Gone():
            return self.statistics.gradient(setting.layer)
        return self.statistics.gradient_of(
            setting.layer, stages, setting.stage, setting.gone.inputs, setting.gone.outputs
        )

    def _known(self, key: Hashable) -> Solution | nn.Sequential | None:
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][1]

    def _keep(self, key: Hashable, weights: int, found: Solution | nn.Sequential) -> None:
        self._kept[key] = weights, found
        while sum(count for count, _ in self._kept.values()) > KEPT_WEIGHTS and len(self._kept) > 1:
            self._kept.popitem(last=False)


def _compensated(weight: torch.Tensor, moment: Moment, gone: Gone, layer: nn.Module) -> torch.Tensor:
    """The weights of the inputs that are left that come nearest to what all of them gave: least squares, as ZipLM has it
    (E. Kurtić et al., 2023).

    Args:
        weight: (out, in, …) with all inputs.
        moment: of all inputs.
        layer: without those that are gone.
    """
    own = layer.get_parameter("weight")
    if len(moment.second) > 1:  # grouped: the channels of a group have no others to make up for them
        return own.detach()
    kernel = weight[0, 0].numel()
    kept = left(weight.shape[1], gone.inputs)
    columns = (kept[:, None] * kernel + torch.arange(kernel)).flatten()
    second = moment.second[0].double()
    inner = second[columns][:, columns]
    inner = inner + DAMPING * inner.diagonal().mean().clamp_min(1e-12) * torch.eye(len(inner), dtype=torch.float64)
    wanted = weight.flatten(1).double() @ second[:, columns]
    plain = weight.flatten(1).double()[:, columns]
    # Damped towards the weights as they were, not towards zero.
    change = torch.linalg.solve(inner, (wanted - plain @ second[columns][:, columns]).T).T
    found: torch.Tensor = (plain + change).to(weight.dtype).reshape(own.shape)
    return found


def _behind(moment: Moment, stage: nn.Module) -> Moment:
    """Of what a matrix gives that is multiplied with the columns, and a stage of one column an input channel reads."""
    matrix = stage.get_parameter("weight").detach().flatten(1)
    return Moment(matrix @ moment.second @ matrix.T, moment.mean @ matrix.T)


def _narrowed(moment: Moment, gone: Gone, layer: nn.Module) -> Moment:
    """Without the input channels that are gone."""
    second, mean = moment.second, moment.mean
    if len(second) != getattr(layer, "groups", 1):  # a depthwise convolution has lost groups
        kept = left(len(second), gone.outputs or gone.inputs)
        return Moment(second[kept], mean[kept])
    if not gone.inputs:
        return moment
    kernel = layer.get_parameter("weight")[0, 0].numel()
    kept = left(second.shape[1] // kernel, gone.inputs)  # the same ones in every group
    columns = (kept[:, None] * kernel + torch.arange(kernel)).flatten()
    return Moment(second[:, columns][:, :, columns], mean[:, columns])
