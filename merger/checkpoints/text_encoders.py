"""The text encoders of a checkpoint as a part of what is blended: found, opened, and lent to donors that have none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from merger.checkpoints.checkpoint import Checkpoint, TensorInfo
from merger.checkpoints.names.text import folder_keys, names_of_folder, text_names_in
from merger.checkpoints.weight_files import INDEX, open_weights, shards
from merger.errors import CheckpointError
from merger.layers.text import TEXT_ENCODERS

TEXT_FILE = "model.safetensors"
"""A text encoder's weights in a diffusers folder."""

_T5_TOKENS = "encoder.embed_tokens.weight"
_SCALED = (".scale_weight", ".weight_scale", "scaled_fp8")


def component_of(name: str) -> str:
    """The pipeline's component that a blended tensor belongs to; empty for the denoiser's."""
    component = name.partition(".")[0]
    return component if component in TEXT_ENCODERS else ""


def components_of(names: Iterable[str]) -> tuple[str, ...]:
    """The text encoders among the components of these tensors, in order."""
    found = {component_of(name) for name in names}
    return tuple(component for component in TEXT_ENCODERS if component in found)


def text_tensors(checkpoint: Checkpoint) -> dict[str, TensorInfo]:
    """{name: TensorInfo} of every text encoder that a checkpoint holds, in the order of its files; maybe nothing.

    Raises CheckpointError for a damaged file and for keys that diffusers cannot make sense of.
    """
    if checkpoint.layout == "folder":
        return _in_folder(checkpoint.path)
    if checkpoint.layout != "original":
        return {}
    shapes = {key: info.shape for key, info in checkpoint.tensors.items()}
    found: dict[str, TensorInfo] = {}
    for name, place in text_names_in(shapes, str(checkpoint.path)).items():
        info = checkpoint.tensors[place.pieces[0].key]
        rows = sum(piece.stop - piece.start for piece in place.pieces)
        if place.turned:
            found[name] = replace(info, shape=info.shape[::-1], turned=True)
        elif len(place.pieces) == 1 and rows == (info.shape or (1,))[0]:
            found[name] = info
        else:
            found[name] = replace(info, shape=(rows, *info.shape[1:]), pieces=place.pieces)
    return found


def with_text_encoders(base: Checkpoint) -> Checkpoint:
    """The base with its text encoders among what is blended. Raises CheckpointError where it holds none."""
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

    Where it holds none itself it has the base's own, so that its difference from the base is 0 there. Raises
    CheckpointError for a text encoder that cannot be read or is quantised.
    """
    if not base.text:
        return donor
    own = text_tensors(donor)
    _check_types(donor.path, own)
    held = components_of(own)
    lent = tuple(component for component in components_of(base.text) if component not in held)
    borrowed = {name: info for name, info in base.text.items() if component_of(name) in lent}
    return replace(donor, text=own | borrowed, lent=lent, _open={**base._open, **donor._open})


def encoder_file(base: Checkpoint, component: str) -> dict[str, tuple[str, TensorInfo]]:
    """What is in a diffusers folder's file of this text encoder: {key: (the blended tensor, what the base has)}.

    From a folder it is all that its own files hold, with an empty name for what is not blended.
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
    """The weight files of a text encoder in a diffusers folder: one, or its shards; none where it has none."""
    inside = folder / component
    if (index := inside / f"model{INDEX}").exists():
        return shards(index)
    if (whole := inside / TEXT_FILE).exists():
        return (whole,)
    return tuple(sorted(inside.glob("model.*.safetensors"))[:1])


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
        if not info.dtype.is_floating_point or info.key.endswith(_SCALED):
            raise CheckpointError(f"{path}: '{info.key}' is {info.dtype}: quantised text encoders cannot be blended.")
