"""Weights -> live blend -> benchmark -> score: here the two packages meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from benchmark.evaluate import scores
from benchmark.evaluate.runner import Evaluation, evaluate
from benchmark.evaluate.scores import Estimate, Floats
from benchmark.features.extractor import FeatureExtractor
from benchmark.pipelines.generation import ImageGenerator
from benchmark.prompts.prompt_set import Prompt
from benchmark.taggers.tagger import Tagger
from merger.search.trials import BELOW_FLOOR, Report, Score
from merger.weights import Weights

TAGGER, JUDGE = "tagger", "judge"
"""The roles of taggers in evaluations: the one that a search follows, and the one that it never sees."""


class Live(Protocol):
    """A denoiser that can become any blend; `merger.blend.live.LiveDenoiser` is one."""

    def apply(self, weights: Weights) -> str:
        """Turns it into the blend and returns a checksum of its weights."""


@dataclass(frozen=True)
class Metric:
    """How an evaluation becomes a score.

    kind: `accuracy` (recall of the tags asked for), `probability` or `log_probability`. threshold: the probability from
    which a tag is found. category_of: a tag's category.
    """

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
            asked=tuple(int(count) for count in evaluation.tally(TAGGER).asked),
        )

    def value(self, evaluation: Evaluation) -> tuple[Estimate, Floats]:
        """(what the search maximizes, the part of each prompt in it [C])."""
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
    """A blend's score on one prompt set by the search's tagger. See `merger.search.trials.Objective`.

    broken: the floors that an evaluation on all of the prompts breaks, {name: by how much}; None without floors.
    """

    live: Live
    generator: ImageGenerator
    tagger: Tagger
    prompts: Sequence[Prompt]
    metric: Metric
    broken: Callable[[Evaluation], Mapping[str, float]] | None = None

    def __call__(self, weights: Weights, report: Report | None = None) -> Score:
        """Blends, generates, tags. Raises `BlendNotApplied` if the live weights are not the blend."""
        checksum = self.live.apply(weights)
        evaluation = evaluate(
            self.generator, {TAGGER: self.tagger}, self.prompts, report=report, threshold=self.metric.threshold
        )
        return self.score(evaluation, checksum)

    def score(self, evaluation: Evaluation, checksum: str) -> Score:
        """The score of an evaluation on all of the prompts, with the floors that it breaks (`BELOW_FLOOR`)."""
        score = self.metric.score(evaluation, checksum)
        if self.broken is None:
            return score
        rounded = {name: round(below, 6) for name, below in self.broken(evaluation).items()}
        return replace(score, attributes={**score.attributes, BELOW_FLOOR: rounded})


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
    """Evaluates one blend on `prompts` by every tagger, with the features that `extractors` find, by name."""
    live.apply(weights)
    return evaluate(generator, taggers, prompts, report=report, keep_images=keep_images, extractors=extractors)


def _known(stderr: float) -> float:
    """A standard error; infinite if it is unknown (one prompt), so that no improvement is larger than it."""
    return float("inf") if np.isnan(stderr) else stderr
