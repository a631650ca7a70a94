"""What a study asks of its objective, what it keeps of every trial, and when it has seen enough. Pure.

The study knows an objective only as `Objective`: weights in, `Score` out. It is tested with a plain function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol

import numpy as np

from benchmark.evaluate.scores import Estimate, Tally, paired_difference
from merger.search.space import Floats
from merger.weights import Weights

SEARCH = "search"
"""The role of a trial that a sampler proposed and that was scored on the search's fixed prompts."""

STEP = "step"
"""The role of a step of the gradient search, on prompts of its own: its value is comparable with no other."""

AVERAGE = "average"
"""The role of the mean of the last steps' weights, with which a gradient search ends that has no time for a decay."""

AVERAGE_OF_SEARCHES = "average_of_searches"
"""The role of the mean of the weights that several gradient searches of one study ended with."""

STRENGTH = "strength"
"""The role of such a mean times a number. See `merger.search.mixtures`."""

MEMBER = "member"
"""The attribute that says which of several gradient searches a trial belongs to: 1, 2, ...; the first has none."""

MIXTURE = "mixture"
"""The attribute of an average of searches or a strength that says what it is made of: a `Mixture`."""

DECAY = "decay"
"""The attribute of a trial that belongs to a decay of the learning rate. See `merger.search.adam.Decay`."""

PROPOSED = (SEARCH, STEP, AVERAGE, AVERAGE_OF_SEARCHES, STRENGTH, "polish")
"""The roles of trials that a sampler proposed; all others are baselines. Only earlier versions stored "polish"."""

PRUNED_AFTER = "stopped_after"
"""The attribute of a pruned trial's score: how many prompts it got. Its value is an estimate."""

BELOW_FLOOR = "below_floor"
"""The attribute of a score that holds the floors that a blend breaks: {name: by how much}. Absent without floors."""

Report = Callable[[int, float], None]
"""`report(images made so far, value so far)`; what it raises ends the trial."""


@dataclass(frozen=True)
class Score:
    """How good one blend is on a prompt set.

    `value` is what the search raises, with its standard error clustered by prompt. `per_prompt` are its parts, one per
    prompt in the set's order, so that two blends can be compared prompt by prompt; `asked` says how many tags each
    prompt asks for, which is how much it counts ((): unknown, all count the same). Accuracies and probabilities are
    shares in 0..1; `seconds` is wall time. `attributes` is anything else that belongs to the trial (JSON values): a
    sampler of later trials may read it.
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
    asked: Sequence[int] = ()


class Asked(IntEnum):
    """What the user asks of a search that is running.

    STOP: to stop, and to go on later. END: to end well, with a decay of the learning rate where the search can have
    one. END_NOW: to end without one.
    """

    NOTHING = 0
    STOP = 1
    END = 2
    END_NOW = 3


class Objective(Protocol):
    """Weights to score; deterministic: the same weights give the same score."""

    def __call__(self, weights: Weights, report: Report | None = None) -> Score:
        """Scores one blend."""


class PrunedObjective(Protocol):
    """Weights, and the best score so far, to a score; deterministic. `merger.scoring.pruning` has one."""

    def __call__(self, weights: Weights, best: Score, report: Report | None = None) -> Score:
        """Scores one blend: on all prompts, or on those after which it was hopeless (attribute `PRUNED_AFTER`)."""


class GradientStep(Protocol):
    """Weights, and a place in a stream of prompt sets, to a score and gradient; deterministic.

    `merger.scoring.gradients.steps.FreshSteps` is one.
    """

    def __call__(self, weights: Weights, place: int) -> tuple[Score, Mapping[str, Mapping[str, float | Floats]]]:
        """The score of one blend on the prompts at `place` 0, 1, ..., and `gradient[layer][donor]` there.

        The gradient of a layer with weights by channel is an array of as many numbers.
        """


@dataclass(frozen=True)
class TrialRecord:
    """A finished trial.

    `role` is base, donor, uniform, best_uniform, greedy_soup, search, step, average, average_of_searches or strength.
    `name` is that of a baseline, an average of searches or a strength, or ''. All but steps were scored on the same
    prompts. A step's value is not comparable with any other.
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
        """Whether it was scored on all of the search's fixed prompts: neither a step nor pruned."""
        return self.role != STEP and PRUNED_AFTER not in self.score.attributes

    @property
    def held(self) -> bool:
        """Whether it comes before every decay of the learning rate: a search that is continued goes on from there."""
        return held(self.role, self.score.attributes)

    @property
    def member(self) -> int:
        """Which of several gradient searches it belongs to, from 0."""
        return member_of(self.score.attributes)

    @property
    def label(self) -> str:
        """What to call it in a table or message."""
        return self.name or f"trial {self.number}"

    @property
    def title(self) -> str:
        """Its number, as everywhere counted from 0, and its name."""
        return f"trial {self.number}" + (f" ({self.name})" if self.name else "")


