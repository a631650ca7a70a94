"""Charts as inline SVG: numbers in, one `<svg>` text out, all text escaped. No scripts, no fonts, no files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from merger.search.space import weight_of
from merger.weights import Weights

Colour = tuple[int, int, int]

_BELOW: Colour = (59, 110, 168)
_ZERO: Colour = (247, 246, 243)
_ABOVE: Colour = (201, 96, 33)


def progress_chart(
    values: Sequence[float], baselines: Mapping[str, float], *, ylabel: str, width: int = 860, height: int = 320
) -> str:
    """Every trial's value [trials] as a dot, the best so far as a line, `baselines` as dashed lines with names.

    A value that is no number (NaN) has a place but no dot.
    """
    left, right, top, bottom = 58, 110, 14, 40
    low, high = padded_range([*(v for v in values if not math.isnan(v)), *baselines.values()])
    across, up = width - left - right, height - top - bottom

    def x(trial: float) -> float:
        return left + across * trial / max(len(values) - 1, 1)

    def y(value: float) -> float:
        return top + up * (high - value) / (high - low)

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(ylabel)} of every trial">']
    for step in range(5):
        value = low + (high - low) * step / 4
        parts.append(_line(left, y(value), left + across, y(value), "grid"))
        parts.append(_text(left - 8, y(value) + 4, f"{value:.3f}", "end"))
    for trial in sorted({round(step * max(len(values) - 1, 0) / 5) for step in range(6)}):
        parts.append(_text(x(trial), height - bottom + 18, str(trial), "middle"))
    parts.append(_text(left + across / 2, height - 6, "trial", "middle"))
    placed: list[float] = []
    for name, value in sorted(baselines.items(), key=lambda item: -item[1]):
        parts.append(_line(left, y(value), left + across, y(value), "parent"))
        at = max([y(value) + 4, *(other + 13 for other in placed)])
        placed.append(at)
        parts.append(_text(left + across + 6, at, name, "start"))
    parts += [
        f'<circle cx="{x(trial):.1f}" cy="{y(value):.1f}" r="3" class="dot">'
        f"<title>trial {trial}: {value:.4f}</title></circle>"
        for trial, value in enumerate(values)
        if not math.isnan(value)
    ]
    best = float("-inf")
    points: list[tuple[float, float]] = []
    for trial, value in enumerate(values):
        if value > best:
            if points:
                points.append((x(trial), y(best)))
            best = value
            points.append((x(trial), y(best)))
    if points:
        points.append((left + across, points[-1][1]))
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        parts.append(f'<polyline points="{path}" class="best"/>')
    return "".join([*parts, "</svg>"])


def heat_map(weights: Weights, layers: Sequence[str], donors: Sequence[str]) -> str:
    """`weights` as one coloured cell for each layer (across) and donor (down); the number in it where there is room."""
    left, top, cell, row = 130, 70, 31 if len(layers) <= 40 else 8, 27
    width, height = left + cell * len(layers) + 10, top + row * len(donors) + 8
    largest = max([1.0, *(abs(weight_of(weights, layer, donor)) for layer in layers for donor in donors)])
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="blend weights" style="width:{width}px">']
    for down, donor in enumerate(donors):
        parts.append(_text(left - 8, top + row * down + 18, donor, "end"))
        for right, layer in enumerate(layers):
            weight = weight_of(weights, layer, donor)
            a, b = left + cell * right, top + row * down
            parts.append(
                f'<rect x="{a}" y="{b}" width="{cell - 1}" height="{row - 1}" fill="{shade(weight / largest)}">'
                f"<title>{escape(layer)} {escape(donor)}: {weight:.4f}</title></rect>"
            )
            if cell > 20:
                dark = ' fill="#fff"' if abs(weight) / largest > 0.6 else ""
                parts.append(
                    f'<text x="{a + cell / 2:.0f}" y="{b + 17}" text-anchor="middle" class="num"{dark}>'
                    f"{weight:.2f}</text>"
                )
    for right, layer in enumerate(layers if cell > 20 else ()):
        middle = left + cell * right + cell / 2 + 4
        parts.append(f'<text transform="translate({middle:.0f},{top - 8}) rotate(-60)">{escape(layer)}</text>')
    return "".join([*parts, "</svg>"])


def shade(share: float) -> str:
    """A colour for -1..1: blue below 0, near white at it, orange above."""
    end = _ABOVE if share > 0 else _BELOW
    amount = min(abs(share), 1.0)
    mixed = (round(z + (e - z) * amount) for z, e in zip(_ZERO, end, strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def padded_range(values: Sequence[float]) -> tuple[float, float]:
    """(lowest, highest) with a little room; never of no height."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    room = max((high - low) * 0.06, 1e-3)
    return low - room, high + room


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
