"""A Hugging Face model folder as a task, ``hf:FOLDER``: sequence classification, or sentence embeddings.

Which of them is said by the folder's ``config.json``: an architecture ``…ForSequenceClassification`` is scored by its
accuracy; one without a head by how well the cosine of two sentences' embeddings ranks with the scores that people gave
(C. Spearman, 1904). The data folder holds files as :mod:`autocomp.tasks.text_data` reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from autocomp.errors import TaskError
from autocomp.task import Metric, Predict, Score, Split, Task
from autocomp.tasks.classification import CALIBRATION_EXAMPLES, classification
from autocomp.tasks.examples import nested_part
from autocomp.tasks.text_data import Texts, need_texts, read_texts
from autocomp.tasks.text_folder import load_classifier, load_embedder, read_config
from autocomp.tasks.text_model import SentenceEmbedder, Tokens, by_length

Progress = Callable[[str], None]

#: Latency is that of one text of so many tokens, or of as many as the model takes.
LATENCY_TOKENS = 128
EVALUATION_BATCH = 64
CALIBRATION_BATCH = 32
#: Sentences in a batch for recovery: two per pair.
TRAIN_PAIRS = 32
SEED = 0


def hf_task(folder: str, data: Path | None, progress: Progress | None = None) -> Task:
    """The model in ``folder`` as a task; latency is that of one text of 128 tokens.

    Raises:
        TaskError: transformers is not installed; the folder holds no model for sequence classification or embeddings;
            or the data are not there, or not in the form that is read.
    """
    path = Path(folder)
    heads = [name for name in read_config(path).architectures or [] if "For" in name]
    name = path.resolve().name
    if any(head.endswith("ForSequenceClassification") for head in heads):
        return _classification(path, name, data, progress)
    if heads:
        raise TaskError(
            f"a Hugging Face model must be for sequence classification or without a head (embeddings); {path} has "
            f"{', '.join(heads)}; write a task of your own for it, FILE.py[:function]"
        )
    train, search, test = (
        _pairs(need_texts(data, split, f"hf:{name}"), split) for split in ("train", "search", "test")
    )
    model, tokens = load_embedder(path)
    return similarity_task(name, model, tokens, train, search, test)


@dataclass(frozen=True)
class Pairs:
    """Sentence pairs and how alike they are, on any scale."""

    first: tuple[str, ...]
    second: tuple[str, ...]
    scores: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.scores)


def similarity_task(
    name: str, model: SentenceEmbedder, tokens: Tokens, train: Pairs, search: Pairs, test: Pairs
) -> Task:
    """A task that scores sentence embeddings by Spearman's rank correlation, times 100.

    Calibration is on 256 sentences of ``train``. Recovery batches are (input_ids, attention_mask, scores): rows 2i and
    2i+1 are a pair, and both hold its score, float32 (batch,), which :func:`pair_loss` learns.
    """
    rng = np.random.default_rng(SEED)
    chosen = rng.choice(len(train), min(CALIBRATION_EXAMPLES, len(train)), replace=False)
    calibration = tokens.encode([train.first[place] for place in chosen])
    length = min(LATENCY_TOKENS, tokens.limit)
    return Task(
        name=name,
        model=model,
        example_inputs=tokens.full([*train.first[:length], *train.second[:length]], length),
        calibration=[
            tokens.pad([calibration[place] for place in part]) for part in _batches(calibration, CALIBRATION_BATCH)
        ],
        train=PairBatches(TokenPairs(tokens, train)),
        loss=pair_loss,
        evaluate=Similarity(TokenPairs(tokens, search), TokenPairs(tokens, test)),
        metric=Metric("Spearman", "maximize", "%"),
        dynamic_dims=((1,),) * len(tokens.names),
    )


@dataclass(frozen=True)
class TokenPairs:
    """Sentence pairs as tokens, which are made when they are first asked for."""

    tokens: Tokens
    pairs: Pairs

    @cached_property
    def encoded(self) -> list[tuple[Tensor, ...]]:
        """The first sentences, then the second ones."""
        return self.tokens.encode([*self.pairs.first, *self.pairs.second])


@dataclass(frozen=True)
class Similarity:
    """Spearman's rank correlation, times 100, of cosine similarities with the pairs' scores.

    It is a property of the whole split and no mean over examples, so there are no outcomes.
    """

    search: TokenPairs
    test: TokenPairs

    def __call__(self, predict: Predict, split: Split, fraction: float = 1.0) -> Score:
        """Scores ``predict``: (input_ids, attention_mask), each (batch, tokens) → embeddings (batch, width).

        Raises:
            TaskError: the split is unknown, or the fraction is outside (0, 1].
        """
        if split not in ("search", "test"):
            raise TaskError(f"a split must be search or test; got {split!r}")
        source = self.search if split == "search" else self.test
        part = nested_part(len(source.pairs), fraction, SEED)
        encoded = [source.encoded[place] for place in (*part, *(part + len(source.pairs)))]
        embeddings: list[Tensor | None] = [None] * len(encoded)
        with torch.no_grad():
            for places in _batches(encoded, EVALUATION_BATCH):
                output = predict(*source.tokens.pad([encoded[place] for place in places]))
                for place, row in zip(places, output.cpu(), strict=True):
                    embeddings[place] = row
        rows = torch.stack([row for row in embeddings if row is not None])
        alike = cosine_similarity(rows[: len(part)], rows[len(part) :], dim=1)
        return Score(100.0 * rank_correlation(alike.numpy(), np.array(source.pairs.scores)[part]))


def pair_loss(embeddings: Tensor, scores: Tensor) -> Tensor:
    """How badly the cosines of pairs go with their scores, on whatever scale these are: 1 less Pearson's correlation, a
    smooth stand-in for Spearman's, in 0 to 2; 1 where all scores of a batch are the same.

    Args:
        embeddings: (batch, width); rows 2i and 2i+1 are a pair.
        scores: (batch,); both rows of a pair hold its score.
    """
    cosines = cosine_similarity(embeddings[::2].float(), embeddings[1::2].float(), dim=1)
    wanted = scores[::2]
    return 1 - cosine_similarity(cosines - cosines.mean(), wanted - wanted.mean(), dim=0)


def rank_correlation(values: np.ndarray, others: np.ndarray) -> float:
    """Spearman's, in -1 to 1; 0 where one of them is the same everywhere, NaN where one is not finite."""
    from scipy.stats import rankdata

    if not (np.isfinite(values).all() and np.isfinite(others).all()):
        return float("nan")
    ranks, other = rankdata(values), rankdata(others)
    if ranks.std() == 0 or other.std() == 0:
        return 0.0
    return float(np.corrcoef(ranks, other)[0, 1])


