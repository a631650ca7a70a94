"""The seam of the looks: what else than tags is kept of an image. `ClipEncoder` is the look that reads prompts too.

B images or texts, E the width of the space.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmark.networks import CONFIG, PREPROCESSOR, WEIGHTS, ImageNetwork, load_tokenizer
from benchmark.taggers import Images
from benchmark.text import plain_text

if TYPE_CHECKING:
    from torch import Tensor

Embeddings = NDArray[np.float32]  # [B, E]


class Look(Protocol):
    """A row of numbers for each image, kept beside what the taggers say. An image's does not depend on its batch."""

    @property
    def name(self) -> str:
        """What tables call it."""

    @property
    def fingerprint(self) -> str:
        """A SHA-256 of everything that decides its answers."""

    def images(self, images: Images) -> Embeddings:
        """uint8 [B, H, W, 3] -> float32 [B, E]."""


class Encoder(Look, Protocol):
    """Embeds images and texts so that those that belong together are near by cosine similarity."""

    def texts(self, texts: Sequence[str]) -> Embeddings:
        """Prompts -> [B, E]; emphasis is left out, and what is longer than the encoder reads is cut off."""


class ClipEncoder(ImageNetwork):
    """A transformers CLIP model (image and text) in a folder, with its tokenizer and preprocessing. See `Encoder`."""

    def __init__(self, folder: Path | str, *, device: str = "cpu", batch_size: int = 32):
        folder, needed = Path(folder), (CONFIG, WEIGHTS, PREPROCESSOR, "tokenizer_config.json")
        super().__init__(folder, "CLIPModel", "CLIP folder", needed, device=device, batch_size=batch_size)
        self._tokenizer: Any = load_tokenizer(folder)

    def images(self, images: Images) -> Embeddings:
        """uint8 [B, H, W, 3] -> [B, E]."""
        return self.show(images, self._embed, self.model.config.projection_dim)

    def _embed(self, pixels: Tensor) -> Tensor:
        seen = self.model.vision_model(pixel_values=self.preprocessing(pixels)).pooler_output
        embedded: Tensor = self.model.visual_projection(seen)
        return embedded

    def texts(self, texts: Sequence[str]) -> Embeddings:
        """Prompts -> [B, E]."""
        import torch

        parts = [np.empty((0, self.model.config.projection_dim), dtype=np.float32)]
        length = self.model.config.text_config.max_position_embeddings
        with torch.inference_mode():
            for start in range(0, len(texts), self._batch_size):
                words = [plain_text(text) for text in texts[start : start + self._batch_size]]
                ids = self._tokenizer(
                    words, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
                ).input_ids
                read = self.model.text_model(input_ids=ids.to(self._device)).pooler_output
                parts.append(self.model.text_projection(read).cpu().numpy())
        return np.concatenate(parts)
