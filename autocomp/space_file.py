"""Search spaces as they are written: rules in YAML, checked for all that can be said without the model."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from autocomp.errors import PlanError, SpaceError, did_you_mean
from autocomp.formats import check_format
from autocomp.places import shipped_folder
from autocomp.plan import ONE_THRESHOLD_PATTERNS, Adjustment, Pattern, RankMethod, Saliency, Sparsity


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SparsityRule(_Strict):
    """``scope`` is ``layer`` for a level of every layer by itself, ``global`` for one threshold over all that the rule is
    for. ``for_speed``: only for targets that were measured to be faster by it, not where it makes the file smaller alone."""

    pattern: Pattern
    level: float
    saliency: Saliency = "magnitude"
    scope: Literal["layer", "global"] = "layer"
    for_speed: bool = False

    @field_validator("level")
    @classmethod
    def _inside(cls, level: float) -> float:
        if not 0.0 < level < 1.0:
            raise ValueError(f"a sparsity level must lie between 0 and 1, both exclusive; got {level}")
        return level

    @model_validator(mode="after")
    def _possible(self) -> SparsityRule:
        try:
            self.sparsity()
        except PlanError as error:
            raise ValueError(str(error)) from error
        if self.scope == "global" and self.pattern not in ONE_THRESHOLD_PATTERNS:
            raise ValueError(
                f"one threshold is for {' or '.join(ONE_THRESHOLD_PATTERNS)}; got {self.pattern} with scope global"
            )
        return self

    def sparsity(self) -> Sparsity:
        return Sparsity(self.pattern, self.level, self.saliency)


class Rule(_Strict):
    layers: str
    sparsity: tuple[SparsityRule, ...] | None = None
    rank: tuple[float, ...] | None = None
    rank_methods: tuple[RankMethod, ...] = ("svd",)
    format: tuple[str, ...] | None = None
    drop: bool | None = None

    @field_validator("rank")
    @classmethod
    def _shares(cls, shares: tuple[float, ...] | None) -> tuple[float, ...] | None:
        for share in shares or ():
            if not 0.0 < share <= 1.0:
                raise ValueError(f"a rank is a share of the largest that saves, in (0, 1]; got {share}")
        return shares

    @field_validator("format")
    @classmethod
    def _formats(cls, formats: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for text in formats or ():
            check_format(text)
        return formats


class SpaceFile(_Strict):
    """A search-space file: later rules override earlier ones, field by field, for the layers that they match.
    ``adjustments`` are made to the whole network of every plan that compresses something."""

    name: str
    rules: tuple[Rule, ...]
    adjustments: tuple[Adjustment, ...] = ()


def builtin_spaces() -> dict[str, Path]:
    """Name → file of the spaces that ship with autocomp."""
    return {path.stem: path for path in sorted(shipped_folder("search_spaces").glob("*.yaml"))}


def read_space(name: str) -> SpaceFile:
    """A space by the name of one that ships, or by path.

    Raises:
        SpaceError: no such space, or a mistake in the file (says where).
    """
    known = builtin_spaces()
    path = known.get(name, Path(name))
    if not path.is_file():
        raise SpaceError(f"a search space must be a file or a known name; got {name!r}; {did_you_mean(name, known)}")
    try:
        return SpaceFile.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpaceError(f"{path} is not YAML in UTF-8: {' '.join(str(error).split())[:200]}") from error
    except ValidationError as error:
        raise SpaceError(f"{path}: {_first_mistake(error)}") from error


def _first_mistake(error: ValidationError) -> str:
    mistakes = error.errors()
    # A misspelt setting is also a missing one; its name says more.
    mistake = next((one for one in mistakes if one["type"] == "extra_forbidden"), mistakes[0])
    place = ".".join(str(part) for part in mistake["loc"])
    name = str(mistake["loc"][-1]) if mistake["loc"] else ""
    if mistake["type"] == "extra_forbidden":
        model = SparsityRule if "sparsity" in mistake["loc"][:-1] else Rule if "rules" in mistake["loc"] else SpaceFile
        fields = model.model_fields
        return f"{place}: no such setting {name!r}; {did_you_mean(name, fields)}"
    said = mistake["msg"].removeprefix("Value error, ")
    if name == "pattern" and isinstance(mistake["input"], int):
        # YAML takes 2:4 for two times sixty and four.
        return f"{place}: {said}; got the number {mistake['input']}; patterns like '2:4' go in quotation marks"
    return f"{place}: {said}"
