"""Evaluations of several models on the same prompts -> comparisons, as plain values and as Markdown. Pure.

Every score has its 95 % interval; every model but the first its paired difference to the first, by each tagger. A
difference that one tagger sees and the other does not is marked: it may be that tagger's taste and no improvement.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmark import metrics, scores
from benchmark.prompts import normal_tag, spoken
from benchmark.runner import Evaluation
from benchmark.scores import Bools, Estimate, Floats, Integers

ONE_TAGGER = "only one tagger sees it"
CANDIDATES = 100  # prompts among which an image's own must be the nearest, for R-precision
_LISTED = 5  # tags named as most and least reliable, and as drawn without being asked for


@dataclass(frozen=True)
class ModelScores:
    """One model's figures. Keys of the outer mappings are taggers' roles, of the inner ones categories and so on."""

    name: str
    images: int
    broken: int
    duplicates: int
    accuracy: Mapping[str, Estimate]
    probability: Mapping[str, Estimate]
    difference: Mapping[str, Estimate]
    note: str
    categories: Mapping[str, Mapping[str, Estimate]]
    by_count: Mapping[str, Mapping[int, Estimate]]
    by_position: Mapping[str, Mapping[int, Estimate]]
    tags: Mapping[str, tuple[float, int]]
    added: Mapping[str, tuple[float, int]]
    added_per_image: Estimate
    metrics: Mapping[str, Estimate]


def compare(
    evaluations: Mapping[str, Evaluation],
    category_of: Callable[[str], str],
    thresholds: Mapping[str, float],
    texts: Floats | None = None,
) -> tuple[ModelScores, ...]:
    """Score every model, the first of which is what the others are compared with.

    `thresholds`: role of each tagger -> where a tag counts as found; the first role is the main tagger.
    `texts` [P, E]: the embedding of each prompt by its index, where an encoder looked at the images. Raises ValueError
    where the models did not draw the same prompts.
    """
    reference = next(iter(evaluations.values()))
    return tuple(
        _model(name, evaluation, None if evaluation is reference else reference, category_of, thresholds, texts)
        for name, evaluation in evaluations.items()
    )


def _model(
    name: str,
    evaluation: Evaluation,
    reference: Evaluation | None,
    category_of: Callable[[str], str],
    thresholds: Mapping[str, float],
    texts: Floats | None,
) -> ModelScores:
    main = next(iter(thresholds))
    found = {role: evaluation.found(role, threshold) for role, threshold in thresholds.items()}
    counts = evaluation.asked.sum(axis=1)
    positions = position_matrix(evaluation)
    difference = {}
    if reference is not None:
        for role, threshold in thresholds.items():
            difference[role] = scores.paired_difference(
                evaluation.tally(role, threshold), reference.tally(role, threshold)
            )

    def where(mask: Bools, role: str) -> Estimate:
        return scores.estimate(scores.tally(found[role], evaluation.asked & mask, evaluation.prompt_of))

    def each(values: Integers, masks: Callable[[int], Bools]) -> dict[str, dict[int, Estimate]]:
        present = [int(v) for v in np.unique(values[values > 0])]
        return {role: {value: where(masks(value), role) for value in present} for role in thresholds}

    return ModelScores(
        name=name,
        images=len(evaluation.prompts),
        broken=evaluation.broken,
        duplicates=duplicates(evaluation),
        accuracy={role: evaluation.accuracy(role, threshold) for role, threshold in thresholds.items()},
        probability={role: evaluation.mean_probability(role) for role in thresholds},
        difference=difference,
        note=_note(difference),
        categories={
            role: evaluation.per_category(role, category_of, threshold) for role, threshold in thresholds.items()
        },
        by_count=each(counts, lambda count: np.broadcast_to((counts == count)[:, None], evaluation.asked.shape)),
        by_position=each(positions, lambda position: positions == position),
        tags=scores.per_tag(found[main], evaluation.asked, evaluation.tags),
        added=scores.per_tag(found[main], ~evaluation.asked, evaluation.tags),
        added_per_image=_added_per_image(evaluation, found[main]),
        metrics=_metrics(evaluation, texts),
    )


def position_matrix(evaluation: Evaluation) -> Integers:
    """int [I, T]: the place of each tag in its prompt, from 1; 0 where it was not asked for."""
    column = {normal_tag(tag): number for number, tag in enumerate(evaluation.tags)}
    positions = np.zeros(evaluation.asked.shape, dtype=np.int64)
    for row, prompt in enumerate(evaluation.prompts):
        for place, tag in enumerate(prompt.tags, start=1):
            positions[row, column[normal_tag(tag)]] = place
    return positions


def duplicates(evaluation: Evaluation) -> int:
    """How many images repeat the image of another prompt, pixel by pixel; broken ones are counted apart."""
    first: dict[int, int] = {}
    repeated = 0
    for row in np.flatnonzero(~evaluation.broken_images):
        prompt = int(evaluation.prompt_of[row])
        repeated += first.setdefault(int(evaluation.digests[row]), prompt) != prompt
    return repeated


def _added_per_image(evaluation: Evaluation, found: Floats) -> Estimate:
    """Tags of the vocabulary found in an image that did not ask for them."""
    added = np.where(evaluation.asked, 0.0, found).sum(axis=1, keepdims=True)
    everything = np.ones_like(added, dtype=np.bool_)
    return scores.mean_value(added, everything, evaluation.prompt_of)


def _metrics(evaluation: Evaluation, texts: Floats | None) -> dict[str, Estimate]:
    """What an encoder's embeddings tell; empty without. Broken images show nothing and are left out."""
    if evaluation.embeddings is None or texts is None:
        return {}
    whole = ~evaluation.broken_images
    embeddings, prompt_of = evaluation.embeddings[whole], evaluation.prompt_of[whole]
    return {
        "diversity": metrics.diversity(embeddings, prompt_of),
        "CLIP score": metrics.clip_score(embeddings, texts, prompt_of),
        f"R-precision of {min(len(texts), CANDIDATES)}": metrics.r_precision(
            embeddings, texts, prompt_of, candidates=CANDIDATES
        ),
    }


