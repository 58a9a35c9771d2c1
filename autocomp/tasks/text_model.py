"""A transformer as a plain module of positional tensors, and texts as such tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

Pooling = Literal["mean", "first"]


class TextModel(nn.Module):
    """A transformer whose forward takes (input_ids, attention_mask[, token_type_ids]), each (batch, tokens) int64.

    ``additive_mask``: the model takes a mask that is added to attention scores, (batch, 1, 1, tokens), as it is. Making
    it here, in four operations, keeps the library's own mask code out of the exported graph.
    """

    def __init__(self, model: nn.Module, additive_mask: bool, zero_types: bool) -> None:
        super().__init__()
        self.model = model
        self.additive_mask = additive_mask
        self.zero_types = zero_types

    def run(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None) -> Any:
        """What the transformer returns."""
        given: dict[str, Tensor] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self.additive_mask:
            closed = torch.finfo(torch.float32).min * (1.0 - attention_mask.to(torch.float32))
            given["attention_mask"] = closed.unsqueeze(1).unsqueeze(2)
        if token_type_ids is not None:
            given["token_type_ids"] = token_type_ids
        elif self.zero_types:
            given["token_type_ids"] = torch.zeros_like(input_ids)
        return self.model(**given)


class SequenceClassifier(TextModel):
    """Logits (batch, classes)."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        logits: Tensor = self.run(input_ids, attention_mask, token_type_ids).logits
        return logits


class SentenceEmbedder(TextModel):
    """Sentence embeddings of length 1, (batch, width): the mean of the tokens', or the first token's."""

    pooling: Pooling = "mean"

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        tokens: Tensor = self.run(input_ids, attention_mask, token_type_ids).last_hidden_state
        if self.pooling == "first":
            return F.normalize(tokens[:, 0], dim=1)
        # The sum has the direction of the mean, and the length is made 1.
        return F.normalize((tokens * attention_mask.to(torch.float32).unsqueeze(2)).sum(dim=1), dim=1)


@dataclass(frozen=True)
class Tokens:
    """Texts → tensors. ``names`` are the model's inputs in order, ``limit`` the tokens that it takes at most."""

    tokenizer: Any
    names: tuple[str, ...]
    limit: int

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[tuple[Tensor, ...]]:
        """For each text its inputs, each (tokens,), cut at the limit and not padded."""
        found = self.tokenizer(
            list(texts),
            None if pairs is None else list(pairs),
            truncation=True,
            max_length=self.limit,
            return_attention_mask=True,
            return_token_type_ids="token_type_ids" in self.names,
        )
        columns = [found[name] for name in self.names]
        return [tuple(torch.tensor(part, dtype=torch.int64) for part in row) for row in zip(*columns, strict=True)]

    def pad(self, encoded: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """A batch, padded to its longest: each (batch, tokens)."""
        fill = {"input_ids": self.tokenizer.pad_token_id}
        return tuple(
            pad_sequence(list(column), batch_first=True, padding_value=fill.get(name, 0))
            for name, column in zip(self.names, zip(*encoded, strict=True), strict=True)
        )

    def full(self, texts: Sequence[str], length: int) -> tuple[Tensor, ...]:
        """One input of ``length`` tokens without padding, of as many texts as it takes: each (1, length)."""
        joined = ""
        for text in (text for _ in range(length) for text in texts):
            joined = f"{joined} {text}"
            (encoded,) = self.encode([joined])
            if len(encoded[0]) >= length:
                break
        # The last token stays the last: cut within.
        return tuple(torch.cat([part[: length - 1], part[-1:]])[None] for part in encoded)


def by_length(encoded: Sequence[tuple[Tensor, ...]]) -> list[int]:
    """The order from the shortest to the longest, so that batches need little padding."""
    return sorted(range(len(encoded)), key=lambda place: len(encoded[place][0]))
