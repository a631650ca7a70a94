"""Which sampler searches if the configuration leaves it open: by tagger, number of weights and budget. Pure.

`auto` follows gradients if the tagger has them, because on the demo family they found more with fewer images; else it
is `bayes`. `bayes` is black-box search: a Gaussian process for few weights, CMA-ES for many, TPE if the budget is too
small for CMA-ES to learn anything. The bounds between them are rules of thumb.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from merger.search.registry import CHOOSERS, sampler_named

FEW_WEIGHTS = 20
"""Weights up to which a Gaussian process is taken: each of its proposals costs the cube of the trials so far."""

FEW_TRIALS = 250
"""Trials up to which a Gaussian process is taken."""

GENERATIONS = 5
"""Generations that CMA-ES needs before its distribution is more than where it began."""


@dataclass(frozen=True)
class Choice:
    """A sampler's name, and why it is taken; '' if the configuration names it."""

    method: str
    why: str = ""

    @property
    def follows_gradients(self) -> bool:
        """Whether this sampler needs gradients."""
        return sampler_named(self.method).needs_gradients


def choose(method: str, *, tagger: str, no_gradients: str, weights: int, trials: int) -> Choice:
    """The sampler that `method` stands for.

    tagger: its name. no_gradients: why there are no gradients to follow; '' if there are. weights: how many are free.
    trials: how many a sampler may propose.
    """
    if method == "auto" and not no_gradients:
        return Choice("gradient", f"the tagger {tagger} can be differentiated")
    if method not in CHOOSERS:
        return Choice(method)
    before = f"{no_gradients}, " if method == "auto" else ""
    if weights <= FEW_WEIGHTS and trials <= FEW_TRIALS:
        return Choice("gp", f"{before}{weights} weights and {trials} trials are few enough for a Gaussian process")
    generation = 4 + math.floor(3 * math.log(max(weights, 1)))  # the size that the package cmaes takes
    if trials < GENERATIONS * generation:
        return Choice("tpe", f"{before}{trials} trials are fewer than {GENERATIONS} generations of CMA-ES")
    return Choice("cmaes", f"{before}{weights} weights are many, {trials} trials enough for CMA-ES")
