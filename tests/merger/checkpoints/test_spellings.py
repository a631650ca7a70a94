"""Single files under other keys than usual: read for a blend and for drawing alike, or refused; never replaced."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmark.errors import InputError
from benchmark.pipelines.key_names import by_usual_key, stray_text, stray_vae, usual
from benchmark.pipelines.loading import load_pipeline
from merger.checkpoints.adapter import open_donor
from merger.checkpoints.checkpoint import open_checkpoint
from merger.checkpoints.text_encoders import text_tensors, with_text_encoders
from merger.errors import CheckpointError
from merger.export.recipe import Recipe
from merger.export.write import export, verify
from tests.merger.text_models import FAMILIES, Family, make_family

UNET, VAE = "model.diffusion_model.", "first_stage_model."
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def family(
    request: pytest.FixtureRequest, tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Family:
    return make_family(request.param, tmp_path_factory.mktemp(request.param), tiny_pipeline_folder / "tokenizer")


@pytest.fixture(scope="module")
def filled(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The family's configuration folder with weights of its own, which must not take the place of a file's."""
    folder = tmp_path_factory.mktemp("filled") / "pipeline"
    shutil.copytree(family.pipeline, folder)
    other = load_pipeline(family.files["warm"], config=family.pipeline)
    for name in ("vae", *family.components):
        part = getattr(other, name)
        with torch.no_grad():
            for tensor in part.parameters():
                tensor.mul_(1.5)
        part.save_pretrained(folder / name)
    return folder


every = pytest.mark.parametrize("family", list(FAMILIES), indirect=True)
SPELLINGS: dict[str, Callable[[str], str]] = {
    "compiled U-Net": lambda key: key.replace(UNET, f"{UNET}_orig_mod."),
    "compiled": lambda key: f"_orig_mod.{key}",
    "data-parallel": lambda key: f"module.{key}",
    "nested": lambda key: f"state_dict.{key}",
    "without text_model": lambda key: key if key.startswith((UNET, VAE)) else key.replace("text_model.", ""),
    "compiled VAE": lambda key: key.replace(VAE, f"{VAE}_orig_mod."),
}


def respelled(source: Path, target: Path, spell: Callable[[str], str]) -> Path:
    save_file({spell(key): tensor for key, tensor in load_file(source).items()}, target)
    return target


def networks(pipeline: Any, family: Family) -> dict[str, torch.Tensor]:
    parts = ("unet", "vae", *family.components)
    return {f"{part}.{name}": value for part in parts for name, value in getattr(pipeline, part).state_dict().items()}


@every
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_what_the_file_holds_is_drawn_and_blended(family: Family, filled: Path, spelling: str, tmp_path: Path) -> None:
    file = respelled(family.files["base"], tmp_path / "base.safetensors", SPELLINGS[spelling])
    wanted = networks(load_pipeline(family.files["base"], config=family.pipeline), family)
    for folder in (family.pipeline, filled):  # without and with weights of the folder's own
        found = networks(load_pipeline(file, config=folder), family)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    plain, odd = open_checkpoint(family.files["base"]), open_checkpoint(file)
    assert (odd.family, odd.layout) == (plain.family, plain.layout)
    assert text_tensors(odd).keys() == text_tensors(plain).keys()
    base = with_text_encoders(odd)
    assert all(torch.equal(base.read(name), with_text_encoders(plain).read(name)) for name in base.blended)
    donor = open_donor(family.files["warm"], base)
    layers = {"M00": {"warm": 0.5}, "TE": {"warm": 0.5}}
    recipe = Recipe.of(base, [donor], "block", layers, components=("denoiser", "text_encoder"))
    written = export(recipe, tmp_path / "blend.safetensors", base=base, donors=[donor])
    assert verify(written).ok
    assert load_file(written).keys() == load_file(file).keys()


STRAYS: dict[str, tuple[Callable[[str], str], str]] = {
    "diffusers' names": (lambda key: key.replace("cond_stage_model.transformer.", "text_encoder."), "a text encoder"),
    "no prefix": (lambda key: key.replace("cond_stage_model.transformer.", ""), "a text encoder"),
    "another prefix": (lambda key: key.replace("cond_stage_model.", "clip."), "a text encoder"),
    "bare VAE": (lambda key: key.replace(VAE, ""), "a VAE"),
    "another VAE": (lambda key: key.replace(VAE, "model.first_stage_model."), "a VAE"),
}


