"""The family that comes with the project: what its page promises, and a real search on it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors import safe_open

from benchmark.prompts.prompt_set import make_prompts
from benchmark.prompts.vocabulary import read_vocabulary
from benchmark.taggers.registry import open_tagger
from benchmark.taggers.tagger import Tagger
from merger.app.cli import main
from scripts import demo_world

DEMO = Path(__file__).resolve().parent.parent / "demo"
CHECKPOINTS = sorted((DEMO / "checkpoints").glob("*.safetensors"))
NAMES = {"base", "barber", "optician", "actor", "tailor"}
PARTS = {"model.diffusion_model", "first_stage_model", "cond_stage_model.transformer.text_model"}


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray]:
    """Fresh pictures uint8 [I, 64, 64, 3] and what is in them bool [I, tag]."""
    rng = np.random.default_rng(20_261)
    names = read_vocabulary(DEMO / "vocabulary.csv").tags
    described = [demo_world.sample_tags(rng) for _ in range(400)]
    images = np.stack([np.asarray(demo_world.draw(tags, rng)) for tags in described])
    return images, np.array([[name in tags for name in names] for tags in described])


def test_its_files_say_the_resolution_that_they_are_made_for(tmp_path: Path) -> None:
    """A blend keeps it; without it, it would be SD 1's."""
    for path in CHECKPOINTS:
        with safe_open(path, "pt") as file:
            assert file.metadata()["modelspec.resolution"] == "64x64", path
    recipe = {
        "base": str(DEMO / "checkpoints" / "base.safetensors"),
        "donors": [str(DEMO / "checkpoints" / "actor.safetensors")],
        "weights": {"*": {"actor": 0.5}},
    }
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    assert main(["merge", str(tmp_path / "recipe.json"), "--output", str(tmp_path / "blend.safetensors")]) == 0
    with safe_open(tmp_path / "blend.safetensors", "pt") as file:
        assert file.metadata()["modelspec.resolution"] == "64x64"


def test_the_family_fits_into_the_repository() -> None:
    assert {path.stem for path in CHECKPOINTS} == NAMES
    assert sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file()) <= 40e6


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.stem)
def test_each_checkpoint_has_the_original_layout_in_half_precision(path: Path) -> None:
    with safe_open(path, "np") as file:
        keys = list(file.keys())
        assert {str(file.get_slice(key).get_dtype()) for key in keys} == {"F16"}
    assert all(any(key.startswith(f"{part}.") for part in PARTS) for key in keys)
    blocks = {key.split(".")[2] + key.split(".")[3] for key in keys if key.startswith("model.diffusion_model.input_")}
    assert blocks == {f"input_blocks{number}" for number in range(12)}


def test_the_world_is_wide_enough() -> None:
    vocabulary = read_vocabulary(DEMO / "vocabulary.csv")
    assert len(vocabulary.tags) >= 45
    assert len(set(vocabulary.categories.values())) >= 7
    assert set(vocabulary.tags) <= {tag.name for tag in demo_world.TAGS}
    prompts = make_prompts(vocabulary, 50, tags_per_prompt=(4, 8), seed=1)
    group = {tag.name: tag.group for tag in demo_world.TAGS}
    assert all(len({group[tag] for tag in prompt.tags}) == len(prompt.tags) for prompt in prompts)


