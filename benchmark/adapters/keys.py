"""Keys of adapter files: which module of which network a tensor belongs to, and which part of the adapter it is.

Modules are looked up by their path with dots written as underscores, because that is what kohya's files have; so
diffusers' names, PEFT's, kohya's and ComfyUI's all meet in one table, with original names beside diffusers' names.
Pure: keys in, names out.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

_PARTS: tuple[tuple[str, str], ...] = (  # how a key ends -> the part's name in `deltas`
    (r"\.(lora_down|lora_A(?:\.\w+)?|lora\.down|lora_linear_layer\.down)\.weight", "down"),
    (r"\.(lora_up|lora_B(?:\.\w+)?|lora\.up|lora_linear_layer\.up)\.weight", "up"),
    (r"\.(lora_B(?:\.\w+)?)\.bias", "up_bias"),
    (r"\.lora_mid\.weight", "mid"),
    (r"\.hada_(w[12]_[ab]|t[12])", "{0}"),
    (r"\.lokr_w([12](?:_[ab])?)", "k{0}"),
    (r"\.lokr_(t2)", "k{0}"),
    (r"\.(dora_scale)", "magnitude"),
    (r"\.(lora_magnitude_vector(?:\.\w+)?(?:\.weight)?)", "row_magnitude"),
    (r"\.(diff|w_norm)", "diff"),
    (r"\.(diff_b|b_norm)", "diff_b"),
    (r"\.(alpha|lora_alpha)", "alpha"),
)
_COMPILED = tuple((re.compile(f"^(.+?){pattern}$"), part) for pattern, part in _PARTS)
_PROCESSOR = re.compile(r"^(.+)\.processor\.(to_(?:q|k|v|out))_lora\.(down|up)\.weight$")  # diffusers before 0.20
_OLD_TEXT = re.compile(r"^(.+\.self_attn)\.to_(q|k|v|out)_lora\.(down|up)\.weight$")  # the same of text encoders
# XLabs' Flux adapters, whose attention processors hold the factors; lora1 is the image's, lora2 the text's
_XLABS = re.compile(r"^(.*\b(double|single)_blocks\.\d+)\.processor\.(qkv|proj)_lora([12]?)\.(down|up)\.weight$")
_XLABS_MODULES = {
    ("double", "qkv", "1"): "img_attn.qkv",
    ("double", "proj", "1"): "img_attn.proj",
    ("double", "qkv", "2"): "txt_attn.qkv",
    ("double", "proj", "2"): "txt_attn.proj",
    ("single", "qkv", ""): "linear1_qkv",
    ("single", "proj", ""): "linear2",
}
_FOREIGN: tuple[tuple[str, str], ...] = (  # what only keys of this kind of adapter have -> its name
    (r"\.on_input$|(^|\.)ia3_l", "IA3"),
    (r"\.(a1|a2|b1|b2|bm1|bm2)\.weight$|glora_", "GLoRA"),
    (r"\.boft_", "BOFT"),
    (r"\.oft_", "OFT"),
    (r"\.lora_E(\.|$)", "AdaLoRA"),
    (r"vera_(lambda|A|B)", "VeRA"),
    (r"\.hra_u", "HRA"),
    (r"\.vblora_", "VB-LoRA"),
    (r"\.fourierft_", "FourierFT"),
    (r"\.lora_embedding_[AB]", "LoRA of a table of embeddings"),
    (r"^(unet|text_encoder):\d+:(up|down)$", "LoRA in the first format (its modules are numbered, not named)"),
)
_FOREIGN_COMPILED = tuple((re.compile(pattern), kind) for pattern, kind in _FOREIGN)
_WRAPPERS = re.compile(r"_orig_mod[._]")  # torch.compile's, anywhere in a path; flattened in kohya's files
_OUTER = ("module.", "base_model.model.")  # of data-parallel models, and PEFT's
_EMBEDDING = "bundle_emb."  # word vectors that OneTrainer puts into an adapter's file
_TEXT = re.compile(
    r"^(lora_te\d?_|lora_text_model|text_encoder(_\d)?\.|lora_prior_te|lycoris_text_model|te\d?\."
    r"|text_encoders\.|clip_[lgh]\.|t5(xxl)?\.|text_model\.|encoder\.(layers|block)\.\d)"
)
_ENCODER = re.compile(r"^(?:lora_te(\d?)_|text_encoder(?:_(\d))?\.|te(\d?)\.|(?:lora|lycoris)_(?=text_model))(.+)$")
# ComfyUI's names of encoders, which OneTrainer has without the first word: text_encoders.clip_l.transformer.
_CALLED = re.compile(r"^(?:text_encoders\.)?(clip_[lgh]|t5xxl|t5)\.(?:transformer\.)?(.+)$")
_CALLED_HERE = {"clip_l": "text_encoder", "clip_h": "text_encoder", "clip_g": "text_encoder_2"}
_T5 = "text_encoder_3"  # SD 3's; Flux has it second
_PREFIXES = (
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "lora_transformer_",
    "lora_unet_",
    "lycoris_unet_",
    "lycoris_",
    "transformer.",
    "module.",
    "unet.",
)


@dataclass(frozen=True)
class Sorted:
    """Keys of an adapter file, sorted.

    modules: {module as the file calls it: {part: key}}, of the denoiser only. embeddings: word vectors. doubled: two
    keys that say the same part of the same module; nothing if there are none.
    """

    modules: Mapping[str, Mapping[str, str]]
    text: tuple[str, ...]
    unknown: tuple[str, ...]
    embeddings: tuple[str, ...] = ()
    doubled: tuple[str, str] | None = None


def sort_keys(keys: Iterable[str]) -> Sorted:
    """Sort the keys of an adapter file into parts of modules, text-encoder keys, and keys of no known meaning."""
    known = list(keys)
    embeddings = tuple(key for key in known if key.startswith(_EMBEDDING))
    text = tuple(key for key in known if _TEXT.match(_unwrapped(key)))
    aside = {*embeddings, *text}
    modules, unknown, doubled = _gathered(key for key in known if key not in aside)
    return Sorted(modules, text, unknown, embeddings, doubled)


def sort_text_keys(keys: Iterable[str]) -> Sorted:
    """The same for keys of text encoders: `modules` are theirs, and `text` is empty."""
    modules, unknown, doubled = _gathered(keys)
    return Sorted(modules, (), unknown, (), doubled)


def refusal_of(keys: Iterable[str], of: str = "a LoRA") -> str:
    """Why an adapter with these keys of no known meaning is not read, as the end of a sentence on the file.

    of: whose keys they were taken for.
    """
    unknown = list(keys)
    for key in unknown:
        if kind := foreign_kind([key]):
            return f"is of a kind of adapter that is not read here: {kind} ('{key}')."
    return f"'{unknown[0]}' is no key of {of} that is known here ({len(unknown)} such)."


def no_factors(modules: Iterable[Mapping[str, str]]) -> str:
    """Why an adapter with these modules {part: key} is not read, as the end of a sentence on the file; mostly empty.

    Whole differences (LyCORIS's `full` and `norm`) are read beside factors. Alone, nothing tells them from differences
    of another kind, to which a strength of 1 may mean something else.
    """
    keys = [(part, key) for parts in modules for part, key in parts.items()]
    if not keys or not all(part.startswith("diff") for part, _ in keys):
        return ""
    return (
        f"holds whole differences only (LyCORIS 'full', first '{keys[0][1]}'), which are read beside factors and not "
        "alone."
    )


def both_say(first: str, second: str) -> str:
    """The end of a sentence on a file in which two keys say the same thing."""
    return f"'{first}' and '{second}' change the same tensor. Remove one of them: which is meant cannot be told."


def foreign_kind(keys: Iterable[str]) -> str:
    """The name of a kind of adapter that has one of these keys and is not read here; empty for all others."""
    return next((kind for key in keys for pattern, kind in _FOREIGN_COMPILED if pattern.search(key)), "")


def text_module(module: str) -> tuple[str, str]:
    """(the text encoder's name in a diffusers pipeline, the path as it is looked up) of a text encoder's module.

    The name is empty where it is no encoder that pipelines have. Some versions of the encoder have `text_model.` in
    front of their paths and some not; it is left out.
    """
    bare = _unwrapped(module)
    if match := _CALLED.match(bare):
        name, path = _CALLED_HERE.get(match[1], _T5), match[2]
    elif match := _ENCODER.match(bare):
        number = match[1] or match[2] or match[3] or "1"
        name, path = "text_encoder" if number == "1" else f"text_encoder_{number}", match[4]
    elif bare.startswith(("text_model.", "encoder.")):  # PEFT's, of a text encoder alone
        name, path = "text_encoder", bare
    else:
        return "", module
    for wrapper in _OUTER:
        path = path.removeprefix(wrapper)
    return name, path.replace(".", "_").removeprefix("text_model_")


def encoder_among(name: str, held: Collection[str]) -> str:
    """Which of a pipeline's text encoders `text_module` means: T5 is SD 3's third, but Flux's second."""
    return "text_encoder_2" if name == _T5 and name not in held else name


def is_unused_projection(path: str) -> bool:
    """Whether a text encoder's module, as it is looked up, is CLIP's projection, which not all pipelines use."""
    return path == "text_projection"


def network_path(module: str) -> str:
    """A module's path with dots within its network, for patterns of `adapter_config.json`."""
    path = _unwrapped(module)
    for prefix in ("unet.", "transformer.", "text_encoder.", "text_encoder_2.", "text_encoder_3."):
        path = path.removeprefix(prefix)
    return path.removeprefix("base_model.model.")


def leaves(parts: Mapping[str, str]) -> list[tuple[str, Mapping[str, str]]]:
    """Which tensors of a module its parts change: `weight`, `bias` or both, each with the {part: key} that do it."""
    weighed = {part: key for part, key in parts.items() if part not in ("diff_b", "up_bias")}
    wanted: list[tuple[str, Mapping[str, str]]] = [("weight", weighed)] if set(weighed) - {"alpha"} else []
    if "up_bias" in parts:
        rank = {part: parts[part] for part in ("down", "alpha") if part in parts}
        wanted.append(("bias", {"up_bias": parts["up_bias"], **rank}))
    return wanted + ([("bias", {"diff": parts["diff_b"]})] if "diff_b" in parts else [])


def flat_module(module: str) -> str:
    """A module's path as it is looked up: no prefix, underscores for dots."""
    module = _WRAPPERS.sub("", module)
    changed = True
    while changed:
        changed = False
        for prefix in _PREFIXES:
            if module.startswith(prefix):
                module, changed = module.removeprefix(prefix), True
    return module.replace(".", "_")


def _unwrapped(key: str) -> str:
    """A key without what training frameworks put around a network's name."""
    key = _WRAPPERS.sub("", key)
    while key.startswith(_OUTER):
        for wrapper in _OUTER:
            key = key.removeprefix(wrapper)
    return key


def _gathered(
    keys: Iterable[str],
) -> tuple[dict[str, dict[str, str]], tuple[str, ...], tuple[str, str] | None]:
    """({module: {part: key}}, keys of no known meaning, two keys for the same part of a module)."""
    modules: dict[str, dict[str, str]] = {}
    unknown = []
    doubled = None
    for key in keys:
        if (found := _split(key)) is None:
            unknown.append(key)
            continue
        module, part = found
        parts = modules.setdefault(module, {})
        if part in parts:
            doubled = doubled or (parts[part], key)
        parts[part] = key
    return modules, tuple(unknown), doubled


def _split(key: str) -> tuple[str, str] | None:
    """(module, part) of a key, or nothing."""
    if match := _PROCESSOR.match(key):
        module = f"{match[1]}.{match[2]}" + (".0" if match[2] == "to_out" else "")
        return module, match[3]
    if match := _OLD_TEXT.match(key):
        return f"{match[1]}.{match[2]}_proj", match[3]
    if (match := _XLABS.match(key)) and (owner := _XLABS_MODULES.get((match[2], match[3], match[4]))):
        return f"{match[1]}.{owner}", match[5]
    for pattern, part in _COMPILED:
        if match := pattern.match(key):
            return match[1], part.format(match[2] if match.lastindex and match.lastindex > 1 else "")
    return None
