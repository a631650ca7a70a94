"""Text encodings that are kept from call to call, as a search draws the same prompts in every trial.

`ClipEmbeddings` encodes for pipelines that take embeddings of CLIP's encoders; `KeptText` stands in for `encode_prompt`
of pipelines that encode their own words (T5, Gemma, Qwen, ...).

B texts, L tokens, E the width of an embedding.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from benchmark.pipelines.clip_text import encode_clip
from benchmark.pipelines.text_visits import TextVisits

if TYPE_CHECKING:
    from torch import Tensor

_MOST_EMBEDDINGS = 1 << 30  # bytes
_MOST_IN_MEMORY = 2 << 30  # bytes of what other pipelines make of their words; these encoders give more for a text


class ClipEmbeddings:
    """A pipeline's text arguments, each text encoded once.

    `guided`: whether the pipeline needs the negative prompt's embeddings too. Embeddings are kept as long as
    `text_state()` gives the same value; without it, the text encoders must not change. They lie in ordinary memory. Of
    more than 1 GiB of embeddings, those that were used longest ago are dropped: every step of a gradient search has
    prompts of its own. visits: where the text encoders are on the device only while they encode.
    """

    def __init__(
        self,
        pipeline: Any,
        negative_prompt: str,
        *,
        guided: bool,
        clip_skip: int = 0,
        text_state: Callable[[], object] | None = None,
    ):
        self._pipeline, self._negative_prompt = pipeline, negative_prompt
        self._guided, self._clip_skip, self._text_state = guided, clip_skip, text_state
        self.visits: TextVisits | None = None
        self._encoded_by: object = None
        self._graph = False
        self._kept: dict[str, dict[str, Tensor]] = {}
        self._negative: tuple[Tensor, Tensor | None] | None = None

    def arguments(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """The pipeline's arguments by name, each [B, L, E] or [B, E]."""
        self.keep(texts)
        rows = [self._there(self._kept[text]) for text in texts]
        self._drop_many(len(texts))
        length = math.lcm(*(value.shape[1] for row in rows for value in row.values() if value.ndim == 3))
        return {name: _stack([row[name] for row in rows], length) for name in rows[0]}

    def keep(self, texts: Sequence[str]) -> None:
        """Encodes those of `texts` that are not kept yet."""
        self._drop_outdated()
        missing = [text for text in dict.fromkeys(texts) if text not in self._kept]
        with self.visits.here() if self.visits is not None and missing else nullcontext():
            self._kept |= {text: self._aside(self._encode(text)) for text in missing}
        for text in texts:
            self._kept[text] = self._kept.pop(text)  # the last used stand last

    def _aside(self, row: dict[str, Tensor]) -> dict[str, Tensor]:
        """In ordinary memory, unless a graph hangs on it."""
        return row if self._graph else {name: value.cpu() for name, value in row.items()}

    def _there(self, row: dict[str, Tensor]) -> dict[str, Tensor]:
        """On the device that the pipeline draws on."""
        device = self._pipeline.unet.device
        return {name: value.to(device) for name, value in row.items()}

    @contextmanager
    def with_graph(self) -> Iterator[None]:
        """Within it, every text is encoded anew and keeps its graph back to the encoders.

        Nothing of it is kept afterwards, as a backward pass uses a graph up. What was kept before is kept again.
        """
        self._drop_outdated()  # before it is put aside, or it would come back as if it were new
        before = self._kept, self._negative
        self._kept, self._negative, self._graph = {}, None, True
        try:
            yield
        finally:
            (self._kept, self._negative), self._graph = before, False

    def _drop_outdated(self) -> None:
        """Drop the embeddings of text encoders that have changed since."""
        if self._text_state is not None and (state := self._text_state()) != self._encoded_by:
            self._kept, self._negative, self._encoded_by = {}, None, state

    def _drop_many(self, used: int) -> None:
        """Drop what was used longest ago, beyond the limit; `used` texts are needed now."""
        held = sum(value.nbytes for row in self._kept.values() for value in row.values())
        while held > _MOST_EMBEDDINGS and len(self._kept) > used:
            oldest = self._kept.pop(next(iter(self._kept)))
            held -= sum(value.nbytes for value in oldest.values())

    def _encode(self, text: str) -> dict[str, Tensor]:
        """One text and the negative prompt: the pipeline's arguments by name, each [1, ...]."""
        encoded = encode_clip(self._pipeline, text, self._clip_skip, graph=self._graph)
        arguments = {"prompt_embeds": encoded[0], "pooled_prompt_embeds": encoded[1]}
        if self._guided:
            against = self._encode_negative(encoded)
            arguments |= {"negative_prompt_embeds": against[0], "negative_pooled_prompt_embeds": against[1]}
        return {name: value for name, value in arguments.items() if value is not None}

    def _encode_negative(self, encoded: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
        """The negative prompt's embeddings; zeros for an empty prompt if the model was trained that way."""
        empty = not self._negative_prompt
        if empty and self._pipeline.config.get("force_zeros_for_empty_prompt", False):
            return encoded[0].new_zeros(encoded[0].shape), None if encoded[1] is None else encoded[1] * 0
        if self._negative is None:
            self._negative = encode_clip(self._pipeline, self._negative_prompt, self._clip_skip, graph=self._graph)
            if not self._graph:
                embedding, pooled = self._negative
                self._negative = embedding.cpu(), None if pooled is None else pooled.cpu()
        return self._negative


class KeptText:
    """Stands in for `pipeline.encode_prompt`, and calls it once for the same words.

    What `encode_prompt` gives differs from family to family (tensors, lists, masks, in any order), so it is kept as it
    is, by the arguments of the call, in ordinary memory: such encoders are often larger than the denoiser.
    """

    def __init__(self, pipeline: Any):
        self.visits: TextVisits | None = None
        self._encode = pipeline.encode_prompt
        self._device = pipeline._execution_device
        self._kept: OrderedDict[str, tuple[Any, int]] = OrderedDict()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the pipeline's own `encode_prompt` gives for these arguments."""
        import torch

        key = repr((args, sorted(kwargs.items())))  # before the call: some pipelines change the list of words
        if any(isinstance(value, torch.Tensor) for value in (*args, *kwargs.values())):
            return self._encode(*args, **kwargs)
        if key not in self._kept:
            with torch.no_grad(), self.visits.here() if self.visits is not None else nullcontext():
                encoded = self._encode(*args, **kwargs)
            self._kept[key] = (_moved(encoded, "cpu"), _bytes(encoded))
            while len(self._kept) > 1 and sum(size for _, size in self._kept.values()) > _MOST_IN_MEMORY:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return _moved(self._kept[key][0], self._device)


def _stack(parts: Sequence[Tensor], length: int) -> Tensor:
    """[1, L_i, E] or [1, E] each -> [B, length, E] or [B, E]; `length` is a multiple of every L_i.

    Shorter texts are repeated whole: attention over k copies of the same keys and values is attention over one, so an
    image does not depend on how long its neighbours' prompts are, nor the negative prompt.
    """
    import torch

    return torch.cat([part.repeat(1, length // part.shape[1], 1) if part.ndim == 3 else part for part in parts])


def _moved(value: Any, device: Any) -> Any:
    """The same tensors, in lists of their own, on another device."""
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(item, device) for item in value)
    return value.to(device) if hasattr(value, "to") else value


def _bytes(value: Any) -> int:
    if isinstance(value, (list, tuple)):
        return sum(_bytes(item) for item in value)
    return int(getattr(value, "nbytes", 0))
