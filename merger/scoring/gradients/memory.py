"""How much memory a gradient step takes, from what one image takes.

One image is generated and differentiated exactly as a step will do it, in two sampling steps, and its memory is
followed from operation to operation, forward and backward (`merger.scoring.gradients.followed`). The other sampling
steps take as much as these. Known besides are the blend, base and donors. An image takes its memory in two phases,
which do not meet: decoder and tagger, there and back, and the sampling steps. If the graphs of all steps are kept,
decoder and tagger come on top of them.

n images. What they take grows with n in each phase, except for one copy of the gradients of what is searched.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.pipelines.diffusers_generator import DiffusersGenerator
from benchmark.pipelines.lending import lent
from benchmark.prompts.prompt_set import Prompt
from benchmark.taggers.asking import probabilities_of
from benchmark.taggers.tagger import Tagger
from merger.scoring.gradients.followed import Followed
from merger.scoring.gradients.gradients import BlendGradients
from merger.scoring.gradients.sampling import Differentiation, decoded_at_once

TEXT, STEPS, BACK, DECODER, TAGGER = "text", "steps", "steps again", "decoder", "tagger"
"""What computes. `BACK`: the sampling steps in the backward pass."""

_REHEARSED = 2  # sampling steps; of one alone, a gradient never waits for that of another step


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a step of `images` images at once, `decoded` of which are decoded together.

    held: what is on the device before and after: models, live blend, base and donors. gradients: the copy of what is
    searched, 0 if there is none at any time. Of one image: text: its embeddings and their graph. steps: the most of the
    sampling steps. graphs: what is left of them while decoder and tagger compute. decoder: the most of the decoder.
    decoded_kept: what is left of it while the tagger computes. tagger: the most of the tagger. kernels: what kernels
    allocate for themselves, where the device can tell. fixed: what there is once, however many images, as SDXL's VAE in
    the type that it decodes in. visiting: what is there only before, while text is encoded.
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
    fixed: int = 0
    visiting: int = 0

    def needed(self, images: int) -> int:
        """The most that so many images at once take at any time, besides what is held."""
        together = min(images, self.decoded)
        looking = max(together * self.decoder, together * self.decoded_kept + images * self.tagger)
        phases = (images * self.graphs + looking, images * self.steps + self.gradients)
        return max(images * self.text + max(phases) + self.fixed + self.kernels, self.visiting)

    def most_images(self, room: float, limit: int) -> int:
        """How many images at once fit into so many bytes, `limit` at most; 0 if none does."""
        return next((images for images in range(limit, 0, -1) if self.needed(images) <= room), 0)

    @property
    def least(self) -> int:
        """What must be free besides what is held, for one image at a time."""
        return self.needed(1)


@dataclass(frozen=True)
class ImageMemory:
    """Bytes that one image takes, measured; see `StepMemory`. Ways that keep more or less of it follow from it.

    inputs: what is kept of a sampling step that is computed again. step: the most of one step, besides. graph: what one
    step keeps for its backward pass. gradients: a copy of those of the denoiser. calls: sampling steps differentiated.
    """

    text: int
    inputs: int
    step: int
    graph: int
    decoder: int
    decoded_kept: int
    tagger: int
    gradients: int
    calls: int
    decoded: int
    kernels: int = 0
    fixed: int = 0

    def of_step(self, how: Differentiation, held: int, images: int) -> StepMemory:
        """That of a step. `how` has the same `checkpointed` and `halves` as what was measured."""
        kept = 0 if how.recompute else self.calls * self.graph
        # With one call alone, a gradient is handed out as soon as it is complete. Of several, the first ones wait.
        copied = not how.streamed and (self.calls > 1 or how.halves)
        inputs = self.calls * self.inputs
        return StepMemory(
            held=held,
            gradients=self.gradients if copied else 0,
            text=self.text,
            steps=inputs + max(kept - self.graph, 0) + self.step,
            graphs=inputs + kept,
            decoder=self.decoder,
            decoded_kept=self.decoded_kept,
            tagger=self.tagger,
            images=images,
            decoded=self.decoded,
            kernels=self.kernels,
            fixed=self.fixed,
        )


def image_memory(scored: BlendGradients, prompt: Prompt, free: float = math.inf) -> ImageMemory:
    """What an image takes, measured with `prompt` on the blend that is live.

    Raises `TooMuch`, with the part that was computing, as soon as more than `free` bytes are taken, and
    torch.OutOfMemoryError.
    """
    device = next(scored.live.module.parameters()).device
    settings, how = scored.generator.settings, scored.how
    followed, seen = Followed(device, free), _Seen()
    followed.part = TEXT
    steps = min(settings.steps, _REHEARSED)
    before = _restart_kernels(device)
    with _phases(scored, followed, seen), followed:
        scored.rehearse(prompt, steps)
    rehearsed = len(scored.generator.scheduler.timesteps)  # some samplers call the denoiser twice in a step
    calls = len(how.differentiated(math.ceil(rehearsed * settings.steps / steps)))
    peaks, text = followed.peaks, seen.marks[TEXT]
    denoisers = {id(parameter) for parameter in scored.live.module.parameters()}
    gradients = sum(parameter.nbytes for parameter in scored.parameters if id(parameter) in denoisers)
    waiting = gradients if not how.streamed and (rehearsed > 1 or how.halves) else 0
    graph = seen.graph * (2 if how.halves else 1)
    kept = 0 if how.recompute else rehearsed * graph
    left = seen.marks[DECODER] - text
    # The second step finds the inputs of the first; what is more when the decoder begins is there once.
    inputs = (left - kept) // rehearsed
    if rehearsed > 1:
        inputs = min(inputs, seen.entries[len(seen.entries) // rehearsed] - text - kept // rehearsed)
    inputs = max(inputs, 0)
    fixed = max(left - kept - rehearsed * inputs, 0)
    forward, backward = peaks[STEPS] - text, peaks[BACK] - text - waiting - fixed
    most = max(forward, backward)
    return ImageMemory(
        text=max(text, 0),
        inputs=inputs,
        step=max(most - rehearsed * inputs - kept + min(kept, graph), 0),
        graph=graph,
        decoder=max(peaks[DECODER] - seen.marks[DECODER], 0),
        decoded_kept=max(seen.marks[TAGGER] - seen.marks[DECODER], 0),
        tagger=max(peaks[TAGGER] - seen.marks[TAGGER], 0),
        gradients=gradients,
        calls=calls,
        decoded=decoded_at_once(settings),
        kernels=max(_kernels(device, before) - max(peaks.values()), 0),
        fixed=fixed,
    )


@dataclass
class _Seen:
    """marks: bytes there when the text is encoded, when the decoder begins, and when the tagger begins. graph: the most
    that one call of the denoiser has left for its backward pass. entries: bytes there when each call begins."""

    marks: dict[str, int] = field(default_factory=lambda: {TEXT: 0, DECODER: 0, TAGGER: 0})
    graph: int = 0
    entries: list[int] = field(default_factory=list)


@contextmanager
def _phases(scored: BlendGradients, followed: Followed, seen: _Seen) -> Iterator[None]:
    """Within it, the part that computes is told to `followed`, and what is there at its turns is `seen`."""
    denoiser, vae = scored.live.module, scored.generator.pipeline.vae
    forward, decoder = denoiser.forward, vae.decode
    marks, back = seen.marks, False

    @functools.wraps(forward)
    def predict(*args: Any, **kwargs: Any) -> Any:
        if followed.part == TEXT:
            marks[TEXT] = followed.now
        followed.part = BACK if back else STEPS
        before = followed.now
        if not back:
            seen.entries.append(before)
        try:
            return forward(*args, **kwargs)
        finally:  # torch may leave it early when it computes a step again
            seen.graph = max(seen.graph, followed.now - before)

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
            latents.register_hook(arrived(BACK))
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


def drawing_memory(generator: DiffusersGenerator, tagger: Tagger, prompt: Prompt, device: torch.device) -> int:
    """The most bytes that one image takes, drawn and tagged without gradients; measured on two sampling steps of it."""
    settings = replace(generator.settings, steps=min(generator.settings.steps, _REHEARSED))
    followed = Followed(device)
    before = _restart_kernels(device)
    with lent(generator, "settings", settings), followed:
        for images in generator.generate([prompt]):
            probabilities_of(tagger, images)
    return max(*followed.peaks.values(), _kernels(device, before))


def nbytes_of(modules: Iterable[nn.Module], device: torch.device, without: Iterable[Tensor] = ()) -> int:
    """Bytes of the parameters and buffers of networks, as far as they are on this device; `without` are not counted."""
    left_out = {id(tensor) for tensor in without}
    tensors = {id(t): t for module in modules for t in (*module.parameters(), *module.buffers())}
    return sum(t.nbytes for key, t in tensors.items() if key not in left_out and t.device.type == device.type)


def size(count: float) -> str:
    """`512 MB`, `3.4 GB`; decimal."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
