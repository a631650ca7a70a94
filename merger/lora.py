"""Adapters (LoRA and its relatives) as donors: the base with the adapter at strength 1 put on, tensor by tensor.

Nothing is computed before a tensor is read. A tensor that the adapter does not touch is the base's own; one that it
does is float32, so that little of a small difference is lost on its way through `donor - base`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from benchmark.lora_deltas import delta
from benchmark.lora_keys import Sorted, alphas_in, flat_module, leaves, sort_keys
from benchmark.original_names import DENOISER_PREFIX, original_keys
from merger.checkpoints import Checkpoint, TensorInfo, open_checkpoint
from merger.errors import CheckpointError, NoDenoiser, did_you_mean
from merger.weight_files import WeightFile, open_weights

_FOLDER_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")


@dataclass(frozen=True)
class _Change:
    """One adapted tensor: the adapter's parts {part: key}, and its alpha where something but the file's keys says it.

    target: the base's key whose rows are changed, where that is not the tensor itself.
    """

    parts: Mapping[str, str]
    alpha: float | None = None
    target: str | None = None


@dataclass(frozen=True, eq=False)
class LoraDonor(Checkpoint):
    """An adapter on a base. text_keys: its tensors for text encoders, which a blend leaves out."""

    base: Checkpoint | None = None
    changes: Mapping[str, _Change] = field(default_factory=dict, repr=False)
    text_keys: tuple[str, ...] = ()

    def read(self, name: str) -> Tensor:
        """The base's tensor with the adapter's own change at strength 1; float32 where there is one."""
        assert self.base is not None
        if name not in self.changes:
            return self.base.read(name)
        change = self.changes[name]
        if change.target is None:
            weight = self.base.read(name).float()
            return weight + self._delta(change, weight, name)
        weight = self.base.read_key(change.target).float()
        whole = weight + self._delta(change, weight, name)
        info = self.base.denoiser[name]
        if not info.pieces:
            return whole
        return torch.cat([whole[piece.start : piece.stop] for piece in info.pieces]).reshape(info.shape)

    def _delta(self, change: _Change, weight: Tensor, name: str) -> Tensor:
        file = self._open[self.path]
        parts = {part: file.get(key).float() for part, key in change.parts.items() if part != "alpha"}
        alpha = float(file.get(change.parts["alpha"])) if "alpha" in change.parts else change.alpha
        try:
            return delta(parts, weight, alpha)
        except (ValueError, RuntimeError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"{self.path}: what it has for '{name}' {reason}. Is it for a {self.family} model?"
            ) from None


def open_donor(path: Path, base: Checkpoint, *, name: str | None = None, allow_pickle: bool = False) -> Checkpoint:
    """Open a checkpoint or an adapter as a donor of `base`.

    Raises CheckpointError, in one line: what `open_checkpoint` raises, weights of another kind (a VAE, a ControlNet,
    ...) with the reason, and an adapter whose keys are not all those of the base's network.
    """
    path = Path(path)
    if path.is_dir():
        path = next((path / file for file in _FOLDER_FILES if (path / file).exists()), path)
    try:
        return open_checkpoint(path, name=name, allow_pickle=allow_pickle)
    except NoDenoiser as error:
        if error.kind != "lora":
            raise CheckpointError(f"{error} It cannot be a donor.") from None
    return open_lora(path, base, name=name, allow_pickle=allow_pickle)


def open_lora(path: Path, base: Checkpoint, *, name: str | None = None, allow_pickle: bool = False) -> LoraDonor:
    """Open an adapter as a donor of `base`. Raises CheckpointError for keys of no known meaning or place, by name."""
    file = open_weights(path, allow_pickle=allow_pickle)
    found = sort_keys(file.header.tensors)
    if found.unknown:
        raise CheckpointError(
            f"{path}: '{found.unknown[0]}' is no key of a LoRA that is known here ({len(found.unknown)} such)."
        )
    if not found.modules:
        raise CheckpointError(f"{path}: changes text encoders only, which are not blended. There is nothing to weigh.")
    changes = _changes(path, base, found, file)
    denoiser = {
        key: TensorInfo(info.key, info.file, info.shape, torch.float32 if key in changes else info.dtype)
        for key, info in base.denoiser.items()
    }
    return LoraDonor(
        name or path.stem,
        path,
        base.family,
        "lora",
        (path,),
        denoiser,
        found.text,
        file.header.metadata,
        _open={path: file},
        base=base,
        changes=changes,
        text_keys=found.text,
    )


def _changes(path: Path, base: Checkpoint, found: Sorted, file: WeightFile) -> dict[str, _Change]:
    """{diffusers name: its change}, for every module of the adapter. Raises CheckpointError for one without a place."""
    places = _places(base)
    alphas = alphas_in(file.header.metadata, ("", "unet.", "transformer."))
    changes: dict[str, _Change] = {}
    homeless = []
    for module, parts in found.modules.items():
        flat = flat_module(module)
        for leaf, used in leaves(parts):
            targets = places.get(f"{flat}_{leaf}")
            if targets is None:
                homeless.append(module)
                continue
            rank = file.header.tensors[used["down"]].shape[0] if "down" in used else 0
            for name, target in targets:
                changes[name] = _Change(used, alphas(module, rank), target)
    if homeless:
        near = did_you_mean(flat_module(homeless[0]) + "_weight", places)
        raise CheckpointError(
            f"{path}: the base {base.path.name} ({base.family}) has no place for '{homeless[0]}' "
            f"({len(homeless)} of {len(found.modules)} modules). Is it for another family?{near}"
        )
    return changes


def _places(base: Checkpoint) -> dict[str, list[tuple[str, str | None]]]:
    """{a tensor's path with underscores: [(diffusers name, the base's key where the path is that one's)]}."""
    places: dict[str, list[tuple[str, str | None]]] = {}
    originals: dict[str, list[str]] = {}
    for name, info in base.denoiser.items():
        if base.layout == "original":
            for key in {piece.key for piece in info.pieces} or {info.key}:
                originals.setdefault(key, []).append(name)
    if not originals:
        originals = {key: [name] for name, key in original_keys(base.denoiser).items()}
    for key, names in originals.items():
        flat = key.removeprefix(DENOISER_PREFIX).replace(".", "_")
        cut = any(base.denoiser[name].pieces for name in names)
        places[flat] = [(name, key if cut else None) for name in names]
    for name in base.denoiser:
        places[name.replace(".", "_")] = [(name, None)]
    return places
