"""What a search does next: it goes on, lets its learning rate fall, or ends. Pure.

A gradient search that holds its learning rate ends with a decay: after its planned steps, on a plateau, when a limit of
time or trials leaves no room for more, or when the user asks. A decay is a side branch. Its trials are marked, and a
search that is continued goes on from the last step before it, as if there had been no decay. So all that is asked here
is asked of the trials before the decay: a plateau that led to one is still a plateau after it, however much it gained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from merger.search.adam import SHORTEST_DECAY, AdamSettings, Decay
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
    """

    ends: bool = False
    reason: str = ""
    decay: Decay | None = None
    average: bool = False
    last: bool = False


ON = Move()
"""The search goes on."""


@dataclass
class Course:
    """The finished trials of a study, those before any decay, and those of the decay that is under way or done.

    mark: the place of the last improvement among `held`.
    """

    records: list[TrialRecord] = field(default_factory=list)
    held: list[TrialRecord] = field(default_factory=list)
    branch: list[TrialRecord] = field(default_factory=list)
    mark: int = -1

    @classmethod
    def of(cls, records: Sequence[TrialRecord]) -> Course:
        """The course that these trials lead to."""
        course = cls()
        for record in records:
            course.add(record)
        return course

    def add(self, record: TrialRecord) -> None:
        """One more trial."""
        self.records.append(record)
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


def next_move(course: Course, settings: SearchSettings, asked: Asked = Asked.NOTHING) -> Move:
    """What a search does after the trials of `course`."""
    adam, taken = settings.adam, _steps_in(course.held)
    if adam is None or not adam.holds or not taken:
        return _plain_move(course, settings, asked)
    if asked == Asked.STOP:
        return Move(ends=True, reason="interrupted")
    reason = _why_end(course, settings, adam, asked)
    decay, now = course.decay, taken + _steps_in(course.branch)
    if course.branch and (course.branch[-1].role == AVERAGE or _is_scored(course, decay, now)):
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
    taken = _steps_in(course.held)
    if asked != Asked.NOTHING:
        return f"interrupt: the user ended it after {taken} of {adam.steps} steps"
    if taken >= adam.first_decayed:
        return f"gradients: all {adam.steps} steps are taken"
    if since_improvement(course.held, course.mark) >= settings.patience:
        return f"plateau: no improvement beyond its own noise in {settings.patience} trials"
    return _no_room(course, settings, 1, adam.decay_after(taken + 1))


def _no_room(course: Course, settings: SearchSettings, more: int, over: int) -> str:
    """Why no `more` steps and a decay over `over` steps after them fit into the limits; '' if they do."""
    taken = _steps_in(course.held)
    end = taken + more + over - 2  # see `Decay.after`
    steps = end - taken
    due = bool(course.records) and course.records[-1].role == STEP and taken % settings.eval_every == 0
    scored = sum(count % settings.eval_every == 0 or count == end for count in range(taken + 1, end + 1))
    evaluations = scored + (due or end == taken)
    if len(course.records) + steps + evaluations > settings.trials:
        return f"trials: the limit of {settings.trials} leaves no room for another step"
    if settings.time_limit is None:
        return ""
    records = course.records
    seconds = steps * _usual([each for each in records if each.role == STEP])
    seconds += evaluations * _usual([each for each in records if each.whole])
    if spent(records) + seconds > settings.time_limit:
        return f"time: the limit of {settings.time_limit:g} s leaves no room for another step"
    return ""


def _room(course: Course, settings: SearchSettings, more: int, over: int) -> bool:
    return not _no_room(course, settings, more, over)


def _usual(records: Sequence[TrialRecord]) -> float:
    """The seconds that one more of these trials is expected to take."""
    recent = [record.score.seconds for record in records[-MEASURED:]]
    return math.fsum(recent) / len(recent) if recent else 0.0


def _is_over(course: Course, settings: SearchSettings) -> bool:
    """Whether a limit is reached, so that only one trial more may be made, which is to be worth it."""
    late = settings.time_limit is not None and spent(course.records) >= settings.time_limit
    return late or len(course.records) >= settings.trials - 1


def _is_scored(course: Course, decay: Decay | None, taken: int) -> bool:
    """Whether the end of the decay that is under way has been reached and scored."""
    return decay is not None and taken >= decay.steps and course.branch[-1].role != STEP


def _steps_in(records: Sequence[TrialRecord]) -> int:
    return sum(record.role == STEP for record in records)
