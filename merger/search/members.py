"""Several gradient searches in one study: which of them goes on, and what is made of their ends. Pure.

The searches (members) run one after another, each from the start, with prompts of its own, and each ends as
`merger.search.endings` says. Then the mean of their ends' weights is scored, and then that mean times other strengths.
Averages and strengths are side branches like decays: a study that is continued with more steps, or with more searches,
goes on as if there were none, and makes new ones in the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from merger.search.adam import AdamSettings
from merger.search.endings import Course, Move, next_move_of, no_room, seconds_of_evaluation
from merger.search.mixtures import Mixture, long_enough, next_strength
from merger.search.settings import SearchSettings
from merger.search.trials import BELOW_FLOOR, MIXTURE, PROPOSED, Asked, TrialRecord, spent

_FIRST = ("interrupt", "time", "trials", "plateau")
"""First words of reasons: that of a study with several searches is the reason of one of them, in this order."""


@dataclass
class Courses:
    """The finished trials of a study: all `records`, those of each search, and the `mixtures` of their ends."""

    records: list[TrialRecord] = field(default_factory=list)
    mixtures: list[TrialRecord] = field(default_factory=list)
    _members: dict[int, Course] = field(default_factory=dict)

    @classmethod
    def of(cls, records: Iterable[TrialRecord]) -> Courses:
        """The courses that these trials lead to."""
        courses = cls()
        for record in records:
            courses.add(record)
        return courses

    def add(self, record: TrialRecord) -> None:
        """One more trial."""
        self.records.append(record)
        if record.score.attributes.get(MIXTURE) is not None:
            self.mixtures.append(record)
        elif record.role in PROPOSED:
            self.member(record.member).add(record)
        else:
            for course in self._members.values():
                course.add(record)

    def member(self, member: int) -> Course:
        """The course of one search, from 0; a new one begins with the baselines."""
        if member not in self._members:
            course = Course(self.records)
            for record in self.records:
                if record.role not in PROPOSED:
                    course.add(record)
            self._members[member] = course
        return self._members[member]

    def ended(self, searches: int) -> list[Course]:
        """Those of the first `searches` that have ended."""
        return [course for course in map(self.member, range(searches)) if course.end is not None]

    def averaged(self, searches: int) -> tuple[Course, ...]:
        """Those whose ends are averaged; see `long_enough`."""
        ended = self.ended(searches)
        long = long_enough([course.steps for course in ended])
        return tuple(course for course, is_long in zip(ended, long, strict=True) if is_long)


def next_move(courses: Courses, settings: SearchSettings, asked: Asked = Asked.NOTHING) -> Move:
    """What a study does after these trials."""
    if settings.searches == 1 or settings.adam is None:
        return next_move_of(courses.member(0), settings, asked)
    if asked == Asked.STOP:
        return Move(ends=True, reason="interrupted")
    reasons = []
    for member in range(settings.searches):
        course = courses.member(member)
        if member and not course.steps:
            why_not = _why_not_begin(courses, member, settings, settings.adam, asked)
            move = Move(ends=bool(why_not), reason=why_not)
        else:
            move = next_move_of(course, settings, asked)
        if not move.ends:
            return replace(move, member=member)
        reasons.append(move.reason)
    return _mix(courses, settings, asked, _together(reasons, settings))


def _why_not_begin(courses: Courses, member: int, settings: SearchSettings, adam: AdamSettings, asked: Asked) -> str:
    """Why one more search does not begin; '' if it does. It begins if it can become long enough for the average."""
    which = f"search {member + 1} of {settings.searches}"
    if asked != Asked.NOTHING:
        return f"interrupt: the user ended it before {which}"
    longest = max((course.steps for course in courses.ended(settings.searches)), default=adam.steps)
    least = min(-(-longest // 2), adam.steps)
    over = min(adam.decay_after(least), least)
    return no_room(courses.member(member), settings, max(least - over + 2, 1), over, which)


def _together(reasons: Sequence[str], settings: SearchSettings) -> str:
    """The reason for the end of all searches, given those of each."""
    for first in _FIRST:
        for reason in reasons:
            if reason.startswith(first):
                return reason
    steps = settings.adam.steps if settings.adam is not None else 0
    return f"gradients: all {steps} steps of {settings.searches} searches are taken"


def _mix(courses: Courses, settings: SearchSettings, asked: Asked, reason: str) -> Move:
    """The average of the searches' ends, then its strengths, then the end."""
    ends = [course.end for course in courses.averaged(settings.searches)]
    of = tuple(end.number for end in ends if end is not None)
    over = Move(ends=True, reason=reason)
    if not of or len(courses.records) >= settings.trials:
        return over
    tried = {1.0: ends[0]} if len(of) == 1 and ends[0] is not None else {}
    for record in courses.mixtures:
        mixture = Mixture.from_json(record.score.attributes[MIXTURE])
        if mixture.of == of:
            tried[mixture.strength] = record
    if 1.0 not in tried:  # a single evaluation, which may run past a limit of time
        return Move(reason=reason, mixture=Mixture(of))
    strength = next_strength({strength: _merit(record) for strength, record in tried.items()})
    if strength is None or asked != Asked.NOTHING or _is_late(courses.records, settings):
        return over
    return Move(reason=reason, mixture=Mixture(of, strength))


def _merit(record: TrialRecord) -> tuple[bool, float]:
    return not record.score.attributes.get(BELOW_FLOOR), record.value


def _is_late(records: Sequence[TrialRecord], settings: SearchSettings) -> bool:
    """Whether there is no time for one more evaluation."""
    limit = settings.time_limit
    return limit is not None and spent(records) + seconds_of_evaluation(records) > limit
