"""How much memory a gradient step takes, estimated before the first one.

Known are the blend, base and donors, and the gradients (one copy of what is searched). What autograd saves for the
backward pass is counted on one image that is generated once: in the text encoders, the last denoiser call, the decoder
and the tagger. Backpropagation runs through tagger and decoder first, then through the sampling steps. If these are
computed again one at a time, the larger of the two counts; if all are kept, both do. The memory that kernels need for
themselves is not seen.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, UntypedStorage

from benchmark.pipelines.lending import lent
from benchmark.prompts.prompt_set import Prompt
from benchmark.taggers.asking import logits_of
from merger.errors import NoRoom
from merger.scoring.gradients.gradients import BlendGradients
from merger.scoring.gradients.sampling import Differentiation, decoded_at_once

_TEXT, _STEP, _DECODER, _TAGGER = "text", "step", "decoder", "tagger"


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a step of `images` images at once, `decoded` of which are decoded together.

    held: live blend, base and donors. gradients: of what is searched, 0 if they are streamed. text, step, decoder,
    tagger: what autograd saves in each for one image. steps_kept: how many steps are kept whole, 0 if each is computed
    again.
    """

    held: int
    gradients: int
    text: int
    step: int
    decoder: int
    tagger: int
    images: int
    decoded: int
    steps_kept: int = 0

    def kept(self, images: int) -> int:
        """The most that autograd saves of so many images at any one time."""
        looking = min(images, self.decoded) * self.decoder + images * self.tagger
        if self.steps_kept:
            return images * (self.text + self.steps_kept * self.step) + looking
        return images * self.text + max(images * self.step, looking)

    @property
    def least(self) -> int:
        """What must be free besides what is held, for one image at a time."""
        return self.gradients + self.kept(1)

    @property
    def total(self) -> int:
        """All of it together."""
        return self.held + self.gradients + self.kept(self.images)

    def __str__(self) -> str:
        gradients = size(self.gradients) if self.gradients else "streamed"
        return (
            f"memory of a step, estimated: {size(self.total)} = blend, base and donors {size(self.held)} "
            f"+ gradients {gradients} + {size(self.kept(self.images))} kept of {self.images} images at once"
        )


def step_memory(scored: BlendGradients, prompt: Prompt, images: int, free: float = math.inf) -> StepMemory:
    """The memory of a step of `images` prompts. Generates `prompt` once with a graph, but does not backpropagate.

    free: bytes that a step may take besides what is held. Raises `NoRoom` if one image alone needs more, or, where all
    sampling steps are kept, all images together.
    """
    live, generator, tagger = scored.live, scored.generator, scored.tagger
    parameters = [parameter for layer in scored.layers for parameter, _ in live.differences(layer)]
    gradients = 0 if scored.how.streamed else sum(parameter.nbytes for parameter in parameters)
    last = Differentiation(1 / generator.settings.steps, recompute=False)  # the last step, with all its activations
    modules = [*generator.pipeline.components.values(), getattr(tagger, "model", None)]
    weights = [tensor for module in modules if isinstance(module, torch.nn.Module) for tensor in module.parameters()]
    vae, denoiser = generator.pipeline.vae, live.module
    kept = Kept(weights, free - gradients)

    forward, decoder = denoiser.forward, vae.decode

    @functools.wraps(forward)
    def predict(*args: Any, **kwargs: Any) -> Any:
        kept.part = _STEP
        return forward(*args, **kwargs)

    @functools.wraps(decoder)
    def decode(*args: Any, **kwargs: Any) -> Any:
        if scored.how.recompute:
            kept.drop(_STEP)  # it is not there while decoder and tagger are backpropagated
        kept.part = _DECODER
        return decoder(*args, **kwargs)

    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        with lent(denoiser, "forward", predict), lent(vae, "decode", decode), kept:
            drawn = generator.draw([prompt], denoiser, last)
            kept.part = _TAGGER
            logits_of(tagger, drawn.to(torch.promote_types(drawn.dtype, torch.float32)))
    except (TooMuch, torch.OutOfMemoryError):
        there = "there is" if free == math.inf else f"the {size(free)} that it may take"
        raise NoRoom(f"a gradient step needs more memory than {there} besides the models") from None
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
    steps = len(generator.scheduler.timesteps)
    memory = StepMemory(
        held=live.nbytes,
        gradients=gradients,
        text=kept.bytes[_TEXT],
        step=kept.bytes[_STEP],
        decoder=kept.bytes[_DECODER],
        tagger=kept.bytes[_TAGGER],
        images=min(scored.micro_batch, images),
        decoded=decoded_at_once(generator.settings),
        steps_kept=0 if scored.how.recompute else len(scored.how.differentiated(steps)),
    )
    if memory.steps_kept and gradients + memory.kept(memory.images) > free:
        raise NoRoom(f"the sampling steps of a gradient step need more memory than {size(free)} if all are kept")
    return memory


class TooMuch(MemoryError):
    """Autograd saves more for a backward pass than is allowed."""


class Kept:
    """Within it, counts the `bytes` that autograd saves for a backward pass, by the `part` that is set.

    What is saved is held here until it is dropped, so that no address is used twice. A backward pass is not possible.
    The storages of `known` tensors are not counted. Raises `TooMuch` as soon as more than `most` bytes are held.
    """

    def __init__(self, known: Iterable[Tensor] = (), most: float = math.inf) -> None:
        self.bytes: Counter[str] = Counter()
        self.part = _TEXT
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self._most = most
        self._held: dict[str, dict[int, UntypedStorage]] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda kept: kept)

    def __enter__(self) -> Kept:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)
        self._held.clear()

    def drop(self, part: str) -> None:
        """Frees what was saved in a part; it stays counted."""
        self._held.pop(part, None)

    def _keep(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address in self._known or any(address in held for held in self._held.values()):
            return
        self._held.setdefault(self.part, {})[address] = storage
        self.bytes[self.part] += storage.nbytes()
        if sum(self.bytes[part] for part in self._held) > self._most:
            raise TooMuch


def size(count: float) -> str:
    """`512 MB`, `3.4 GB`; decimal."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
