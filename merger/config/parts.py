"""The parts of a configuration and the types of its values: each is checked by itself, without opening a file.

`merger.config.config` puts the parts together. Every field has a description, from which the reference page is written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from benchmark.errors import InputError
from benchmark.hub_ids import is_hub_id
from benchmark.taggers.registry import check_tagger_kind
from benchmark.writing import there
from merger.layers.rules import check_rules, read_rules
from merger.preparations.spec import preparation, preparations

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


def locate(path: Path, info: ValidationInfo) -> Path:
    """`path` as an absolute path. A relative one starts at the folder given as the validation's context.

    A symbolic link at its end stays a link: the hub's cache stores files under names without an ending and links to
    them.
    """
    folder = (info.context or {}).get("folder", Path())
    if any(letter < " " for letter in str(path)):
        raise ValueError("a path holds a line break or a tab: in YAML, put a path with \\ in single quotes")
    try:
        whole = folder / path.expanduser()
    except RuntimeError:  # of ~NAME
        raise ValueError(f"there is no user as in '{path}'") from None
    return whole.parent.resolve() / whole.name if whole.name not in ("", "..") else whole.resolve()


def locate_source(path: Path, info: ValidationInfo) -> Path:
    """`path` as `locate` returns it, or unchanged if it reads as a hub id and no file or folder is there."""
    here = locate(path, info)
    return path if is_hub_id(str(path)) and not there(here) else here


def _database(url: str, info: ValidationInfo) -> str:
    """A database's URL, with an absolute path if it is that of a file."""
    from merger.search.urls import located, parsed, sqlite_file

    try:
        found = parsed(url)
    except InputError as error:  # pydantic collects ValueErrors only
        raise ValueError(str(error).removeprefix("storage ")) from None
    if found.get_backend_name() == "sqlite" and sqlite_file(found) is None:
        raise ValueError("a study in memory would be lost: name a file, for example sqlite:///study.db")
    return located(url, (info.context or {}).get("folder", Path()).absolute())


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    low, high = bounds
    if not low < high:
        raise ValueError(f"[{low:g}, {high:g}] is the wrong way round: give [lowest, highest], for example [0, 1]")
    return bounds


def _plain_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"'{name}' cannot be a name: use letters, digits and . _ + - only")
    return name


def _path_alone(value: Any) -> Any:
    """The short form of a donor, tagger or vocabulary: its path alone."""
    return {"path": value} if isinstance(value, (str, Path)) else value


def _one_number_is_two(value: Any) -> Any:
    return (value, value) if isinstance(value, int) else value


def _rising(value: tuple[int, int]) -> tuple[int, int]:
    if value[0] > value[1]:
        raise ValueError(f"[{value[0]}, {value[1]}] is the wrong way round: give [fewest, most]")
    return value


def _multiples_of_8(value: tuple[int, int]) -> tuple[int, int]:
    if value[0] % 8 or value[1] % 8:
        raise ValueError(f"{value[0]} x {value[1]} pixels will not do: width and height must be multiples of 8")
    return value


