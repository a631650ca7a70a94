"""A family that is registered from outside is a family like any other: opened, inspected, blended, exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from merger.checkpoints import families
from merger.checkpoints.checkpoint import open_checkpoint
from merger.checkpoints.components import check_configuration
from merger.checkpoints.families import Family, family_named, known_families, register_family
from merger.checkpoints.headers import read_header
from merger.checkpoints.inspect import format_inspection, inspect_files
from merger.checkpoints.names.transformer import network_shapes
from merger.errors import CheckpointError, NoDenoiser, RecipeError
from merger.export.mecha import mecha_text
from merger.export.recipe import Recipe
from merger.export.write import export, verify
from merger.layers.grouping import group

FANCY = Family("fancy", "transformer", "patcher.embed.weight", prediction="epsilon", architecture="fancy-1")


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "_REGISTERED", dict(families._REGISTERED))


def write_fancy(file: Path, seed: int, prefix: str = "") -> Path:
    """A transformer of a kind that neither diffusers nor the table of layers has heard of."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {"patcher.embed.weight": (6, 3), "fancy_blocks.0.mix.weight": (6, 6), "fancy_blocks.1.mix.weight": (6, 6)}
    save_file({prefix + name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}, file)
    return file


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_transformer_is_recognised_by_its_marker(prefix: str, tmp_path: Path) -> None:
    file = write_fancy(tmp_path / "base.safetensors", 1, prefix)
    with pytest.raises(NoDenoiser, match="no denoiser that is known here"):
        open_checkpoint(file)
    register_family(FANCY)
    base, donor = open_checkpoint(file), open_checkpoint(write_fancy(tmp_path / "donor.safetensors", 2, prefix))
    assert (base.family, base.layout, base.prediction) == ("fancy", "diffusers", "epsilon")
    assert list(group(base.denoiser, "block")) == ["FANCY_BLOCKS00", "FANCY_BLOCKS01", "BASE"]
    found = inspect_files([file, donor.path])
    assert found["fit"]["ok"]
    assert "fancy transformer, diffusers layout" in format_inspection(found)
    assert "predicts noise" in format_inspection(found)
    recipe = Recipe.of(base, [donor], "block", {"BASE": {"donor": 0.5}})
    output = export(recipe, tmp_path / "x.safetensors", base=base, donors=[donor])
    assert verify(output).ok
    metadata = read_header(output).metadata
    assert (metadata["modelspec.architecture"], metadata["modelspec.prediction_type"]) == ("fancy-1", "epsilon")
    with pytest.raises(RecipeError, match="sd-mecha knows sd1, sdxl, sd3, flux models, and base is fancy"):
        mecha_text(recipe, base, [donor])


def test_a_u_net_is_recognised_by_its_marker_before_its_structure(
    denoiser_config: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    shapes = network_shapes(denoiser_config("sdxl"), "x") | {"encoder_hid_proj.weight": (16, 12)}
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "x.safetensors")
    assert open_checkpoint(tmp_path / "x.safetensors").family == "sdxl"
    register_family(
        Family("k", "unet", "encoder_hid_proj.weight", prediction="v", architecture="k-1", not_from_text="k says no")
    )
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    assert (checkpoint.family, checkpoint.prediction) == ("k", "v")
    assert "k U-Net, diffusers layout" in format_inspection(inspect_files([checkpoint.path]))
    with pytest.raises(CheckpointError, match=r"k says no\. It can be blended with `merger merge`"):
        check_configuration(checkpoint, None)
    save_file(tensors | {"conv_in.weight": torch.zeros(8, 9, 3, 3)}, tmp_path / "y.safetensors")
    assert open_checkpoint(tmp_path / "y.safetensors").family == "k-inpainting"
    assert family_named("k-inpainting").architecture_of("v") == "k-1-inpainting"


def test_markers_that_are_registered_later_are_looked_for_first(tmp_path: Path) -> None:
    register_family(FANCY)
    register_family(Family("fancier", "transformer", "fancy_blocks.1.mix.weight", prediction="flow"))
    assert open_checkpoint(write_fancy(tmp_path / "x.safetensors", 1)).family == "fancier"
    register_family(Family("fancy", "transformer", "patcher.embed.weight", prediction="v"))
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    assert (checkpoint.family, checkpoint.prediction) == ("fancy", "v")
    assert [family.name for family in known_families()].count("fancy") == 1


def test_a_name_without_a_record_is_a_transformer_that_diffusers_knows() -> None:
    family = family_named("auraflow")
    assert (family.network, family.prediction, family.architecture_of("flow")) == ("transformer", "flow", "auraflow")
