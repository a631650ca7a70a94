"""Scores with their uncertainty. Pure numpy.

I  images                      asked: bool [I, T]  whether the image's prompt asked for the tag
T  tags                        probabilities: float [I, T]  what the tagger says of the image
C  prompts, the clusters       prompt_of: int [I]  the prompt each image belongs to
B  bootstrap resamples

Images of one prompt, and tags of one image, are not independent: every standard error and interval here resamples whole
prompts. A score is a ratio, sum(hits) / sum(asked), over prompts; its standard error is that of a ratio estimator
(Cochran, Sampling Techniques, 3rd ed., ch. 2.11), its interval the percentile bootstrap (Efron 1979).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
LEVEL = 0.95
PROBABILITY_FLOOR = 1e-4  # a smaller probability counts as this in a logarithm
_SEED = 20240229  # of the resampling only: the same numbers always get the same interval

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]
Integers = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Estimate:
    """A value with its standard error and 95 % interval. All are NaN if there was nothing to score."""

    value: float
    stderr: float
    low: float
    high: float


class Rate(NamedTuple):
    """A share, and the number of images that it is a share of."""

    score: Estimate
    images: int


@dataclass(frozen=True)
class Tally:
    """What each prompt contributes: `hits` [C] out of `asked` [C]. `prompts` [C]: the prompts' indices, ascending."""

    prompts: Integers
    hits: Floats
    asked: Floats


def tally(values: Floats, asked: Bools, prompt_of: Integers) -> Tally:
    """Sum `values` [I, T] where `asked` [I, T], and count `asked`, over each prompt."""
    if values.shape != asked.shape or len(prompt_of) != len(values):
        raise ValueError(f"values {values.shape}, asked {asked.shape} and prompt_of {np.shape(prompt_of)} do not fit")
    prompts, position = np.unique(np.asarray(prompt_of), return_inverse=True)
    hits = np.where(asked, values, 0.0).sum(axis=1, dtype=np.float64)
    return Tally(
        prompts,
        np.bincount(position, weights=hits, minlength=len(prompts)).astype(np.float64),
        np.bincount(position, weights=asked.sum(axis=1), minlength=len(prompts)).astype(np.float64),
    )


def estimate(counts: Tally) -> Estimate:
    """The ratio sum(hits) / sum(asked), with both uncertainties clustered by prompt."""
    return _ratio(counts.hits, counts.asked, bounded=True)


def paired_difference(a: Tally, b: Tally) -> Estimate:
    """Score of `a` minus score of `b`, paired by prompt, so that a prompt's difficulty cancels.

    Raises ValueError unless both were asked the same.
    """
    if not (np.array_equal(a.prompts, b.prompts) and np.array_equal(a.asked, b.asked)):
        raise ValueError("a paired difference needs two scores of the same prompts")
    return _ratio(a.hits - b.hits, a.asked, bounded=False)


def tag_accuracy(probabilities: Floats, asked: Bools, prompt_of: Integers, threshold: float) -> Estimate:
    """Tags asked for and found (probability >= threshold) / tags asked for: their recall."""
    return estimate(tally(found(probabilities, threshold), asked, prompt_of))


def mean_probability(probabilities: Floats, asked: Bools, prompt_of: Integers) -> Estimate:
    """The mean probability of the tags asked for."""
    return estimate(tally(probabilities, asked, prompt_of))


def mean_log_probability(probabilities: Floats, asked: Bools, prompt_of: Integers) -> Estimate:
    """The mean natural logarithm of the probability of the tags asked for, each at least `PROBABILITY_FLOOR`."""
    return mean_value(np.log(np.maximum(probabilities, PROBABILITY_FLOOR)), asked, prompt_of)


def mean_value(values: Floats, asked: Bools, prompt_of: Integers) -> Estimate:
    """The mean of any values [I, T] where `asked`, with an interval that may leave 0..1."""
    counts = tally(values, asked, prompt_of)
    return _ratio(counts.hits, counts.asked, bounded=False)


def found(probabilities: Floats, threshold: float) -> Floats:
    """1.0 where the tag counts as found, else 0.0; same shape. NaN is not found."""
    return (probabilities >= threshold).astype(np.float64)


def per_category(
    values: Floats, asked: Bools, prompt_of: Integers, tags: Sequence[str], category_of: Callable[[str], str]
) -> dict[str, Estimate]:
    """An estimate for each category of `tags` [T] that was asked for, in the order in which they appear."""
    categories = np.array([category_of(tag) for tag in tags])
    scores: dict[str, Estimate] = {}
    for category in dict.fromkeys(categories.tolist()):
        columns = categories == category
        if asked[:, columns].any():
            scores[category] = estimate(tally(values[:, columns], asked[:, columns], prompt_of))
    return scores