def _note(difference: Mapping[str, Estimate]) -> str:
    """`ONE_TAGGER` where the taggers do not agree that there is a difference, and on its sign."""
    signs = {int(score.low > 0) - int(score.high < 0) for score in difference.values()}
    return ONE_TAGGER if len(signs) > 1 else ""


def as_json(models: Sequence[ModelScores]) -> list[dict[str, Any]]:
    """Plain values for JSON; NaN, which JSON has not, is null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): plain(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [plain(inner) for inner in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    return [plain(asdict(model)) for model in models]


def as_markdown(models: Sequence[ModelScores]) -> str:
    """Every table, one below the other."""
    sections = [_overall(models), _by_key(models, "category", lambda m: m.categories)]
    if any(len(next(iter(model.by_count.values()))) > 1 for model in models):
        sections.append(_by_key(models, "tags in the prompt", lambda m: m.by_count))
    if any(len(next(iter(model.by_position.values()))) > 1 for model in models):
        sections.append(_by_key(models, "place in the prompt", lambda m: m.by_position))
    if models[0].metrics:
        sections.append(_embedded(models))
    sections += [_reliability(models), _added(models)]
    return "\n\n".join(sections) + "\n"


def interval(score: Estimate, *, signed: bool = False) -> str:
    """`0.812 [0.790, 0.833]`."""
    if math.isnan(score.value):
        return "–"
    sign = "+" if signed else ""
    if math.isnan(score.low):
        return f"{score.value:{sign}.3f}"
    return f"{score.value:{sign}.3f} [{score.low:{sign}.3f}, {score.high:{sign}.3f}]"


def _overall(models: Sequence[ModelScores]) -> str:
    roles = list(models[0].accuracy)
    compared = len(models) > 1
    head = ["model", *(f"accuracy by {role}" for role in roles), f"mean probability by {roles[0]}"]
    if compared:
        head += [f"against {models[0].name} by {role}" for role in roles]
    head += ["added tags an image", "broken"]
    bold = {role: _best([model.accuracy[role].value for model in models]) for role in roles}
    lines = []
    for number, model in enumerate(models):
        line = [_cell(model.name)]
        line += [_bold(interval(model.accuracy[role]), number in bold[role]) for role in roles]
        line.append(interval(model.probability[roles[0]]))
        if compared:
            line += [interval(model.difference[r], signed=True) if r in model.difference else "" for r in roles]
            if model.note:
                line[-1] += f" ({model.note})"
        broken = f"{model.broken} of {model.images}"
        line += [interval(model.added_per_image), f"{broken}, {model.duplicates} alike" if model.duplicates else broken]
        lines.append(line)
    return _table(head, lines)


def _by_key(
    models: Sequence[ModelScores], what: str, of: Callable[[ModelScores], Mapping[str, Mapping[Any, Estimate]]]
) -> str:
    """One table a tagger: rows are categories (or counts, or places), columns models, the best three bold."""
    tables = []
    for role in models[0].accuracy:
        lines = []
        for key in of(models[0])[role]:
            cells = [of(model)[role][key] for model in models]
            best = _best([cell.value for cell in cells])
            lines.append([_cell(str(key)), *(_bold(interval(cell), n in best) for n, cell in enumerate(cells))])
        cells = [model.accuracy[role] for model in models]
        best = _best([cell.value for cell in cells])
        lines.append(["overall", *(_bold(interval(cell), n in best) for n, cell in enumerate(cells))])
        tables.append(_table([f"{what}, by {role}", *(_cell(model.name) for model in models)], lines))
    return "\n\n".join(tables)


def _embedded(models: Sequence[ModelScores]) -> str:
    names = list(models[0].metrics)
    lines = []
    for model in models:
        lines.append([_cell(model.name), *(interval(model.metrics[name]) for name in names)])
    return _table(["model", *names], lines)


def _reliability(models: Sequence[ModelScores]) -> str:
    lines = []
    for model in models:
        best = _rated(model.tags, lambda rate: -rate)[:_LISTED]
        worst = _rated(model.tags, lambda rate: rate)[:_LISTED]
        lines.append([_cell(model.name), ", ".join(best), ", ".join(worst)])
    return _table(["model", "most reliable tags", "least reliable tags"], lines)


def _added(models: Sequence[ModelScores]) -> str:
    lines = []
    for model in models:
        drawn = {tag: rate for tag, rate in model.added.items() if rate[0] > 0}
        lines.append([_cell(model.name), ", ".join(_rated(drawn, lambda rate: -rate)[:_LISTED]) or "–"])
    return _table(["model", "drawn without being asked (share of images)"], lines)


def _rated(rates: Mapping[str, tuple[float, int]], key: Callable[[float], float]) -> list[str]:
    """`blue hair 0.93` for each tag, ordered by the key of its rate, then by name."""
    return [f"{_cell(spoken(tag))} {rates[tag][0]:.2f}" for tag in sorted(rates, key=lambda t: (key(rates[t][0]), t))]


def _best(values: Sequence[float]) -> set[int]:
    """The places of the best three (fewer of few models), with ties; none where all are equal."""
    order = sorted((value for value in values if not math.isnan(value)), reverse=True)
    if not order or order[0] == order[-1]:
        return set()
    limit = order[min(3, len(order) - 1) - 1]
    return {number for number, value in enumerate(values) if value >= limit}


def _bold(text: str, yes: bool) -> str:
    return f"**{text}**" if yes else text


def _cell(text: str) -> str:
    """Text that cannot end its cell, nor be read as Markdown or HTML."""
    text = re.sub(r"([\\|*`\[\]]|\b_|_\b|(?<=\W)_)", r"\\\1", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("\n", " ")


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [list(head), *map(list, lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    text.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(text)
