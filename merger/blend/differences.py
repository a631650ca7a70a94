"""What a donor adds to the base at weight 1: the one definition of it, for blends, exports and gradients.

    P   elements that lie next to one another: of a tensor, or of a layer's buffer

    blended = base + sum over donors of  weight * difference

A difference is computed when it is asked for, on the elements asked for, into memory that the caller owns; it is never
held whole. Another way to prepare a donor is another class with the same members.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

_ALL = slice(None)


@dataclass(frozen=True)
class Difference:
    """`donor - base`.

    donor: [P], of any floating dtype, on any device: what the blend is, bit for bit, if this difference alone is added
    at weight 1.
    """

    donor: Tensor

    def to(self, device: torch.device) -> Difference:
        """The same with its values on this device; copied without waiting where that is possible."""
        return replace(self, donor=self.donor.to(device, non_blocking=True))

    def write(self, out: Tensor, base: Tensor, here: slice = _ALL) -> Tensor:
        """Write the difference on the elements `here` into `out`, and return it.

        base: the base's values there, of the dtype and on the device of `out`. The subtraction is rounded once, to that
        dtype.
        """
        donor = self.donor[here]
        if donor.dtype == out.dtype and donor.device == out.device:
            return torch.sub(donor, base, out=out)
        out.copy_(donor)  # converts, and fetches what lies on another device
        return out.sub_(base)
