"""What a model gained and lost against another on the same prompts, tag by tag or category by category. Pure.

C prompts that ask for a tag

A mean over all tags hides a tag that became worse. So every tag is compared by itself: the difference of the shares
found, with its interval, paired by prompt. Whether it is beyond chance is decided by the tagger's probabilities, as a
share of hits among 26 prompts is too coarse: by Wilcoxon's signed-rank test of the C paired differences in mean
probability. Of many tags, some differ by chance alone; so the p-values of all are adjusted together (Benjamini and
Hochberg 1995): of the gains and losses that are named, about `FALSE_DISCOVERIES` are expected to be chance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmark.evaluate import scores
from benchmark.evaluate.runner import Evaluation
from benchmark.evaluate.scores import Estimate, Floats, Tally

FALSE_DISCOVERIES = 0.05
"""The expected share of chance among the gains and losses that are named."""

FEWEST_PROMPTS = 6
"""Prompts that can decide: of five, even a difference of the same sign in all has a chance of 1 in 16 (two-sided)."""

LOSS, GAIN, TOO_FEW, NOT_SHOWN = "loss", "gain", "too few", ""
"""What a change comes to."""


@dataclass(frozen=True)
class Change:
    """One tag's (or category's) change from a model to another.

    prompts: C. before, after: the shares found. difference: after - before, paired by prompt. p: of the test; NaN if C
    is below `FEWEST_PROMPTS`. q: p adjusted for all that were tested together. verdict: `LOSS` or `GAIN` if q is at
    most `FALSE_DISCOVERIES` and shares and probabilities moved the same way; `TOO_FEW`; or `NOT_SHOWN`.
    """

    key: str
    prompts: int
    before: float
    after: float
    difference: Estimate
    p: float
    q: float
    verdict: str


def changes(
    after: Evaluation,
    before: Evaluation,
    role: str,
    threshold: float,
    key_of: Callable[[str], str] = lambda tag: tag,
) -> tuple[Change, ...]:
    """The change of every tag that was asked for, or of every key that `key_of` gives tags; the largest loss first.

    role: of the tagger. Raises ValueError unless both are evaluations of the same prompts.
    """
    if after.tags != before.tags or not np.array_equal(after.asked, before.asked):
        raise ValueError("changes need two evaluations of the same prompts")
    keys = np.array([key_of(tag) for tag in after.tags])
    values = [(each.found(role, threshold), each.probabilities[role]) for each in (after, before)]
    found: list[Change] = []
    shifts: list[float] = []
    for key in dict.fromkeys(keys.tolist()):
        columns = np.flatnonzero(keys == key)
        rows = np.flatnonzero(after.asked[:, columns].any(axis=1))
        if len(rows):
            place = np.ix_(rows, columns)
            asked, prompt_of = after.asked[place], after.prompt_of[rows]
            hits, said = ([scores.tally(each[kind][place], asked, prompt_of) for each in values] for kind in range(2))
            change, shift = _change(key, hits, said)
            found.append(change)
            shifts.append(shift)
    return tuple(sorted(_adjusted(found, shifts), key=lambda change: (change.difference.value, change.key)))


def _change(key: str, hits: Sequence[Tally], said: Sequence[Tally]) -> tuple[Change, float]:
    """(the change with p but without q and verdict, the sign that the probabilities moved by).

    hits, said: tags found and probabilities of the prompts that ask for the key, after and before.
    """
    moved = scores.per_prompt(said[0]) - scores.per_prompt(said[1])
    p, shift = _signed_ranks(moved) if len(moved) >= FEWEST_PROMPTS else (float("nan"), 0.0)
    after, before = (float(each.hits.sum() / each.asked.sum()) for each in hits)
    difference = scores.paired_difference(*hits)
    return Change(key, len(moved), before, after, difference, p, float("nan"), NOT_SHOWN), shift


def _signed_ranks(moved: Floats) -> tuple[float, float]:
    """(p, two-sided; the sign of the sum of the signed ranks) of Wilcoxon's test. All equal: p is 1."""
    if not moved.any():
        return 1.0, 0.0
    from scipy.stats import rankdata, wilcoxon

    ranks = rankdata(np.abs(moved[moved != 0]))
    return float(wilcoxon(moved).pvalue), float(np.sign((ranks * np.sign(moved[moved != 0])).sum()))


def _adjusted(found: list[Change], shifts: list[float]) -> list[Change]:
    """The changes with q and verdict."""
    from scipy.stats import false_discovery_control

    tested = [place for place, change in enumerate(found) if not np.isnan(change.p)]
    adjusted: Any = false_discovery_control([found[place].p for place in tested]) if tested else []
    q = dict(zip(tested, map(float, adjusted), strict=True))
    made = []
    for place, (change, shift) in enumerate(zip(found, shifts, strict=True)):
        verdict = TOO_FEW if place not in q else NOT_SHOWN
        if q.get(place, 1.0) <= FALSE_DISCOVERIES and change.difference.value * shift > 0:
            verdict = LOSS if shift < 0 else GAIN
        made.append(replace(change, q=q.get(place, float("nan")), verdict=verdict))
    return made
