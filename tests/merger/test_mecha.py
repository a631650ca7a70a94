"""The recipe for sd-mecha: executed by sd-mecha itself it gives our tensors."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from merger.checkpoints import Checkpoint, open_checkpoint
from merger.errors import RecipeError
from merger.export import export
from merger.mecha import mecha_text, write_mecha
from merger.recipe import Recipe


@pytest.fixture(scope="module")
def sources(tiny_family: dict[str, Path]) -> list[Checkpoint]:
    return [open_checkpoint(tiny_family[name]) for name in ("base", "warm", "cool")]


def test_sd_mecha_makes_the_same_file(sources: list[Checkpoint], tmp_path: Path) -> None:
    pytest.importorskip("sd_mecha")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a slower matcher of words
        import sd_mecha
    weights = {"IN04": {"warm": 0.7, "cool": -0.2}, "M00": {"cool": 1.0}, "OUT03": {"warm": 0.3}, "BASE": {"warm": 1.2}}
    base, *donors = sources
    recipe = Recipe.of(base, donors, "block", weights)
    ours = load_file(export(recipe, tmp_path / "ours.safetensors", base=base, donors=donors))
    file = write_mecha(recipe, tmp_path / "blend.mecha", base=base, donors=donors)
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = sd_mecha.merge(sd_mecha.deserialize_path(file), output_dtype=torch.float16, threads=0)
    finally:
        logging.disable(logging.NOTSET)
    denoiser = {info.key for info in base.denoiser.values()}
    assert denoiser <= theirs.keys() <= ours.keys()
    for key, tensor in theirs.items():
        step = torch.nextafter(ours[key], torch.full_like(ours[key], torch.inf)) - ours[key]
        assert ((tensor - ours[key]).abs() <= step.abs()).all(), key
    assert any(not torch.equal(theirs[key], base.read_key(key)) for key in denoiser)


def test_what_it_cannot_say_is_refused(sources: list[Checkpoint], tiny_diffusers_folder: Path, tmp_path: Path) -> None:
    base, warm, _ = sources
    recipe = Recipe.of(base, [warm], "block", {"M00": {"warm": 0.5}})
    with pytest.raises(RecipeError, match="must end in .mecha"):
        write_mecha(recipe, tmp_path / "x.txt", base=base, donors=[warm])
    folder = open_checkpoint(tiny_diffusers_folder, name="folder")
    recipe = Recipe.of(base, [folder], "block", {"M00": {"folder": 0.5}})
    with pytest.raises(RecipeError, match="no single file with original keys"):
        mecha_text(recipe, base, [folder])
    assert not list(tmp_path.iterdir())
