"""Pruning: a trial that is clearly worse than the best one gets no more images.

After every `EVERY` prompts a trial is compared with the best so far, prompt by prompt, by Wilcoxon's signed-rank test
(the idea of Optuna's `WilcoxonPruner`). All trials have the same prompts in the same order, which is random. The value
of a pruned trial is estimated from the pairs: the best value plus the paired difference. That is enough for a sampler
to turn away, and never makes the trial a candidate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from benchmark.evaluate.runner import Evaluation, evaluate, tags_asked
from merger.scoring.objective import TAGGER, BlendObjective
from merger.search.trials import PRUNED_AFTER, PrunedObjective, Report, Score, paired
from merger.weights import Weights

EVERY = 16
"""Prompts between two comparisons, whatever the batch size: what is pruned must not depend on that."""

LEVEL = 0.05
"""The chance, at each comparison, to prune a trial that is as good as the best; less for a better one."""


def pruned(objective: BlendObjective) -> PrunedObjective:
    """`objective`, for trials that may be pruned."""
    return partial(_score, objective)


def hopeless(parts: Sequence[float], best: Sequence[float]) -> bool:
    """Whether `parts` [n] are worse than the first n of `best`: in the mean, and beyond chance by the test."""
    away = np.asarray(parts, dtype=np.float64) - np.asarray(best[: len(parts)], dtype=np.float64)
    if not away.mean() < 0:
        return False
    from scipy.stats import wilcoxon

    return bool(wilcoxon(away, alternative="less", correction=True).pvalue < LEVEL)


def estimated(score: Score, best: Score) -> Score:
    """The score of a trial that was pruned after the prompts of `score`; `best` is what it was compared with."""
    attributes = {**score.attributes, PRUNED_AFTER: len(score.per_prompt)}
    return replace(score, value=best.value + paired(score, best).value, attributes=attributes)


def _score(objective: BlendObjective, weights: Weights, best: Score, report: Report | None = None) -> Score:
    checksum = objective.live.apply(weights)
    tags, parts = tags_asked(objective.prompts), list[Evaluation]()
    for start in range(0, len(objective.prompts), EVERY):
        so_far = None if report is None else lambda images, value, before=start: report(before + images, value)
        some = objective.prompts[start : start + EVERY]
        threshold = objective.metric.threshold
        generator, taggers = objective.generator, {TAGGER: objective.tagger}
        parts.append(evaluate(generator, taggers, some, tags=tags, report=so_far, threshold=threshold))
        if start + EVERY < len(objective.prompts):
            score = objective.metric.score(_joined(parts), checksum)
            if hopeless(score.per_prompt, best.per_prompt):
                return estimated(score, best)
    return objective.score(_joined(parts), checksum)


def _joined(parts: Sequence[Evaluation]) -> Evaluation:
    """Evaluations of consecutive prompts as one."""
    return Evaluation(
        prompts=tuple(prompt for part in parts for prompt in part.prompts),
        tags=parts[0].tags,
        probabilities={TAGGER: np.concatenate([part.probabilities[TAGGER] for part in parts])},
        broken_images=np.concatenate([part.broken_images for part in parts]),
        digests=np.concatenate([part.digests for part in parts]),
        seconds=math.fsum(part.seconds for part in parts),
    )
