"""Keys of adapter files: which module of which network a tensor belongs to, and which part of the adapter it is.

Modules are looked up by their path with dots written as underscores, because that is what kohya's files have; so
diffusers' names, PEFT's, kohya's and ComfyUI's all meet in one table, with original names beside diffusers' names.
Pure: keys and metadata in, names out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

_PARTS: tuple[tuple[str, str], ...] = (  # how a key ends -> the part's name in `deltas`
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
_OLD_TEXT = re.compile(r"^(.+\.self_attn)\.to_(q|k|v|out)_lora\.(down|up)\.weight$")  # the same of text encoders
_TEXT = re.compile(r"^(lora_te\d?_|lora_text_model|text_encoder(_\d)?\.|lora_prior_te|lycoris_text_model|te\d?\.)")
_ENCODER = re.compile(r"^(?:lora_te(\d?)_|text_encoder(?:_(\d))?\.|te(\d?)\.|(?:lora|lycoris)_(?=text_model))(.+)$")
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
    known = list(keys)
    text = tuple(key for key in known if _TEXT.match(key))
    modules, unknown = _gathered(key for key in known if not _TEXT.match(key))
    return Sorted(modules, text, unknown)


def sort_text_keys(keys: Iterable[str]) -> Sorted:
    """The same for keys of text encoders: `modules` are theirs, and `text` is empty."""
    modules, unknown = _gathered(keys)
    return Sorted(modules, (), unknown)


def text_module(module: str) -> tuple[str, str]:
    """(the text encoder's name in a diffusers pipeline, the path as it is looked up) of a text encoder's module.

    The name is empty where it is no encoder that pipelines have. Some versions of the encoder have `text_model.` in
    front of their paths and some not; it is left out.
    """
    match = _ENCODER.match(module)
    if match is None:
        return "", module
    number = match[1] or match[2] or match[3] or "1"
    name = "text_encoder" if number == "1" else f"text_encoder_{number}"
    return name, match[4].replace(".", "_").removeprefix("text_model_")


def leaves(parts: Mapping[str, str]) -> list[tuple[str, Mapping[str, str]]]:
    """Which tensors of a module its parts change: `weight`, `bias` or both, each with the {part: key} that do it."""
    weighed = {part: key for part, key in parts.items() if part != "diff_b"}
    wanted: list[tuple[str, Mapping[str, str]]] = [("weight", weighed)] if set(weighed) - {"alpha"} else []
    return wanted + ([("bias", {"diff": parts["diff_b"]})] if "diff_b" in parts else [])


def alphas_in(metadata: Mapping[str, str], prefixes: tuple[str, ...]) -> Callable[[str, int], float | None]:
    """(module, rank) -> alpha, as the metadata that diffusers and PEFT write have it; None where they say nothing.

    prefixes: what stands before the entries of the network in question; "" for entries of no network.
    """
    try:
        table = dict(json.loads(metadata.get("lora_adapter_metadata", "{}")))
    except (ValueError, TypeError):
        table = {}
    said = {key.removeprefix(own): table[key] for own in prefixes for key in table if key.startswith(own)}
    special = said.get("alpha_pattern") or {}

    def alpha(module: str, rank: int) -> float | None:
        if not rank or "lora_alpha" not in said:
            return None
        own = float(next((value for key, value in special.items() if module.endswith(key)), said["lora_alpha"]))
        return own * rank**0.5 if said.get("use_rslora") else own

    return alpha


def flat_module(module: str) -> str:
    """A module's path as it is looked up: no prefix, underscores for dots."""
    changed = True
    while changed:
        changed = False
        for prefix in _PREFIXES:
            if module.startswith(prefix):
                module, changed = module.removeprefix(prefix), True
    return module.replace(".", "_")


def _gathered(keys: Iterable[str]) -> tuple[dict[str, dict[str, str]], tuple[str, ...]]:
    """({module: {part: key}}, keys of no known meaning)."""
    modules: dict[str, dict[str, str]] = {}
    unknown = []
    for key in keys:
        if (found := _split(key)) is None:
            unknown.append(key)
        else:
            modules.setdefault(found[0], {})[found[1]] = key
    return modules, tuple(unknown)


def _split(key: str) -> tuple[str, str] | None:
    """(module, part) of a key, or nothing."""
    if match := _PROCESSOR.match(key):
        module = f"{match[1]}.{match[2]}" + (".0" if match[2] == "to_out" else "")
        return module, match[3]
    if match := _OLD_TEXT.match(key):
        return f"{match[1]}.{match[2]}_proj", match[3]
    for pattern, part in _COMPILED:
        if match := pattern.match(key):
            return match[1], part.format(match[2] if match.lastindex and match.lastindex > 1 else "")
    return None
