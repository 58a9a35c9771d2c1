"""Low rank: a layer replaced by two thinner ones in a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autocomp.errors import CompressionError

if TYPE_CHECKING:
    import torch


def truncated_svd(weight: torch.Tensor, r: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best rank-``r`` approximation of a matrix in the Frobenius norm (Eckart & Young, 1936).

    The singular vectors of the shorter side are the eigenvectors of the matrix times its transpose, which are had in a
    fraction of the time of a full decomposition.

    Args:
        weight: (out, columns).

    Returns:
        ``left`` (out, r) and ``right`` (r, columns), the singular values split evenly, so that both halves have
        weights of a like scale to quantize.
    """
    import torch

    if weight.shape[0] > weight.shape[1]:
        left, right = truncated_svd(weight.T, r)
        return right.T.contiguous(), left.T.contiguous()
    matrix = weight.double()
    vectors = torch.linalg.eigh(matrix @ matrix.T).eigenvectors.flip(1)[:, :r]
    rows = vectors.T @ matrix  # the right singular vectors, each times its singular value
    root = rows.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    return (vectors * root).to(weight.dtype), (rows / root[:, None]).to(weight.dtype)


def factorize(layer: torch.nn.Module, r: int) -> torch.nn.Sequential:
    """Two layers that compute the rank-``r`` approximation of one.

    A linear becomes (in → r, r → out); a conv becomes a conv of the same kernel to r channels and a 1×1 conv to the
    outputs (Zhang et al., "Accelerating very deep convolutional networks", 2015); an embedding becomes one of width r
    and a linear (Lan et al., "ALBERT", 2020). The bias goes to the second.

    Args:
        layer: ``nn.Linear``, ungrouped ``nn.Conv2d`` or ``nn.Embedding``; left as it is.

    Raises:
        CompressionError: the layer is none of them.
    """
    import torch
    from torch import nn

    if not isinstance(layer, (nn.Linear, nn.Conv2d, nn.Embedding)):
        raise CompressionError(f"only linears, convolutions and embeddings have a rank to truncate; got {layer}")
    left, right = truncated_svd(layer.weight.detach().flatten(1), r)
    first: nn.Module
    second: nn.Module
    if isinstance(layer, nn.Embedding):
        first = nn.Embedding(layer.num_embeddings, r, padding_idx=layer.padding_idx)
        second = nn.Linear(r, layer.embedding_dim, bias=False)
        left, right = right.T, left
    elif isinstance(layer, nn.Linear):
        first = nn.Linear(layer.in_features, r, bias=False)
        second = nn.Linear(r, layer.out_features, bias=layer.bias is not None)
    elif layer.groups == 1:
        first = nn.Conv2d(
            layer.in_channels,
            r,
            layer.kernel_size,  # type: ignore[arg-type]
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            layer.dilation,  # type: ignore[arg-type]
            bias=False,
            padding_mode=layer.padding_mode,
        )
        second = nn.Conv2d(r, layer.out_channels, 1, bias=layer.bias is not None)
    else:
        raise CompressionError(f"a grouped convolution has no rank to truncate; got {layer}")
    with torch.no_grad():
        first.weight.copy_(right.reshape(first.weight.shape))
        second.weight.copy_(left.reshape(second.weight.shape))
        if second.bias is not None:
            second.bias.copy_(layer.bias)  # type: ignore[arg-type]
    return nn.Sequential(first, second).requires_grad_(False).eval()
