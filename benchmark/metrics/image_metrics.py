"""The secondary metrics: what tag accuracy does not measure. Pure; features are extracted elsewhere.

I  images, of P prompts            embeddings: [I, E] of images, texts: [P, E] of prompts (any length, any scale)
K  classes of a classifier         prompt_of: int [I]  the row of `texts` each image was drawn for
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmark.evaluate import scores
from benchmark.evaluate.scores import LEVEL, Bools, Estimate, Floats, Integers

GROUPS = 10  # of prompts, for the intervals of scores that are no means


def distances(embeddings: Floats, prompt_of: Integers) -> Floats:
    """[I]: 1 - the cosine similarity of each image to the one before it; NaN for the first of a prompt.

    Their mean is the diversity: 0 if the images of a prompt are all alike.
    """
    unit = _unit(embeddings)
    values = np.full(len(unit), np.nan)
    second = np.flatnonzero(prompt_of[1:] == prompt_of[:-1]) + 1
    values[second] = 1.0 - (unit[second - 1] * unit[second]).sum(axis=1)
    return values


def clip_scores(embeddings: Floats, texts: Floats, prompt_of: Integers) -> Floats:
    """[I]: 100 x the cosine similarity of image and prompt, at least 0 (Hessel et al. 2021; here the scale is 100)."""
    similarity = (_unit(embeddings) * _unit(texts)[prompt_of]).sum(axis=1)
    return np.asarray(100.0 * np.maximum(similarity, 0.0))


def nearest(embeddings: Floats, texts: Floats, prompt_of: Integers, *, candidates: int = 100, seed: int = 0) -> Floats:
    """[I]: 1.0 if an image is nearer to its own prompt than to `candidates` - 1 others, else 0.0. A tie is 0.0.

    Their mean is the R-precision (Xu et al. 2018, R = 1). The others are drawn at random for each image, from `seed`;
    all are used if there are fewer.
    """
    similarity = _unit(embeddings) @ _unit(texts).T
    own = similarity[np.arange(len(embeddings)), prompt_of]
    draw, others = np.random.default_rng(seed), min(candidates, len(texts)) - 1
    hits = np.ones(len(embeddings))
    for start in range(0, len(embeddings) if others else 0, 1000):
        rows = slice(start, start + 1000)
        order = draw.random(similarity[rows].shape)
        order[np.arange(len(order)), prompt_of[rows]] = 2.0  # behind all others, so never chosen
        chosen = np.argpartition(order, others - 1, axis=1)[:, :others]
        hits[rows] = own[rows] > np.take_along_axis(similarity[rows], chosen, axis=1).max(axis=1)
    return hits


def mean_of(values: Floats, prompt_of: Integers, *, bounded: bool = False) -> Estimate:
    """The mean of values [I] that are not NaN, clustered by prompt. `bounded`: they lie in 0..1."""
    there = ~np.isnan(values)[:, None]
    if bounded:
        return scores.estimate(scores.tally(values[:, None], there, prompt_of))
    return scores.mean_value(values[:, None], there, prompt_of)


def inception_score(probabilities: Floats) -> float:
    """exp of the mean Kullback-Leibler divergence of each image's classes [I, K] from those of all images.

    Salimans et al. 2016. Rows sum to 1. It is 1 if every image has the same classes, K if all are certain and evenly
    spread.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    return float(np.exp(_information(p) / len(p) - _information(p.mean(axis=0))))


def _information(p: Floats) -> float:
    """The sum of p log p, which is 0 for a p of 0."""
    return float(np.vdot(p, np.log(np.where(p > 0, p, 1.0))))


def frechet_from(a: Floats) -> Callable[[Floats], float]:
    """The Frechet distance from a set of features [I, E] to any other [J, E], each taken as a Gaussian (FID's formula).

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)), with unbiased covariances A and B (Heusel et al. 2017). The trace
    of the root is the sum of the roots of the eigenvalues of A^(1/2) B A^(1/2), which is symmetric; A's root is
    computed once for all sets. The distance is biased upwards for small sets: compare sets of one size only. Raises
    ValueError for sets of fewer than two.
    """
    if len(a) < 2:
        raise ValueError(f"a Frechet distance needs two images or more on each side, not {len(a)}")
    mean, first = _gaussian(a)
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T

    def distance(b: Floats) -> float:
        if len(b) < 2:
            raise ValueError(f"a Frechet distance needs two images or more on each side, not {len(b)}")
        other, second = _gaussian(b)
        product = np.linalg.eigvalsh(root @ second @ root)
        apart = ((mean - other) ** 2).sum() + np.trace(first) + np.trace(second)
        return float(apart - 2 * np.sqrt(np.clip(product, 0, None)).sum())

    return distance


def replicates(statistic: Callable[[Bools], float], prompt_of: Integers) -> Floats:
    """[1 + groups]: a statistic of all images, then of those without one group of prompts after another.

    `statistic` is given which of the I images to use, [I]. There are `GROUPS` groups, fewer for fewer prompts, and none
    below four.
    """
    prompts, position = np.unique(np.asarray(prompt_of), return_inverse=True)
    groups = min(GROUPS, len(prompts))
    used = [np.ones(len(position), dtype=np.bool_), *(position % groups != group for group in range(groups))]
    return np.array([statistic(which) for which in (used if groups >= 4 else used[:1])])


def from_replicates(values: Floats) -> Estimate:
    """The jackknife estimate from `replicates`, or from the difference of two statistics' replicates.

    Error and interval are NaN without groups. The interval is Student's (Efron and Tibshirani, An Introduction to the
    Bootstrap, ch. 11). The bootstrap is not suitable: sets drawn with repeats are narrower, which these statistics take
    for a worse model.
    """
    from scipy.stats import t as student

    value, left, groups = float(values[0]), values[1:], len(values) - 1
    if not groups:
        return Estimate(value, float("nan"), float("nan"), float("nan"))
    stderr = float(np.sqrt((groups - 1) * np.var(left)))
    half = float(student.ppf((1 + LEVEL) / 2, groups - 1)) * stderr
    return Estimate(value, stderr, value - half, value + half)


def _gaussian(features: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean [E] and unbiased covariance [E, E] of features [I, E]."""
    wide = np.asarray(features, dtype=np.float64)
    return wide.mean(axis=0), np.atleast_2d(np.cov(wide, rowvar=False))


def _unit(vectors: NDArray[Any]) -> NDArray[np.float64]:
    """Rows scaled to length 1, float64; a row of zeros stays."""
    wide = np.asarray(vectors, dtype=np.float64)
    length = np.linalg.norm(wide, axis=-1, keepdims=True)
    return np.asarray(wide / np.where(length > 0, length, 1.0))
