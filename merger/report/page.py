"""The report's page: one Jinja template, kept in code so that an installed package needs no data files."""

from __future__ import annotations

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ result.study }} - layermerge</title>
<style>
:root { --ink: #22252a; --quiet: #6b7078; --rule: #e2dfd8; --paper: #fbfaf7; --warm: #c96021; --cool: #3b6ea8; }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0; }
main { max-width: 940px; margin: 0 auto; padding: 36px 22px 80px; }
h1 { font-size: 30px; margin: 0 0 4px; } h2 { font-size: 20px; margin: 44px 0 10px; }
p.quiet, .quiet { color: var(--quiet); } .wide { overflow-x: auto; }
p.verdict { font-size: 19px; border-left: 4px solid var(--warm); padding: 4px 0 4px 14px; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: right; padding: 6px 10px; border-bottom: 1px solid var(--rule); }
th { font-weight: 600; color: var(--quiet); font-size: 14px; } th:first-child, td:first-child { text-align: left; }
tr.winner td { font-weight: 650; background: #fbeee4; } td small { color: var(--quiet); font-weight: 400; }
svg { width: 100%; height: auto; font: 11px system-ui, sans-serif; fill: var(--ink); } svg .num { font-size: 10px; }
svg .grid { stroke: var(--rule); } svg .parent { stroke: var(--quiet); stroke-dasharray: 4 4; }
svg .dot { fill: var(--cool); fill-opacity: .45; } svg .best { fill: none; stroke: var(--warm); stroke-width: 2; }
.samples { display: grid; grid-template-columns: repeat({{ samples.names | length }}, 1fr); gap: 12px 18px; }
.samples .head { font-weight: 650; } .samples .prompt { grid-column: 1 / -1; color: var(--quiet); font-size: 14px;
  border-top: 1px solid var(--rule); padding-top: 10px; }
.samples img { width: 100%; max-width: 256px; border-radius: 6px; image-rendering: auto; display: block; }
.tags { font-size: 12.5px; line-height: 1.7; margin-top: 4px; }
.tags span { padding: 1px 6px; border-radius: 8px; white-space: nowrap; }
.found { background: #e0efe0; color: #245a2a; } .missed { background: #f7e0dc; color: #8a2c1c;
  text-decoration: line-through; }
</style>
</head>
<body><main>
<h1>{{ result.study }}</h1>
<p class="quiet">{{ result.trials }} trials, {{ "{:,}".format(result.images_drawn) }} images, {{ duration }};
ended ({{ result.stopped_because }})</p>
<p class="verdict">{{ verdict }}</p>

<h2>Test prompts</h2>
<p class="quiet">Share of the tags asked for that the tagger finds again, on {{ test_prompts }} prompts
that nothing was chosen on, with 95&nbsp;% intervals
{%- if judged %}; the judge is a tagger that the search never saw{% endif %}.</p>
<div class="wide"><table>
<tr><th>model</th><th>role</th><th>accuracy</th>{% if judged %}<th>by the judge</th>{% endif %}</tr>
{% for model in result.models %}<tr class="{{ model.role }}"><td>{{ model.name }}</td><td>{{ model.role }}</td>
<td>{{ share(model.accuracy) }} <small>{{ between(model.interval) }}</small></td>
{% if judged %}<td>{{ share(model.judge_accuracy) }} <small>{{ between(model.judge_interval) }}</small></td>
{% endif %}</tr>
{% endfor %}</table></div>
<p>{% for line in differences %}{{ line }}<br>{% endfor %}<span class="quiet">{{ luck }}</span>
{% for line in guard %}<br>{{ line }}{% endfor %}</p>

<h2>Pictures</h2>
<div class="samples">
{% for name in samples.names %}<div class="head">{{ name }}</div>{% endfor %}
{% for row in samples.rows %}<div class="prompt">{{ row.prompt }}</div>
{% for picture in row.pictures %}<div><img src="{{ picture.data }}" alt="{{ row.prompt }}">
<div class="tags">
{% for tag in picture.tags %}
<span class="{{ 'found' if tag.found else 'missed' }}">{{ tag.name }}</span>
{% endfor %}
</div></div>
{% endfor %}{% endfor %}</div>

<h2>By category</h2>
<div class="wide"><table>
<tr><th>category</th>{% for model in result.models %}<th>{{ model.name }}</th>{% endfor %}</tr>
{% for category in categories %}<tr><td>{{ category }}</td>
{% for model in result.models %}<td>{{ share(model.categories.get(category)) }}</td>{% endfor %}</tr>
{% endfor %}</table></div>

<h2>The search</h2>
<p class="quiet">{{ objective }} of every trial on the {{ search_prompts }} search prompts. The best of many noisy
values is partly luck; the table above is not.</p>
{{ progress }}

<h2>The winner's blend weights</h2>
<p class="quiet">blend = base + &Sigma; weight &times; (donor &minus; base), layer by layer; base: {{ base }}.</p>
<div class="wide">{{ heat }}</div>

<h2>How it was made</h2>
<div class="wide"><table>
{% for key, value in settings %}<tr><td>{{ key }}</td><td>{{ value }}</td></tr>{% endfor %}</table></div>
</main></body></html>
"""
