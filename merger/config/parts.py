"""The parts of a configuration: small frozen values, each checked by itself. `merger.config.config` puts them together."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from benchmark.errors import InputError
from benchmark.hub_ids import is_hub_id
from benchmark.taggers.registry import check_tagger_kind

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


def locate(path: Path, info: ValidationInfo) -> Path:
    """`path`, absolute; a relative one starts at the folder given as the validation's context.

    A link at its end stays one: the hub's cache has names without endings behind its own.
    """
    folder = (info.context or {}).get("folder", Path())
    whole = folder / path.expanduser()
    return whole.parent.resolve() / whole.name if whole.name not in ("", "..") else whole.resolve()


def locate_source(path: Path, info: ValidationInfo) -> Path:
    """`path` as `locate` has it where something is there; else, if it reads as one, the hub id it is, as it stands."""
    here = locate(path, info)
    return path if is_hub_id(str(path)) and not here.exists() else here


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    low, high = bounds
    if not low < high:
        raise ValueError(f"[{low:g}, {high:g}] is the wrong way round: give [lowest, highest], for example [0, 1]")
    return bounds


def _plain_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"'{name}' cannot be a name: use letters, digits and . _ + - only")
    return name


def _known_kind(kind: str) -> str:
    try:
        return check_tagger_kind(kind)
    except InputError as error:  # pydantic collects ValueErrors only
        raise ValueError(str(error)) from None


Located = Annotated[Path, AfterValidator(locate)]
Sourced = Annotated[
    Path, AfterValidator(locate_source)
]  # relative where it is a hub id, which `merger.checkpoints.hub` finds
Finite = Annotated[float, Field(allow_inf_nan=False)]
Bounds = Annotated[tuple[Finite, Finite], AfterValidator(_ordered)]
Name = Annotated[str, AfterValidator(_plain_name)]
Threshold = Annotated[float, Field(gt=0, lt=1)]


class Settings(BaseModel):
    """What all parts of the configuration share: frozen, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class DonorSettings(Settings):
    """One donor. `bounds` are its weights' own; the name in messages and recipes is the file's unless given."""

    path: Sourced
    name: Name | None = None
    bounds: Bounds | None = None


class TaggerSettings(Settings):
    """A tagger's folder. `kind` chooses where a folder holds more than one; `threshold` goes before the common one."""

    path: Located
    kind: Annotated[str, AfterValidator(_known_kind)] | None = None
    threshold: Threshold | None = None


class VocabularySettings(Settings):
    """The tags asked for: a CSV file (`tag,category,group`), or the `top` K general tags of the tagger's own list."""

    path: Located | None = None
    top: Annotated[int, Field(ge=2)] | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.path is None) == (self.top is None):
            raise ValueError("give a CSV file, or `top: K` for the first K general tags of the tagger's own list")
        return self


class GradientSettings(Settings):
    """How the method `gradients` climbs.

    `steps` are planned: the rate falls to 0 with them, from `rate`, the most a weight moves in the first. Every weight
    begins at `start`. `fraction` is the share of the sampling steps, the last ones, that gradients go back through. `pull`
    and `negative_penalty` draw all weights, and those below 0, towards the base.
    """

    steps: Annotated[int, Field(ge=1)] = 60
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.06
    start: Finite = 0.1
    backprop_fraction: Annotated[float, Field(gt=0, le=1)] = 0.5
    eval_every: Annotated[int, Field(ge=1)] = 8
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    negative_penalty: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