def held(role: str | None, attributes: Mapping[str, Any]) -> bool:
    """Whether a trial of this role and these attributes belongs to no decay and to no other end of a search."""
    return role != AVERAGE and attributes.get(DECAY) is None and attributes.get(MIXTURE) is None


def member_of(attributes: Mapping[str, Any]) -> int:
    """Which of several gradient searches a trial with these attributes belongs to, from 0."""
    return int(attributes.get(MEMBER) or 0)


def best_of(records: Sequence[TrialRecord]) -> TrialRecord | None:
    """The candidate of the highest value, the earliest of equals; None if there is none."""
    return max(candidates(records), key=lambda record: (record.value, -record.number), default=None)


def candidates(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The records scored on all of the search's fixed prompts: no steps and no pruned trials."""
    return [record for record in records if record.whole]


def distinct_best(records: Sequence[TrialRecord], count: int) -> list[TrialRecord]:
    """The `count` candidates of the highest values whose weights all differ, best first."""
    chosen: list[TrialRecord] = []
    for record in sorted(candidates(records), key=lambda record: (-record.value, record.number)):
        if len(chosen) < count and all(record.weights != other.weights for other in chosen):
            chosen.append(record)
    return chosen


def paired(later: Score, earlier: Score) -> Estimate:
    """`later` minus `earlier` over the prompts that both have, each counting as many times as it asks for tags.

    A pruned score has only the first prompts. The value and the standard error are those of
    `benchmark.evaluate.scores.paired_difference`. NaN for an error that a single prompt does not tell.
    """
    count = min(len(later.per_prompt), len(earlier.per_prompt))
    known = next((score.asked for score in (later, earlier) if len(score.asked) >= count), None)
    asked = np.ones(count) if known is None else np.asarray(known[:count], dtype=np.float64)
    prompts = np.arange(count)
    # a prompt that asks for nothing has no part (NaN), and asked = 0 takes it out of the difference
    sums = [asked * np.asarray(score.per_prompt[:count], dtype=np.float64) for score in (later, earlier)]
    return paired_difference(*(Tally(prompts, hits, asked) for hits in sums))


def improvement(later: Score, earlier: Score) -> tuple[float, float]:
    """(how much higher the value of `later` is, the standard error of that difference).

    The error is paired by prompt where both scores have the same number of prompts; else their two errors add in
    squares. It is infinite where there is one pair, which says nothing about it.
    """
    difference = later.value - earlier.value
    pairs = len(later.per_prompt)
    if pairs == 0 or pairs != len(earlier.per_prompt):
        return difference, math.hypot(later.stderr, earlier.stderr)
    stderr = paired(later, earlier).stderr
    return difference, math.inf if math.isnan(stderr) else stderr


def last_improvement(records: Sequence[TrialRecord]) -> int:
    """The place in `records` of the last trial that improved on all before it by more than its own noise.

    Each trial is compared with the last one that did so and not with the best so far: many small improvements add up to
    one. Noise is one standard error of the difference, as `improvement` gives it. -1 if there is no candidate: steps
    and pruned trials do not count.
    """
    mark = -1
    for place in range(len(records)):
        mark = improved_at(records, place, mark)
    return mark


def improved_at(records: Sequence[TrialRecord], place: int, mark: int) -> int:
    """`last_improvement` of the records up to `place`, where `mark` is that of the records before it.

    A search asks after every trial; so the cost of that does not grow with the trials.
    """
    record = records[place]
    if not record.whole:
        return mark
    if mark < 0:
        return place
    difference, noise = improvement(record.score, records[mark].score)
    return place if difference > noise else mark


def since_improvement(records: Sequence[TrialRecord], mark: int | None = None) -> int:
    """How many trials a sampler has proposed since the last improvement, steps and pruned ones included.

    mark: the last improvement's place, if it is known already. Baselines do not count: the patience begins after them.
    """
    mark = last_improvement(records) if mark is None else mark
    return len(records) - max(mark + 1, sum(record.role not in PROPOSED for record in records))


def why_stop(
    records: Sequence[TrialRecord],
    *,
    trials: int,
    patience: int,
    time_limit: float | None,
    steps: int | None = None,
    mark: int | None = None,
) -> str | None:
    """The reason to end the search now; None to go on. Its first word is trials, plateau, time or gradients.

    patience: how many trials without an improvement end it. time_limit: in seconds of finished trials, in this sitting
    and earlier ones. steps: how many a gradient search plans; it ends when they are taken and their end is scored.
    mark: as in `since_improvement`.
    """
    if len(records) >= trials:
        return f"trials: the limit of {trials} is reached"
    if since_improvement(records, mark) >= patience:
        return f"plateau: no improvement beyond its own noise in {patience} trials"
    if time_limit is not None and spent(records) >= time_limit:
        return f"time: the limit of {time_limit:g} s is reached"
    taken = sum(record.role == STEP for record in records)
    if steps is not None and taken >= steps and records[-1].role != STEP:
        return f"gradients: all {steps} steps are taken"
    return None


def spent(records: Sequence[TrialRecord]) -> float:
    """The seconds that `records` took together."""
    return math.fsum(record.score.seconds for record in records)