@dataclass(frozen=True)
class PairBatches(Sequence[tuple[Tensor, ...]]):
    """(inputs…, scores) batches, made when they are asked for; see :func:`similarity_task`."""

    source: TokenPairs

    @cached_property
    def _order(self) -> list[int]:
        """From the shortest pair to the longest, so that batches need little padding; recovery shuffles batches."""
        encoded, count = self.source.encoded, len(self.source.pairs)
        return sorted(range(count), key=lambda place: max(len(encoded[place + by][0]) for by in (0, count)))

    def __len__(self) -> int:
        return -(-len(self.source.pairs) // TRAIN_PAIRS)

    @overload
    def __getitem__(self, index: int) -> tuple[Tensor, ...]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[Tensor, ...]]: ...
    def __getitem__(self, index: int | slice) -> tuple[Tensor, ...] | list[tuple[Tensor, ...]]:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        start = range(len(self))[index] * TRAIN_PAIRS
        pairs, places = self.source.pairs, self._order[start : start + TRAIN_PAIRS]
        rows = [self.source.encoded[place + by] for place in places for by in (0, len(pairs))]
        scores = torch.tensor([pairs.scores[place] for place in places], dtype=torch.float32)
        return (*self.source.tokens.pad(rows), scores.repeat_interleave(2))


def _batches(encoded: Sequence[tuple[Tensor, ...]], size: int) -> list[list[int]]:
    """Places of texts of like lengths."""
    order = by_length(encoded)
    return [order[start : start + size] for start in range(0, len(order), size)]


def _pairs(texts: Texts, split: str) -> Pairs:
    if texts.pairs is None:
        raise TaskError(f"embeddings are scored on pairs; {split} has no column text_pair; add the second sentences")
    return Pairs(texts.texts, texts.pairs, texts.scores())


def _classification(path: Path, name: str, data: Path | None, progress: Progress | None) -> Task:
    train, test = (need_texts(data, split, f"hf:{name}") for split in ("train", "test"))
    search = read_texts(data, "search", f"hf:{name}")
    model, tokens = load_classifier(path)
    numbers = {str(label): int(number) for label, number in (read_config(path).label2id or {}).items()}

    def batches(texts: Texts) -> list[tuple[Tensor, ...]]:
        encoded = tokens.encode(texts.texts, texts.pairs)
        labels = torch.tensor([_number(label, numbers) for label in texts.labels])
        made = [
            (tokens.pad([encoded[place] for place in part]), labels[part])
            for part in _batches(encoded, EVALUATION_BATCH)
        ]
        return [(*inputs, targets) for inputs, targets in made]

    length = min(LATENCY_TOKENS, tokens.limit)
    return classification(
        model,
        train=batches(train),
        search=None if search is None else batches(search),
        test=batches(test),
        name=name,
        example_inputs=tokens.full(train.texts[:length], length),
        dynamic_dims=((1,),) * len(tokens.names),
        progress=progress,
    )


def _number(label: str, numbers: dict[str, int]) -> int:
    """The class number of a label that is one, or is a name in the model's configuration."""
    if label in numbers:
        return numbers[label]
    if label.removeprefix("-").isdigit():
        return int(label)
    raise TaskError(
        f"a label must be a class number or a name in the model's label2id; got {label!r}; known: {', '.join(numbers)}"
    )
