"""X/Y grids: the same prompts and noise under two changing things, as one labelled picture. Layout is pure.

An axis is `models`, `seeds=4`, `steps=8:12:20`, `guidance=4:7:10` or `prompts`; a prompt matrix writes alternatives as
`a|b|c`, or in braces: `{red|blue} hair, {hat|crown}` is four prompts.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.errors import InputError, did_you_mean
from benchmark.generation import DiffusersGenerator, GenerationSettings
from benchmark.prompts import Prompt, derive_seed
from benchmark.studio import Studio
from benchmark.taggers import Images
from benchmark.text import plain_text

AXES = ("models", "seeds", "steps", "guidance", "prompts")
SEEDS, GUIDANCE = 4, (4.0, 7.0, 10.0)  # where an axis names no values
_GAP, _ROOM, _LABEL, _WEBP = 8, 34, 160, 16383  # pixels: between images, of a line, of a label; the longest WebP


@dataclass(frozen=True)
class Axis:
    """What changes along it: `values` are names of models, seeds, steps, guidances or texts of prompts."""

    kind: str
    values: tuple[str | int | float, ...]

    def labels(self) -> tuple[str, ...]:
        """A line of text for each value."""
        words = {"seeds": "seed {}", "steps": "{} steps", "guidance": "guidance {:g}"}.get(self.kind, "{}")
        return tuple(plain_text(words.format(v)) if self.kind == "prompts" else words.format(v) for v in self.values)


@dataclass(frozen=True)
class Cell:
    """One image of a grid: who draws which prompt from which seed, and how."""

    model: str
    text: str
    seed: int
    settings: GenerationSettings


def alternatives(text: str) -> tuple[str, ...]:
    """`a|b` -> `a`, `b`; `{a|b} c {d|e}` -> four prompts, the last alternative changing fastest.

    Raises InputError for an empty alternative.
    """
    pieces = re.split(r"\{([^{}]*\|[^{}]*)\}", text) if re.search(r"\{[^{}]*\|[^{}]*\}", text) else ["", text, ""]
    choices = [piece.split("|") if number % 2 else [piece] for number, piece in enumerate(pieces)]
    prompts = tuple("".join(chosen).strip() for chosen in itertools.product(*choices))
    if not all(prompts):
        raise InputError(f"prompt '{text}': an alternative is empty. Write alternatives as a|b or {{a|b}}.")
    return tuple(dict.fromkeys(prompts))


def parse_axes(text: str, studio: Studio, prompts: Sequence[str], seed: int) -> tuple[Axis, Axis]:
    """`models,steps=8:12` -> what changes from row to row and from column to column. Raises InputError."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2 or parts[0].partition("=")[0] == parts[1].partition("=")[0]:
        raise InputError(f"grid '{text}': name two different axes, such as models,seeds or prompts,steps=8:12:20.")
    rows, columns = (_axis(part, studio, prompts, seed) for part in parts)
    return rows, columns


