"""Adapters (LoRA and its relatives) as donors: the base with the adapter put on at strength 1, tensor by tensor.

Nothing is computed before a tensor is read. A tensor that the adapter does not change is the base's own; one that it
changes is float32, so that `donor - base` loses little of a small difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from benchmark.adapters.deltas import delta
from benchmark.adapters.keys import (
    Sorted,
    both_say,
    encoder_among,
    flat_module,
    foreign_kind,
    is_unused_projection,
    no_factors,
    refusal_of,
    sort_keys,
    sort_text_keys,
    text_module,
)
from benchmark.adapters.peft_config import PeftSettings, adapter_file, config_beside, read_config, settings_in, unsaid
from merger.checkpoints.adapter_changes import (
    Change,
    changes_of,
    check_finite,
    misfit,
    places_of,
    scales_of,
    text_places_of,
)
from merger.checkpoints.checkpoint import Checkpoint, open_checkpoint
from merger.checkpoints.source import TensorInfo
from merger.checkpoints.text_encoders import components_of, with_text_of
from merger.checkpoints.weight_files import WeightFile, open_weights
from merger.errors import CheckpointError, InputError, NoDenoiser

_Read = TypeVar("_Read")


@dataclass(frozen=True, eq=False)
class LoraDonor(Checkpoint):
    """An adapter on a base. files: its weights and, if PEFT wrote one, its configuration.

    text_keys: its tensors for text encoders, left out if only the denoiser is blended.
    """

    base: Checkpoint | None = None
    changes: Mapping[str, Change] = field(default_factory=dict, repr=False)
    text_keys: tuple[str, ...] = ()

    def read(self, name: str) -> Tensor:
        """The base's tensor with the adapter's change at strength 1; float32 if there is a change.

        Raises CheckpointError for a change that is beyond float32.
        """
        assert self.base is not None
        if name not in self.changes:
            return self.base.read(name)
        place = self.changes[name].place
        weight = place.weight(self.base)
        return place.cut(weight + self._delta(self.changes[name], weight, name), self.base)

    def _delta(self, change: Change, weight: Tensor, name: str) -> Tensor:
        assert self.base is not None
        file = self._open[self.path]
        parts = {part: file.get(key).float() for part, key in change.parts.items() if part != "alpha"}
        alpha = float(file.get(change.parts["alpha"]).float()) if "alpha" in change.parts else None
        try:
            added = delta(parts, weight, alpha, change.scale)
        except (ValueError, RuntimeError) as error:
            raise misfit(self.path, self.base, name, error) from None
        if not bool(torch.isfinite(added).all()) and bool(torch.isfinite(weight).all()):
            raise CheckpointError(f"{self.path}: what it adds to '{name}' is beyond what float32 can hold.")
        return added


def open_donor(path: Path, base: Checkpoint, *, name: str | None = None, allow_pickle: bool = False) -> Checkpoint:
    """Open a checkpoint or an adapter as a donor of `base`, with its text encoders if the base blends its own.

    path: a checkpoint, an adapter's file, or the folder that PEFT or diffusers wrote an adapter into. Raises
    CheckpointError, in one line, for what `open_checkpoint` refuses, for weights of another kind (a VAE, a ControlNet,
    ...), and for what `open_lora` refuses.
    """
    path = Path(path)
    file = adapter_file(path)
    try:
        return with_text_of(open_checkpoint(file, name=name, allow_pickle=allow_pickle), base)
    except NoDenoiser as error:
        if error.kind != "lora" and file == path and not is_adapter(file, allow_pickle):
            raise CheckpointError(f"{error} It cannot be a donor.") from None
    return open_lora(file, base, name=name or (path.name if path.is_dir() else None), allow_pickle=allow_pickle)


def open_lora(path: Path, base: Checkpoint, *, name: str | None = None, allow_pickle: bool = False) -> LoraDonor:
    """Open an adapter as a donor of `base`. Reads its tensors once, to see whether all are finite.

    Raises CheckpointError for keys whose meaning or place in the base is unknown, by name, for another kind of adapter,
    whole differences alone, two modules for one tensor, shapes that do not fit the base, NaN or infinite values, and
    quantised weights.
    """
    file = open_weights(path, allow_pickle=allow_pickle)
    config = config_beside(path, file.header.tensors)
    settings = None if config is None else _checked(read_config, config)  # before the keys: it names the kind
    found = sort_keys(file.header.tensors)
    if found.unknown:
        raise CheckpointError(f"{path}: {refusal_of(found.unknown)}")
    if found.doubled:
        raise CheckpointError(f"{path}: {both_say(*found.doubled)}")
    if refusal := no_factors([*found.modules.values(), *sort_text_keys(found.text).modules.values()]):
        raise CheckpointError(f"{path}: {refusal}")
    if not found.modules and not (base.text and found.text):
        what = "changes text encoders only, which are not blended" if found.text else "holds no LoRA"
        raise CheckpointError(f"{path}: {what}. There is nothing to weigh.")
    changes = _changes(path, base, found, file, settings)
    notes = _notes(found, file, settings)
    if base.text:
        changed, aside = _text_changes(path, base, found, file, settings)
        changes |= changed
        notes += aside
    check_finite(path, file, changes)
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
        (path,) if config is None else (path, config),
        denoiser,
        () if base.text else found.text,
        file.header.metadata,
        _open={path: file},
        text=text,
        lent=tuple(component for component in components_of(base.text) if component not in held),
        base=base,
        changes=changes,
        text_keys=found.text,
        notes=tuple(notes),
    )


def is_adapter(file: Path, allow_pickle: bool) -> bool:
    """Whether a file holds an adapter, though `merger.checkpoints.kinds` does not know its keys for one's."""
    if not file.is_file():
        return False
    keys = open_weights(file, allow_pickle=allow_pickle).header.tensors
    found = sort_keys(keys)
    return (bool(found.modules) and not found.unknown) or bool(foreign_kind(keys))


