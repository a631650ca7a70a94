"""Figures of models -> tables, and tables -> Markdown. Pure; `page.py` makes HTML of the same tables."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from benchmark.evaluate.scores import Estimate, Rate
from benchmark.metrics.changes import FALSE_DISCOVERIES, FEWEST_PROMPTS, GAIN, LOSS, TOO_FEW, Change
from benchmark.metrics.comparison import ModelScores
from benchmark.metrics.secondary import FRECHET, STYLE_CAUTION, STYLE_LOSS
from benchmark.prompts.vocabulary import spoken

_NAMED = 10  # gains or losses
_LISTED = 5  # tags named as most and least reliable, and as drawn without being asked for


@dataclass(frozen=True)
class Cell:
    """Text or a score. `signed` shows its sign, `best` highlights it; `against`: the difference to the first model."""

    text: str = ""
    score: Estimate | None = None
    signed: bool = False
    best: bool = False
    against: Estimate | None = None


@dataclass(frozen=True)
class Table:
    """A head, and rows of as many cells. The HTML page shows `title` and `note` above it."""

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    title: str = ""
    note: str = ""


def make_tables(models: Sequence[ModelScores], more: Sequence[Table] = ()) -> tuple[Table, ...]:
    """Every table that has rows: overall, by category, by number of tags and place in the prompt, and by tag.

    `more` tables come before those tag by tag.
    """
    tables = [_overall(models), *_by_key(models, "category", "categories", "category_difference", "By category")]
    if any(len(next(iter(model.by_count.values()))) > 1 for model in models):
        tables += _by_key(models, "tags in the prompt", "by_count", "count_difference", "By number of tags")
    if any(len(next(iter(model.by_position.values()))) > 1 for model in models):
        tables += _by_key(models, "place in the prompt", "by_position", "position_difference", "By place in the prompt")
    if models[0].metrics:
        tables.append(_secondary(models))
    roles = list(models[0].accuracy)
    by_tag = [_reliability(models, role) for role in roles]
    by_tag += [_changed(models, role) for role in roles if len(models) > 1]
    by_tag += [_added(models, role) for role in roles]
    return (*tables, *more, *_titled_once(by_tag))


def as_markdown(models: Sequence[ModelScores], more: Sequence[Table] = ()) -> str:
    """Every table, one below the other, aligned so that they can be read in a terminal too."""
    return "\n\n".join(table_as_markdown(table) for table in make_tables(models, more)) + "\n"


def interval(score: Estimate, *, signed: bool = False) -> str:
    """`0.812 [0.790, 0.833]`."""
    value, bounds = interval_parts(score, signed=signed)
    return f"{value} {bounds}".rstrip()


def interval_parts(score: Estimate, *, signed: bool = False) -> tuple[str, str]:
    """`("0.812", "[0.790, 0.833]")`; the second is empty if the interval is not known."""
    if math.isnan(score.value):
        return "–", ""
    sign = "+" if signed else ""
    bounds = "" if math.isnan(score.low) else f"[{score.low:{sign}.3f}, {score.high:{sign}.3f}]"
    return f"{score.value:{sign}.3f}", bounds


def _overall(models: Sequence[ModelScores]) -> Table:
    roles = list(models[0].accuracy)
    compared = len(models) > 1
    head = ["model", *(f"accuracy by {role}" for role in roles), *(f"mean probability by {role}" for role in roles)]
    if compared:
        head += [f"against {models[0].name} by {role}" for role in roles]
    head += [*(f"added tags an image by {role}" for role in roles), "broken"]
    accuracies = [_compared([model.accuracy[role] for model in models]) for role in roles]
    rows = []
    for number, model in enumerate(models):
        row = [Cell(model.name), *(cells[number] for cells in accuracies)]
        row += [Cell(score=model.probability[role]) for role in roles]
        if compared:
            row += [Cell(score=model.difference.get(role), signed=True) for role in roles]
            row[-1] = Cell(model.note, row[-1].score, signed=True)
        broken = f"{model.broken} of {model.images}"
        row += [Cell(score=model.added_per_image[role]) for role in roles]
        share = model.broken_share if model.broken else None
        row.append(Cell(f"{broken}, {model.duplicates} alike" if model.duplicates else broken, share))
        rows.append(tuple(row))
    return Table(tuple(head), tuple(rows))


def _by_key(models: Sequence[ModelScores], what: str, scored: str, differing: str, title: str) -> list[Table]:
    """One table a tagger: rows are categories (or counts, or places), columns models.

    `scored`, `differing`: the fields of `ModelScores` that hold the figures and the differences to the first model.
    """
    tables = []
    for role in models[0].accuracy:
        rows = []
        for key in getattr(models[0], scored)[role]:
            against = [getattr(model, differing).get(role, {}).get(key) for model in models]
            rows.append((Cell(str(key)), *_compared([getattr(model, scored)[role][key] for model in models], against)))
        against = [model.difference.get(role) for model in models]
        rows.append((Cell("overall"), *_compared([model.accuracy[role] for model in models], against)))
        tables.append(Table((f"{what}, by {role}", *(model.name for model in models)), tuple(rows), title))
    return _titled_once(tables)


def _titled_once(tables: Sequence[Table]) -> list[Table]:
    """The same tables. Of those that share a title, one a tagger, only the first keeps title and note."""
    seen: set[str] = set()
    made = []
    for table in tables:
        made.append(replace(table, title="", note="") if table.title in seen else table)
        seen.add(table.title)
    return made


def _secondary(models: Sequence[ModelScores]) -> Table:
    """The metrics of features: a row a model, and below them the paired differences to the first."""
    names = tuple(models[0].metrics)
    rows = [(Cell(model.name), *(Cell(score=model.metrics[name]) for name in names)) for model in models]
    for model in models[1:]:
        differences = (Cell(score=model.metric_difference[name], signed=True) for name in names)
        rows.append((Cell(f"{model.name}, against {models[0].name}"), *differences))
    note = "Broken images are left out."
    note += f" A small {FRECHET} is near the reference." if any(name.startswith(FRECHET) for name in names) else ""
    note += f" {STYLE_CAUTION}" if STYLE_LOSS in names else ""
    return Table(("model", *names), tuple(rows), "What else was seen", note)


def _reliability(models: Sequence[ModelScores], role: str) -> Table:
    rows = []
    for model in models:
        best = _rated(model.tags[role], lambda rate: -rate)
        worst = _rated(model.tags[role], lambda rate: rate)
        rows.append((Cell(model.name), Cell(", ".join(best)), Cell(", ".join(worst))))
    note = "The share of the times asked that a tag was found, and how often it was asked for."
    head = ("model", f"most reliable tags, by {role}", f"least reliable tags, by {role}")
    return Table(head, tuple(rows), "Tag by tag", note)


def _changed(models: Sequence[ModelScores], role: str) -> Table:
    """The tags that each model gained and lost against the first beyond chance."""
    rows = []
    for model in models[1:]:
        found = model.tag_changes.get(role, ())
        lost = [_change(change) for change in found if change.verdict == LOSS]
        gained = [_change(change) for change in reversed(found) if change.verdict == GAIN]
        rows.append((Cell(model.name), *(Cell(", ".join(_first(tags)) or "–") for tags in (lost, gained))))
    note = (
        "Shares found, for tags whose probabilities moved beyond chance; about "
        f"{FALSE_DISCOVERIES:.0%} of those named are expected to be chance (false-discovery rate)."
    )
    few = sum(change.verdict == TOO_FEW for change in models[1].tag_changes.get(role, ()))
    note += f" Below {FEWEST_PROMPTS} prompts, as for {few} of the tags, nothing can be told." if few else ""
    head = ("model", f"lost against {models[0].name}, by {role}", f"gained against {models[0].name}, by {role}")
    return Table(head, tuple(rows), "Gains and losses", note)


def _change(change: Change) -> str:
    return f"{spoken(change.key)} {change.before:.2f} to {change.after:.2f} (n = {change.prompts})"


def _first(tags: Sequence[str]) -> list[str]:
    """The first few, and how many more there are."""
    more = len(tags) - _NAMED
    return [*tags[:_NAMED], *([f"and {more} more"] if more > 0 else [])]


def _added(models: Sequence[ModelScores], role: str) -> Table:
    rows = []
    for model in models:
        drawn = {tag: rate for tag, rate in model.added[role].items() if rate.score.value > 0}
        rows.append((Cell(model.name), Cell(", ".join(_rated(drawn, lambda rate: -rate)) or "–")))
    note = "The share of the images that did not ask for a tag in which it was found."
    head = ("model", f"drawn without being asked, by {role} (share of images)")
    return Table(head, tuple(rows), "Drawn unasked", note)


def _rated(rates: Mapping[str, Rate], key: Callable[[float], float]) -> list[str]:
    """`blue hair 0.93 (0.81 to 1.00) of 12` for the first few tags, ordered by the key of their rate, then by name."""
    first = sorted(rates, key=lambda tag: (key(rates[tag].score.value), tag))[:_LISTED]
    scored = [(tag, *rates[tag]) for tag in first]
    return [
        f"{spoken(tag)} {score.value:.2f} ({score.low:.2f} to {score.high:.2f}) of {images}"
        for tag, score, images in scored
    ]


def _compared(scores: Sequence[Estimate], against: Sequence[Estimate | None] | None = None) -> list[Cell]:
    """A row's scores, the best three highlighted; `against`: each one's difference to the first."""
    best = best_three([score.value for score in scores])
    differences = against or [None] * len(scores)
    return [
        Cell(score=score, best=number in best, against=difference)
        for number, (score, difference) in enumerate(zip(scores, differences, strict=True))
    ]


def best_three(values: Sequence[float]) -> set[int]:
    """The places of the best three (fewer of few models), with ties; none if all are equal."""
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
