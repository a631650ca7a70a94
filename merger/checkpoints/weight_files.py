"""One file of weights, whatever its format: the header is read first, tensors when they are asked for.

safetensors are memory-mapped. Pickles (`.ckpt`, `.pt`, `.bin`) are opened only where the caller allows it, and then by
`torch.load(weights_only=True)`, which builds tensors and plain containers and runs nothing else.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmark.errors import UNFORESEEN, out_of_memory
from benchmark.pipelines.variants import weights_of_variant
from benchmark.reading import NOT_JSON
from merger.checkpoints.headers import Entry, Header, convert_command, read_header
from merger.errors import CheckpointError

PICKLES = (".ckpt", ".pt", ".pth", ".bin")
INDEX = ".safetensors.index.json"


@dataclass(eq=False)
class WeightFile:
    """An opened file: `header` is read, tensors are not."""

    path: Path
    header: Header
    _reader: Any = field(default=None, repr=False)

    def get(self, key: str) -> Tensor:
        """One tensor as the file has it. Do not write to it."""
        if self._reader is None:
            self._reader = reader(self.path)
        return self._reader.get_tensor(key)


@dataclass(frozen=True)
class _Loaded:
    """Tensors of a pickle, with the method of safetensors' reader."""

    tensors: Mapping[str, Tensor]

    def get_tensor(self, key: str) -> Tensor:
        return self.tensors[key]


def is_there(path: Path) -> bool:
    """Whether something lies at this path; False for what no path of this system can be."""
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or has a NUL in it
        return False


def open_weights(path: Path, *, allow_pickle: bool = False) -> WeightFile:
    """Open one file. Raises CheckpointError, in one line, for a missing, damaged or truncated file or a pickle.

    allow_pickle: whether a pickle is opened; its tensors are then in memory or mapped.
    """
    if path.suffix in PICKLES and allow_pickle:
        return _open_pickle(path)
    weights = WeightFile(path, read_header(path))
    reader(path)  # what safetensors itself refuses is refused here, and not when the first tensor is read
    return weights


def refuse_pickled_base(path: Path) -> None:
    """Raise CheckpointError for a pickle: diffusers loads a search's base, a whole pipeline, from safetensors only."""
    if path.suffix in PICKLES and path.is_file():
        raise CheckpointError(
            f"{path}: a pickle can be a donor (with --allow-pickle), but no base of a search. {convert_command(path)}"
        )


def reader(file: Path) -> Any:
    """safetensors' own reader of one file, memory-mapped: `get_tensor(key)`. Raises CheckpointError if it refuses."""
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="pt", device="cpu")
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{file}: cannot be read ({reason}).") from None


def shards(index: Path) -> tuple[Path, ...]:
    """The files that a `.safetensors.index.json` names, in its order. Raises CheckpointError if one is missing."""
    try:
        table = json.loads(index.read_text(encoding="utf-8"))
        names = list(dict.fromkeys(table["weight_map"].values()))
        files = tuple(index.parent / str(name) for name in names)
    except FileNotFoundError:
        raise CheckpointError(f"{index}: no such file.") from None
    except (*NOT_JSON, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: no index of shards ({type(error).__name__}: {error}).") from None
    if not files or any(Path(name).name != name for name in map(str, names)):
        raise CheckpointError(f"{index}: names no files, or files outside its folder.")
    if missing := [file.name for file in files if not is_there(file)]:
        raise CheckpointError(
            f"{index}: shard {missing[0]} is missing ({len(missing)} of {len(files)}). Fetch it again."
        )
    return files


def files_of_variant(part: Path, variant: str) -> tuple[Path, ...]:
    """The files of a part's weights under a variant's name (`benchmark.pipelines.variants`): one, or its shards."""
    file = weights_of_variant(part, variant)
    if file.suffix == ".json":
        return shards(file)
    numbered = f".{variant}-"  # shards without their index
    return tuple(sorted(part.glob(f"*{numbered}*-of-*.safetensors"))) if numbered in file.name else (file,)


def _open_pickle(path: Path) -> WeightFile:
    try:
        state = _load(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file.") from None
    except (*UNFORESEEN, EOFError, pickle.UnpicklingError) as error:
        if out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(f"{path}: cannot be read as a pickle of plain tensors ({reason}).") from None
    while isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    tensors = (
        {str(key): value.detach() for key, value in dict(state).items() if isinstance(value, Tensor)}
        if isinstance(state, Mapping)
        else {}
    )
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors by name.")
    entries = {key: Entry(value.dtype, tuple(value.shape), 0, value.nbytes) for key, value in tensors.items()}
    return WeightFile(path, Header(entries, {}), _Loaded(tensors))


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # pickles from before torch 1.6 are no archives and cannot be mapped
        return torch.load(path, map_location="cpu", weights_only=True)