def _changes(
    path: Path, base: Checkpoint, found: Sorted, file: WeightFile, settings: PeftSettings | None
) -> dict[str, Change]:
    """{diffusers name: its change}, for every module of the adapter. Raises CheckpointError for an unknown module."""
    own = settings or _checked(settings_in, file.header.metadata, ("", "unet.", "transformer."), str(path))
    modules = [(flat_module(module), module, parts) for module, parts in found.modules.items()]
    return changes_of(path, base, modules, places_of(base), file, scales_of(own)) if modules else {}


def _text_changes(
    path: Path, base: Checkpoint, found: Sorted, file: WeightFile, settings: PeftSettings | None
) -> tuple[dict[str, Change], list[str]]:
    """The same for the text encoders that the base blends, and lines on what is set aside."""
    text = sort_text_keys(found.text)
    if text.unknown:
        refusal = refusal_of(text.unknown, "a LoRA's text encoder")
        raise CheckpointError(f"{path}: {refusal}")
    if text.doubled:
        raise CheckpointError(f"{path}: {both_say(*text.doubled)}")
    held = components_of(base.text)
    by_encoder: dict[str, list[tuple[str, str, Mapping[str, str]]]] = {}
    notes = []
    for module, parts in text.modules.items():
        component, flat = text_module(module)
        component = encoder_among(component, held)
        if is_unused_projection(flat) and f"{component}.text_projection.weight" not in base.text:
            notes.append(f"the blend leaves out '{module}', which the base's network does not use")
            continue
        by_encoder.setdefault(component, []).append((flat, module, parts))
    changes: dict[str, Change] = {}
    for component, modules in by_encoder.items():
        own = settings or _checked(settings_in, file.header.metadata, (f"{component}.",), str(path))
        changes |= changes_of(path, base, modules, text_places_of(base, component), file, scales_of(own))
    return changes, notes


def _notes(found: Sorted, file: WeightFile, settings: PeftSettings | None) -> list[str]:
    """Lines on what an adapter holds besides and on what it does not say."""
    notes = []
    if found.embeddings:
        notes.append(f"the blend leaves out its embeddings ({len(found.embeddings)} tensors, 'bundle_emb')")
    if settings is None and (line := unsaid(found.modules, file.header.metadata)):
        notes.append(line)
    return notes


def _checked(read: Callable[..., _Read], *arguments: Any) -> _Read:
    """What `read` gives. Raises CheckpointError for an InputError."""
    try:
        return read(*arguments)
    except InputError as error:
        raise CheckpointError(str(error)) from None
