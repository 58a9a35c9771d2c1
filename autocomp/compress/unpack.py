"""``nn.MultiheadAttention`` as four linears around ``scaled_dot_product_attention``.

torch keeps the weights of queries, keys and values in one parameter, which no method could be given per layer, and
computes them with the batch in second place. The linears here have paths of their own: ``PATH.query``, ``PATH.key``,
``PATH.value`` and ``PATH.out``.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional

from autocomp.compress.agreement import computes_the_same


class UnpackedAttention(nn.Module):
    """What an ``nn.MultiheadAttention`` computes in evaluation, called as it is called."""

    #: Told to ``nn.TransformerEncoderLayer``, so that it does not reach for the packed weights.
    _qkv_same_embed_dim = False
    in_proj_bias = None
    in_proj_weight = None

    def __init__(self, packed: nn.MultiheadAttention) -> None:
        super().__init__()
        self.batch_first = packed.batch_first
        self.num_heads = packed.num_heads
        self.head_dim = packed.head_dim
        width = packed.embed_dim
        has_bias = packed.in_proj_bias is not None
        self.query = nn.Linear(width, width, has_bias)
        self.key = nn.Linear(packed.kdim, width, has_bias)
        self.value = nn.Linear(packed.vdim, width, has_bias)
        self.out = nn.Linear(width, width, packed.out_proj.bias is not None)
        joined = packed.in_proj_weight
        weights = (
            joined.chunk(3)
            if joined is not None
            else (packed.q_proj_weight, packed.k_proj_weight, packed.v_proj_weight)
        )
        with torch.no_grad():
            for linear, weight in zip((self.query, self.key, self.value), weights, strict=True):
                linear.weight.copy_(weight)
            if packed.in_proj_bias is not None:
                for linear, bias in zip((self.query, self.key, self.value), packed.in_proj_bias.chunk(3), strict=True):
                    linear.bias.copy_(bias)
            self.out.load_state_dict(packed.out_proj.state_dict())

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(batch, tokens, width) three times, or the batch second or none, → the same and, where asked for, the
        weights."""
        del is_causal  # a hint that comes with the mask
        alone = query.dim() == 2  # a sequence without a batch
        if alone:
            query, key, value = (x[None] for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            turned = {id(x): x.transpose(0, 1) for x in (query, key, value)}  # mostly they are one tensor, turned once
            query, key, value = (turned[id(x)] for x in (query, key, value))
        q, k, v = (
            torch.unflatten(linear(x), -1, (-1, self.head_dim)).transpose(1, 2)
            for linear, x in ((self.query, query), (self.key, key), (self.value, value))
        )
        bias = _additive(attn_mask, key_padding_mask, q)
        mixed = functional.scaled_dot_product_attention(q, k, v, bias)
        result = self.out(mixed.transpose(1, 2).flatten(2))
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5
            weights = torch.softmax(scores if bias is None else scores + bias, dim=-1)
            weights = weights.mean(dim=1) if average_attn_weights else weights
        if alone:
            return result[0], None if weights is None else weights[0]
        return result if self.batch_first else result.transpose(0, 1), weights


def _additive(
    attn_mask: torch.Tensor | None, key_padding_mask: torch.Tensor | None, q: torch.Tensor
) -> torch.Tensor | None:
    """Both masks as one bias that broadcasts to (batch, heads, tokens, tokens). True in a mask means "leave out"."""
    bias = None
    if attn_mask is not None:
        bias = _float(attn_mask, q)
        bias = torch.unflatten(bias, 0, (q.shape[0], -1)) if bias.dim() == 3 else bias
    if key_padding_mask is not None:
        padding = _float(key_padding_mask, q)[:, None, None, :]
        bias = padding if bias is None else bias + padding
    return bias


def _float(mask: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))


def unpack_attention(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> nn.Module:
    """``model``, in evaluation, or a copy of it whose packed attentions are unpacked.

    An attention with settings that the unpacked form does not have stays packed; so do all of them where the copy does
    not compute what the model computes on ``inputs``.
    """
    packed = [
        name
        for name, module in model.named_modules()
        if type(module) is nn.MultiheadAttention and module.bias_k is None and not module.add_zero_attn
    ]
    if not packed:
        return model
    changed = copy.deepcopy(model)
    for name in packed:
        parent, _, child = name.rpartition(".")
        module = changed.get_submodule(name)
        setattr(changed.get_submodule(parent), child, UnpackedAttention(module).eval())  # type: ignore[arg-type]
    return changed if computes_the_same(model, changed, inputs) else model
