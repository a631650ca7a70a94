"""How few steps and pixels still rank models alike: the same prompts with several of each. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from benchmark.evaluate import scores
from benchmark.evaluate.runner import Evaluation
from benchmark.evaluate.scores import Estimate

NEAR = 0.95  # rank correlation from which a setting ranks the models alike


class Effort(NamedTuple):
    """What decides how long an image takes: number of steps, width and height in pixels."""

    steps: int
    width: int
    height: int

    @property
    def cost(self) -> int:
        """Steps times pixels: the time of an image is nearly proportional to it."""
        return self.steps * self.width * self.height

    @property
    def exactness(self) -> tuple[int, int]:
        """Orders efforts by how exact they are: by size first, then by steps."""
        return self.width * self.height, self.steps

    @property
    def size(self) -> str:
        """`512x768`."""
        return f"{self.width}x{self.height}"


@dataclass(frozen=True)
class Setting:
    """One number of steps and size, compared with the most exact: the largest size, and the most steps of it.

    `difference`: the paired difference of each model's accuracy to its own at the most exact. `correlation`: Spearman's
    rank correlation of the models, NaN if there is one model, or if all are equal. `pairs`: (pairs of models in the
    same order, pairs). `seconds`: of an image.
    """

    effort: Effort
    seconds: float
    difference: Mapping[str, Estimate]
    correlation: float
    pairs: tuple[int, int]


def calibrate(
    evaluations: Mapping[Effort, Mapping[str, Evaluation]], tagger: str, threshold: float
) -> tuple[Setting, ...]:
    """Compare every effort with the most exact, cheapest first. `evaluations[effort][model]` share their prompts."""
    most = max(evaluations, key=lambda effort: effort.exactness)
    exact = {name: done.accuracy(tagger, threshold).value for name, done in evaluations[most].items()}
    settings = []
    for effort, models in sorted(evaluations.items(), key=lambda item: (item[0].cost, item[0])):
        here = {name: done.accuracy(tagger, threshold).value for name, done in models.items()}
        difference = {
            name: scores.paired_difference(
                done.tally(tagger, threshold), evaluations[most][name].tally(tagger, threshold)
            )
            for name, done in models.items()
        }
        seconds = sum(done.seconds for done in models.values()) / sum(len(done.prompts) for done in models.values())
        a, b = ([values[name] for name in exact] for values in (here, exact))
        settings.append(Setting(effort, seconds, difference, rank_correlation(a, b), pairs_alike(a, b)))
    return tuple(settings)


def cheapest(settings: Sequence[Setting]) -> Setting | None:
    """The cheapest whose rank correlation with the most exact is `NEAR` or more; None if no correlation is known."""
    return next((setting for setting in settings if setting.correlation >= NEAR), None)


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's: the correlation of ranks, equal values sharing their mean rank. NaN if all of one side are equal."""
    from scipy.stats import rankdata

    first, second = (rankdata(values) - (len(values) + 1) / 2 for values in (a, b))
    size = np.sqrt((first @ first) * (second @ second))
    return float(first @ second / size) if size > 0 else float("nan")


def pairs_alike(a: Sequence[float], b: Sequence[float]) -> tuple[int, int]:
    """(pairs in the same order in both, pairs). A tie is in the same order as a tie only."""
    pairs = [(i, j) for i in range(len(a)) for j in range(i)]
    return sum(bool(np.sign(a[i] - a[j]) == np.sign(b[i] - b[j])) for i, j in pairs), len(pairs)
