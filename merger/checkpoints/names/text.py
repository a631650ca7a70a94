"""Tensor names of text encoders: what files call them on one side, one set of names here on the other.

Here a tensor is called after its component and its place in transformers' network, without the `text_model.` that some
versions and files put in front: `text_encoder.encoder.layers.0.self_attn.q_proj.weight`. Derived as in
`merger.checkpoints.names.transformer`: the keys go through diffusers' own converters as numbered rows, so OpenCLIP's
fused `in_proj` is seen as three tensors. The prefixes of encoders in a file are a table, as they are in diffusers
(`diffusers.loaders.single_file_utils.CHECKPOINT_KEY_NAMES`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from benchmark.pipelines.key_names import by_usual_key, stray_text
from benchmark.reading import NOT_JSON
from merger.checkpoints.names.pieces import Piece, marker, pieces_of
from merger.errors import CheckpointError

_WRAPPER = "text_model."  # around CLIP's network in files, and in transformers until 5.6
_PROJECTION = "text_projection.weight"
_TOKENS = "embeddings.token_embedding.weight"  # which only CLIP's have
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class TextTensor:
    """Where a file keeps one tensor: rows of keys. turned: the file has the tensor's two dimensions exchanged."""

    pieces: tuple[Piece, ...]
    turned: bool = False


@dataclass(frozen=True)
class _Home:
    """Where an encoder may be in a file.

    open_clip: whether its keys are OpenCLIP's, not transformers'. projected: whether the network that diffusers makes
    of it ends in a projection.
    """

    component: str
    prefix: str
    open_clip: bool = False
    projected: bool = False


_HOMES = (
    _Home("text_encoder", "cond_stage_model.transformer."),  # SD 1
    _Home("text_encoder", "cond_stage_model.model.", open_clip=True),  # SD 2
    _Home("text_encoder", "conditioner.embedders.0.transformer."),  # SDXL
    _Home("text_encoder_2", "conditioner.embedders.1.model.", open_clip=True, projected=True),
    _Home("text_encoder_2", "conditioner.embedders.0.model.", open_clip=True, projected=True),  # its refiner
    _Home("text_encoder", "text_encoders.clip_l.transformer.", projected=True),  # SD 3
    _Home("text_encoder_2", "text_encoders.clip_g.transformer.", projected=True),
    _Home("text_encoder_3", "text_encoders.t5xxl.transformer."),
)
_SECOND_CLIP = "text_encoders.clip_g."  # without it, as in Flux, T5 is the second encoder


def text_names_in(shapes: Shapes, where: str) -> dict[str, TextTensor]:
    """Translate the text-encoder keys of an original single file.

    shapes: {key: shape} of the whole file. where: the file, for messages. Returns {name: where it is}, empty if the
    file holds no text encoder. Tensors that diffusers does not use (SD 2's last block, CLIP's `logit_scale`) are left
    out. Raises CheckpointError if diffusers' converter cannot read the keys, and if a tensor is held under two keys.
    """
    kept = by_usual_key(shapes)  # a file with a tensor under two keys was refused when it was opened
    shapes = {key: shapes[own] for key, own in kept.items()}
    found: dict[str, TextTensor] = {}
    for home in _HOMES:
        keys = [key for key in shapes if key.startswith(home.prefix)]
        if not any("layers.0." in key or "resblocks.0." in key or "block.0." in key for key in keys):
            continue
        try:
            landed = _converter(home, shapes)({key: marker(i, shapes[key]) for i, key in enumerate(keys)})
        except (KeyError, IndexError, RuntimeError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{where}: diffusers' converter cannot read the text encoder under '{home.prefix}' "
                f"({type(error).__name__}). Is it whole?"
            ) from None
        here: dict[str, TextTensor] = {}
        for name, mark in landed.items():
            place = _tensor(mark, keys, shapes, name, where)
            if (twin := here.setdefault(bare_name(name), place)) is not place:
                raise _twice(where, home.component, twin, place)
        component = home.component
        if component == "text_encoder_3" and not any(key.startswith(_SECOND_CLIP) for key in shapes):
            component = "text_encoder_2"
        for name in _used(here, home.projected):
            full = f"{component}.{name}"
            if full in found:
                raise _twice(where, component, found[full], here[name])
            found[full] = here[name]
    return {name: replace(place, pieces=_kept(place.pieces, kept)) for name, place in found.items()}


def stray_text_in(keys: Iterable[str]) -> str:
    """The first key of a text encoder that `text_names_in` does not read; empty if there is none."""
    kept = by_usual_key(keys)
    stray = stray_text(kept, [home.prefix for home in _HOMES])
    return kept[stray] if stray else ""


def _kept(pieces: tuple[Piece, ...], kept: Mapping[str, str]) -> tuple[Piece, ...]:
    """The same rows under the file's own keys."""
    return tuple(replace(piece, key=kept[piece.key]) for piece in pieces)


def _twice(where: str, component: str, one: TextTensor, other: TextTensor) -> CheckpointError:
    keys = f"'{one.pieces[0].key}' and '{other.pieces[0].key}'"
    return CheckpointError(f"{where}: holds a tensor of its {component} twice: {keys}. Which one counts is not clear.")


def bare_name(name: str) -> str:
    """A tensor's name within its encoder: without the wrapper that some versions of transformers put around it."""
    return name.removeprefix(_WRAPPER)


def folder_keys(names: Iterable[str]) -> dict[str, str]:
    """{name within an encoder: its key in `model.safetensors` of a diffusers folder}."""
    known = tuple(names)
    wrapped = _TOKENS in known
    return {name: name if name == _PROJECTION or not wrapped else _WRAPPER + name for name in known}


def names_of_folder(keys: Iterable[str], config: Path) -> dict[str, str]:
    """{name within an encoder: key} of a folder's text encoder. config: its `config.json`."""
    names = {bare_name(key): key for key in keys}
    try:
        projected = "CLIPTextModel" not in json.loads(config.read_text(encoding="utf-8")).get("architectures", ())
    except (*NOT_JSON, AttributeError, TypeError):
        projected = True
    return {name: names[name] for name in _used(names, projected)}


def _used(names: Iterable[str], projected: bool) -> list[str]:
    """Names of the network's own tensors: no table of positions, and a projection only if the network has one."""
    return [name for name in names if not name.endswith("position_ids") and (projected or name != _PROJECTION)]


def _converter(home: _Home, shapes: Shapes) -> Callable[[dict[str, Tensor]], Mapping[str, Any]]:
    """diffusers' own function from an encoder's keys to the names of its network."""
    from diffusers.loaders.single_file_utils import convert_ldm_clip_checkpoint, convert_open_clip_checkpoint

    if not home.open_clip:
        return lambda marked: convert_ldm_clip_checkpoint(marked, home.prefix)
    width = shapes.get(f"{home.prefix}positional_embedding", (0, 0))[-1]
    # the converter asks the network only for this, and only if the file does not say it
    network = SimpleNamespace(config=SimpleNamespace(hidden_size=width))
    return lambda marked: convert_open_clip_checkpoint(network, marked, prefix=home.prefix)


def _tensor(mark: Tensor, keys: list[str], shapes: Shapes, name: str, where: str) -> TextTensor:
    if mark.dim() == 2 and mark.shape[0] == 1 < mark.shape[1]:  # rows that came out as a column
        pieces = pieces_of(mark.T, keys, name, where)
        if len(pieces) > 1:
            raise CheckpointError(f"{where}: '{name}' is put together of {len(pieces)} parts and turned. Is it whole?")
        return TextTensor(pieces, turned=True)
    return TextTensor(pieces_of(mark, keys, name, where))
