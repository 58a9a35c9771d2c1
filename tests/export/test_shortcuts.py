"""Shortcuts without weights, written as integer convolutions: the same numbers, in the kernels and bytes that are foreseen."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import cast

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional

from autocomp.compress.apply import Compressed, apply
from autocomp.compress.prepare import prepare
from autocomp.compress.structure import restructure
from autocomp.export.size import SizeModel
from autocomp.export.to_onnx import export_onnx
from autocomp.hardware.calibrate import nchwc_block
from autocomp.hardware.fingerprint import this_machine
from autocomp.hardware.lowering import lower
from autocomp.hardware.runtimes.onnxruntime import kernel_samples
from autocomp.plan import Format, LayerPlan, Plan
from tests.hardware.test_lowering import facts
from tests.networks import inputs, numerics_here, prepared, random_plan, run_file, thorough, uniform_plan

pytestmark = pytest.mark.slow

CONVOLVED = replace(numerics_here(), convolved_shortcuts=True)
INT8 = Format(8)


def compressed(plan: Plan, convolved: bool) -> Compressed:
    calibration = [inputs("option_a", 16, seed=100)]
    return apply(prepared("option_a"), plan, calibration, CONVOLVED if convolved else numerics_here())


def operators(file: bytes) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load_from_string(file).graph.node)


@pytest.mark.parametrize(
    ("seed", "packed"),
    thorough(
        [(None, True), (None, False), (0, True), *((seed, False) for seed in range(4))], {(None, False), (0, True)}
    ),
)
def test_the_file_gives_what_it_gave_with_slices(seed: int | None, packed: bool) -> None:
    plan = uniform_plan("option_a", format=INT8) if seed is None else random_plan(prepared("option_a").inventory, seed)
    batch = inputs("option_a", 8, seed=7)
    sliced, convolved = (export_onnx(compressed(plan, chosen), packed) for chosen in (False, True))
    given, expected = run_file(convolved, batch), run_file(sliced, batch)
    # An addition in integers and one in floats that is rounded may end on either side of a half.
    assert torch.quantile((given - expected).abs(), 0.9) < 0.02 * expected.std()


def test_in_integers_nothing_is_sliced_or_padded() -> None:
    plan = uniform_plan("option_a", format=INT8)
    sliced, convolved = (operators(export_onnx(compressed(plan, chosen), True)) for chosen in (False, True))
    assert min(sliced["Slice"], sliced["Pad"]) > 0
    assert convolved["Slice"] == convolved["Pad"] == 0
    assert convolved["Conv"] == sliced["Conv"] + sliced["Pad"]


def test_in_floats_all_is_left_as_it_is() -> None:
    assert export_onnx(compressed(Plan(), True), True) == export_onnx(compressed(Plan(), False), True)


def test_the_kernels_are_foreseen() -> None:
    block = nchwc_block(this_machine())
    plan = uniform_plan("option_a", format=INT8)
    samples = kernel_samples(
        export_onnx(compressed(plan, True), False), [inputs("option_a", 1)[0].numpy()], threads=1, runs=1
    )
    structure = restructure(prepared("option_a").inventory, plan, CONVOLVED)
    assert len(structure.shortcuts) > 0
    assert facts(lower(structure, 1, block)) == facts(tuple(sample.kernel for sample in samples))


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "plain"])
def test_the_bytes_are_foreseen(packed: bool) -> None:
    inventory = prepared("option_a").inventory
    untouched = len(export_onnx(compressed(Plan(), True), packed))
    model = SizeModel.from_export(restructure(inventory, Plan(), CONVOLVED), untouched, packed, integer_bias=True)
    plan = uniform_plan("option_a", format=INT8)
    size = len(export_onnx(compressed(plan, True), packed))
    assert abs(model.predict(restructure(inventory, plan, CONVOLVED)) - size) < max(200, 0.01 * size)


class Padded(nn.Module):
    """A conv, a shortcut behind it that is none, and a conv that reads it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(6, 2, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        y = functional.relu(self.first(x))
        if self.kind == "returns it":
            half = y[:, :, ::2]
            return cast("torch.Tensor", self.last(functional.pad(half, (0, 0, 0, 0, 1, 1)))), half
        if self.kind == "pads pixels":
            short = functional.pad(y, (1, 1, 0, 0, 1, 1))
        elif self.kind == "begins later":
            short = functional.pad(y[:, :, 1::2], (0, 0, 0, 0, 1, 1))
        elif self.kind == "cuts channels":
            short = functional.pad(y[:, ::2], (0, 0, 0, 0, 2, 2))
        else:
            short = functional.pad(y, (0, 0, 0, 0, 1, 1), value=-1.0)
        return cast("torch.Tensor", self.last(short))


@pytest.mark.parametrize(
    "kind",
    thorough(
        ["pads pixels", "begins later", "cuts channels", "pads with a number", "returns it"],
        {"begins later", "returns it"},
    ),
)
def test_what_is_no_such_shortcut_is_left(kind: str) -> None:
    batch = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    net = prepare(Padded(kind).eval(), (batch[:1],))
    plan = Plan({layer.name: LayerPlan(format=INT8) for layer in net.inventory.layers})
    files = [export_onnx(apply(net, plan, [(batch,)], chosen), True) for chosen in (CONVOLVED, numerics_here())]
    assert files[0] == files[1]
    assert restructure(net.inventory, plan, CONVOLVED).shortcuts == () or kind == "pads with a number"


def test_a_network_without_a_stride_pads_channels_alone() -> None:
    """As pyramidal networks do."""

    class Pyramid(Padded):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return cast("torch.Tensor", self.last(functional.pad(functional.relu(self.first(x)), (0, 0, 0, 0, 0, 2))))

    batch = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    net = prepare(Pyramid("").eval(), (batch[:1],))
    plan = Plan({layer.name: LayerPlan(format=INT8) for layer in net.inventory.layers})
    sliced, convolved = (export_onnx(apply(net, plan, [(batch,)], one), True) for one in (numerics_here(), CONVOLVED))
    assert operators(convolved)["Pad"] == 0
    assert torch.equal(run_file(convolved, (batch,)), run_file(sliced, (batch,)))
