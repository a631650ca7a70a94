"""Weights of a diffusers folder under a variant's name: `diffusion_pytorch_model.fp16.safetensors` and no other.

That is what `hf download --include "*fp16*"` leaves. diffusers reads a variant only if it is told to; here one is read
where a part has no plain weights. Of several the first of `PREFERRED` is read.
"""

from __future__ import annotations

import re
from pathlib import Path

_STEMS = ("diffusion_pytorch_model", "model")
_PLAIN = re.compile(r"^(diffusion_pytorch_model|model)(-\d+-of-\d+)?\.safetensors(\.index\.json)?$")
_VARIANT = re.compile(
    r"^(?:diffusion_pytorch_model|model)\.(?:(?P<one>[\w-]+?)(?:-\d+-of-\d+)?\.safetensors"
    r"|safetensors\.index\.(?P<index>[\w-]+)\.json)$"
)
PREFERRED = ("fp16", "bf16", "fp32")


def variant_in(part: Path) -> str | None:
    """The variant to read of a part's folder; None if it has plain weights, or none at all."""
    if not part.is_dir():
        return None
    names = [file.name for file in part.iterdir()]
    if any(_PLAIN.match(name) for name in names):
        return None
    matches = (_VARIANT.match(name) for name in names)
    found = sorted({match["one"] or match["index"] for match in matches if match})
    return next((name for name in PREFERRED if name in found), found[0] if found else None)


def variants_in(folder: Path) -> dict[str, str]:
    """{part: variant to read} of the parts of a diffusers folder that have no plain weights."""
    parts = sorted(inside for inside in folder.iterdir() if inside.is_dir()) if folder.is_dir() else []
    return {part.name: found for part in parts if (found := variant_in(part)) is not None}


def weights_of_variant(part: Path, variant: str) -> Path:
    """The file of these weights in a part's folder, or the index of its shards."""
    for stem in _STEMS:
        if (index := part / f"{stem}.safetensors.index.{variant}.json").is_file():
            return index
        if (file := part / f"{stem}.{variant}.safetensors").is_file():
            return file
    return next(iter(sorted(part.glob(f"*.{variant}-*-of-*.safetensors"))))


def said(folder: Path, variants: dict[str, str]) -> str:
    """A line on the variants that are read."""
    named = ", ".join(f"{part} '{variant}'" for part, variant in variants.items())
    return f"{folder.name}: has some weights as a variant only, which is read ({named})"
