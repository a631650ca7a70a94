"""Every row of the table of families: opened, inspected, blended, drawn, exported, loaded by diffusers alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmark.errors import InputError
from benchmark.images import to_bytes
from benchmark.pipelines.diffusers_generator import DiffusersGenerator
from benchmark.pipelines.generation import GenerationSettings
from benchmark.pipelines.loading import denoiser_of, load_pipeline
from benchmark.pipelines.quiet import quiet_diffusers
from benchmark.prompts.prompt_set import Prompt
from merger.blend.live import LiveDenoiser
from merger.checkpoints.adapter import open_donor
from merger.checkpoints.checkpoint import open_checkpoint
from merger.checkpoints.components import check_configuration, use_text_encoders, use_vae
from merger.checkpoints.inspect import format_inspection, inspect_files
from merger.checkpoints.names.transformer import network_shapes
from merger.checkpoints.names.unet import denoiser_names, text_encoder_names, vae_names
from merger.errors import CheckpointError
from merger.export.forms import ExportOptions, export_as
from merger.export.recipe import Recipe
from merger.layers.grouping import group
from merger.scoring.gradients.checkpointing import checkpointed
from merger.scoring.gradients.sampling import DifferentiableGenerator, Differentiation
from tests.conftest import SCHEDULER_CONFIG
from tests.merger.checkpoints.test_transformer_names import z_image_original
from tests.merger.conftest import TRANSFORMERS, small_sd3_keys, unet_config
from tests.merger.tiny_models import Family, Kind, make, read_index

NARROW: dict[str, Any] = {"cross_attention_dim": 16}
SHALLOW: dict[str, Any] = NARROW | {
    "transformer_layers_per_block": (1, 1, 2),
    "projection_class_embeddings_input_dim": 36,
}
NOISE = ("DDIMScheduler", SCHEDULER_CONFIG)
V = ("DDIMScheduler", SCHEDULER_CONFIG | {"prediction_type": "v_prediction"})
EULER = (
    "EulerDiscreteScheduler",
    {key: SCHEDULER_CONFIG[key] for key in ("beta_start", "beta_end", "beta_schedule", "steps_offset")},
)
TRAILING = ("EulerDiscreteScheduler", EULER[1] | {"timestep_spacing": "trailing"})
FLOW = ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0})
XL = "StableDiffusionXL"


def unet(family: str, text: str, scheduler: Any, pipeline: str = "StableDiffusionPipeline", **more: Any) -> Kind:
    size = SHALLOW if text == "two clips" else NARROW
    if text == "wide clip":  # by which a folder's U-Net is known as SD 2's
        size = {"cross_attention_dim": 1024}
    return Kind(family, unet_config(family) | size, pipeline, text, scheduler=scheduler, **more)


def transformer(family: str, pipeline: str, text: str, **more: Any) -> Kind:
    options = {"scheduler": FLOW, "single": False, "prediction": "flow"} | more
    return Kind(family, TRANSFORMERS[family], pipeline, text, **options)


def z_image_keys() -> dict[str, tuple[int, ...]]:
    return z_image_original(network_shapes(TRANSFORMERS["zimage"], "zimage"))


KINDS: dict[str, Kind] = {
    "sd1": unet("sd1", "clip", NOISE),
    "sd1, a folder": unet("sd1", "clip", NOISE, single=False),
    "sd1, the U-Net alone": unet("sd1", "clip", NOISE, whole=False),
    "sd1, inpainting": unet("sd1-inpainting", "clip", NOISE, "StableDiffusionInpaintPipeline"),
    "sd1, inpainting, a folder": unet("sd1-inpainting", "clip", NOISE, "StableDiffusionInpaintPipeline", single=False),
    "sd2, 512": unet("sd2", "openclip", NOISE),
    "sd2, 768-v": unet("sd2", "openclip", V, prediction="v"),
    "sd2, 768-v, a folder": unet("sd2", "wide clip", V, single=False, prediction="v"),
    "sdxl": unet("sdxl", "two clips", EULER, f"{XL}Pipeline"),
    "sdxl, a folder": unet("sdxl", "two clips", EULER, f"{XL}Pipeline", single=False),
    "sdxl, few steps": unet("sdxl", "two clips", TRAILING, f"{XL}Pipeline", draw={"steps": 1, "guidance": 0.0}),
    "sdxl, v-prediction": unet(
        "sdxl", "two clips", EULER, f"{XL}Pipeline", markers=("v_pred", "ztsnr"), prediction="v"
    ),
    "sdxl, inpainting": unet("sdxl-inpainting", "two clips", EULER, f"{XL}InpaintPipeline"),
    "sd3": transformer("sd3", "StableDiffusion3Pipeline", "sd3"),
    "sd3, a single file": Kind(
        "sd3",
        {**TRANSFORMERS["sd3"], "num_layers": 2, "dual_attention_layers": (), "qk_norm": None},
        "StableDiffusion3Pipeline",
        "sd3",
        scheduler=FLOW,
        whole=False,
        prediction="flow",
        keys=small_sd3_keys,
    ),
    "flux": transformer("flux", "FluxPipeline", "flux"),
    "lumina2": transformer("lumina2", "Lumina2Pipeline", "gemma"),
    "sana": transformer("sana", "SanaPipeline", "gemma"),
    "z-image": transformer("zimage", "ZImagePipeline", "qwen"),
    "z-image, a single file": transformer(
        "zimage", "ZImagePipeline", "qwen", single=True, whole=False, keys=z_image_keys
    ),
    "qwen-image": transformer("qwenimage", "QwenImagePipeline", "qwen-vl"),
}
PROMPTS = (Prompt(0, "blue hair, smile", ("blue hair", "smile"), 11), Prompt(1, "a red hat", ("red hat",), 12))
WEIGHTS = (0.6, -0.3)


@pytest.fixture(scope="module")
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    with quiet_diffusers():
        return make(KINDS[request.param], tmp_path_factory.mktemp("family"))


def settings(kind: Kind) -> GenerationSettings:
    return GenerationSettings(
        **{"steps": 2, "guidance": 3.0, "width": 32, "height": 32, "batch_size": 2} | dict(kind.draw)
    )


def drawn(generator: DiffusersGenerator) -> np.ndarray:
    return np.concatenate(list(generator.generate(PROMPTS))).astype(int)


@pytest.mark.parametrize("family", KINDS, indirect=True)
def test_what_is_exported_draws_what_the_live_blend_draws(family: Family, tmp_path: Path) -> None:
    kind = family.kind
    config = family.folder if kind.single else None
    seen = inspect_files([*family.files.values()], family.folder)
    assert seen["fit"]["ok"], seen["fit"]
    assert {(file["family"], file["prediction"]) for file in seen["files"]} == {(kind.family, kind.prediction)}
    assert seen["files"][0]["zero_snr"] == ("ztsnr" in kind.markers)

    base = open_checkpoint(family.files["base"])
    donors = [open_donor(family.files[name], base) for name in ("one", "two")]
    layers = group(base.denoiser, "block")
    weights = {layer: dict(zip(("one", "two"), WEIGHTS, strict=True)) for layer in layers}
    pipeline = load_pipeline(base.path, config=config)
    live = LiveDenoiser(denoiser_of(pipeline), base, donors, layers)
    generator = DiffusersGenerator(pipeline, settings(kind))
    before = drawn(generator)
    live.apply(weights)
    images = drawn(generator)
    assert np.abs(images - before).mean() > 2
    assert np.abs(images[0] - images[1]).mean() > 2

    recipe = Recipe.of(base, donors, "block", weights)
    output = tmp_path / ("blend.safetensors" if kind.single else "blend")
    export_as(recipe, output, base=base, donors=donors)
    again = drawn_plainly(plainly_loaded(kind, output, family.folder), kind)
    assert np.abs(images - again).max() <= 1


def plainly_loaded(kind: Kind, path: Path, folder: Path) -> Any:
    """The pipeline as a person has it who knows diffusers and not this program."""
    import diffusers

    network = getattr(diffusers, kind.pipeline)
    with quiet_diffusers():
        if not kind.single:
            return network.from_pretrained(path, local_files_only=True, torch_dtype=torch.float32)
        parts = {}
        if not kind.whole:
            parts = beside(folder)
        if kind.text in ("clip", "openclip", "wide clip"):
            parts["safety_checker"] = None
        pipeline = network.from_single_file(path, config=str(folder), local_files_only=True, **parts)
        if "v_pred" in kind.markers:
            said = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
            pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **said)
        return pipeline


def beside(folder: Path) -> dict[str, Any]:
    """A pipeline folder's VAE and text encoders, which a file of a denoiser alone is joined with."""
    import diffusers
    import transformers

    index = read_index(folder)
    kinds = {name: index[name] for name in index if name.startswith(("vae", "text_encoder"))}
    libraries = {"diffusers": diffusers, "transformers": transformers}
    return {name: getattr(libraries[home], kind).from_pretrained(folder / name) for name, (home, kind) in kinds.items()}


