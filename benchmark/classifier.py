"""A look by an image classifier of one class an image, for the Inception Score: a transformers model in a folder.

B images, K classes.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.encoders import Embeddings
from benchmark.errors import InputError
from benchmark.preprocessing import read_preprocessing
from benchmark.taggers import Images, check_images, files_fingerprint


class ClassifierLook:
    """Any transformers image classifier with its preprocessing. See `Look`."""

    def __init__(self, folder: Path | str, *, device: str = "cpu", batch_size: int = 32):
        from benchmark.transformers_tagger import load_transformers

        folder = Path(folder)
        needed = ("config.json", "model.safetensors", "preprocessor_config.json")
        missing = [name for name in needed if not (folder / name).is_file()]
        if missing:
            raise InputError(f"{folder}: is no image classifier's folder; it has no {missing[0]}.")
        self.name = folder.resolve().name
        self._files = [folder / name for name in needed]
        self._preprocessing = read_preprocessing(folder / "preprocessor_config.json")
        self._model: Any = load_transformers(folder, "AutoModelForImageClassification").to(device)
        if self._model.config.problem_type == "multi_label_classification":
            raise InputError(f"{folder}: is a tagger. The Inception Score needs a classifier of one class an image.")
        self._device, self._batch_size = device, batch_size

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the model and its configuration."""
        return files_fingerprint(self._files)

    def images(self, images: Images) -> Embeddings:
        """uint8 [B, H, W, 3] -> the probability of each class [B, K]; rows sum to 1."""
        import torch

        check_images(images)
        parts = [np.empty((0, self._model.config.num_labels), dtype=np.float32)]
        with torch.inference_mode():
            for start in range(0, len(images), self._batch_size):
                batch = torch.from_numpy(np.ascontiguousarray(images[start : start + self._batch_size]))
                pixels = self._preprocessing(batch.to(self._device).permute(0, 3, 1, 2).to(torch.float32) / 255)
                parts.append(torch.softmax(self._model(pixels).logits, dim=1).cpu().numpy())
        return np.concatenate(parts)
