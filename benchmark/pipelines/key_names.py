"""Keys of single files in other spellings than diffusers reads, and keys that it would not read at all.

diffusers looks for an encoder or a VAE under fixed keys, and takes the configuration folder's where it finds none. So
what a file holds under other keys would be replaced without a word. Two kinds of spelling are read here nevertheless:
what training frameworks put around a network's name (`_orig_mod.` of torch.compile, `module.` of data-parallel models,
`state_dict.`), and CLIP without the `text_model.` in its path, as transformers wrote it before 4.0 and after 5.6. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_COMPILED = "_orig_mod."
_OUTER = ("state_dict.", "module.")
_CLIP_PREFIXES = (
    "cond_stage_model.transformer.",  # SD 1
    "conditioner.embedders.0.transformer.",  # SDXL
    "text_encoders.clip_l.transformer.",  # SD 3, Flux
    "text_encoders.clip_g.transformer.",
)
_CLIP_PARTS = ("embeddings.", "encoder.", "final_layer_norm.")
_WRAPPER = "text_model."
_TEXT = re.compile(
    r"^text_encoders\.|(^|\.)(text_model\.(encoder|embeddings)\.|transformer\.resblocks\.\d|encoder\.layers\.\d+\.(self_attn|mlp)\."
    r"|encoder\.block\.\d+\.layer\.|embeddings\.token_embedding|token_embedding\.weight)"
)
_VAE = re.compile(
    r"(^|\.)(decoder|encoder)\.(mid\.|mid_block\.|up\.\d|down\.\d|up_blocks\.\d|down_blocks\.\d|conv_in\.|conv_out\.)"
)
# networks whose blocks may look like an encoder's, and encoders of images and of depth
_ELSEWHERE = re.compile(
    r"^(model\.diffusion_model|diffusion_model|unet|transformer|model_ema|control_model|depth_model)\.|(^|\.)visual\."
)
_VAE_PREFIXES = ("first_stage_model.", "vae.")


def usual(key: str) -> str:
    """A key in the spelling that diffusers reads; the key itself if it is none of the spellings known here."""
    key = key.replace(_COMPILED, "")
    while key.startswith(_OUTER):
        for wrapper in _OUTER:
            key = key.removeprefix(wrapper)
    for prefix in _CLIP_PREFIXES:
        inside = key.removeprefix(prefix)
        if inside != key and inside.startswith(_CLIP_PARTS):
            return prefix + _WRAPPER + inside
    return key


def by_usual_key(keys: Iterable[str]) -> dict[str, str]:
    """{usual key: the file's key}. Raises ValueError, as the end of a sentence on the file, if two keys are one."""
    found: dict[str, str] = {}
    for key in keys:
        name = usual(key)
        if name in found:
            raise ValueError(f"'{found[name]}' and '{key}' are one tensor under two keys. Which counts is not clear.")
        found[name] = key
    return found


def stray_text(keys: Iterable[str], read: Iterable[str]) -> str:
    """The first key of a text encoder that lies under none of the prefixes `read`; empty if there is none."""
    prefixes = tuple(read)
    return next((key for key in keys if _TEXT.search(key) and not _belongs(key, prefixes)), "")


def stray_vae(keys: Iterable[str]) -> str:
    """The first key of a VAE that lies where diffusers does not look for one; empty if there is none."""
    return next((key for key in keys if _VAE.search(key) and not _belongs(key, _VAE_PREFIXES)), "")


def holds_vae(keys: Iterable[str]) -> bool:
    """Whether there is a VAE where diffusers looks for it."""
    return any(key.startswith(_VAE_PREFIXES) for key in keys)


def _belongs(key: str, prefixes: tuple[str, ...]) -> bool:
    return key.startswith(prefixes) or _ELSEWHERE.search(key) is not None
