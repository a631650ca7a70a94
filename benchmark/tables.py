"""Figures of models -> tables, and tables -> Markdown. Pure; `page.py` makes HTML of the same tables."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmark.comparison import ModelScores
from benchmark.prompts import spoken
from benchmark.scores import Estimate
from benchmark.secondary import FRECHET, STYLE_CAUTION, STYLE_LOSS

_LISTED = 5  # tags named as most and least reliable, and as drawn without being asked for


@dataclass(frozen=True)
class Cell:
    """Text or a score; `signed` shows its sign, `best` sets it off."""

    text: str = ""
    score: Estimate | None = None
    signed: bool = False
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A head and rows of as many cells. `title` and `note` stand above it where there is room for them."""

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    title: str = ""
    note: str = ""


def make_tables(models: Sequence[ModelScores], more: Sequence[Table] = ()) -> tuple[Table, ...]:
    """Every table there is something for: overall, by category, by tags and place in the prompt, and by tag.

    `more` tables stand after those of all tags and before those tag by tag.
    """
    tables = [_overall(models), *_by_key(models, "category", lambda model: model.categories, "By category")]
    if any(len(next(iter(model.by_count.values()))) > 1 for model in models):
        tables += _by_key(models, "tags in the prompt", lambda model: model.by_count, "By number of tags")
    if any(len(next(iter(model.by_position.values()))) > 1 for model in models):
        tables += _by_key(models, "place in the prompt", lambda model: model.by_position, "By place in the prompt")
    if models[0].metrics:
        tables.append(_secondary(models))
    return (*tables, *more, _reliability(models), _added(models))


def as_markdown(models: Sequence[ModelScores], more: Sequence[Table] = ()) -> str:
    """Every table, one below the other, aligned so that they can be read in a terminal too."""
    return "\n\n".join(table_as_markdown(table) for table in make_tables(models, more)) + "\n"


def interval(score: Estimate, *, signed: bool = False) -> str:
    """`0.812 [0.790, 0.833]`."""
    value, bounds = interval_parts(score, signed=signed)
    return f"{value} {bounds}".rstrip()


def interval_parts(score: Estimate, *, signed: bool = False) -> tuple[str, str]:
    """`("0.812", "[0.790, 0.833]")`; the second is empty where it is not known."""
    if math.isnan(score.value):
        return "–", ""
    sign = "+" if signed else ""
    bounds = "" if math.isnan(score.low) else f"[{score.low:{sign}.3f}, {score.high:{sign}.3f}]"
    return f"{score.value:{sign}.3f}", bounds


def _overall(models: Sequence[ModelScores]) -> Table:
    roles = list(models[0].accuracy)
    compared = len(models) > 1
    head = ["model", *(f"accuracy by {role}" for role in roles), f"mean probability by {roles[0]}"]
    if compared:
        head += [f"against {models[0].name} by {role}" for role in roles]
    head += ["added tags an image", "broken"]
    accuracies = [_compared([model.accuracy[role] for model in models]) for role in roles]
    rows = []
    for number, model in enumerate(models):
        row = [Cell(model.name), *(cells[number] for cells in accuracies), Cell(score=model.probability[roles[0]])]
        if compared:
            row += [Cell(score=model.difference.get(role), signed=True) for role in roles]
            row[-1] = Cell(model.note, row[-1].score, signed=True)
        broken = f"{model.broken} of {model.images}"
        row += [
            Cell(score=model.added_per_image),
            Cell(f"{broken}, {model.duplicates} alike" if model.duplicates else broken),
        ]
        rows.append(tuple(row))
    return Table(tuple(head), tuple(rows))


