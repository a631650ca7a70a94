"""What a file is, from the keys and shapes in its header alone: which kind of weights, which family, what it predicts.

Pure; knows no file formats. A U-Net's family is read from its structure, because names of files say little.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

Shape = tuple[int, ...]

# kind -> (a pattern that one of its keys must have, what it is in words). The first that is found is it.
_KINDS: tuple[tuple[str, str, str], ...] = (
    (
        "lora",
        r"(^|\.|_)(lora\.(up|down)|lora_(up|down|A|B|mid|te\d?|unet|transformer)|hada_w1_a|lokr_w[12](_a)?|dora_scale)"
        r"(\.|_|$)",
        "a LoRA (it goes among the donors)",
    ),
    (
        "controlnet",
        r"^(control_model\.|controlnet_|input_hint_block\.|zero_convs\.|control_layers\.)|^\w*controlnet",
        "a ControlNet: it steers a denoiser and is none",
    ),
    ("motion", r"\.motion_modules\.", "an AnimateDiff motion module: it goes into a denoiser and is none"),
    (
        "embedding",
        r"^(emb_params|string_to_param|clip_[lg]$|<[^>]+>$)",
        "a textual inversion: a few word vectors, no denoiser",
    ),
    ("ip-adapter", r"^(ip_adapter|image_proj)\.", "an IP-Adapter: it steers a denoiser and is none"),
    (
        "vae",
        r"^(first_stage_model\.|vae\.)?(decoder|encoder)\.(conv_in|mid|up|down|mid_block|project_in)",
        "a VAE alone",
    ),
    (
        "text-encoder",
        r"(^|\.)(text_model\.(encoder|embeddings)\.|transformer\.resblocks\.|encoder\.block\.0\.layer\.|layers\.0\.self_attn\.)",
        "a text encoder alone",
    ),
    ("upscaler", r"^(model\.\d+\.|conv_first|params_ema)", "an image upscaler (ESRGAN or the like)"),
)
_COMPILED = tuple((kind, re.compile(pattern), words) for kind, pattern, words in _KINDS)
_INPUT = "conv_in.weight"
# input channels beyond those of the latents -> what they carry
_EXTRA_INPUTS = {1: "depth", 3: "upscaler", 4: "instruct-pix2pix", 5: "inpainting"}
# those whose images come from another image, so that prompts alone cannot score them; an inpainting model's do not
# where all is masked
_FROM_IMAGES = {
    "depth": "a depth model draws from an image",
    "upscaler": "an upscaler draws from an image",
    "instruct-pix2pix": "an image-editing model (InstructPix2Pix) draws from an image",
    "unclip": "an unCLIP model draws from the embedding of an image",
}


def kind_of(keys: Iterable[str]) -> tuple[str, str]:
    """Which kind of weights these are where they hold no denoiser: (kind, in words); `unknown` where nothing fits."""
    known = list(keys)
    for kind, pattern, words in _COMPILED:
        if any(pattern.search(key) for key in known):
            return kind, words
    return "unknown", "none of the kinds that are known here"


def is_adapter(keys: Iterable[str]) -> bool:
    """Whether these are the keys of a LoRA or one of its relatives."""
    return any(_COMPILED[0][1].search(key) for key in keys)


def is_controlnet(keys: Iterable[str]) -> bool:
    """Whether these are the keys of a ControlNet, whose other half looks like a denoiser's."""
    return any(_COMPILED[1][1].search(key) for key in keys)


def unet_family(shapes: Mapping[str, Shape], others: Sequence[str]) -> str:
    """Which kind of U-Net this is.

    shapes: {diffusers name: shape}. others: the file's other keys. Returns `sd1`, `sd2`, `sdxl`, `sdxl-refiner` or
    `unet`, with what its further input channels carry: `-inpainting`, `-depth`, `-instruct-pix2pix`, `-upscaler`; or
    `-unclip` where it takes the embedding of an image.
    """
    text = [shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight")]
    if any(name.startswith("add_embedding.") for name in shapes):
        refiner = "down_blocks.3.resnets.0.conv1.weight" in shapes
        family = "sdxl-refiner" if refiner else "sdxl"
    elif any(key.startswith("cond_stage_model.model.") for key in others) or (text and text[0] == 1024):
        family = "sd2"
    else:
        family = "sd1" if text and "down_blocks.3.resnets.0.conv1.weight" in shapes else "unet"
    channels = shapes[_INPUT][1]
    latents = shapes["conv_out.weight"][0] if "conv_out.weight" in shapes else 4
    extra = "inpainting" if channels == 9 else _EXTRA_INPUTS.get(channels - latents)
    if "class_embedding.linear_1.weight" in shapes:
        extra = "unclip"
    return f"{family}-{extra}" if extra else family


def why_not_drawn(family: str) -> str | None:
    """Why a U-Net of this family cannot be scored by prompts, in words; None where it can."""
    return next((why for extra, why in _FROM_IMAGES.items() if family.endswith(f"-{extra}")), None)


def prediction_of(
    family: str, keys: Iterable[str], metadata: Mapping[str, str], scheduler: Mapping[str, object] | None = None
) -> tuple[str, bool]:
    """What the denoiser predicts, and whether its noise schedule ends at pure noise.

    scheduler: the `scheduler_config.json` beside it, where there is one. Returns (`epsilon`, `v`, `flow`, or `unknown`;
    zero terminal SNR). Said by, in this order: marker keys of the file (`v_pred`, `ztsnr`), the scheduler, ModelSpec
    metadata, the family. SD 2.x files say nothing of themselves (512: epsilon, 768-v: v), so those may be unknown.
    """
    known = set(keys)
    scheduler = scheduler or {}
    zero = "ztsnr" in known or bool(scheduler.get("rescale_betas_zero_snr"))
    said = str(scheduler.get("prediction_type", "")) or metadata.get("modelspec.prediction_type", "")
    architecture = metadata.get("modelspec.architecture", "")
    if "v_pred" in known or said in ("v", "v_prediction") or "768-v" in architecture:
        return "v", zero
    if "flow" in str(scheduler.get("_class_name", "")).lower() or not family.startswith(("sd1", "sd2", "sdxl", "unet")):
        return "flow", zero
    if said == "epsilon" or "512" in architecture or not family.startswith("sd2"):
        return "epsilon", zero
    # v-prediction came with the 768 models; inpainting, depth and upscaler ones have it written in their scheduler.
    return ("epsilon" if family in ("sd2-inpainting", "sd2-depth") else "unknown"), zero