def _axis(text: str, studio: Studio, prompts: Sequence[str], seed: int) -> Axis:
    kind, given, values = text.partition("=")
    if kind not in AXES:
        raise InputError(f"Unknown axis '{kind}' of a grid.{did_you_mean(kind, AXES)}")
    if kind in ("models", "prompts"):
        if given:
            raise InputError(f"grid '{text}': {kind} come from the rest of the command line; leave '={values}' out.")
        return Axis(kind, tuple(studio.models if kind == "models" else prompts))
    own: dict[str, Sequence[int | float]] = {
        "steps": sorted({max(1, studio.settings.steps // 2), studio.settings.steps, 2 * studio.settings.steps}),
        "guidance": GUIDANCE,
    }
    try:
        if kind == "seeds":
            count = int(values) if given else SEEDS
            numbers: Sequence[int | float] = [derive_seed(seed, "grid", number) for number in range(count)]
        else:
            read = int if kind == "steps" else float
            numbers = [read(value) for value in values.split(":")] if given else own[kind]
    except ValueError:
        raise InputError(f"grid '{text}': give numbers, such as seeds=4, steps=8:12:20 or guidance=4:7:10.") from None
    if not numbers or len(set(numbers)) != len(numbers):
        raise InputError(f"grid '{text}': give one or more different numbers.")
    return Axis(kind, tuple(numbers))


def cells(rows: Axis, columns: Axis, studio: Studio, prompts: Sequence[str], seed: int) -> dict[tuple[int, ...], Cell]:
    """(block, row, column) -> cell. There is a block for each prompt that is no axis; else, for what no axis changes,
    the first model, the first seed and the settings as they are.
    """
    blocks = [""] if "prompts" in (rows.kind, columns.kind) else list(prompts)
    made: dict[tuple[int, ...], Cell] = {}
    for (b, text), (r, down), (c, right) in itertools.product(*map(enumerate, (blocks, rows.values, columns.values))):
        said: dict[str, Any] = {
            "models": next(iter(studio.models)),
            "seeds": derive_seed(seed, "grid", 0),
            "prompts": text,
        }
        said |= {"steps": studio.settings.steps, "guidance": studio.settings.guidance}
        said |= {rows.kind: down, columns.kind: right}
        settings = replace(studio.settings, steps=said["steps"], guidance=said["guidance"])
        made[b, r, c] = Cell(said["models"], said["prompts"], said["seeds"], settings)
    return made


def draw_cells(
    wanted: Mapping[tuple[int, ...], Cell], studio: Studio, report: Callable[[int], None]
) -> dict[tuple[int, ...], Images]:
    """Every cell's image, uint8 [H, W, 3]; each model is loaded once. `report(images done)` hears of every batch."""
    drawn: dict[tuple[int, ...], Images] = {}
    for model in dict.fromkeys(cell.model for cell in wanted.values()):
        pipeline = studio.load(model)
        mine = {place: cell for place, cell in wanted.items() if cell.model == model}
        for settings in dict.fromkeys(cell.settings for cell in mine.values()):
            places = [place for place, cell in mine.items() if cell.settings == settings]
            prompts = [Prompt(n, mine[place].text, (), mine[place].seed) for n, place in enumerate(places)]
            done = 0
            for images in DiffusersGenerator(pipeline, settings).generate(prompts):
                drawn |= dict(zip(places[done : done + len(images)], images, strict=True))
                done += len(images)
                report(len(drawn))
    return drawn


def compose(drawn: Mapping[tuple[int, ...], Images], rows: Axis, columns: Axis, blocks: Sequence[str]) -> Images:
    """One picture, uint8 [H, W, 3]: the images with their labels; `blocks` are the titles, "" for none."""
    from PIL import Image, ImageDraw, ImageFont

    height, width = next(iter(drawn.values())).shape[:2]
    font = ImageFont.load_default(16)

    def length(words: str) -> float:
        return font.getlength(words)

    pitch = _GAP + max(width, *(min(_LABEL, round(length(label))) for label in columns.labels()))
    across = [_fitted(label, pitch - _GAP, length) for label in columns.labels()]
    down = [_fitted(label, 260, length) for label in rows.labels()]
    left = _GAP * 2 + max(round(length(label)) for label in down)
    title = _ROOM if any(blocks) else 0
    block = title + _ROOM + len(down) * (height + _GAP)
    whole = left + len(across) * pitch
    sheet = Image.new("RGB", (whole, len(blocks) * block + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for b, text in enumerate(blocks):
        top = b * block + _GAP
        draw.text((_GAP, top + title / 2), _fitted(text, whole - 2 * _GAP, length), "black", font, "lm")
        for c, label in enumerate(across):
            middle = left + c * pitch + (pitch - _GAP) / 2
            draw.text((middle, top + title + _ROOM / 2), label, "black", font, "mm")
        for r, label in enumerate(down):
            y = top + title + _ROOM + r * (height + _GAP)
            draw.text((left - _GAP, y + height / 2), label, "black", font, "rm")
            for c in range(len(across)):
                sheet.paste(Image.fromarray(drawn[b, r, c]), (left + c * pitch + (pitch - _GAP - width) // 2, y))
    return np.array(sheet)


def save_grid(picture: Images, folder: Path) -> Path:
    """Write `grid.webp`, or `grid.png` where a side is longer than a WebP can be; returns which."""
    from PIL import Image

    image = Image.fromarray(picture)
    small = max(image.size) <= _WEBP
    path = folder / ("grid.webp" if small else "grid.png")
    image.save(path, quality=92)
    return path


def _fitted(text: str, width: float, length: Callable[[str], float]) -> str:
    """The text, cut with an ellipsis where it is wider."""
    if length(text) <= width:
        return text
    while text and length(text + "…") > width:
        text = text[:-1]
    return text + "…"
