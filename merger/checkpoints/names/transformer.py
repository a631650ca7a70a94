"""Tensor names of transformer denoisers: original single files on one side, diffusers on the other.

Derived, not listed, as in `merger.checkpoints.names.unet`; but converters of transformers also cut tensors (`qkv` into
three) and reorder their rows, so every name is a list of pieces (`merger.checkpoints.names.pieces`). diffusers' own
guess at the model's type chooses the converter, so a family that diffusers learns to read later needs no change here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmark.errors import out_of_memory
from merger.checkpoints.names.pieces import CONVERTER_ERRORS, Piece, marker, pieces_of, whole
from merger.errors import CheckpointError

_PREFIXES = ("model.diffusion_model.", "transformer.", "diffusion_model.", "model.", "")
_STACKS = ("transformer_blocks", "joint_blocks", "double_blocks", "double_layers", "layers", "blocks")


def transformer_names_in(
    shapes: Mapping[str, tuple[int, ...]], where: str, markers: Collection[str] = ()
) -> tuple[str, dict[str, tuple[Piece, ...]]]:
    """Translate the transformer keys that a file really has.

    shapes: {key: shape} of the whole file. where: the file, for messages. markers: diffusers names that only networks
    of known families have; they decide for a file whose blocks have unknown names. Returns (what diffusers takes an
    original file for, such as `sd3`; empty for a file in diffusers' own names, {diffusers name: the pieces it consists
    of, in order}), both empty without a transformer. Raises CheckpointError if diffusers knows the model's type but its
    converter cannot read this file.
    """
    prefix = next((prefix for prefix in _PREFIXES if _begins_stack(prefix, shapes)), None)
    if prefix is not None:
        stem, names = _translated(_within(prefix, shapes), shapes, where)
        if names:
            return stem, names
    for prefix in _PREFIXES:
        if any(prefix + mark in shapes for mark in markers):
            return "", {name: (whole(key, shapes[key]),) for name, key in _within(prefix, shapes).items()}
    return "", {}


def network_shapes(config: Mapping[str, object], where: str) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the network that a `config.json` describes, built on the meta device: it takes no memory.

    Raises CheckpointError if diffusers has no such network.
    """
    import diffusers

    name = str(config.get("_class_name"))
    network = getattr(diffusers, name, None)
    if network is None:
        raise CheckpointError(f"{where}: '{name}' is no network that diffusers {diffusers.__version__} knows.")
    with torch.device("meta"):
        built: torch.nn.Module = network.from_config(dict(config))
    return {name: tuple(tensor.shape) for name, tensor in built.state_dict().items()}


def _begins_stack(prefix: str, keys: Iterable[str]) -> bool:
    """Whether a stack of blocks follows this prefix in any key."""
    starts = tuple(f"{prefix}{stack}.0." for stack in _STACKS)
    return any(key.startswith(starts) for key in keys)


def _within(prefix: str, keys: Iterable[str]) -> dict[str, str]:
    """{key without the prefix: key} of the keys that have it."""
    return {key.removeprefix(prefix): key for key in keys if key.startswith(prefix)}


def _translated(
    bare: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], where: str
) -> tuple[str, dict[str, tuple[Piece, ...]]]:
    """`transformer_names_in` of the keys under one prefix. bare: {key without the prefix: key}."""
    sizes = {key: shapes[full] for key, full in bare.items()}
    if any(_own(key) for key in bare):
        return "", {name: (whole(key, shapes[key]),) for name, key in bare.items()}
    stem, convert = _converter(sizes)
    if convert is None:
        return "", {}
    try:
        landed = convert({key: marker(i, sizes[key]) for i, key in enumerate(bare)})
        keys = list(bare.values())
        return stem, {name: pieces_of(marked, keys, name, where) for name, marked in landed.items() if _marked(marked)}
    except CONVERTER_ERRORS as error:
        if out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(
            f"{where}: seems to be a {stem} model, but diffusers' converter cannot read it "
            f"({type(error).__name__}: {reason}). Is it whole?"
        ) from None


def _own(key: str) -> bool:
    """Whether a key is one of diffusers' own names for a transformer."""
    return key.startswith(("transformer_blocks.0.", "single_transformer_blocks.0.")) or key.endswith(
        (".attention.to_q.weight", "layers.0.attn.to_q.weight")
    )


def _converter(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, Callable[..., Mapping[str, Any]] | None]:
    """diffusers' converter for a file of these (bare) keys, and the family's name; None if diffusers has none."""
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    shells = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    try:
        kind = "".join(letter for letter in infer_diffusers_model_type(shells) if letter.isalnum())
    except CONVERTER_ERRORS:
        kind = ""
    if not kind or kind == "v1":  # diffusers' answer to keys it does not know
        kind = "sd3" if "joint_blocks.0.x_block.attn.qkv.weight" in shapes else ""
    best: tuple[str, Callable[..., Mapping[str, Any]] | None] = ("", None)
    for network, how in SINGLE_FILE_LOADABLE_CLASSES.items():
        stem, found, _ = network.partition("Transformer")
        stem = stem.lower()
        if found and kind.startswith(stem) and len(stem) > len(best[0]):
            best = (stem, how["checkpoint_mapping_fn"])
    return best


def _marked(tensor: object) -> bool:
    """Whether a converted tensor is a marker (some converters add constants of their own)."""
    return isinstance(tensor, Tensor) and tensor.dtype == torch.int64
