"""Taggers in the contract of the ML-Danbooru models: one `.onnx` with `classes.json`.

The contract: NCHW float32, RGB, 0..1; the picture resized (bilinear) at its own ratio so that its shorter side is 512,
both sides then rounded down to multiples of 4; out come logits, one for each tag of the list in `classes.json`.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmark.errors import InputError
from benchmark.hashing import files_fingerprint
from benchmark.images import Images, check_images
from benchmark.reading import read_json
from benchmark.taggers.onnx_models import OnnxModel
from benchmark.taggers.tagger import Probabilities, check_answers, check_width

SIDE, ALIGN = 512, 4


class MLDanbooruTagger:
    """An ML-Danbooru tagger in a folder. See `Tagger`."""

    def __init__(self, folder: Path, *, device: str = "cpu", threads: int | None = None, batch_size: int = 8):
        models = sorted(folder.glob("*.onnx"))
        if len(models) != 1:
            raise InputError(f"{folder}: needs one .onnx beside classes.json, and has {len(models)}.")
        self.name = folder.resolve().name
        self._files = [models[0], folder / "classes.json"]
        tags = read_json(folder / "classes.json")
        if not isinstance(tags, list) or not tags or not all(isinstance(tag, str) and tag.strip() for tag in tags):
            raise InputError(f"{folder / 'classes.json'}: must be a list of tags.")
        self.tags = tuple(tags)
        self.general = self.tags
        self._model = OnnxModel(models[0], device=device, threads=threads)
        self._batch_size = batch_size
        check_width(folder, self._model.width, len(tags), f"classes.json {len(tags)} tags")
        if self._model.shape[1] == 3 and any(isinstance(size, int) for size in self._model.shape[2:]):
            raise InputError(
                f"{models[0]}: its input is {list(self._model.shape)}; that of ML-Danbooru has any height and width."
            )
        check_answers(self, folder)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of both files."""
        return files_fingerprint(self._files)

    def probabilities(self, images: Images) -> Probabilities:
        """[B, H, W, 3] uint8 RGB -> [B, T] float32."""
        check_images(images)
        parts = [np.empty((0, len(self.tags)), dtype=np.float32)]
        for start in range(0, len(images), self._batch_size):
            batch = ml_danbooru_input(images[start : start + self._batch_size])
            logits = self._model(batch)
            parts.append((1 / (1 + np.exp(-np.clip(logits, -80, 80)))).astype(np.float32))
        return np.concatenate(parts)


def ml_danbooru_input(images: Images, side: int = SIDE) -> NDArray[np.float32]:
    """uint8 RGB [B, H, W, 3] -> float32 RGB [B, 3, h, w] in 0..1, the shorter side about `side`."""
    height, width = images.shape[1:3]
    shorter = min(height, width)
    size = [max(ALIGN, int(length / shorter * side) // ALIGN * ALIGN) for length in (width, height)]
    resized = [Image.fromarray(image).resize((size[0], size[1]), Image.Resampling.BILINEAR) for image in images]
    return np.stack([np.asarray(image, dtype=np.float32).transpose(2, 0, 1) for image in resized]) / np.float32(255)
