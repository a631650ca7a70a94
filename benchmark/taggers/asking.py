"""Taggers are asked here, and nowhere else: what they raise and what they answer is checked before it is used.

A tagger may be somebody else's code. Whatever goes wrong in it is one line that names the tagger and the reason.

B images of H x W pixels, T tags.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmark.errors import InputError, first_line, out_of_memory
from benchmark.images import Images

if TYPE_CHECKING:
    from torch import Tensor

    from benchmark.taggers.tagger import Probabilities, Tagger

_NEAR = 1e-3  # rounding of fp16 and bf16 models beyond 0 and 1


class TaggerError(InputError):
    """A tagger that failed, or that answered with what is no answer. Its text names the tagger and the reason."""


class Named(Protocol):
    """What errors need of a tagger."""

    @property
    def name(self) -> str:
        """What tables call it."""

    @property
    def tags(self) -> tuple[str, ...]:
        """The T tags, in the order of the columns."""


class Differentiable(Named, Protocol):
    """A tagger whose answer can be differentiated."""

    def logits(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in 0..1 -> [B, T], differentiable in the images."""


@contextmanager
def foreign(what: str) -> Iterator[None]:
    """Makes a `TaggerError` of what the code of a tagger, or of a feature extractor, raises within it.

    what: whose code it is, and what it cannot do. An `InputError` and a lack of memory pass unchanged: they say
    themselves what to do, or are answered with fewer images at once.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the code of a plug-in may raise anything, and the search behind it must end in order
        if out_of_memory(error):
            raise
        raise TaggerError(f"{what} ({type(error).__name__}: {first_line(error)}).") from error


def probabilities_of(tagger: Tagger, images: Images, broken: NDArray[np.bool_] | None = None) -> Probabilities:
    """uint8 [B, H, W, 3] -> float32 [B, T]: what a tagger finds, 0..1.

    broken [B]: images that hold no picture; whatever the tagger says of these counts as 0. Raises `TaggerError` if it
    fails, or answers with another shape, with other numbers than floats, or with what is no probability.
    """
    with foreign(f"the tagger {tagger.name} fails on {_many(len(images))}"):
        said = np.asarray(tagger.probabilities(images))
    _check_shape(tagger, said.shape, len(images))
    if said.dtype.kind != "f":
        raise TaggerError(f"the tagger {tagger.name} answers with numbers of type {said.dtype}, not float32.")
    said = said.astype(np.float32, copy=False)
    if broken is not None:
        said = np.where(broken[:, None], np.float32(0), said)
    if not np.all((said >= -_NEAR) & (said <= 1 + _NEAR)):  # also of NaN
        raise TaggerError(
            f"the tagger {tagger.name} answers {said.min():g} to {said.max():g}, which are no probabilities."
        )
    return said


def logits_of(tagger: Differentiable, images: Tensor) -> Tensor:
    """[B, 3, H, W] in 0..1 -> [B, T]: a tagger's logits, differentiable in the images if these have a graph.

    Raises `TaggerError` if it fails, or answers with another shape, type or device, with NaN for an image that is
    finite, or without a graph.
    """
    import torch

    with foreign(f"the tagger {tagger.name} fails on {_many(len(images))}"):
        said = tagger.logits(images)
    if not isinstance(said, torch.Tensor):
        raise TaggerError(f"the tagger {tagger.name} answers with a {type(said).__name__}, not a tensor.")
    _check_shape(tagger, tuple(said.shape), len(images))
    if not said.is_floating_point():
        raise TaggerError(f"the tagger {tagger.name} answers with numbers of type {said.dtype}, not float32.")
    if said.device != images.device:
        raise TaggerError(f"the tagger {tagger.name} answers on {said.device}, and the images are on {images.device}.")
    if torch.is_grad_enabled() and images.requires_grad and not said.requires_grad:
        raise TaggerError(f"the tagger {tagger.name} answers with logits that cannot be differentiated.")
    nan, whole = torch.isnan(said.detach()).any(1), torch.isfinite(images.detach()).flatten(1).all(1)
    if bool((nan & whole).any()):
        raise TaggerError(f"the tagger {tagger.name} answers NaN for an image that is finite.")
    return said


def _check_shape(tagger: Named, shape: tuple[int, ...], images: int) -> None:
    if shape != (images, len(tagger.tags)):
        raise TaggerError(
            f"the tagger {tagger.name} answers {list(shape)} for {_many(images)} and {len(tagger.tags)} tags."
        )


def _many(images: int) -> str:
    return "1 image" if images == 1 else f"{images} images"
