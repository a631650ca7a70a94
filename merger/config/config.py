"""The search's configuration: one frozen value, checked once, written beside every result.

A configuration is a YAML file; `--set key=value` on the command line wins over the file. Paths in it are relative to
the file, so that a search can be started from anywhere. `load_config` is the only way in: everything it returns has
been checked as far as it can be without opening the files named. All paths are absolute, but for hub ids, which stay as
they are (`merger.checkpoints.hub`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from benchmark.errors import did_you_mean
from merger.config.parts import (
    Bounds,
    DonorSettings,
    Finite,
    GradientSettings,
    Name,
    Settings,
    Sourced,
    TaggerSettings,
    Threshold,
    VocabularySettings,
    locate,
)
from merger.errors import ConfigError
from merger.export.recipe import DENOISER, TEXT, components_problem
from merger.layers.rules import check_rules, read_rules
from merger.search.registry import CHOOSERS, no_method, sampler_names

Granularity = Literal["stage", "block", "module", "tensor"] | dict[str, str]  # a table: pattern -> layer
BaselineKind = Literal["uniform", "best_uniform", "greedy_soup"]
ObjectiveKind = Literal["accuracy", "probability", "log_probability"]


class Config(Settings):
    """A search, whole. Numbers of prompts count images; sizes are in pixels; `time_limit` is in seconds of trials.
    `clip_skip` counts CLIP's layers from the last, which is 1, as web UIs do.

    `storage` is the URL of the study's database; without one it is a SQLite file in the run folder.
    """

    name: Name | None = None
    base: Sourced
    base_name: Name | None = None
    donors: Annotated[tuple[DonorSettings, ...], Field(min_length=1)]
    pipeline: Sourced | None = None
    vae: Sourced | None = None
    text_encoders_from: Sourced | None = None
    allow_pickle: bool = False

    components: tuple[str, ...] = (DENOISER,)
    granularity: Granularity = "block"
    bounds: Bounds = (-0.5, 1.5)
    frozen: Mapping[str, Finite] = {}
    tied: tuple[tuple[str, ...], ...] = ()

    tagger: TaggerSettings
    judge: TaggerSettings | None = None
    threshold: Threshold = 0.35
    vocabulary: VocabularySettings
    tags_per_prompt: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (4, 8)
    template: str = "{tags}"
    negative_prompt: str = ""
    prompts: Annotated[int, Field(ge=2)] = 64
    validation_prompts: Annotated[int, Field(ge=2)] = 128
    test_prompts: Annotated[int, Field(ge=2)] = 256

    steps: Annotated[int, Field(ge=1)] = 20
    sampler: str = "default"
    guidance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5.0
    clip_skip: Annotated[int, Field(ge=1, le=11)] = 1
    size: tuple[Annotated[int, Field(ge=8)], Annotated[int, Field(ge=8)]] = (512, 512)
    seed: Annotated[int, Field(ge=0)] = 0

    baselines: tuple[BaselineKind, ...] = ("uniform", "best_uniform", "greedy_soup")
    method: str = "auto"
    gradient: GradientSettings = GradientSettings()
    pruning: bool = False
    objective: ObjectiveKind = "probability"
    trials: Annotated[int, Field(ge=1)] = 200
    patience: Annotated[int, Field(ge=1)] = 60
    time_limit: Annotated[float, Field(gt=0)] | None = None
    storage: str | None = None

    batch_size: Annotated[int, Field(ge=1)] | None = None
    device: str = "auto"
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    threads: Annotated[int, Field(ge=1)] | None = None

    @field_validator("granularity", mode="before")
    @classmethod
    def _layers_of_a_table(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, str) and value.endswith((".yaml", ".yml")):
            return read_rules(locate(Path(value), info))
        return check_rules(value, "granularity") if isinstance(value, dict) else value

    @field_validator("tagger", "judge", mode="before")
    @classmethod
    def _tagger_is_a_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, (str, Path)) else value

    @field_validator("vocabulary", mode="before")
    @classmethod
    def _vocabulary_is_a_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, (str, Path)) else value

    @field_validator("donors", mode="before")
    @classmethod
    def _donor_is_a_path(cls, value: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            return value
        return [{"path": item} if isinstance(item, (str, Path)) else item for item in value]

    @field_validator("components")
    @classmethod
    def _known_components(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if problem := components_problem(value):
            raise ValueError(problem)
        return tuple(sorted(value))  # however they are written, it is the same search

    @field_validator("frozen", mode="before")
    @classmethod
    def _frozen_at_the_base(cls, value: Any) -> Any:
        if value is None:
            return {}
        return dict.fromkeys(value, 0.0) if isinstance(value, (list, tuple)) else value

    @field_validator("tags_per_prompt", "size", mode="before")
    @classmethod
    def _one_number_is_two(cls, value: Any) -> Any:
        return (value, value) if isinstance(value, int) else value

    @field_validator("tags_per_prompt")
    @classmethod
    def _range(cls, value: tuple[int, int]) -> tuple[int, int]:
        if value[0] > value[1]:
            raise ValueError(f"[{value[0]}, {value[1]}] is the wrong way round: give [fewest, most]")
        return value

    @field_validator("size")
    @classmethod
    def _whole_latents(cls, value: tuple[int, int]) -> tuple[int, int]:
        if value[0] % 8 or value[1] % 8:
            raise ValueError(f"{value[0]} x {value[1]} pixels will not do: width and height must be multiples of 8")
        return value

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        if value not in (*CHOOSERS, *sampler_names()):
            raise ValueError(no_method(value))
        return value

    @field_validator("template")
    @classmethod
    def _holds_tags(cls, value: str) -> str:
        if "{tags}" not in value:
            raise ValueError(f"'{value}' has no place for the tags: write {{tags}} where they go")
        return value

    @model_validator(mode="after")
    def _distinct_names(self) -> Self:
        names = [self.named_base, *self.donor_names]
        if "uniform" in names:
            raise ValueError("no checkpoint may be called 'uniform', which is the average of all: give it a `name:`")
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"two checkpoints are called '{name}': give one a `name:` (or the base a `base_name:`)"
                )
        return self

    @model_validator(mode="after")
    def _one_text_encoder(self) -> Self:
        if self.blends_text and self.text_encoders_from is not None:
            raise ValueError(
                "text_encoders_from: another checkpoint's text encoders cannot be blended: leave it out, or "
                "'text_encoder' out of the components"
            )
        return self

    @property
    def blends_text(self) -> bool:
        """Whether the text encoders are blended too."""
        return TEXT in self.components

    @property
    def named_base(self) -> str:
        """The base's name: its own, or its file's."""
        return self.base_name or _name_of(self.base)

    @property
    def donor_names(self) -> tuple[str, ...]:
        """The donors' names, in order."""
        return tuple(donor.name or _name_of(donor.path) for donor in self.donors)

    @property
    def tagger_threshold(self) -> float:
        """The probability from which the search's tagger has found a tag."""
        return self.tagger.threshold or self.threshold

    @property
    def judge_threshold(self) -> float:
        """The probability from which the judge has found a tag."""
        return (self.judge.threshold if self.judge else None) or self.threshold


