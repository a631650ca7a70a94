"""The importance map as a chart and as words. See `merger.search.importance`. Results of earlier versions have none.

R  rows, D  donors
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from merger.report.charts import padded_range, shade

MOST_ROWS = 40
LIKELY = 1.96
"""Standard errors on both sides of 95 % intervals."""

Cells = Mapping[str, Mapping[str, Sequence[float]]]
"""`cells[row][donor]`: gain and standard error."""

_PANELS = 4  # side by side
_LEFT, _PANEL, _GAP, _HEAD, _ROW = 76, 180, 14, 40, 17


def importance_line(result: Mapping[str, Any]) -> str:
    """The gain by donor, for a terminal; '' if there is none."""
    found = result.get("importance")
    if not found:
        return ""
    several = f" of {found['searches']} searches" if found.get("searches", 1) > 1 else ""
    donors = ", ".join(f"{donor} {gained(*cell)}" for donor, cell in found["donors"].items())
    whole = gained(found["gain"], found["stderr"])
    return f"gain along the gradient steps{several}, in mean log probability: {whole} ({donors})"


def gained(gain: float, stderr: float) -> str:
    """`+0.0123 ± 0.0040`"""
    return f"{round(gain, 4) + 0.0:+.4f} ± {stderr:.4f}"  # no -0.0000


def shown_rows(cells: Cells, most: int = MOST_ROWS) -> dict[str, Mapping[str, Sequence[float]]]:
    """The rows that a page shows, in their order: all, or those with the `most` largest gains or losses."""
    if len(cells) <= most:
        return dict(cells)
    largest = sorted(cells, key=lambda row: -max(abs(gain) for gain, _ in cells[row].values()))[:most]
    return {row: cells[row] for row in cells if row in largest}


def importance_chart(cells: Cells, donors: Mapping[str, Sequence[float]]) -> str:
    """A bar from 0 for each row, with its 95 % interval as a line; a panel for each donor. All text is escaped.

    Bars whose interval contains 0 are pale. All panels have one scale. cells: at most `MOST_ROWS` rows. donors: gain
    and standard error of each, which head its panel.
    """
    ends = [end for row in cells.values() for gain, error in row.values() for end in _interval(gain, error)]
    scale = padded_range([0.0, *ends])
    names = list(donors)
    lines = [names[at : at + _PANELS] for at in range(0, len(names), _PANELS)]
    left = max(_LEFT, 10 + 7 * max(len(_short(row)) for row in cells))
    tall = _HEAD + _ROW * len(cells) + 30
    width = left + (_PANEL + _GAP) * min(len(names), _PANELS)
    parts = [
        f'<svg viewBox="0 0 {width} {tall * len(lines)}" role="img" style="max-width:{width}px" '
        'aria-label="gain by layer and donor">'
    ]
    for down, line in enumerate(lines):
        top = down * tall
        for place, row in enumerate(cells):
            y = top + _HEAD + _ROW * place + 12
            parts.append(f'<text x="{left - 8}" y="{y}" text-anchor="end">{escape(_short(row))}</text>')
        for place, donor in enumerate(line):
            parts += _panel(cells, donor, donors[donor], left + place * (_PANEL + _GAP), top, scale)
    return "".join([*parts, "</svg>"])


def _panel(
    cells: Cells, donor: str, whole: Sequence[float], left: float, top: float, scale: tuple[float, float]
) -> list[str]:
    """The panel of one donor, with its upper left corner at (left, top)."""
    low, high = scale

    def x(value: float) -> float:
        return left + _PANEL * (value - low) / (high - low)

    bottom = top + _HEAD + _ROW * len(cells) + 4
    zero = x(0)
    parts = [
        f'<text x="{left + _PANEL / 2:.1f}" y="{top + 14}" text-anchor="middle">{escape(_short(donor))}</text>',
        f'<text x="{left + _PANEL / 2:.1f}" y="{top + 29}" text-anchor="middle" class="num">'
        f"{escape(gained(*whole))}</text>",
        f'<rect x="{left:.1f}" y="{top + _HEAD - 4}" width="{_PANEL}" height="{bottom - top - _HEAD + 4:.1f}" '
        'fill="none" class="grid"/>',
        f'<line x1="{zero:.1f}" y1="{top + _HEAD - 4}" x2="{zero:.1f}" y2="{bottom:.1f}" class="parent"/>',
    ]
    for end, anchor in ((low, "start"), (high, "end")):
        parts.append(
            f'<text x="{x(end):.1f}" y="{bottom + 13:.1f}" text-anchor="{anchor}" class="num">{end:+.3f}</text>'
        )
    for place, (row, own) in enumerate(cells.items()):
        if donor not in own:
            continue
        gain, error = own[donor]
        first, last = _interval(gain, error)
        y = top + _HEAD + _ROW * place
        pale = ' fill-opacity=".35"' if first <= 0 <= last else ""
        parts.append(
            f"<g><title>{escape(row)} {escape(donor)}: {escape(gained(gain, error))}</title>"
            f'<rect x="{left:.1f}" y="{y}" width="{_PANEL}" height="{_ROW}" fill-opacity="0"/>'
            f'<rect x="{min(zero, x(gain)):.1f}" y="{y + 3}" width="{abs(x(gain) - zero):.1f}" height="{_ROW - 7}" '
            f'fill="{shade(1.0 if gain > 0 else -1.0)}"{pale}/>'
            f'<line x1="{x(first):.1f}" y1="{y + 8}" x2="{x(last):.1f}" y2="{y + 8}" stroke="#22252a"/></g>'
        )
    return parts


def _interval(gain: float, stderr: float) -> tuple[float, float]:
    return gain - LIKELY * stderr, gain + LIKELY * stderr


def _short(name: str, most: int = 24) -> str:
    """A name that fits beside a chart: its end tells a tensor better than its beginning."""
    return name if len(name) <= most else "…" + name[1 - most :]
