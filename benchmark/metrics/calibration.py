"""How cheaply models can be drawn and still rank alike: the same prompts at several steps and sizes. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from benchmark.evaluate import scores
from benchmark.evaluate.runner import Evaluation
from benchmark.evaluate.scores import Estimate
from benchmark.report.tables import Cell, Table

NEAR = 0.95  # rank correlation from which a setting counts as ranking alike


class Effort(NamedTuple):
    """How an image is drawn: number of steps, and pixels across and down."""

    steps: int
    width: int
    height: int

    @property
    def cost(self) -> int:
        """Steps times pixels: what the time an image takes is nearly proportional to."""
        return self.steps * self.width * self.height

    @property
    def size(self) -> str:
        """`512x768`."""
        return f"{self.width}x{self.height}"


@dataclass(frozen=True)
class Setting:
    """One number of steps and size beside the most exact one: the largest size, and the most steps of it.

    `difference` is the paired difference of each model's accuracy to its own at the most exact; `correlation`
    Spearman's rank correlation of the models, NaN where ranks say nothing (one model, or all equal); `pairs` how many
    pairs of models stand in the same order, of how many; `seconds` an image takes.
    """

    effort: Effort
    seconds: float
    difference: Mapping[str, Estimate]
    correlation: float
    pairs: tuple[int, int]


def calibrate(
    evaluations: Mapping[Effort, Mapping[str, Evaluation]], tagger: str, threshold: float
) -> tuple[Setting, ...]:
    """Compare every effort with the most exact, cheapest first. `evaluations[effort][model]`: of the same prompts."""
    most = max(evaluations, key=_exactness)
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
    """The least costly whose ranks correlate by `NEAR` or more with the most exact; None where ranks say nothing."""
    return next((setting for setting in settings if setting.correlation >= NEAR), None)


def calibration_table(settings: Sequence[Setting], role: str) -> Table:
    """Rows are numbers of steps and sizes, the cheapest first; `role`: the tagger's."""
    names = list(settings[0].difference)
    most = max((setting.effort for setting in settings), key=_exactness)
    rows = [
        (
            Cell(str(setting.effort.steps)),
            Cell(setting.effort.size),
            Cell(f"{setting.seconds:.3f}"),
            Cell("–" if np.isnan(setting.correlation) else f"{setting.correlation:.3f}"),
            Cell(f"{setting.pairs[0]} of {setting.pairs[1]}"),
            *(Cell(score=setting.difference[name], signed=True) for name in names),
        )
        for setting in settings
    ]
    head = (
        "steps",
        "size",
        "seconds an image",
        f"rank correlation by {role}",
        "pairs alike",
        *(f"{name}, against {most.steps} at {most.size}" for name in names),
    )
    return Table(head, tuple(rows))


def _exactness(effort: Effort) -> tuple[int, int]:
    return effort.width * effort.height, effort.steps


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's: the correlation of ranks, equal values sharing their mean rank. NaN where one side is all equal."""
    first, second = (_ranks(np.asarray(values, dtype=np.float64)) for values in (a, b))
    first, second = first - first.mean(), second - second.mean()
    size = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / size) if size > 0 else float("nan")


def pairs_alike(a: Sequence[float], b: Sequence[float]) -> tuple[int, int]:
    """(pairs in the same order in both, pairs); a tie is like a tie only."""
    pairs = [(i, j) for i in range(len(a)) for j in range(i)]
    return sum(bool(np.sign(a[i] - a[j]) == np.sign(b[i] - b[j])) for i, j in pairs), len(pairs)


def _ranks(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    below = (values[None, :] < values[:, None]).sum(axis=1)
    alike = (values[None, :] == values[:, None]).sum(axis=1)
    return np.asarray(below + (alike + 1) / 2)
