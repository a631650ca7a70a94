"""What looks tell of a model beside its tags: each secondary score with its interval, and its paired difference. Pure.

I images of a model; E the width of a look's features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from benchmark.evaluate.runner import Evaluation
from benchmark.evaluate.scores import Bools, Estimate, Floats, Integers
from benchmark.metrics import image_metrics as metrics

CLIP, ENCODER, CLASSES, STYLE = "clip", "encoder", "classes", "style"  # roles of looks
CANDIDATES = 100  # prompts among which an image's own must be the nearest, for R-precision
STYLE_CAUTION = (
    "The style loss compares textures and colours and often misjudges style: never choose by it alone, and look at the "
    "pictures."
)
# Names of scores; those of an encoder are followed by ` by ` and its name.
DIVERSITY, INCEPTION, FRECHET, STYLE_LOSS = "diversity", "Inception Score", "Fréchet distance", "style loss"


@dataclass(frozen=True)
class Beside:
    """What images are compared with: `texts` [P, E], CLIP's embedding of each prompt by its index.

    `encoders`: what tables call each look that embeds images, by its role; `reference` [J, E]: the reference images as
    it sees them, by its role.
    """

    texts: Floats | None = None
    encoders: Mapping[str, str] = field(default_factory=dict)
    reference: Mapping[str, Floats] = field(default_factory=dict)

    @cached_property
    def distances(self) -> dict[str, Callable[[Floats], float]]:
        """The Frechet distance from the reference images, by the encoder's role."""
        return {role: metrics.frechet_from(seen) for role, seen in self.reference.items()}


@dataclass(frozen=True)
class Seen:
    """What looks tell of one model: `means[score]` [I], NaN where an image has none; `sets[score]` as `replicates`."""

    means: Mapping[str, Floats]
    sets: Mapping[str, Floats]


def see(done: Evaluation, beside: Beside) -> Seen:
    """Every secondary score that the looks allow. Broken images show nothing and are left out."""
    sets = {name: metrics.replicates(score, done.prompt_of) for name, score in _of_sets(done, beside).items()}
    return Seen(_per_image(done, beside), sets)


def secondary(mine: Seen, prompt_of: Integers, theirs: Seen | None = None) -> dict[str, Estimate]:
    """Every score by name, or its paired difference to another model's, which is over the images that both have."""
    found = {}
    for name, values in mine.means.items():
        bounded = name.startswith("R-precision") and theirs is None
        found[name] = metrics.mean_of(values - (theirs.means[name] if theirs else 0), prompt_of, bounded=bounded)
    for name, values in mine.sets.items():
        found[name] = metrics.from_replicates(values - (theirs.sets[name] if theirs else 0))
    return found


def _per_image(done: Evaluation, beside: Beside) -> dict[str, Floats]:
    """Scores that are means over images: name -> [I], NaN where an image has none."""
    rows = np.flatnonzero(~done.broken_images)
    prompt_of = done.prompt_of[rows]

    def spread(values: Floats) -> Floats:
        wide = np.full(len(done.prompts), np.nan)
        wide[rows] = values
        return wide

    scores = {}
    for role, encoder in _embedded(done, beside).items():
        scores[f"{DIVERSITY} by {encoder}"] = spread(metrics.distances(done.features[role][rows], prompt_of))
    if CLIP in done.features and beside.texts is not None:
        seen, texts = done.features[CLIP][rows], beside.texts
        scores["CLIP score"] = spread(metrics.clip_scores(seen, texts, prompt_of))
        name = f"R-precision of {min(len(texts), CANDIDATES)}"
        scores[name] = spread(metrics.nearest(seen, texts, prompt_of, candidates=CANDIDATES))
    if STYLE in done.features:
        scores[STYLE_LOSS] = spread(done.features[STYLE][rows].mean(axis=1))
    return scores


def _embedded(done: Evaluation, beside: Beside) -> dict[str, str]:
    """The encoders that saw the images: role -> what tables call it."""
    return {role: name for role, name in beside.encoders.items() if role in done.features}


def _of_sets(done: Evaluation, beside: Beside) -> dict[str, Callable[[Bools], float]]:
    """Scores of a whole set of images: name -> its value over the images [I] that are named."""
    whole = ~done.broken_images

    def over(features: Floats, score: Callable[[Floats], float]) -> Callable[[Bools], float]:
        def of(used: Bools) -> float:
            chosen = features[used & whole]
            return score(chosen) if len(chosen) > 1 else float("nan")

        return of

    scores = {}
    if CLASSES in done.features:
        scores[INCEPTION] = over(done.features[CLASSES], metrics.inception_score)
    for role, encoder in _embedded(done, beside).items():
        if role in beside.distances:
            scores[f"{FRECHET} by {encoder}"] = over(done.features[role], beside.distances[role])
    return scores
