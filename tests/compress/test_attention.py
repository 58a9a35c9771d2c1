"""Attention heads: what is cut equals what is masked, and what is not understood stays."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as functional
from torch import nn

from autocomp.compress.apply import apply
from autocomp.compress.attention import Heads, choose_heads, cut_heads, mask_heads
from autocomp.compress.prepare import prepare
from autocomp.compress.rebuild import Prepared
from autocomp.compress.solve import Solver
from autocomp.errors import CompressionError
from autocomp.plan import LayerPlan, Plan, Rank, Saliency, Sparsity
from autocomp.trace import copied, export_program, graph_module
from tests.compress.test_channels import magnitudes
from tests.networks import (
    TOKENS,
    WORDS,
    SelfAttention,
    compressed,
    inputs,
    prepared,
    ready,
    run_module,
    seeds,
    thorough,
)

NETWORKS = ("encoder", "vit", "packed", "tied")


def open_heads(network: str) -> list[Heads]:
    return [one for one in prepared(network).heads if one.group.prunable]


def traced(network: str) -> torch.fx.GraphModule:
    """A copy of its own: a traced module shares its parameters with the model."""
    return graph_module(export_program(copied(prepared(network).model), prepared(network).example))


@pytest.mark.parametrize(("network", "count"), [("encoder", 2), ("vit", 2), ("packed", 2), ("tied", 1)])
def test_every_attention_is_found(network: str, count: int) -> None:
    assert len(open_heads(network)) == len(prepared(network).heads) == count


def test_heads_are_rows_and_columns_of_the_linears_around() -> None:
    (first, _) = open_heads("encoder")
    assert first.group.producers == tuple(f"layers.0.attention.{name}" for name in ("query", "key", "value"))
    assert (first.group.width, first.group.unit) == (4, 4)
    assert dict(first.group.consumers) == {"layers.0.attention.out": 4}
    assert first.rows["layers.0.attention.key"][1] == first.columns["layers.0.attention.out"][1] == (4, 5, 6, 7)
    assert first.group.sizes == ()  # views that count the width of one head, not their number


def test_a_fused_linear_holds_a_head_in_three_places() -> None:
    (first, _) = open_heads("vit")
    assert (first.group.producers, first.group.unit) == (("layers.0.attention.qkv",), 12)
    assert first.rows["layers.0.attention.qkv"][1] == (*range(4, 8), *range(20, 24), *range(36, 40))
    assert [each for _, _, each in first.group.sizes] == [1, 4]  # heads, and the width of all of them


@pytest.mark.parametrize("seed", seeds(3))
@pytest.mark.parametrize("network", NETWORKS)
def test_cut_heads_equal_masked_heads(network: str, seed: int) -> None:
    chance, batch = random.Random(seed), inputs(network, 3, seed=70 + seed)
    cuts = [
        (one, chance.sample(range(one.group.width), chance.randint(1, one.group.width - 1)))
        for one in open_heads(network)
    ]
    masked, cut = traced(network), traced(network)
    mask_heads(masked, cuts)
    cut_heads(cut, cuts)
    expected = run_module(masked, batch)
    torch.testing.assert_close(run_module(cut, batch), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert not torch.allclose(expected, run_module(traced(network), batch), rtol=1e-3)
    assert sum(p.numel() for p in cut.parameters()) < sum(p.numel() for p in masked.parameters())


@pytest.mark.parametrize(
    ("network", "saliency"),
    [
        *thorough(((network, "magnitude") for network in NETWORKS), {("packed", "magnitude")}),
        *thorough(itertools.product(("encoder", "vit"), ("taylor", "wanda", "hessian")), {("vit", "hessian")}),
    ],
)
def test_a_plan_cuts_the_heads_of_least_saliency(network: str, saliency: Saliency) -> None:
    one = open_heads(network)[0]
    net, calibration = prepared(network), [inputs(network, 16, seed=9)]
    solver = Solver(net.model, calibration)
    plan = Plan({name: LayerPlan(Sparsity("head", 0.5, saliency)) for name in one.group.producers})
    gone = choose_heads(one, one.group.width // 2, partial(solver.scores, saliency=saliency))
    assert len(gone) == one.group.width // 2
    masked, (batch,) = traced(network), calibration
    mask_heads(masked, [(one, gone)])
    cut, expected = (run_module(model, batch) for model in (apply(net, plan, calibration, solver=solver).model, masked))
    if saliency == "hessian":  # what reads the heads that stay makes up for those that went
        whole = run_module(traced(network), batch)
        assert (cut - whole).square().mean() < (expected - whole).square().mean()
    else:
        torch.testing.assert_close(cut, expected, rtol=1e-4, atol=1e-4)


def test_small_heads_go_first() -> None:
    (one, _) = open_heads("vit")
    model = copied(prepared("vit").model)
    with torch.no_grad():
        for head in (1, 3):
            model.get_parameter("layers.0.attention.qkv.weight")[list(one.rows["layers.0.attention.qkv"][head])] *= 1e-3
            columns = list(one.columns["layers.0.attention.proj"][head])
            model.get_parameter("layers.0.attention.proj.weight")[:, columns] *= 1e-3
    assert choose_heads(one, 2, magnitudes(model)) == [1, 3]


def test_heads_are_cut_behind_a_truncated_rank() -> None:
    plans = {name: LayerPlan(Sparsity("head", 0.5)) for name in open_heads("encoder")[0].group.producers}
    query = "layers.0.attention.query"
    plans |= {query: LayerPlan(Sparsity("head", 0.5), Rank("svd", 3))}
    plans |= {"layers.0.attention.out": LayerPlan(rank=Rank("svd", 5))}
    model = compressed("encoder", Plan(plans)).model
    assert model.get_parameter(f"{query}.0.weight").shape == (3, 16)
    assert model.get_parameter(f"{query}.1.weight").shape == (8, 3)
    assert model.get_parameter("layers.0.attention.out.0.weight").shape == (5, 8)


def test_cutting_a_graph_that_is_another_is_an_error() -> None:
    (one, _) = open_heads("vit")
    module = traced("vit")
    for node in module.graph.nodes:
        if node.name == one.group.sizes[0][0]:
            node.name = "another"
    with pytest.raises(CompressionError, match="heads are counted in"):
        cut_heads(module, [(one, [0])])


class Attending(nn.Module):
    """(batch, tokens, 16) → the same, by an attention that ``mix`` says."""

    def __init__(self, mix: Callable[[Attending, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        self.narrow, self.out = nn.Linear(16, 4), nn.Linear(16, 16)
        self.bias = nn.Parameter(torch.randn(1, 4, TOKENS, TOKENS, generator=torch.Generator().manual_seed(0)))
        self.mix = mix

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.out(self.mix(self, x))
        return result

    def parts(self, x: torch.Tensor, heads: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.split(self.query(x), heads), self.split(self.key(x), heads), self.split(self.value(x), heads)

    def split(self, x: torch.Tensor, heads: int = 4) -> torch.Tensor:
        return torch.unflatten(x, -1, (heads, -1)).transpose(1, 2)


def together(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, 2).flatten(2)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return functional.scaled_dot_product_attention(q, k, v, bias)


def one_head(net: Attending, x: torch.Tensor) -> torch.Tensor:
    return together(attend(*net.parts(x, 1)))


def bias_a_head(net: Attending, x: torch.Tensor) -> torch.Tensor:
    return together(attend(*net.parts(x), net.bias))


def keys_for_all(net: Attending, x: torch.Tensor) -> torch.Tensor:
    """All heads of queries meet one of keys: multi-query attention."""
    key = net.split(net.narrow(x), 1).expand(-1, 4, -1, -1)
    return together(attend(net.split(net.query(x)), key, net.split(net.value(x))))


def rotated(net: Attending, x: torch.Tensor) -> torch.Tensor:
    query, key = (net.split(one(x)) * 0.5 for one in (net.query, net.key))
    return together(attend(query, key, net.split(net.value(x))))


def read_twice(net: Attending, x: torch.Tensor) -> torch.Tensor:
    mixed = together(attend(*net.parts(x)))
    return mixed + mixed.flip(-1)


def no_linear(net: Attending, x: torch.Tensor) -> torch.Tensor:
    return together(attend(net.split(x), net.split(net.key(x)), net.split(net.value(x))))


def crossed(net: Attending, x: torch.Tensor) -> torch.Tensor:
    """The first half of a linear's rows are queries, the second values, in which the heads stand the other way."""
    first, second = net.query(x).chunk(2, dim=-1)
    mixed = together(attend(net.split(first), net.split(first), net.split(second).flip(1)))
    return torch.cat([mixed, mixed], dim=-1)


