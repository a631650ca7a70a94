"""Forms of an export: the denoiser alone, diffusers folders, cut tensors, what a file says of itself, merge."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from merger.app.cli import main
from merger.blend.arithmetic import blend
from merger.blend.differences import Difference
from merger.checkpoints.checkpoint import Checkpoint, open_checkpoint
from merger.checkpoints.families import family_named
from merger.checkpoints.headers import read_header
from merger.errors import CheckpointError, ConfigError, RecipeError
from merger.export.forms import ExportOptions, export_as
from merger.export.recipe import Recipe
from merger.export.recipe_files import open_recipe
from merger.export.write import verify
from merger.layers.grouping import group

WEIGHTS = {"IN04": {"warm": 0.7, "cool": -0.2}, "M00": {"cool": 1.0}}


@pytest.fixture(scope="module")
def sources(tiny_family: dict[str, Path]) -> list[Checkpoint]:
    return [open_checkpoint(tiny_family[name]) for name in ("base", "warm", "cool")]


@pytest.fixture(scope="module")
def recipe(sources: list[Checkpoint]) -> Recipe:
    return Recipe.of(sources[0], sources[1:], "block", WEIGHTS)


def test_the_denoiser_alone(sources: list[Checkpoint], recipe: Recipe, tmp_path: Path) -> None:
    base, *donors = sources
    whole = export_as(recipe, tmp_path / "whole.safetensors", base=base, donors=donors)
    how = ExportOptions(denoiser_only=True)
    alone = export_as(recipe, tmp_path / "alone.safetensors", how, base=base, donors=donors)
    tensors, kept = load_file(whole), load_file(alone)
    assert set(kept) == {info.key for info in base.denoiser.values()}
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in kept.items())
    assert verify(alone).ok
    assert len(open_checkpoint(alone).denoiser) == len(base.denoiser)
    with pytest.raises(ConfigError, match="choose one"):
        export_as(
            recipe, tmp_path / "x", ExportOptions(denoiser_only=True, format="diffusers"), base=base, donors=donors
        )


def test_a_folder_gives_a_folder_that_diffusers_loads(
    sources: list[Checkpoint], tiny_diffusers_folder: Path, tmp_path: Path
) -> None:
    from diffusers import UNet2DConditionModel

    base, warm = open_checkpoint(tiny_diffusers_folder), sources[1]
    recipe = Recipe.of(base, [warm], "block", {"OUT05": {"warm": 0.5}})
    folder = export_as(recipe, tmp_path / "blend", base=base, donors=[warm])
    copied = {file.relative_to(folder) for file in folder.rglob("*") if file.is_file()}
    assert copied == {file.relative_to(base.path) for file in base.path.rglob("*") if file.is_file()}
    assert (folder / "vae/config.json").read_bytes() == (base.path / "vae/config.json").read_bytes()
    loaded = UNet2DConditionModel.from_pretrained(folder / "unet", local_files_only=True).state_dict()
    half = group(base.denoiser, "block")["OUT05"]
    for name in base.denoiser:
        weight = 0.5 if name in half else 0.0
        flat = blend(base.read(name).reshape(-1), [Difference(warm.read(name).reshape(-1))], [weight])
        assert torch.equal(loaded[name].reshape(-1), flat), name
    assert verify(folder).ok
    with pytest.raises(CheckpointError, match="is there already"):
        export_as(recipe, folder, base=base, donors=[warm])
    assert [file.name for file in tmp_path.iterdir()] == ["blend"]


def test_a_single_file_becomes_a_folder_that_draws_the_same(
    sources: list[Checkpoint], recipe: Recipe, tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    from benchmark.pipelines.loading import load_pipeline

    base, *donors = sources
    how = ExportOptions("fp32", format="diffusers", pipeline=tiny_pipeline_folder)
    folder = export_as(recipe, tmp_path / "blend", how, base=base, donors=donors)
    file = export_as(recipe, tmp_path / "x.safetensors", ExportOptions("fp32"), base=base, donors=donors)
    one, other = load_pipeline(folder), load_pipeline(file, config=tiny_pipeline_folder)
    for part in ("unet", "vae", "text_encoder"):
        theirs = getattr(other, part).state_dict()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in getattr(one, part).state_dict().items())
    with pytest.raises(CheckpointError, match="name the folder with --pipeline"):
        export_as(recipe, tmp_path / "y", ExportOptions(format="diffusers"), base=base, donors=donors)


def test_cut_tensors_are_put_together_again(sd3_family: dict[str, Path], tmp_path: Path) -> None:
    base, one = (open_checkpoint(sd3_family[name]) for name in ("base", "one"))
    name = "transformer_blocks.0.attn.to_k.weight"
    recipe = Recipe.of(base, [one], "tensor", {name: {"one": 1.0}, "norm_out.linear.bias": {"one": 1.0}})
    file = export_as(recipe, tmp_path / "x.safetensors", base=base, donors=[one])
    assert verify(file).ok
    made, mine, theirs = (load_file(path) for path in (file, base.path, one.path))
    key = "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"
    assert torch.equal(made[key], torch.cat([mine[key][:16], theirs[key][16:32], mine[key][32:]]))
    swapped = "model.diffusion_model.final_layer.adaLN_modulation.1.bias"
    assert torch.equal(made[swapped], theirs[swapped])
    assert sum(not torch.equal(made[key], mine[key]) for key in made) == 2
    named = export_as(recipe, tmp_path / "y.safetensors", ExportOptions("fp32"), base=base, donors=[one])
    assert torch.equal(load_file(named)[key], made[key].float())


def test_a_file_says_what_it_is(sources: list[Checkpoint], recipe: Recipe, tmp_path: Path) -> None:
    base, *donors = sources
    file = export_as(recipe, tmp_path / "My blend.safetensors", base=base, donors=donors)
    said = read_header(file).metadata
    assert said["modelspec.architecture"] == "stable-diffusion-v1"
    assert (said["modelspec.title"], said["modelspec.prediction_type"]) == ("My blend", "epsilon")
    content = file.read_bytes()
    body = content[8 + int.from_bytes(content[:8], "little") :]
    assert said["modelspec.hash_sha256"] == f"0x{hashlib.sha256(body).hexdigest()}"
    merged = json.loads(said["sd_merge_recipe"])
    assert merged["primary_model_hash"] == base.sha256
    assert merged["weights"] == WEIGHTS
    assert set(json.loads(said["sd_merge_models"])) == {source.sha256 for source in sources}
    again = Recipe.of(open_checkpoint(file, name="blend"), donors, "block", WEIGHTS)
    second = export_as(again, tmp_path / "z.safetensors", base=open_checkpoint(file, name="blend"), donors=donors)
    models = json.loads(read_header(second).metadata["sd_merge_models"])
    assert base.sha256 in models  # whom a parent came from is handed on
    assert models[again.base.sha256]["sd_merge_recipe"] == merged


@pytest.mark.parametrize(
    ("family", "prediction", "wanted"),
    [
        ("sd1", "epsilon", "stable-diffusion-v1"),
        ("sd1-inpainting", "epsilon", "stable-diffusion-v1-inpainting"),
        ("sd2", "v", "stable-diffusion-v2-768-v"),
        ("sd2", "unknown", "stable-diffusion-v2"),
        ("sdxl", "v", "stable-diffusion-xl-v1-base"),
        ("sdxl-refiner", "epsilon", "stable-diffusion-xl-v1-refiner"),
        ("sana", "flow", "sana"),
    ],
)
def test_architectures(family: str, prediction: str, wanted: str) -> None:
    assert family_named(family).architecture_of(prediction) == wanted


def test_merge_makes_a_file_from_a_hand_written_recipe(
    sources: list[Checkpoint], tiny_family: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, warm, cool = sources
    table = {
        "base": str(tiny_family["base"]),
        "donors": [str(tiny_family["warm"]), {"path": str(tiny_family["cool"]), "name": "c", "sha256": cool.sha256}],
        "weights": {"IN*": {"warm": 0.3}, "IN04": {"warm": 0.5, "c": 0.25}},
    }
    (tmp_path / "recipe.json").write_text(json.dumps(table))
    output = tmp_path / "blend.safetensors"
    assert main(["merge", str(tmp_path / "recipe.json"), "--output", str(output), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"file": str(output)}
    assert verify(output).ok
    name = "down_blocks.1.resnets.0.conv1.weight"
    flat = [source.read(name).reshape(-1) for source in (base, warm, cool)]
    wanted = blend(flat[0], [Difference(donor) for donor in flat[1:]], [0.5, 0.25])
    assert torch.equal(open_checkpoint(output).read(name).reshape(-1), wanted)
    carried = Recipe.from_metadata(read_header(output).metadata)
    assert (carried.weights["IN00"], carried.weights["IN04"]) == ({"warm": 0.3}, {"warm": 0.5, "c": 0.25})
    (tmp_path / "again.json").write_text(carried.to_json())
    assert open_recipe(tmp_path / "again.json")[0] == carried


@pytest.mark.parametrize(
    ("weights", "twice"),
    [
        ('{"*": {"warm": 0.3}, "*": {"warm": 0.9}}', "*"),
        ('{"*": {"warm": 0.3, "warm": 0.9}}', "warm"),
        ('{"*": {"warm": 0.3}}, "dtype": "fp16", "dtype": "fp32"', "dtype"),
    ],
)
def test_a_key_that_a_recipe_has_twice_is_refused(
    weights: str, twice: str, tiny_family: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """JSON keeps the last one without a word."""
    base, donor = json.dumps(str(tiny_family["base"])), json.dumps(str(tiny_family["warm"]))
    (tmp_path / "recipe.json").write_text(f'{{"base": {base}, "donors": [{donor}], "weights": {weights}}}')
    assert main(["merge", str(tmp_path / "recipe.json"), "--output", str(tmp_path / "out.safetensors")]) == 2
    assert f"recipe.json: cannot be read as JSON ('{twice}' is there twice)" in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"wieghts": {}}, "unknown key 'wieghts'"),
        ({"weights": None}, "'weights' must be a table"),
        ({"weights": {"IN99": {"warm": 1}}}, "'IN99' fits no layer"),
        ({"weights": {"IN*": {"warm": "much"}}}, "must be a number"),
        ({"weights": {"IN*": {"hot": 1}}}, "not a donor"),
        ({"donors": "warm"}, "must be a list"),
        ({"donors": [{"name": "warm"}]}, "donor 1: must be a path"),
        ({"dtype": "fp8"}, "dtype 'fp8' is unknown"),
        ({"base": "nowhere.safetensors"}, "no such file"),
        ({"method": "cubic"}, "method 'cubic' is unknown"),
    ],
)
def test_a_bad_recipe_is_one_line(
    change: dict[str, object], said: str, tiny_family: dict[str, Path], tmp_path: Path
) -> None:
    table = {"base": str(tiny_family["base"]), "donors": [str(tiny_family["warm"])], "weights": {}} | change
    (tmp_path / "recipe.json").write_text(json.dumps(table))
    with pytest.raises((RecipeError, CheckpointError), match=said) as caught:
        open_recipe(tmp_path / "recipe.json")
    assert "\n" not in str(caught.value)
    changed = {"base": {"path": str(tiny_family["base"]), "sha256": "0" * 64}, "donors": [], "weights": {}}
    (tmp_path / "recipe.json").write_text(json.dumps(changed))
    with pytest.raises(RecipeError, match="not the 'base' of the recipe"):
        open_recipe(tmp_path / "recipe.json")


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float32])
def test_types_may_be_mixed_in_a_file_and_between_files(
    kind: torch.dtype, sources: list[Checkpoint], tiny_family: dict[str, Path], tmp_path: Path
) -> None:
    base, warm, _ = sources
    mixed = {
        key: tensor.to(kind) if "attn" in key and "model.diffusion_model" in key else tensor
        for key, tensor in load_file(tiny_family["base"]).items()
    }
    save_file(mixed, tmp_path / "mixed.safetensors")
    odd = open_checkpoint(tmp_path / "mixed.safetensors")
    recipe = Recipe.of(odd, [warm], "block", {"IN04": {"warm": 0.5}, "M00": {"warm": 1.0}})
    written = open_checkpoint(export_as(recipe, tmp_path / "x.safetensors", base=odd, donors=[warm]))
    assert {name: info.dtype for name, info in written.denoiser.items()} == {
        name: info.dtype for name, info in odd.denoiser.items()
    }
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    middle = odd.read(name).float() + 0.5 * (warm.read(name).float() - odd.read(name).float())
    assert torch.equal(written.read(name).float(), middle.to(kind).float())
    recipe = Recipe.of(base, [odd], "block", {"IN04": {"mixed": 1.0}})
    written = open_checkpoint(export_as(recipe, tmp_path / "y.safetensors", base=base, donors=[odd]))
    assert torch.equal(written.read(name), odd.read(name).half())
