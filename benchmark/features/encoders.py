"""Feature extractors that embed images, by models of transformers.

`ClipEncoder` reads prompts too; `PooledEncoder` is any other image encoder. B images or texts, E numbers for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmark.errors import UNFORESEEN, InputError, out_of_memory
from benchmark.features.extractor import Features
from benchmark.images import Images
from benchmark.prompts.text import plain_text
from benchmark.taggers.networks import (
    CONFIG,
    PREPROCESSOR,
    WEIGHTS,
    TransformersNetwork,
    load_tokenizer,
    natural_size,
    read_config,
)

if TYPE_CHECKING:
    from torch import Tensor


class ClipEncoder(TransformersNetwork):
    """A transformers CLIP model (image and text) in a folder, with its tokenizer and preprocessing.

    See `FeatureExtractor`. Images and texts that belong together are near by cosine similarity.
    """

    def __init__(self, folder: Path | str, *, device: str = "cpu", batch_size: int = 32):
        folder, needed = Path(folder), (CONFIG, WEIGHTS, PREPROCESSOR, "tokenizer_config.json")
        super().__init__(folder, "CLIPModel", "CLIP folder", needed, device=device, batch_size=batch_size)
        self._tokenizer: Any = load_tokenizer(folder)

    def images(self, images: Images) -> Features:
        """uint8 [B, H, W, 3] -> [B, E]."""
        return self.show(images, self._embed, self.model.config.projection_dim)

    def _embed(self, pixels: Tensor) -> Tensor:
        pooled = self.model.vision_model(pixel_values=self.preprocessing(pixels)).pooler_output
        embedded: Tensor = self.model.visual_projection(pooled)
        return embedded

    def texts(self, texts: Sequence[str]) -> Features:
        """Prompts -> [B, E]; emphasis is left out, and what is longer than the encoder reads is cut off."""
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


class PooledEncoder(TransformersNetwork):
    """Any transformers image encoder in a folder (DINOv2, ViT, ConvNeXt, SigLIP's image half ...).

    See `FeatureExtractor`. The embedding is what its own pooler gives; if its file has none (a ViT that was trained as
    a classifier), the class token, or the mean over a map of features.
    """

    def __init__(self, folder: Path | str, *, device: str = "cpu", batch_size: int = 32):
        folder, needed = Path(folder), (CONFIG, WEIGHTS, PREPROCESSOR)
        what = "image encoder's folder"
        super().__init__(folder, "AutoModel", what, needed, device=device, batch_size=batch_size, spare="pooler")
        self._encode: Any = getattr(self.model, "vision_model", self.model)
        self.width = self._tried(folder)

    def images(self, images: Images) -> Features:
        """uint8 [B, H, W, 3] -> [B, E]."""
        return self.show(images, self._pooled, self.width)

    def _pooled(self, pixels: Tensor) -> Tensor:
        seen = self._encode(pixel_values=self.preprocessing(pixels))
        pooled: Tensor | None = getattr(seen, "pooler_output", None)
        if pooled is None:
            whole: Tensor = seen.last_hidden_state
            pooled = whole.mean(dim=(2, 3)) if whole.dim() == 4 else whole[:, 0]
        return pooled.flatten(1)

    def _tried(self, folder: Path) -> int:
        """E, from embedding noise twice. Raises InputError for what takes no images, or embeds one in two ways."""
        import torch

        size = natural_size(folder, self.model.config)
        noise = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(self._device)
        try:
            with torch.inference_mode():
                first, second = self._pooled(noise), self._pooled(noise)
        except UNFORESEEN as error:
            if out_of_memory(error):
                raise
            reason = " ".join(str(error).split())[:120]
            raise InputError(f"{folder}: is no image encoder; it does not take an image ({reason}).") from None
        if not torch.allclose(first, second):
            raise InputError(f"{folder}: embeds one image in two ways (a masked autoencoder?). Use another encoder.")
        return first.shape[1]


def open_encoder(folder: Path | str, *, device: str = "cpu") -> ClipEncoder | PooledEncoder:
    """The image encoder in a folder: CLIP, which reads prompts too, or any other. Raises InputError."""
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder}: is no image encoder's folder; it has no {CONFIG}.")
    if read_config(folder).get("model_type") == "clip":
        return ClipEncoder(folder, device=device)
    return PooledEncoder(folder, device=device)
