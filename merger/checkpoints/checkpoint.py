"""Open checkpoints: header first, checked, tensors read only when asked for and memory-mapped.

A checkpoint is one `.safetensors` file (original or diffusers keys), the index of a sharded one, or a diffusers folder;
a pickle only where the caller allows it. Whatever its layout, its denoiser is seen under diffusers names.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from merger.checkpoints.families import is_controlnet, kind_of, prediction_of, unet_family
from merger.checkpoints.names.transformer import Piece, network_shapes, transformer_names_in
from merger.checkpoints.names.unet import DENOISER_PREFIX, denoiser_names, denoiser_names_in
from merger.checkpoints.weight_files import INDEX, PICKLES, WeightFile, open_weights, shards
from merger.errors import CheckpointError, NoDenoiser, did_you_mean

_INPUT = "conv_in.weight"
_UNET_MARK = "down_blocks.0.resnets.0.conv1.weight"
_UNET_PREFIXES = ("", "unet.", DENOISER_PREFIX, "diffusion_model.")
_UNET_PARTS = (
    "conv_in.",
    "conv_out.",
    "conv_norm_out.",
    "time_embedding.",
    "add_embedding.",
    "class_embedding.",
    "encoder_hid_proj.",
    "down_blocks.",
    "mid_block.",
    "up_blocks.",
)


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of one tensor: key and file it is kept under, shape, dtype.

    pieces: the rows of keys it consists of, where it is not simply the tensor under `key`. turned: the file has it with
    its two dimensions exchanged.
    """

    key: str
    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: tuple[Piece, ...] = ()
    turned: bool = False


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model on disk, opened but not read.

    denoiser: {diffusers name: TensorInfo} in the order of the file. other_keys: everything else in the same files.
    family: as `merger.checkpoints.families.unet_family` or `merger.checkpoints.names.transformer` say it. layout: `original`, `diffusers` or
    `folder`. files: the files that hold the denoiser (the whole model where it is a single file). tensors: every tensor
    of those files by its key, in their order. prediction, zero_snr: as `merger.checkpoints.families.prediction_of` says it.
    text: the same as `denoiser` of the text encoders, where they are blended too, with names of `merger.checkpoints.names.text`.
    lent: those text encoders that it does not hold itself, and has the base's in their place.
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

    @functools.cached_property
    def blended(self) -> Mapping[str, TensorInfo]:
        """All that a blend changes: the denoiser and, where they were asked for, the text encoders."""
        return {**self.denoiser, **self.text} if self.text else self.denoiser

    @property
    def sha256(self) -> str:
        """SHA-256 of the file, in hex; for a folder or shards, of their weight files' names and hashes."""
        if self.path.is_file() and self.files == (self.path,):
            return _sha256(self.path)
        folder = self.layout == "folder"
        files = sorted(self.path.rglob("*.safetensors")) if folder else sorted(self.files)
        start = self.path if folder else self.path.parent
        lines = [f"{_sha256(file)}  {file.relative_to(start).as_posix()}\n" for file in files or self.files]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

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
        file = info.file if name in self.text else None  # the base's, where the encoder is lent
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
    `unet/` or `transformer/` that the denoiser must agree with, tensor for tensor by name; without one, the structure
    is counted from the keys. allow_pickle: whether pickles may be read (`merger.checkpoints.weight_files`).
    Raises CheckpointError, in one line, for what is missing, damaged, a pickle, or holds no denoiser.
    """
    path = Path(path)
    layout = "folder" if path.is_dir() else "original"
    files = _files(path)
    opened = {file: open_weights(file, allow_pickle=allow_pickle) for file in files}
    tensors = {
        key: TensorInfo(key, file, entry.shape, entry.dtype)
        for file, weights in opened.items()
        for key, entry in weights.header.tensors.items()
    }
    layout, family, names = _find_denoiser(path, layout, {key: info.shape for key, info in tensors.items()})
    if unet_config is not None:
        _check_names(path, names, unet_config)
    denoiser = _infos(path, names, tensors)
    used = {piece.key for pieces in names.values() for piece in pieces}
    others = tuple(key for key in tensors if key not in used)
    family = family or unet_family({name: info.shape for name, info in denoiser.items()}, others)
    metadata = {key: value for weights in opened.values() for key, value in weights.header.metadata.items()}
    prediction, zero_snr = prediction_of(family, tensors, metadata, read_scheduler_config(path))
    called = path.name.removesuffix(INDEX) if path.is_dir() or path.name.endswith(INDEX) else path.stem
    return Checkpoint(
        name or called, path, family, layout, files, denoiser, others, metadata, tensors, prediction, zero_snr, opened
    )


def read_unet_config(pipeline: Path) -> dict[str, object]:
    """`unet/config.json` of a diffusers folder, or `transformer/config.json` where it has no U-Net.

    Raises CheckpointError where both are missing, or for what is not JSON.
    """
    file = Path(pipeline) / "unet" / "config.json"
    if not file.exists() and (other := Path(pipeline) / "transformer" / "config.json").exists():
        file = other
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        raise CheckpointError(
            f"{pipeline}: not a diffusers pipeline folder (it has no unet/config.json and no transformer/config.json)."
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{file}: not JSON ({error}).") from None


def _files(path: Path) -> tuple[Path, ...]:
    """The files that hold the denoiser."""
    if path.is_dir():
        return _denoiser_files(path)
    _refuse_missing(path)
    return shards(path) if path.name.endswith(INDEX) else (path,)


def _find_denoiser(
    path: Path, layout: str, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[str, str, dict[str, tuple[Piece, ...]]]:
    """(layout, family or nothing for a U-Net, {diffusers name: its pieces}). Raises where there is no denoiser."""
    within = "folder" if layout == "folder" else "diffusers"
    steering = is_controlnet(shapes)
    for prefix in _UNET_PREFIXES if not steering else ():
        if prefix + _UNET_MARK in shapes and prefix + _INPUT in shapes:
            bare = {key.removeprefix(prefix): key for key in shapes if key.startswith(prefix)}
            return within, "", _whole({n: key for n, key in bare.items() if n.startswith(_UNET_PARTS)}, shapes)
        if prefix + "input_blocks.0.0.weight" in shapes:
            names = denoiser_names_in(shapes, prefix)
            if _INPUT in names:
                return "original", "", _whole(names, shapes)
    family, pieces = transformer_names_in(shapes, str(path)) if not steering else ("", {})
    if pieces:
        own = all(len(each) == 1 and each[0].key.endswith(name) for name, each in pieces.items())
        return within if own else "original", family, pieces
    kind, words = kind_of(shapes)
    if kind != "unknown":
        raise NoDenoiser(f"{path}: is {words}. There is no denoiser in it.", kind, words)
    first = next(iter(shapes), "")
    why = f"holds no denoiser that is known here ({len(shapes)} tensors, first '{first}')."
    raise NoDenoiser(f"{path}: {why}", kind, words)


def _whole(names: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[Piece, ...]]:
    return {name: (Piece(key, 0, (shapes[key] or (1,))[0]),) for name, key in names.items()}


def _infos(
    path: Path, names: Mapping[str, tuple[Piece, ...]], tensors: Mapping[str, TensorInfo]
) -> dict[str, TensorInfo]:
    """Order the denoiser as the file has it, and refuse what cannot be blended."""
    if scaled := next((key for key in tensors if key.endswith((".scale_weight", ".weight_scale", "scaled_fp8"))), None):
        raise CheckpointError(f"{path}: '{scaled}' says its weights are scaled: quantised models cannot be blended.")
    place = {key: i for i, key in enumerate(tensors)}
    denoiser = {}
    for name, pieces in sorted(names.items(), key=lambda item: (place[item[1][0].key], item[1][0].start)):
        first = tensors[pieces[0].key]
        if any(not tensors[piece.key].dtype.is_floating_point for piece in pieces):
            raise CheckpointError(
                f"{path}: '{first.key}' is {first.dtype}, not a floating type: quantised models cannot be blended."
            )
        rows = sum(piece.stop - piece.start for piece in pieces)
        if len(pieces) == 1 and rows == (first.shape or (1,))[0]:
            denoiser[name] = first
        else:
            denoiser[name] = TensorInfo(first.key, first.file, (rows, *first.shape[1:]), first.dtype, pieces)
    return denoiser


def _check_names(path: Path, found: Mapping[str, object], config: Mapping[str, object]) -> None:
    network = str(config.get("_class_name", "UNet2DConditionModel"))
    unet = network.startswith("UNet")
    wanted = list(denoiser_names(config) if unet else network_shapes(config, f"{path}: the pipeline's configuration"))
    missing = [name for name in wanted if name not in found]
    known = set(wanted)
    extra = [name for name in found if name not in known]
    if missing or extra:
        what = f"lacks '{(missing or extra)[0]}'" if missing else f"has '{extra[0]}' besides"
        part = "unet" if unet else "transformer"
        raise CheckpointError(
            f"{path}: {what}, so it is not the {'U-Net' if unet else 'transformer'} of the pipeline's "
            f"{part}/config.json ({len(missing)} tensors missing, {len(extra)} too many)."
        )


def read_scheduler_config(path: Path) -> dict[str, object] | None:
    """The scheduler's configuration in a diffusers folder, where there is one that can be read."""
    try:
        return json.loads((path / "scheduler" / "scheduler_config.json").read_text())
    except (OSError, ValueError):
        return None


