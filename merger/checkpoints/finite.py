"""Whether the values of a blend's sources are numbers that a blend can hold: one NaN in one tensor makes every image
black, and so does one value beyond the range of the base's type."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from merger.checkpoints.adapter import LoraDonor
from merger.checkpoints.checkpoint import Checkpoint
from merger.checkpoints.hashing import LARGE, file_contents, nonfinite_in
from merger.checkpoints.weight_files import PICKLES
from merger.errors import CheckpointError

_NOT_DRAWN_WITH = ("model_ema.",)
"""Starts of keys that no program generates images with: a trainer's running averages."""


def check_finite(base: Checkpoint, donors: Sequence[Checkpoint], *, drawn: bool = False, advice: str = "") -> None:
    """Make sure that base and donors hold finite numbers in what a blend reads.

    Reads every file once; its hash is computed in the same pass. drawn: whether images are generated with the base, so
    that its other components count too. advice: a sentence that ends the message. Raises CheckpointError naming the
    first source and tensor that hold NaN or infinite values.
    """
    lines = blended_nonfinite(base, donors) or (kept_nonfinite(base) if drawn else [])
    if lines:
        more = f"; {len(lines) - 1} more sources hold such" if len(lines) > 1 else ""
        raise CheckpointError(f"{lines[0]}{more}. Fetch the file again, or leave it out.{advice}")


def check_range(base: Checkpoint, donors: Sequence[Checkpoint]) -> None:
    """Make sure that the base's types can hold every donor: at weight 1 a blend is the donor, rounded to these types.

    8-bit types take their largest value instead, so they hold every donor. Raises CheckpointError naming the first
    donor and tensor that do not fit.
    """
    for donor in donors:
        for name, where, size in _large(donor):
            dtype = base.blended[name].dtype
            if dtype.itemsize > 1 and bool(torch.tensor(size, dtype=torch.float64).to(dtype).isinf()):
                limit = f"{str(dtype).removeprefix('torch.')} ends at {torch.finfo(dtype).max:g}"
                raise CheckpointError(
                    f"{where} up to {size:g} in size, which the base {base.name} cannot hold ({limit}): its images "
                    "would be black. Leave it out, or use a base in bf16 or fp32."
                )


def _large(donor: Checkpoint) -> Iterator[tuple[str, str, float]]:
    """(blended tensor, a phrase that names it, the largest size of its values) where that is above `LARGE`."""
    if donor.parts != (donor,):
        for name in dict.fromkeys(name for part in donor.parts for name, _, _ in _large(part)):
            if name in donor.blended and (size := float(donor.read(name).abs().max())) > LARGE:
                yield name, f"{donor.path}: as it is prepared, '{name}' has values", size
        return
    if isinstance(donor, LoraDonor):
        for name in donor.changes:
            size = float(donor.read(name).abs().max())
            if size > LARGE:
                yield name, f"{donor.path}: with what it adds, '{name}' has values", size
        return
    for name, info in donor.blended.items():
        for key in {piece.key for piece in info.pieces} or {info.key}:
            file = donor.tensors[key].file if key in donor.tensors else info.file
            if file.suffix in PICKLES:
                tensor = donor.read_key(key, file)
                size = float(tensor.abs().max()) if tensor.numel() else 0.0
            else:
                size = file_contents(file).large.get(key, 0.0)
            if size > LARGE:
                yield name, f"{file}: '{key}' holds values", size


def blended_nonfinite(base: Checkpoint, donors: Sequence[Checkpoint]) -> list[str]:
    """A phrase for each source of a blend that holds NaN or infinite values: which file, which tensor, how many."""
    lines = []
    for source in (base, *(part for donor in donors for part in donor.parts)):
        read = _read_keys(source)
        lines += _phrase([each for each in _nonfinite(source) if each[:2] in read])
    return lines


def kept_nonfinite(base: Checkpoint) -> list[str]:
    """The same for the tensors of the base that are not blended, in all its files; one phrase at most."""
    read = _read_keys(base)
    return _phrase(
        [each for each in _nonfinite(base) if each[:2] not in read and not each[1].startswith(_NOT_DRAWN_WITH)]
    )


def _phrase(found: Sequence[tuple[Path, str, str]]) -> list[str]:
    if not found:
        return []
    file, key, what = found[0]
    many = f" ({len(found)} such tensors)" if len(found) > 1 else ""
    return [f"{file}: '{key}' holds {what}, which are not finite numbers{many}"]


def _nonfinite(source: Checkpoint) -> Iterator[tuple[Path, str, str]]:
    """(file, key, what it holds) of every tensor of a source that does not hold finite numbers."""
    for file in source.weight_files:
        if file.suffix not in PICKLES:
            for key, what in file_contents(file).nonfinite.items():
                yield file, key, what
        else:
            for key in source.keys_of(file):
                if what := nonfinite_in(source.read_key(key, file)):
                    yield file, key, what


def _read_keys(source: Checkpoint) -> set[tuple[Path, str]]:
    """(file, key) of what a blend reads of a source."""
    if source.layout == "lora":
        return {(source.path, key) for key in source.keys_of(source.path) if key not in source.other_keys}
    keys = set()
    for info in source.blended.values():
        keys.add((info.file, info.key))
        for piece in info.pieces:
            keys.add((source.tensors[piece.key].file if piece.key in source.tensors else info.file, piece.key))
    return keys
