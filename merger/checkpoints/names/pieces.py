"""Tensors as rows of a file's keys: how names are derived where a converter cuts, joins or reorders tensors.

Each key goes through diffusers' converter as a *marker*, a tensor whose rows hold the key's number and their own. A
name that comes out is then a list of `Piece`s: rows of keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from merger.errors import CheckpointError

_ROW_BITS = 32
CONVERTER_ERRORS = (
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    RuntimeError,
    TypeError,
    UnboundLocalError,
    ValueError,
)
"""What diffusers' converters raise for keys and shapes that they do not expect."""


@dataclass(frozen=True)
class Piece:
    """Rows `start` to `stop` (along the first dimension) of the tensor under `key`."""

    key: str
    start: int
    stop: int


def whole(key: str, shape: tuple[int, ...]) -> Piece:
    """All rows of a key."""
    return Piece(key, 0, rows_in(shape))


def rows_in(shape: tuple[int, ...]) -> int:
    """Size of the first dimension; 1 for a scalar."""
    return shape[0] if shape else 1


def marker(number: int, shape: tuple[int, ...]) -> Tensor:
    """[rows, 1, ...] int64: each row holds the key's number and its own."""
    rows = torch.arange(rows_in(shape)) + (number << _ROW_BITS)
    return rows.reshape(rows.numel(), *[1] * (len(shape) - 1)) if shape else rows.reshape(())


def pieces_of(marked: Tensor, keys: list[str], name: str, where: str) -> tuple[Piece, ...]:
    """Read back which rows a converted marker consists of: runs of rows that follow one another.

    keys: the keys by number. name, where: the tensor and the file, for messages. Raises CheckpointError if the
    converter exchanged the tensor's dimensions, and for a tensor without rows.
    """
    if not marked.numel():
        raise CheckpointError(f"{where}: '{name}' has no elements. Is it whole?")
    if marked.numel() != rows_in(tuple(marked.shape)):
        raise CheckpointError(f"{where}: diffusers exchanges the dimensions of '{name}', which is not supported here.")
    values = marked.reshape(-1)
    breaks = (values[1:] - values[:-1] != 1).nonzero().reshape(-1) + 1
    edges = [0, *breaks.tolist(), values.numel()]
    pieces = []
    for start, stop in pairwise(edges):
        key, row = divmod(int(values[start]), 1 << _ROW_BITS)
        pieces.append(Piece(keys[key], row, row + stop - start))
    return tuple(pieces)
