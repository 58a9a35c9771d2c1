"""A Hugging Face model folder of a few kilobytes: random weights, and a WordPiece tokenizer of a few words."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

WORDS = (*"abcdef", "the", "cat", "dog", "sat", "ran", "on", "mat", "good", "bad", "film", "was", "is", "very", "not")

needs_transformers = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("transformers", "tokenizers")),
    reason="transformers is not installed; pip install 'autocomp[text]'",
)


def data_folder() -> Path | None:
    """The folder with real data: the one that AUTOCOMP_DATA names, or ``../shared/data`` beside the checkout."""
    folder = Path(os.environ.get("AUTOCOMP_DATA", Path(__file__).parents[2] / "shared" / "data"))
    return folder if folder.is_dir() else None


def write_model(
    folder: Path, head: bool, kind: str = "bert", classes: tuple[str, ...] = ("bad", "good", "so-so")
) -> Path:
    """A model folder: sequence classification, or none of the heads."""
    if importlib.util.find_spec("torchvision") is not None:
        from autocomp.tasks.zoo import import_torchvision

        import_torchvision()  # transformers stops where torchvision does
    import torch
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    names: Any = {"bert": "Bert", "distilbert": "DistilBert", "roberta": "Roberta"}[kind]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    sizes: dict[str, object] = {
        "vocab_size": len(vocabulary),
        "hidden_size": 32,
        "dim": 32,
        "num_hidden_layers": 2,
        "n_layers": 2,
        "num_attention_heads": 4,
        "n_heads": 4,
        "intermediate_size": 48,
        "hidden_dim": 48,
        "max_position_embeddings": 40,
        "pad_token_id": 0,
        "id2label": dict(enumerate(classes)),
        "label2id": {name: number for number, name in enumerate(classes)},
        "initializer_range": 0.3,
    }
    config = getattr(transformers, f"{names}Config")(**sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{names}ForSequenceClassification" if head else f"{names}Model")(config)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    transformers.PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=inputs if kind == "bert" else [inputs[0], inputs[2]],
    ).save_pretrained(folder)
    return folder
