"""One self-contained HTML page of a benchmark: the tables, a chart, and the same prompts drawn by every model."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.evaluate.scores import Estimate
from benchmark.metrics.comparison import ModelScores
from benchmark.prompts.prompt_set import spoken
from benchmark.report.scatter import BOTTOM, HEIGHT, LEFT, MARGIN, WIDTH, scatter
from benchmark.report.tables import Table, interval, interval_parts, make_tables


@dataclass(frozen=True)
class Sample:
    """One prompt, and what each model drew for it: name -> (picture file, tags found, tags missed)."""

    text: str
    drawn: Mapping[str, tuple[Path, tuple[str, ...], tuple[str, ...]]]


def as_html(
    models: Sequence[ModelScores], settings: Mapping[str, Any], samples: Sequence[Sample], more: Sequence[Table] = ()
) -> str:
    """The page, pictures inside. Every text is escaped, whoever wrote it."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"parts": interval_parts, "hover": _hover, "spoken": spoken, "data": _data_uri}
    template = environment.from_string(_TEMPLATE)
    return template.render(
        names=[model.name for model in models],
        tables=make_tables(models, more),
        settings=settings,
        samples=samples,
        chart=scatter(models),
        box={"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - MARGIN, "top": MARGIN},
        floor=HEIGHT - BOTTOM,
    )


def _hover(score: Estimate, against: Estimate | None, first: str) -> str:
    """What a figure shows when it is pointed at; `against` its difference to the model `first`."""
    _, bounds = interval_parts(score)
    text = f"95 % interval {bounds}, standard error {score.stderr:.4f}" if bounds else "no interval"
    return text if against is None else f"{text}; against {first} {interval(against, signed=True)}"


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
svg { max-width: 44rem; width: 100%; } svg text { fill: currentColor; font-size: 12px; }
svg .grid { stroke: var(--line); } svg .name { paint-order: stroke; stroke: Canvas; stroke-width: 4px; }
svg .span { stroke-width: 1.5; opacity: .7; }
</style>
<h1>Which of them draws what it is asked for?</h1>
<p>{{ settings.images }} images of {{ settings.prompts }} prompts, {{ settings.width }} × {{ settings.height }},
{{ settings.steps }} steps of {{ settings.sampler }}, guidance {{ settings.guidance }}. Tag accuracy is the share of the
tags asked for that the tagger finds again; in brackets are 95 % intervals over prompts.</p>
{% for table in tables %}
{% if table.title %}<h2>{{ table.title }}</h2>{% endif %}
{% if table.note %}<p>{{ table.note }}</p>{% endif %}
<div class="wide"><table>
<tr>{% for text in table.head %}<th>{{ text }}</th>{% endfor %}</tr>
{% for row in table.rows %}
<tr>{% for cell in row %}
<td{% if cell.best %} class="best"{% endif %}
{%- if cell.score is not none %} title="{{ cell.score | hover(cell.against, names[0]) }}"{% endif %}>
{%- if cell.score is none %}{{ cell.text }}{% else %}
{%- set shown = cell.score | parts(signed=cell.signed) %}{{ shown[0] }} <small>{{ shown[1] }}</small>
{%- if cell.text %} ({{ cell.text }}){% endif %}{% endif %}</td>
{% endfor %}</tr>
{% endfor %}
</table></div>
{% endfor %}
{% if chart %}
<h2>Accuracy against diversity</h2>
<p>Up is better; to the right, images of one prompt differ more. A model that draws the same image again and again
stands on the left.</p>
<svg viewBox="0 0 {{ box.width }} {{ box.height }}" role="img" aria-label="tag accuracy against diversity">
{% for x, words in chart.upright %}
<line class="grid" x1="{{ x }}" x2="{{ x }}" y1="{{ box.top }}" y2="{{ floor }}"/>
<text x="{{ x }}" y="{{ floor + 18 }}" text-anchor="middle">{{ words }}</text>
{% endfor %}
{% for y, words in chart.level %}
<line class="grid" x1="{{ box.left }}" x2="{{ box.right }}" y1="{{ y }}" y2="{{ y }}"/>
<text x="{{ box.left - 8 }}" y="{{ y + 4 }}" text-anchor="end">{{ words }}</text>
{% endfor %}
{% for dot in chart.dots %}
<g><title>{{ dot.hover }}</title>
<g class="span" stroke="{{ dot.colour }}">
<line x1="{{ dot.left }}" x2="{{ dot.right }}" y1="{{ dot.y }}" y2="{{ dot.y }}"/>
<line x1="{{ dot.x }}" x2="{{ dot.x }}" y1="{{ dot.top }}" y2="{{ dot.bottom }}"/></g>
<circle fill="{{ dot.colour }}" cx="{{ dot.x }}" cy="{{ dot.y }}" r="5"/></g>
{% endfor %}
{% for dot in chart.dots %}
<text class="name" x="{{ dot.label_x }}" y="{{ dot.label_y }}" text-anchor="{{ dot.label_end }}"
 style="fill: {{ dot.colour }}">{{ dot.name }}</text>
{% endfor %}
<text x="{{ box.width / 2 }}" y="{{ box.height - 8 }}" text-anchor="middle">{{ chart.diversity }}</text>
<text x="8" y="14">tag accuracy</text>
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