def drawn_plainly(pipeline: Any, kind: Kind) -> np.ndarray:
    """`PROMPTS`, one at a time, in the words of the pipeline's own documentation."""
    import PIL.Image

    how = settings(kind)
    options: dict[str, Any] = {"guidance_scale": how.guidance}
    if "Inpaint" in kind.pipeline:
        options |= {"image": PIL.Image.new("RGB", (32, 32)), "mask_image": PIL.Image.new("L", (32, 32), 255)}
        options["strength"] = 1.0
    if kind.family == "qwenimage":
        options = {"true_cfg_scale": how.guidance}
    if kind.family == "sana":
        options["use_resolution_binning"] = False
    if how.guidance > 1 and not kind.pipeline.startswith(XL):  # which takes zeros where nothing is said
        options["negative_prompt"] = ""
    pipeline.set_progress_bar_config(disable=True)
    images = []
    with quiet_diffusers():
        for prompt in PROMPTS:
            noise = torch.Generator().manual_seed(prompt.seed)
            size = {"height": how.height, "width": how.width, "num_inference_steps": how.steps}
            made = pipeline(prompt.text, generator=noise, output_type="np", **size, **options).images
            images.append(np.round(made[0] * 255))
    return np.stack(images).astype(int)


@pytest.mark.parametrize("family", ["sdxl, v-prediction"], indirect=True)
def test_what_markers_of_a_file_say_a_folder_says_in_its_scheduler(family: Family, tmp_path: Path) -> None:
    base = open_checkpoint(family.files["base"])
    donor = open_donor(family.files["one"], base)
    recipe = Recipe.of(base, [donor], "stage", {"MID": {"one": 1.0}})
    how = ExportOptions(format="diffusers", pipeline=family.folder)
    folder = export_as(recipe, tmp_path / "blend", how, base=base, donors=[donor])
    file = export_as(recipe, tmp_path / "blend.safetensors", base=base, donors=[donor])
    images = drawn(DiffusersGenerator(load_pipeline(file, config=family.folder), settings(family.kind)))
    plain = plainly_loaded(replace(family.kind, single=False), folder, family.folder)
    assert (plain.scheduler.config.prediction_type, plain.scheduler.config.rescale_betas_zero_snr) == (
        "v_prediction",
        1,
    )
    assert np.abs(images - drawn_plainly(plain, family.kind)).max() <= 3  # its text encoders are stored as fp16


