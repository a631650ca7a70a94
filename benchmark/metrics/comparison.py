"""Evaluations of several models on the same prompts -> one set of figures a model. Pure.

Every score has its 95 % interval; every model but the first has its paired difference to the first, by each tagger. A
difference that only one tagger sees is marked: it may be that tagger's bias and no improvement.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

import numpy as np

from benchmark.evaluate import scores
from benchmark.evaluate.runner import Evaluation
from benchmark.evaluate.scores import Bools, Estimate, Floats, Integers, Rate, Tally
from benchmark.metrics.changes import Change, changes
from benchmark.metrics.secondary import References, feature_scores, secondary
from benchmark.prompts.vocabulary import normal_tag

ONE_TAGGER = "only one tagger sees it"
Tallies = Mapping[str, Mapping[str, Mapping[Any, Tally]]]  # of what -> tagger's role -> category and so on


@dataclass(frozen=True)
class ModelScores:
    """One model's figures. Keys of the outer mappings are taggers' roles, of the inner ones categories and so on.

    The first model has no differences. `tags`: how often each was found in images that asked for it; `added`: in images
    that did not; `tag_changes`: what was gained and lost against the first model.
    """

    name: str
    images: int
    broken: int
    broken_share: Estimate
    duplicates: int
    accuracy: Mapping[str, Estimate]
    probability: Mapping[str, Estimate]
    difference: Mapping[str, Estimate]
    note: str
    categories: Mapping[str, Mapping[str, Estimate]]
    by_count: Mapping[str, Mapping[int, Estimate]]
    by_position: Mapping[str, Mapping[int, Estimate]]
    category_difference: Mapping[str, Mapping[str, Estimate]]
    count_difference: Mapping[str, Mapping[int, Estimate]]
    position_difference: Mapping[str, Mapping[int, Estimate]]
    tags: Mapping[str, Mapping[str, Rate]]
    added: Mapping[str, Mapping[str, Rate]]
    tag_changes: Mapping[str, tuple[Change, ...]]
    added_per_image: Mapping[str, Estimate]
    metrics: Mapping[str, Estimate]
    metric_difference: Mapping[str, Estimate]


def compare(
    evaluations: Mapping[str, Evaluation],
    category_of: Callable[[str], str],
    thresholds: Mapping[str, float],
    references: References | None = None,
) -> tuple[ModelScores, ...]:
    """Score every model; the others are compared with the first.

    `thresholds`: role of each tagger -> where a tag counts as found; the first role is the main tagger.
    `references`: what features are compared with. Raises ValueError unless the models drew the same prompts.
    """
    references = references or References()
    measured = {name: feature_scores(evaluation, references) for name, evaluation in evaluations.items()}
    tallies = {name: _tallies(evaluation, category_of, thresholds) for name, evaluation in evaluations.items()}
    first = next(iter(evaluations))
    return tuple(
        _model(
            name,
            evaluation,
            thresholds,
            tallies[name],
            None if name == first else tallies[first],
            None if name == first else evaluations[first],
            secondary(measured[name], evaluation.prompt_of),
            {} if name == first else secondary(measured[name], evaluation.prompt_of, measured[first]),
        )
        for name, evaluation in evaluations.items()
    )


def _tallies(evaluation: Evaluation, category_of: Callable[[str], str], thresholds: Mapping[str, float]) -> Tallies:
    """Hits and tags asked for: of all tags, of each category, number of tags and place in the prompt."""
    category = np.array([category_of(tag) for tag in evaluation.tags])
    asked_about = set(category[evaluation.asked.any(axis=0)].tolist())
    counts, positions = evaluation.asked.sum(axis=1)[:, None], position_matrix(evaluation)
    masks: dict[str, dict[Any, Bools]] = {  # of [I, T], or of what numpy makes so large
        "all": {"": np.ones((1, 1), dtype=np.bool_)},
        "category": {key: (category == key)[None, :] for key in dict.fromkeys(category.tolist()) if key in asked_about},
        "count": {int(value): counts == value for value in np.unique(counts[counts > 0])},
        "position": {int(value): positions == value for value in np.unique(positions[positions > 0])},
    }
    found = {role: evaluation.found(role, threshold) for role, threshold in thresholds.items()}
    return {
        what: {
            role: {
                key: scores.tally(values, evaluation.asked & mask, evaluation.prompt_of) for key, mask in keyed.items()
            }
            for role, values in found.items()
        }
        for what, keyed in masks.items()
    }


def _model(
    name: str,
    evaluation: Evaluation,
    thresholds: Mapping[str, float],
    mine: Tallies,
    first: Tallies | None,
    against: Evaluation | None,
    metrics: Mapping[str, Estimate],
    metric_difference: Mapping[str, Estimate],
) -> ModelScores:
    found = {role: evaluation.found(role, threshold) for role, threshold in thresholds.items()}
    asked, prompt_of = evaluation.asked, evaluation.prompt_of

    def each(what: str) -> dict[str, dict[Any, Estimate]]:
        return {role: {key: scores.estimate(t) for key, t in keyed.items()} for role, keyed in mine[what].items()}

    def differences(what: str) -> dict[str, dict[Any, Estimate]]:
        if first is None:
            return {}
        return {
            role: {key: scores.paired_difference(t, first[what][role][key]) for key, t in keyed.items()}
            for role, keyed in mine[what].items()
        }

    difference = {role: keyed[""] for role, keyed in differences("all").items()}
    return ModelScores(
        name=name,
        images=len(evaluation.prompts),
        broken=evaluation.broken,
        broken_share=_share(evaluation.broken_images, prompt_of),
        duplicates=evaluation.duplicates,
        accuracy={role: keyed[""] for role, keyed in each("all").items()},
        probability={role: evaluation.mean_probability(role) for role in thresholds},
        difference=difference,
        note=_note(difference),
        categories=each("category"),
        by_count=each("count"),
        by_position=each("position"),
        category_difference=differences("category"),
        count_difference=differences("count"),
        position_difference=differences("position"),
        tags={role: scores.per_tag(found[role], asked, prompt_of, evaluation.tags) for role in thresholds},
        added={role: scores.per_tag(found[role], ~asked, prompt_of, evaluation.tags) for role in thresholds},
        tag_changes={}
        if against is None
        else {role: changes(evaluation, against, role, threshold) for role, threshold in thresholds.items()},
        added_per_image={role: _added_per_image(evaluation, found[role]) for role in thresholds},
        metrics=metrics,
        metric_difference=metric_difference,
    )


def position_matrix(evaluation: Evaluation) -> Integers:
    """int [I, T]: the place of each tag in its prompt, from 1; 0 if it was not asked for."""
    column = {normal_tag(tag): number for number, tag in enumerate(evaluation.tags)}
    positions = np.zeros(evaluation.asked.shape, dtype=np.int64)
    for row, prompt in enumerate(evaluation.prompts):
        for place, tag in enumerate(prompt.tags, start=1):
            positions[row, column[normal_tag(tag)]] = place
    return positions


def _share(which: Bools, prompt_of: Integers) -> Estimate:
    """The share of the images [I] for which `which` holds."""
    each = which[:, None]
    return scores.estimate(scores.tally(each.astype(np.float64), np.ones_like(each), prompt_of))


def _added_per_image(evaluation: Evaluation, found: Floats) -> Estimate:
    """The mean number of tags of the vocabulary found in an image that did not ask for them."""
    added = np.where(evaluation.asked, 0.0, found).sum(axis=1, keepdims=True)
    everything = np.ones_like(added, dtype=np.bool_)
    return scores.mean_value(added, everything, evaluation.prompt_of)


def _note(difference: Mapping[str, Estimate]) -> str:
    """`ONE_TAGGER` unless the taggers agree on whether there is a difference, and on its sign."""
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
