"""What an adapter changes in a base: which tensor, by which parts, and whether their shapes fit.

All of it is known from headers, so that a search, a merge and an inspection refuse the same adapters before they begin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from benchmark.adapters.deltas import check, rank_of
from benchmark.adapters.fused_names import exchanged, fused_tensors
from benchmark.adapters.keys import both_say, leaves, network_path
from benchmark.adapters.original_names import DENOISER_PREFIX, original_keys
from benchmark.adapters.peft_config import PeftSettings
from benchmark.pipelines.key_names import usual
from merger.checkpoints.checkpoint import Checkpoint
from merger.checkpoints.headers import FLOATING, Entry
from merger.checkpoints.weight_files import WeightFile
from merger.errors import CheckpointError, InputError, did_you_mean

Scales = Callable[[str, int | None], float | None]
"""(module, rank) -> the factor that the adapter's settings say; None if they say nothing."""


@dataclass(frozen=True)
class Place:
    """Where the change of a base's tensor `name` is worked out.

    key: the base's key that holds it and more, whose rows are changed. within: the tensors that make up the one that
    the adapter changes, one below the other; empty if that is the tensor itself. swapped: that one has the two halves
    of its rows exchanged.
    """

    name: str
    key: str | None = None
    within: tuple[str, ...] = ()
    swapped: bool = False

    def weight(self, base: Checkpoint) -> Tensor:
        """The weight that the adapter changes, in float32."""
        if self.key is not None:
            return base.read_key(self.key).float()
        if not self.within:
            return base.read(self.name).float()
        whole = torch.cat([base.read(name).float() for name in self.within])
        return exchanged(whole) if self.swapped else whole

    def shape(self, base: Checkpoint) -> tuple[int, ...]:
        """The shape of that weight."""
        if self.key is not None:
            return base.tensors[self.key].shape
        shape = base.blended[self.name].shape
        if not self.within:
            return shape
        return (sum(base.blended[name].shape[0] for name in self.within), *shape[1:])

    def cut(self, changed: Tensor, base: Checkpoint) -> Tensor:
        """The base's tensor `name` out of that weight, once it is changed."""
        info = base.blended[self.name]
        if self.key is not None and info.pieces:
            return torch.cat([changed[piece.start : piece.stop] for piece in info.pieces]).reshape(info.shape)
        if self.key is not None or not self.within:
            return changed
        rows = [base.blended[name].shape[0] for name in self.within]
        parts = (exchanged(changed) if self.swapped else changed).split(rows)
        return parts[self.within.index(self.name)].reshape(info.shape)


Places = dict[str, list[Place]]


@dataclass(frozen=True)
class Change:
    """One adapted tensor: its place, the adapter's parts {part: key}, and the whole factor if its settings say it."""

    place: Place
    parts: Mapping[str, str]
    scale: float | None = None


def places_of(base: Checkpoint) -> Places:
    """{a tensor's path with underscores: where it is}, under diffusers' names and those of original files."""
    places: Places = {}
    originals: dict[str, list[str]] = {}
    for name, info in base.denoiser.items():
        if base.layout == "original":
            for key in {piece.key for piece in info.pieces} or {info.key}:
                originals.setdefault(key, []).append(name)
    for key, fused in fused_tensors(base.denoiser).items():
        places[key.replace(".", "_")] = [Place(name, None, fused.names, fused.swapped) for name in fused.names]
    if not originals:
        originals = {key: [name] for name, key in original_keys(base.denoiser).items()}
    for key, names in originals.items():
        flat = usual(key).removeprefix(DENOISER_PREFIX).replace(".", "_")
        cut = any(base.denoiser[name].pieces for name in names)
        places[flat] = [Place(name, key if cut else None) for name in names]
    for name in base.denoiser:
        places[name.replace(".", "_")] = [Place(name)]
    return places


