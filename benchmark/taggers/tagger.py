"""The seam of the taggers: images in, a probability per tag out. `open_tagger` opens what it finds in a folder.

B images of H x W pixels, T tags. The fake lives here and needs no download; the real ones have a file each.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmark.errors import InputError, did_you_mean
from benchmark.prompts.prompt_set import normal_tag
from benchmark.taggers.kinds import KINDS

Images = NDArray[np.uint8]  # [B, H, W, 3], RGB
Probabilities = NDArray[np.float32]  # [B, T], 0..1

MODEL_FILES = {
    "transformers": ("config.json", "model.safetensors"),
    "wd": ("selected_tags.csv", "model.onnx"),
    "wd-timm": ("selected_tags.csv", "config.json", "model.safetensors"),
    "ml-danbooru": ("classes.json",),
}


class Tagger(Protocol):
    """Says of each image how probable each tag is. Deterministic; an image's answer does not depend on its batch."""

    @property
    def name(self) -> str:
        """What tables call it."""

    @property
    def tags(self) -> tuple[str, ...]:
        """The T tags, in the order of the columns."""

    @property
    def general(self) -> tuple[str, ...]:
        """Those of `tags` that describe the picture (not ratings, not characters), most common first where known."""

    @property
    def fingerprint(self) -> str:
        """A SHA-256 of everything that decides its answers."""

    def probabilities(self, images: Images) -> Probabilities:
        """[B, H, W, 3] uint8 RGB of any size -> [B, T] float32."""


def open_tagger(
    path: Path | str, *, kind: str | None = None, device: str = "cpu", threads: int | None = None
) -> Tagger:
    """Open a tagger: WD (ONNX, or its weights through timm), ML-Danbooru (ONNX), or a transformers classifier.

    `path` is a folder, or a hub id (`owner/name`), which is fetched. What holds several opens as `kind`, or as the
    first of `KINDS` that it can be. `threads` is for ONNX; None takes all cores. Raises
    InputError for what is missing or unreadable.
    """
    if kind is not None and kind not in KINDS:
        raise InputError(f"Unknown kind of tagger '{kind}'.{did_you_mean(kind, KINDS)}")
    folder = _local_folder(path, kind)
    present = _kinds_in(folder)
    if kind is None and present:
        kind = present[0]
    if kind not in present:
        raise InputError(f"{folder}: holds no tagger; it needs {_needed(kind)}.")
    if kind == "wd":
        from benchmark.taggers.wd import WDTagger

        return WDTagger(folder, device=device, threads=threads)
    if kind == "wd-timm":
        from benchmark.taggers.wd_timm import TimmTagger

        return TimmTagger(folder, device=device)
    if kind == "ml-danbooru":
        from benchmark.taggers.ml_danbooru import MLDanbooruTagger

        return MLDanbooruTagger(folder, device=device, threads=threads)
    from benchmark.taggers.transformers_tagger import TransformersTagger

    return TransformersTagger(folder, device=device)


def _local_folder(path: Path | str, kind: str | None) -> Path:
    """The folder on this disk; a hub id is fetched (the files that a tagger needs, no pickles)."""
    folder = Path(path)
    if folder.is_dir():
        return folder
    text = str(path)
    if folder.is_file():
        raise InputError(f"{folder}: is a file; name the folder it is in (a tagger is a folder with {_needed(kind)}).")
    if text.count("/") != 1 or folder.is_absolute() or text.startswith("."):
        raise InputError(f"{folder}: there is no such folder (a tagger is a folder with {_needed(kind)}).")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(text, allow_patterns=["*.json", "*.csv", "*.onnx", "model.safetensors"]))
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        reason = next((line for line in str(error).splitlines() if line), type(error).__name__)
        raise InputError(f"{text}: is no folder here, and cannot be fetched from the hub ({reason}).") from None


def _kinds_in(folder: Path) -> list[str]:
    """The kinds of taggers whose files a folder holds. timm's and transformers' models have the same file names."""
    present = [name for name in KINDS if all((folder / file).is_file() for file in MODEL_FILES[name])]
    if "transformers" in present:
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return present  # who opens it says what is wrong with it
        other = "transformers" if isinstance(config, dict) and "architecture" in config else "wd-timm"
        present = [name for name in present if name != other]
    return present


def _needed(kind: str | None) -> str:
    return " or ".join(" and ".join(MODEL_FILES[name]) for name in ((kind,) if kind else KINDS))


def columns_of(tagger: Tagger, tags: Sequence[str]) -> NDArray[np.intp]:
    """The tagger's column for each of `tags` [T], however spelled. Raises InputError for one it does not know."""
    known = {normal_tag(tag): column for column, tag in enumerate(tagger.tags)}
    missing = [tag for tag in tags if normal_tag(tag) not in known]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise InputError(
            f"The tagger {tagger.name} does not know the tag '{missing[0]}'{more}.{did_you_mean(missing[0], known)}"
        )
    return np.array([known[normal_tag(tag)] for tag in tags], dtype=np.intp)


def files_fingerprint(files: Sequence[Path]) -> str:
    """SHA-256 over the names and contents of files."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


class FakeTagger:
    """A tagger without a model: `FakeGenerator` paints each tag asked for into the picture, and this one reads it.

    The picture is a grid of squares, one a tag; a tag's probability is its square's brightness. Deterministic, exact.
    """

    def __init__(self, tags: Sequence[str], name: str = "fake", seed: int = 0, noise: float = 0.0):
        self.name = name
        self.tags = tuple(tags)
        self.general = self.tags
        self._seed, self._noise = seed, noise

    @property
    def fingerprint(self) -> str:
        """Of its arguments."""
        return hashlib.sha256(repr((self.name, self.tags, self._seed, self._noise)).encode()).hexdigest()

    def probabilities(self, images: Images) -> Probabilities:
        """[B, H, W, 3] -> [B, T]: the brightness of each tag's square, plus noise drawn from the image itself."""
        check_images(images)
        side = grid_side(len(self.tags))
        rows = np.arange(len(self.tags)) // side
        columns = np.arange(len(self.tags)) % side
        height, width = images.shape[1:3]
        middles = images[:, (2 * rows + 1) * height // (2 * side), (2 * columns + 1) * width // (2 * side)]
        brightness = middles.mean(axis=2, dtype=np.float32) / 255
        for row, image in zip(brightness, images, strict=True):
            draw = np.random.default_rng([self._seed, *hashlib.sha256(image.tobytes()).digest()[:8]])
            row += self._noise * draw.standard_normal(len(row), dtype=np.float32)
        return np.clip(brightness, 0, 1)


def grid_side(tags: int) -> int:
    """The side of the smallest square grid that holds this many tags."""
    return int(np.ceil(np.sqrt(max(tags, 1))))


def check_images(images: NDArray[Any]) -> None:
    """Raise ValueError unless `images` is uint8 [B, H, W, 3]."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"images must be uint8 [B, H, W, 3], not {images.dtype} {list(images.shape)}")
