"""Weights -> live blend -> benchmark -> score: the one place that joins the two packages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from benchmark.evaluate import scores
from benchmark.evaluate.runner import Evaluation, evaluate
from benchmark.evaluate.scores import Estimate, Floats
from benchmark.features.extractor import FeatureExtractor
from benchmark.pipelines.generation import ImageGenerator
from benchmark.prompts.prompt_set import Prompt
from benchmark.taggers.tagger import Tagger
from merger.search.space import Weights
from merger.search.trials import Report, Score

TAGGER, JUDGE = "tagger", "judge"
"""What evaluations call the tagger that a search follows, and the one it never sees."""


class Live(Protocol):
    """A denoiser that can be made any blend; `merger.blend.live.LiveDenoiser` is one."""

    def apply(self, weights: Weights) -> str:
        """Makes it the blend and returns a checksum of what it then holds."""


@dataclass(frozen=True)
class Metric:
    """How an evaluation becomes a score: which kind of value, from which threshold on, in which categories."""

    kind: str
    threshold: float
    category_of: Callable[[str], str]

    def score(self, evaluation: Evaluation, checksum: str = "") -> Score:
        """The score of one evaluation by the search's tagger."""
        accuracy = evaluation.accuracy(TAGGER, self.threshold)
        value, parts = self.value(evaluation)
        categories = evaluation.per_category(TAGGER, self.category_of, self.threshold)
        return Score(
            value=value.value,
            stderr=_known(value.stderr),
            accuracy=accuracy.value,
            accuracy_stderr=_known(accuracy.stderr),
            probability=evaluation.mean_probability(TAGGER).value,
            categories={name: estimate.value for name, estimate in categories.items()},
            per_prompt=tuple(round(float(part), 6) for part in parts),
            images=len(evaluation.prompts),
            seconds=evaluation.seconds,
            checksum=checksum,
            attributes={"broken": evaluation.broken},
        )

    def value(self, evaluation: Evaluation) -> tuple[Estimate, Floats]:
        """(what the search raises, its part of each prompt [C])."""
        if self.kind == "accuracy":
            return evaluation.accuracy(TAGGER, self.threshold), evaluation.per_prompt(TAGGER, self.threshold)
        values = evaluation.probabilities[TAGGER].astype(np.float64)
        estimate = evaluation.mean_probability(TAGGER)
        if self.kind == "log_probability":
            values = np.log(np.maximum(values, scores.PROBABILITY_FLOOR))
            estimate = evaluation.mean_log_probability(TAGGER)
        parts = scores.per_prompt(scores.tally(values, evaluation.asked, evaluation.prompt_of))
        return estimate, parts


@dataclass(frozen=True)
class BlendObjective:
    """A blend's score on one prompt set, by the search's tagger alone. See `trials.Objective`."""

    live: Live
    generator: ImageGenerator
    tagger: Tagger
    prompts: Sequence[Prompt]
    metric: Metric

    def __call__(self, weights: Weights, report: Report | None = None) -> Score:
        """Blends, draws, tags. Raises `BlendNotApplied` where the live weights are not what was asked for."""
        checksum = self.live.apply(weights)
        evaluation = evaluate(
            self.generator, {TAGGER: self.tagger}, self.prompts, report=report, threshold=self.metric.threshold
        )
        return self.metric.score(evaluation, checksum)


def evaluate_blend(
    live: Live,
    generator: ImageGenerator,
    taggers: Mapping[str, Tagger],
    prompts: Sequence[Prompt],
    weights: Weights,
    *,
    report: Report | None = None,
    keep_images: int = 0,
    extractors: Mapping[str, FeatureExtractor] | None = None,
) -> Evaluation:
    """One blend's images on `prompts` with every tagger's probabilities, and the features of `extractors`."""
    live.apply(weights)
    return evaluate(generator, taggers, prompts, report=report, keep_images=keep_images, extractors=extractors)


def _known(stderr: float) -> float:
    """A standard error that nothing is known of (one prompt) as infinite: no rise is beyond it."""
    return float("inf") if np.isnan(stderr) else stderr