@pytest.mark.parametrize(
    ("mix", "reason"),
    [
        (one_head, "it has a single head"),
        (bias_a_head, "its attention bias has a row a head"),
        (keys_for_all, "its heads share rows"),
        (rotated, "mul stands between its linears and it"),
        (read_twice, "what it gives is read several times"),
        (no_linear, "an input stands between its linears and it"),
        (crossed, "flip stands between its linears and it"),
    ],
)
def test_what_is_not_understood_stays_and_says_why(
    mix: Callable[[Attending, torch.Tensor], torch.Tensor], reason: str
) -> None:
    net = prepare(ready(Attending(mix), seed=0), (torch.randn(1, TOKENS, 16),))
    assert not any(group.prunable for group in net.inventory.groups if group.pattern == "head")
    (said,) = [why for _, why in net.inventory.skipped if why.startswith("its heads stay")]
    assert reason in said
    assert "\n" not in said


class Tower(nn.Module):
    """Two attentions, the second with the keys of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = SelfAttention(16, 4), SelfAttention(16, 4)
        self.second.key = self.first.key

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.second(self.first(x, None), None)
        return result


def test_a_linear_of_two_attentions_is_left_whole() -> None:
    net = prepare(ready(Tower(), seed=0), (torch.randn(1, TOKENS, 16),))
    assert not any(one.group.prunable for one in net.heads)
    assert all("there is no linear of its own" in (one.group.reason or "") for one in net.heads)


def test_a_network_without_attention_has_no_heads() -> None:
    assert prepared("plain").heads == ()


def test_heads_and_channels_of_one_plan_go_together() -> None:
    net: Prepared = prepared("encoder")
    plan = Plan(
        {
            name: LayerPlan(Sparsity(group.pattern, 0.5))
            for group in net.inventory.groups
            if group.prunable
            for name in group.producers
        }
    )
    model = apply(net, plan, []).model
    assert model.get_parameter("layers.1.attention.query.weight").shape == (8, 16)
    assert model.get_parameter("layers.1.up.weight").shape == (12, 16)
    ids = torch.zeros(2, 9, dtype=torch.long) + WORDS - 1
    assert run_module(model, (ids, torch.ones_like(ids))).isfinite().all()
