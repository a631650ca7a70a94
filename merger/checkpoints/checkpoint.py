"""Open checkpoints: header first, checked; tensors are read when they are asked for, memory-mapped.

A checkpoint is one `.safetensors` file (original or diffusers keys), the index of a sharded one, or a diffusers folder;
a pickle only if the caller allows it. Whatever its layout, its denoiser is seen under diffusers names.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from benchmark.pipelines.key_names import usual
from benchmark.pipelines.variants import variant_in
from benchmark.reading import NOT_JSON, check_numbers
from merger.checkpoints.denoiser import (
    check_names,
    denoiser_files,
    denoiser_folder,
    denoiser_tensors,
    find_denoiser,
)
from merger.checkpoints.families import prediction_of
from merger.checkpoints.hashing import file_sha256
from merger.checkpoints.source import TensorInfo
from merger.checkpoints.weight_files import INDEX, WeightFile, is_there, open_weights, shards
from merger.errors import CheckpointError, did_you_mean


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model on disk, opened but not read.

    denoiser: {diffusers name: TensorInfo} in the order of the file. other_keys: everything else in the same files.
    family: the name of a record in `merger.checkpoints.families`. layout: `original` or `diffusers` for a file with
    such keys, `folder`, or `lora`. files: the files that hold the denoiser (the whole model if it is a single file).
    tensors: every tensor of those files by its key, in their order. prediction, zero_snr: as
    `merger.checkpoints.families.prediction_of` says it. text: {name: TensorInfo} of the text encoders, if they are
    blended too, with names of `merger.checkpoints.names.text`. lent: the text encoders that it does not hold itself
    and has the base's in their place. notes: lines on what a user should know of how it was read.
    """

    name: str
    path: Path
    family: str
    layout: str
    files: tuple[Path, ...]
    denoiser: Mapping[str, TensorInfo]
    other_keys: tuple[str, ...]
    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorInfo] = field(default_factory=dict, repr=False)
    prediction: str = "unknown"
    zero_snr: bool = False
    _open: dict[Path, WeightFile] = field(default_factory=dict, repr=False)
    text: Mapping[str, TensorInfo] = field(default_factory=dict, repr=False)
    lent: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @functools.cached_property
    def blended(self) -> Mapping[str, TensorInfo]:
        """All that a blend changes: the denoiser and, if they are blended too, the text encoders."""
        return {**self.denoiser, **self.text} if self.text else self.denoiser

    @property
    def parts(self) -> tuple[Checkpoint, ...]:
        """The checkpoints that it is read from: itself, or several (`merger.blend.prepared`)."""
        return (self,)

    @property
    def sha256(self) -> str:
        """SHA-256 of the file, in hex; of a folder or of shards, that of their weight files' names and hashes."""
        return self.combined(file_sha256)

    def combined(self, sha256: Callable[[Path], str]) -> str:
        """`sha256`, from the hashes of the files that this function says."""
        if self.path.is_file() and self.files == (self.path,):
            return sha256(self.path)
        start = self.path if self.layout == "folder" else self.path.parent
        lines = [f"{sha256(file)}  {file.relative_to(start).as_posix()}\n" for file in self.weight_files]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """All files with weights: of a diffusers folder those of every component, else `files`; sorted."""
        found = sorted(self.path.rglob("*.safetensors")) if self.layout == "folder" else sorted(self.files)
        return tuple(found) or self.files

    def keys_of(self, file: Path) -> tuple[str, ...]:
        """The keys of one of `files`."""
        return tuple(self._open[file].header.tensors)

    @property
    def parameters(self) -> int:
        """Number of elements of the denoiser."""
        return sum(torch.Size(info.shape).numel() for info in self.denoiser.values())

    def read(self, name: str) -> Tensor:
        """One blended tensor, by name, in the file's dtype and the network's shape. Do not write to it."""
        info = self.blended.get(name)
        if info is None:
            raise CheckpointError(f"{self.path.name}: the denoiser has no '{name}'.{did_you_mean(name, self.denoiser)}")
        if not info.pieces:
            whole = self.read_key(info.key, info.file)
            return whole.T if info.turned else whole
        file = info.file if name in self.text else None  # the base's file if the encoder is lent
        rows = [self.read_key(piece.key, file)[piece.start : piece.stop] for piece in info.pieces]
        return (rows[0] if len(rows) == 1 else torch.cat(rows)).reshape(info.shape)

    def read_key(self, key: str, file: Path | None = None) -> Tensor:
        """Any tensor by the key it is kept under, memory-mapped. Do not write to it."""
        source = file or (self.tensors[key].file if key in self.tensors else self.files[0])
        if source not in self._open:
            self._open[source] = open_weights(source)
        return self._open[source].get(key)