@pytest.mark.parametrize("family", ["sd1"], indirect=True)
@pytest.mark.parametrize("case", STRAYS)
def test_what_cannot_be_read_is_refused(family: Family, filled: Path, case: str, tmp_path: Path) -> None:
    spell, what = STRAYS[case]
    file = respelled(family.files["base"], tmp_path / "base.safetensors", spell)
    with pytest.raises(InputError, match=f"holds {what} under keys that are not read here") as caught:
        load_pipeline(file, config=filled)
    assert "\n" not in str(caught.value)
    replaced = ("vae",) if "VAE" in case else family.components  # the caller puts others in their place
    assert load_pipeline(file, config=family.pipeline, to_fill=replaced).vae is not None
    if "VAE" not in case:
        base = with_text_encoders(open_checkpoint(family.files["base"]))
        with pytest.raises(CheckpointError, match="holds a text encoder under keys that are not read here"):
            open_donor(file, base)
        assert open_donor(file, open_checkpoint(family.files["base"])).lent == ()


@pytest.mark.parametrize("family", ["sdxl"], indirect=True)
@pytest.mark.parametrize("kept", ["conditioner.embedders.0.", "conditioner.embedders.1."])
def test_one_of_two_text_encoders(family: Family, filled: Path, kept: str, tmp_path: Path) -> None:
    tensors = load_file(family.files["base"])
    part = {key: value for key, value in tensors.items() if "conditioner" not in key or key.startswith(kept)}
    save_file(part, tmp_path / "part.safetensors")
    whole, own = (
        networks(load_pipeline(file, config=filled), family)
        for file in (family.files["base"], tmp_path / "part.safetensors")
    )
    folder = networks(load_pipeline(family.files["warm"], config=family.pipeline), family)
    first = kept.endswith("0.")
    for name in whole:
        if name.startswith("text_encoder"):
            held = name.startswith("text_encoder_2.") != first
            assert (
                torch.equal(own[name], whole[name] if held else folder[name] * 1.5) or not own[name].is_floating_point()
            )


@pytest.mark.parametrize("family", ["sd1"], indirect=True)
def test_one_tensor_under_two_keys(family: Family, filled: Path, tmp_path: Path) -> None:
    tensors = load_file(family.files["base"])
    key = next(key for key in tensors if "text_model." in key)
    save_file(tensors | {key.replace("text_model.", ""): tensors[key].clone()}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="are one tensor under two keys"):
        open_checkpoint(tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="are one tensor under two keys"):
        load_pipeline(tmp_path / "x.safetensors", config=filled)


@pytest.mark.parametrize("family", ["sd1"], indirect=True)
def test_a_copy_of_averages_is_called_that(family: Family, tmp_path: Path) -> None:
    tensors = load_file(family.files["base"])
    ema = {
        "model_ema.diffusion_model" + key.removeprefix(UNET).replace(".", "") if key.startswith(UNET) else key: value
        for key, value in tensors.items()
    }
    save_file(ema, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="holds only an EMA copy of a denoiser"):
        open_donor(tmp_path / "x.safetensors", open_checkpoint(family.files["base"]))


@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        ("module._orig_mod.input_blocks.0.0.weight", "input_blocks.0.0.weight"),
        (
            "cond_stage_model.transformer.encoder.layers.0.x",
            "cond_stage_model.transformer.text_model.encoder.layers.0.x",
        ),
        ("cond_stage_model.transformer.text_model.encoder.x", "cond_stage_model.transformer.text_model.encoder.x"),
        ("cond_stage_model.transformer.text_projection.weight", "cond_stage_model.transformer.text_projection.weight"),
        ("text_encoders.t5xxl.transformer.encoder.block.0.x", "text_encoders.t5xxl.transformer.encoder.block.0.x"),
        ("model.diffusion_model.module.x", "model.diffusion_model.module.x"),
    ],
)
def test_the_usual_key(key: str, wanted: str) -> None:
    assert usual(key) == wanted
    assert by_usual_key([key]) == {wanted: key}


def test_keys_of_published_files_are_no_strays(published_keys: Callable[[str], dict[str, tuple[int, ...]]]) -> None:
    prefixes = ("cond_stage_model.", "conditioner.", "text_encoders.")
    for name in ("sd1-ldm", "sdxl-sgm", "sd3-comfyui", "flux-flux"):
        keys = published_keys(name)
        assert stray_text(keys, prefixes) == stray_vae(keys) == ""
    assert stray_text(["text_encoders.gemma2_2b.transformer.model.layers.0.x"], ()) != ""
    assert stray_text(["embedder.model.visual.transformer.resblocks.0.x"], ()) == ""
