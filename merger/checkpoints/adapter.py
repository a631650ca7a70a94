"""Adapters (LoRA and its relatives) as donors: the base with the adapter put on at strength 1, tensor by tensor.

Nothing is computed before a tensor is read. A tensor that the adapter does not change is the base's own; one that it
changes is float32, so that `donor - base` loses little of a small difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmark.adapters.deltas import delta
from benchmark.adapters.keys import Sorted, alphas_in, flat_module, leaves, sort_keys, sort_text_keys, text_module
from benchmark.adapters.original_names import DENOISER_PREFIX, original_keys
from merger.checkpoints.checkpoint import Checkpoint, open_checkpoint
from merger.checkpoints.headers import FLOATING
from merger.checkpoints.source import TensorInfo
from merger.checkpoints.text_encoders import components_of, with_text_of
from merger.checkpoints.weight_files import WeightFile, open_weights
from merger.errors import CheckpointError, NoDenoiser, did_you_mean

Places = dict[str, list[tuple[str, str | None]]]
_FOLDER_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")


@dataclass(frozen=True)
class _Change:
    """One adapted tensor: the adapter's parts {part: key}, and its alpha if only the file's metadata says it.

    target: the base's key whose rows are changed, if that is not the tensor itself.
    """

    parts: Mapping[str, str]
    alpha: float | None = None
    target: str | None = None


@dataclass(frozen=True, eq=False)
class LoraDonor(Checkpoint):
    """An adapter on a base. text_keys: its tensors for text encoders, left out if only the denoiser is blended."""

    base: Checkpoint | None = None
    changes: Mapping[str, _Change] = field(default_factory=dict, repr=False)
    text_keys: tuple[str, ...] = ()

    def read(self, name: str) -> Tensor:
        """The base's tensor with the adapter's change at strength 1; float32 if there is a change."""
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
    """Open a checkpoint or an adapter as a donor of `base`, with its text encoders if the base blends its own.

    Raises CheckpointError, in one line, for what `open_checkpoint` refuses, for weights of another kind (a VAE, a
    ControlNet, ...), and for an adapter with keys that the base's network does not have.
    """
    path = Path(path)
    if path.is_dir():
        path = next((path / file for file in _FOLDER_FILES if (path / file).exists()), path)
    try:
        return with_text_of(open_checkpoint(path, name=name, allow_pickle=allow_pickle), base)
    except NoDenoiser as error:
        if error.kind != "lora":
            raise CheckpointError(f"{error} It cannot be a donor.") from None
    return open_lora(path, base, name=name, allow_pickle=allow_pickle)


def open_lora(path: Path, base: Checkpoint, *, name: str | None = None, allow_pickle: bool = False) -> LoraDonor:
    """Open an adapter as a donor of `base`.

    Raises CheckpointError for keys whose meaning or place in the base is unknown, by name, and for quantised weights.
    """
    file = open_weights(path, allow_pickle=allow_pickle)
    found = sort_keys(file.header.tensors)
    if found.unknown:
        raise CheckpointError(
            f"{path}: '{found.unknown[0]}' is no key of a LoRA that is known here ({len(found.unknown)} such)."
        )
    if not found.modules and not (base.text and found.text):
        raise CheckpointError(f"{path}: changes text encoders only, which are not blended. There is nothing to weigh.")
    changes = _changes(path, base, found, file)
    if base.text:
        changes |= _text_changes(path, base, found, file)
    denoiser = {
        key: TensorInfo(info.key, info.file, info.shape, torch.float32 if key in changes else info.dtype)
        for key, info in base.denoiser.items()
    }
    text = {k: replace(info, dtype=torch.float32) if k in changes else info for k, info in base.text.items()}
    held = components_of(changes)
    return LoraDonor(
        name or path.stem,
        path,
        base.family,
        "lora",
        (path,),
        denoiser,
        () if base.text else found.text,
        file.header.metadata,
        _open={path: file},
        text=text,
        lent=tuple(component for component in components_of(base.text) if component not in held),
        base=base,
        changes=changes,
        text_keys=found.text,
    )


def _changes(path: Path, base: Checkpoint, found: Sorted, file: WeightFile) -> dict[str, _Change]:
    """{diffusers name: its change}, for every module of the adapter. Raises CheckpointError for an unknown module."""
    alphas = alphas_in(file.header.metadata, ("", "unet.", "transformer."))
    modules = [(flat_module(module), module, parts) for module, parts in found.modules.items()]
    return _settled(path, base, modules, _places(base), file, alphas)


def _text_changes(path: Path, base: Checkpoint, found: Sorted, file: WeightFile) -> dict[str, _Change]:
    """The same for the text encoders that the base blends."""
    text = sort_text_keys(found.text)
    if text.unknown:
        raise CheckpointError(
            f"{path}: '{text.unknown[0]}' is no key of a LoRA's text encoder that is known here "
            f"({len(text.unknown)} such)."
        )
    by_encoder: dict[str, list[tuple[str, str, Mapping[str, str]]]] = {}
    for module, parts in text.modules.items():
        component, flat = text_module(module)
        by_encoder.setdefault(component, []).append((flat, module, parts))
    changes: dict[str, _Change] = {}
    for component, modules in by_encoder.items():
        start = f"{component}."
        own = [name for name in base.text if name.startswith(start)]
        places: Places = {name.removeprefix(start).replace(".", "_"): [(name, None)] for name in own}
        changes |= _settled(path, base, modules, places, file, alphas_in(file.header.metadata, (start,)))
    return changes


def _settled(
    path: Path,
    base: Checkpoint,
    modules: Sequence[tuple[str, str, Mapping[str, str]]],
    places: Places,
    file: WeightFile,
    alphas: Callable[[str, int], float | None],
) -> dict[str, _Change]:
    """{name of the base's tensor: its change}, for modules of one network.

    modules: (path with underscores, what the file calls it, {part: key}) each. places: as `_places` gives them. Raises
    CheckpointError if the base has no place for a module, and for quantised weights.
    """
    for key in (key for _, _, parts in modules for part, key in parts.items() if part != "alpha"):
        if (dtype := file.header.tensors[key].dtype) not in FLOATING:
            raise CheckpointError(f"{path}: '{key}' is {dtype}: quantised adapters cannot be blended.")
    changes: dict[str, _Change] = {}
    homeless = []
    for flat, module, parts in modules:
        for leaf, used in leaves(parts):
            targets = places.get(f"{flat}_{leaf}")
            if targets is None:
                homeless.append((flat, module))
                continue
            rank = file.header.tensors[used["down"]].shape[0] if "down" in used else 0
            for name, target in targets:
                changes[name] = _Change(used, alphas(module, rank), target)
    if homeless:
        near = did_you_mean(homeless[0][0] + "_weight", places)
        raise CheckpointError(
            f"{path}: the base {base.path.name} ({base.family}) has no place for '{homeless[0][1]}' "
            f"({len(homeless)} of {len(modules)} modules). Is it for another family?{near}"
        )
    return changes


def _places(base: Checkpoint) -> Places:
    """{a tensor's path with underscores: [(diffusers name, the base's key if that is the path's and holds more)]}."""
    places: Places = {}
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
