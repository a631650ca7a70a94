"""How much memory a gradient step takes, measured on one image before the first step.

One image is generated and differentiated exactly as the step will do it, and its memory is followed from operation to
operation, forward and backward (`merger.scoring.gradients.followed`). Known besides are the blend, base and donors. An
image takes its memory in two phases, which do not meet: decoder and tagger, there and back, and the sampling steps. If
the graphs of all steps are kept, decoder and tagger come on top of them.

n images. What they take grows with n in each phase, except for one copy of the gradients of what is searched.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmark.pipelines.lending import lent
from benchmark.prompts.prompt_set import Prompt
from merger.errors import NoRoom
from merger.scoring.gradients.followed import Followed, TooMuch
from merger.scoring.gradients.gradients import BlendGradients
from merger.scoring.gradients.sampling import decoded_at_once

TEXT, STEPS, DECODER, TAGGER = "text", "steps", "decoder", "tagger"


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a step of `images` images at once, `decoded` of which are decoded together.

    held: live blend, base and donors, as far as they are on the device. gradients: the copy of what is searched, 0 if
    there is none at any time. Of one image: text: its embeddings and their graph. steps: the most of the sampling
    steps. graphs: what is left of them while decoder and tagger compute. decoder: the most of the decoder.
    decoded_kept: what is left of it while the tagger computes. tagger: the most of the tagger. kernels: what kernels
    allocate for themselves, where the device can tell.
    """

    held: int
    gradients: int
    text: int
    steps: int
    graphs: int
    decoder: int
    decoded_kept: int
    tagger: int
    images: int
    decoded: int
    kernels: int = 0

    def needed(self, images: int) -> int:
        """The most that so many images at once take at any time, besides what is held."""
        together = min(images, self.decoded)
        looking = max(together * self.decoder, together * self.decoded_kept + images * self.tagger)
        phases = (images * self.graphs + looking, images * self.steps + self.gradients)
        return images * self.text + max(phases) + self.kernels

    def most_images(self, room: float, limit: int) -> int:
        """How many images at once fit into so many bytes, `limit` at most; 0 if none does."""
        return next((images for images in range(limit, 0, -1) if self.needed(images) <= room), 0)

    @property
    def least(self) -> int:
        """What must be free besides what is held, for one image at a time."""
        return self.needed(1)

    @property
    def total(self) -> int:
        """All of it together."""
        return self.held + self.needed(self.images)

    def __str__(self) -> str:
        gradients = f", gradients {size(self.gradients)} of them" if self.gradients else ""
        return (
            f"memory of a step: {size(self.total)} = blend, base and donors {size(self.held)} "
            f"+ {size(self.needed(self.images))} for {self.images} images at once{gradients}"
        )


def step_memory(scored: BlendGradients, prompt: Prompt, images: int, free: float = math.inf) -> StepMemory:
    """The memory of a step of `images` prompts, measured with `prompt` on the blend that is live.

    free: bytes that a step may take besides what is held. Raises `NoRoom` if one image alone needs more.
    """
    try:
        return measured(scored, prompt, images, free)
    except (TooMuch, torch.OutOfMemoryError):
        there = "there is" if free == math.inf else f"the {size(free)} that it may take"
        raise NoRoom(f"a gradient step needs more memory than {there} besides the models") from None


def measured(scored: BlendGradients, prompt: Prompt, images: int, free: float = math.inf) -> StepMemory:
    """`step_memory` that raises `TooMuch`, with the part that was computing, or torch.OutOfMemoryError."""
    device = next(scored.live.module.parameters()).device
    followed = Followed(device, free)
    marks = {TEXT: 0, DECODER: 0, TAGGER: 0}  # bytes there when these are over, begin, begin
    followed.part = TEXT
    before = _restart_kernels(device)
    with _phases(scored, followed, marks), followed:
        scored.rehearse(prompt)
    peaks, text = followed.peaks, marks[TEXT]
    steps = len(scored.how.differentiated(len(scored.generator.scheduler.timesteps)))
    # With one step alone, a gradient is handed out as soon as it is complete. Of several, the first ones wait.
    copied = not scored.how.streamed and steps > 1
    gradients = sum(parameter.nbytes for parameter in scored.parameters) if copied else 0
    backward = max(peaks[_BACK] - text - gradients, 0)
    return StepMemory(
        held=scored.live.nbytes,
        gradients=gradients,
        text=max(text, 0),
        steps=max(peaks[STEPS] - text, backward),
        graphs=marks[DECODER] - text,
        decoder=max(peaks[DECODER] - marks[DECODER], 0),
        decoded_kept=max(marks[TAGGER] - marks[DECODER], 0),
        tagger=max(peaks[TAGGER] - marks[TAGGER], 0),
        images=min(scored.micro_batch, images),
        decoded=decoded_at_once(scored.generator.settings),
        kernels=max(_kernels(device, before) - max(peaks.values()), 0),
    )


_BACK = "back"  # the sampling steps again, in the backward pass


@contextmanager
def _phases(scored: BlendGradients, followed: Followed, marks: dict[str, int]) -> Iterator[None]:
    """Within it, the part that computes is told to `followed`, and what is there at its turns is noted in `marks`."""
    denoiser, vae = scored.live.module, scored.generator.pipeline.vae
    forward, decoder = denoiser.forward, vae.decode
    back = False

    @functools.wraps(forward)
    def predict(*args: Any, **kwargs: Any) -> Any:
        if followed.part == TEXT:
            marks[TEXT] = followed.now
        followed.part = _BACK if back else STEPS
        return forward(*args, **kwargs)

    def arrived(part: str) -> Any:
        def note(_: Tensor) -> None:
            nonlocal back
            followed.part, back = part, True

        return note

    @functools.wraps(decoder)
    def decode(latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        marks[DECODER] = followed.now
        followed.part = DECODER
        if latents.requires_grad:
            latents.register_hook(arrived(_BACK))
        decoded = decoder(latents, *args, **kwargs)
        images = decoded[0]
        if images.requires_grad:
            images.register_hook(arrived(DECODER))
        marks[TAGGER] = followed.now
        followed.part = TAGGER
        return decoded

    with lent(denoiser, "forward", predict), lent(vae, "decode", decode):
        yield


def _restart_kernels(device: torch.device) -> int:
    """Bytes allocated now, from which `_kernels` counts."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _kernels(device: torch.device, before: int) -> int:
    """The most that the allocator has given out since, kernels' own work space among it; 0 where it cannot tell."""
    return torch.cuda.max_memory_allocated(device) - before if device.type == "cuda" else 0


def size(count: float) -> str:
    """`512 MB`, `3.4 GB`; decimal."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
