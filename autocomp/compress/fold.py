"""Batch normalization folded into the layer before it: the form in which a network is deployed.

autocomp compresses the folded network, so that every solver sees the weights that the device will run.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import TYPE_CHECKING

from autocomp.graph import Example, export_program, read_graph

if TYPE_CHECKING:
    import torch


def fold_batch_norm(model: torch.nn.Module, example: Example) -> torch.nn.Module:
    """A copy of ``model``, in eval mode, with every batch norm that follows a conv or linear alone folded into it.

    Batch norms that do not (before the layer, behind a fork, shared, or without statistics of their own) stay; so do those
    behind a linear that are over another dimension than its outputs or have no weights.

    Args:
        model: left as it is.

    Raises:
        TraceError: the model cannot be traced.
    """
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

    folded = copy.deepcopy(model).eval()
    for parameter in folded.parameters():
        parameter.requires_grad_(False)
    program = export_program(folded, example)
    graph = read_graph(program)
    owner = {
        node.name: list(node.meta["nn_module_stack"].values())[-1][0]
        for node in program.graph.nodes
        if node.meta.get("nn_module_stack")
    }
    used = Counter(node.layer for node in graph.layers)
    used_norms = Counter(owner.get(node.name) for node in graph.nodes if node.op == "batch_norm")
    for node in graph.layers:
        user = graph.sole_user(node.name)
        if user is None or user.op != "batch_norm" or node.layer is None:
            continue
        path = owner[user.name]
        if used[node.layer] > 1 or used_norms[path] > 1:
            continue
        layer, norm = folded.get_submodule(node.layer), folded.get_submodule(path)
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_mean is None:
            continue
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            transposed = isinstance(layer, nn.ConvTranspose2d)
            if transposed and layer.groups > 1:
                continue  # torch folds along the wrong dimension
            _replace(folded, node.layer, fuse_conv_bn_eval(layer, norm, transpose=transposed))
        elif isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d) and norm.affine and len(node.shape) == 2:
            _replace(folded, node.layer, fuse_linear_bn_eval(layer, norm))
        else:
            continue
        _replace(folded, path, nn.Identity())
    return folded


def _replace(model: torch.nn.Module, path: str, module: torch.nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
