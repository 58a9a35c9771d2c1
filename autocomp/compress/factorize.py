"""Low rank: a layer replaced by two or three thinner ones in a row."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from autocomp.errors import CompressionError
from autocomp.plan import Rank

if TYPE_CHECKING:
    import torch

    from autocomp.compress.prune import Moment

#: Rounds of the multiplicative or coordinate updates of a non-negative factorization.
NMF_ROUNDS = 300


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
    if weight.shape[0] > weight.shape[1]:
        left, right = truncated_svd(weight.T, r)
        return right.T.contiguous(), left.T.contiguous()
    matrix = weight.double()
    return _projected(matrix, matrix @ matrix.T, r, weight.dtype)


def whitened_svd(weight: torch.Tensor, r: int, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The rank-``r`` approximation whose outputs are off by least (X. Wang et al., "SVD-LLM", 2024).

    It is the matrix projected on the leading directions of its outputs, which are the eigenvectors of their second
    moment.

    Args:
        weight: (out, columns).
        second: (columns, columns), the second moment of what is multiplied with it.

    Returns:
        As :func:`truncated_svd`.
    """
    matrix = weight.double()
    return _projected(matrix, matrix @ second.double() @ matrix.T, r, weight.dtype)


def _projected(
    matrix: torch.Tensor, outputs: torch.Tensor, r: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    vectors = torch.linalg.eigh((outputs + outputs.T) / 2).eigenvectors.flip(1)[:, :r]
    rows = vectors.T @ matrix
    root = rows.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    return (vectors * root).to(dtype), (rows / root[:, None]).to(dtype)


def signed_nmf(weight: torch.Tensor, r: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What is positive and what is negative of a matrix, each as a product of non-negative factors (D. Lee & H. Seung,
    "Learning the parts of objects by non-negative matrix factorization", 1999), by scikit-learn.

    Args:
        weight: (out, columns).
        r: at least 2; the positive part has the larger half.

    Returns:
        ``left`` (out, r) and ``right`` (r, columns).
    """
    import torch
    from sklearn.decomposition import NMF
    from sklearn.exceptions import ConvergenceWarning

    lefts, rights = [], []
    for sign, rank in ((1, (r + 1) // 2), (-1, r // 2)):
        part = (sign * weight).clamp_min(0).double().numpy()
        if not part.any():  # which scikit-learn starts by dividing by
            lefts.append(torch.zeros(len(part), rank, dtype=torch.float64))
            rights.append(torch.zeros(rank, part.shape[1], dtype=torch.float64))
            continue
        factors = NMF(rank, init="nndsvda", max_iter=NMF_ROUNDS, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # as near as so many rounds bring it
            left = factors.fit_transform(part)
        lefts.append(sign * torch.from_numpy(left))
        rights.append(torch.from_numpy(factors.components_))
    left_factor, right_factor = torch.cat(lefts, dim=1), torch.cat(rights)
    size = right_factor.norm(dim=1).clamp_min(1e-12) / left_factor.norm(dim=0).clamp_min(1e-12)
    root = size.sqrt()
    return (left_factor * root).to(weight.dtype), (right_factor / root[:, None]).to(weight.dtype)


def factorize(layer: torch.nn.Module, rank: Rank, moment: Moment | None = None) -> torch.nn.Sequential:
    """Layers in a row that compute a low-rank approximation of one; for the methods see :class:`autocomp.plan.Rank`.

    Seen as a matrix, a linear becomes (in → r, r → out); a conv a conv of the same kernel to r channels and a 1×1 conv
    to the outputs (Zhang et al., "Accelerating very deep convolutional networks", 2015); an embedding one of width r and
    a linear (Lan et al., "ALBERT", 2020). The bias goes to the last.

    Args:
        layer: ``nn.Linear``, ungrouped ``nn.Conv2d`` or ``nn.Embedding``; left as it is.
        moment: of its inputs; asked for by ``whitened``.

    Raises:
        CompressionError: the layer or the method is none of these, or the moment is missing.
    """
    from torch import nn

    if not isinstance(layer, (nn.Linear, nn.Conv2d, nn.Embedding)):
        raise CompressionError(f"only linears, convolutions and embeddings have a rank to truncate; got {layer}")
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        raise CompressionError(f"a grouped convolution has no rank to truncate; got {layer}")
    if not rank.as_matrix:
        if not isinstance(layer, nn.Conv2d):
            raise CompressionError(f"{rank.method} factors are of convolutions; got {layer}")
        stages = _spatial(layer, rank.r) if rank.method == "spatial" else _tucker2(layer, rank)
    else:
        stages = _matrix(layer, *_factors(layer.weight.detach().flatten(1), rank, moment))
    return nn.Sequential(*stages).requires_grad_(False).eval()


def _factors(matrix: torch.Tensor, rank: Rank, moment: Moment | None) -> tuple[torch.Tensor, torch.Tensor]:
    if rank.method == "nmf":
        return signed_nmf(matrix, rank.r)
    if rank.method == "svd":
        return truncated_svd(matrix, rank.r)
    if moment is None:
        raise CompressionError("a whitened factorization must know what the layer reads; give calibration data")
    return whitened_svd(matrix, rank.r, moment.second[0])


def _matrix(
    layer: torch.nn.Linear | torch.nn.Conv2d | torch.nn.Embedding, left: torch.Tensor, right: torch.Tensor
) -> tuple[torch.nn.Module, ...]:
    from torch import nn

    r = len(right)
    if isinstance(layer, nn.Embedding):
        table = nn.Embedding(layer.num_embeddings, r, padding_idx=layer.padding_idx)
        return _with(table, left), _with(nn.Linear(r, layer.embedding_dim, bias=False), right.T)
    if isinstance(layer, nn.Linear):
        last = nn.Linear(r, layer.out_features, bias=layer.bias is not None)
        return _with(nn.Linear(layer.in_features, r, bias=False), right), _with(last, left, layer.bias)
    first = _like(layer, layer.in_channels, r, layer.kernel_size, (0, 1))
    return _with(first, right), _pointwise(r, layer, left)


def _spatial(layer: torch.nn.Conv2d, r: int) -> tuple[torch.nn.Module, ...]:
    outputs, inputs, height, width = layer.weight.shape
    matrix = layer.weight.detach().permute(0, 3, 1, 2).reshape(outputs * width, inputs * height)
    left, right = truncated_svd(matrix, r)
    first = _like(layer, inputs, r, (height, 1), (0,))
    last = _like(layer, r, outputs, (1, width), (1,), bias=layer.bias is not None)
    return (
        _with(first, right.reshape(r, inputs, height, 1)),
        _with(last, left.reshape(outputs, width, r).permute(0, 2, 1)[:, :, None], layer.bias),
    )


def _tucker2(layer: torch.nn.Conv2d, rank: Rank) -> tuple[torch.nn.Module, ...]:
    import torch

    weight = layer.weight.detach()
    outputs, inputs = weight.shape[:2]
    r, inner = rank.r, rank.input_rank(inputs, outputs)
    double = weight.double()
    sides = []
    for dim, kept in ((0, r), (1, inner)):
        unfolded = double.movedim(dim, 0).flatten(1)
        sides.append(torch.linalg.eigh(unfolded @ unfolded.T).eigenvectors.flip(1)[:, :kept])
    core = torch.einsum("oihw,or,is->rshw", double, sides[0], sides[1])
    first = torch.nn.Conv2d(inputs, inner, 1, bias=False)
    middle = _like(layer, inner, r, layer.kernel_size, (0, 1))
    return _with(first, sides[1].T), _with(middle, core), _pointwise(r, layer, sides[0])


def _like(
    layer: torch.nn.Conv2d,
    inputs: int,
    outputs: int,
    kernel: tuple[int, ...],
    sides: tuple[int, ...],
    bias: bool = False,
) -> torch.nn.Conv2d:
    """A conv that moves over some sides of the image as ``layer`` does, and over the others by single steps."""
    from torch import nn

    def own(value: tuple[int, ...], without: int) -> tuple[int, int]:
        return (value[0] if 0 in sides else without, value[1] if 1 in sides else without)

    padding = layer.padding if isinstance(layer.padding, str) else own(layer.padding, 0)
    return nn.Conv2d(
        inputs,
        outputs,
        (kernel[0], kernel[1]),
        own(layer.stride, 1),
        padding,
        own(layer.dilation, 1),
        bias=bias,
        padding_mode=layer.padding_mode,
    )


def _pointwise(r: int, layer: torch.nn.Conv2d, weight: torch.Tensor) -> torch.nn.Module:
    from torch import nn

    return _with(nn.Conv2d(r, layer.out_channels, 1, bias=layer.bias is not None), weight, layer.bias)


def _with(layer: torch.nn.Module, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.nn.Module:
    import torch

    with torch.no_grad():
        own = layer.get_parameter("weight")
        own.copy_(weight.reshape(own.shape))
        if bias is not None:
            layer.get_parameter("bias").copy_(bias)
    return layer
