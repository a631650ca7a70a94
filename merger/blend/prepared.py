"""Donors whose difference is not simply `donor - base`: taken from another checkpoint, or prepared.

Such a donor is the base with its difference put on at weight 1, tensor by tensor, in float32. Nothing is computed until
a tensor is read, so it is weighed, held, exported and verified like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from merger.checkpoints.checkpoint import Checkpoint
from merger.checkpoints.source import TensorInfo
from merger.checkpoints.text_encoders import component_of
from merger.errors import CheckpointError
from merger.preparations.functions import Surroundings, prepared
from merger.preparations.spec import Preparation

_INPUT = "conv_in.weight"


@dataclass(frozen=True, eq=False)
class PreparedDonor(Checkpoint):
    """`base + prepared(donor - minus)`. minus: None is the base. steps: the preparations, in order."""

    base: Checkpoint | None = None
    donor: Checkpoint | None = None
    minus: Checkpoint | None = None
    steps: tuple[Preparation, ...] = ()

    @property
    def parts(self) -> tuple[Checkpoint, ...]:
        """The donor, and `minus`."""
        assert self.donor is not None
        return (self.donor, *([self.minus] if self.minus else []))

    def combined(self, sha256: Callable[[Path], str]) -> str:
        """That of the donor's own files; `minus` has a hash of its own."""
        assert self.donor is not None
        return self.donor.combined(sha256)

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """All files with weights, those of `minus` among them."""
        return tuple(dict.fromkeys(file for part in self.parts for file in part.weight_files))

    def read(self, name: str) -> Tensor:
        """One tensor of the base with the prepared difference, in float32.

        Raises CheckpointError for one that is not finite though the base's is.
        """
        assert self.base is not None and self.donor is not None
        base = self.base.read(name).float()
        if component_of(name) in self.lent:
            return base
        donor = self.donor.read(name).float()
        minus = base if self.minus is None else self.minus.read(name).float()
        if donor.shape == base.shape:
            found = base + prepared(donor - minus, Surroundings(name, base, donor, minus), self.steps)
        else:  # the base has more input channels
            found, first = base.clone(), base[:, : donor.shape[1]]
            found[:, : donor.shape[1]] += prepared(donor - minus, Surroundings(name, first, donor, minus), self.steps)
        if not bool(torch.isfinite(found).all()) and bool(torch.isfinite(base).all()):
            raise CheckpointError(f"{self.path}: what it adds to '{name}' is beyond what float32 can hold.")
        return found


def prepare(
    donor: Checkpoint, base: Checkpoint, minus: Checkpoint | None, steps: tuple[Preparation, ...]
) -> Checkpoint:
    """The donor with its difference taken from `minus`, and prepared. The donor itself if there is nothing to do.

    If the base has more input channels than donor and `minus`, as an inpainting model has, the difference goes to the
    first ones; a note says so. Raises CheckpointError, naming file and tensor, for a `minus` that is not shaped like
    the donor, and for a difference of more input channels than the base has.
    """
    if minus is None and not steps:
        return donor
    notes = list(donor.notes)
    known: dict[str, TensorInfo] = {}
    lent = {*donor.lent, *(minus.lent if minus else ())}
    for name, info in base.blended.items():
        own = donor.blended.get(name)
        if own is None:
            continue  # `check_compatible` says it
        if minus is not None and component_of(name) not in lent:
            other = minus.blended.get(name)
            if other is None or other.shape != own.shape:
                has = "no such tensor" if other is None else f"it as {list(other.shape)}"
                raise CheckpointError(
                    f"{minus.path}: cannot be taken from {donor.path.name}, which has '{name}' as {list(own.shape)}: "
                    f"minus has {has}. Use the checkpoint that the donor was trained from."
                )
        known[name] = replace(info, dtype=torch.float32, shape=_shape(name, own, info, donor, minus, notes))
    return PreparedDonor(
        donor.name,
        donor.path,
        donor.family,
        donor.layout,
        (*donor.files, *(minus.files if minus else ())),
        {name: info for name, info in known.items() if name in base.denoiser},
        donor.other_keys,
        donor.metadata,
        donor.tensors,
        donor.prediction,
        donor.zero_snr,
        text={name: info for name, info in known.items() if name in base.text},
        lent=tuple(dict.fromkeys((*donor.lent, *(minus.lent if minus else ())))),
        notes=tuple(notes),
        base=base,
        donor=donor,
        minus=minus,
        steps=steps,
    )


def minus_of(checkpoint: object) -> Checkpoint | None:
    """What a donor's difference is taken from, if not from the base."""
    return checkpoint.minus if isinstance(checkpoint, PreparedDonor) else None


def steps_of(checkpoint: object) -> tuple[Preparation, ...]:
    """A donor's preparations."""
    return checkpoint.steps if isinstance(checkpoint, PreparedDonor) else ()


def _shape(
    name: str, own: TensorInfo, base: TensorInfo, donor: Checkpoint, minus: Checkpoint | None, notes: list[str]
) -> tuple[int, ...]:
    """The shape that a tensor of the donor has in a blend: the base's if its first input channels take it."""
    fewer = name == _INPUT and minus is not None and len(own.shape) == len(base.shape) == 4
    if not fewer or own.shape == base.shape or own.shape[:1] + own.shape[2:] != base.shape[:1] + base.shape[2:]:
        return own.shape
    if own.shape[1] > base.shape[1]:
        raise CheckpointError(
            f"{donor.path.name}: '{name}' takes {own.shape[1]} channels and the base's {base.shape[1]}: the difference "
            "of an inpainting model does not fit a base that is none. Use a base of its kind."
        )
    notes.append(
        f"'{name}' takes {own.shape[1]} channels and the base's {base.shape[1]}: its difference goes to the first "
        f"{own.shape[1]}"
    )
    return base.shape