_UNITS = {"MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}
_MEMORY = re.compile(rf"(\d+(?:\.\d+)?) ?({'|'.join(_UNITS)})")


def _amount_of_memory(value: Any) -> Any:
    if isinstance(value, str) and (found := _MEMORY.fullmatch(value)) and float(found[1]) > 0:
        return value
    raise ValueError(f"'{value!s:.40}' is no amount of memory: write a number and its unit, for example 12GB or 900MB")


def bytes_of(amount: str) -> int:
    """`12GB` in bytes; GB and MB are decimal, GiB and MiB binary."""
    found = _MEMORY.fullmatch(amount)
    assert found is not None
    return int(float(found[1]) * _UNITS[found[2]])


def _holds_tags(value: str) -> str:
    if "{tags}" not in value:
        raise ValueError(f"'{value}' has no place for the tags: write {{tags}} where they go")
    return value


def _table_of_layers(value: Any, info: ValidationInfo) -> Any:
    try:
        if isinstance(value, str) and value.endswith((".yaml", ".yml")):
            return read_rules(locate(Path(value), info))
        return check_rules(value, "the table") if isinstance(value, dict) else value
    except InputError as error:  # pydantic collects ValueErrors only
        raise ValueError(str(error)) from None


def _frozen_at_the_base(value: Any) -> Any:
    """The short form of frozen layers: a list of layers keeps them at the base."""
    if value is None:
        return {}
    if not isinstance(value, (list, tuple)):
        return value
    for layer in value:
        if not isinstance(layer, str):
            raise ValueError(f"'{layer!s:.40}' is no name of a layer: give a list of names, or a table of weights")
    return dict.fromkeys(value, 0.0)


def _pair_or_table(value: Any) -> str:
    return "table" if isinstance(value, Mapping) else "pair"


def _holds_truth_value(value: Any, *, tables: bool) -> bool:
    """Whether true or false stands in a value, or in the lists in it. tables: whether to look into tables too."""
    if isinstance(value, (list, tuple)):
        return any(_holds_truth_value(part, tables=tables) for part in value)
    if isinstance(value, Mapping):
        return tables and any(_holds_truth_value(part, tables=tables) for pair in value.items() for part in pair)
    return isinstance(value, bool)


def _holds_parts(annotation: Any) -> bool:
    """Whether a type is, or is made of, parts of the configuration, which check their own values."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return True
    return any(_holds_parts(inner) for inner in get_args(annotation))


def _preparations(value: Any) -> Any:
    if not isinstance(value, (list, tuple)):
        raise ValueError("give a list of preparations, for example [{trim: {density: 0.2}}, {rank: 64}]")
    return tuple(preparation(each).to_json() for each in value)


def _known_kind(kind: str) -> str:
    try:
        return check_tagger_kind(kind)
    except InputError as error:  # pydantic collects ValueErrors only
        raise ValueError(str(error)) from None


Located = Annotated[Path, AfterValidator(locate)]
Sourced = Annotated[Path, AfterValidator(locate_source)]
"""A path or a hub id. Only a hub id stays relative; `merger.checkpoints.hub` finds its folder."""

Storage = Annotated[str, AfterValidator(_database)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
"""A number of at least 1."""

PromptCount = Annotated[int, Field(ge=2, le=100_000)]
"""A number of prompts. One prompt alone has no standard error."""

Pair = Annotated[tuple[Finite, Finite], AfterValidator(_ordered)]
BRANCHES = ("pair", "table")
"""What the two forms of bounds are called where pydantic names a place."""

Bounds = Annotated[
    Annotated[Pair, Tag("pair")] | Annotated[dict[str, Pair], Tag("table")], Discriminator(_pair_or_table)
]
"""[lowest, highest] of all layers, or a table {layer or pattern: [lowest, highest]}."""

Name = Annotated[str, AfterValidator(_plain_name)]
Threshold = Annotated[float, Field(gt=0, lt=1)]
TagCounts = Annotated[tuple[Count, Count], BeforeValidator(_one_number_is_two), AfterValidator(_rising)]
ImageSize = Annotated[
    tuple[Annotated[int, Field(ge=8, le=16384)], Annotated[int, Field(ge=8, le=16384)]],
    BeforeValidator(_one_number_is_two),
    AfterValidator(_multiples_of_8),
]
AmountOfMemory = Annotated[str, BeforeValidator(_amount_of_memory)]
"""`12GB`, `900MB`, `11.5GiB`."""

Template = Annotated[str, AfterValidator(_holds_tags)]
TableOfLayers = BeforeValidator(_table_of_layers)
FrozenAtTheBase = BeforeValidator(_frozen_at_the_base)


class Settings(BaseModel):
    """What all parts of the configuration share: they are frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuses `yes`, `no`, `on`, `off` where a number or a text belongs: pydantic would take them for 1 and 0."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        if annotation is bool or not _holds_truth_value(value, tables=not _holds_parts(annotation)):
            return value
        raise ValueError(
            "yes, no, on, off, true and false are truth values in YAML: put them in quotes if meant as text"
        )


class DonorSettings(Settings):
    """One donor."""

    path: Sourced = Field(description="The checkpoint or adapter (LoRA and others): a file, a folder or a hub id.")
    name: Name | None = Field(
        default=None, description="What weights, tables and recipes call the donor. Without one it is the file's name."
    )
    minus: Sourced | None = Field(
        default=None,
        description="What the donor's difference is taken from, instead of the base: the checkpoint that it was "
        "trained from. The blend is then base + weight x (donor - minus), known as add difference.",
    )
    prepare: Annotated[tuple[Mapping[str, Mapping[str, int | float]], ...], BeforeValidator(_preparations)] = Field(
        default=(),
        description="How the difference is prepared before it is weighed: a list such as `[{trim: {density: 0.2}}, "
        "{rank: 64}]`, one after another.",
    )
    bounds: Bounds | None = Field(
        default=None,
        description="Lowest and highest weight of this donor, or a table of them by layer. It overrides the common "
        "`bounds`.",
    )

    @model_validator(mode="after")
    def _minus_is_given(self) -> Self:
        preparations(self.prepare, minus=self.minus is not None)
        return self


class TaggerSettings(Settings):
    """A tagger."""

    path: Located = Field(description="The folder of the tagger's files.")
    kind: Annotated[str, AfterValidator(_known_kind)] | None = Field(
        default=None, description="The tagger's format. Needed only if the folder holds more than one."
    )
    threshold: Threshold | None = Field(
        default=None,
        description="The probability from which this tagger finds a tag. It overrides the common `threshold`.",
    )


class VocabularySettings(Settings):
    """The tags that prompts ask for."""

    path: Located | None = Field(default=None, description="A CSV file with the columns `tag,category,group`.")
    top: Annotated[int, Field(ge=2)] | None = Field(
        default=None, description="Use the first K general tags of the tagger's own list, without sexual ones."
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.path is None) == (self.top is None):
            raise ValueError("give a CSV file, or `top: K` for the first K general tags of the tagger's own list")
        return self


class GradientSettings(Settings):
    """How the gradient search works: Adam on the blend weights, with a learning rate that is held and falls to 0."""

    steps: Count = Field(
        default=60,
        description="Number of gradient steps. The search ends when they are taken; more steps find more, at the price "
        "of their time.",
    )
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        default=0.06,
        description="The most that a weight moves in the first step. The rate is held, and falls to 0 in the end. "
        "Adam divides gradients by their size, so one rate suits every tagger and model.",
    )
    decay: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.25,
        description="Share of the steps, counted from the last, over which the learning rate falls to 0, as half a "
        "cosine. A plateau, a limit or Ctrl-C lets it fall earlier, and a search that is continued goes on from before "
        "that. 1 is a rate that falls from the first step on; such a search ends without a decay of its own.",
    )
    eps: NotNegative = Field(
        default=0.3,
        description="Gradients below this share of the root mean square of all are not scaled up to a full step. With "
        "more, weights that matter little stay closer to their start.",
    )
    searches: Count = Field(
        default=1,
        description="Number of gradient searches, one after another, each with prompts of its own. The mean of the "
        "weights that they end with is a trial, and so is that mean times 1.15, 1.3, ... as long as the score rises. "
        "`steps` are those of each search.",
    )
    start: Finite = Field(
        default=0.1,
        description="The weight that every layer and donor starts with: near the base, where all donors matter.",
    )
    backprop_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.25,
        description="Share of the sampling steps that gradients pass through. A quarter of them find as much as half, "
        "in less time.",
    )
    backprop_steps: Literal["last", "spread"] = Field(
        default="spread",
        description="Which sampling steps these are: the last ones, or steps at equal distances up to the last one.",
    )
    chain: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0,
        description="Share of the gradient that passes from a sampling step into the step before it. 1 is the whole "
        "gradient of the image. 0 gives each step a gradient of its own.",
    )
    eval_every: Count = Field(
        default=8,
        description="Number of steps between two evaluations of the current blend on the fixed search prompts.",
    )
    weight_decay: NotNegative = Field(
        default=0.0,
        description="Share of its value that a weight loses per step, times the learning rate: pulls the blend towards "
        "the base. Off by default.",
    )
    negative_penalty: NotNegative = Field(
        default=0.0, description="The same pull, in addition, for weights below 0. Off by default."
    )

    @model_validator(mode="after")
    def _rate_is_held(self) -> GradientSettings:
        if self.searches > 1 and (round(self.decay * self.steps) >= self.steps or self.steps < 3):
            raise ValueError("several 'searches' need a learning rate that is held: a smaller 'decay', or more 'steps'")
        return self


