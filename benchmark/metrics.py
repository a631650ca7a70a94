"""The secondary metrics: what tag accuracy does not see. Pure numpy; the networks that embed are elsewhere.

I  images, of P prompts            embeddings: [I, E] of images, texts: [P, E] of prompts (any length, any scale)
K  classes of a classifier         prompt_of: int [I]  the row of `texts` each image was drawn for
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmark import scores
from benchmark.scores import Estimate, Floats, Integers


def diversity(embeddings: Floats, prompt_of: Integers) -> Estimate:
    """1 - the mean cosine similarity of consecutive images of one prompt: 0 where all are alike.

    NaN where no prompt has two images.
    """
    unit = _unit(embeddings)
    pairs = np.flatnonzero(prompt_of[1:] == prompt_of[:-1])
    distance = 1.0 - (unit[pairs] * unit[pairs + 1]).sum(axis=1)
    return scores.mean_value(distance[:, None], np.ones((len(pairs), 1), dtype=np.bool_), prompt_of[pairs])


def clip_score(embeddings: Floats, texts: Floats, prompt_of: Integers) -> Estimate:
    """The mean of 100 x the cosine similarity of image and prompt, not below 0 (Hessel et al. 2021; scale of 100)."""
    similarity = (_unit(embeddings) * _unit(texts)[prompt_of]).sum(axis=1)
    values = 100.0 * np.maximum(similarity, 0.0)
    return scores.mean_value(values[:, None], np.ones((len(values), 1), dtype=np.bool_), prompt_of)


def r_precision(
    embeddings: Floats, texts: Floats, prompt_of: Integers, *, candidates: int = 100, seed: int = 0
) -> Estimate:
    """How often an image is nearer to its own prompt than to `candidates` - 1 other ones (Xu et al. 2018, R = 1).

    The others are drawn at random for each image, from `seed`; all of them where there are fewer. A tie is a miss.
    """
    similarity = _unit(embeddings) @ _unit(texts).T
    own = similarity[np.arange(len(embeddings)), prompt_of]
    draw = np.random.default_rng(seed)
    hits = np.empty(len(embeddings))
    for row, prompt in enumerate(prompt_of):
        others = np.delete(similarity[row], prompt)
        if len(others) > candidates - 1:
            others = others[draw.permutation(len(others))[: candidates - 1]]
        hits[row] = np.all(own[row] > others)
    return scores.estimate(scores.tally(hits[:, None], np.ones((len(hits), 1), dtype=np.bool_), prompt_of))


def inception_score(probabilities: Floats) -> float:
    """exp of the mean Kullback-Leibler divergence of each image's classes [I, K] from those of all images.

    Salimans et al. 2016. Rows sum to 1. It is 1 where every image is classed alike, K where all are certain and evenly
    spread.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    marginal = np.broadcast_to(p.mean(axis=0), p.shape)
    positive = p > 0
    terms = np.zeros_like(p)
    terms[positive] = p[positive] * (np.log(p[positive]) - np.log(marginal[positive]))
    return float(np.exp(terms.sum(axis=1).mean()))


def frechet_distance(a: Floats, b: Floats) -> float:
    """The Frechet distance of two sets of features [I, E] and [J, E], each taken as a Gaussian (FID's formula).

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)), with unbiased covariances A and B (Heusel et al. 2017). The trace
    of the root is the sum of the roots of the eigenvalues of A^(1/2) B A^(1/2), which is symmetric. It is biased
    upwards by small sets: compare sets of one size only. Raises ValueError for sets of fewer than two.
    """
    if len(a) < 2 or len(b) < 2:
        raise ValueError(f"a Frechet distance needs two images or more on each side, not {len(a)} and {len(b)}")
    mean = ((a.mean(axis=0, dtype=np.float64) - b.mean(axis=0, dtype=np.float64)) ** 2).sum()
    first, second = (np.atleast_2d(np.cov(np.asarray(x, dtype=np.float64), rowvar=False)) for x in (a, b))
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    product = np.linalg.eigvalsh(root @ second @ root)
    return float(mean + np.trace(first) + np.trace(second) - 2 * np.sqrt(np.clip(product, 0, None)).sum())


def _unit(vectors: NDArray[Any]) -> NDArray[np.float64]:
    """Rows scaled to length 1, float64; a row of zeros stays."""
    wide = np.asarray(vectors, dtype=np.float64)
    length = np.linalg.norm(wide, axis=-1, keepdims=True)
    return np.asarray(wide / np.where(length > 0, length, 1.0))