def _refuse_missing(path: Path) -> None:
    if path.exists():
        return
    if path.is_symlink():
        raise CheckpointError(f"{path}: a link that leads nowhere.")
    near = did_you_mean(path.name, sorted(file.name for file in path.parent.glob("*.safetensors")))
    raise CheckpointError(f"{path}: no such file.{near}")


def _denoiser_files(folder: Path) -> tuple[Path, ...]:
    """The weight files of a diffusers folder's denoiser: one, or its shards."""
    inside = next((folder / part for part in ("unet", "transformer") if (folder / part).is_dir()), folder)
    if (index := inside / f"diffusion_pytorch_model{INDEX}").exists():
        return shards(index)
    for pattern in (
        "diffusion_pytorch_model.safetensors",
        "*-of-*.safetensors",
        "diffusion_pytorch_model.*.safetensors",
    ):
        if files := sorted(inside.glob(pattern)):
            numbered = "-of-" in pattern
            return tuple(files) if numbered else (files[0],)
    if any(file.suffix in PICKLES for file in inside.iterdir()):
        raise CheckpointError(
            f"{inside}: holds pickle weights only, which are not opened. Save it as safetensors first."
        )
    raise CheckpointError(f"{inside}: no denoiser weights here (a configuration folder belongs under 'pipeline').")


def _sha256(path: Path) -> str:
    try:
        status = path.stat()
        return _sha256_of(path.resolve(), status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from None


@functools.cache
def _sha256_of(path: Path, size: int, changed: int) -> str:
    """size and changed are there to notice another file under the same name."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
