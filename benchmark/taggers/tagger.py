"""The seam of the taggers: images in, a probability per tag out. `registry` opens the one that is in a folder.

B images of H x W pixels, T tags. The fake is here and needs no download; each real format has a file of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from benchmark.errors import UNFORESEEN, InputError, did_you_mean, memory_said
from benchmark.images import Images, check_images, grid_side
from benchmark.prompts.vocabulary import normal_tag

Probabilities = NDArray[np.float32]  # [B, T], 0..1


class Tagger(Protocol):
    """Tells how probable each tag is in each image. Deterministic; an image's answer does not depend on its batch."""

    @property
    def name(self) -> str:
        """What tables call it."""

    @property
    def tags(self) -> tuple[str, ...]:
        """The T tags, in the order of the columns."""

    @property
    def general(self) -> tuple[str, ...]:
        """Those of `tags` that describe the picture (not ratings, not characters), most common first if known."""

    @property
    def fingerprint(self) -> str:
        """A SHA-256 of everything that decides its answers."""

    def probabilities(self, images: Images) -> Probabilities:
        """[B, H, W, 3] uint8 RGB of any size -> [B, T] float32."""


def columns_of(tagger: Tagger, tags: Sequence[str]) -> NDArray[np.intp]:
    """The tagger's column for each of `tags` [T], in any spelling. Raises InputError for an unknown tag."""
    known = {normal_tag(tag): column for column, tag in enumerate(tagger.tags)}
    missing = [tag for tag in tags if normal_tag(tag) not in known]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise InputError(
            f"The tagger {tagger.name} does not know the tag '{missing[0]}'{more}.{did_you_mean(missing[0], known)}"
        )
    return np.array([known[normal_tag(tag)] for tag in tags], dtype=np.intp)


def check_width(folder: Path, width: object, tags: int, listed: str) -> None:
    """Raise InputError if a model says how many outputs it has, and they are not as many as its tags.

    listed: the file of the tags with their number, for the message.
    """
    if isinstance(width, int) and width != tags:
        raise InputError(f"{folder}: the model has {width} outputs, {listed}; mixed files?")


def check_answers(tagger: Tagger, folder: Path, size: tuple[int, int] = (64, 64)) -> None:
    """Show a tagger noise of `size` (height, width): what cannot compute is found before a search begins.

    Raises InputError if it fails, or answers with another number of tags or with what is no probability.
    """
    noise = np.random.default_rng(0).integers(0, 256, (1, *size, 3), dtype=np.uint8)
    try:
        with memory_said():
            said = tagger.probabilities(noise)
    except UNFORESEEN as error:
        raise InputError(f"{folder}: cannot be asked about an image ({' '.join(str(error).split())[:200]}).") from None
    check_width(folder, said.shape[1], len(tagger.tags), f"its list {len(tagger.tags)} tags")
    if not np.all((said >= -1e-3) & (said <= 1 + 1e-3)):  # also of NaN
        raise InputError(f"{folder}: answers {said.min():g} to {said.max():g}, which are no probabilities.")


class FakeTagger:
    """A tagger without a model: `FakeGenerator` paints each tag asked for into the picture, and this one reads it.

    The picture is a grid of squares, one a tag; a tag's probability is its square's brightness. Deterministic, exact.
    """

    def __init__(self, tags: Sequence[str], name: str = "fake", seed: int = 0, noise: float = 0.0):
        self.name = name
        self.tags = tuple(tags)
        self.general = self.tags
        self._seed, self._noise = seed, noise

    @property
    def fingerprint(self) -> str:
        """Of its arguments."""
        return hashlib.sha256(repr((self.name, self.tags, self._seed, self._noise)).encode()).hexdigest()

    def probabilities(self, images: Images) -> Probabilities:
        """[B, H, W, 3] -> [B, T]: the brightness of each tag's square, plus noise drawn from the image itself."""
        check_images(images)
        side = grid_side(len(self.tags))
        rows = np.arange(len(self.tags)) // side
        columns = np.arange(len(self.tags)) % side
        height, width = images.shape[1:3]
        middles = images[:, (2 * rows + 1) * height // (2 * side), (2 * columns + 1) * width // (2 * side)]
        brightness = middles.mean(axis=2, dtype=np.float32) / 255
        for row, image in zip(brightness, images, strict=True):
            draw = np.random.default_rng([self._seed, *hashlib.sha256(image.tobytes()).digest()[:8]])
            row += self._noise * draw.standard_normal(len(row), dtype=np.float32)
        return np.clip(brightness, 0, 1)
