"""What a compressed network has in common with the uncompressed one."""

from __future__ import annotations

import copy

import pytest
import torch

from autocomp.compress.apply import Compressed, apply
from autocomp.compress.prepare import prepare
from autocomp.compress.rebuild import Prepared
from autocomp.compress.taps import common_results, same_layers, tapped
from autocomp.graph import ADDITIONS
from autocomp.plan import LayerPlan, Plan, Rank, Sparsity
from autocomp.trace import copied, export_program, graph_module
from tests.networks import DYNAMIC_DIMS, inputs, prepared, run_module

#: Network, a block of it that is left out, and a block that loses heads.
CASES = [
    ("residual", "1", None),
    ("option_a", "1", None),
    ("grouped", "2", None),
    ("encoder", "layers.1.attention", None),
    ("vit", "layers.0.mlp", "layers.1.attention"),
    ("encoder", "layers.0.attention", "layers.1.attention"),
]


def without(network: str, block: str, attention: str | None) -> tuple[Prepared, Compressed]:
    """A network, and it without a block and some heads, which all add nothing: both compute the same."""
    given = prepared(network)
    model, inventory = copy.deepcopy(given.model), given.inventory
    idle = {layer for name in (block, attention) if name is not None for layer in inventory.blocks_by_name[name].layers}
    for layer in idle:
        for parameter in model.get_submodule(layer).parameters():
            parameter.data.zero_()
    net = prepare(model, inputs(network, 1), DYNAMIC_DIMS.get(network, ()))
    pruned = {
        layer: LayerPlan(Sparsity("head", 0.5))
        for group in inventory.groups
        if group.pattern == "head" and attention is not None and group.name.startswith(attention)
        for layer in group.producers
    }
    return net, apply(net, Plan(pruned, dropped_blocks=(block,)), [inputs(network, 8)])


def test_layers_behind_one_that_is_split_stand_for_themselves() -> None:
    net = prepared("mlp")
    first, *others = (layer.name for layer in net.inventory.layers)
    compressed = apply(net, Plan({first: LayerPlan(rank=Rank("svd", 2))}), [inputs("mlp", 8)])
    layers = same_layers(net, compressed)
    assert [*layers] == others
    assert common_results(net, compressed) == dict(layers.values())
    for own, of_teacher in layers.values():
        assert compressed.graph.by_name[own].layer == net.inventory.graph.by_name[of_teacher].layer


@pytest.mark.parametrize(("network", "block", "attention"), CASES)
def test_what_stands_for_one_another_computes_the_same_where_what_is_left_out_adds_nothing(
    network: str, block: str, attention: str | None
) -> None:
    net, compressed = without(network, block, attention)
    assert bool(compressed.plan.layers) == (attention is not None)
    additions, layers = common_results(net, compressed), same_layers(net, compressed)
    nodes = net.inventory.graph.nodes
    assert len(additions) == sum(node.op in ADDITIONS for node in nodes) - 1
    left_out = {*net.inventory.blocks_by_name[block].layers, *compressed.plan.layers}
    assert layers.keys() == {node.layer for node in nodes if node.layer is not None} - left_out
    pairs = [*additions.items(), *layers.values()]
    models = copied(compressed.model), copied(graph_module(export_program(net.model, net.example)))
    taps = [tapped(model, names) for model, names in zip(models, zip(*pairs, strict=True), strict=True)]
    for model in models:
        run_module(model, inputs(network, 4, seed=7))
    for own, of_teacher in zip(*taps, strict=True):
        torch.testing.assert_close(own.value, of_teacher.value, rtol=1e-4, atol=1e-5)