def _name_of(path: Path) -> str:
    """A checkpoint's name from its path or hub id: what a parameter, a file or a table may be called after it."""
    named = path.name.partition("@")[0] if not path.is_absolute() else path.name
    stem = path.stem if path.suffix == ".safetensors" else named
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", stem).lstrip("._+-") or "checkpoint"


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration in the YAML file `path`, with `overrides` (`key=value`, `donors.0.bounds=[0, 1]`) put over it.

    Relative paths, also those in overrides, start at the file's folder. Raises `ConfigError` with one line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: should hold `key: value` lines, starting with `base:` and `donors:`")
    for override in overrides:
        _override(raw, override)
    return parse_config(raw, folder=path.resolve().parent, where=str(path))


def parse_config(raw: Mapping[str, Any], *, folder: Path, where: str) -> Config:
    """`raw` checked, its relative paths starting at `folder`; `where` names it in the `ConfigError`'s line."""
    try:
        return Config.model_validate(dict(raw), context={"folder": folder})
    except ValidationError as error:
        raise ConfigError(f"{where}: {_one_line(error)}") from None


def dump_config(config: Config) -> str:
    """`config` as YAML that `load_config` reads back to an equal value, wherever the file lies."""
    return yaml.safe_dump(config.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)


def _override(raw: dict[str, Any], override: str) -> None:
    """Puts `a.b=value` into `raw`, in place; a number in the dotted key is a place in a list."""
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {override}: should be key=value, for example --set steps=12")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: '{text}' is not a YAML value") from None
    here: Any = raw
    for depth, key in enumerate(keys):
        place: Any = int(key) if isinstance(here, list) and key.isdigit() else key
        if isinstance(here, list) and not (isinstance(place, int) and place < len(here)):
            raise ConfigError(f"--set {override}: '{'.'.join(keys[:depth])}' has {len(here)} entries, counted from 0")
        if depth == len(keys) - 1:
            here[place] = value
            return
        below = here[place] if isinstance(here, list) else here.get(place)
        if not isinstance(below, (dict, list)):  # a path given short (`tagger: folder`) becomes its long form
            below = {} if below is None else {"path": below}
            here[place] = below
        here = below


def _one_line(error: ValidationError) -> str:
    """The first of pydantic's complaints in this program's words, and how many more there are."""
    problems = error.errors(include_url=False, include_context=True)
    unknown = [problem for problem in problems if problem["type"] == "extra_forbidden"]
    first = (unknown or problems)[0]  # a misspelt key also leaves one missing: the misspelling is the news
    *above, last = [str(part) for part in first["loc"]] or [""]
    where = ".".join([*above, last])
    if first["type"] == "extra_forbidden":
        line = f"'{where}' is not a setting.{did_you_mean(last, _known(above))}"
    elif first["type"] == "missing":
        line = f"'{where}' is missing"
    else:
        message = first["msg"].removeprefix("Value error, ")
        line = f"{where}: {message}" if where else message
    more = len(problems) - 1
    return f"{line} (and {more} more problem{'s' if more > 1 else ''})" if more and not unknown else line


def _known(above: Sequence[str]) -> tuple[str, ...]:
    """The settings there are at the place `above`."""
    parts: dict[str, type[Settings]] = {
        "donors": DonorSettings,
        "tagger": TaggerSettings,
        "judge": TaggerSettings,
        "vocabulary": VocabularySettings,
        "gradient": GradientSettings,
    }
    return tuple((parts.get(above[0], Config) if above else Config).model_fields)
