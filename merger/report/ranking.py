"""A ranking of donors for people: a table, and a map of layers and donors for a terminal and as a page."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from merger.report.charts import heat_map
from merger.scoring.ranking import Ranking

MOST_ROWS = 60

_STYLE = """body { font: 14px/1.5 system-ui, sans-serif; margin: 2rem; background: #fff; color: #222 }
svg text { font-size: 12px } svg .num { font-size: 10px } div { overflow-x: auto } table { border-spacing: 1rem 0 }
td { text-align: right } td:nth-child(2) { text-align: left }"""


def ranking_text(ranking: Ranking, said: Mapping[str, Any]) -> str:
    """The donors, the one that gains most first, and which layers gain beyond chance."""
    (whole, error), tuned = ranking.whole, ranking.tuned
    wide = max(5, *(len(name) for name in ranking.donors))
    lines = [
        f"{said['base']} scores {said['score']:.4f} (mean log probability of the tags) on {said['prompts']} prompts.",
        "Gain per unit of weight, for small weights:",
        f"  # {'donor':{wide}}  one weight for all layers  one for each layer",
    ]
    for place, d in enumerate(ranking.order, 1):
        shared = f"{whole[d]:+.4f} ± {error[d]:.4f}"
        lines.append(f"{place:3} {ranking.donors[d]:{wide}}  {shared:>25}  {tuned[d]:18.4f}")
    return "\n".join([*lines, "", *_map_lines(ranking)])


def _map_lines(ranking: Ranking) -> list[str]:
    if len(ranking.layers) > MOST_ROWS:
        return [f"{len(ranking.layers)} layers are too many to print; --page and --json have them."]
    mean, error = ranking.by_layer
    wide = max(len(layer) for layer in ranking.layers)
    columns = [f"{place:>3}" for place, _ in enumerate(ranking.order, 1)]
    lines = [
        "Layers: ++ and + gain by 4 and 2 standard errors or more, -- and - lose, . is neither",
        f"{'':{wide}} {''.join(columns)}",
    ]
    for at, layer in enumerate(ranking.layers):
        marks = [_mark(mean[at, d], error[at, d]) for d in ranking.order]
        lines.append(f"{layer:{wide}} {''.join(f'{mark:>3}' for mark in marks)}")
    return lines


def _mark(gradient: float, error: float) -> str:
    if abs(gradient) < 2 * error or not gradient:
        return "."
    return ("+" if gradient > 0 else "-") * (2 if abs(gradient) >= 4 * error else 1)


def ranking_page(ranking: Ranking, said: Mapping[str, Any]) -> str:
    """The same as a page of HTML, with the gradients as a heat map: donors down, layers across."""
    (whole, error), tuned, (mean, _) = ranking.whole, ranking.tuned, ranking.by_layer
    donors = [ranking.donors[d] for d in ranking.order]
    largest = float(np.abs(mean).max()) or 1.0
    cells = {
        layer: {ranking.donors[d]: float(mean[at, d] / largest) for d in ranking.order}
        for at, layer in enumerate(ranking.layers)
    }
    rows = "".join(
        f"<tr><td>{place}</td><td>{escape(ranking.donors[d])}</td><td>{whole[d]:+.4f} ± {error[d]:.4f}</td>"
        f"<td>{tuned[d]:.4f}</td></tr>"
        for place, d in enumerate(ranking.order, 1)
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Donors for {escape(said["base"])}</title>'
        f"<style>{_STYLE}</style><h1>Donors for {escape(said['base'])}</h1>"
        f"<p>The gain in mean log probability of the tags per unit of weight, for small weights. The base has "
        f"{said['score']:.4f}, on {said['prompts']} prompts.</p>"
        "<table><tr><th>#</th><th>donor</th><th>one weight for all layers</th><th>one for each layer</th></tr>"
        f"{rows}</table><h2>Layer by layer</h2><p>Gains as shares of the largest, {largest:.4f}: orange gains, blue "
        f"loses.</p><div>{heat_map(cells, ranking.layers, donors)}</div></html>"
    )
