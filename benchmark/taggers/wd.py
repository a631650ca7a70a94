"""Taggers in the contract of the WD v2/v3 models: `model.onnx` with `selected_tags.csv`.

The contract: NHWC float32, BGR, 0..255, one square size; the picture is padded with white to a square and resized
(bicubic); out come probabilities, one for each row of the CSV (`tag_id,name,category,count`; category 0 general,
4 character, 9 rating).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmark.errors import InputError
from benchmark.hashing import files_fingerprint
from benchmark.images import Images, check_images
from benchmark.prompts.vocabulary import read_csv
from benchmark.taggers.onnx_models import OnnxModel
from benchmark.taggers.preprocessing import MOST_SIDE
from benchmark.taggers.tagger import Probabilities, check_answers, check_width

GENERAL = 0  # the category of tags that describe the picture
TAGS_FILE, MODEL_FILE = "selected_tags.csv", "model.onnx"


@dataclass(frozen=True)
class TagRow:
    """One line of `selected_tags.csv`."""

    name: str
    category: int
    count: int


def read_selected_tags(path: Path) -> tuple[TagRow, ...]:
    """The rows of a `selected_tags.csv`, in the order of the model's outputs. Raises InputError with the line."""
    tags = []
    for number, row in read_csv(path):
        try:
            tags.append(TagRow(row["name"], int(row["category"]), int(row.get("count") or 0)))
            if not row["name"].strip():
                raise ValueError
        except (KeyError, ValueError):
            raise InputError(
                f"{path}, line {number}: needs name, category and count, as tag_id,name,category,count."
            ) from None
    if not tags:
        raise InputError(f"{path}: holds no tags.")
    return tuple(tags)


def general_tags(rows: Sequence[TagRow]) -> tuple[str, ...]:
    """Names of the rows that describe the picture, most common first."""
    general = (row for row in rows if row.category == GENERAL)
    return tuple(row.name for row in sorted(general, key=lambda row: -row.count))


class WDTagger:
    """A WD tagger in a folder. See `Tagger`."""

    def __init__(self, folder: Path, *, device: str = "cpu", threads: int | None = None, batch_size: int = 32):
        self.name = folder.resolve().name
        self._files = [folder / TAGS_FILE, folder / MODEL_FILE]
        rows = read_selected_tags(folder / TAGS_FILE)
        self.tags = tuple(row.name for row in rows)
        self.general = general_tags(rows)
        self._model = OnnxModel(folder / MODEL_FILE, device=device, threads=threads)
        self._batch_size = batch_size
        _, side, other, channels = self._model.shape
        if channels != 3 or side != other or not isinstance(side, int) or not 1 <= side <= MOST_SIDE:
            raise InputError(
                f"{folder / MODEL_FILE}: its input is {list(self._model.shape)}, a WD tagger's [batch, side, side, 3]."
            )
        check_width(folder, self._model.width, len(rows), f"{TAGS_FILE} {len(rows)} rows")
        self._side = side
        check_answers(self, folder)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of both files."""
        return files_fingerprint(self._files)

    def probabilities(self, images: Images) -> Probabilities:
        """[B, H, W, 3] uint8 RGB -> [B, T] float32."""
        check_images(images)
        parts = [
            self._model(wd_input(images[start : start + self._batch_size], self._side))
            for start in range(0, len(images), self._batch_size)
        ]
        return np.concatenate(parts) if parts else np.empty((0, len(self.tags)), dtype=np.float32)


def wd_input(images: Images, side: int) -> NDArray[np.float32]:
    """uint8 RGB [B, H, W, 3] -> float32 BGR [B, side, side, 3] in 0..255: padded with white, resized by Pillow."""
    height, width = images.shape[1:3]
    square = images
    if height != width:
        longest = max(height, width)
        top, left = (longest - height) // 2, (longest - width) // 2
        square = np.full((len(images), longest, longest, 3), 255, dtype=np.uint8)
        square[:, top : top + height, left : left + width] = images
    if square.shape[1] != side:
        resized = [Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC) for image in square]
        square = np.stack([np.asarray(image) for image in resized])
    return np.ascontiguousarray(square[..., ::-1], dtype=np.float32)
