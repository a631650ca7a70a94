"""Tensor names of transformer denoisers: original single files on one side, diffusers on the other.

Derived, not listed, as in `merger.checkpoints.names.unet`; but here converters also cut tensors (`qkv` into three) and change the order
of their rows. So each key goes through diffusers' converter as a tensor whose rows hold the key's number and their own,
and every name that comes out is a list of `Piece`s: rows of keys. Which converter it is follows from diffusers' own
guess at the model's type; a family that diffusers learns to read later is read here without a change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from merger.errors import CheckpointError

PREFIXES = ("model.diffusion_model.", "transformer.", "diffusion_model.", "model.", "")
_STACKS = ("transformer_blocks", "joint_blocks", "double_blocks", "double_layers", "layers", "blocks")
_ROW_BITS = 32
# A tensor that only this family's diffusers network has.
_FAMILIES = (
    ("flux", "single_transformer_blocks.0.proj_mlp.weight"),
    ("qwenimage", "txt_norm.weight"),
    ("sd3", "pos_embed.proj.weight"),
    ("lumina2", "time_caption_embed.caption_embedder.0.weight"),
    ("zimage", "all_x_embedder.2-1.weight"),
    ("sana", "caption_projection.linear_1.weight"),
)


@dataclass(frozen=True)
class Piece:
    """Rows `start` to `stop` (along the first dimension) of the tensor under `key`."""

    key: str
    start: int
    stop: int


def transformer_names_in(shapes: Mapping[str, tuple[int, ...]], where: str) -> tuple[str, dict[str, tuple[Piece, ...]]]:
    """Translate the transformer keys that a file really has.

    shapes: {key: shape} of the whole file. where: the file, for messages. Returns the family (`sd3`, `flux`, ...; empty
    where no transformer is found) and {diffusers name: the pieces it consists of, in order}. Raises CheckpointError
    where diffusers knows the family but its converter cannot make sense of this file.
    """
    prefix = _prefix(shapes)
    if prefix is None:
        return "", {}
    bare = {key.removeprefix(prefix): key for key in shapes if key.startswith(prefix)}
    sizes = {key: shapes[full] for key, full in bare.items()}
    if any(_own(key) for key in sizes):
        names: dict[str, tuple[Piece, ...]] = {k: (Piece(full, 0, _rows(shapes[full])),) for k, full in bare.items()}
        return family_of(names), names
    stem, convert = _converter(sizes)
    if convert is None:
        return "", {}
    try:
        landed = convert({key: marker(i, sizes[key]) for i, key in enumerate(bare)})
    except (KeyError, IndexError, RuntimeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(
            f"{where}: seems to be a {stem} model, but diffusers' converter cannot read it "
            f"({type(error).__name__}: {reason}). Is it whole?"
        ) from None
    keys = list(bare.values())
    return stem, {name: pieces_of(marked, keys, name, where) for name, marked in landed.items() if _marked(marked)}


def family_of(names: Iterable[str]) -> str:
    """The family of a transformer from its diffusers names; `transformer` where it is none of the table's."""
    known = set(names)
    return next((family for family, mark in _FAMILIES if mark in known), "transformer")


def network_shapes(config: Mapping[str, object], where: str) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the network that a `config.json` describes, built on the meta device: it takes no memory.

    Raises CheckpointError where diffusers has no such network.
    """
    import diffusers

    name = str(config.get("_class_name"))
    network = getattr(diffusers, name, None)
    if network is None:
        raise CheckpointError(f"{where}: '{name}' is no network that diffusers {diffusers.__version__} knows.")
    with torch.device("meta"):
        built: torch.nn.Module = network.from_config(dict(config))
    return {name: tuple(tensor.shape) for name, tensor in built.state_dict().items()}


def _own(key: str) -> bool:
    """Whether a key is one of diffusers' own names for a transformer."""
    return key.startswith(("transformer_blocks.0.", "single_transformer_blocks.0.")) or key.endswith(
        (".attention.to_q.weight", "layers.0.attn.to_q.weight")
    )


def _prefix(keys: Iterable[str]) -> str | None:
    """What the denoiser's keys begin with: the first of the known prefixes that a stack of blocks follows."""
    known = list(keys)
    stacks = (
        "transformer_blocks.0.",
        "joint_blocks.0.",
        "double_blocks.0.",
        "double_layers.0.",
        "layers.0.",
        "blocks.0.",
    )
    for prefix in PREFIXES:
        starts = tuple(prefix + stack for stack in stacks)
        if any(key.startswith(starts) for key in known):
            return prefix
    return None


def _converter(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, Callable[..., Mapping[str, Any]] | None]:
    """diffusers' converter for a file of these (bare) keys, and the family's name; None where it has none."""
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    shells = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    try:
        kind = "".join(letter for letter in infer_diffusers_model_type(shells) if letter.isalnum())
    except (KeyError, IndexError, ValueError, UnboundLocalError):
        kind = ""
    if not kind or kind == "v1":  # what diffusers says where it knows nothing
        kind = "sd3" if "joint_blocks.0.x_block.attn.qkv.weight" in shapes else ""
    best: tuple[str, Callable[..., Mapping[str, Any]] | None] = ("", None)
    for network, how in SINGLE_FILE_LOADABLE_CLASSES.items():
        stem, found, _ = network.partition("Transformer")
        stem = stem.lower()
        if found and kind.startswith(stem) and len(stem) > len(best[0]):
            best = (stem, how["checkpoint_mapping_fn"])
    return best


def marker(number: int, shape: tuple[int, ...]) -> Tensor:
    """[rows, 1, ...] int64: each row holds the key's number and its own."""
    rows = torch.arange(_rows(shape)) + (number << _ROW_BITS)
    return rows.reshape(rows.numel(), *[1] * (len(shape) - 1)) if shape else rows.reshape(())


def _rows(shape: tuple[int, ...]) -> int:
    return shape[0] if shape else 1


def _marked(tensor: object) -> bool:
    """Whether a converted tensor is one of ours (some converters add constants of their own)."""
    return isinstance(tensor, Tensor) and tensor.dtype == torch.int64


def pieces_of(marked: Tensor, keys: list[str], name: str, where: str) -> tuple[Piece, ...]:
    """Runs of rows that follow one another, from a marker that came out of the converter."""
    if marked.numel() != _rows(tuple(marked.shape)):
        raise CheckpointError(f"{where}: diffusers turns '{name}' round, which is not translated here.")
    values = marked.reshape(-1)
    breaks = (values[1:] - values[:-1] != 1).nonzero().reshape(-1) + 1
    edges = [0, *breaks.tolist(), values.numel()]
    pieces = []
    for start, stop in pairwise(edges):
        key, row = divmod(int(values[start]), 1 << _ROW_BITS)
        pieces.append(Piece(keys[key], row, row + stop - start))
    return tuple(pieces)
