"""Open checkpoints: header first, checked, tensors read only when asked for and memory-mapped.

A checkpoint is one `.safetensors` file (original or diffusers keys) or a diffusers folder. Whatever its layout, its
denoiser is seen under diffusers names. No pickle is ever loaded.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merger.errors import CheckpointError, did_you_mean
from merger.headers import Header, read_header
from merger.keys import DENOISER_PREFIX, denoiser_names, denoiser_names_in

_PICKLES = (".ckpt", ".pt", ".pth", ".bin")
_INPUT = "conv_in.weight"


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of one tensor: key and file it is kept under, shape, dtype."""

    key: str
    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model on disk, opened but not read.

    denoiser: {diffusers name: TensorInfo} in the order of the file. other_keys: everything else in the same files.
    family: `sd1`, `sd2`, `sdxl` or `unet`, with `-inpainting` for nine input channels. layout: `original`, `diffusers`
    or `folder`. files: the files that hold the denoiser (the whole model where it is a single file).
    """

    name: str
    path: Path
    family: str
    layout: str
    files: tuple[Path, ...]
    denoiser: Mapping[str, TensorInfo]
    other_keys: tuple[str, ...]
    metadata: Mapping[str, str]
    _open: dict[Path, Any] = field(default_factory=dict, repr=False)

    @property
    def sha256(self) -> str:
        """SHA-256 of the file, in hex; for a folder, of its weight files' names and hashes. Kept for the process."""
        if self.layout != "folder":
            return _sha256(self.path)
        lines = [
            f"{_sha256(file)}  {file.relative_to(self.path).as_posix()}\n"
            for file in sorted(self.path.rglob("*.safetensors"))
        ]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def parameters(self) -> int:
        """Number of elements of the denoiser."""
        return sum(torch.Size(info.shape).numel() for info in self.denoiser.values())

    def read(self, name: str) -> Tensor:
        """One denoiser tensor, by diffusers name, in the file's dtype and the network's shape. Do not write to it."""
        info = self.denoiser.get(name)
        if info is None:
            raise CheckpointError(f"{self.path.name}: the denoiser has no '{name}'.{did_you_mean(name, self.denoiser)}")
        return self.read_key(info.key, info.file)

    def read_key(self, key: str, file: Path | None = None) -> Tensor:
        """Any tensor by the key it is kept under, memory-mapped. Do not write to it."""
        source = file or self.files[0]
        if source not in self._open:
            self._open[source] = reader(source)
        return self._open[source].get_tensor(key)


def reader(file: Path) -> Any:
    """safetensors' own reader of one file, memory-mapped: `get_tensor(key)`. Raises CheckpointError."""
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="pt", device="cpu")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error}).") from None


def open_checkpoint(
    path: Path, *, name: str | None = None, unet_config: Mapping[str, object] | None = None
) -> Checkpoint:
    """Open a `.safetensors` file or a diffusers folder.

    name: what to call it; by default the file's name without its ending. unet_config: a `unet/config.json` that the
    denoiser must agree with, tensor for tensor by name; without one, the structure is counted from the keys.
    Raises CheckpointError, in one line, for what is missing, damaged, a pickle, or not a U-Net checkpoint.
    """
    path = Path(path)
    if path.is_dir():
        files, layout = _denoiser_files(path), "folder"
    else:
        _refuse_missing(path)
        files, layout = (path,), "original"
    headers = {file: read_header(file) for file in files}
    kept = {key: file for file, header in headers.items() for key in header.tensors}
    if "down_blocks.0.resnets.0.conv1.weight" in kept:
        names = {key: key for key in kept if not key.startswith(("first_stage_model.", "cond_stage_model."))}
        layout = "diffusers" if layout == "original" else layout
    else:
        prefix = "" if "input_blocks.0.0.weight" in kept else DENOISER_PREFIX
        names = denoiser_names_in(kept, prefix)
    if _INPUT not in names:
        raise CheckpointError(
            f"{path}: holds no U-Net that is known here ({len(kept)} tensors, first '{next(iter(kept), '')}')."
        )
    if unet_config is not None:
        _check_names(path, names, denoiser_names(unet_config))
    denoiser = _infos(path, names, kept, headers)
    used = {info.key for info in denoiser.values()}
    others = tuple(key for key in kept if key not in used)
    metadata = {key: value for header in headers.values() for key, value in header.metadata.items()}
    family = _family(denoiser, others)
    return Checkpoint(
        name or (path.name if path.is_dir() else path.stem), path, family, layout, files, denoiser, others, metadata
    )


def read_unet_config(pipeline: Path) -> dict[str, object]:
    """`unet/config.json` of a diffusers folder. Raises CheckpointError where it is missing or not JSON."""
    file = Path(pipeline) / "unet" / "config.json"
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{pipeline}: not a diffusers pipeline folder (it has no unet/config.json).") from None
    except ValueError as error:
        raise CheckpointError(f"{file}: not JSON ({error}).") from None


