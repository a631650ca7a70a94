"""Values that are no finite numbers, in a blend's sources or beyond the range of a type: refused, clamped, or kept."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from merger.checkpoints.checkpoint import Checkpoint
from merger.checkpoints.finite import blended_nonfinite, check_finite, kept_nonfinite
from merger.checkpoints.hashing import nonfinite_in
from merger.errors import CheckpointError
from merger.export.recipe import Recipe

Nonfinite = Literal["refuse", "clamp", "keep"]
"""What an export does: `refuse` raises an error; `clamp` makes values beyond the range of a type its largest number and
refuses sources that are not finite; `keep` writes NaN and infinite values as they are. Both `clamp` and `keep` say so.
"""


def to_stderr(line: str) -> None:
    """Print a line for the user."""
    print(line, file=sys.stderr)


@dataclass
class ValueCheck:
    """Checks the values of one export. how: as `Nonfinite` says. say: takes lines for the user."""

    how: Nonfinite = "refuse"
    say: Callable[[str], None] = to_stderr
    _kept: list[str] = field(default_factory=list)

    def sources(self, recipe: Recipe, base: Checkpoint, donors: Sequence[Checkpoint]) -> None:
        """Check the sources that the recipe uses. Raises CheckpointError, naming source and tensor."""
        names = {donor.name for donor in recipe.used}
        used = [donor for donor in donors if donor.name in names]
        if self.how != "keep":
            check_finite(base, used, advice=" --nonfinite keep goes on all the same.")
        for line in blended_nonfinite(base, used):
            self.say(f"{line}; they go into the blend")
        for line in kept_nonfinite(base):
            self.say(f"{line}; the blend keeps them as they are")

    def tensor(self, key: str, tensor: Tensor, *, as_it_was: bool) -> None:
        """Check a tensor that is about to be written. Raises CheckpointError, naming it.

        as_it_was: whether it is a tensor of the base that was neither blended nor converted; such are written as they
        are.
        """
        what = "" if as_it_was else nonfinite_in(tensor)
        if what and self.how != "keep":
            raise _beyond(key, tensor, what)
        if what:
            self._kept.append(key)

    def overflow(self, key: str, tensor: Tensor, before: Tensor) -> bool:
        """Check a tensor of a component that is not blended and was converted by diffusers; clamp it if asked to.

        before: the same tensor in a wider type. Returns whether values were clamped, in place. Values that are not
        finite in the base's own file stay as they are. Raises CheckpointError for others, naming the tensor.
        """
        lost = before.isfinite() & ~tensor.isfinite()
        if not bool(lost.any()):
            return False
        if self.how == "refuse":
            raise _beyond(key, tensor, nonfinite_in(tensor))
        if self.how == "keep":
            self._kept.append(key)
            return False
        most = torch.finfo(tensor.dtype).max
        tensor[lost] = before[lost].clamp(-most, most).to(tensor.dtype)
        return True

    def finish(self, clamped: Sequence[str]) -> None:
        """Say what was clamped or kept. clamped: keys of tensors whose values were clamped."""
        for keys, words in (
            (clamped, "values beyond the range of their type became its largest number"),
            (self._kept, "NaN or infinite values were written"),
        ):
            if keys:
                self.say(f"{words}, in {len(keys)} tensors, first '{keys[0]}'")
        self._kept.clear()


def _beyond(key: str, tensor: Tensor, what: str) -> CheckpointError:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return CheckpointError(
        f"the blend of '{key}' has values beyond the range of {dtype}, which would become {what}. Choose another "
        "--dtype (bf16, fp32) or smaller weights, or let --nonfinite clamp limit them."
    )