def _by_key(
    models: Sequence[ModelScores],
    what: str,
    of: Callable[[ModelScores], Mapping[str, Mapping[Any, Estimate]]],
    title: str,
) -> list[Table]:
    """One table a tagger: rows are categories (or counts, or places), columns models."""
    tables = []
    for role in models[0].accuracy:
        rows = [(Cell(str(key)), *_compared([of(model)[role][key] for model in models])) for key in of(models[0])[role]]
        rows.append((Cell("overall"), *_compared([model.accuracy[role] for model in models])))
        tables.append(Table((f"{what}, by {role}", *(model.name for model in models)), tuple(rows), title))
        title = ""  # one for the tables of all taggers
    return tables


def _secondary(models: Sequence[ModelScores]) -> Table:
    """What looks tell: a row a model, and below them the paired differences to the first."""
    names = tuple(models[0].metrics)
    rows = [(Cell(model.name), *(Cell(score=model.metrics[name]) for name in names)) for model in models]
    for model in models[1:]:
        differences = (Cell(score=model.metric_difference[name], signed=True) for name in names)
        rows.append((Cell(f"{model.name}, against {models[0].name}"), *differences))
    note = "Broken images are left out."
    note += f" A small {FRECHET} is near the reference." if any(name.startswith(FRECHET) for name in names) else ""
    note += f" {STYLE_CAUTION}" if STYLE_LOSS in names else ""
    return Table(("model", *names), tuple(rows), "What else was seen", note)


def _reliability(models: Sequence[ModelScores]) -> Table:
    rows = []
    for model in models:
        best = _rated(model.tags, lambda rate: -rate)[:_LISTED]
        worst = _rated(model.tags, lambda rate: rate)[:_LISTED]
        rows.append((Cell(model.name), Cell(", ".join(best)), Cell(", ".join(worst))))
    note = "The share of the times asked that a tag was found, and how often it was asked for."
    return Table(("model", "most reliable tags", "least reliable tags"), tuple(rows), "Tag by tag", note)


def _added(models: Sequence[ModelScores]) -> Table:
    rows = []
    for model in models:
        drawn = {tag: rate for tag, rate in model.added.items() if rate[0] > 0}
        rows.append((Cell(model.name), Cell(", ".join(_rated(drawn, lambda rate: -rate)[:_LISTED]) or "–")))
    note = "The share of the images that did not ask for a tag in which it was found."
    return Table(("model", "drawn without being asked (share of images)"), tuple(rows), "Drawn unasked", note)


def _rated(rates: Mapping[str, tuple[float, int]], key: Callable[[float], float]) -> list[str]:
    """`blue hair 0.93 of 12` for each tag, ordered by the key of its rate, then by name."""
    return [
        f"{spoken(tag)} {rates[tag][0]:.2f} of {rates[tag][1]}"
        for tag in sorted(rates, key=lambda t: (key(rates[t][0]), t))
    ]


def _compared(scores: Sequence[Estimate]) -> list[Cell]:
    """A row's scores, the best three set off."""
    best = best_three([score.value for score in scores])
    return [Cell(score=score, best=number in best) for number, score in enumerate(scores)]


def best_three(values: Sequence[float]) -> set[int]:
    """The places of the best three (fewer of few models), with ties; none where all are equal."""
    order = sorted((value for value in values if not math.isnan(value)), reverse=True)
    if not order or order[0] == order[-1]:
        return set()
    limit = order[min(3, len(order) - 1) - 1]
    return {number for number, value in enumerate(values) if value >= limit}


def table_as_markdown(table: Table) -> str:
    """One table, its columns aligned."""
    rows = [[_escaped(text) for text in table.head], *([_markdown_cell(cell) for cell in row] for row in table.rows)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.head))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    text.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(text)


def _markdown_cell(cell: Cell) -> str:
    if cell.score is None:
        return _escaped(cell.text)
    shown = interval(cell.score, signed=cell.signed)
    note = f" ({_escaped(cell.text)})" if cell.text else ""
    return (f"**{shown}**" if cell.best else shown) + note


def _escaped(text: str) -> str:
    """Text that cannot end its cell, nor be read as Markdown or HTML."""
    text = re.sub(r"([\\|*`\[\]]|\b_|_\b|(?<=\W)_)", r"\\\1", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("\n", " ")
