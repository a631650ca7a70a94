"""One self-contained HTML page of a benchmark: the tables, a chart, and the same prompts drawn by every model."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.comparison import ModelScores
from benchmark.prompts import spoken
from benchmark.scores import Estimate
from benchmark.tables import interval, interval_parts, make_tables

_WIDTH, _HEIGHT, _MARGIN = 560, 320, 48  # of the chart, in its own units


@dataclass(frozen=True)
class Sample:
    """One prompt, and what each model drew for it: name -> (picture file, tags found, tags missed)."""

    text: str
    drawn: Mapping[str, tuple[Path, tuple[str, ...], tuple[str, ...]]]


@dataclass(frozen=True)
class _Dot:
    name: str
    x: float
    y: float
    left: float
    right: float
    top: float
    bottom: float


def as_html(models: Sequence[ModelScores], settings: Mapping[str, Any], samples: Sequence[Sample]) -> str:
    """The page, pictures inside. Every text is escaped, whoever wrote it."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"parts": interval_parts, "interval": interval, "spoken": spoken, "data": _data_uri}
    template = environment.from_string(_TEMPLATE)
    return template.render(
        names=[model.name for model in models],
        tables=make_tables(models),
        settings=settings,
        samples=samples,
        dots=_dots(models),
        size=(_WIDTH, _HEIGHT, _MARGIN),
    )


def _dots(models: Sequence[ModelScores]) -> list[_Dot]:
    """Diversity (across) against accuracy (up), both with intervals, in the chart's units; empty without diversity."""
    role = next(iter(models[0].accuracy))
    pairs = [(m.name, m.metrics["diversity"], m.accuracy[role]) for m in models if "diversity" in m.metrics]
    pairs = [(name, x, y) for name, x, y in pairs if not math.isnan(x.low) and not math.isnan(y.low)]
    if not pairs:
        return []

    def scale(scores: Sequence[Estimate], start: float, end: float) -> Any:
        low, high = min(score.low for score in scores), max(score.high for score in scores)
        span = (high - low) or 1.0
        return lambda value: round(start + (value - low) / span * (end - start), 1)

    across = scale([x for _, x, _ in pairs], _MARGIN, _WIDTH - _MARGIN)
    up = scale([y for _, _, y in pairs], _HEIGHT - _MARGIN, _MARGIN)
    return [
        _Dot(name, across(x.value), up(y.value), across(x.low), across(x.high), up(y.high), up(y.low))
        for name, x, y in pairs
    ]


def _data_uri(path: Path) -> str:
    return f"data:image/{path.suffix[1:]};base64,{base64.b64encode(path.read_bytes()).decode()}"


_TEMPLATE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Benchmark of {{ names | join(", ") }}</title>
<style>
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --good: #2a7; --bad: #c55; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .7rem; text-align: left; vertical-align: top; }
td small { opacity: .65; white-space: nowrap; }
td.best { font-weight: 600; background: var(--soft); }
figure { margin: 0; }
img { display: block; width: 100%; min-width: 6rem; max-width: 16rem; border-radius: 6px; }
.found { color: var(--good); } .missed { color: var(--bad); text-decoration: line-through; }
svg { max-width: 40rem; width: 100%; } svg line { stroke: currentColor; opacity: .5; }
svg circle { fill: var(--good); } svg text { fill: currentColor; font-size: 13px; }
</style>
<h1>Which of them draws what it is asked for?</h1>
<p>{{ settings.images }} images of {{ settings.prompts }} prompts, {{ settings.width }} × {{ settings.height }},
{{ settings.steps }} steps of {{ settings.sampler }}, guidance {{ settings.guidance }}. Tag accuracy is the share of the
tags asked for that the tagger finds again; in brackets are 95 % intervals over prompts.</p>
{% for table in tables %}
<div class="wide"><table>
<tr>{% for text in table.head %}<th>{{ text }}</th>{% endfor %}</tr>
{% for row in table.rows %}
<tr>{% for cell in row %}
<td{% if cell.best %} class="best"{% endif %}>
{%- if cell.score is none %}{{ cell.text }}{% else %}
{%- set shown = cell.score | parts(signed=cell.signed) %}{{ shown[0] }} <small>{{ shown[1] }}</small>
{%- if cell.text %} ({{ cell.text }}){% endif %}{% endif %}</td>
{% endfor %}</tr>
{% endfor %}
</table></div>
{% endfor %}
{% if dots %}
<h2>Accuracy against diversity</h2>
<svg viewBox="0 0 {{ size[0] }} {{ size[1] }}" role="img" aria-label="accuracy against diversity">
{% for dot in dots %}
<line x1="{{ dot.left }}" x2="{{ dot.right }}" y1="{{ dot.y }}" y2="{{ dot.y }}"/>
<line x1="{{ dot.x }}" x2="{{ dot.x }}" y1="{{ dot.top }}" y2="{{ dot.bottom }}"/>
<circle cx="{{ dot.x }}" cy="{{ dot.y }}" r="5"/><text x="{{ dot.x + 9 }}" y="{{ dot.y - 7 }}">{{ dot.name }}</text>
{% endfor %}
<text x="{{ size[0] / 2 }}" y="{{ size[1] - 8 }}">diversity →</text><text x="4" y="18">accuracy ↑</text>
</svg>
{% endif %}
{% if samples %}
<h2>The same prompts, drawn by each</h2>
<div class="wide"><table>
<tr><th>prompt</th>{% for name in names %}<th>{{ name }}</th>{% endfor %}</tr>
{% for sample in samples %}
<tr><td>{{ sample.text }}</td>
{% for name in names %}<td>{% if name in sample.drawn %}
{% set picture, found, missed = sample.drawn[name] %}
<figure><img src="{{ picture | data }}" alt="{{ sample.text }}, by {{ name }}"><figcaption>
{% for tag in found %}<span class="found">{{ tag | spoken }}</span> {% endfor %}
{% for tag in missed %}<span class="missed">{{ tag | spoken }}</span> {% endfor %}
</figcaption></figure>
{% endif %}</td>{% endfor %}
</tr>
{% endfor %}
</table></div>
{% endif %}
</html>
"""
