"""The seam of the generators: prompts in, images out. `DiffusersGenerator` draws with a model, the fake without one.

B images of a batch, of H x W pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from benchmark.errors import InputError
from benchmark.images import Images, grid_side
from benchmark.pipelines.loading import OWN_SAMPLER
from benchmark.prompts.prompt_set import Prompt
from benchmark.prompts.vocabulary import normal_tag


@dataclass(frozen=True)
class GenerationSettings:
    """How images are drawn. `batch_size` does not decide what an image shows; None finds one that fits.

    `clip_skip` leaves out that many of the text encoder's last layers; web UIs count from 1, this from 0. Raises
    InputError for a value out of range.
    """

    steps: int = 20
    sampler: str = OWN_SAMPLER
    guidance: float = 7.0
    width: int = 512
    height: int = 512
    negative_prompt: str = ""
    batch_size: int | None = None
    clip_skip: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.clip_skip <= 10:
            raise InputError(f"clip_skip {self.clip_skip}: use 0 (none) to 10.")
        if self.steps < 1:
            raise InputError(f"steps {self.steps}: use 1 or more.")
        if self.width < 8 or self.height < 8 or self.width % 8 or self.height % 8:
            raise InputError(f"size {self.width}x{self.height}: both sides must be multiples of 8.")
        if self.batch_size is not None and self.batch_size < 1:
            raise InputError(f"batch_size {self.batch_size}: use 1 or more, or leave it out.")


class ImageGenerator(Protocol):
    """Draws prompts, in their order, in batches of its own choice."""

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Images]:
        """Yield uint8 [B, H, W, 3] RGB until every prompt is drawn; a broken image (NaN) is black, never dropped."""


class FakeGenerator:
    """A generator without a model: paints a square for each tag of a vocabulary, for `FakeTagger` to read.

    `skill`, in 0..1, for all tags or by tag, is the chance that a tag asked for is painted bright enough to be found.
    Images depend on the prompt and `seed` alone. Two skills share their random numbers, so their difference is paired.
    """

    def __init__(
        self,
        tags: Sequence[str],
        skill: float | dict[str, float] = 0.8,
        size: int = 64,
        batch_size: int = 4,
        seed: int = 0,
    ):
        self._tags, self._skill, self._size, self.batch_size, self._seed = tuple(tags), skill, size, batch_size, seed

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Images]:
        """Yield uint8 [B, size, size, 3]."""
        for start in range(0, len(prompts), self.batch_size):
            yield np.stack([self._paint(prompt) for prompt in prompts[start : start + self.batch_size]])

    def _paint(self, prompt: Prompt) -> Images:
        digest = hashlib.sha256(f"{prompt.text}/{prompt.seed}/{self._seed}".encode()).digest()
        draw = np.random.default_rng(list(digest[:16]))
        chance, colours = draw.random(len(self._tags)), draw.integers(0, 60, (len(self._tags), 3))
        asked = {normal_tag(tag) for tag in prompt.tags}
        side = grid_side(len(self._tags))
        image = np.zeros((self._size, self._size, 3), dtype=np.uint8)
        for number, tag in enumerate(self._tags):
            skill = self._skill if isinstance(self._skill, float | int) else self._skill.get(tag, 0.0)
            bright = normal_tag(tag) in asked and chance[number] < skill
            row, column = divmod(number, side)
            rows = slice(row * self._size // side, (row + 1) * self._size // side)
            columns = slice(column * self._size // side, (column + 1) * self._size // side)
            image[rows, columns] = (195 + colours[number]) if bright else colours[number]
        return image