def text_places_of(base: Checkpoint, component: str) -> Places:
    """The same for one of the text encoders that the base blends."""
    start = f"{component}."
    own = [name for name in base.text if name.startswith(start)]
    return {name.removeprefix(start).replace(".", "_"): [Place(name)] for name in own}


def scales_of(settings: PeftSettings | None) -> Scales:
    """The factors that an adapter's settings say. Raises InputError, when called, for settings of another rank."""
    return lambda module, rank: None if settings is None else settings.scale(network_path(module), rank)


def changes_of(
    path: Path,
    base: Checkpoint,
    modules: Sequence[tuple[str, str, Mapping[str, str]]],
    places: Places,
    file: WeightFile,
    scales: Scales,
) -> dict[str, Change]:
    """{name of the base's tensor: its change}, for modules of one network.

    modules: (path with underscores, what the file calls it, {part: key}) each. Raises CheckpointError if the base has
    no place for a module, if two modules change one tensor, for shapes that do not fit, for a module of rank 0, for an
    alpha that is not one number, and for quantised weights.
    """
    entries = file.header.tensors
    _check_types(path, entries, modules)
    changes: dict[str, Change] = {}
    taken: dict[str, str] = {}
    homeless = []
    for flat, module, parts in modules:
        for leaf, used in leaves(parts):
            targets = places.get(f"{flat}_{leaf}")
            if targets is None:
                homeless.append((flat, module))
                continue
            shapes = {part: entries[key].shape for part, key in used.items() if part != "alpha"}
            for place in targets:
                if place.name in taken:
                    raise CheckpointError(f"{path}: {both_say(taken[place.name], module)}")
                taken[place.name] = module
                try:
                    check(shapes, place.shape(base))
                    scale = None if "alpha" in used else scales(module, rank_of(shapes))
                except InputError as error:
                    raise CheckpointError(str(error)) from None
                except ValueError as error:
                    raise misfit(path, base, place.name, error) from None
                changes[place.name] = Change(place, used, scale)
    if homeless:
        near = did_you_mean(homeless[0][0] + "_weight", places)
        near = near if near.startswith(" Did") else ""  # a list of a thousand tensors helps nobody
        raise CheckpointError(
            f"{path}: the base {base.path.name} ({base.family}) has no place for '{homeless[0][1]}' "
            f"({len(homeless)} of {len(modules)} modules). Is it for another family?{near}"
        )
    return changes


def check_finite(path: Path, file: WeightFile, changes: Mapping[str, Change]) -> None:
    """Make sure that all that an adapter adds is a number. Reads its tensors once; raises CheckpointError."""
    for key in dict.fromkeys(key for change in changes.values() for key in change.parts.values()):
        tensor = file.get(key).float()
        if not bool(torch.isfinite(tensor).all()):
            count = int((~torch.isfinite(tensor)).sum())
            raise CheckpointError(
                f"{path}: '{key}' holds {count} values of {tensor.numel()} that are not finite (NaN or infinite). "
                "The file is broken: fetch it or train it again."
            )


def misfit(path: Path, base: Checkpoint, name: str, error: Exception) -> CheckpointError:
    """The refusal of parts that make no change of the tensor `name`."""
    reason = " ".join(str(error).split())
    return CheckpointError(f"{path}: what it has for '{name}' {reason}. Is it for a {base.family} model?")


def _check_types(
    path: Path, entries: Mapping[str, Entry], modules: Sequence[tuple[str, str, Mapping[str, str]]]
) -> None:
    for part, key in (item for _, _, parts in modules for item in parts.items()):
        dtype, shape = entries[key].dtype, entries[key].shape
        if part == "alpha" and (prod(shape) != 1 or dtype.is_complex):
            raise CheckpointError(f"{path}: '{key}' is {list(shape)} of {dtype}, and alpha is one number.")
        if part != "alpha" and dtype not in FLOATING:
            raise CheckpointError(f"{path}: '{key}' is {dtype}: quantised adapters cannot be blended.")
