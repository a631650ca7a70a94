"""Values that are no finite numbers are never written without a word: refused, clamped or kept."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from merger.app.cli import main
from merger.blend.arithmetic import blend
from merger.blend.differences import Difference
from merger.errors import RecipeError
from merger.export.recipe import Recipe
from merger.export.write import verify

MIDDLE = "model.diffusion_model.middle_block.0.in_layers.2.weight"
VAE = "first_stage_model.decoder.conv_in.weight"
LARGEST = torch.finfo(torch.float16).max


def changed(source: Path, target: Path, key: str, value: float, dtype: torch.dtype = torch.float16) -> Path:
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(source).items()}
    tensors[key] = tensors[key].clone()
    tensors[key].flatten()[5] = value
    save_file(tensors, target)
    return target


def recipe_file(folder: Path, base: Path, donor: Path, **more: object) -> Path:
    table = {
        "base": {"path": str(base), "name": "base"},
        "donors": [{"path": str(donor), "name": "donor"}],
        "weights": {"*": {"donor": 0.5}},
    }
    file = folder / "recipe.json"
    file.write_text(json.dumps(table | more))
    return file


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_merge_refuses_a_source_that_is_not_finite(
    value: float, tiny_family: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    donor = changed(tiny_family["warm"], tmp_path / "bad.safetensors", MIDDLE, value)
    recipe, output = recipe_file(tmp_path, tiny_family["base"], donor), tmp_path / "out.safetensors"
    for how in ([], ["--nonfinite", "clamp"]):
        assert main(["merge", str(recipe), "--output", str(output), *how]) == 2
        assert f"bad.safetensors: '{MIDDLE}' holds" in capsys.readouterr().err
        assert not output.exists()
    assert main(["merge", str(recipe), "--output", str(output), "--nonfinite", "keep"]) == 0
    said = capsys.readouterr().err
    assert "bad.safetensors" in said
    assert f"written, in 1 tensors, first '{MIDDLE}'" in said
    assert verify(output).ok


def test_a_donor_without_a_weight_does_not_matter(tiny_family: dict[str, Path], tmp_path: Path) -> None:
    donor = changed(tiny_family["warm"], tmp_path / "bad.safetensors", MIDDLE, math.nan)
    recipe = recipe_file(tmp_path, tiny_family["base"], donor, weights={"*": {"donor": 0}})
    assert main(["merge", str(recipe), "--output", str(tmp_path / "out.safetensors")]) == 0


@pytest.mark.parametrize("form", [[], ["--denoiser-only"]])
def test_a_value_beyond_half_precision_is_refused_or_clamped(
    form: list[str], tiny_family: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    donor = changed(tiny_family["warm"], tmp_path / "big.safetensors", MIDDLE, -3e5, torch.float32)
    recipe, output = recipe_file(tmp_path, tiny_family["base"], donor), tmp_path / "out.safetensors"
    arguments = ["merge", str(recipe), "--output", str(output), *form]
    assert main(arguments) == 2
    assert f"'{MIDDLE}' has values beyond the range of float16" in capsys.readouterr().err
    assert not output.exists()
    assert main([*arguments, "--nonfinite", "clamp"]) == 0
    assert f"in 1 tensors, first '{MIDDLE}'" in capsys.readouterr().err
    written = load_file(output)
    assert written[MIDDLE].flatten()[5] == -LARGEST
    assert all(tensor.isfinite().all() for tensor in written.values())
    assert verify(output).ok
    assert main([*arguments, "--dtype", "fp32"]) == 0
    assert load_file(output)[MIDDLE].flatten()[5] < -LARGEST


def test_so_is_one_of_a_tensor_that_is_only_converted(
    tiny_family: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = changed(tiny_family["base"], tmp_path / "base32.safetensors", VAE, 7e4, torch.float32)
    recipe, output = recipe_file(tmp_path, base, tiny_family["warm"]), tmp_path / "out.safetensors"
    arguments = ["merge", str(recipe), "--output", str(output)]
    assert main([*arguments, "--dtype", "fp16"]) == 2
    assert VAE in capsys.readouterr().err
    assert main([*arguments, "--dtype", "fp16", "--nonfinite", "clamp"]) == 0
    assert load_file(output)[VAE].flatten()[5] == LARGEST
    assert main(arguments) == 0
    assert main([*arguments, "--dtype", "bf16"]) == 0


def test_a_tensor_that_the_base_only_lends_is_kept_aloud(
    tiny_family: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = changed(tiny_family["base"], tmp_path / "base.safetensors", VAE, math.nan)
    recipe, output = recipe_file(tmp_path, base, tiny_family["warm"]), tmp_path / "out.safetensors"
    assert main(["merge", str(recipe), "--output", str(output)]) == 0
    assert f"'{VAE}' holds NaN" in capsys.readouterr().err


def test_a_folder_is_checked_as_a_file_is(
    tiny_family: dict[str, Path], tiny_pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    donor = changed(tiny_family["warm"], tmp_path / "big.safetensors", MIDDLE, 3e5, torch.float32)
    recipe, output = recipe_file(tmp_path, tiny_family["base"], donor), tmp_path / "out"
    arguments = ["merge", str(recipe), "--output", str(output), "--format", "diffusers"]
    arguments += ["--pipeline", str(tiny_pipeline_folder)]
    assert main(arguments) == 2
    assert "beyond the range of float16" in capsys.readouterr().err
    assert not output.exists()
    assert main([*arguments, "--nonfinite", "clamp"]) == 0
    assert verify(output).ok


TEXT = "cond_stage_model.transformer.text_model.final_layer_norm.weight"


@pytest.mark.parametrize(
    ("key", "inside", "end"),
    [
        (VAE, "vae/diffusion_pytorch_model.safetensors", "decoder.conv_in.weight"),
        (TEXT, "text_encoder/model.safetensors", "final_layer_norm.weight"),
    ],
)
def test_so_are_the_other_components_of_a_file_that_becomes_a_folder(
    key: str,
    inside: str,
    end: str,
    tiny_family: dict[str, Path],
    tiny_pipeline_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """diffusers converts them; the value is beyond fp16 in bf16, and one is not finite in the base's own file."""
    base = changed(tiny_family["base"], tmp_path / "base.safetensors", key, -1e6, torch.bfloat16)
    recipe, output = recipe_file(tmp_path, base, tiny_family["warm"]), tmp_path / "out"
    arguments = ["merge", str(recipe), "--output", str(output), "--format", "diffusers"]
    arguments += ["--pipeline", str(tiny_pipeline_folder)]
    assert main([*arguments, "--dtype", "fp16"]) == 2
    error = capsys.readouterr().err
    part = inside.split("/")[0]
    assert f"the blend of '{part}." in error
    assert f"{end}' has values beyond the range of float16" in error
    assert not output.exists()
    assert main([*arguments, "--dtype", "fp16", "--nonfinite", "clamp"]) == 0
    assert f"became its largest number, in 1 tensors, first '{part}." in capsys.readouterr().err
    (written,) = (tensor for name, tensor in load_file(output / inside).items() if name.endswith(end))
    assert written.min() == -LARGEST
    assert written.isfinite().all()
    output.rename(tmp_path / "first")
    assert main([*arguments, "--dtype", "fp16", "--nonfinite", "keep"]) == 0
    assert f"NaN or infinite values were written, in 1 tensors, first '{part}." in capsys.readouterr().err
    output.rename(tmp_path / "second")
    changed(base, tmp_path / "nan.safetensors", key, math.nan, torch.bfloat16)
    recipe_file(tmp_path, tmp_path / "nan.safetensors", tiny_family["warm"])
    assert main([*arguments, "--dtype", "fp16"]) == 0
    assert f"'{key}' holds NaN" in capsys.readouterr().err


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("given", [torch.float16, torch.float32, torch.float64])
def test_clamping_changes_nothing_but_what_overflows(stored: torch.dtype, given: torch.dtype) -> None:
    values = torch.tensor([0.1, -3.3e4, 6.5e4, 1e5, -1e39], dtype=torch.float64)
    base, donor = (values * 0.3).to(given), Difference(values.to(given))
    for weights in ([0.0], [1.0], [0.7]):
        plain = blend(base, [donor], weights, dtype=stored)
        clamped = blend(base, [donor], weights, dtype=stored, clamp=True)
        assert clamped.dtype == stored
        fine = plain.isfinite()
        assert torch.equal(clamped[fine], plain[fine])
        overflowed = plain.isinf()
        assert torch.equal(clamped[overflowed].abs(), torch.full_like(clamped[overflowed], torch.finfo(stored).max))


def test_a_recipe_says_that_it_clamps(tiny_family: dict[str, Path], tmp_path: Path) -> None:
    recipe = recipe_file(tmp_path, tiny_family["base"], tiny_family["warm"], clamp="yes")
    assert main(["merge", str(recipe), "--output", str(tmp_path / "out.safetensors")]) == 2
    recipe = recipe_file(tmp_path, tiny_family["base"], tiny_family["warm"], clamp=True)
    assert main(["merge", str(recipe), "--output", str(tmp_path / "out.safetensors")]) == 0
    read = verify(tmp_path / "out.safetensors").recipe
    assert read.clamp
    assert Recipe.from_json(read.to_json()) == read
    with pytest.raises(RecipeError, match="clamp"):
        Recipe.from_json(read.to_json().replace('"clamp": true', '"clamp": 1'))
