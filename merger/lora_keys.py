"""Keys of adapter files: which module of which network a tensor belongs to, and which part of the adapter it is.

Modules are looked up by their path with dots written as underscores, because that is what kohya's files have; so
diffusers' names, PEFT's, kohya's and ComfyUI's all meet in one table, with original names beside diffusers' names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_PARTS: tuple[tuple[str, str], ...] = (  # how a key ends -> the part's name in `merger.lora_deltas`
    (r"\.(lora_down|lora_A|lora_A\.default|lora\.down|lora_linear_layer\.down)\.weight", "down"),
    (r"\.(lora_up|lora_B|lora_B\.default|lora\.up|lora_linear_layer\.up)\.weight", "up"),
    (r"\.lora_mid\.weight", "mid"),
    (r"\.hada_(w[12]_[ab]|t[12])", "{0}"),
    (r"\.lokr_w([12](?:_[ab])?)", "k{0}"),
    (r"\.lokr_(t2)", "k{0}"),
    (r"\.(dora_scale)", "magnitude"),
    (r"\.(lora_magnitude_vector(?:\.default)?(?:\.weight)?)", "row_magnitude"),
    (r"\.(diff|w_norm)", "diff"),
    (r"\.(diff_b|b_norm)", "diff_b"),
    (r"\.(alpha|lora_alpha)", "alpha"),
)
_COMPILED = tuple((re.compile(f"^(.+?){pattern}$"), part) for pattern, part in _PARTS)
_PROCESSOR = re.compile(r"^(.+)\.processor\.(to_(?:q|k|v|out))_lora\.(down|up)\.weight$")  # diffusers before 0.20
_TEXT = re.compile(r"^(lora_te\d?_|lora_text_model|text_encoder(_\d)?\.|lora_prior_te|lycoris_text_model|te\d?\.)")
_PREFIXES = (
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "lora_transformer_",
    "lora_unet_",
    "lycoris_unet_",
    "lycoris_",
    "transformer.",
    "unet.",
)


@dataclass(frozen=True)
class Sorted:
    """Keys of an adapter file, sorted. modules: {module as the file calls it: {part: key}}; of the denoiser only."""

    modules: Mapping[str, Mapping[str, str]]
    text: tuple[str, ...]
    unknown: tuple[str, ...]


def sort_keys(keys: Iterable[str]) -> Sorted:
    """Sort the keys of an adapter file into parts of modules, text-encoder keys, and keys of no known meaning."""
    modules: dict[str, dict[str, str]] = {}
    text, unknown = [], []
    for key in keys:
        if _TEXT.match(key):
            text.append(key)
        elif (found := _split(key)) is None:
            unknown.append(key)
        else:
            modules.setdefault(found[0], {})[found[1]] = key
    return Sorted(modules, tuple(text), tuple(unknown))


def flat_module(module: str) -> str:
    """A module's path as it is looked up: no prefix, underscores for dots."""
    changed = True
    while changed:
        changed = False
        for prefix in _PREFIXES:
            if module.startswith(prefix):
                module, changed = module.removeprefix(prefix), True
    return module.replace(".", "_")


def _split(key: str) -> tuple[str, str] | None:
    """(module, part) of a key, or nothing."""
    if match := _PROCESSOR.match(key):
        module = f"{match[1]}.{match[2]}" + (".0" if match[2] == "to_out" else "")
        return module, match[3]
    for pattern, part in _COMPILED:
        if match := pattern.match(key):
            return match[1], part.format(match[2] if match.lastindex and match.lastindex > 1 else "")
    return None
