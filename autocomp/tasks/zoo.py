"""Models by their name in torchvision or timm, scored on an image folder: ``torchvision:resnet18``, ``timm:NAME``.

The weights are those of the file behind an ``@`` (``torchvision:resnet18@weights.pth``); else ``NAME.pth``, ``NAME.pt``
or ``NAME.safetensors`` beside the splits in the data folder; else the library's pretrained ones, which it fetches. A
file's head must have an output per class of the folder. Preprocessing is what the library says for the model.

The data folder holds ``train`` and ``test`` (or ``val``), each a folder of class subfolders or a zip of one, and
optionally ``search``; where there are ``val`` and ``test`` and no ``search``, ``val`` is the search split.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import nn

from autocomp.errors import TaskError, did_you_mean, first_line
from autocomp.task import Task
from autocomp.tasks.classification import classification
from autocomp.tasks.image_folder import Transform, find_splits, open_image_folder
from autocomp.tasks.weights import load_weights

Progress = Callable[[str], None]

WEIGHT_SUFFIXES = (".pth", ".pt", ".safetensors")


class Zoo(Protocol):
    """A library of image classifiers."""

    @property
    def library(self) -> str: ...

    def known(self) -> list[str]: ...

    def untrained(self, name: str, classes: int) -> nn.Module: ...

    def pretrained_classes(self, name: str) -> int | None:
        """Outputs of the pretrained model; None where the library has no weights for it."""

    def pretrained(self, name: str) -> nn.Module: ...

    def transform(self, name: str, model: nn.Module) -> Transform: ...


def torchvision_task(model: str, data: Path | None, progress: Progress | None = None) -> Task:
    """``NAME`` or ``NAME@FILE`` of torchvision as a task on an image folder.

    Raises:
        TaskError: torchvision, the model, its weights or the data are not there, or do not fit each other.
    """
    return _task(_Torchvision(), model, data, progress)


def timm_task(model: str, data: Path | None, progress: Progress | None = None) -> Task:
    """``NAME`` or ``NAME@FILE`` of timm as a task on an image folder.

    Raises:
        TaskError: timm, the model, its weights or the data are not there, or do not fit each other.
    """
    return _task(_Timm(), model, data, progress)


def import_torchvision() -> ModuleType:
    """torchvision, also beside the CPU build of torch, where its own import stops: its wheels hold CUDA code only.

    Its classification models and transforms need none of it, only that two operators have a name.

    Raises:
        TaskError: torchvision is not installed, or does not fit the installed torch.
    """
    if importlib.util.find_spec("torchvision") is None:
        raise TaskError(
            "this needs torchvision, which is not installed; pip install torchvision (torch first, pinned, or pip replaces it)"
        )
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise TaskError(
                f"torchvision must fit the installed torch {torch.__version__}; its import stopped at: {first_line(error)}; "
                "install the pair of versions that belong together"
            ) from error
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]  # what the failed import left
        _missing_operators()
        import torchvision
    module: ModuleType = torchvision
    return module


@cache  # the operators are there for as long as the library object is
def _missing_operators() -> torch.library.Library:
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            schema = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            library.define(schema)  # type: ignore[no-untyped-call]
    return library


def _task(zoo: Zoo, spec: str, data: Path | None, progress: Progress | None) -> Task:
    name, _, file = spec.partition("@")
    task = f"{zoo.library}:{name}"
    known = zoo.known()
    # timm's pretrained weights have a tag behind the name: resnet18.a1_in1k
    if name.partition(".")[0] not in known:
        raise TaskError(f"{zoo.library} must know the model; it has no {name!r}; {_hint(name, known)}")
    splits = find_splits(data, task)
    classes = len(open_image_folder(splits.test).classes)
    weights = Path(file) if file else _beside(splits.test.parent, name)
    if weights is None:
        model = _pretrained(zoo, name, classes)
    else:
        model = zoo.untrained(name, classes)
        load_weights(model, weights, f"{name} with an output per class of the data folder, {classes}")
    return classification(
        model.eval(),
        train=splits.train,
        search=splits.search,
        test=splits.test,
        name=name,
        transform=zoo.transform(name, model),
        progress=progress,
    )


def _hint(name: str, known: list[str]) -> str:
    hint = did_you_mean(name, known)
    return hint if hint.startswith("did") else f"see its list of {len(known)} models"


def _beside(data: Path, name: str) -> Path | None:
    return next((path for suffix in WEIGHT_SUFFIXES if (path := data / f"{name}{suffix}").is_file()), None)


def _pretrained(zoo: Zoo, name: str, classes: int) -> nn.Module:
    way_out = f"hand over a file of weights, {zoo.library}:{name}@weights.pth, or put {name}.pth into the data folder"
    told = zoo.pretrained_classes(name)
    if told is None:
        raise TaskError(f"{zoo.library} must have weights for the model; it has none for {name}; {way_out}")
    if told != classes:
        raise TaskError(
            f"the model must have an output per class; {zoo.library}'s pretrained {name} has {told} and the data folder "
            f"{classes} class subfolders; {way_out}"
        )
    try:
        return zoo.pretrained(name)
    except Exception as error:  # networks and caches fail in many ways
        raise TaskError(
            f"{zoo.library} must fetch its weights for {name}; it could not ({first_line(error)}); {way_out}"
        ) from error


@dataclass(frozen=True)
class _Torchvision:
    library: str = "torchvision"

    @property
    def _models(self) -> Any:
        import_torchvision()
        import torchvision.models

        return torchvision.models

    def known(self) -> list[str]:
        names: list[str] = self._models.list_models(module=self._models)  # classifiers only
        return names

    def untrained(self, name: str, classes: int) -> nn.Module:
        model: nn.Module = self._models.get_model(name, weights=None, num_classes=classes)
        return model

    def pretrained_classes(self, name: str) -> int | None:
        return len(self._models.get_model_weights(name).DEFAULT.meta["categories"])

    def pretrained(self, name: str) -> nn.Module:
        model: nn.Module = self._models.get_model(name, weights="DEFAULT")
        return model

    def transform(self, name: str, _model: nn.Module) -> Transform:
        transform: Transform = self._models.get_model_weights(name).DEFAULT.transforms()
        return transform


@dataclass(frozen=True)
class _Timm:
    library: str = "timm"

    @property
    def _timm(self) -> Any:
        if importlib.util.find_spec("timm") is None:
            raise TaskError(
                "this needs timm, which is not installed; pip install timm (torch first, pinned, or pip replaces it)"
            )
        import_torchvision()
        import timm

        return timm

    def known(self) -> list[str]:
        names: list[str] = self._timm.list_models()
        return names

    def untrained(self, name: str, classes: int) -> nn.Module:
        model: nn.Module = self._timm.create_model(name, pretrained=False, num_classes=classes)
        return model

    def pretrained_classes(self, name: str) -> int | None:
        told = self._timm.models.get_pretrained_cfg(name)
        return None if told is None or not told.has_weights else int(told.num_classes)

    def pretrained(self, name: str) -> nn.Module:
        model: nn.Module = self._timm.create_model(name, pretrained=True)
        return model

    def transform(self, _name: str, model: nn.Module) -> Transform:
        data = self._timm.data
        transform: Transform = data.create_transform(**data.resolve_data_config({}, model=model), is_training=False)
        return transform
