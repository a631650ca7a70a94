"""Folders of reference pictures that a model's images are compared with, and their features."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmark.errors import InputError
from benchmark.features.extractor import FeatureExtractor, Features
from benchmark.hashing import files_fingerprint
from benchmark.images import Images
from benchmark.writing import whole_or_nothing

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


def picture_files(folder: Path) -> list[Path]:
    """The pictures of a folder, by name, without those of folders in it. Raises InputError if there are none."""
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder of reference images.")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise InputError(f"{folder}: holds no images ({', '.join(sorted(SUFFIXES))}).")
    return files


def read_picture(file: Path) -> Images:
    """uint8 [H, W, 3], transparent parts on white. Raises InputError."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as opened:
            picture = opened.convert("RGBA")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InputError(f"{file}: cannot be read as an image ({error}).") from None
    white = Image.new("RGBA", picture.size, "white")
    return np.array(Image.alpha_composite(white, picture).convert("RGB"))


def pictures(folder: Path) -> Iterator[Images]:
    """Each picture of a folder, by name: uint8 [H, W, 3]. Raises InputError."""
    yield from map(read_picture, picture_files(folder))


def reference_features(folder: Path, extractor: FeatureExtractor, cache: Path) -> Features:
    """The features of each picture of a folder, float32 [J, E]; `cache` keeps them by pictures and extractor."""
    name = f"{extractor.fingerprint[:12]}-{files_fingerprint(picture_files(folder))[:12]}.npy"
    if not (cache / name).is_file():
        found = np.concatenate([extractor.images(picture[None]) for picture in pictures(folder)])
        with whole_or_nothing(cache / name) as partial, partial.open("wb") as file:
            np.save(file, found, allow_pickle=False)
    kept: Features = np.load(cache / name, allow_pickle=False)
    return kept
