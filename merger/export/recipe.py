"""A recipe: everything needed to rebuild a blend bit for bit. Frozen; to and from JSON and safetensors metadata."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmark.hub_ids import id_of
from benchmark.reading import no_repeats
from merger.blend.prepared import minus_of, steps_of
from merger.checkpoints.recipe_metadata import METADATA_KEY
from merger.errors import RecipeError, did_you_mean
from merger.layers.channels import CHANNEL
from merger.layers.components import DENOISER, components_problem
from merger.layers.unet import BLOCK_NAMES, COMMUNITY, EARLIER, BlockNames
from merger.preparations.spec import Preparation, preparations
from merger.version import __version__
from merger.weights import Channels, Weight, Weights, by_channel, is_finite, matters

CHANNELS = "channels"
"""The key of a recipe in JSON under which a `WeightsFile` is."""

DTYPES = ("base", "fp16", "bf16", "fp32")
METHODS = ("linear",)


class SourceLike(Protocol):
    """What a recipe notes of a checkpoint. `merger.checkpoints.checkpoint.Checkpoint` has it."""

    @property
    def name(self) -> str:
        """What the weights call it."""

    @property
    def path(self) -> Path:
        """Where it lies."""

    @property
    def sha256(self) -> str:
        """SHA-256 of its bytes, hex."""


@dataclass(frozen=True)
class RecipeSource:
    """A checkpoint that a blend is made of: what the weights call it, where it lay, SHA-256 of its bytes (hex).

    hub: `owner/name@revision` if it came from the hub, else empty. minus: what a donor's difference is taken from, if
    not from the base. prepare: its preparations.
    """

    name: str
    path: str
    sha256: str
    hub: str = ""
    minus: RecipeSource | None = None
    prepare: tuple[Preparation, ...] = ()

    @classmethod
    def of(cls, source: SourceLike) -> RecipeSource:
        """What a recipe notes of a checkpoint. Hashes it."""
        where = source.path.absolute()
        minus = minus_of(source)
        noted = None if minus is None else cls.of(minus)
        return cls(source.name, str(where), source.sha256, id_of(where) or "", noted, steps_of(source))

    def to_json(self) -> dict[str, Any]:
        """As plain values; what is empty is left out, as earlier versions had no such keys."""
        table: dict[str, Any] = {"name": self.name, "path": self.path, "sha256": self.sha256}
        if self.hub:
            table["hub"] = self.hub
        if self.minus is not None:
            table["minus"] = self.minus.to_json()
        if self.prepare:
            table["prepare"] = [step.to_json() for step in self.prepare]
        return table


@dataclass(frozen=True)
class WeightsFile:
    """What a recipe in JSON says instead of weights by channel, which are in a file of their own.

    file: its name; empty in that file itself. sha256: of its bytes (hex). donors: those with a weight, in the order of
    the file's rows. `merger.export.recipe_weights` writes and reads such files.
    """

    file: str
    sha256: str
    donors: tuple[str, ...]

    @classmethod
    def in_json(cls, text: str) -> WeightsFile | None:
        """What a recipe says; None if it holds its weights itself. Raises RecipeError for what is no such table."""
        table = _parsed(text)
        if not isinstance(table, dict) or CHANNELS not in table:
            return None
        said = _exactly(table[CHANNELS], {"file", "sha256", "donors"}, f"recipe: '{CHANNELS}'")
        if not isinstance(said["donors"], list):
            raise RecipeError(f"recipe: '{CHANNELS}': 'donors' must be a list")
        names = [_text(name, f"recipe: '{CHANNELS}': a donor") for name in said["donors"]]
        file, sha256 = (_text(said[key], f"recipe: '{CHANNELS}': '{key}'") for key in ("file", "sha256"))
        if Path(file).name != file:
            raise RecipeError(f"recipe: '{CHANNELS}': '{file[:80]}' is no name of a file")
        return cls(file, sha256, tuple(names))


@dataclass(frozen=True)
class Recipe:
    """A blend, in writing.

    granularity: one of `merger.layers.grouping.GRANULARITIES`, or the table {pattern: layer} itself, in its order.
    weights: {layer: {donor name: weight}}; weights that are missing are 0; arrays at granularity `channel`. dtype:
    `base` (every tensor as the base file has it) or `fp16`, `bf16`, `fp32` for all floating tensors. method: `linear`.
    version: of this program. components: what is blended, some of `merger.layers.components.COMPONENTS`. clamp: whether
    values beyond the range of a tensor's type become its largest number, instead of infinite. block_names: whose names
    of a U-Net's blocks the weights have, for granularity `block`. Raises RecipeError for an unknown dtype, method,
    component or donor, and for a weight that is not finite.
    """

    base: RecipeSource
    donors: tuple[RecipeSource, ...]
    granularity: str | Mapping[str, str]
    weights: Weights
    dtype: str = "base"
    method: str = "linear"
    version: str = __version__
    components: tuple[str, ...] = (DENOISER,)
    clamp: bool = False
    block_names: BlockNames = COMMUNITY

    def __post_init__(self) -> None:
        if problem := components_problem(self.components):
            raise RecipeError(f"recipe: components: {problem}")
        for what, value, known in (
            ("dtype", self.dtype, DTYPES),
            ("method", self.method, METHODS),
            ("block_names", self.block_names, BLOCK_NAMES),
        ):
            if value not in known:
                raise RecipeError(f"recipe: {what} '{value}' is unknown.{did_you_mean(value, known)}")
        names = [donor.name for donor in self.donors]
        if len({self.base.name, *names}) != 1 + len(names):
            raise RecipeError(f"recipe: base and donors need names of their own, not {[self.base.name, *names]}")
        for layer, row in self.weights.items():
            for donor, weight in row.items():
                if donor not in names:
                    raise RecipeError(f"recipe: {layer} weighs '{donor}', not a donor.{did_you_mean(donor, names)}")
                if not is_finite(weight):
                    found = "not finite in every channel" if isinstance(weight, Channels) else weight
                    raise RecipeError(f"recipe: the weight of '{donor}' in {layer} is {found}")
                if isinstance(weight, Channels) and self.granularity != CHANNEL:
                    raise RecipeError(f"recipe: {layer} has weights by channel, which need granularity '{CHANNEL}'")

    @classmethod
    def of(
        cls,
        base: SourceLike,
        donors: Sequence[SourceLike],
        granularity: str | Mapping[str, str],
        weights: Weights,
        dtype: str = "base",
        components: Sequence[str] = (DENOISER,),
        block_names: BlockNames = COMMUNITY,
    ) -> Recipe:
        """The recipe of a blend of opened checkpoints; hashes their files, which takes a second or so a gigabyte."""
        noted = [RecipeSource.of(each) for each in (base, *donors)]
        rows = {layer: dict(row) for layer, row in weights.items()}
        if by_channel(rows):  # they are kept as float32, which blends are made with anyway
            rows = {layer: {donor: _float32(weight) for donor, weight in row.items()} for layer, row in rows.items()}
        of = {"components": tuple(components), "block_names": block_names}
        return cls(noted[0], tuple(noted[1:]), granularity, rows, dtype, **of)  # type: ignore[arg-type]

    @property
    def used(self) -> tuple[RecipeSource, ...]:
        """Donors with a weight other than 0 in any layer: those that a rebuild needs."""
        heavy = {donor for row in self.weights.values() for donor, weight in row.items() if matters(weight)}
        return tuple(donor for donor in self.donors if donor.name in heavy)

    def to_json(self, channels: WeightsFile | None = None) -> str:
        """One line of JSON, from which numbers are read back exactly.

        channels: where the weights are, for a recipe with weights by channel. Raises RecipeError if it is not said.
        """
        if by_channel(self.weights) and channels is None:
            raise RecipeError("recipe: weights by channel need a file of their own")
        table: dict[str, Any] = {
            "base": self.base.to_json(),
            "donors": [donor.to_json() for donor in self.donors],
            "granularity": self.granularity if isinstance(self.granularity, str) else dict(self.granularity),
            "weights": {} if channels else {layer: dict(row) for layer, row in self.weights.items()},
            "dtype": self.dtype,
            "method": self.method,
            "version": self.version,
        }
        if self.components != (DENOISER,):  # earlier versions blended the denoiser only, and had no such key
            table["components"] = list(self.components)
        if self.clamp:
            table["clamp"] = True
        if channels:
            table[CHANNELS] = asdict(channels)
        # A recipe of an earlier version has no such key, so a program of that version refuses a recipe that has it.
        if self.granularity == "block" and self.block_names != EARLIER:
            table["block_names"] = self.block_names
        return json.dumps(table, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, weights_by_channel: Weights | None = None) -> Recipe:
        """Read `to_json` back. Raises RecipeError for what is not JSON, missing, unknown or of the wrong type.

        weights_by_channel: the weights of a recipe whose weights are in a file of their own (`WeightsFile.in_json`).
        """
        table = _parsed(text)
        if isinstance(table, dict):
            if table.pop(CHANNELS, None) is not None and weights_by_channel is None:
                raise RecipeError("recipe: its weights by channel are in a file of their own")
            names = EARLIER if table.get("granularity") == "block" else COMMUNITY
            table = {"components": [DENOISER], "clamp": False, "block_names": names} | table
        table = _exactly(table, {field.name for field in fields(cls)}, "recipe")
        if not isinstance(table["donors"], list) or not isinstance(table["weights"], dict):
            raise RecipeError("recipe: 'donors' must be a list and 'weights' a table")
        for key in ("dtype", "method", "version", "block_names"):
            _text(table[key], f"recipe: '{key}'")
        if isinstance(table["granularity"], dict):
            for pattern, layer in table["granularity"].items():
                _text(layer, f"recipe: the layer of '{pattern}'")
        else:
            _text(table["granularity"], "recipe: 'granularity'")
        weights: Weights = {layer: _row(layer, row) for layer, row in table["weights"].items()}
        weights = weights if weights_by_channel is None else weights_by_channel
        donors = tuple(_source(donor, f"donor {i + 1}") for i, donor in enumerate(table["donors"]))
        if not isinstance(table["components"], list):
            raise RecipeError("recipe: 'components' must be a list")
        if not isinstance(table["clamp"], bool):
            raise RecipeError("recipe: 'clamp' must be true or false")
        read = {"base": _source(table["base"], "base"), "donors": donors, "weights": weights}
        return cls(**table | read | {"components": tuple(table["components"])})

    def to_metadata(self, channels: WeightsFile | None = None) -> dict[str, str]:
        """For the header of a safetensors file. channels: as in `to_json`."""
        return {METADATA_KEY: self.to_json(channels)}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], find: Callable[[WeightsFile], Weights] | None = None) -> Recipe:
        """Read the recipe in a file's metadata. Raises RecipeError if there is none.

        find: gives the weights that are in a file of their own.
        """
        if METADATA_KEY not in metadata:
            raise RecipeError(
                f"no recipe in the file's metadata ('{METADATA_KEY}'): it was not written by merger export"
            )
        text = metadata[METADATA_KEY]
        said = WeightsFile.in_json(text)
        return cls.from_json(text, find(said) if said and find else None)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=no_repeats)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"recipe: not JSON ({' '.join(str(error).split())[:120]})") from None


def _float32(weight: Weight) -> Weight:
    return weight if isinstance(weight, Channels) else float(np.float32(weight))


def _exactly(table: Any, known: set[str], where: str) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise RecipeError(f"{where}: expected a table, found {type(table).__name__}")
    for key in table:
        if key not in known:
            raise RecipeError(f"{where}: unknown key '{key}'.{did_you_mean(key, sorted(known))}")
    if missing := sorted(known - set(table)):
        raise RecipeError(f"{where}: '{missing[0]}' is missing")
    return table


def _source(value: Any, where: str) -> RecipeSource:
    named = {"hub": "", "minus": None, "prepare": []} | value if isinstance(value, dict) else value
    table = _exactly(named, {"name", "path", "sha256", "hub", "minus", "prepare"}, f"recipe: {where}")
    texts = {key: _text(table[key], f"recipe: {where}: '{key}'") for key in ("name", "path", "sha256", "hub")}
    minus = None if table["minus"] is None else _source(table["minus"], f"{where}: 'minus'")
    if minus is not None and (minus.minus is not None or minus.prepare):
        raise RecipeError(f"recipe: {where}: 'minus' is a checkpoint as it lies, and has neither 'minus' nor 'prepare'")
    return RecipeSource(**texts, minus=minus, prepare=steps_in(table["prepare"], minus is not None, f"recipe: {where}"))


def steps_in(written: Any, minus: bool, where: str) -> tuple[Preparation, ...]:
    """The preparations of a donor in a recipe. Raises RecipeError for what is none. minus: whether it has one."""
    if not isinstance(written, list):
        raise RecipeError(f"{where}: 'prepare' must be a list")
    try:
        return preparations(written, minus=minus)
    except ValueError as error:
        raise RecipeError(f"{where}: prepare: {error}") from None


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise RecipeError(f"{where} must be text, not {value!r}")
    return value


def _row(layer: str, row: Any) -> dict[str, Weight]:
    if not isinstance(row, dict):
        raise RecipeError(f"recipe: the weights of {layer} must be a table")
    for donor, weight in row.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise RecipeError(f"recipe: the weight of '{donor}' in {layer} must be a number, not {weight!r}")
    return {donor: as_number(weight, donor, layer) for donor, weight in row.items()}


def as_number(weight: float, donor: str, layer: str) -> float:
    """A weight out of JSON, which may be a whole number of any length. Raises RecipeError if it is too large."""
    try:
        return float(weight)
    except OverflowError:
        raise RecipeError(f"recipe: the weight of '{donor}' in {layer} is too large") from None
