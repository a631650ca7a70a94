"""The text encoders of a checkpoint as part of what is blended: found, opened, and lent to donors that have none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from benchmark.pipelines.variants import variant_in
from merger.checkpoints.checkpoint import Checkpoint
from merger.checkpoints.denoiser import SCALES
from merger.checkpoints.headers import FLOATING
from merger.checkpoints.names.text import folder_keys, names_of_folder, stray_text_in, text_names_in
from merger.checkpoints.source import TensorInfo, assembled
from merger.checkpoints.weight_files import INDEX, files_of_variant, open_weights, shards
from merger.errors import CheckpointError
from merger.layers.components import TEXT_ENCODERS

TEXT_FILE = "model.safetensors"
"""A text encoder's weights in a diffusers folder."""

_T5_TOKENS = "encoder.embed_tokens.weight"


def component_of(name: str) -> str:
    """The pipeline's component that a blended tensor belongs to; empty for the denoiser's."""
    component = name.partition(".")[0]
    return component if component in TEXT_ENCODERS else ""


def components_of(names: Iterable[str]) -> tuple[str, ...]:
    """The text encoders that these tensors belong to, in a pipeline's order."""
    found = {component_of(name) for name in names}
    return tuple(component for component in TEXT_ENCODERS if component in found)


def text_tensors(checkpoint: Checkpoint) -> dict[str, TensorInfo]:
    """{name: TensorInfo} of every text encoder that a checkpoint holds, in the order of its files; may be empty.

    Raises CheckpointError for a damaged file and for keys that diffusers cannot read.
    """
    if checkpoint.layout == "folder":
        return _in_folder(checkpoint.path)
    if checkpoint.layout != "original":
        return {}
    shapes = {key: info.shape for key, info in checkpoint.tensors.items()}
    found: dict[str, TensorInfo] = {}
    for name, place in text_names_in(shapes, str(checkpoint.path)).items():
        info = checkpoint.tensors[place.pieces[0].key]
        if place.turned:
            found[name] = replace(info, shape=info.shape[::-1], turned=True)
        else:
            found[name] = assembled(place.pieces, checkpoint.tensors)
    return found


def with_text_encoders(base: Checkpoint) -> Checkpoint:
    """The base with its text encoders among what is blended.

    Raises CheckpointError if it holds none, if they are quantised, or if one keeps its embeddings twice.
    """
    text = text_tensors(base)
    if not text:
        raise CheckpointError(
            f"{base.path}: holds no text encoder to blend. Leave 'text_encoder' out of the components, or use a base "
            "that has one."
        )
    _check_types(base.path, text)
    for component in components_of(text):
        if f"{component}.shared.weight" in text and f"{component}.{_T5_TOKENS}" in text:
            raise CheckpointError(
                f"{base.path}: keeps the embeddings of its {component} twice ('shared.weight', '{_T5_TOKENS}'), which "
                "is not blended. Leave 'text_encoder' out of the components."
            )
    return replace(base, text=text)


def with_text_of(donor: Checkpoint, base: Checkpoint) -> Checkpoint:
    """The donor with the text encoders that the base blends.

    In place of one that it does not hold it has the base's own, so that its difference from the base is 0 there.
    Raises CheckpointError for a text encoder that cannot be read or is quantised.
    """
    if not base.text:
        return donor
    own = text_tensors(donor)
    _check_types(donor.path, own)
    held = components_of(own)
    lent = tuple(component for component in components_of(base.text) if component not in held)
    if lent and donor.layout != "folder" and (stray := stray_text_in(donor.tensors)):
        raise CheckpointError(
            f"{donor.path}: holds a text encoder under keys that are not read here (first '{stray}'), so it cannot be "
            "blended. Rename them as in other files of its family, or leave 'text_encoder' out of the components."
        )
    borrowed = {name: info for name, info in base.text.items() if component_of(name) in lent}
    return replace(donor, text=own | borrowed, lent=lent, _open={**base._open, **donor._open})


def encoder_file(base: Checkpoint, component: str) -> dict[str, tuple[str, TensorInfo]]:
    """What a diffusers folder's file of this text encoder holds: {key: (name of the blended tensor, the base's info)}.

    If the base is a folder, these are all tensors of its own files, with an empty name for what is not blended.
    """
    own = {name: info for name, info in base.text.items() if component_of(name) == component}
    if base.layout == "folder":
        names = {info.key: name for name, info in own.items()}
        return {
            key: (names.get(key, ""), TensorInfo(key, file, entry.shape, entry.dtype))
            for file in folder_weights(base.path, component)
            for key, entry in open_weights(file).header.tensors.items()
        }
    keys = folder_keys(name.removeprefix(f"{component}.") for name in own)
    return {key: (f"{component}.{bare}", own[f"{component}.{bare}"]) for bare, key in keys.items()}


def folder_weights(folder: Path, component: str) -> tuple[Path, ...]:
    """The weight files of a text encoder in a diffusers folder: one, or its shards; empty if it has no such encoder."""
    inside = folder / component
    if (index := inside / f"model{INDEX}").exists():
        return shards(index)
    if (whole := inside / TEXT_FILE).exists():
        return (whole,)
    return files_of_variant(inside, variant) if (variant := variant_in(inside)) else ()


def _in_folder(folder: Path) -> dict[str, TensorInfo]:
    found: dict[str, TensorInfo] = {}
    for component in TEXT_ENCODERS:
        tensors = {
            key: TensorInfo(key, file, entry.shape, entry.dtype)
            for file in folder_weights(folder, component)
            for key, entry in open_weights(file).header.tensors.items()
        }
        names = names_of_folder(tensors, folder / component / "config.json")
        found |= {f"{component}.{name}": tensors[key] for name, key in names.items()}
    return found


def _check_types(path: Path, text: Mapping[str, TensorInfo]) -> None:
    for info in text.values():
        if info.dtype not in FLOATING or info.key.endswith(SCALES):
            raise CheckpointError(f"{path}: '{info.key}' is {info.dtype}: quantised text encoders cannot be blended.")
