"""Evaluations of several models on the same prompts -> one set of figures a model. Pure.

Every score has its 95 % interval; every model but the first its paired difference to the first, by each tagger. A
difference that one tagger sees and the other does not is marked: it may be that tagger's taste and no improvement.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

import numpy as np

from benchmark import scores
from benchmark.prompts import normal_tag
from benchmark.runner import Evaluation
from benchmark.scores import Bools, Estimate, Floats, Integers
from benchmark.secondary import Beside, Seen, secondary, see

ONE_TAGGER = "only one tagger sees it"


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
    metric_difference: Mapping[str, Estimate]


def compare(
    evaluations: Mapping[str, Evaluation],
    category_of: Callable[[str], str],
    thresholds: Mapping[str, float],
    beside: Beside | None = None,
) -> tuple[ModelScores, ...]:
    """Score every model, the first of which is what the others are compared with.

    `thresholds`: role of each tagger -> where a tag counts as found; the first role is the main tagger.
    `beside`: what looks compare the images with. Raises ValueError where the models did not draw the same prompts.
    """
    beside = beside or Beside()
    reference = next(iter(evaluations.values()))
    seen = {name: see(evaluation, beside) for name, evaluation in evaluations.items()}
    first = next(iter(seen.values()))
    return tuple(
        _model(
            name, evaluation, None if evaluation is reference else reference, category_of, thresholds, seen[name], first
        )
        for name, evaluation in evaluations.items()
    )


def _model(
    name: str,
    evaluation: Evaluation,
    reference: Evaluation | None,
    category_of: Callable[[str], str],
    thresholds: Mapping[str, float],
    mine: Seen,
    first: Seen,
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
        metrics=secondary(mine, evaluation.prompt_of),
        metric_difference={} if reference is None else secondary(mine, evaluation.prompt_of, first),
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


def _note(difference: Mapping[str, Estimate]) -> str:
    """`ONE_TAGGER` where the taggers do not agree that there is a difference, and on its sign."""
    signs = {int(score.low > 0) - int(score.high < 0) for score in difference.values()}
    return ONE_TAGGER if len(signs) > 1 else ""


def as_json(models: Sequence[ModelScores]) -> list[dict[str, Any]]:
    """Plain values for JSON, a mapping a model."""
    return [plain(model) for model in models]


def plain(value: Any) -> Any:
    """Dataclasses, mappings and sequences as JSON has them; NaN, which JSON has not, is None."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
