"""What a blend is made of: named tensors that lie on disk, described first and read when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from merger.checkpoints.names.pieces import Piece, rows_in


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of one tensor: key and file it is kept under, shape, dtype.

    pieces: the rows of keys it consists of, unless it is simply the tensor under `key`. turned: the file has it with
    its two dimensions exchanged.
    """

    key: str
    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: tuple[Piece, ...] = ()
    turned: bool = False


class Source(Protocol):
    """A base or donor as a blend sees it. `merger.checkpoints.checkpoint.Checkpoint` is one, an adapter another."""

    @property
    def name(self) -> str:
        """What weights and messages call it."""

    @property
    def blended(self) -> Mapping[str, TensorInfo]:
        """{name: TensorInfo} of all that a blend changes."""

    def read(self, name: str) -> Tensor:
        """One blended tensor, in its own dtype and the network's shape. Do not write to it."""


def assembled(pieces: tuple[Piece, ...], tensors: Mapping[str, TensorInfo]) -> TensorInfo:
    """The tensor that consists of these pieces of a file's tensors: that of a key itself if it is all of one."""
    first = tensors[pieces[0].key]
    rows = sum(piece.stop - piece.start for piece in pieces)
    if len(pieces) == 1 and rows == rows_in(first.shape):
        return first
    return TensorInfo(first.key, first.file, (rows, *first.shape[1:]), first.dtype, pieces)
