"""The networks of a pipeline that a single file holds: which of them diffusers finds itself, and the others.

diffusers decides by single keys whether a file holds a CLIP or T5 encoder (`single_file_utils.CHECKPOINT_KEY_NAMES`),
and takes the configuration folder's where that key is missing. Here the same keys decide, in whatever spelling the file
has them (`key_names`), and a part that diffusers would miss is built from the file.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.errors import InputError
from benchmark.pipelines.key_names import by_usual_key, holds_vae, stray_text, stray_vae
from benchmark.reading import NOT_JSON

if TYPE_CHECKING:
    import torch

# prefix of a text encoder's keys -> diffusers' name for the key that tells that it is there
_CLIPS = {
    "cond_stage_model.transformer.": "clip",
    "cond_stage_model.model.": "open_clip",
    "conditioner.embedders.0.model.": "open_clip_sdxl_refiner",
    "conditioner.embedders.0.transformer.": "clip_sdxl",
    "conditioner.embedders.1.model.": "open_clip_sdxl",
    "text_encoders.clip_l.transformer.": "clip_sd3",
    "text_encoders.clip_g.transformer.": "open_clip_sd3",
}
_ALONE = ("clip", "open_clip", "open_clip_sdxl_refiner")  # the only encoder of its file, whatever its width
_T5 = "text_encoders.t5xxl.transformer."
_T5_KEY = f"{_T5}shared.weight"
_Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class SingleFile:
    """A single file's header. shapes: {key as diffusers spells it: shape}. keys: {key as spelled there: the file's}."""

    path: Path
    shapes: _Shapes
    keys: Mapping[str, str]

    def tensors(self) -> dict[str, Any]:
        """Every tensor, memory-mapped, under the key as diffusers spells it."""
        from safetensors import safe_open

        with safe_open(self.path, framework="pt") as file:
            return {name: file.get_tensor(key) for name, key in self.keys.items()}

    def kinds_respelled(self) -> set[str]:
        """The kinds of parts (`vae`, `text`, `denoiser`) that have keys in another spelling than diffusers reads."""
        return {_kind_of(name) for name, key in self.keys.items() if name != key}


def open_single_file(path: Path) -> SingleFile:
    """Read the header. Raises InputError if the file has one tensor under two keys."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - no iterator
    try:
        own = by_usual_key(shapes)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    return SingleFile(path, {name: shapes[key] for name, key in own.items()}, own)


def refuse_strays(file: SingleFile, parts: Collection[str], to_fill: Collection[str]) -> None:
    """Raise InputError for a text encoder or VAE under keys that are not read: it would be replaced by another one.

    parts: the pipeline's parts. to_fill: those that the caller replaces in any case.
    """
    names = _marker_keys()
    read = [prefix for prefix, marker in _CLIPS.items() if names[marker] in file.shapes]
    read += [_T5] if _T5_KEY in file.shapes else []
    for stem, stray in (("text_encoder", stray_text(file.shapes, read)), ("vae", stray_vae(file.shapes))):
        wanted = [part for part in parts if part.startswith(stem)]
        if stray and wanted and not all(part in to_fill for part in wanted):
            what = "VAE" if stem == "vae" else "text encoder"
            raise InputError(
                f"{file.path}: holds a {what} under keys that are not read here (first '{file.keys[stray]}'), and "
                f"images would be drawn with another one. Rename them as in other files of its family, or name "
                f"{'another VAE' if stem == 'vae' else 'another checkpoint for the text encoders'}."
            )


def holds(file: SingleFile, part: str, class_name: str, folder: Path) -> bool:
    """Whether the file holds this part of the pipeline, in a spelling that is read here."""
    if part.startswith("vae"):
        return holds_vae(file.shapes)
    if not part.startswith("text_encoder"):
        return True
    if class_name.startswith(("T5", "UMT5")):
        return _T5_KEY in file.shapes
    if not class_name.startswith("CLIPText"):
        return False
    names = _marker_keys()
    if any(names[marker] in file.shapes for marker in _ALONE):
        return True
    width = _width(folder / part)
    others = [names[marker] for marker in _CLIPS.values() if marker not in _ALONE]
    return any(width in (None, file.shapes[key][-1]) for key in others if file.shapes.get(key))


def read_part(file: SingleFile, kind: Any, part: str, folder: Path, dtype: torch.dtype) -> Any:
    """This part, with the file's weights, where diffusers would not find them itself; None where it would."""
    from diffusers.loaders.single_file_utils import (
        create_diffusers_clip_model_from_ldm,
        create_diffusers_t5_model_from_checkpoint,
        is_clip_model_in_single_file,
        is_t5_in_single_file,
    )

    respelled = file.kinds_respelled()
    options: dict[str, Any] = {"subfolder": part, "config": str(folder), "torch_dtype": dtype, "local_files_only": True}
    if not part.startswith("text_encoder"):
        if ("vae" if part.startswith("vae") else "denoiser") not in respelled:
            return None
        return kind.from_single_file(file.tensors(), **options)
    known = dict.fromkeys(file.keys.values())
    t5 = kind.__name__.startswith(("T5", "UMT5"))
    found = is_t5_in_single_file(known) if t5 else is_clip_model_in_single_file(kind, known)
    if found and "text" not in respelled:
        return None
    build = create_diffusers_t5_model_from_checkpoint if t5 else create_diffusers_clip_model_from_ldm
    return build(kind, checkpoint=file.tensors(), **options)


def _kind_of(key: str) -> str:
    if holds_vae([key]):
        return "vae"
    return "text" if key.startswith((*_CLIPS, _T5)) else "denoiser"


def _marker_keys() -> dict[str, str]:
    from diffusers.loaders.single_file_utils import CHECKPOINT_KEY_NAMES

    return {marker: str(CHECKPOINT_KEY_NAMES[marker]) for marker in _CLIPS.values()}


def _width(folder: Path) -> int | None:
    """The width of a text encoder by its `config.json`; None if that does not say it."""
    try:
        return int(dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))["hidden_size"])
    except (*NOT_JSON, TypeError, KeyError):
        return None
