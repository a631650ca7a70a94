"""The ways in which a gradient step can save memory, and about what each costs in time.

K sampling steps of S carry gradients. The unit of cost is one call of the denoiser for one image: a plain image is S,
a gradient without any saving S + 2 K (a backward pass counts as two calls). What is saved:

- a sampling step keeps its inputs alone and is computed again: K
- the denoiser's blocks keep their inputs alone and are computed again: K
- decoder and tagger do the same: about 1
- guided pairs go through the denoiser one half at a time, and fewer images at once: a GPU is then less busy
- gradients are handed out sampling step by sampling step: base and donors are read K times instead of once
- base and donors lie in the host's memory or in their files: the time to copy them, once for all images at once
- text encoders are on the device only while they encode: the time to copy them
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from merger.blend.sources import Hold
from merger.scoring.gradients.sampling import NETWORKS, Differentiation

DENOISER, *_OTHERS = NETWORKS
OTHERS = frozenset(_OTHERS)
"""The networks that look at images: they are checkpointed together."""

_READ: dict[Hold, float] = {"device": 0.05, "host": 2.0, "file": 10.0}
"""Reading base and two donors once. For SDXL in half precision that is 15 GB: a second by PCI Express 4, and a call of
the denoiser at 1024 x 1024 takes about half a second on a card of 12 GB. A GPU overlaps most of it."""

_TEXT = 0.5
_BUSY = 0.15
"""How much longer an image takes if a GPU has one megapixel at once instead of many."""


@dataclass(frozen=True)
class Way:
    """One way of computing a step. how: see `Differentiation`. hold: where base and donors lie. text_aside: whether the
    text encoders are on the device only while they encode."""

    how: Differentiation
    hold: Hold
    text_aside: bool = False

    def cost(self, images: int, *, calls: int, steps: int, megapixels: float, gpu: bool) -> float:
        """Of one image, in calls of the denoiser, if so many images are computed at once.

        calls, steps: K and S. megapixels: of one image. gpu: whether the device is one, which wants much at once.
        """
        how = self.how
        again = how.recompute + (DENOISER in how.checkpointed)
        computed = steps + (2 + again) * calls + bool(how.checkpointed & OTHERS)
        at_once = images * megapixels * (0.5 if how.halves else 1)
        reads = _READ[self.hold] * (calls if how.streamed else 1)
        return computed * (1 + (_BUSY / at_once if gpu else 0)) + (reads + _TEXT * self.text_aside) / images

    @property
    def savings(self) -> int:
        """How many savings it makes; of two ways that cost the same, the plainer one is taken."""
        how = self.how
        return sum((how.recompute, how.streamed, how.halves, self.hold != "device", self.text_aside)) + len(
            how.checkpointed
        )


def ways(
    plain: Differentiation,
    holds: Sequence[Hold],
    *,
    streams: bool,
    halves: bool,
    inner: bool,
    outer: frozenset[str],
    text_aside: bool,
) -> Iterator[Way]:
    """All that can be combined.

    plain: what carries gradients. holds: places for base and donors. streams: whether gradients can be streamed.
    halves: whether pairs are guided. inner: whether the denoiser can be checkpointed. outer: those of `OTHERS` that can
    be. text_aside: whether the text encoders can leave the device.
    """
    both = (False, True)
    gradients = [(False, False), (True, False), *([(True, True)] if streams else [])]
    for (recompute, streamed), in_denoiser, in_others, halved, hold, aside in itertools.product(
        gradients,
        both if inner else both[:1],
        both if outer else both[:1],
        both if halves else both[:1],
        holds,
        both if text_aside else both[:1],
    ):
        networks = (frozenset({DENOISER}) if in_denoiser else frozenset()) | (outer if in_others else frozenset())
        how = replace(plain, recompute=recompute, streamed=streamed, checkpointed=networks, halves=halved)
        yield Way(how, hold, aside)
