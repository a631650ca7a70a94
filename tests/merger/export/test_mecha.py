"""The recipe for sd-mecha: executed by sd-mecha itself it gives our tensors."""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from merger.checkpoints.checkpoint import open_checkpoint
from merger.errors import RecipeError
from merger.export.mecha import mecha_beside, mecha_text
from merger.export.recipe import Recipe
from merger.export.write import export, verify


def test_sd_mecha_makes_the_same_file(sd3_family: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("sd_mecha")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a slower matcher of words
        import sd_mecha
    weights = {"B00": {"one": 0.7, "two": -0.2}, "B01": {"two": 1.0}, "BASE": {"one": 0.3}}
    base, *donors = (open_checkpoint(path) for path in sd3_family.values())
    recipe = Recipe.of(base, donors, "block", weights)
    written = export(recipe, tmp_path / "ours.safetensors", base=base, donors=donors)
    assert verify(written).ok
    ours = load_file(written)
    file = tmp_path / "blend.mecha"
    with mecha_beside(recipe, file, base=base, donors=donors):
        assert not file.exists()
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = sd_mecha.merge(
                sd_mecha.deserialize_path(file),
                output_dtype=torch.float16,
                threads=0,
                total_buffer_size=2**20,
                tqdm=functools.partial(tqdm, disable=True),
            )
    finally:
        logging.disable(logging.NOTSET)
    theirs = {key: tensor for key, tensor in theirs.items() if key in ours}
    assert {info.key for info in base.denoiser.values()} <= theirs.keys()
    for key, tensor in theirs.items():
        step = torch.nextafter(ours[key].abs(), torch.full_like(ours[key], torch.inf)) - ours[key].abs()
        assert ((tensor - ours[key]).abs() <= step).all(), key
    assert sum(not torch.equal(theirs[key], base.read_key(key)) for key in theirs) > 40


def test_what_it_cannot_say_is_refused(
    sd3_family: dict[str, Path], tiny_family: dict[str, Path], tiny_diffusers_folder: Path, tmp_path: Path
) -> None:
    base, warm = (open_checkpoint(tiny_family[name]) for name in ("base", "warm"))
    recipe = Recipe.of(base, [warm], "block", {"M00": {"warm": 0.5}})
    with (
        pytest.raises(RecipeError, match=r"must end in \.mecha"),
        mecha_beside(recipe, tmp_path / "x.txt", base=base, donors=[warm]),
    ):
        pass
    folder = open_checkpoint(tiny_diffusers_folder, name="folder")
    recipe = Recipe.of(base, [folder], "block", {"M00": {"folder": 0.5}})
    with pytest.raises(RecipeError, match="no single file with original keys"):
        mecha_text(recipe, base, [folder])
    base, one = (open_checkpoint(sd3_family[name]) for name in ("base", "one"))
    query = "transformer_blocks.0.attn.to_q.weight"
    recipe = Recipe.of(base, [one], "tensor", {query: {"one": 0.5}})
    with pytest.raises(RecipeError, match="has 2 different weights, and sd-mecha takes one a tensor"):
        mecha_text(recipe, base, [one])
    assert not list(tmp_path.iterdir())


UNET = "model.diffusion_model."
SPELLINGS: dict[str, Callable[[str], str]] = {
    "compiled": lambda key: f"_orig_mod.{key}",
    "compiled U-Net": lambda key: key.replace(UNET, f"{UNET}_orig_mod."),
    "data-parallel": lambda key: f"module.{key}",
    "bare": lambda key: key.replace(UNET, ""),
    "ComfyUI's": lambda key: key.replace(UNET, "diffusion_model."),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("which", ["base", "warm"])
def test_keys_that_sd_mecha_does_not_look_for_are_refused(
    spelling: str, which: str, tiny_family: dict[str, Path], tmp_path: Path
) -> None:
    """Otherwise it would take the tensors for absent."""
    files = {name: tiny_family[name] for name in ("base", "warm")}
    odd = {SPELLINGS[spelling](key): tensor for key, tensor in load_file(files[which]).items()}
    files[which] = tmp_path / "odd.safetensors"
    save_file(odd, files[which])
    base, warm = (open_checkpoint(file, name=name) for name, file in files.items())
    recipe = Recipe.of(base, [warm], "block", {"M00": {"warm": 0.5}})
    with pytest.raises(RecipeError, match=r"odd\.safetensors has '.*', and sd-mecha looks for it under another key"):
        mecha_text(recipe, base, [warm])


def test_clip_without_text_model_is_read_by_sd_mecha_too(tiny_family: dict[str, Path], tmp_path: Path) -> None:
    """For SD 1: its model configuration names both spellings."""
    odd = {key.replace("text_model.", ""): tensor for key, tensor in load_file(tiny_family["base"]).items()}
    save_file(odd, tmp_path / "odd.safetensors")
    base, warm = open_checkpoint(tmp_path / "odd.safetensors", name="base"), open_checkpoint(tiny_family["warm"])
    assert "M00" not in mecha_text(Recipe.of(base, [warm], "block", {"M00": {"warm": 0.5}}), base, [warm])
