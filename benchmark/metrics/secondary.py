"""The metrics that features give of a model: each with its interval, and its paired difference to another model. Pure.

I images of a model; E the width of an extractor's features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from benchmark.evaluate.runner import Evaluation
from benchmark.evaluate.scores import Bools, Estimate, Floats, Integers
from benchmark.metrics import image_metrics as metrics

CLIP, ENCODER, CLASSES, STYLE = "clip", "encoder", "classes", "style"  # roles of extractors
CANDIDATES = 100  # prompts among which an image's own must be the nearest, for R-precision
STYLE_CAUTION = (
    "The style loss compares textures and colours and often misjudges style: never choose by it alone, and look at the "
    "pictures."
)
# Names of scores; those of an encoder are followed by ` by ` and its name.
DIVERSITY, INCEPTION, FRECHET, STYLE_LOSS = "diversity", "Inception Score", "Fréchet distance", "style loss"


@dataclass(frozen=True)
class References:
    """What the features of images are compared with.

    `texts` [P, E]: CLIP's embedding of each prompt, by its index. `encoders`: the name in tables of each extractor that
    embeds images, by role. `images[role]` [J, E]: its features of the reference images.
    """

    texts: Floats | None = None
    encoders: Mapping[str, str] = field(default_factory=dict)
    images: Mapping[str, Floats] = field(default_factory=dict)

    @cached_property
    def distances(self) -> dict[str, Callable[[Floats], float]]:
        """The Frechet distance from the reference images, by the encoder's role."""
        return {role: metrics.frechet_from(features) for role, features in self.images.items()}


@dataclass(frozen=True)
class FeatureScores:
    """One model's metrics: `means[name]` [I], NaN for an image without one; `sets[name]` as `replicates` gives them."""

    means: Mapping[str, Floats]
    sets: Mapping[str, Floats]


def feature_scores(done: Evaluation, references: References) -> FeatureScores:
    """Every metric that the evaluation's features allow. Broken images are left out."""
    sets = {name: metrics.replicates(score, done.prompt_of) for name, score in _of_sets(done, references).items()}
    return FeatureScores(_per_image(done, references), sets)


def secondary(mine: FeatureScores, prompt_of: Integers, theirs: FeatureScores | None = None) -> dict[str, Estimate]:
    """Every metric by name; with `theirs`, its paired difference to another model's, over the images of both."""
    found = {}
    for name, values in mine.means.items():
        bounded = name.startswith("R-precision") and theirs is None
        found[name] = metrics.mean_of(values - (theirs.means[name] if theirs else 0), prompt_of, bounded=bounded)
    for name, values in mine.sets.items():
        found[name] = metrics.from_replicates(values - (theirs.sets[name] if theirs else 0))
    return found


def _per_image(done: Evaluation, references: References) -> dict[str, Floats]:
    """Metrics that are means over images: name -> [I], NaN for an image without one."""
    rows = np.flatnonzero(~done.broken_images)
    prompt_of = done.prompt_of[rows]

    def spread(values: Floats) -> Floats:
        wide = np.full(len(done.prompts), np.nan)
        wide[rows] = values
        return wide

    scores = {}
    for role, encoder in _embedded(done, references).items():
        scores[f"{DIVERSITY} by {encoder}"] = spread(metrics.distances(done.features[role][rows], prompt_of))
    if CLIP in done.features and references.texts is not None:
        clip, texts = done.features[CLIP][rows], references.texts
        scores["CLIP score"] = spread(metrics.clip_scores(clip, texts, prompt_of))
        name = f"R-precision of {min(len(texts), CANDIDATES)}"
        scores[name] = spread(metrics.nearest(clip, texts, prompt_of, candidates=CANDIDATES))
    if STYLE in done.features:
        scores[STYLE_LOSS] = spread(done.features[STYLE][rows].mean(axis=1))
    return scores


def _embedded(done: Evaluation, references: References) -> dict[str, str]:
    """The encoders whose features there are: role -> name in tables."""
    return {role: name for role, name in references.encoders.items() if role in done.features}


def _of_sets(done: Evaluation, references: References) -> dict[str, Callable[[Bools], float]]:
    """Metrics of a whole set of images: name -> its value over the images [I] that are to be used."""
    whole = ~done.broken_images

    def over(features: Floats, score: Callable[[Floats], float]) -> Callable[[Bools], float]:
        def of(used: Bools) -> float:
            chosen = features[used & whole]
            return score(chosen) if len(chosen) > 1 else float("nan")

        return of

    scores = {}
    if CLASSES in done.features:
        scores[INCEPTION] = over(done.features[CLASSES], metrics.inception_score)
    for role, encoder in _embedded(done, references).items():
        if role in references.distances:
            scores[f"{FRECHET} by {encoder}"] = over(done.features[role], references.distances[role])
    return scores
