"""Images moved by a few pixels before the tagger reads them, each by its own amount.

A network that is followed by its gradients is soon fooled: pixels change in ways that it alone reads as the tag. Such a
change rarely survives a move by a pixel or two, and what people see does. The expectation over small changes of the
image is what Athalye et al., "Synthesizing Robust Adversarial Examples" (2018), optimise.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmark.prompts.prompt_set import Prompt, derive_seed


def shifted(images: Tensor, prompts: Sequence[Prompt], share: float) -> Tensor:
    """Moves each image by up to `share` of its sides, up or down and left or right; whole pixels, edges repeated.

    images: [B, C, H, W]. prompts: B; an image's move depends on its prompt's seed alone. Differentiable.
    """
    reaches = [round(share * side) for side in images.shape[-2:]]
    if not any(reaches):
        return images
    moved = []
    for image, prompt in zip(images, prompts, strict=True):
        for dim, reach in enumerate(reaches, start=1):
            image = _moved(image, derive_seed(prompt.seed, "shift", dim) % (2 * reach + 1) - reach, dim)
        moved.append(image)
    return torch.stack(moved)


def _moved(image: Tensor, by: int, dim: int) -> Tensor:
    """Moves along one dimension. Padding of torch would do, but its gradient on a GPU is not the same every time."""
    size, rest = image.shape[dim], image.shape[dim] - abs(by)
    if not by:
        return image
    edge = image.narrow(dim, 0 if by > 0 else size - 1, 1)
    edge = edge.expand(*(abs(by) if at == dim else -1 for at in range(image.ndim)))
    kept = image.narrow(dim, 0 if by > 0 else -by, rest)
    return torch.cat([edge, kept] if by > 0 else [kept, edge], dim)
