"""Batch normalization folded into the layer before it: the form in which a network is deployed.

autocomp compresses the folded network, so that every solver sees the weights that the device will run.
"""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING

from autocomp.compress.agreement import computes_the_same
from autocomp.trace import Example, export_as_written, read_graph

if TYPE_CHECKING:
    from torch import nn


def fold_batch_norm(model: nn.Module, example: Example) -> nn.Module:
    """A copy of ``model``, in eval mode, with every batch norm that follows a conv or linear alone folded into it.

    Batch norms that do not (before the layer, behind a fork, shared, or without statistics of their own) stay; so do those
    behind a linear that are over another dimension than its outputs, those that do more than torch's do and their children
    in a row after it, and all of them where the copy does not compute what the model computes on the example.

    Args:
        model: left as it is.

    Raises:
        TraceError: the model cannot be traced.
    """
    still = copy.deepcopy(model).eval().requires_grad_(False)
    folded = _folded(copy.deepcopy(still), example)
    return folded if computes_the_same(still, folded, example.inputs) else still


def _folded(folded: nn.Module, example: Example) -> nn.Module:
    """A model, in place."""
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

    program = export_as_written(folded, example)  # norms are norms there; the copy is compared with the model below
    graph = read_graph(program)
    owner = {
        node.name: list(node.meta["nn_module_stack"].values())[-1][0]
        for node in program.graph.nodes
        if node.meta.get("nn_module_stack")
    }
    used = Counter(node.layer for node in graph.layers)
    used_norms = Counter(owner.get(node.name) for node in graph.nodes if node.op == "batch_norm")
    for node in graph.layers:
        user, written = graph.sole_user(node.name), node
        if user is not None and user.op == "squeeze" and user.shape[1:2] == node.shape[1:2]:  # of one over sequences
            written = user
            user = graph.sole_user(written.name)
        if user is None or user.op != "batch_norm" or node.layer is None:
            continue
        path = owner[user.name]
        if used[node.layer] > 1 or used_norms[path] > 1:
            continue
        layer, norm = folded.get_submodule(node.layer), folded.get_submodule(path)
        if node.computed_bias:
            continue
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_mean is None:
            continue
        behind = _behind(norm, written.shape[1:])
        if behind is None:
            continue
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            transposed = isinstance(layer, nn.ConvTranspose2d)
            if transposed and layer.groups > 1:
                continue  # torch folds along the wrong dimension
            _replace(folded, node.layer, fuse_conv_bn_eval(layer, norm, transpose=transposed))
        elif isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d) and len(node.shape) == 2:
            _replace(folded, node.layer, fuse_linear_bn_eval(layer, _with_weights(norm)))
        else:
            continue
        _replace(folded, path, behind)
    return folded


def _behind(norm: nn.modules.batchnorm._BatchNorm, shape: tuple[int, ...]) -> nn.Module | None:
    """What is left of a batch norm when it is folded: nothing of torch's own, of a class that inherits it its children in a
    row (timm's have their activation there); None where it computes something else.

    Args:
        shape: of an example that it reads.
    """
    import torch
    from torch import nn
    from torch.nn import functional

    if type(norm).forward is nn.BatchNorm2d.forward:
        return nn.Identity()
    children = nn.Sequential(OrderedDict(norm.named_children()))
    x = 3 * torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))

    def normalized(x: torch.Tensor) -> object:
        found = functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        return children(found)

    return children if computes_the_same(norm, normalized, (x,)) else None


def _with_weights(norm: nn.modules.batchnorm._BatchNorm) -> nn.modules.batchnorm._BatchNorm:
    """A norm with weights, which torch folds into a linear; those of one that has none are ones and zeros."""
    import torch
    from torch import nn

    if norm.affine:
        return norm
    found = copy.deepcopy(norm)
    found.weight = nn.Parameter(torch.ones(norm.num_features), requires_grad=False)
    found.bias = nn.Parameter(torch.zeros(norm.num_features), requires_grad=False)
    return found


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
