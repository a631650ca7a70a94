"""The seam of the generators: prompts in, images out. With diffusers, or painted by a fake.

An image depends on its prompt, its seed and the settings only: all its noise comes from one generator on the CPU,
seeded with the prompt's seed, and its text is encoded alone. What else is in its batch changes only kernel rounding.

B images of a batch, of H x W pixels; L tokens of text, E their width.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from benchmark.errors import InputError, first_line
from benchmark.pipelines.kept_text import KeptText
from benchmark.pipelines.loading import (
    OWN_SAMPLER,
    Pipeline,
    check_draws_from_text,
    make_scheduler,
    quiet_diffusers,
)
from benchmark.prompts.prompt_set import Prompt, normal_tag
from benchmark.prompts.text import encode_clip, knows_clip, plain_text
from benchmark.taggers.tagger import Images, grid_side

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_MOST_TEXT = 1 << 30  # bytes of text embeddings that are kept on the device


@dataclass(frozen=True)
class GenerationSettings:
    """How images are drawn. `batch_size` None finds one that fits; it is no part of what the image is.

    `clip_skip` leaves out that many of the text encoder's last layers; web UIs count from 1, this from 0.
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


class DiffusersGenerator:
    """Any diffusers text-to-image pipeline. See `ImageGenerator`.

    One that inpaints draws all of an image: everything is masked, and nothing is seen of what was there. Text
    embeddings are kept, once per text, as long as `text_state` says the same; without it they are those of the pipeline
    as it was when it was handed in. The denoiser may change between calls. Raises InputError for a pipeline that draws
    from an image.
    """

    _with_graph = False  # whether text is encoded so that gradients can go back to the encoder

    def __init__(
        self, pipeline: Pipeline, settings: GenerationSettings, text_state: Callable[[], object] | None = None
    ):
        check_draws_from_text(pipeline)
        self.pipeline, self.settings = pipeline, settings
        self._text_state = text_state
        self._encoded_by: object = None
        self.batch_size = settings.batch_size or _first_batch_size(pipeline, settings)
        self._scheduler = make_scheduler(pipeline, settings.sampler)
        self._embeddings: dict[str, dict[str, Tensor]] = {}
        self._negative: tuple[Tensor, Tensor | None] | None = None
        self._takes = inspect.signature(pipeline.__call__).parameters
        # CLIP is encoded by ourselves; other pipelines are given words, and what they make of them is kept
        self._encodes = "negative_prompt_embeds" in self._takes and knows_clip(pipeline)
        if settings.clip_skip and not self._encodes:
            raise InputError(f"clip_skip: a {type(pipeline).__name__} has other text encoders than CLIP's alone.")
        self._kept = KeptText(pipeline) if not self._encodes and hasattr(pipeline, "encode_prompt") else None

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Images]:
        """Yield uint8 [B, H, W, 3]. On a GPU without room the batch is halved, and stays so."""
        import torch

        start = 0
        while start < len(prompts):
            batch = prompts[start : start + self.batch_size]
            try:
                images = self._draw(batch)
            except torch.OutOfMemoryError:
                if self.batch_size == 1:
                    raise
                self.batch_size = (self.batch_size + 1) // 2
                torch.cuda.empty_cache()
                continue
            start += len(batch)
            yield images

    def _draw(self, batch: Sequence[Prompt]) -> Images:
        """One batch: [B, H, W, 3] uint8."""
        with lent(self.pipeline, "scheduler", self._scheduler), self.text_kept(), quiet_diffusers():
            try:
                drawn = self.pipeline(**self._arguments(batch))[0]
            except ValueError as error:  # so pipelines refuse settings that do not suit them, a size for instance
                name = type(self.pipeline).__name__
                raise InputError(f"{name} cannot draw with these settings: {first_line(error)}") from error
        return to_bytes(drawn)

    def text_kept(self) -> AbstractContextManager[None]:
        """While it lasts, a pipeline that encodes its own text does not encode the same batch twice."""
        return nullcontext() if self._kept is None else lent(self.pipeline, "encode_prompt", self._kept)

    def _arguments(self, batch: Sequence[Prompt]) -> dict[str, Any]:
        """All that the pipeline is called with for one batch: its text, its noise, the settings."""
        import torch

        settings = self.settings
        return {
            **self._text_arguments([prompt.text for prompt in batch]),
            **self._guidance(),
            **self._blank(len(batch)),
            "generator": [torch.Generator("cpu").manual_seed(prompt.seed) for prompt in batch],
            "num_inference_steps": settings.steps,
            "width": settings.width,
            "height": settings.height,
            "output_type": "pt",
            "return_dict": False,
        }

    def _guidance(self) -> dict[str, Any]:
        """Guidance under the name that the pipeline has for it, and no other size than the one asked for."""
        taken = self._takes.get("guidance_scale")
        # where guidance_scale is for distilled models only, it has no default, and guidance itself is another argument
        distilled = taken is not None and taken.default is None and "true_cfg_scale" in self._takes
        arguments: dict[str, Any] = {"true_cfg_scale" if distilled else "guidance_scale": self.settings.guidance}
        if "use_resolution_binning" in self._takes:  # it would draw at the nearest size of a list, and scale
            arguments["use_resolution_binning"] = False
        return arguments

    def _blank(self, count: int) -> dict[str, Any]:
        """What a pipeline that inpaints takes besides: B images, all of each masked, so that none of it is seen."""
        import torch

        if "mask_image" not in self._takes:
            return {}
        size = (self.settings.height, self.settings.width)
        # one for each prompt: their encoding is drawn from a distribution, with the prompt's own noise
        arguments: dict[str, Any] = {"image": torch.zeros(count, 3, *size), "mask_image": torch.ones(count, 1, *size)}
        if "strength" in self._takes:
            arguments["strength"] = 1.0
        return arguments

    def _text_arguments(self, texts: Sequence[str]) -> dict[str, Any]:
        """The pipeline's arguments that hold the text: embeddings where CLIP alone makes them, else the words."""
        if not self._encodes:
            words: dict[str, Any] = {"prompt": [plain_text(text) for text in texts]}
            if "negative_prompt" in self._takes and self.settings.guidance > 1:
                words["negative_prompt"] = [plain_text(self.settings.negative_prompt)] * len(texts)
            return words
        self._let_go_of_old()
        for text in texts:
            if text not in self._embeddings:
                self._embeddings[text] = self._encode(text)
            self._embeddings[text] = self._embeddings.pop(text)  # the last used stand last
        rows = [self._embeddings[text] for text in texts]
        self._let_go_of_many(len(texts))
        length = math.lcm(*(value.shape[1] for row in rows for value in row.values() if value.ndim == 3))
        return {name: _stack([row[name] for row in rows], length) for name in rows[0]}

    def _let_go_of_old(self) -> None:
        """Forget embeddings of text encoders that have changed since."""
        if self._text_state is not None and (state := self._text_state()) != self._encoded_by:
            self._embeddings, self._negative, self._encoded_by = {}, None, state

    def _let_go_of_many(self, used: int) -> None:
        """Forget what was used longest ago: a climb, whose every step has prompts of its own, must not fill the memory.

        used: how many texts are needed now.
        """
        held = sum(value.nbytes for row in self._embeddings.values() for value in row.values())
        while held > _MOST_TEXT and len(self._embeddings) > used:
            oldest = self._embeddings.pop(next(iter(self._embeddings)))
            held -= sum(value.nbytes for value in oldest.values())

    def _encode(self, text: str) -> dict[str, Tensor]:
        """One text and the negative one: the pipeline's arguments by name, each [1, ...]."""
        encoded = encode_clip(self.pipeline, text, self.settings.clip_skip, graph=self._with_graph)
        arguments = {"prompt_embeds": encoded[0], "pooled_prompt_embeds": encoded[1]}
        if self.settings.guidance > 1:
            against = self._encode_negative(encoded)
            arguments |= {"negative_prompt_embeds": against[0], "negative_pooled_prompt_embeds": against[1]}
        return {name: value for name, value in arguments.items() if value is not None}

    def _encode_negative(self, encoded: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
        """The negative prompt's embeddings, encoded once; zeros for an empty one where the model was trained so."""
        empty = not self.settings.negative_prompt
        if empty and self.pipeline.config.get("force_zeros_for_empty_prompt", False):
            return encoded[0].new_zeros(encoded[0].shape), None if encoded[1] is None else encoded[1] * 0
        if self._negative is None:
            against, skip = self.settings.negative_prompt, self.settings.clip_skip
            self._negative = encode_clip(self.pipeline, against, skip, graph=self._with_graph)
        return self._negative


@contextmanager
def lent(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner.name` is `value` for a while: a scheduler for one call, say, while the pipeline's own stays its default.

    What was an attribute of the class only, as a method is, is one again afterwards.
    """
    nothing = object()
    before = vars(owner).get(name, nothing)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is nothing:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def _stack(parts: Sequence[Tensor], length: int) -> Tensor:
    """[1, L_i, E] or [1, E] each -> [B, length, E] or [B, E]; `length` is a multiple of every L_i.

    Shorter texts are repeated whole: attention over k copies of the same keys and values is attention over one, so an
    image does not notice how long its neighbours' prompts are, nor the negative one.
    """
    import torch

    return torch.cat([part.repeat(1, length // part.shape[1], 1) if part.ndim == 3 else part for part in parts])


def to_bytes(images: Tensor) -> Images:
    """[B, 3, H, W] in 0..1 -> uint8 [B, H, W, 3]; an image with a NaN or an infinity anywhere becomes black."""
    import torch

    whole = torch.isfinite(images).flatten(1).all(dim=1)
    pixels = torch.where(whole[:, None, None, None], images.float(), 0.0).mul(255).round().clamp(0, 255)
    array: Images = pixels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return array


def _first_batch_size(pipeline: Pipeline, settings: GenerationSettings) -> int:
    """A batch to start with: on a GPU by its free memory (halved later if that was too much), on a CPU by pixels."""
    import torch

    pixels = settings.width * settings.height
    device: torch.device = pipeline.device
    if device.type != "cuda":
        return max(1, min(16, 4 * 512 * 512 // pixels))
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, min(256, free // (6000 * pixels)))  # SD 1.5 in fp16 takes about 1.5 GB an image of 512 x 512


class FakeGenerator:
    """A generator without a model: paints a square for each tag of a vocabulary, for `FakeTagger` to read.

    `skill` [0..1] or one per tag is the chance that a tag asked for is painted bright enough to be found. Deterministic
    in the prompt; equal luck for two skills, so their difference is paired.
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
        luck, colours = draw.random(len(self._tags)), draw.integers(0, 60, (len(self._tags), 3))
        asked = {normal_tag(tag) for tag in prompt.tags}
        side = grid_side(len(self._tags))
        image = np.zeros((self._size, self._size, 3), dtype=np.uint8)
        for number, tag in enumerate(self._tags):
            skill = self._skill if isinstance(self._skill, float | int) else self._skill.get(tag, 0.0)
            bright = normal_tag(tag) in asked and luck[number] < skill
            row, column = divmod(number, side)
            rows = slice(row * self._size // side, (row + 1) * self._size // side)
            columns = slice(column * self._size // side, (column + 1) * self._size // side)
            image[rows, columns] = (195 + colours[number]) if bright else colours[number]
        return image
