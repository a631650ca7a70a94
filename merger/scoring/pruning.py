"""Racing: a trial that is already clearly worse than the best one is not drawn to its end.

n  prompts drawn so far, of I in the set        parts [n]: a blend's value on each of them

After every `EVERY` prompts a trial is compared with the best so far, prompt by prompt, by Wilcoxon's signed-rank test
(the idea of Optuna's `WilcoxonPruner`). Prompts are in the order of their set, which was drawn at random, and the same
for all trials. What a stopped trial is worth is estimated from the pairs: the best value plus the mean difference. That
is enough for a sampler to turn away, and never makes it a candidate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmark.evaluate.runner import Evaluation, evaluate, tags_asked
from merger.scoring.objective import TAGGER, BlendObjective
from merger.search.space import Weights
from merger.search.trials import STOPPED_AFTER, Report, Score

EVERY = 16
"""Prompts between two looks, whatever the batch size: where a trial stops must not depend on that."""

LEVEL = 0.05
"""The chance, at each look, to stop a trial that is as good as the best; less for a better one."""

_EXACT = 20  # differences up to which all signs are counted; the normal distribution is near enough beyond


def hopeless(parts: Sequence[float], best: Sequence[float]) -> bool:
    """Whether `parts` [n] are worse than the first n of `best`, beyond chance: in the mean, and by the test."""
    away = np.asarray(parts, dtype=np.float64) - np.asarray(best[: len(parts)], dtype=np.float64)
    return bool(away.mean() < 0) and signed_rank(away.tolist()) < LEVEL


def signed_rank(differences: Sequence[float]) -> float:
    """The chance of differences as low as these if above and below 0 were alike: one-sided p, 1.0 for none.

    Wilcoxon (1945): ranks of the sizes, equal ones sharing the mean rank, zeros left out. Exact up to 20 differences,
    all of different size, else by the normal distribution, corrected for equal sizes and for steps.
    """
    away = np.asarray([difference for difference in differences if difference != 0], dtype=np.float64)
    count = len(away)
    if count == 0:
        return 1.0
    _, place, times = np.unique(np.abs(away), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(times) - (times - 1) / 2)[place]
    above = float(ranks[away > 0].sum())
    if count <= _EXACT and len(times) == count:
        ways = np.zeros(count * (count + 1) // 2 + 1)  # ways[s]: sets of ranks 1..n that add up to s
        ways[0] = 1
        for rank in range(1, count + 1):
            ways[rank:] = ways[rank:] + ways[: len(ways) - rank]
        return float(ways[: round(above) + 1].sum() / 2.0**count)
    mean = count * (count + 1) / 4
    variance = count * (count + 1) * (2 * count + 1) / 24 - float((times**3 - times).sum()) / 48
    return 0.5 * math.erfc(-(above + 0.5 - mean) / math.sqrt(2 * variance)) if variance > 0 else 1.0


def stopped(score: Score, best: Score) -> Score:
    """The score of a trial that was stopped after the prompts of `score`; `best` is what it was compared with."""
    drawn = len(score.per_prompt)
    away = np.asarray(score.per_prompt) - np.asarray(best.per_prompt[:drawn])
    attributes = {**score.attributes, STOPPED_AFTER: drawn}
    return replace(score, value=best.value + float(away.mean()), attributes=attributes)


@dataclass(frozen=True)
class Racer:
    """A blend's objective that gives up hopeless trials. See `trials.Race`."""

    objective: BlendObjective

    def __call__(self, weights: Weights, best: Score, report: Report | None = None) -> Score:
        """The score of the whole prompt set, or of the prompts drawn until it was hopeless."""
        world, metric = self.objective, self.objective.metric
        checksum = world.live.apply(weights)
        tags, parts = tags_asked(world.prompts), list[Evaluation]()
        for start in range(0, len(world.prompts), EVERY):

            def onward(images: int, value: float, before: int = start) -> None:
                if report is not None:
                    report(before + images, value)

            some = world.prompts[start : start + EVERY]
            found = evaluate(
                world.generator,
                {TAGGER: world.tagger},
                some,
                tags=tags,
                report=onward,
                threshold=metric.threshold,
            )
            parts.append(found)
            score = metric.score(_joined(parts), checksum)
            if start + EVERY < len(world.prompts) and hopeless(score.per_prompt, best.per_prompt):
                return stopped(score, best)
        return score


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
