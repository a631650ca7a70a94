"""Families of models: one record each, which everything that depends on the family looks up.

To add a family, register its record (`register_family`): a file with its marker is then recognised, inspected, blended
and exported under its name. Pure; knows no file formats. Names of files say little, so a family is read from the
tensors alone: by marker, or, for the U-Nets of the table, by structure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

Shape = tuple[int, ...]
Prediction = Literal["epsilon", "v", "flow", "edm", "edm-v", "unknown"]
"""What a denoiser predicts. `edm` and `edm-v` are noise and v under EDM's noise levels (Playground 2.5, CosXL)."""


@dataclass(frozen=True)
class Family:
    """A family of models.

    name: what files, recipes and messages call it. marker: the diffusers name of a tensor that only this family's
    network has; empty if the structure tells. prediction: what its denoiser predicts if the file does not say.
    architecture: ModelSpec's identifier; empty if ModelSpec has none, and the name then stands for it. architectures:
    {prediction: identifier} if it depends on that. resolution: width and height that its models are made for, as
    ModelSpec writes it; empty if they are made for any. resolutions: {prediction: resolution} if it depends on that.
    implementation: the codebase that original files of it have the keys of, as ModelSpec wants it named. mecha:
    sd-mecha's name for files of its original layout, if it has one. not_from_text: why prompts alone cannot score it,
    in words; empty if they can.
    """

    name: str
    network: Literal["unet", "transformer"]
    marker: str = ""
    prediction: Prediction = "unknown"
    architecture: str = ""
    architectures: Mapping[str, str] = field(default_factory=dict)
    resolution: str = ""
    resolutions: Mapping[str, str] = field(default_factory=dict)
    implementation: str = "sgm"
    mecha: str = ""
    not_from_text: str = ""

    @property
    def network_in_words(self) -> str:
        """`U-Net` or `transformer`."""
        return "U-Net" if self.network == "unet" else "transformer"

    def architecture_of(self, prediction: str) -> str:
        """ModelSpec's identifier of a model that predicts this, or the family's name if ModelSpec has none."""
        return self.architectures.get(prediction, self.architecture or self.name)

    def resolution_of(self, prediction: str) -> str:
        """The resolution that a model which predicts this is made for; empty if it is made for any."""
        return self.resolutions.get(prediction, self.resolution)


_MARKERS = ("v_pred", "ztsnr", "edm_mean", "edm_vpred.sigma_max")
_MARKED = ("", "model.diffusion_model.")
"""Where marker keys are: beside a denoiser's keys, or under its prefix, where loaders of a denoiser alone see them."""

# U-Nets that take more than latents, in channels or as an embedding -> why prompts alone cannot score them. Inpainting
# models can be scored: everything is masked.
_VARIANTS = {
    "inpainting": "",
    "depth": "a depth model draws from an image",
    "upscaler": "an upscaler draws from an image",
    "instruct-pix2pix": "an image-editing model (InstructPix2Pix) draws from an image",
    "unclip": "an unCLIP model draws from the embedding of an image",
}
_EXTRA_INPUTS = {1: "depth", 3: "upscaler", 4: "instruct-pix2pix", 5: "inpainting"}
"""How many input channels a U-Net has beyond those of its latents -> what they make it."""