class KeepSettings(Settings):
    """What a blend must keep of the base: floors below it. Off unless one is given."""

    tag: NotNegative | None = Field(
        default=None,
        description="How far the mean log probability of a tag may fall below the base's. 0.02 lets a probability fall "
        "by about 2 % of itself. Without it tags have no floor.",
    )
    category: NotNegative | None = Field(
        default=None, description="The same for the tags of a category together. Without it categories have no floor."
    )
    strength: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        default=4.0,
        description="How much the gradient search weighs what is below a floor, against the score. Black-box searches "
        "do not use it: they rank blends below a floor behind all others.",
    )

    @model_validator(mode="after")
    def _strength_of_a_floor(self) -> KeepSettings:
        if self.tag is None and self.category is None and self.strength != type(self).model_fields["strength"].default:
            raise ValueError("'strength' does nothing without a floor: give 'tag' or 'category', too")
        return self


def name_of(path: Path) -> str:
    """A checkpoint's name from its path or hub id, made of characters that parameters, files and tables allow."""
    named = path.name.partition("@")[0] if not path.is_absolute() else path.name
    stem = path.stem if path.suffix == ".safetensors" else named
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", stem).lstrip("._+-") or "checkpoint"


PathAlone = BeforeValidator(_path_alone)
Donor = Annotated[DonorSettings, PathAlone]
Tagger = Annotated[TaggerSettings, PathAlone]
Vocabulary = Annotated[VocabularySettings, PathAlone]
