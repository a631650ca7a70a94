"""Recipes written by hand: a JSON file in which paths are enough, and keys that are left out have their defaults.

    {"base": "models/base.safetensors",
     "donors": ["models/one.safetensors", {"path": "two.safetensors", "name": "two", "sha256": "..."}],
     "granularity": "block",
     "weights": {"*": {"one": 0.3}, "OUT*": {"one": 0.5, "two": 0.2}},
     "dtype": "fp16",
     "components": ["denoiser", "text_encoder"]}

Paths are relative to the file's own folder. A layer may be a pattern (`*`, `?`, `[...]`); later lines overwrite earlier
ones. A hash that is given must be the file's. What `Recipe.to_json` writes is such a file, too; if an earlier version
wrote it (it has a `version` and no `block_names`), its blocks are named as that version named them. So is the file of
weights beside a channel-wise blend (`merger.export.recipe_weights`), which holds its recipe.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from benchmark.hub_ids import is_hub_id
from benchmark.reading import NOT_JSON, no_repeats
from merger.blend.prepared import prepare
from merger.checkpoints.adapter import open_donor
from merger.checkpoints.checkpoint import Checkpoint, open_checkpoint
from merger.checkpoints.headers import read_header
from merger.checkpoints.hub import fetched
from merger.checkpoints.recipe_metadata import METADATA_KEY
from merger.checkpoints.text_encoders import with_text_encoders
from merger.checkpoints.weight_files import is_there
from merger.errors import RecipeError, did_you_mean
from merger.export.layout import changed_source
from merger.export.recipe import CHANNELS, METHODS, Recipe, RecipeSource, WeightsFile, as_number, steps_in
from merger.export.recipe_weights import read_weights
from merger.layers.components import DENOISER, TEXT, components_problem
from merger.layers.grouping import group
from merger.layers.unet import BLOCK_NAMES, COMMUNITY, EARLIER
from merger.weights import Weights

_KEYS = ("base", "donors", "granularity", "weights", "dtype", "method", "version", "components", "clamp", "block_names")
_SOURCE_KEYS = ("path", "name", "sha256", "hub")


def open_recipe(path: Path, *, allow_pickle: bool = False) -> tuple[Recipe, Checkpoint, list[Checkpoint]]:
    """Read a recipe file and open what it names: (recipe, base, donors).

    Raises RecipeError for a file that is not JSON, for unknown or missing keys and for changed sources, and
    CheckpointError for sources that cannot be opened; each in one line.
    """
    path = Path(path)
    table, by_channel = _read(path)
    folder = path.resolve().parent
    said = _source(table["base"], folder, f"{path}: base")
    base = open_checkpoint(said["path"], name=said.get("name"), allow_pickle=allow_pickle)
    _check(base, said)
    components = table.get("components", [DENOISER])
    if not isinstance(components, list) or (problem := components_problem(components)):
        raise RecipeError(f"{path}: components: {problem if isinstance(components, list) else 'must be a list'}")
    if TEXT in components:
        base = with_text_encoders(base)
    donors = []
    if not isinstance(table["donors"], list):
        raise RecipeError(f"{path}: 'donors' must be a list of paths")
    for number, entry in enumerate(table["donors"], 1):
        donors.append(_donor(entry, base, folder, f"{path}: donor {number}", allow_pickle))
    granularity = table.get("granularity", "block")
    if not isinstance(granularity, (str, dict)):
        raise RecipeError(f"{path}: 'granularity' must be a word or a table")
    block_names = table.get("block_names", EARLIER if "version" in table else COMMUNITY)
    if block_names not in BLOCK_NAMES:
        raise RecipeError(
            f"{path}: block_names '{block_names}' is unknown.{did_you_mean(str(block_names), BLOCK_NAMES)}"
        )
    layers = tuple(group(base.blended, granularity, block_names))
    weights = _weights(table["weights"], layers, str(path)) if by_channel is None else by_channel
    if table.get("method", METHODS[0]) not in METHODS:
        raise RecipeError(f"{path}: method '{table['method']}' is unknown; there is only {', '.join(METHODS)}")
    clamp = table.get("clamp", False)
    if not isinstance(clamp, bool):
        raise RecipeError(f"{path}: 'clamp' must be true or false")
    dtype = str(table.get("dtype", "base"))
    recipe = Recipe.of(base, donors, granularity, weights, dtype, components, block_names)
    return replace(recipe, clamp=clamp), base, donors


def _read(path: Path) -> tuple[dict[str, Any], Weights | None]:
    """(the recipe's table, its weights by channel if they are in a file of their own)."""
    if path.suffix == ".safetensors":
        text = read_header(path).metadata.get(METADATA_KEY, "")
        said = WeightsFile.in_json(text) if text else None
        if said is None or said.file:
            named = f": its weights are in '{said.file}'" if said else ""
            raise RecipeError(f"{path}: is no file of a recipe's weights by channel{named}")
        table = json.loads(text, object_pairs_hook=no_repeats)
        del table[CHANNELS]
        return _checked(table, path), read_weights(path, said.donors)
    try:
        table = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=no_repeats)
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file") from None
    except NOT_JSON as error:
        raise RecipeError(f"{path}: cannot be read as JSON ({' '.join(str(error).split())[:120]})") from None
    return _checked(table, path), None


