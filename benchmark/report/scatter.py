"""Accuracy against diversity: one dot a model with both intervals, as SVG for the page and as a PNG beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmark.evaluate.scores import Estimate
from benchmark.metrics.comparison import ModelScores
from benchmark.metrics.secondary import DIVERSITY
from benchmark.report.tables import interval
from benchmark.writing import write_picture

WIDTH, HEIGHT, LEFT, MARGIN, BOTTOM = 640, 380, 64, 36, 52  # in the chart's own units
_LINE, _LETTER = 14, 7  # of a label: its height, and a letter's width
COLOURS = ("#2a78b5", "#d1662a", "#2f8f5b", "#9857b0", "#b8912b", "#c2405f", "#4c9aa8", "#7a6a5a")


@dataclass(frozen=True)
class Dot:
    """One model, in the chart's units; `hover` gives its figures.

    The label begins at (`label_x`, `label_y`) if `label_end` is "start", and ends there if it is "end".
    """

    name: str
    colour: str
    hover: str
    x: float
    y: float
    left: float
    right: float
    top: float
    bottom: float
    label_x: float
    label_y: float
    label_end: str

    def crowds(self, other: Dot) -> bool:
        """Whether its label overlaps the other's."""
        mine, theirs = self._span, other._span
        return abs(self.label_y - other.label_y) < _LINE and mine[0] < theirs[1] and theirs[0] < mine[1]

    @property
    def _span(self) -> tuple[float, float]:
        """Where the label begins and ends, roughly."""
        wide = _LETTER * len(self.name)
        return (self.label_x - wide, self.label_x) if self.label_end == "end" else (self.label_x, self.label_x + wide)


@dataclass(frozen=True)
class Scatter:
    """The dots, and (place, figure) of the grid's vertical and horizontal lines; `diversity`: the metric's name."""

    diversity: str
    dots: tuple[Dot, ...]
    upright: tuple[tuple[float, str], ...]
    level: tuple[tuple[float, str], ...]


def scatter(models: Sequence[ModelScores]) -> Scatter | None:
    """Diversity to the right, accuracy by the first tagger up; None if no model has a diversity."""
    role = next(iter(models[0].accuracy))
    measured = next((name for name in models[0].metrics if name.startswith(DIVERSITY)), None)
    if measured is None:
        return None
    pairs = [(m.name, m.metrics[measured], m.accuracy[role]) for m in models]
    pairs = [(name, x, y) for name, x, y in pairs if not math.isnan(x.low) and not math.isnan(y.low)]
    if not pairs:
        return None
    x_ticks, y_ticks = ticks([x for _, x, _ in pairs]), ticks([y for _, _, y in pairs])
    ends = (LEFT, WIDTH - MARGIN), (HEIGHT - BOTTOM, MARGIN)

    def across(value: float) -> float:
        return _place(value, x_ticks, *ends[0])

    def up(value: float) -> float:
        return _place(value, y_ticks, *ends[1])

    dots: list[Dot] = []
    for number, (name, x, y) in enumerate(pairs):
        hover = f"{name}: accuracy {interval(y)}, {measured} {interval(x)}"
        colour = COLOURS[number % len(COLOURS)]
        sides = (across(x.low), across(x.high), up(y.high), up(y.low))
        at = across(x.value)
        end, label_x = ("start", at + 9) if at + 9 + _LETTER * len(name) < WIDTH else ("end", at - 9)
        dots.append(Dot(name, colour, hover, at, up(y.value), *sides, label_x, up(y.value) - 7, end))
    placed: list[Dot] = []  # from the top down, so that labels stand in the order of their dots
    for dot in sorted(dots, key=lambda dot: dot.y):
        while any(dot.crowds(other) for other in placed):
            dot = replace(dot, label_y=dot.label_y + 1)
        placed.append(dot)
    order = [name for name, _, _ in pairs]
    dots = sorted(placed, key=lambda dot: order.index(dot.name))
    digits = [max(0, -math.floor(math.log10(t[1] - t[0]) + 1e-9)) for t in (x_ticks, y_ticks)]
    upright = tuple((across(value), f"{value:.{digits[0]}f}") for value in x_ticks)
    return Scatter(measured, tuple(dots), upright, tuple((up(value), f"{value:.{digits[1]}f}") for value in y_ticks))


def ticks(scores: Sequence[Estimate]) -> list[float]:
    """Round numbers at equal steps of 1, 2 or 5, from below the lowest end of an interval to above the highest."""
    low, high = min(score.low for score in scores), max(score.high for score in scores)
    span = (high - low) or 0.1
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= span / 4 * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def save_png(chart: Scatter, path: Path, scale: int = 2) -> None:
    """Draw the chart on white, `WIDTH` x `HEIGHT` times `scale`."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (WIDTH * scale, HEIGHT * scale), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(12 * scale)

    def line(x1: float, y1: float, x2: float, y2: float, colour: str, width: int) -> None:
        draw.line((x1 * scale, y1 * scale, x2 * scale, y2 * scale), colour, width)

    def text(x: float, y: float, words: str, anchor: str, colour: str = "#222") -> None:
        draw.text((x * scale, y * scale), words, colour, font, anchor, stroke_width=2 * scale, stroke_fill="white")

    for x, words in chart.upright:
        line(x, MARGIN, x, HEIGHT - BOTTOM, "#ddd", scale)
        text(x, HEIGHT - BOTTOM + 8, words, "mt")
    for y, words in chart.level:
        line(LEFT, y, WIDTH - MARGIN, y, "#ddd", scale)
        text(LEFT - 8, y, words, "rm")
    for dot in chart.dots:
        line(dot.left, dot.y, dot.right, dot.y, dot.colour, scale)
        line(dot.x, dot.top, dot.x, dot.bottom, dot.colour, scale)
        draw.circle((dot.x * scale, dot.y * scale), 5 * scale, dot.colour)
    for dot in chart.dots:  # over every line
        text(dot.label_x, dot.label_y, dot.name, "rs" if dot.label_end == "end" else "ls", dot.colour)
    text(WIDTH / 2, HEIGHT - 8, chart.diversity, "ms")
    text(LEFT - 52, MARGIN - 22, "tag accuracy", "lm")
    write_picture(path, image)


def _place(value: float, marks: Sequence[float], start: float, end: float) -> float:
    return round(start + (value - marks[0]) / (marks[-1] - marks[0]) * (end - start), 1)
