"""The seam of the looks: what else than tags is kept of an image. `ClipEncoder` is the look that reads prompts too.

B images or texts, E the width of the space.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmark.errors import InputError
from benchmark.preprocessing import read_preprocessing
from benchmark.taggers import Images, check_images, files_fingerprint
from benchmark.text import plain_text

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


class ClipEncoder:
    """A transformers CLIP model (image and text) in a folder, with its tokenizer and preprocessing. See `Encoder`."""

    def __init__(self, folder: Path | str, *, device: str = "cpu", batch_size: int = 32):
        from benchmark.transformers_tagger import load_tokenizer, load_transformers

        folder = Path(folder)
        needed = ("config.json", "model.safetensors", "preprocessor_config.json", "tokenizer_config.json")
        missing = [name for name in needed if not (folder / name).is_file()]
        if missing:
            raise InputError(f"{folder}: is no CLIP folder; it has no {missing[0]}.")
        self.name = folder.resolve().name
        self._files = [folder / name for name in needed]
        self._preprocessing = read_preprocessing(folder / "preprocessor_config.json")
        self._model: Any = load_transformers(folder, "CLIPModel").to(device)
        self._tokenizer: Any = load_tokenizer(folder)
        self._device, self._batch_size = device, batch_size

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the model and its configuration."""
        return files_fingerprint(self._files)

    def images(self, images: Images) -> Embeddings:
        """uint8 [B, H, W, 3] -> [B, E]."""
        import torch

        check_images(images)
        parts = [np.empty((0, self._model.config.projection_dim), dtype=np.float32)]
        with torch.inference_mode():
            for start in range(0, len(images), self._batch_size):
                batch = torch.from_numpy(np.ascontiguousarray(images[start : start + self._batch_size]))
                pixels = self._preprocessing(batch.to(self._device).permute(0, 3, 1, 2).to(torch.float32) / 255)
                seen = self._model.vision_model(pixel_values=pixels).pooler_output
                parts.append(self._model.visual_projection(seen).cpu().numpy())
        return np.concatenate(parts)

    def texts(self, texts: Sequence[str]) -> Embeddings:
        """Prompts -> [B, E]."""
        import torch

        parts = [np.empty((0, self._model.config.projection_dim), dtype=np.float32)]
        length = self._model.config.text_config.max_position_embeddings
        with torch.inference_mode():
            for start in range(0, len(texts), self._batch_size):
                words = [plain_text(text) for text in texts[start : start + self._batch_size]]
                ids = self._tokenizer(
                    words, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
                ).input_ids
                read = self._model.text_model(input_ids=ids.to(self._device)).pooler_output
                parts.append(self._model.text_projection(read).cpu().numpy())
        return np.concatenate(parts)