def _checked(table: Any, path: Path) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise RecipeError(f"{path}: should hold a table with base, donors and weights")
    for key in table:
        if key not in _KEYS:
            raise RecipeError(f"{path}: unknown key '{key}'.{did_you_mean(key, _KEYS)}")
    if missing := [key for key in ("base", "donors", "weights") if key not in table]:
        raise RecipeError(f"{path}: '{missing[0]}' is missing")
    return table


def _source(value: Any, folder: Path, where: str) -> dict[str, Any]:
    """{"path", and "name", "sha256" if given}: the path absolute, for a hub id its folder in the hub's cache."""
    table = {"path": value} if isinstance(value, str) else value
    if not isinstance(table, dict) or not all(isinstance(text, str) for text in table.values()) or "path" not in table:
        raise RecipeError(f"{where}: must be a path, or a table with 'path', 'name' and 'sha256'")
    for key in table:
        if key not in _SOURCE_KEYS:
            raise RecipeError(f"{where}: unknown key '{key}'.{did_you_mean(key, _SOURCE_KEYS)}")
    try:
        here = folder / Path(table["path"]).expanduser()
        here.is_dir()
    except (RuntimeError, OSError, ValueError) as error:  # `~name` of nobody, a name that is too long, a NUL
        raise RecipeError(f"{where}: {table['path'][:80]!r}: {str(error)[:80]}") from None
    named = table.get("hub") or (table["path"] if is_hub_id(table["path"]) else "")
    if is_there(here) or not named:
        return table | {"path": here}
    return {"name": named.partition("@")[0].rpartition("/")[2], **table, "path": fetched(named)}


def _donor(entry: Any, base: Checkpoint, folder: Path, where: str, allow_pickle: bool) -> Checkpoint:
    """A donor as a recipe says it, with what its difference is taken from and how it is prepared."""
    more: dict[str, Any] = {}
    if isinstance(entry, dict):
        more = {key: entry[key] for key in ("minus", "prepare") if key in entry}
        entry = {key: entry[key] for key in entry if key not in more}

    def opened(value: Any, place: str) -> Checkpoint:
        said = _source(value, folder, place)
        found = open_donor(said["path"], base, name=said.get("name"), allow_pickle=allow_pickle)
        _check(found, said)
        return found

    donor = opened(entry, where)
    minus = opened(more["minus"], f"{where}: minus") if more.get("minus") is not None else None
    return prepare(donor, base, minus, steps_in(more.get("prepare", []), minus is not None, where))


def _check(opened: Checkpoint, said: Mapping[str, Any]) -> None:
    if said.get("sha256") not in (None, "", opened.sha256):
        raise RecipeError(changed_source(opened, RecipeSource(opened.name, str(opened.path), said["sha256"])))


def _weights(table: Any, layers: tuple[str, ...], where: str) -> dict[str, dict[str, float]]:
    """{layer: {donor: weight}}, patterns resolved. Raises RecipeError for a pattern that matches no layer."""
    if not isinstance(table, dict):
        raise RecipeError(f"{where}: 'weights' must be a table {{layer: {{donor: weight}}}}")
    weights: dict[str, dict[str, float]] = {}
    for pattern, row in table.items():
        if not isinstance(row, dict):
            raise RecipeError(f"{where}: the weights of '{pattern}' must be a table {{donor: weight}}")
        for donor, weight in row.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float):
                raise RecipeError(f"{where}: the weight of '{donor}' in '{pattern}' must be a number, not {weight!r}")
        fitting = [pattern] if pattern in layers else [layer for layer in layers if fnmatchcase(layer, pattern)]
        if not fitting:
            raise RecipeError(f"{where}: '{pattern}' fits no layer.{did_you_mean(pattern, layers)}")
        for layer in fitting:
            weights.setdefault(layer, {}).update(
                {donor: as_number(weight, donor, pattern) for donor, weight in row.items()}
            )
    return weights