@pytest.mark.parametrize("name", ["tagger", "judge"])
def test_both_taggers_read_drawn_pictures(name: str, drawn: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = drawn
    tagger: Tagger = open_tagger(DEMO / name)
    assert tagger.tags == read_vocabulary(DEMO / "vocabulary.csv").tags
    found = tagger.probabilities(images) >= 0.5
    assert found[labels].mean() >= 0.98
    assert found[~labels].mean() <= 0.01


def test_the_tagger_says_the_same_in_both_of_its_forms(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    images = drawn[0][:64]
    torch_form = open_tagger(DEMO / "tagger", kind="transformers")
    onnx_form = open_tagger(DEMO / "tagger", kind="wd")
    assert onnx_form.tags == torch_form.tags
    assert np.abs(onnx_form.probabilities(images) - torch_form.probabilities(images)).max() <= 1e-4


def test_tagger_and_judge_are_of_different_architectures() -> None:
    kinds = [json.loads((DEMO / name / "config.json").read_text())["architectures"] for name in ("tagger", "judge")]
    assert kinds[0] != kinds[1]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a short search on the real family, stopped after 10 trials and resumed for one more."""
    place = tmp_path_factory.mktemp("search")
    settings = yaml.safe_load((DEMO / "search.yaml").read_text())
    for key in ("base", "pipeline", "judge", "vocabulary"):
        settings[key] = str(DEMO / settings[key])
    settings["tagger"]["path"] = str(DEMO / settings["tagger"]["path"])
    settings["donors"] = [str(DEMO / donor) for donor in settings["donors"]]
    settings |= {"prompts": 8, "validation_prompts": 8, "test_prompts": 16, "trials": 10, "batch_size": 8}
    settings |= {
        "method": "cmaes",
        "granularity": "stage",
        "baselines": [],
    }  # every trial of it is a blend with a score
    (place / "short.yaml").write_text(yaml.safe_dump(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main(["search", "short.yaml", "--name", "short"]) == 0
        assert main(["resume", "runs/short", "--trials", "11"]) == 0
    return place / "runs" / "short"


def test_a_search_on_the_family_finds_draws_and_shows(searched: Path) -> None:
    result = json.loads((searched / "result.json").read_text())
    assert result["trials"] == 11
    base = next(model for model in result["models"] if model["role"] == "base")
    assert 0.5 <= base["accuracy"] <= 0.9
    assert (searched / "report.html").stat().st_size > 10_000


def test_plain_diffusers_draws_the_same_images_from_the_exported_file(
    searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from diffusers import StableDiffusionPipeline

    from benchmark.pipelines.diffusers_generator import DiffusersGenerator
    from benchmark.pipelines.generation import GenerationSettings
    from benchmark.pipelines.loading import load_pipeline
    from merger.blend.live import LiveDenoiser
    from merger.checkpoints.checkpoint import open_checkpoint
    from merger.export.recipe import Recipe
    from merger.layers.grouping import group

    file = tmp_path / "blend.safetensors"
    assert main(["export", str(searched), "--trial", "8", "--output", str(file)]) == 0
    assert main(["verify", str(file), "--run", str(searched), "--score"]) == 0

    prompts = make_prompts(read_vocabulary(DEMO / "vocabulary.csv"), 4, tags_per_prompt=(4, 8), seed=3)
    settings = GenerationSettings(steps=4, sampler="ddim", guidance=4.0, width=64, height=64, batch_size=4)
    with safe_open(file, "np") as opened:
        recipe = Recipe.from_metadata(opened.metadata())
    checkpoints = {path.stem: open_checkpoint(path) for path in CHECKPOINTS}
    pipeline = load_pipeline(
        DEMO / "checkpoints" / "base.safetensors", config=DEMO / "pipeline", dtype=torch.float32, device="cpu"
    )
    base = checkpoints["base"]
    layers = group(base.denoiser, recipe.granularity)
    live = LiveDenoiser(pipeline.unet, base, [checkpoints[donor.name] for donor in recipe.donors], layers)
    live.apply(recipe.weights)
    (searched_images,) = DiffusersGenerator(pipeline, settings).generate(prompts)

    plain = StableDiffusionPipeline.from_single_file(
        str(file), config=str(DEMO / "pipeline"), local_files_only=True, torch_dtype=torch.float32
    )
    plain.set_progress_bar_config(disable=True)
    drawn = plain(
        prompt=[prompt.text for prompt in prompts],
        generator=[torch.Generator("cpu").manual_seed(prompt.seed) for prompt in prompts],
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance,
        width=settings.width,
        height=settings.height,
        output_type="np",
    ).images
    assert np.abs(searched_images - drawn * 255).max() <= 1