# Resolutions are those of kohya's sd-scripts (library/sai_model_spec.py, determine_resolution), which names the sources
# of original files in the same place (determine_implementation); `sgm` is ModelSpec's own example for Stable Diffusion.
_TABLE = (
    Family(
        "sd1",
        "unet",
        prediction="epsilon",
        architecture="stable-diffusion-v1",
        resolution="512x512",
        mecha="sd1-ldm",
    ),
    # SD 2 came as 512 (epsilon) and 768-v (v) with the same tensors, and the v ones have it in their scheduler.
    Family(
        "sd2",
        "unet",
        architecture="stable-diffusion-v2",
        architectures={"v": "stable-diffusion-v2-768-v", "epsilon": "stable-diffusion-v2-512"},
        resolution="512x512",
        resolutions={"v": "768x768"},
    ),
    Family(
        "sd2-inpainting",
        "unet",
        prediction="epsilon",
        architecture="stable-diffusion-v2-inpainting",
        resolution="512x512",
    ),
    Family(
        "sd2-depth",
        "unet",
        prediction="epsilon",
        architecture="stable-diffusion-v2-depth",
        resolution="512x512",
        not_from_text=_VARIANTS["depth"],
    ),
    Family(
        "sdxl",
        "unet",
        prediction="epsilon",
        architecture="stable-diffusion-xl-v1-base",
        resolution="1024x1024",
        mecha="sdxl-sgm",
    ),
    Family(
        "sdxl-refiner",
        "unet",
        prediction="epsilon",
        architecture="stable-diffusion-xl-v1-refiner",
        resolution="1024x1024",
    ),
    Family("unet", "unet", prediction="epsilon"),
    Family(
        "sd3",
        "transformer",
        "pos_embed.proj.weight",
        prediction="flow",
        architecture="stable-diffusion-3",
        resolution="1024x1024",
        mecha="sd3-comfyui",
    ),
    Family(
        "flux",
        "transformer",
        "single_transformer_blocks.0.proj_mlp.weight",
        prediction="flow",
        architecture="flux-1",
        resolution="1024x1024",
        implementation="https://github.com/black-forest-labs/flux",
        mecha="flux-flux",
    ),
    Family(
        "lumina2",
        "transformer",
        "time_caption_embed.caption_embedder.0.weight",
        prediction="flow",
        architecture="lumina-2",
        resolution="1024x1024",
        implementation="https://github.com/Alpha-VLLM/Lumina-Image-2.0",
    ),
    Family("zimage", "transformer", "all_x_embedder.2-1.weight", prediction="flow", architecture="z-image"),
    Family("qwenimage", "transformer", "txt_norm.weight", prediction="flow", architecture="qwen-image"),
    Family("sana", "transformer", "caption_projection.linear_1.weight", prediction="flow"),
)
_REGISTERED = {family.name: family for family in _TABLE}


def register_family(family: Family) -> None:
    """Add a family, or replace the one of its name. Its marker is looked for before those registered earlier."""
    _REGISTERED.pop(family.name, None)
    _REGISTERED[family.name] = family


def known_families() -> tuple[Family, ...]:
    """All records, in the order they were registered."""
    return tuple(_REGISTERED.values())


def markers() -> frozenset[str]:
    """The markers of all transformers."""
    return frozenset(family.marker for family in known_families() if family.network == "transformer" and family.marker)


def family_named(name: str) -> Family:
    """The record of this name.

    A U-Net that takes more than latents (`sdxl-inpainting`) has a record made from its stem's, unless it has its own.
    Any other name is a transformer that diffusers knows and the table does not.
    """
    if name in _REGISTERED:
        return _REGISTERED[name]
    for variant, why in _VARIANTS.items():
        stem = _REGISTERED.get(name.removesuffix(f"-{variant}"))
        if stem is not None:
            spec = f"{stem.architecture or stem.name}-{variant}"
            return replace(stem, name=name, marker="", architecture=spec, architectures={}, mecha="", not_from_text=why)
    return Family(name, "transformer", prediction="flow")


def transformer_family(names: Collection[str]) -> str:
    """The family of a transformer from its diffusers names; `transformer` if no record has its marker."""
    return _marked("transformer", names) or "transformer"