def open_checkpoint(
    path: Path,
    *,
    name: str | None = None,
    unet_config: Mapping[str, object] | None = None,
    allow_pickle: bool = False,
) -> Checkpoint:
    """Open a `.safetensors` file, the index of a sharded one, or a diffusers folder.

    name: what to call it; by default the file's name without its ending. unet_config: the `config.json` of a pipeline's
    `unet/` or `transformer/` that the denoiser must have the tensors of, by name; without one, the structure is counted
    from the keys. allow_pickle: whether pickles may be read (`merger.checkpoints.weight_files`). Raises
    CheckpointError, in one line, for a file that is missing, damaged, a pickle, quantised, or without a denoiser.
    """
    path = Path(path)
    files = _files(path)
    opened = {file: open_weights(file, allow_pickle=allow_pickle) for file in files}
    tensors = {
        key: TensorInfo(key, file, entry.shape, entry.dtype)
        for file, weights in opened.items()
        for key, entry in weights.header.tensors.items()
    }
    found = find_denoiser(path, {key: info.shape for key, info in tensors.items()})
    if unet_config is not None:
        check_names(path, found.names, unet_config)
    denoiser = denoiser_tensors(path, found.names, tensors)
    used = {piece.key for pieces in found.names.values() for piece in pieces}
    others = tuple(key for key in tensors if key not in used)
    layout = "original" if not found.own_names else "folder" if path.is_dir() else "diffusers"
    metadata = {key: value for weights in opened.values() for key, value in weights.header.metadata.items()}
    prediction, zero_snr = prediction_of(found.family, map(usual, tensors), metadata, read_scheduler_config(path))
    called = path.name.removesuffix(INDEX) if path.is_dir() or path.name.endswith(INDEX) else path.stem
    return Checkpoint(
        name or called,
        path,
        found.family,
        layout,
        files,
        denoiser,
        others,
        metadata,
        tensors,
        prediction,
        zero_snr,
        opened,
        notes=_notes(path),
    )


def read_unet_config(pipeline: Path) -> dict[str, object]:
    """`unet/config.json` of a diffusers folder, or `transformer/config.json` if it has no U-Net.

    Raises CheckpointError if both are missing or it is not JSON, InputError for numbers that no model has.
    """
    file = Path(pipeline) / "unet" / "config.json"
    if not file.exists() and (other := Path(pipeline) / "transformer" / "config.json").exists():
        file = other
    try:
        config = json.loads(file.read_text())
    except FileNotFoundError:
        raise CheckpointError(
            f"{pipeline}: not a diffusers pipeline folder (it has no unet/config.json and no transformer/config.json)."
        ) from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: not JSON ({error}).") from None
    check_numbers(file, config)
    return config


def read_scheduler_config(path: Path) -> dict[str, object] | None:
    """The scheduler's configuration in a diffusers folder; None if there is none that can be read.

    path: the folder, or that of its denoiser (`.../unet`).
    """
    folder = path.parent if path.name in ("unet", "transformer") and not (path / "scheduler").is_dir() else path
    try:
        found = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    except NOT_JSON:
        return None
    return found if isinstance(found, dict) else None


def _notes(path: Path) -> tuple[str, ...]:
    """What a user should know of how a checkpoint is read."""
    variant = variant_in(denoiser_folder(path)) if path.is_dir() else None
    return () if variant is None else (f"has its denoiser as the variant '{variant}' only, which is read",)


def _files(path: Path) -> tuple[Path, ...]:
    """The files that hold the denoiser."""
    if is_there(path) and path.is_dir():
        return denoiser_files(path)
    _refuse_missing(path)
    return shards(path) if path.name.endswith(INDEX) else (path,)


def _refuse_missing(path: Path) -> None:
    if is_there(path):
        return
    try:
        if path.is_symlink():
            raise CheckpointError(f"{path}: a link that leads nowhere.")
    except (OSError, ValueError):
        raise CheckpointError(f"{str(path)[:200]!r}: is no name that a file can have.") from None
    near = did_you_mean(path.name, sorted(file.name for file in path.parent.glob("*.safetensors")))
    raise CheckpointError(f"{path}: no such file.{near}")
