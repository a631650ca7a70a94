"""Images by any diffusers text-to-image pipeline.

An image depends on its prompt, its seed and the settings alone: all its noise comes from one generator on the CPU,
seeded with the prompt's seed, and its text is encoded by itself. Other images of its batch change only kernel rounding.

B images of a batch, of H x W pixels.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from benchmark.errors import InputError, first_line
from benchmark.images import Images, to_bytes
from benchmark.pipelines.clip_text import knows_clip
from benchmark.pipelines.generation import GenerationSettings
from benchmark.pipelines.kept_text import ClipEmbeddings, KeptText
from benchmark.pipelines.lending import lent
from benchmark.pipelines.loading import Pipeline, check_draws_from_text, make_scheduler
from benchmark.pipelines.quiet import quiet_diffusers
from benchmark.pipelines.text_visits import TextVisits
from benchmark.prompts.prompt_set import Prompt
from benchmark.prompts.text import plain_text

if TYPE_CHECKING:
    import torch


class DiffusersGenerator:
    """Any diffusers text-to-image pipeline. See `ImageGenerator`.

    A pipeline that inpaints draws the whole image: all of it is masked. Text embeddings are kept, once per text, as
    long as `text_state()` gives the same value; without it, the text encoders must not change. The denoiser may change
    between calls. Raises InputError for a pipeline that draws from an image, and for a `clip_skip` that it cannot have.

    A caller that runs the pipeline itself uses `scheduler`, `arguments`, `text_kept` and `text_with_graph`.
    """

    def __init__(
        self, pipeline: Pipeline, settings: GenerationSettings, text_state: Callable[[], object] | None = None
    ):
        check_draws_from_text(pipeline)
        self.pipeline, self.settings = pipeline, settings
        self.batch_size = settings.batch_size or _first_batch_size(pipeline, settings)
        self.scheduler: Any = make_scheduler(pipeline, settings.sampler)
        """The scheduler of the settings; the pipeline keeps its own between calls."""
        self._takes = inspect.signature(pipeline.__call__).parameters
        # CLIP's text is encoded here; other pipelines are given words, and what they make of them is kept
        self._embeddings: ClipEmbeddings | None = None
        if "negative_prompt_embeds" in self._takes and knows_clip(pipeline):
            against, guided, skip = settings.negative_prompt, settings.guidance > 1, settings.clip_skip
            self._embeddings = ClipEmbeddings(pipeline, against, guided=guided, clip_skip=skip, text_state=text_state)
        elif settings.clip_skip:
            raise InputError(f"clip_skip: a {type(pipeline).__name__} has other text encoders than CLIP's alone.")
        words = self._embeddings is None and hasattr(pipeline, "encode_prompt")
        self._kept = KeptText(pipeline) if words else None

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

    def arguments(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """All that the pipeline is called with to draw `prompts` as one batch: text, noise and settings.

        It then returns a tuple whose first item is a tensor [B, 3, H, W] in 0..1.
        """
        import torch

        settings = self.settings
        return {
            **self._text_arguments([prompt.text for prompt in prompts]),
            **self._guidance(),
            **self._blank(len(prompts)),
            "generator": [torch.Generator("cpu").manual_seed(prompt.seed) for prompt in prompts],
            "num_inference_steps": settings.steps,
            "width": settings.width,
            "height": settings.height,
            "output_type": "pt",
            "return_dict": False,
        }

    @property
    def can_set_text_aside(self) -> bool:
        """Whether what text encoders give is kept, so that they are not needed for every image."""
        return self._embeddings is not None or self._kept is not None

    def set_text_aside(self, aside: bool) -> None:
        """Whether text encoders are on the device only while they encode. They must not change while they are aside."""
        for keeper in (self._embeddings, self._kept):
            if keeper is None or aside == (keeper.visits is not None):
                continue
            if keeper.visits is not None:
                keeper.visits.end()
            keeper.visits = TextVisits(self.pipeline) if aside else None

    def encode(self, prompts: Sequence[Prompt]) -> None:
        """Encodes all text that will be needed at once, if the encoders would otherwise come for each batch of it."""
        if self._embeddings is not None and self._embeddings.visits is not None:
            self._embeddings.keep([prompt.text for prompt in prompts])

    def text_kept(self) -> AbstractContextManager[None]:
        """Within it, a pipeline that encodes its own text does not encode the same batch twice."""
        return nullcontext() if self._kept is None else lent(self.pipeline, "encode_prompt", self._kept)

    def text_with_graph(self) -> AbstractContextManager[None]:
        """Within it, `arguments` encodes text anew, with a graph back to the parameters of CLIP's encoders.

        It changes nothing for a pipeline that encodes its own text.
        """
        return nullcontext() if self._embeddings is None else self._embeddings.with_graph()

    def _draw(self, batch: Sequence[Prompt]) -> Images:
        """One batch: [B, H, W, 3] uint8."""
        with lent(self.pipeline, "scheduler", self.scheduler), self.text_kept(), quiet_diffusers():
            try:
                drawn = self.pipeline(**self.arguments(batch))[0]
            except ValueError as error:  # so pipelines refuse settings that do not suit them, a size for instance
                name = type(self.pipeline).__name__
                raise InputError(f"{name} cannot draw with these settings: {first_line(error)}") from error
        return to_bytes(drawn)

    def _text_arguments(self, texts: Sequence[str]) -> dict[str, Any]:
        """The pipeline's arguments that hold the text: embeddings if CLIP alone makes them, else the words."""
        if self._embeddings is not None:
            return dict(self._embeddings.arguments(texts))
        words: dict[str, Any] = {"prompt": [plain_text(text) for text in texts]}
        if "negative_prompt" in self._takes and self.settings.guidance > 1:
            words["negative_prompt"] = [plain_text(self.settings.negative_prompt)] * len(texts)
        return words

    def _guidance(self) -> dict[str, Any]:
        """Guidance under the name that the pipeline has for it, and no other size than the one asked for."""
        taken = self._takes.get("guidance_scale")
        # without a default, guidance_scale is for distilled models only, and guidance itself is another argument
        distilled = taken is not None and taken.default is None and "true_cfg_scale" in self._takes
        arguments: dict[str, Any] = {"true_cfg_scale" if distilled else "guidance_scale": self.settings.guidance}
        if "use_resolution_binning" in self._takes:  # it would draw at the nearest size of a list, and scale
            arguments["use_resolution_binning"] = False
        return arguments

    def _blank(self, count: int) -> dict[str, Any]:
        """What a pipeline that inpaints takes besides: `count` images, each masked as a whole."""
        import torch

        if "mask_image" not in self._takes:
            return {}
        size = (self.settings.height, self.settings.width)
        # one for each prompt: their encoding is drawn from a distribution, with the prompt's own noise
        arguments: dict[str, Any] = {"image": torch.zeros(count, 3, *size), "mask_image": torch.ones(count, 1, *size)}
        if "strength" in self._takes:
            arguments["strength"] = 1.0
        return arguments


def _first_batch_size(pipeline: Pipeline, settings: GenerationSettings) -> int:
    """A batch to start with: on a GPU by its free memory (halved later if that was too much), on a CPU by pixels."""
    import torch

    pixels = settings.width * settings.height
    device: torch.device = pipeline.device
    if device.type != "cuda":
        return max(1, min(16, 4 * 512 * 512 // pixels))
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, min(256, free // (6000 * pixels)))  # SD 1.5 in fp16 takes about 1.5 GB an image of 512 x 512
