"""Taggers of every format, and a file in each that can be broken. Everything follows from seeds."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmark.taggers.registry import open_tagger
from tests import tiny_taggers
from tests.fuzz.broken_checkpoints import Original, broken_checkpoint
from tests.fuzz.broken_json import broken

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)


@dataclass(frozen=True)
class Breakable:
    """A file of the tagger in `folder`, which is opened as `kind`."""

    kind: str
    folder: Path
    file: str

    def broken(self, seed: int) -> bytes:
        """Other content for the file, broken as files of its ending are."""
        sound, draw = self.folder / self.file, random.Random(f"{self.kind} {self.file} {seed}")
        if sound.suffix == ".json":
            return broken(sound.read_text(encoding="utf-8"), draw)
        if sound.suffix == ".csv":
            return broken_csv(sound.read_text(encoding="utf-8"), draw)
        if sound.suffix == ".safetensors":
            return broken_checkpoint(Original.read(sound), seed)
        return _cut(sound.read_bytes(), draw)


def sound_taggers(folder: Path) -> tuple[Breakable, ...]:
    """A tagger of each format, written into `folder`; what is broken most often comes more than once."""
    transformers = tiny_taggers.write_transformers(folder / "transformers")
    wd = tiny_taggers.write_wd(folder / "wd")
    timm = tiny_taggers.write_timm(folder / "timm", wd)
    ml_danbooru = tiny_taggers.write_ml_danbooru(folder / "ml-danbooru")
    return (
        *(Breakable("transformers", transformers, name) for name in ("config.json", "preprocessor_config.json") * 3),
        Breakable("transformers", transformers, "model.safetensors"),
        *(Breakable("wd-timm", timm, name) for name in ("config.json", "config.json", "model.safetensors")),
        Breakable("wd-timm", timm, "selected_tags.csv"),
        *(Breakable("wd", wd, name) for name in ("selected_tags.csv", "model.onnx")),
        *(Breakable("ml-danbooru", ml_danbooru, name) for name in ("classes.json", "tiny.onnx")),
    )


def ask(folder: Path, kind: str) -> None:
    """Open a tagger and ask it for what it sees in two images. Raises InputError if it is refused."""
    said = open_tagger(folder, kind=kind, threads=1).probabilities(IMAGES)
    assert said.dtype == np.float32 and said.shape[0] == len(IMAGES) and np.isfinite(said).all()


def broken_csv(text: str, draw: random.Random) -> bytes:
    """The CSV `text` with some fields, lines or bytes changed."""
    lines = text.splitlines()
    for _ in range(draw.randint(1, 2)):
        place = draw.randrange(len(lines))
        fields = lines[place].split(",")
        fields[draw.randrange(len(fields))] = draw.choice(
            ["", "x", "-1", "٣", "9" * 5000, '"', "a,b", "\x00", "1e9", "é"]
        )
        lines[place] = draw.choice([",".join(fields), ",".join(fields), "", lines[place] + "\n" + lines[place]])
    return "\n".join(lines).encode()


def _cut(content: bytes, draw: random.Random) -> bytes:
    """A file that was fetched in part, or something else under its name.

    Other bytes are not tried: they would test onnxruntime's own reading of its format, in this process.
    """
    return draw.choice((content[: draw.randrange(len(content))], b"", b"<html></html>", content + content))
