"""What a study asks of its objective and what it keeps of every trial; when it has seen enough. Pure.

The study knows an objective only as `Objective`: weights in, `Score` out. It is tested with a plain function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from merger.search.space import Weights

STEP = "step"
"""The role of a trial that took a step up the gradients, on prompts of its own: it measures no candidate."""

POLISH = "polish"
"""The role of a black-box trial near the best blend, after a climb."""

STOPPED_AFTER = "stopped_after"
"""The attribute of a score whose trial was given up: how many prompts were drawn. Its value is an estimate."""

PROPOSED = ("search", POLISH, STEP)
"""The roles of trials that a sampler proposed; all others are baselines."""

Report = Callable[[int, float], None]
"""`report(prompts drawn so far, value so far)`; it may raise to stop a hopeless trial."""


@dataclass(frozen=True)
class Score:
    """How good one blend is on a prompt set.

    `value` is what the search raises, with its standard error clustered by prompt; `per_prompt` are its parts, one per
    prompt in the set's order, so that two blends can be compared pair by pair. Accuracies and probabilities are shares
    in 0..1; `seconds` is wall time. `attributes` is anything else that belongs to the trial (JSON values): a sampler
    of later trials may read it.
    """

    value: float
    stderr: float
    accuracy: float
    accuracy_stderr: float
    probability: float
    categories: Mapping[str, float] = field(default_factory=dict)
    per_prompt: Sequence[float] = ()
    images: int = 0
    seconds: float = 0.0
    checksum: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)


class Objective(Protocol):
    """Weights to score; deterministic: the same weights give the same score."""

    def __call__(self, weights: Weights, report: Report | None = None) -> Score:
        """Scores one blend."""


class Race(Protocol):
    """Weights, and the best score so far, to a score: of all prompts, or of as many as showed that it is hopeless.

    `racing.Racer` is one. Deterministic, for the same best score.
    """

    def __call__(self, weights: Weights, best: Score, report: Report | None = None) -> Score:
        """Scores one blend; one that was given up has the attribute `STOPPED_AFTER`."""


class GradientStep(Protocol):
    """Weights and a place in a stream of prompt sets to score and gradients; deterministic. `climbing.FreshSteps` is one."""

    def __call__(self, weights: Weights, place: int) -> tuple[Score, Mapping[str, Mapping[str, float]]]:
        """The score of one blend on the prompts at `place` 0, 1, ..., and `gradients[layer][donor]` there."""


@dataclass(frozen=True)
class TrialRecord:
    """A finished trial. `role` is base, donor, uniform, best_uniform, greedy_soup, search, polish or step.

    `name` is a baseline's, or ''. All but steps were scored on the same prompts. A step's value is not comparable with
    anything.
    """

    number: int
    role: str
    name: str
    weights: Weights
    score: Score

    @property
    def value(self) -> float:
        """What the search raises."""
        return self.score.value

    @property
    def whole(self) -> bool:
        """Whether it was scored on all of the search's fixed prompts: neither a step nor given up."""
        return self.role != STEP and STOPPED_AFTER not in self.score.attributes

    @property
    def label(self) -> str:
        """How to call it in a table or message."""
        return self.name or f"trial {self.number}"


def best_of(records: Sequence[TrialRecord]) -> TrialRecord | None:
    """The record of the highest value, the earliest of equals; None where there is none but steps."""
    return max(candidates(records), key=lambda record: (record.value, -record.number), default=None)


def candidates(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The records scored on all of the search's fixed prompts: no steps, and none that was given up."""
    return [record for record in records if record.whole]


def improvement(later: Score, earlier: Score) -> tuple[float, float]:
    """(how much higher `later` is, the standard error of that): paired by prompt where both kept their parts.

    Unpaired, the two standard errors add in squares. A single pair says nothing about its error: infinite.
    """
    difference = later.value - earlier.value
    pairs = len(later.per_prompt)
    if pairs == 0 or pairs != len(earlier.per_prompt):
        return difference, math.hypot(later.stderr, earlier.stderr)
    if pairs == 1:
        return difference, math.inf
    parts = [a - b for a, b in zip(later.per_prompt, earlier.per_prompt, strict=True)]
    mean = math.fsum(parts) / pairs
    variance = math.fsum((part - mean) ** 2 for part in parts) / (pairs - 1)
    return difference, math.sqrt(variance / pairs)


def last_improvement(records: Sequence[TrialRecord]) -> int:
    """The place in `records` of the last trial that rose above all before it by more than its own noise.

    The comparison is with the last trial that did so, not with the best so far: many small rises add up to one. Noise
    is one standard error of the difference, paired by prompt. -1 where there are no records. Steps and trials
    that were given up are passed over.
    """
    mark = -1
    for place, record in enumerate(records):
        if not record.whole:
            continue
        if mark < 0:
            mark = place
            continue
        difference, noise = improvement(record.score, records[mark].score)
        if difference > noise:
            mark = place
    return mark


def why_stop(
    records: Sequence[TrialRecord], *, trials: int, patience: int, time_limit: float | None, baselines: int
) -> str | None:
    """The reason to end the search now, in a few words starting with trials, plateau or time; None to go on.

    `patience` counts trials since the last real rise, or since the last of the `baselines` the study began with.
    `time_limit` is compared with the seconds of all finished trials, in this sitting or an earlier one.
    """
    if len(records) >= trials:
        return f"trials: the limit of {trials} is reached"
    waited = len(records) - max(last_improvement(records) + 1, baselines)
    if waited >= patience:
        return f"plateau: no rise beyond its own noise in {patience} trials"
    if time_limit is not None and spent(records) >= time_limit:
        return f"time: the limit of {time_limit:g} s is reached"
    return None


def spent(records: Sequence[TrialRecord]) -> float:
    """The seconds that `records` took together."""
    return math.fsum(record.score.seconds for record in records)


def distinct_best(records: Sequence[TrialRecord], count: int) -> list[TrialRecord]:
    """The `count` candidates of the highest values whose weights all differ, best first."""
    chosen: list[TrialRecord] = []
    for record in sorted(candidates(records), key=lambda record: (-record.value, record.number)):
        if len(chosen) < count and all(record.weights != other.weights for other in chosen):
            chosen.append(record)
    return chosen
