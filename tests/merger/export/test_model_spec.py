"""What a blend's file says of itself to other programs, field by field; and what of the base it no longer says."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from merger.checkpoints.checkpoint import Checkpoint, open_checkpoint
from merger.checkpoints.families import family_named
from merger.checkpoints.headers import read_header
from merger.export.model_spec import legacy_hash, metadata_of
from merger.export.recipe import Recipe
from merger.export.write import export

MUST = ("sai_model_spec", "architecture", "implementation", "title", "resolution")
SHOULD = ("description", "date", "hash_sha256")
HOLDS = {
    "modelspec.architecture": "stable-diffusion-v1",
    "modelspec.resolution": "640x640",
    "modelspec.prediction_type": "epsilon",
    "modelspec.timestep_range": "0,499",
    "modelspec.encoder_layer": "2",
}
OF_THE_BASE_ALONE = {
    "modelspec.author": "somebody",
    "modelspec.license": "a licence",
    "modelspec.thumbnail": "data:image/jpeg;base64,AAAA",
    "modelspec.trigger_phrase": "mypetcat",
    "modelspec.usage_hint": "say mypetcat",
    "modelspec.tags": "cat",
    "modelspec.category": "Style",
    "modelspec.implementation_version": "abc",
    "modelspec.hash_md5": "0x12",
    "sshs_model_hash": "a" * 64,
    "sshs_legacy_hash": "b" * 8,
    "ss_base_model_version": "sd_v1",
    "ss_num_train_images": "9",
    "license": "a licence",
    "notes": "trained on cats",
    "layermerge.score": "{}",
    "layermerge.form": "denoiser",
}


def written(base: Checkpoint, donors: list[Checkpoint], folder: Path) -> dict[str, str]:
    recipe = Recipe.of(base, donors, "block", {"M00": {donor.name: 0.5 for donor in donors}})
    return dict(read_header(export(recipe, folder / "x.safetensors", base=base, donors=donors)).metadata)


def said_by(tiny_family: dict[str, Path], folder: Path, metadata: dict[str, str]) -> dict[str, str]:
    save_file(load_file(tiny_family["base"]), folder / "base.safetensors", metadata=metadata)
    base = open_checkpoint(folder / "base.safetensors")
    return written(base, [open_checkpoint(tiny_family["warm"])], folder)


def test_all_that_the_specification_demands_is_there(tiny_family: dict[str, Path], tmp_path: Path) -> None:
    said = said_by(tiny_family, tmp_path, {"format": "pt"})
    assert all(said[f"modelspec.{key}"] for key in (*MUST, *SHOULD))
    assert said["modelspec.resolution"] == "512x512"
    assert said["modelspec.implementation"] == "sgm"
    assert said["modelspec.merged_from"] == "base, warm"
    assert "modelspec.author" not in said


def test_what_is_true_of_a_blend_too_is_kept_and_the_rest_is_not(tiny_family: dict[str, Path], tmp_path: Path) -> None:
    said = said_by(tiny_family, tmp_path, {"format": "pt", **HOLDS, **OF_THE_BASE_ALONE})
    assert {key: said[key] for key in HOLDS} == HOLDS
    assert not said.keys() & OF_THE_BASE_ALONE.keys()


@pytest.mark.parametrize(
    ("family", "prediction", "resolution"),
    [
        ("sd1", "epsilon", "512x512"),
        ("sd1-inpainting", "epsilon", "512x512"),
        ("sd2", "epsilon", "512x512"),
        ("sd2", "unknown", "512x512"),
        ("sd2", "v", "768x768"),
        ("sdxl", "v", "1024x1024"),
        ("sdxl-inpainting", "epsilon", "1024x1024"),
        ("sdxl-refiner", "epsilon", "1024x1024"),
        ("sd3", "flow", "1024x1024"),
        ("flux", "flow", "1024x1024"),
        ("lumina2", "flow", "1024x1024"),
        ("qwenimage", "flow", ""),
    ],
)
def test_resolutions(family: str, prediction: str, resolution: str) -> None:
    assert family_named(family).resolution_of(prediction) == resolution


def test_the_implementation_is_that_of_the_keys(tiny_family: dict[str, Path]) -> None:
    base = open_checkpoint(tiny_family["base"])
    recipe = Recipe.of(base, [], "block", {})
    for family, layout, own_keys, wanted in (
        ("sd1", "original", True, "sgm"),
        ("sd1", "original", False, "diffusers"),
        ("sdxl", "diffusers", True, "diffusers"),
        ("flux", "original", True, "https://github.com/black-forest-labs/flux"),
    ):
        said = metadata_of(recipe, replace(base, family=family, layout=layout), [], "x", own_keys=own_keys)
        assert said["modelspec.implementation"] == wanted
    assert "modelspec.resolution" not in metadata_of(recipe, replace(base, family="qwenimage"), [], "x")


def test_titles_with_commas_do_not_make_more_models(tiny_family: dict[str, Path], tmp_path: Path) -> None:
    said = said_by(tiny_family, tmp_path, {"modelspec.title": "Cats, dogs,and more"})
    assert said["modelspec.merged_from"] == "Cats dogs and more, warm"


@pytest.mark.parametrize("size", [100, (1 << 20) + 40_000, (1 << 20) + 200_000])
def test_the_old_hash_is_automatic1111s(size: int, tmp_path: Path) -> None:
    """As its `model_hash` computes it: nothing of a file that is shorter than 1 MiB."""
    content = bytes(i * 7 % 251 for i in range(size))
    (tmp_path / "x.safetensors").write_bytes(content)
    part = content[0x100000 : 0x100000 + 0x10000]
    assert legacy_hash(tmp_path / "x.safetensors") == hashlib.sha256(part).hexdigest()[0:8]
    assert legacy_hash(tmp_path) is None


def test_the_merge_is_said_as_automatic1111_says_it(tiny_family: dict[str, Path], tmp_path: Path) -> None:
    base, *donors = (open_checkpoint(tiny_family[name]) for name in ("base", "warm", "cool"))
    said = written(base, donors[:1], tmp_path)
    recipe, models = json.loads(said["sd_merge_recipe"]), json.loads(said["sd_merge_models"])
    assert [recipe[f"{which}_model_hash"] for which in ("primary", "secondary", "tertiary")] == [
        base.sha256,
        donors[0].sha256,
        None,
    ]
    assert models[base.sha256] == {
        "name": "base.safetensors",
        "legacy_hash": legacy_hash(base.path),
        "sd_merge_recipe": None,
    }
    assert json.loads(written(base, donors, tmp_path)["sd_merge_recipe"])["tertiary_model_hash"] == donors[1].sha256
