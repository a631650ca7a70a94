"""How much memory a step up the slopes takes, estimated before the first and said aloud.

What is held all along is known, and so are the gradients, one copy of what is searched. What the backward pass keeps
is counted in one image, drawn once: every tensor that autograd saves in the last denoiser call, the decoder and the
tagger. With steps computed again no more than one step's is there at once, so their sum is an upper bound; what kernels
need for themselves is not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmark.prompts import Prompt
from merger.drawing import Differentiation
from merger.slopes import BlendSlopes


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a step: live blend, base and donors; gradients; what is kept of one image; and how many are at once."""

    held: int
    gradients: int
    image: int
    images: int

    @property
    def total(self) -> int:
        """All of it together, in bytes."""
        return self.held + self.gradients + self.image * self.images

    def __str__(self) -> str:
        return (
            f"memory of a step, estimated: {size(self.total)} = blend, base and donors {size(self.held)} "
            f"+ gradients {size(self.gradients)} + {self.images} images at once x {size(self.image)}"
        )


def step_memory(slopes: BlendSlopes, prompt: Prompt, images: int) -> StepMemory:
    """The memory of a step of `images` prompts. Draws `prompt` once, with gradients, but goes back through nothing."""
    live, generator, tagger = slopes.live, slopes.generator, slopes.tagger
    parameters = [parameter for layer in slopes.layers for parameter, _ in live.sources(layer)]
    steps = generator.settings.steps
    last = Differentiation(1 / steps, recompute=False)  # of the last step alone, with all its activations

    def draw() -> Tensor:
        drawn = generator.draw([prompt], live.module, last)
        return tagger.logits(drawn.to(torch.promote_types(drawn.dtype, torch.float32)))

    modules = [*generator.pipeline.components.values(), getattr(tagger, "model", None)]
    weights = [tensor for module in modules if isinstance(module, torch.nn.Module) for tensor in module.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        image = kept_bytes(draw, weights)
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
    at_once = min(slopes.micro_batch, images)
    return StepMemory(live.nbytes, sum(parameter.nbytes for parameter in parameters), image, at_once)


def kept_bytes(compute: Callable[[], Any], known: Iterable[Tensor] = ()) -> int:
    """The bytes that autograd keeps for a backward pass of `compute`, the storages of `known` tensors not counted."""
    ours = {tensor.untyped_storage().data_ptr() for tensor in known}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in ours:
            kept[storage.data_ptr()] = storage.nbytes()  # no address is used twice: all stay until the result goes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = compute()
    del result
    return sum(kept.values())


def size(count: int) -> str:
    """`512 MB`, `3.4 GB`; decimal."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