@pytest.mark.parametrize("family", ["sd1, the U-Net alone"], indirect=True)
def test_parts_that_a_file_lacks_may_come_from_elsewhere(family: Family, tmp_path: Path) -> None:
    configuration = shutil.copytree(family.folder, tmp_path / "configuration")
    for weights in configuration.glob("*/*.safetensors"):
        weights.unlink()
    file = family.files["base"]
    with pytest.raises(InputError, match=r"base.safetensors: holds no text_encoder, and .*configuration.text_encoder"):
        load_pipeline(file, config=configuration)
    pipeline = load_pipeline(file, config=configuration, to_fill=("vae", "text_encoder"))
    use_vae(pipeline, family.folder)
    use_text_encoders(pipeline, family.folder)
    whole = load_pipeline(file, config=family.folder)
    images = [drawn(DiffusersGenerator(each, settings(family.kind))) for each in (pipeline, whole)]
    assert np.array_equal(*images)


@pytest.mark.parametrize("family", ["sd1, inpainting"], indirect=True)
def test_gradients_of_an_inpainting_model_see_the_images_it_draws(family: Family) -> None:
    pipeline = load_pipeline(family.files["base"], config=family.folder)
    generator = DifferentiableGenerator(pipeline, settings(family.kind))
    weight = pipeline.unet.mid_block.resnets[0].conv1.weight.requires_grad_()
    images = generator.draw(PROMPTS, pipeline.unet, Differentiation(0.5))
    images.sum().backward()
    assert weight.grad is not None
    assert float(weight.grad.abs().max()) > 0
    assert np.abs(to_bytes(images.detach()).astype(int) - drawn(generator)).max() <= 1
    alone = np.concatenate(
        list(generator.generate(PROMPTS[1:]))
    )  # also the masked image's encoding is its prompt's own
    assert np.abs(alone.astype(int) - drawn(generator)[1:]).max() <= 1