def per_tag(values: Floats, asked: Bools, prompt_of: Integers, tags: Sequence[str]) -> dict[str, Rate]:
    """The mean of 0..1 values [I, T] where asked, and in how many images, for each tag that was asked for."""
    order = np.argsort(prompt_of, kind="stable")
    starts = np.unique(np.asarray(prompt_of)[order], return_index=True)[1]
    hits = np.add.reduceat(np.where(asked, values, 0.0)[order], starts, axis=0, dtype=np.float64)  # [C, T]
    counts = np.add.reduceat(asked[order], starts, axis=0, dtype=np.float64)
    everywhere = np.flatnonzero((counts > 0).mean(axis=0) > 0.5)  # one product for all of them, of all prompts
    found = dict(zip(everywhere.tolist(), _ratios(hits[:, everywhere], counts[:, everywhere]), strict=True))
    return {
        tag: Rate(found[t] if t in found else _ratio(hits[:, t], counts[:, t], bounded=True), int(counts[:, t].sum()))
        for t, tag in enumerate(tags)
        if counts[:, t].any()
    }


def per_prompt(counts: Tally) -> Floats:
    """Each prompt's own score [C]; NaN if it was asked nothing."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(counts.hits / counts.asked)


def _ratio(hits: Floats, asked: Floats, *, bounded: bool) -> Estimate:
    """sum(hits) / sum(asked) over prompts that were asked something. `bounded`: hits lie in 0..asked."""
    used = asked > 0
    hits, asked = hits[used], asked[used]
    clusters = len(hits)
    if clusters == 0:
        return Estimate(*(float("nan"),) * 4)
    value = float(hits.sum() / asked.sum())
    if clusters == 1:  # one prompt says nothing of how prompts differ
        return Estimate(value, float("nan"), 0.0 if bounded else float("nan"), 1.0 if bounded else float("nan"))
    residuals = hits - value * asked
    stderr = float(np.sqrt(clusters / (clusters - 1) * (residuals**2).sum()) / asked.sum())
    if bounded and (np.all(hits == asked) or np.all(hits == 0)):
        # No resample can differ. With accuracy p a run of C whole prompts like this has a chance of at most p^C.
        margin = 1.0 - ((1.0 - LEVEL) / 2) ** (1.0 / clusters)
        return Estimate(value, stderr, value - margin if value else 0.0, value + margin if not value else 1.0)
    times = _resamples(clusters)
    resampled = (times @ hits) / (times @ asked)
    low, high = np.quantile(resampled, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Estimate(value, stderr, float(low), float(high))


def _ratios(hits: Floats, asked: Floats) -> list[Estimate]:
    """`_ratio` of each column of [C, T], bounded, where nearly every prompt was asked: all prompts are resampled."""
    clusters, columns = hits.shape
    if clusters < 2 or not columns:
        return [_ratio(hits[:, t], asked[:, t], bounded=True) for t in range(columns)]
    times = _resamples(clusters)
    with np.errstate(invalid="ignore", divide="ignore"):  # few prompts may be resampled to none that was asked
        resampled = (times @ hits) / (times @ asked)
    quantile = np.nanquantile if np.isnan(resampled).any() else np.quantile  # the second is quicker
    bounds = quantile(resampled, ((1 - LEVEL) / 2, (1 + LEVEL) / 2), axis=0)
    values = hits.sum(axis=0) / asked.sum(axis=0)
    residuals = hits - values * asked
    used = (asked > 0).sum(axis=0)
    errors = np.sqrt(used / np.maximum(used - 1, 1) * (residuals**2).sum(axis=0)) / asked.sum(axis=0)
    return [
        _ratio(hits[:, t], asked[:, t], bounded=True)  # none or all found: no resample differs
        if values[t] in (0, 1)
        else Estimate(float(values[t]), float(errors[t]), float(bounds[0, t]), float(bounds[1, t]))
        for t in range(columns)
    ]


@lru_cache(maxsize=64)
def _resamples(clusters: int) -> Floats:
    """How often each prompt is in each resample: float64 [B, C], rows sum to C."""
    draws = np.random.default_rng(_SEED).integers(0, clusters, (RESAMPLES, clusters))
    rows = np.repeat(np.arange(RESAMPLES), clusters) * clusters
    times = np.bincount(rows + draws.ravel(), minlength=RESAMPLES * clusters)
    return times.reshape(RESAMPLES, clusters).astype(np.float64)