def check_fit(base: Checkpoint, donors: Sequence[Checkpoint]) -> dict[str, tuple[str, ...]]:
    """Make sure that the donors can be blended into the base, tensor for tensor.

    Returns {donor name: its denoiser tensors that the base has no place for}, which a blend leaves out; donors that
    have none are not in it. Raises CheckpointError naming file, tensor and both shapes, or the name used twice.
    """
    left_out: dict[str, tuple[str, ...]] = {}
    seen = {base.name: base.path}
    for donor in donors:
        if donor.name in seen:
            raise CheckpointError(
                f"{donor.path} and {seen[donor.name]} are both called '{donor.name}': give one of them another name."
            )
        seen[donor.name] = donor.path
        for name, info in base.denoiser.items():
            theirs = donor.denoiser.get(name)
            if theirs is None:
                raise CheckpointError(
                    f"{donor.path.name}: has no '{name}', which the base {base.path.name} has"
                    f"{_other_family(base, donor)}. Leave it out or use a base of its kind."
                )
            if theirs.shape != info.shape:
                raise CheckpointError(
                    f"{donor.path.name}: '{name}' is {list(theirs.shape)}, the base has {list(info.shape)}"
                    f"{_other_shape(name, info.shape, theirs.shape) or _other_family(base, donor)}. "
                    "Leave it out or use a base of its kind."
                )
        if extra := tuple(name for name in donor.denoiser if name not in base.denoiser):
            left_out[donor.name] = extra
    return left_out


def _other_shape(name: str, base: tuple[int, ...], donor: tuple[int, ...]) -> str:
    """The likely reason why two shapes differ, in brackets, or nothing."""
    if name == _INPUT and 9 in (base[1], donor[1]):
        return f" ({'an inpainting model' if donor[1] == 9 else 'the base is an inpainting model'}?)"
    if name == _INPUT and 8 in (base[1], donor[1]) and 4 in (base[1], donor[1]):
        return " (an image-editing model, or another VAE?)"
    if "attn2" in name and base[-1] != donor[-1]:
        return " (made for another text encoder?)"
    return ""


def _other_family(base: Checkpoint, donor: Checkpoint) -> str:
    return f" (a {donor.family} model; the base is {base.family})" if base.family != donor.family else ""


def _infos(
    path: Path, names: Mapping[str, str], kept: Mapping[str, Path], headers: Mapping[Path, Header]
) -> dict[str, TensorInfo]:
    """Order the denoiser as the file has it, and refuse what cannot be blended."""
    by_key = {key: name for name, key in names.items()}
    denoiser = {}
    for key, file in kept.items():
        if key not in by_key:
            continue
        entry = headers[file].tensors[key]
        if not entry.dtype.is_floating_point:
            raise CheckpointError(
                f"{path}: '{key}' is {entry.dtype}, not a floating type: quantised models cannot be blended."
            )
        denoiser[by_key[key]] = TensorInfo(key, file, entry.shape, entry.dtype)
    return denoiser


def _check_names(path: Path, found: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    missing = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted]
    if missing or extra:
        what = f"lacks '{(missing or extra)[0]}'" if missing else f"has '{extra[0]}' besides"
        raise CheckpointError(
            f"{path}: {what}, so it is not the U-Net of the pipeline's unet/config.json "
            f"({len(missing)} tensors missing, {len(extra)} too many)."
        )


def _family(denoiser: Mapping[str, TensorInfo], others: Sequence[str]) -> str:
    """Which kind of U-Net this is, from its tensors alone."""
    text = [info.shape[1] for name, info in denoiser.items() if name.endswith("attn2.to_k.weight")]
    if any(name.startswith("add_embedding.") for name in denoiser):
        family = "sdxl"
    elif any(key.startswith("cond_stage_model.model.") for key in others) or (text and text[0] == 1024):
        family = "sd2"
    else:
        family = "sd1" if text and "down_blocks.3.resnets.0.conv1.weight" in denoiser else "unet"
    return family + ("-inpainting" if denoiser[_INPUT].shape[1] == 9 else "")


def _refuse_missing(path: Path) -> None:
    if path.exists():
        return
    near = did_you_mean(path.name, sorted(file.name for file in path.parent.glob("*.safetensors")))
    raise CheckpointError(f"{path}: no such file.{near}")


def _denoiser_files(folder: Path) -> tuple[Path, ...]:
    """The weight files of a diffusers folder's U-Net: one, or its numbered shards."""
    inside = folder / "unet" if (folder / "unet").is_dir() else folder
    for pattern in (
        "diffusion_pytorch_model.safetensors",
        "*-of-*.safetensors",
        "diffusion_pytorch_model.*.safetensors",
    ):
        if files := sorted(inside.glob(pattern)):
            shards = "-of-" in pattern
            return tuple(files) if shards else (files[0],)
    if any(file.suffix in _PICKLES for file in inside.iterdir()):
        raise CheckpointError(
            f"{inside}: holds pickle weights only, which are never opened. Save it as safetensors first."
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
