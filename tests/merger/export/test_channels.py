"""Blends with a weight for each channel: in files of every layout, with their recipe's weights beside them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from merger.app.cli import main
from merger.blend.arithmetic import blend
from merger.blend.differences import Difference
from merger.checkpoints.checkpoint import Checkpoint, open_checkpoint
from merger.checkpoints.headers import read_header
from merger.checkpoints.inspect import inspect_files
from merger.checkpoints.recipe_metadata import METADATA_KEY
from merger.checkpoints.text_encoders import with_text_encoders
from merger.errors import RecipeError, WriteError
from merger.export import write
from merger.export.forms import ExportOptions, export_as
from merger.export.mecha import mecha_text
from merger.export.recipe import Recipe
from merger.export.recipe_files import open_recipe
from merger.export.recipe_weights import read_weights
from merger.export.write import export, verify
from merger.layers.channels import channels_of
from merger.layers.components import COMPONENTS, DENOISER
from merger.layers.grouping import group
from merger.weights import Channels, Weight, Weights
from tests.merger.text_models import make_family


def read_recipe(path: Path) -> Recipe:
    """The recipe in a file of weights by channel, with these weights."""
    return Recipe.from_metadata(read_header(path).metadata, lambda said: read_weights(path, said.donors))


def drawn(base: Checkpoint, donors: list[Checkpoint]) -> dict[str, dict[str, Weight]]:
    """Weights for all tensors; some channels have 0 or 1."""
    draw = np.random.default_rng(0)
    weights: dict[str, dict[str, Weight]] = {}
    for name, info in base.blended.items():
        rows = channels_of(name, info.shape)
        values = draw.choice([0.0, 1.0, 0.3, -0.4, 0.75], size=(len(donors), rows)).astype(np.float32)
        weights[name] = {
            donor.name: Channels(own) if rows > 1 else float(own[0]) for donor, own in zip(donors, values, strict=True)
        }
    return weights


def check(file: Path, recipe: Recipe, base: Checkpoint, donors: list[Checkpoint]) -> None:
    """Every blended tensor of the file is the blend, read under its own name; some rows, one after the other."""
    made = open_checkpoint(file)
    made = with_text_encoders(made) if base.text else made
    for name, info in base.blended.items():
        row = recipe.weights[name]
        whole = [base.read(name), *(donor.read(name) for donor in donors)]
        rows = channels_of(name, info.shape)
        for place in sorted({0, rows // 3, rows // 2, rows - 1}):
            numbers = [
                float(weight.values[place]) if isinstance(weight, Channels) else weight
                for weight in (row[donor.name] for donor in donors)
            ]
            here = place if rows > 1 else slice(None)
            mine, *others = (tensor[here].reshape(-1) for tensor in whole)
            wanted = blend(mine, [Difference(other) for other in others], numbers)
            assert torch.equal(made.read(name)[here].reshape(-1), wanted), (name, place)


@pytest.fixture(scope="module")
def sources(tiny_family: dict[str, Path]) -> list[Checkpoint]:
    return [open_checkpoint(tiny_family[name]) for name in ("base", "warm", "cool")]


@pytest.fixture(scope="module")
def recipe(sources: list[Checkpoint]) -> Recipe:
    base, *donors = sources
    return Recipe.of(base, donors, "channel", drawn(base, donors))


@pytest.fixture(scope="module")
def blended(sources: list[Checkpoint], recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base, *donors = sources
    return export(recipe, tmp_path_factory.mktemp("blend") / "best.safetensors", base=base, donors=donors)


def test_a_file_is_the_blend_and_names_the_weights_beside_it(
    sources: list[Checkpoint], recipe: Recipe, blended: Path
) -> None:
    base, *donors = sources
    check(blended, recipe, base, donors)
    found = verify(blended)
    assert found.ok and found.recipe == recipe
    weights = blended.with_name("best.recipe.safetensors")
    said = json.loads(read_header(blended).metadata[METADATA_KEY])
    assert said["channels"]["file"] == weights.name and said["weights"] == {}
    assert said["channels"]["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert int.from_bytes(blended.read_bytes()[:8], "little") < 1 << 20
    assert read_recipe(weights) == recipe
    origin = inspect_files([blended])["files"][0]["recipe"]
    assert "warm" in json.dumps(origin) and "cool" in json.dumps(origin)


def test_a_fused_key_is_blended_row_by_row(sd3_family: dict[str, Path], tmp_path: Path) -> None:
    base, *donors = (open_checkpoint(sd3_family[name]) for name in ("base", "one", "two"))
    recipe = Recipe.of(base, donors, "channel", drawn(base, donors))
    file = export(recipe, tmp_path / "x.safetensors", base=base, donors=donors)
    check(file, recipe, base, donors)
    assert verify(file).ok


def test_a_turned_key_is_blended_row_by_row_of_the_networks_own_shape(
    tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    family = make_family("sdxl", tmp_path_factory.mktemp("sdxl"), tiny_pipeline_folder / "tokenizer")
    base, *donors = (with_text_encoders(open_checkpoint(family.files[name])) for name in ("base", "warm", "cool"))
    assert any(info.turned for info in base.blended.values())
    recipe = Recipe.of(base, donors, "channel", drawn(base, donors), components=COMPONENTS)
    file = export(recipe, tmp_path / "x.safetensors", base=base, donors=donors)
    check(file, recipe, base, donors)
    assert verify(file).ok


def test_other_dtypes_and_forms_have_their_weights_beside_them(
    sources: list[Checkpoint], recipe: Recipe, tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    base, *donors = sources
    for number, how in enumerate((ExportOptions("fp32"), ExportOptions("bf16", denoiser_only=True))):
        file = export_as(recipe, tmp_path / f"{number}.safetensors", how, base=base, donors=donors)
        assert verify(file).ok
        assert read_recipe(tmp_path / f"{number}.recipe.safetensors").dtype == how.dtype
    how = ExportOptions(format="diffusers", pipeline=tiny_pipeline_folder)
    folder = export_as(recipe, tmp_path / "folder", how, base=base, donors=donors)
    assert (folder / "blend.recipe.safetensors").is_file() and verify(folder).ok
    check(folder, recipe, base, donors)


def test_the_weights_are_found_again_and_no_others(blended: Path, tmp_path: Path) -> None:
    weights = blended.with_name("best.recipe.safetensors")
    alone = shutil.copy(blended, tmp_path / "renamed.safetensors")
    with pytest.raises(RecipeError, match=r"is not beside it\. Say where it is with --search"):
        verify(alone)
    assert verify(alone, [blended.parent]).ok and verify(alone, [weights]).ok
    shutil.copy(weights, tmp_path / "renamed.recipe.safetensors")
    assert verify(alone).ok
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    (tmp_path / "renamed.recipe.safetensors").write_bytes(content)
    with pytest.raises(RecipeError, match=r"renamed\.recipe\.safetensors is another file"):
        verify(alone)


def test_merge_makes_the_blend_again_from_the_weights_alone(
    sources: list[Checkpoint], recipe: Recipe, blended: Path, tmp_path: Path
) -> None:
    weights = blended.with_name("best.recipe.safetensors")
    assert open_recipe(weights)[0].weights == recipe.weights
    assert main(["merge", str(weights), "--output", str(tmp_path / "again.safetensors")]) == 0
    mine, again = load_file(blended), load_file(tmp_path / "again.safetensors")
    assert mine.keys() == again.keys() and all(torch.equal(mine[key], again[key]) for key in mine)
    assert verify(tmp_path / "again.safetensors").ok
    with pytest.raises(RecipeError, match=r"best.safetensors: is no file of a recipe's weights.*'best.recipe.safe"):
        open_recipe(blended)
    with pytest.raises(RecipeError, match="is no file of a recipe's weights"):
        open_recipe(sources[0].path)


def test_a_file_that_cannot_be_written_leaves_no_weights(
    sources: list[Checkpoint], recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, *donors = sources

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "write_file", full)
    with pytest.raises(WriteError):
        export(recipe, tmp_path / "x" / "best.safetensors", base=base, donors=donors)
    assert not (tmp_path / "x").exists()


def test_recipes_say_what_does_not_fit(sources: list[Checkpoint], recipe: Recipe, tmp_path: Path) -> None:
    base, *donors = sources
    layer, row = next((layer, row) for layer, row in recipe.weights.items() if isinstance(row["warm"], Channels))

    def made(weights: Weights, granularity: str = "channel") -> Recipe:
        return Recipe.of(base, donors, granularity, weights)

    with pytest.raises(RecipeError, match="need granularity 'channel'"):
        made({layer: row}, "tensor")
    with pytest.raises(RecipeError, match="not finite in every channel"):
        made({layer: {"warm": Channels([float("nan")])}})
    with pytest.raises(RecipeError, match=r"\[3\] weights by channel for"):
        export(made({layer: {"warm": Channels([1.0, 2, 3])}}), tmp_path / "x.safetensors", base=base, donors=donors)
    with pytest.raises(RecipeError, match="a file of their own"):
        recipe.to_json()
    with pytest.raises(RecipeError, match="sd-mecha takes one a tensor"):
        mecha_text(recipe, base, donors)
    assert tuple(group(base.blended, "channel")) == tuple(group(base.blended, "tensor"))
    assert recipe.components == (DENOISER,)
    rounded = made({layer: row, "conv_in.bias": {"warm": 0.1}}).weights["conv_in.bias"]["warm"]
    assert rounded == float(np.float32(0.1))
