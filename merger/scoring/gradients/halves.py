"""Guided pairs one half at a time: what a denoiser is called with for classifier-free guidance, computed in two calls.

I images. Pipelines that guide in one call give the denoiser 2 I rows, first all without and then all with the prompt.
The halves are the same computation on I rows each, so they differ from it by the usual rounding of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def in_halves(forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], images: int) -> Any:
    """`forward(*args, **kwargs)`, in two calls if it is given guided pairs of so many images, else in one.

    Every tensor of 2 I rows is cut, and every list of 2 I tensors (Z-Image takes its latents so).
    """
    latents = args[0] if args else next((each for each in kwargs.values() if isinstance(each, Tensor | list)), None)
    if not isinstance(latents, Tensor | list) or len(latents) != 2 * images:
        return forward(*args, **kwargs)
    halves = []
    for which in (0, 1):
        given = [_half(each, images, which) for each in args]
        halves.append(forward(*given, **{name: _half(each, images, which) for name, each in kwargs.items()}))
    return _joined(*halves)


def _half(value: Any, images: int, which: int) -> Any:
    here = slice(which * images, (which + 1) * images)
    if isinstance(value, Tensor):
        return value[here] if value.ndim and len(value) == 2 * images else value
    if isinstance(value, list) and len(value) == 2 * images and all(isinstance(each, Tensor) for each in value):
        return value[here]
    if isinstance(value, list | tuple):
        return type(value)(_half(each, images, which) for each in value)
    if isinstance(value, dict):
        return {name: _half(each, images, which) for name, each in value.items()}
    return value


def _joined(one: Any, other: Any) -> Any:
    """What one call would have returned: tensors end to end, and lists of tensors likewise."""
    if isinstance(one, Tensor):
        return torch.cat([one, other])
    if isinstance(one, list):
        return [*one, *other]
    if isinstance(one, dict):  # diffusers' outputs are dictionaries too
        return type(one)(**{name: _joined(one[name], other[name]) for name in one})
    return tuple(_joined(*pair) for pair in zip(one, other, strict=True))
