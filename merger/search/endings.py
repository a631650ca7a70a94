"""What a search does next: it goes on, lets its learning rate fall, or ends. Pure.

A gradient search that holds its learning rate ends with a decay: after its planned steps, on a plateau, when a limit of
time or trials leaves no room for more, or when the user asks. A decay is a side branch. Its trials are marked, and a
search that is continued goes on from the last step before it, as if there had been no decay. So all that is asked here
is asked of the trials before the decay: a plateau that led to one is still a plateau after it, however much it gained.

Of several searches, each is one of these. `merger.search.members` has them in turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from merger.search.adam import SHORTEST_DECAY, AdamSettings, Decay
from merger.search.mixtures import Mixture
from merger.search.settings import SearchSettings
from merger.search.trials import (
    AVERAGE,
    DECAY,
    STEP,
    Asked,
    TrialRecord,
    improved_at,
    since_improvement,
    spent,
    why_stop,
)

MEASURED = 8
"""The last trials of a kind whose mean time is what the next one is expected to take."""


@dataclass(frozen=True)
class Move:
    """What comes next.

    ends: the search ends now. reason: why it ends, or why its learning rate falls. decay: what the next trial belongs
    to. average: the next trial is the mean of the last steps. last: the next trial scores where the steps have led.
    member: which of several searches it belongs to, from 0. mixture: the next trial is that of their ends.
    """

    ends: bool = False
    reason: str = ""
    decay: Decay | None = None
    average: bool = False
    last: bool = False
    member: int = 0
    mixture: Mixture | None = None


T = TypeVar("T")

ON = Move()
"""The search goes on."""


def on_course(trials: Sequence[T], is_held: Callable[[T], bool], *, decaying: bool) -> list[T]:
    """Of `trials` in order, those that lead to the next one.

    All that are held, and if the next one belongs to a decay, also those of the decay: they follow the last held one.
    Decays that a search was continued after lead nowhere.
    """
    course = [trial for trial in trials if is_held(trial)]
    if decaying:
        tail = next((place for place, trial in enumerate(reversed(trials)) if is_held(trial)), len(trials))
        course += trials[len(trials) - tail :]
    return course


@dataclass
class Course:
    """The finished trials of a study, and of one search those before any decay and those of its decay.

    records: all of the study. held: the baselines and the search's own trials before any decay. branch: those of the
    decay that is under way or done. mark: the place of the last improvement among `held`.
    """

    records: list[TrialRecord] = field(default_factory=list)
    held: list[TrialRecord] = field(default_factory=list)
    branch: list[TrialRecord] = field(default_factory=list)
    mark: int = -1

    def add(self, record: TrialRecord) -> None:
        """One more trial of the search, or baseline, which is among `records` already."""
        if not record.held:
            self.branch.append(record)
            return
        self.branch.clear()
        self.held.append(record)
        self.mark = improved_at(self.held, len(self.held) - 1, self.mark)

    @property
    def decay(self) -> Decay | None:
        """The decay that is under way or done."""
        kept = [record.score.attributes.get(DECAY) for record in self.branch]
        return Decay.from_json(kept[-1]) if kept and kept[-1] is not None else None

    @property
    def held_steps(self) -> int:
        """How many steps were taken before any decay."""
        return _steps_in(self.held)

    @property
    def steps(self) -> int:
        """How many steps were taken, those of the decay included."""
        return self.held_steps + _steps_in(self.branch)

    @property
    def end(self) -> TrialRecord | None:
        """The trial that scores where the search has ended; None while it has not."""
        if not self.branch:
            return None
        last, decay = self.branch[-1], self.decay
        scored = last.role == AVERAGE or (decay is not None and self.steps >= decay.steps and last.role != STEP)
        return last if scored else None


def next_move_of(course: Course, settings: SearchSettings, asked: Asked = Asked.NOTHING) -> Move:
    """What one search does after the trials of `course`."""
    adam, taken = settings.adam, course.held_steps
    if adam is None or not adam.holds or not taken:
        return _plain_move(course, settings, asked)
    if asked == Asked.STOP:
        return Move(ends=True, reason="interrupted")
    reason = _why_end(course, settings, adam, asked)
    decay, now = course.decay, course.steps
    if course.end is not None:
        return Move(ends=True, reason=reason if decay is None else decay.why) if reason else ON
    if decay is None:
        if not reason:
            return ON
        most = adam.decay_after(taken)
        over = next((over for over in range(most, SHORTEST_DECAY - 1, -1) if _room(course, settings, 0, over)), None)
        decay = None if over is None else Decay.after(taken, over, adam.steps, reason)
        if decay is not None and asked != Asked.END_NOW:
            return Move(reason=reason, decay=decay)
        decay = None
    elif not reason and adam.steps > decay.planned:
        return ON
    elif asked != Asked.END_NOW and (now >= decay.steps or not _is_over(course, settings)):
        return Move(reason=decay.why, decay=decay)
    if len(course.records) >= settings.trials:
        return Move(ends=True, reason=reason or f"trials: the limit of {settings.trials} is reached")
    return Move(reason=reason, decay=decay, average=True)


def _plain_move(course: Course, settings: SearchSettings, asked: Asked) -> Move:
    """The move of a search whose learning rate is not held, or has no step yet."""
    records, steps = course.records, settings.adam.steps if settings.adam is not None else None
    reason = why_stop(
        records,
        trials=settings.trials,
        patience=settings.patience,
        time_limit=settings.time_limit,
        steps=steps,
        mark=course.mark,
    )
    # the weights that the last steps led to are still to be scored: one trial more
    last = reason is not None and records[-1].role == STEP and len(records) < settings.trials
    if reason is not None and not last:
        return Move(ends=True, reason=reason)
    return Move(ends=True, reason="interrupted") if asked != Asked.NOTHING else Move(last=last)


def _why_end(course: Course, settings: SearchSettings, adam: AdamSettings, asked: Asked) -> str:
    """Why the learning rate is to fall, or has fallen; '' if it is held. Its first word is as in `why_stop`."""
    taken = course.held_steps
    if asked != Asked.NOTHING:
        return f"interrupt: the user ended it after {taken} of {adam.steps} steps"
    if taken >= adam.first_decayed:
        return f"gradients: all {adam.steps} steps are taken"
    if since_improvement(course.held, course.mark) >= settings.patience:
        return f"plateau: no improvement beyond its own noise in {settings.patience} trials"
    return no_room(course, settings, 1, adam.decay_after(taken + 1))


def no_room(course: Course, settings: SearchSettings, more: int, over: int, what: str = "another step") -> str:
    """Why no `more` steps and a decay over `over` steps after them fit into the limits; '' if they do.

    What follows several searches is to fit, too. what: what there is no room for, in words.
    """
    taken = course.held_steps
    end = taken + more + over - 2  # see `Decay.after`
    steps = end - taken
    due = bool(course.held) and course.held[-1].role == STEP and taken % settings.eval_every == 0
    scored = sum(count % settings.eval_every == 0 or count == end for count in range(taken + 1, end + 1))
    evaluations = scored + (due or end == taken) + settings.reserved
    if len(course.records) + steps + evaluations > settings.trials:
        return f"trials: the limit of {settings.trials} leaves no room for {what}"
    if settings.time_limit is None:
        return ""
    records = course.records
    seconds = steps * _usual([each for each in records if each.role == STEP])
    seconds += evaluations * seconds_of_evaluation(records)
    if spent(records) + seconds > settings.time_limit:
        return f"time: the limit of {settings.time_limit:g} s leaves no room for {what}"
    return ""


def _room(course: Course, settings: SearchSettings, more: int, over: int) -> bool:
    return not no_room(course, settings, more, over)


def seconds_of_evaluation(records: Sequence[TrialRecord]) -> float:
    """How long one more evaluation on the search prompts is expected to take."""
    return _usual([each for each in records if each.whole])


def _usual(records: Sequence[TrialRecord]) -> float:
    """The seconds that one more of these trials is expected to take."""
    recent = [record.score.seconds for record in records[-MEASURED:]]
    return math.fsum(recent) / len(recent) if recent else 0.0


def _is_over(course: Course, settings: SearchSettings) -> bool:
    """Whether a limit is reached, so that only one trial more may be made, which is to be worth it."""
    late = settings.time_limit is not None and spent(course.records) >= settings.time_limit
    return late or len(course.records) >= settings.trials - 1


def _steps_in(records: Sequence[TrialRecord]) -> int:
    return sum(record.role == STEP for record in records)
