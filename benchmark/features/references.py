"""Folders of pictures that a model's images are compared with, and what a look says of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmark.errors import InputError
from benchmark.features.encoders import Embeddings, Look
from benchmark.taggers.tagger import Images, files_fingerprint
from benchmark.writing import whole_or_nothing

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


def picture_files(folder: Path) -> list[Path]:
    """The pictures of a folder, by name; not those of folders in it. Raises InputError where there are none."""
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder of reference images.")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise InputError(f"{folder}: holds no images ({', '.join(sorted(SUFFIXES))}).")
    return files


def read_picture(file: Path) -> Images:
    """uint8 [H, W, 3]; what is transparent lies on white. Raises InputError."""
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


def look_at(folder: Path, look: Look, cache: Path) -> Embeddings:
    """What a look says of each picture, float32 [J, E]; kept as a file in `cache`, by the pictures and the look."""
    name = f"{look.fingerprint[:12]}-{files_fingerprint(picture_files(folder))[:12]}.npy"
    if not (cache / name).is_file():
        seen = np.concatenate([look.images(picture[None]) for picture in pictures(folder)])
        with whole_or_nothing(cache / name) as partial, partial.open("wb") as file:
            np.save(file, seen, allow_pickle=False)
    kept: Embeddings = np.load(cache / name, allow_pickle=False)
    return kept