@pytest.mark.parametrize("chain", [1.0, 0.0])
@pytest.mark.parametrize(
    "family", ["sd1", "sdxl", "sd3", "flux", "lumina2", "sana", "z-image", "qwen-image"], indirect=True
)
def test_however_gradients_are_computed_they_are_the_same(family: Family, chain: float) -> None:
    """Z-Image takes and returns its images in lists, where torch's own checkpoint does not see them."""
    pipeline = load_pipeline(family.files["base"], config=family.folder)
    generator, denoiser = DifferentiableGenerator(pipeline, settings(family.kind)), denoiser_of(pipeline)
    parameters = [each for each in denoiser.parameters() if each.ndim == 2][:3]

    def gradients(networks: Sequence[torch.nn.Module] = (), **options: bool) -> list[torch.Tensor]:
        for parameter in parameters:
            parameter.requires_grad_().grad = None
        with checkpointed(networks):
            how = Differentiation(1.0, chain=chain, **options)  # type: ignore[arg-type]
            generator.draw(PROMPTS, denoiser, how).sum().backward()
        found = [parameter.grad for parameter in parameters]
        assert all(each is not None for each in found), "no gradient reached it"
        return [each for each in found if each is not None]

    plain = gradients(recompute=False)
    assert all(float(each.abs().max()) > 0 for each in plain)
    both = (denoiser, pipeline.vae)
    savings = {
        "computed again": gradients(),
        "streamed": gradients(streamed=True),
        "halves": gradients(halves=True),
        "blocks": gradients(both, recompute=False),
        "blocks, within steps": gradients(both),
        "all": gradients(both, halves=True, streamed=True),
    }
    for name, found in savings.items():
        for ours, theirs in zip(plain, found, strict=True):
            assert float((ours - theirs).norm()) <= 1e-5 * float(ours.norm()), name


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("sd2-depth", "a depth model draws from an image"),
        ("sd1-instruct-pix2pix", "InstructPix2Pix"),
        ("sd2-upscaler", "an upscaler draws from an image"),
        ("sd2-unclip", "an unCLIP model draws from the embedding of an image"),
    ],
)
def test_what_draws_from_an_image_is_blended_and_refused_by_a_search(named: str, said: str, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    config = unet_config(named)
    keys, shapes = denoiser_names(config), network_shapes(config, named)
    files = [tmp_path / f"{name}.safetensors" for name in ("base", "one", "two")]
    for seed, file in enumerate(files):
        noise = torch.Generator().manual_seed(seed)
        save_file({keys[name]: torch.randn(shapes[name], generator=noise).half() for name in shapes}, file)
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps(config))
    seen = inspect_files(files, tmp_path)
    assert seen["fit"]["ok"]
    assert [file["family"] for file in seen["files"]] == [named] * 3

    def loaded(file: Path) -> Any:
        options = {"config": str(tmp_path), "subfolder": "unet", "torch_dtype": torch.float16}
        return UNet2DConditionModel.from_single_file(str(file), **options)

    base = open_checkpoint(files[0])
    donors = [open_donor(file, base) for file in files[1:]]
    layers = group(base.denoiser, "block")
    weights = {layer: {"one": 0.25, "two": 0.5} for layer in layers}
    module = loaded(files[0])
    LiveDenoiser(module, base, donors, layers).apply(weights)
    recipe = Recipe.of(base, donors, "block", weights)
    plain = loaded(export_as(recipe, tmp_path / "blend.safetensors", base=base, donors=donors)).state_dict()
    assert plain.keys() == shapes.keys()
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, plain[name]), name
    with pytest.raises(CheckpointError, match=f"^{base.path}: .*{said}.*`merger merge`") as caught:
        check_configuration(base, None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("pipeline", "channels"),
    [
        ("StableDiffusionDepth2ImgPipeline", 5),
        ("StableDiffusionInstructPix2PixPipeline", 8),
        ("StableDiffusionUpscalePipeline", 7),
        ("StableUnCLIPImg2ImgPipeline", 4),
        ("StableDiffusionPipeline", 9),  # a mistake in somebody's model_index.json
    ],
)
def test_what_draws_from_an_image_is_refused_by_the_generator(pipeline: str, channels: int) -> None:
    import diffusers

    network = getattr(diffusers, pipeline)
    parts = dict.fromkeys(network._get_signature_keys(network)[0])
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "mid_block_type": None}
    small = {"block_out_channels": (8,), "norm_num_groups": 4, "layers_per_block": 1, "sample_size": 64}
    parts["unet"] = diffusers.UNet2DConditionModel(in_channels=channels, **small, **blocks)
    parts["vae"] = diffusers.AutoencoderKL(**small)
    options = {"requires_safety_checker": False} if pipeline == "StableDiffusionPipeline" else {}
    with quiet_diffusers():
        made = network(**parts | {"scheduler": diffusers.DDIMScheduler(**SCHEDULER_CONFIG)}, **options)
    said = "cannot draw with a U-Net of 9 input channels" if channels == 9 else "draws from an image"
    with pytest.raises(InputError, match=f"^A {pipeline} {said}"):
        DiffusersGenerator(made, GenerationSettings())