def unet_family(shapes: Mapping[str, Shape], others: Sequence[str]) -> str:
    """The family of a U-Net.

    shapes: {diffusers name: shape}. others: the file's other keys. Returns the family whose marker it has, or else
    `sd1`, `sd2`, `sdxl`, `sdxl-refiner` or `unet`; with `-inpainting`, `-depth`, `-instruct-pix2pix` or `-upscaler`
    for what its further input channels carry, or `-unclip` if it takes the embedding of an image.
    """
    family = _marked("unet", shapes) or _by_structure(shapes, others)
    channels = _width(shapes["conv_in.weight"])
    latents = shapes["conv_out.weight"][0] if shapes.get("conv_out.weight") else 4
    variant = "inpainting" if channels == 9 else _EXTRA_INPUTS.get(channels - latents)
    if "class_embedding.linear_1.weight" in shapes:
        variant = "unclip"
    return f"{family}-{variant}" if variant else family


def prediction_of(
    family: str, keys: Iterable[str], metadata: Mapping[str, str], scheduler: Mapping[str, object] | None = None
) -> tuple[Prediction, bool]:
    """What the denoiser predicts, and whether its noise schedule ends at pure noise (zero terminal SNR).

    keys: all keys of the file. scheduler: the `scheduler_config.json` beside it, if there is one. Decided by, in this
    order: marker keys of the file (`v_pred`, `ztsnr`, `edm_...`), the scheduler, metadata, the family's record.
    """
    said, zero = said_prediction(keys, metadata, scheduler)
    usual = family_named(family).prediction
    return (usual if said is None or (usual == "flow" and said == "epsilon") else said), zero


def said_prediction(
    keys: Iterable[str], metadata: Mapping[str, str], scheduler: Mapping[str, object] | None = None
) -> tuple[Prediction | None, bool]:
    """The same without the family's record: None for what nobody says.

    The markers and their order are those of ComfyUI (`SDXL.model_type` in comfy/supported_models.py). It also writes
    `modelspec.predict_key` (comfy_extras/nodes_model_merging.py), where ModelSpec has `prediction_type`.
    """
    known = set(keys)
    marked = {marker for marker in _MARKERS for start in _MARKED if start + marker in known}
    scheduler = scheduler or {}
    zero = "ztsnr" in marked or bool(scheduler.get("rescale_betas_zero_snr"))
    said = str(scheduler.get("prediction_type", ""))
    said = said or metadata.get("modelspec.prediction_type", "") or metadata.get("modelspec.predict_key", "")
    v = said in ("v", "v_prediction")
    kind = str(scheduler.get("_class_name", "")).lower()
    architecture = metadata.get("modelspec.architecture", "")
    if "edm_mean" in marked:
        return "edm", zero
    if "edm_vpred.sigma_max" in marked:
        return "edm-v", zero
    if "v_pred" in marked:
        return "v", zero
    if kind.startswith("edm"):
        return ("edm-v" if v else "edm"), zero
    if v or "768-v" in architecture:
        return "v", zero
    if "flow" in kind:
        return "flow", zero
    return ("epsilon" if said == "epsilon" or "512" in architecture else None), zero


def _marked(network: str, names: Collection[str]) -> str:
    """The family of this network whose marker is among the names, the last registered first; empty if none is."""
    families = (family for family in reversed(known_families()) if family.network == network)
    return next((family.name for family in families if family.marker and family.marker in names), "")


def _by_structure(shapes: Mapping[str, Shape], others: Sequence[str]) -> str:
    """Which of the table's U-Nets this is: they have no tensor of their own, but embeddings, widths and levels."""
    four_levels = "down_blocks.3.resnets.0.conv1.weight" in shapes
    if any(name.startswith("add_embedding.") for name in shapes):
        return "sdxl-refiner" if four_levels else "sdxl"
    text = [_width(shape) for name, shape in shapes.items() if name.endswith("attn2.to_k.weight")]
    if any(key.startswith("cond_stage_model.model.") for key in others) or (text and text[0] == 1024):
        return "sd2"
    return "sd1" if text and four_levels else "unet"


def _width(shape: Shape) -> int:
    """The second dimension; 0 without one, as quantised weights may be."""
    return shape[1] if len(shape) > 1 else 0
