"""What an image takes in each way of computing it, measured when it is asked for, in as few runs as suffice.

The sampling steps depend on two savings (checkpointing in the denoiser, halves of guided pairs), decoder and tagger on
another (checkpointing in them). So a run that measures both sides serves every way that has one of them in common.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from benchmark.prompts.prompt_set import Prompt
from merger.scoring.gradients.followed import TooMuch
from merger.scoring.gradients.gradients import BlendGradients
from merger.scoring.gradients.memory import DECODER, TAGGER, ImageMemory, image_memory
from merger.scoring.gradients.sampling import Differentiation
from merger.scoring.gradients.ways import DENOISER, OTHERS


class Measurements:
    """What one image takes, by way of computing it.

    taker: what takes gradients in a way. room: more bytes than these are never taken. streams: whether gradients can be
    streamed, which takes least to measure.
    """

    def __init__(
        self, taker: Callable[[Differentiation], BlendGradients], prompt: Prompt, room: float, *, streams: bool
    ) -> None:
        self._taker, self._prompt, self._room, self._streams = taker, prompt, room, streams
        self._steps: dict[Any, ImageMemory | None] = {}
        self._ends: dict[Any, ImageMemory | None] = {}

    def of(self, how: Differentiation) -> ImageMemory | None:
        """What an image takes; None if that is more than the room."""
        steps, ends = (DENOISER in how.checkpointed, how.halves), how.checkpointed & OTHERS
        if None in (self._steps.get(steps, 0), self._ends.get(ends, 0)):
            return None
        if steps not in self._steps or ends not in self._ends:
            self._measure(how, steps, ends)
        found, end = self._steps.get(steps), self._ends.get(ends)
        if found is None or end is None:
            return None
        return replace(
            found,
            decoder=end.decoder,
            decoded_kept=end.decoded_kept,
            tagger=end.tagger,
            kernels=max(found.kernels, end.kernels),
        )

    def _measure(self, how: Differentiation, steps: Any, ends: Any) -> None:
        least = replace(how, recompute=True, streamed=self._streams)
        part = ""
        try:
            self._steps[steps] = self._ends[ends] = image_memory(self._taker(least), self._prompt, self._room)
        except TooMuch as error:
            part = error.part
        except torch.OutOfMemoryError:
            part = "?"
        if part in (DECODER, TAGGER):
            self._ends[ends] = None
        elif part:
            self._steps[steps] = None
