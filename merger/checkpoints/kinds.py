"""Which kind of weights a file without a denoiser holds, from its keys alone. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

# kind, a pattern that one of its keys must match, what it is in words. The first kind whose pattern is found is it.
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
_CONTROLNET = next(pattern for kind, pattern, _ in _COMPILED if kind == "controlnet")


def kind_of(keys: Iterable[str]) -> tuple[str, str]:
    """Which kind of weights these are, given that they hold no denoiser: (kind, in words), or `unknown`."""
    known = list(keys)
    for kind, pattern, words in _COMPILED:
        if any(pattern.search(key) for key in known):
            return kind, words
    return "unknown", "none of the kinds that are known here"


def is_controlnet(keys: Iterable[str]) -> bool:
    """Whether these are the keys of a ControlNet, whose other half looks like a denoiser's."""
    return any(_CONTROLNET.search(key) for key in keys)
