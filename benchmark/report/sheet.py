"""A grid's images and their labels as one picture. Labels are wrapped, and cut with an ellipsis if still too long.

Lengths are pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmark.images import Images
from benchmark.writing import write_picture

_GAP, _LINE, _FONT, _WEBP = 8, 20, 16, 16383  # between images, of a line, of letters; the longest WebP
_ACROSS, _DOWN, _TITLE = 160, 260, 400  # columns are widened up to this for their labels; rows' labels; titles
_MOST = 5  # lines of a label

Length = Callable[[str], float]


def compose(
    drawn: Mapping[tuple[int, ...], Images], rows: Sequence[str], columns: Sequence[str], blocks: Sequence[str]
) -> Images:
    """One picture, uint8 [H, W, 3], of the images drawn[block, row, column], with the labels of rows and columns.

    `blocks` are the titles, "" for none. Images are of one size; none is scaled.
    """
    from PIL import Image, ImageDraw, ImageFont

    height, width = next(iter(drawn.values())).shape[:2]
    font = ImageFont.load_default(_FONT)
    length: Length = font.getlength
    room = max(width, *(min(_ACROSS, round(length(label)) + 1) for label in columns))
    across, down = labels(columns, room, length), labels(rows, _DOWN, length)
    left = 2 * _GAP + max(round(length(line)) for label in down for line in label)
    whole = left + len(across) * (room + _GAP)
    if any(blocks):
        whole = max(whole, min(_TITLE, round(max(map(length, blocks)))) + 2 * _GAP)
    titles = labels(blocks, whole - 2 * _GAP, length) if any(blocks) else [[] for _ in blocks]
    head = _tall(max(map(len, across)))
    heights = [max(height, _LINE * len(label)) for label in down]
    tall = _GAP + sum(_tall(len(title)) + head + sum(heights) + _GAP * len(heights) for title in titles)
    sheet = Image.new("RGB", (whole, tall), "white")
    draw = ImageDraw.Draw(sheet)

    def write(lines: Sequence[str], x: float, middle: float, anchor: str) -> None:
        for number, line in enumerate(lines):
            draw.text((x, middle + _LINE * (number - (len(lines) - 1) / 2)), line, "black", font, anchor)

    y = _GAP
    for b, title in enumerate(titles):
        write(title, _GAP, y + _tall(len(title)) / 2, "lm")
        y += _tall(len(title))
        for c, label in enumerate(across):
            write(label, left + c * (room + _GAP) + room / 2, y + head / 2, "mm")
        y += head
        for r, label in enumerate(down):
            write(label, left - _GAP, y + heights[r] / 2, "rm")
            for c in range(len(across)):
                corner = left + c * (room + _GAP) + (room - width) // 2, y + (heights[r] - height) // 2
                sheet.paste(Image.fromarray(drawn[b, r, c]), corner)
            y += heights[r] + _GAP
    return np.array(sheet)


def labels(texts: Sequence[str], width: float, length: Length) -> list[list[str]]:
    """Each text in lines. If one is cut, the beginning that all share is left out, so that the difference shows."""
    lines = [wrapped(text, width, length) for text in texts]
    if any(label and label[-1].endswith("…") for label in lines):
        alike = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
        same = "".join(letters[0] for letters in alike).rpartition(" ")[0] if len(texts) > 1 else ""
        lines = [wrapped(f"… {text[len(same) :].strip()}" if same else text, width, length) for text in texts]
    return lines


def wrapped(text: str, width: float, length: Length, most: int = _MOST) -> list[str]:
    """The text in at most `most` lines no wider than `width`, broken at spaces, or within a word that is too wide."""
    lines: list[str] = []
    rest = text.strip()
    while rest:
        if length(rest) <= width:
            return [*lines, rest]
        if len(lines) == most - 1:
            return [*lines, _cut(rest, width, length, "…").rstrip(" ,") + "…"]
        fits = _cut(rest, width, length)
        at = fits.rfind(" ") if rest[len(fits) : len(fits) + 1] != " " else len(fits)
        at = at if at > 0 else len(fits)
        lines.append(rest[:at].rstrip())
        rest = rest[at:].lstrip()
    return lines or [""]


def save_grid(picture: Images, folder: Path) -> Path:
    """Write `grid.webp`, or `grid.png` if a side is too long for WebP; returns which."""
    from PIL import Image

    image = Image.fromarray(picture)
    small = max(image.size) <= _WEBP
    path = folder / ("grid.webp" if small else "grid.png")
    write_picture(path, image, quality=92)
    return path


def _tall(lines: int) -> int:
    """The height of the lines of a title or of columns' labels."""
    return lines * _LINE + 14 if lines else 0


def _cut(text: str, width: float, length: Length, end: str = "") -> str:
    """The longest beginning that fits `width` with `end` behind it; at least one letter."""
    size = len(text)
    while size > 1 and length(text[:size] + end) > width:
        size -= 1
    return text[:size]