@pytest.mark.parametrize("family", ["sd1"], indirect=True)
def test_weights_of_other_kinds_are_named_and_no_donors(family: Family, tmp_path: Path) -> None:
    import diffusers

    pipeline = load_pipeline(family.files["base"], config=family.folder)
    control = diffusers.ControlNetModel.from_unet(pipeline.unet, conditioning_channels=3).state_dict()
    vae, text = pipeline.vae.state_dict(), pipeline.text_encoder.state_dict()
    originals = vae_names(dict(pipeline.vae.config))
    odd = {
        "control": (control, "controlnet", "a ControlNet: it steers a denoiser and is none"),
        "vae": (vae, "vae", "a VAE alone"),
        "vae-original": ({key: vae[name] for name, key in originals.items()}, "vae", "a VAE alone"),
        "text": ({f"text_model.{name}": text[name] for name in text}, "text-encoder", "a text encoder alone"),
        "text-original": (
            {key: text[name] for name, key in text_encoder_names(text).items()},
            "text-encoder",
            "a text encoder alone",
        ),
    }
    base = open_checkpoint(family.files["base"])
    for name, (tensors, kind, words) in odd.items():
        file = tmp_path / f"{name}.safetensors"
        save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, file)
        (seen,) = inspect_files([file])["files"]
        assert (seen["kind"], seen["words"]) == (kind, words)
        assert words in format_inspection(inspect_files([base.path, file]))
        with pytest.raises(CheckpointError, match=f"^{file}: is {words}") as caught:
            open_donor(file, base)
        assert "\n" not in str(caught.value)
