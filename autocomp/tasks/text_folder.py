"""A Hugging Face model folder → a model and its tokens. Nothing is fetched: the folder holds all there is to it."""

from __future__ import annotations

import importlib.util
import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autocomp.errors import TaskError, first_line
from autocomp.tasks.text_model import Pooling, SentenceEmbedder, SequenceClassifier, TextModel, Tokens
from autocomp.tasks.zoo import import_torchvision

#: No text is cut shorter than a model can take, but for those that can take more than this.
LONGEST_TOKENS = 512
#: What the models of other libraries raise on arguments that are not theirs.
_REFUSED = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, NotImplementedError)

#: Models that count positions from behind the padding token's number.
_POSITIONS_AFTER_PADDING = frozenset({"roberta", "xlm-roberta", "camembert", "mpnet", "longformer", "xlm-roberta-xl"})


def read_config(folder: Path) -> Any:
    """The configuration in a model folder.

    Raises:
        TaskError: there is none, or transformers is not installed.
    """
    transformers = _transformers()
    if not (folder / "config.json").is_file():
        raise TaskError(f"a Hugging Face model folder must hold config.json; {folder} does not; give its path")
    try:
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise TaskError(f"a model folder must have a configuration; {folder} has not ({first_line(error)})") from error


def load_classifier(folder: Path) -> tuple[SequenceClassifier, Tokens]:
    """A model with a head for sequence classification.

    Raises:
        TaskError: the folder is not one of such a model.
    """
    model, tokens = _loaded(folder, "AutoModelForSequenceClassification", typed=True)
    return SequenceClassifier(model, *_forms(model, tokens)), tokens


def load_embedder(folder: Path) -> tuple[SentenceEmbedder, Tokens]:
    """A model without a head, for sentence embeddings, pooled as ``1_Pooling/config.json`` says; else by the mean.

    Raises:
        TaskError: the folder is not one of such a model.
    """
    model, tokens = _loaded(folder, "AutoModel", typed=False)
    if getattr(model, "pooler", None) is not None:
        setattr(model, "pooler", None)  # noqa: B010  computes what nobody reads; mypy knows no module that may be None
    embedder = SentenceEmbedder(model, *_forms(model, tokens))
    embedder.pooling = _pooling(folder)
    return embedder, tokens


def _loaded(folder: Path, kind: str, typed: bool) -> tuple[nn.Module, Tokens]:
    transformers, config = _transformers(), read_config(folder)
    try:
        with _quiet(transformers):
            # Attention is torch's own (sdpa) wherever the model has it.
            model, info = getattr(transformers, kind).from_pretrained(
                folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (*_REFUSED, OSError, KeyError, ImportError) as error:
        raise TaskError(
            f"a model folder must load with transformers; {folder} does not ({first_line(error)})"
        ) from error
    if missing := sorted(key for key in info["missing_keys"] if "pooler" not in key):
        raise TaskError(f"a model folder must hold all weights; {folder} lacks {len(missing)}, {missing[0]} among them")
    if tokenizer.pad_token_id is None:
        raise TaskError(f"a tokenizer must have a padding token, to make batches; that of {folder} has none; set one")
    # Single sentences have no types; for pairs they say which text a token is of.
    types = typed and "token_type_ids" in tokenizer.model_input_names and _takes_types(model)
    names = ("input_ids", "attention_mask", *(("token_type_ids",) if types else ()))
    return model.eval(), Tokens(tokenizer, names, _limit(folder, config, tokenizer))


def _limit(folder: Path, config: Any, tokenizer: Any) -> int:
    positions = getattr(config, "max_position_embeddings", None) or LONGEST_TOKENS
    if config.model_type in _POSITIONS_AFTER_PADDING:
        positions -= (config.pad_token_id or 0) + 1
    said = _json(folder / "sentence_bert_config.json").get("max_seq_length")
    limits = (positions, tokenizer.model_max_length, LONGEST_TOKENS, said if isinstance(said, int) else LONGEST_TOKENS)
    return int(min(limits))


def _forms(model: nn.Module, tokens: Tokens) -> tuple[bool, bool]:
    """Whether the model takes an additive mask, and whether it wants token types that the tokenizer does not give."""
    zero_types = _takes_types(model) and "token_type_ids" not in tokens.names
    batch = tokens.pad(tokens.encode(["a", "a b c d e f"]))
    with torch.no_grad():
        plain = TextModel(model, additive_mask=False, zero_types=zero_types).run(*_three(batch))[0]
        try:
            additive = TextModel(model, additive_mask=True, zero_types=zero_types).run(*_three(batch))[0]
        except _REFUSED:
            return False, zero_types
    # What stands at padding is nobody's.
    seen = batch[1].bool() if plain.dim() == 3 else torch.ones(len(plain), dtype=torch.bool)
    same = plain.shape == additive.shape and torch.allclose(plain[seen], additive[seen], rtol=1e-3, atol=1e-4)
    return same, zero_types


def _three(batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor | None]:
    return batch[0], batch[1], batch[2] if len(batch) > 2 else None


def _takes_types(model: nn.Module) -> bool:
    sized = getattr(getattr(model, "config", None), "type_vocab_size", 0)
    return bool(sized) and "token_type_ids" in inspect.signature(model.forward).parameters


def _pooling(folder: Path) -> Pooling:
    return "first" if _json(folder / "1_Pooling" / "config.json").get("pooling_mode_cls_token") else "mean"


def _json(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}


def _transformers() -> Any:
    if importlib.util.find_spec("transformers") is None:
        raise TaskError(
            "this needs transformers, which is not installed; pip install transformers (torch first, pinned)"
        )
    if importlib.util.find_spec("torchvision") is not None:
        import_torchvision()  # transformers imports it where it is, and stops where that stops
    import transformers

    return transformers


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without the progress bar and the remarks of loading: what matters of them is checked."""
    logging = transformers.utils.logging
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
