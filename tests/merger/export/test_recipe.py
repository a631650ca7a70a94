"""Recipes come back exactly, and nothing else is taken for one."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path
from typing import Any

import pytest

from merger.checkpoints.recipe_metadata import METADATA_KEY
from merger.errors import RecipeError
from merger.export.recipe import Recipe, RecipeSource

RECIPE = Recipe(
    base=RecipeSource("base", "/models/base.safetensors", "0" * 64),
    donors=(
        RecipeSource("wärm", "/models/w.safetensors", "1" * 64),
        RecipeSource("cool", "/models/c.safetensors", "2" * 64),
    ),
    granularity="block",
    weights={"IN00": {"wärm": 0.1, "cool": 1 / 3}, "OUT11": {"wärm": -1e-17}, "M00": {"cool": 0.0}},
)


@dataclass
class Opened:
    name: str
    path: Path
    sha256: str


def table(**changes: Any) -> str:
    return json.dumps(json.loads(RECIPE.to_json()) | changes)


def test_it_comes_back_exactly() -> None:
    back = Recipe.from_json(RECIPE.to_json())
    assert back == RECIPE
    assert list(back.weights) == list(RECIPE.weights)
    assert back.weights["IN00"]["cool"] == 1 / 3
    assert Recipe.from_metadata(RECIPE.to_metadata()) == RECIPE
    assert all(isinstance(value, str) for value in RECIPE.to_metadata().values())
    assert back.to_json() == RECIPE.to_json()


def test_it_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        RECIPE.dtype = "fp16"  # type: ignore[misc]


def test_it_notes_checkpoints() -> None:
    opened = [Opened("base", Path("b.safetensors"), "ab"), Opened("warm", Path("/w.safetensors"), "cd")]
    recipe = Recipe.of(opened[0], opened[1:], "stage", {"MID": {"warm": 0.5}})
    assert recipe.base == RecipeSource("base", str(Path("b.safetensors").absolute()), "ab")
    assert recipe.donors == (RecipeSource("warm", "/w.safetensors", "cd"),)
    assert (recipe.dtype, recipe.method, recipe.granularity) == ("base", "linear", "stage")


def test_the_donors_that_are_used() -> None:
    assert [donor.name for donor in RECIPE.used] == ["wärm", "cool"]
    idle = Recipe(RECIPE.base, RECIPE.donors, "block", {"M00": {"cool": 0.0}})
    assert idle.used == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[]", "expected a table"),
        ('{"base": {"name": "a", "name": "b"}}', "'name' is there twice"),
        (table(granularty="block"), "unknown key 'granularty'. Did you mean 'granularity'"),
        (json.dumps({"base": {}}), "'donors' is missing"),
        (table(base={"name": "b", "path": "p"}), "base: 'sha256' is missing"),
        (table(base={"name": "b", "path": "p", "sha256": 3}), "must be text"),
        (table(base={"name": "b", "path": "p", "sha256": "", "size": 3}), "unknown key 'size'"),
        (table(donors={}), "must be a list"),
        (table(weights=[]), "must be a list and 'weights' a table"),
        (table(weights={"M00": 3}), "weights of M00 must be a table"),
        (table(weights={"M00": {"cool": "1"}}), "must be a number"),
        (table(weights={"M00": {"cool": True}}), "must be a number"),
        (table(weights={"M00": {"cool": float("nan")}}), "is nan"),
        (table(weights={"M00": {"col": 1}}), "Did you mean 'cool'"),
        (table(dtype="fp17"), "dtype 'fp17' is unknown. Did you mean"),
        (table(method="cubic"), "method 'cubic' is unknown"),
        (table(granularity=3), "'granularity' must be text"),
        (table(donors=[vars(RECIPE.base)], weights={}), "names of their own"),
    ],
)
def test_anything_else_is_refused(text: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_json(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_without_a_recipe_says_so() -> None:
    with pytest.raises(RecipeError, match="not written by merger export"):
        Recipe.from_metadata({"format": "pt"})
    with pytest.raises(RecipeError):
        Recipe.from_metadata({METADATA_KEY: "x"})
