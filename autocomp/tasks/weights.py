"""Trained weights from a file, in the forms that people keep them in."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autocomp.errors import TaskError, first_line


def load_weights(model: nn.Module, path: Path, what: str) -> None:
    """The weights in ``path`` into ``model``, which is called ``what`` where they do not fit.

    Raises:
        TaskError: there is no such file, it holds no weights, or not those of the model.
    """
    weights = read_weights(path)
    own = model.state_dict()
    if missing := sorted(own.keys() - weights.keys()):
        raise TaskError(f"{path} must hold the weights of {what}; it lacks {len(missing)}, {missing[0]} among them")
    for key, tensor in own.items():
        if weights[key].shape != tensor.shape:
            raise TaskError(
                f"{path} must hold the weights of {what}; its {key} is {tuple(weights[key].shape)} and must be "
                f"{tuple(tensor.shape)}"
            )
    model.load_state_dict({key: weights[key] for key in own})


def read_weights(path: Path) -> Mapping[str, Tensor]:
    """A state_dict from a file of torch's or of safetensors'; also from within a checkpoint, or with ``module.`` prefixes.

    Raises:
        TaskError: there is no such file, or it holds no weights.
    """
    if not path.is_file():
        raise TaskError(f"a file of weights must exist; {str(path)!r} does not, seen from {str(Path.cwd())!r}")
    found: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, ImportError) as error:
        raise TaskError(f"a file of weights must hold a state_dict; {path} does not ({first_line(error)})") from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise TaskError(f"a file of weights must hold a state_dict; {path} holds a {type(found).__name__}")
    return {str(key).removeprefix("module."): value for key, value in found.items()}
