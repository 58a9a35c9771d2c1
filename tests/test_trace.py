"""The traced data flow: shapes, layers, users, and names that the runnable module shares."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autocomp.compress.apply import apply
from autocomp.compress.prepare import prepare
from autocomp.errors import TraceError
from autocomp.graph import BATCH, Graph, Node
from autocomp.plan import Format, LayerPlan, Plan
from autocomp.trace import Example, OutputForm, export_program, graph_module, read_graph
from tests.networks import CLASSES, NETWORKS, SIZE, TOKENS, inputs, prepared, ready, run_module


def traced(model: nn.Module, network: str = "plain") -> Graph:
    return read_graph(export_program(model.eval(), Example(inputs(network, 1))))


def test_a_residual_net_is_read_in_execution_order() -> None:
    graph = prepared("residual").inventory.graph
    assert [node.op for node in graph.nodes[:8]] == [
        *("input", "conv2d", "relu", "conv2d", "relu", "conv2d", "add", "relu"),
    ]
    assert graph.nodes[0].shape == (BATCH, 3, SIZE, SIZE)
    assert [node.layer for node in graph.layers][:4] == ["0.0", "1.conv1", "1.conv2", "2.conv1"]
    assert graph.by_name[graph.outputs[0]].shape == (BATCH, CLASSES)


def test_a_conv_carries_its_geometry() -> None:
    conv = next(node for node in prepared("residual").inventory.graph.layers if node.layer == "2.conv1")
    assert (conv.weight_shape, conv.shape) == ((24, 16, 3, 3), (BATCH, 24, SIZE // 2, SIZE // 2))
    assert (conv.kernel, conv.stride, conv.padding, conv.groups) == ((3, 3), (2, 2), (1, 1), 1)
    assert conv.has_bias
    assert conv.macs == 24 * (SIZE // 2) ** 2 * 16 * 9


def test_a_depthwise_conv_counts_its_own_channel_only() -> None:
    conv = next(node for node in prepared("separable").inventory.graph.layers if node.groups > 1)
    assert conv.groups == 16
    assert conv.macs == 16 * SIZE**2 * 9


def test_a_linear_is_counted_once_an_output() -> None:
    linear = prepared("mlp").inventory.graph.layers[0]
    assert (linear.op, linear.weight_shape, linear.macs) == ("linear", (32, 20), 32 * 20)


def test_users_and_tails() -> None:
    graph = prepared("residual").inventory.graph
    stem, first, second = graph.layers[:3]
    stem_relu = graph.tail(stem)
    assert stem_relu.op == "relu"
    assert graph.sole_user(stem_relu.name) is None  # the block and its shortcut
    assert [node.op for node in graph.users[stem_relu.name]] == ["conv2d", "add"]
    assert graph.tail(first).op == "relu"
    assert graph.tail(second) is second  # an addition is behind it
    assert graph.sole_user(graph.outputs[0]) is None


@pytest.mark.parametrize("network", NETWORKS)
def test_the_runnable_module_has_the_names_of_the_graph(network: str) -> None:
    """nn.Sequential calls its input ``input``, a builtin, that torch.fx renames."""
    ready = prepared(network)
    program = export_program(ready.model, ready.example)
    module, batch = graph_module(program), inputs(network, 3)
    names = {node.name for node in module.graph.nodes}
    assert {node.name for node in read_graph(program).nodes} <= names
    torch.testing.assert_close(run_module(module, batch), run_module(ready.model, batch), rtol=1e-5, atol=1e-5)


def test_weights_that_are_no_layers_are_not_taken_for_one() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(3, 1, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = x.flatten(2).transpose(1, 2)
            result: torch.Tensor = self.attention(tokens, tokens, tokens, need_weights=False)[0]
            return result

    paths = {name for name, _ in Attention().named_modules()}
    assert {node.layer for node in traced(Attention()).layers} <= paths


def test_several_inputs_and_outputs_are_all_named() -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x + y, x - y

    graph = read_graph(export_program(Two().eval(), Example((torch.ones(1, 4), torch.ones(1, 4)))))
    assert [node.op for node in graph.nodes] == ["input", "input", "add", "sub"]
    assert len(graph.outputs) == 2


def test_an_embedding_and_what_it_makes_are_read() -> None:
    graph = prepared("encoder").inventory.graph
    ids, seen, token, place = (*graph.nodes[:2], *(node for node in graph.layers if node.op == "embedding"))
    assert (ids.op, seen.op) == ("input", "input")
    assert (token.layer, token.weight_shape, token.outputs) == ("token", (30, 16), 16)
    assert token.shape == (BATCH, TOKENS, 16)  # the length varies, and is that of the example here
    assert place.shape == (TOKENS, 16)
    assert token.macs == 0
    assert not graph.layers[2].is_gemm
    assert graph.layers[-1].is_gemm


def test_a_transposed_conv_counts_what_every_value_read_meets() -> None:
    conv = next(node for node in prepared("decoder").inventory.graph.layers if node.op == "conv_transpose2d")
    assert (conv.weight_shape, conv.shape, conv.outputs) == ((16, 8, 2, 2), (BATCH, 8, SIZE, SIZE), 8)
    assert conv.macs == (SIZE // 2) ** 2 * 16 * 8 * 2 * 2


def test_what_reads_parameters_of_no_layer_counts_them() -> None:
    graph = prepared("vit").inventory.graph
    places = next(node for node in graph.nodes if node.op == "add" and node.parameters)
    assert places.parameters == 17 * 16
    assert next(node for node in graph.nodes if node.op == "layer_norm").parameters == 2 * 16


def test_examples_cut_in_four_are_four_batches() -> None:
    class Windows(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.view(-1, 3, SIZE // 2, SIZE // 2).relu()

    windows = traced(Windows()).nodes[-1]
    assert windows.shape == (-4, 3, SIZE // 2, SIZE // 2)
    assert windows.elements == 3 * SIZE**2


class InParts(nn.Module):
    """Two convolutions' results in one tensor, written into its halves, or put together."""

    def __init__(self, writes: bool) -> None:
        super().__init__()
        self.writes = writes
        self.one, self.other = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.norm, self.last = nn.BatchNorm2d(4), nn.Conv2d(8, CLASSES, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.norm(self.one(x)).relu_(), self.other(x)
        both = torch.cat(parts, dim=1)
        if self.writes:
            both = torch.zeros_like(both)
            both[:, :4], both[:, 4:] = parts
        result: torch.Tensor = self.last(both).mean(dim=(2, 3))
        return result


def test_what_is_written_into_a_part_of_a_tensor_is_read_with_it() -> None:
    found, errors = [], []
    for writes in (True, False):
        net = prepare(ready(InParts(writes), seed=3), inputs("plain", 1))
        assert [layer.name for layer in net.inventory.layers] == ["one", "other", "last"]
        graph = net.inventory.graph
        assert all(graph.users[node.name] for node in graph.nodes if node.name not in graph.outputs)
        assert not any(node.op.endswith("_") for node in graph.nodes) or not writes
        assert "batch_norm" not in {node.op for node in graph.nodes}
        plan = Plan({layer.name: LayerPlan(format=Format(8)) for layer in net.inventory.layers})
        compressed = apply(net, plan, [inputs("plain", 32, seed=1)])
        given = inputs("plain", 16, seed=2)
        found.append(run_module(compressed.model, given))
        errors.append(float((found[-1] - run_module(net.model, given)).norm() / found[-1].norm()))
    assert errors[0] == pytest.approx(errors[1], rel=0.2)
    assert errors[0] < 0.02


class Shifted(nn.Module):
    """Writes into a part of what a norm gives that cannot be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.BatchNorm2d(3), nn.Conv2d(3, CLASSES, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        y[:, :1] = x[:, 2:]
        result: torch.Tensor = self.last(y)
        return result


class Masked(nn.Module):
    """Adds a mask that is made of constants, part by part; or parts of its input."""

    def __init__(self, constant: bool) -> None:
        super().__init__()
        self.constant, self.conv = constant, nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        mask, other = torch.zeros_like(y), y.chunk(2, dim=1)[1]
        mask[:, :, :2] = 1.0
        mask[:, 1:2] += 0.5
        if not self.constant:
            mask[:, :4] = other
        result: torch.Tensor = y + mask
        return result


def test_what_is_made_of_constants_is_left_as_it_is_written() -> None:
    ops = {constant: {node.op for node in traced(Masked(constant)).nodes} for constant in (True, False)}
    assert not any("scatter" in op for op in ops[True])
    assert any("scatter" in op for op in ops[False])
    given = inputs("plain", 4, seed=1)
    for constant in (True, False):
        model = ready(Masked(constant), seed=4)
        module = graph_module(export_program(model, Example(inputs("plain", 1))))
        torch.testing.assert_close(module(*given), model(*given))


def test_norms_stay_norms_where_a_model_is_rewritten() -> None:
    program = export_program(ready(Shifted(), seed=1), Example(inputs("plain", 1)))
    graph = read_graph(program)
    assert [node.op for node in graph.nodes][:2] == ["input", "batch_norm"]
    assert graph.nodes[1].shape == (BATCH, 3, SIZE, SIZE)
    given = inputs("plain", 4, seed=1)
    torch.testing.assert_close(graph_module(program)(*given), ready(Shifted(), seed=1)(*given))


def test_a_piece_that_is_changed_is_no_other_piece() -> None:
    class Halves(nn.Module):
        def __init__(self, whole: bool) -> None:
            super().__init__()
            self.whole, self.conv = whole, nn.Conv2d(3, 8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            one, other = y.chunk(2, dim=1)
            one.relu_()
            return y if self.whole else torch.cat((one, other), dim=1)

    assert [node.op for node in traced(Halves(whole=False)).nodes][-2:] == ["relu_", "cat"]
    assert "relu_" not in {node.op for node in traced(Halves(whole=True)).nodes}
    given = inputs("plain", 4, seed=1)
    for whole in (True, False):
        model = ready(Halves(whole), seed=4)
        module = graph_module(export_program(model, Example(inputs("plain", 1))))
        with torch.no_grad():
            torch.testing.assert_close(module(*given), model(*given))


def test_what_is_changed_in_place_and_read_as_changed_stays_as_it_is_written() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3), nn.ReLU(inplace=True))
    assert [node.op for node in traced(model).nodes] == ["input", "conv2d", "relu_", "conv2d", "relu_"]


def test_inputs_by_any_number_are_all_named() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, scale: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.layer(scale * torch.stack(others).sum(dim=0))
            return result

    class Ignores(nn.Linear):
        def forward(self, x: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
            return super().forward(x)

    assert traced(Ignores(20, 3), "mlp").nodes[-1].shape == (BATCH, 3)
    given = tuple(torch.randn(1, 4) for _ in range(3))
    graph = read_graph(export_program(Sum().eval(), Example(given)))
    assert sum(node.op == "input" for node in graph.nodes) == 3
    assert graph.nodes[-1].shape == (BATCH, 3)


def test_what_nobody_reads_is_not_in_the_graph() -> None:
    class Asks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x.exp()
            return x.relu()

    assert [node.op for node in traced(Asks()).nodes] == ["input", "relu"]


def test_a_nested_output_comes_back_nested() -> None:
    one, two = torch.ones(1), torch.zeros(2)
    output = {"a": (one, None, 3), "b": [two]}
    form = OutputForm.of(output)
    assert form.filled([two, one]) == {"a": (two, None, 3), "b": [one]}
    assert OutputForm.of(one).filled([two]) is two
    with pytest.raises(TraceError, match="returns a dict without any"):
        OutputForm.of({"a": 3})


def test_an_operation_on_one_tensor_twice_reads_it_once() -> None:
    graph = Graph((Node("x", "input", (), (BATCH, 4)), Node("y", "add", ("x", "x"), (BATCH, 4))), ("y",))
    assert [node.name for node in graph.users["x"]] == ["y"]


def test_a_model_that_cannot_be_followed_is_refused_in_one_line() -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(TraceError, match=r"torch\.export") as raised:
        traced(Branching())
    assert "\n" not in str(raised.value)


def test_a_refusal_names_the_operator_and_the_line() -> None:
    class Counting(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if len(torch.nonzero(x)) > 3 else x.relu()

    class Solving(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = torch.linalg.lstsq(x, x).solution
            return result

    for model, named in ((Counting(), "data-dependent"), (Solving(), r"aten\.linalg_lstsq")):
        with pytest.raises(TraceError, match=rf"stopped at: .*{named}.*, line \d+ of test_trace\.py") as raised:
            traced(model)
        assert "\n" not in str(raised.value)


def test_a_fixed_batch_is_refused() -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(2, -1)

    with pytest.raises(TraceError):
        traced(Fixed())


class Blurred(nn.Module):
    """A fixed filter, in a buffer of the name that layers have for their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.register_buffer("weight", torch.full((4, 1, 2, 2), 0.25))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.conv2d(self.first(x).relu(), self.get_buffer("weight"), stride=2, groups=4)
        result: torch.Tensor = self.last(y)
        return result


def test_a_buffer_is_no_layers_weight() -> None:
    net, batch = prepare(ready(Blurred(), seed=0), inputs("plain", 1)), inputs("plain", 4)
    assert [layer.name for layer in net.inventory.layers] == ["first", "last"]
    fixed = next(node for node in net.inventory.graph.nodes if node.op == "conv2d" and node.layer is None)
    assert (fixed.weight_shape, fixed.parameters, fixed.groups, fixed.stride) == ((4, 1, 2, 2), 16, 4, (2, 2))
    result = apply(net, Plan({name: LayerPlan(format=Format(8)) for name in ("first", "last")}), [batch])
    expected, actual = run_module(net.model, batch), run_module(result.model, batch)
    assert float((expected - actual).norm()) < 0.1 * float(expected.norm())
